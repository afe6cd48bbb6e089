//! What must hold between values: things named or used once.
//!
//! *Promises*: the first problem in the order of the file, with the key it is at.
//! *Refuses*: nothing itself. Paths are compared as written, symbolic links unresolved.
//! *Caller's duty*: values that `values.rs` has checked and normalised.
//! *Standard*: none.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::error::{Problem, Step};
use super::{
    Config, ElementConfig, SHIELDS_MAX, SharedUplinkConfig, ShieldConfig, UplinkConfig, VNICS_MAX,
    VnicConfig,
};
use crate::packet::{MacAddr, VlanId};
use crate::port::{tap, xdp};

/// Where a problem is, and what.
type Found = (Vec<Step>, Problem);

/// The first problem between the values, in the order of the file.
pub(super) fn find_problem(config: &Config) -> Option<Found> {
    if config.elements.is_empty() {
        return Some((Vec::new(), Problem::NoElements));
    }
    let mut used = Used::default();
    used.sockets.insert(
        config.backend.control.clone(),
        "the control socket".to_owned(),
    );
    let own = [
        (
            "controller",
            &config.up.controller,
            "the controller's socket",
        ),
        ("presence", &config.up.presence, "the presence socket"),
    ];
    for (key, path, owner) in own {
        if let Some(problem) = used.socket(path, owner) {
            return found(&[Step::Key("up")], key, problem);
        }
    }
    let mut shared = config.shared_uplinks.iter().enumerate();
    let problem = shared.find_map(|(index, shared)| {
        let at = vec![Step::Key("shared-uplink"), Step::Index(index)];
        used.shared_uplink(shared, &at)
    });
    let mut elements = config.elements.iter().enumerate();
    problem.or_else(|| {
        elements.find_map(|(index, element)| {
            let at = vec![Step::Key("element"), Step::Index(index)];
            used.element(element, &at)
        })
    })
}

/// What has been used so far, and by whom.
#[derive(Default)]
struct Used<'a> {
    elements: HashSet<&'a str>,
    sockets: HashMap<PathBuf, String>,
    interfaces: HashMap<(&'a str, Option<&'a str>), String>,
    shared: HashMap<&'a str, u16>,
    shared_addresses: HashMap<(&'a str, Option<VlanId>, MacAddr), String>,
}

impl<'a> Used<'a> {
    fn element(&mut self, element: &'a ElementConfig, at: &[Step]) -> Option<Found> {
        let name = &element.name;
        if !self.elements.insert(name) {
            return found(at, "name", Problem::DuplicateElement(name.clone()));
        }
        let count = element.vnics.len();
        if count == 0 {
            return Some((at.to_vec(), Problem::NoVnics(name.clone())));
        }
        if count > VNICS_MAX {
            let element = name.clone();
            return Some((at.to_vec(), Problem::TooManyVnics { element, count }));
        }
        if let Some(serial) = &element.serial {
            let owner = format!("the serial port of element `{name}`");
            if let Some(problem) = self.socket(&serial.socket, &owner) {
                return found(&below(at, "serial"), "socket", problem);
            }
        }
        let vnics = element.vnics.iter().enumerate().find_map(|(index, vnic)| {
            let mut at = at.to_vec();
            at.extend([Step::Key("vnic"), Step::Index(index)]);
            let earlier = element.vnics.get(..index).unwrap_or_default();
            within_element(name, vnic, earlier, &at).or_else(|| self.vnic(name, vnic, &at))
        });
        vnics.or_else(|| shields(element, at))
    }

    fn vnic(&mut self, element: &str, vnic: &'a VnicConfig, at: &[Step]) -> Option<Found> {
        let owner = format!("vNIC `{}` of element `{element}`", vnic.name);
        if let Some(problem) = self.socket(&vnic.socket, &owner) {
            return found(at, "socket", problem);
        }
        let uplink_at = below(at, "uplink");
        if let UplinkConfig::Shared { device, .. } = &vnic.uplink {
            return self.member(device, vnic, owner, (at, &uplink_at));
        }
        self.device(&vnic.uplink, vnic.mtu, owner, (at, &uplink_at))
    }

    fn shared_uplink(&mut self, shared: &'a SharedUplinkConfig, at: &[Step]) -> Option<Found> {
        let name = &shared.name;
        if self.shared.insert(name, shared.mtu).is_some() {
            return found(at, "name", Problem::DuplicateShared(name.clone()));
        }
        if matches!(shared.device, UplinkConfig::Shared { .. }) {
            return found(at, "device", Problem::SharedOnShared);
        }
        let owner = format!("shared uplink `{name}`");
        self.device(
            &shared.device,
            shared.mtu,
            owner,
            (at, &below(at, "device")),
        )
    }

