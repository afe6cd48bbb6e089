//! Which vNIC, and which VLAN on it, an interface of the guest is.
//!
//! *Promises*: an interface is given a vNIC only if every frame that the guest sends by it
//! leaves by that vNIC with that VLAN, as far as routing and the kinds of interfaces tell; the
//! proof of forwarding shows it of each session again.
//! *Refuses*: with a reason: tunnels and PPP, two tags, interfaces that shape or are down,
//! interfaces that have MACs of their own upon another (macvlan and the like). A
//! bridge is the vNIC that is its only port; if it filters VLANs, with the tag that it gives there. With several ports the forwarding database decides,
//! address by address, and a frame to an address that it has just forgotten goes to all of them,
//! which would prove a wrong one: such a bridge is left alone.
//! *Caller's duty*: make it anew whenever links or vNICs change.
//! *Standard*: IEEE 802.1Q.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::reason::Reason;
use super::settings::Switches;
use crate::agent::network::{Bridged, IfIndex, Link, LinkKind, Links};
use crate::packet::MacAddr;

/// A vNIC as the host tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vnic {
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its place on the guest's bus, if the host knows: `0000:00:04.0`.
    pub bus_path: Option<String>,
    /// Its MTU, bytes, if the host knows.
    pub mtu: Option<u16>,
}

/// The element as the host tells of it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Element {
    /// Its name.
    pub name: String,
    /// Its vNICs.
    pub vnics: Vec<Vnic>,
    /// Packets a second that its policy asks of a session.
    pub rate_min: Option<u32>,
    /// The age that its policy asks of one.
    pub age_min: Option<Duration>,
    /// Sessions that it may have at once.
    pub sessions_max: Option<u32>,
    /// Sessions that it may ask for in a second.
    pub asks_per_second: Option<u32>,
}

/// What an interface is on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// The vNIC's name.
    pub vnic: Arc<str>,
    /// The VLAN; 0: untagged.
    pub vlan: u16,
    /// The interface's MAC, if it is not the vNIC's.
    pub mac: Option<MacAddr>,
    /// The largest L3 packet, bytes, by the smallest of the interfaces on the way.
    pub mtu: u32,
    /// The largest L3 packet that the vNIC takes, bytes.
    pub vnic_mtu: u16,
    /// The VRF that it is in.
    pub vrf: Option<IfIndex>,
    /// If packets leave by a bridge: where it has its neighbours.
    pub bridged: Option<Bridged>,
}

/// The MTU of a vNIC whose host does not tell it.
const MTU_UNTOLD: u16 = 1500;

/// Names of kinds of interfaces that put packets into others.
const TUNNELS: [&str; 20] = [
    "bareudp",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "ovpn",
    "ppp",
    "sit",
    "tun",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
    "xfrm",
    "gtp",
];

/// What each interface is, or why it is none of the element's vNICs.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ports {
    by_index: BTreeMap<IfIndex, Result<Port, Reason>>,
    vrfs: Vec<IfIndex>,
}

impl Ports {
    /// What the interfaces `links` are of `element`.
    pub fn new(links: &Links, element: &Element, switches: &Switches) -> Self {
        let finder = Finder {
            links,
            element,
            switches,
        };
        let is_vrf = |link: &Link| matches!(link.kind, LinkKind::Vrf { .. });
        Self {
            by_index: (links.0.keys())
                .map(|index| (*index, finder.port(*index)))
                .collect(),
            vrfs: (links.0.iter())
                .filter(|(_, link)| is_vrf(link))
                .map(|(index, _)| *index)
                .collect(),
        }
    }

    /// What the interface is.
    ///
    /// # Errors
    /// Why it is none of the element's vNICs.
    pub fn get(&self, index: IfIndex) -> Result<&Port, Reason> {
        match self.by_index.get(&index) {
            Some(Ok(port)) => Ok(port),
            Some(Err(reason)) => Err(*reason),
            None => Err(Reason::ForeignInterface),
        }
    }

    /// All interfaces that are one.
    pub fn usable(&self) -> impl Iterator<Item = (IfIndex, &Port)> {
        (self.by_index.iter()).filter_map(|(index, port)| Some((*index, port.as_ref().ok()?)))
    }

    /// The VRFs' masters.
    pub fn vrfs(&self) -> &[IfIndex] {
        &self.vrfs
    }

    /// Interfaces whose reason, or wire, is not the same in `newer`.
    pub fn changed<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = IfIndex> + 'a {
        let is_changed = |index: &&IfIndex| self.by_index.get(index) != newer.by_index.get(index);
        self.by_index.keys().filter(is_changed).copied()
    }
}

/// What is below an interface.
struct Wire<'a> {
    vnic: &'a Vnic,
    vlan: u16,
    /// The smallest MTU on the way down.
    mtu: u32,
    /// The only port of the bridge on the way, if there is one.
    bridged: Option<Bridged>,
}

struct Finder<'a> {
    links: &'a Links,
    element: &'a Element,
    switches: &'a Switches,
}

