//! The guest's interfaces, and how its packets find their way.
//!
//! *Promises*: plain values, and lookups in them; nothing here asks the kernel.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: rtnetlink(7); IEEE 802.1Q.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::packet::MacAddr;

/// Number of an interface (`ifindex`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IfIndex(pub u32);

/// What an interface is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// A device of a bus: `bus_path` is its place (`0000:00:04.0`), if sysfs tells.
    Device {
        /// The last part of the device's path in sysfs that names a PCI function.
        bus_path: Option<String>,
    },
    /// A VLAN subinterface of `on`.
    Vlan {
        /// The interface that carries it.
        on: IfIndex,
        /// VLAN id.
        id: u16,
        /// Service tags (802.1ad) are nothing for the fast path.
        is_service: bool,
    },
    /// A bridge.
    Bridge {
        /// Each VLAN (802.1Q) has ports and entries of its own.
        filters_vlans: bool,
    },
    /// A VRF's master, of that routing table.
    Vrf {
        /// Its table.
        table: u32,
    },
    /// Anything else (tunnels, PPP, bonds, dummies…), by the kernel's word for it.
    Other(String),
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Its MAC.
    pub mac: MacAddr,
    /// L3 MTU, bytes.
    pub mtu: u32,
    /// Administratively up, and with a carrier.
    pub is_up: bool,
    /// Its bridge, VRF or bond.
    pub master: Option<IfIndex>,
    /// Its root queueing discipline shapes or filters (not one of the kernel's defaults), or
    /// packets are filtered or policed at its ingress (`clsact`, `ingress`).
    pub is_shaped: bool,
    /// An IPsec, XDP or other reason to keep away: words for people, or none.
    pub obstacle: Option<String>,
    /// Of a bridge that filters VLANs, or a port of one.
    pub vlans: BridgeVlans,
}

/// Which VLANs pass a bridge's port, or the bridge's own interface.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct BridgeVlans {
    /// The VLAN of what comes in without a tag (PVID).
    pub untagged: Option<u16>,
    /// Those that pass, and whether they leave without their tag.
    pub members: BTreeMap<u16, bool>,
}

impl BridgeVlans {
    /// The tag that frames of `vlan` have outside, coming and going; 0: none. `None`: they do not
    /// pass, or come otherwise than they go.
    pub fn tag_of(&self, vlan: u16) -> Option<u16> {
        let leaves_untagged = *self.members.get(&vlan)?;
        let comes_untagged = self.untagged == Some(vlan);
        (leaves_untagged == comes_untagged).then_some(if leaves_untagged { 0 } else { vlan })
    }

    /// The VLAN of frames that have that tag outside; 0: none.
    pub fn vlan_of(&self, tag: u16) -> Option<u16> {
        let vlan = if tag == 0 { self.untagged? } else { tag };
        (self.tag_of(vlan) == Some(tag)).then_some(vlan)
    }
}

/// Where a bridge has what it knows of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bridged {
    /// Behind that port.
    pub port: IfIndex,
    /// In that VLAN, if the bridge filters them.
    pub vlan: Option<u16>,
}

/// All interfaces of the namespace.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Links(pub BTreeMap<IfIndex, Link>);

/// Where the kernel sends a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Out by an interface, to a next hop (`None`: the destination itself).
    Unicast {
        /// The interface.
        by: IfIndex,
        /// The gateway.
        gateway: Option<IpAddr>,
        /// The route's own MTU, bytes, if it has one.
        mtu: Option<u32>,
        /// The route goes through a tunnel of its own (lightweight encapsulation), or a
        /// policy of IPsec takes it.
        is_encapsulated: bool,
    },
    /// To the element itself.
    Local,
    /// Nowhere: unreachable, prohibited, multicast, broadcast, or no route.
    None,
}

/// A question to the routing tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RouteQuery {
    /// Source address of the packet.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Ports, where it has some.
    pub ports: Option<(u16, u16)>,
    /// Comes in by this interface. `None`: not known; then as a packet of the element's own
    /// in `vrf`.
    pub ingress: Option<IfIndex>,
    /// The VRF's master to ask in; `None`: the default one.
    pub vrf: Option<IfIndex>,
    /// Firewall mark.
    pub mark: u32,
}

/// What changed under the connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NetworkChange {
    /// Links: read them again. `gone` is an interface that went away or down.
    Links {
        /// That interface, if it is one.
        gone: Option<IfIndex>,
    },
    /// Addresses, of that interface.
    Addresses(IfIndex),
    /// Routes, rules or next-hop objects.
    Routes,
    /// A neighbour failed, or has another MAC than before. (Becoming stale, or being confirmed,
    /// is no change.)
    Neighbour {
        /// On this interface.
        on: IfIndex,
        /// Its address.
        address: IpAddr,
    },
    /// Policies of IPsec.
    Xfrm,
    /// A ruleset: of nftables, or the digest of iptables or ipset.
    Ruleset,
    /// Messages were lost: anything may have changed.
    Lost,
}

/// What a ruleset has that must see every packet of a connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Hazard {
    /// `queue`, `tproxy`, `limit`, `quota`, `synproxy`… as the ruleset calls it.
    pub what: String,
    /// Where: `inet filter forward`.
    pub chain: String,
}