    /// A vNIC on a shared uplink.
    fn member(
        &mut self,
        device: &'a str,
        vnic: &'a VnicConfig,
        owner: String,
        (at, uplink_at): (&[Step], &[Step]),
    ) -> Option<Found> {
        let UplinkConfig::Shared {
            vlan, extra_macs, ..
        } = &vnic.uplink
        else {
            return None;
        };
        let Some(max) = self.shared.get(device).copied() else {
            return found(
                uplink_at,
                "device",
                Problem::UnknownShared(device.to_owned()),
            );
        };
        if vnic.mtu > max {
            let (mtu, device) = (vnic.mtu, device.to_owned());
            return found(at, "mtu", Problem::SharedMtu { mtu, device, max });
        }
        for mac in std::iter::once(&vnic.mac).chain(extra_macs) {
            let taken = self
                .shared_addresses
                .insert((device, *vlan, *mac), owner.clone());
            if let Some(other) = taken.filter(|other| *other != owner) {
                let (mac, device) = (*mac, device.to_owned());
                return found(
                    uplink_at,
                    "device",
                    Problem::SharedAddress { device, mac, other },
                );
            }
        }
        None
    }

    /// A device that nobody else has.
    fn device(
        &mut self,
        uplink: &'a UplinkConfig,
        mtu: u16,
        owner: String,
        (at, uplink_at): (&[Step], &[Step]),
    ) -> Option<Found> {
        match uplink {
            UplinkConfig::Tap { name, netns, .. } => {
                if mtu > tap::MTU_MAX {
                    return found(at, "mtu", Problem::TapMtu { mtu });
                }
                let problem = self.interface("tap", name, netns.as_deref(), owner)?;
                found(uplink_at, "name", problem)
            }
            UplinkConfig::Xdp {
                interface, netns, ..
            } => {
                if mtu > xdp::MTU_MAX {
                    return found(at, "mtu", Problem::XdpMtu { mtu });
                }
                let problem = self.interface("interface", interface, netns.as_deref(), owner)?;
                found(uplink_at, "interface", problem)
            }
            UplinkConfig::VhostUser { socket, .. } => {
                let owner = format!("the uplink of {owner}");
                let problem = self.socket(socket, &owner)?;
                found(uplink_at, "socket", problem)
            }
            UplinkConfig::Shared { .. } => None,
        }
    }

    fn socket(&mut self, path: &Path, owner: &str) -> Option<Problem> {
        let other = self.sockets.insert(path.to_owned(), owner.to_owned())?;
        Some(Problem::DuplicateSocket {
            path: path.to_owned(),
            other,
        })
    }

    fn interface(
        &mut self,
        what: &'static str,
        name: &'a str,
        netns: Option<&'a str>,
        owner: String,
    ) -> Option<Problem> {
        let other = self.interfaces.insert((name, netns), owner)?;
        let name = match netns {
            Some(netns) => format!("{name}` in netns `{netns}"),
            None => name.to_owned(),
        };
        Some(Problem::DuplicateInterface { what, name, other })
    }
}

/// What must hold between an element's shields and vNICs.
fn shields(element: &ElementConfig, at: &[Step]) -> Option<Found> {
    let count = element.shields.len();
    if count > SHIELDS_MAX {
        let element = element.name.clone();
        return Some((at.to_vec(), Problem::TooManyShields { element, count }));
    }
    let mut names = HashSet::new();
    let mut shields = element.shields.iter().enumerate();
    shields.find_map(|(index, ShieldConfig(shield))| {
        let mut at = at.to_vec();
        at.extend([Step::Key("shield"), Step::Index(index)]);
        let name = element.name.clone();
        if !names.insert(&shield.name) {
            let (element, shield) = (name, shield.name.clone());
            return found(&at, "name", Problem::DuplicateShield { element, shield });
        }
        let vnic = shield.vnic.clone()?;
        let is_there = element.vnics.iter().any(|other| other.name == vnic);
        let element = name;
        (!is_there).then(|| {
            (
                below(&at, "ingress-vnic"),
                Problem::ShieldVnic { element, vnic },
            )
        })
    })
}

/// What a vNIC may not share with those before it in its element.
fn within_element(
    element: &str,
    vnic: &VnicConfig,
    earlier: &[VnicConfig],
    at: &[Step],
) -> Option<Found> {
    if earlier.iter().any(|other| other.name == vnic.name) {
        let problem = Problem::DuplicateVnic {
            element: element.to_owned(),
            vnic: vnic.name.clone(),
        };
        return found(at, "name", problem);
    }
    let path = vnic.bus_path.as_ref();
    let mut others = earlier.iter();
    if let (Some(path), Some(other)) = (path, others.find(|other| other.bus_path.as_ref() == path))
    {
        let problem = Problem::DuplicateBusPath {
            path: path.clone(),
            other: other.name.clone(),
        };
        return found(at, "bus-path", problem);
    }
    let other = earlier.iter().find(|other| other.mac == vnic.mac)?;
    let problem = Problem::DuplicateMac {
        mac: vnic.mac,
        other: other.name.clone(),
    };
    found(at, "mac", problem)
}

fn found(at: &[Step], key: &'static str, problem: Problem) -> Option<Found> {
    Some((below(at, key), problem))
}

fn below(at: &[Step], key: &'static str) -> Vec<Step> {
    let mut at = at.to_vec();
    at.push(Step::Key(key));
    at
}