impl Finder<'_> {
    /// What an interface that routes point to is.
    fn port(&self, index: IfIndex) -> Result<Port, Reason> {
        let link = self.usable(index)?;
        let master = link.master.and_then(|index| self.links.0.get(&index));
        let is_vrf = |link: &&Link| matches!(link.kind, LinkKind::Vrf { .. });
        if master.is_some() && master.filter(is_vrf).is_none() {
            // A bridge's or bond's member has no addresses of its own.
            return Err(Reason::ForeignInterface);
        }
        // Its packets pass the VRF's own interface, too.
        link.master
            .map_or(Ok(()), |vrf| self.usable(vrf).map(drop))?;
        let below = self.wire(index, link, 0)?;
        Ok(Port {
            vnic: below.vnic.name.as_str().into(),
            vlan: below.vlan,
            mac: (link.mac != below.vnic.mac).then_some(link.mac),
            mtu: below.mtu,
            vnic_mtu: below.vnic.mtu.unwrap_or(MTU_UNTOLD),
            vrf: link.master,
            bridged: below.bridged,
        })
    }

    /// The link, if nothing about itself stands in the way.
    fn usable(&self, index: IfIndex) -> Result<&Link, Reason> {
        let link = (self.links.0.get(&index)).ok_or(Reason::ForeignInterface)?;
        let against = [
            (
                self.switches.is_interface_off(&link.name),
                Reason::Interface,
            ),
            (!link.is_up, Reason::Down),
            (link.obstacle.is_some(), Reason::Obstacle),
            (link.is_shaped, Reason::Shaped),
        ];
        match against.into_iter().find(|(is_so, _)| *is_so) {
            Some((_, reason)) => Err(reason),
            None => Ok(link),
        }
    }

    /// The vNIC below a link, and the way there, for frames that have that tag when the link gets
    /// them; 0: none.
    fn wire(&self, index: IfIndex, link: &Link, tag: u16) -> Result<Wire<'_>, Reason> {
        let wire = match &link.kind {
            LinkKind::Device { .. } => Wire {
                vnic: self.vnic(link)?,
                vlan: tag,
                mtu: link.mtu,
                bridged: None,
            },
            LinkKind::Vlan { is_service, .. } if *is_service || tag != 0 => {
                return Err(Reason::ServiceTag);
            }
            LinkKind::Vlan { on, id, .. } => self.wire(*on, self.usable(*on)?, *id)?,
            LinkKind::Bridge { filters_vlans } => {
                let vlan = match filters_vlans {
                    true => Some(link.vlans.vlan_of(tag).ok_or(Reason::Bridge)?),
                    false => None,
                };
                self.bridged(index, vlan, tag)?
            }
            LinkKind::Other(kind) if TUNNELS.contains(&kind.as_str()) => {
                return Err(Reason::Tunnel);
            }
            LinkKind::Vrf { .. } | LinkKind::Other(_) => return Err(Reason::ForeignInterface),
        };
        Ok(Wire {
            mtu: wire.mtu.min(link.mtu),
            ..wire
        })
    }

    /// The only port of a bridge that is up, for frames of that VLAN, or tag if VLANs are nothing
    /// to it.
    fn bridged(&self, bridge: IfIndex, vlan: Option<u16>, tag: u16) -> Result<Wire<'_>, Reason> {
        let mut ports =
            (self.links.0.iter()).filter(|(_, link)| link.master == Some(bridge) && link.is_up);
        match (ports.next(), ports.next()) {
            (Some((index, _)), None) => {
                let port = self.usable(*index)?;
                let tag = match vlan {
                    Some(vlan) => port.vlans.tag_of(vlan).ok_or(Reason::Bridge)?,
                    None => tag,
                };
                match port.kind {
                    LinkKind::Device { .. } | LinkKind::Vlan { .. } => Ok(Wire {
                        bridged: Some(Bridged { port: *index, vlan }),
                        ..self.wire(*index, port, tag)?
                    }),
                    _ => Err(Reason::ForeignInterface),
                }
            }
            (None, _) => Err(Reason::Down),
            (Some(_), Some(_)) => Err(Reason::Bridge),
        }
    }

    /// The vNIC that a device is: as the owner says, by its place on the bus, and where the host or the guest does
    /// not tell that, by its MAC, if only one vNIC has it.
    fn vnic(&self, link: &Link) -> Result<&Vnic, Reason> {
        let vnics = &self.element.vnics;
        if let Some(name) = self.switches.vnics.get(&link.name) {
            let named = vnics.iter().find(|vnic| vnic.name == *name);
            return named.ok_or(Reason::ForeignInterface);
        }
        let bus_path = match &link.kind {
            LinkKind::Device { bus_path } => bus_path.as_deref(),
            _ => None,
        };
        let by_path = vnics
            .iter()
            .find(|vnic| bus_path.is_some() && vnic.bus_path.as_deref() == bus_path);
        if let Some(vnic) = by_path {
            return Ok(vnic);
        }
        let mut by_mac = vnics.iter().filter(|vnic| {
            let is_elsewhere = bus_path.is_some() && vnic.bus_path.is_some();
            vnic.mac == link.mac && !is_elsewhere
        });
        match (by_mac.next(), by_mac.next()) {
            (Some(vnic), None) => Ok(vnic),
            _ => Err(Reason::ForeignInterface),
        }
    }
}

#[cfg(test)]
mod tests;
