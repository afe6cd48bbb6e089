//! Interfaces, and what keeps the fast path away from them.
//!
//! *Promises*: every interface of the namespace; what an interface is comes from the kernel's
//! word for it, never from its name.
//! *Refuses*: nothing; an interface that cannot be read is left out.
//! *Caller's duty*: what stands in other messages is [`Marks`]'.
//! *Standard*: rtnetlink(7), include/uapi/linux/if_link.h.

use std::fs;
use std::io;
use std::path::{Component, Path};

use super::marks::Marks;
use super::socket::table;
use super::wire::{Request, attribute, attributes, native16, native32, nested, network16, text};
use crate::agent::network::{BridgeVlans, IfIndex, Link, LinkKind, Links};
use crate::packet::MacAddr;

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
const IFLA_VRF_TABLE: u16 = 1;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_VLAN_PROTOCOL: u16 = 8;
const IFLA_XDP_ATTACHED: u16 = 2;

/// `RTEXT_FILTER_SKIP_STATS`: counters are most of an answer, and nobody reads them.
const SKIP_STATS: u32 = 1 << 3;

/// The tag of 802.1ad.
const SERVICE_TAG: u16 = 0x88a8;

/// Reads all interfaces, with what stands in other messages.
pub(super) async fn read_all() -> io::Result<Links> {
    let mut links = read_plain().await?;
    let marks = Marks::read(&links).await?;
    for (index, link) in &mut links.0 {
        marks.set(*index, link);
    }
    Ok(links)
}

/// Reads all interfaces, as their own messages tell of them.
pub(super) async fn read_plain() -> io::Result<Links> {
    let request =
        Request::new(RTM_GETLINK, &[0; 16]).with(IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    let links = table(libc::NETLINK_ROUTE, &request, |message| {
        (message.kind == RTM_NEWLINK)
            .then(|| read(message.payload))
            .flatten()
    });
    Ok(Links(links.await?.into_iter().collect()))
}

/// Reads an interface's message.
pub(super) fn read(payload: &[u8]) -> Option<(IfIndex, Link)> {
    let header = Header::read(payload)?;
    // Bridges tell of their ports in messages of their own, which repeat what is known.
    if header.family != libc::AF_UNSPEC as u8 {
        return None;
    }
    let mut raw = Raw::default();
    for (kind, value) in attributes(header.attributes) {
        raw.take(kind, value);
    }
    let name = raw.name?;
    Some((
        header.index,
        Link {
            kind: kind(&raw, header.index, header.hardware, name),
            name: name.to_owned(),
            mac: raw.mac,
            mtu: raw.mtu,
            is_up: header.is_up(),
            master: raw.master.filter(|master| master.0 != 0),
            is_shaped: false,
            obstacle: obstacle(&raw, &header),
            vlans: BridgeVlans::default(),
        },
    ))
}

/// The number of the interface that a message is about, and nothing else of it.
pub(super) fn read_index(payload: &[u8]) -> Option<IfIndex> {
    let header = Header::read(payload)?;
    (header.family == libc::AF_UNSPEC as u8).then_some(header.index)
}

/// `struct ifinfomsg`, and what follows it.
struct Header<'a> {
    family: u8,
    hardware: u16,
    index: IfIndex,
    flags: u32,
    attributes: &'a [u8],
}

impl<'a> Header<'a> {
    fn read(payload: &'a [u8]) -> Option<Self> {
        Some(Self {
            family: *payload.first()?,
            hardware: native16(payload.get(2..4)?)?,
            index: IfIndex(native32(payload.get(4..8)?)?),
            flags: native32(payload.get(8..12)?)?,
            attributes: payload.get(16..)?,
        })
    }

    fn is_up(&self) -> bool {
        let needed = (libc::IFF_UP | libc::IFF_LOWER_UP) as u32;
        self.flags & needed == needed && self.flags & libc::IFF_DORMANT as u32 == 0
    }
}

#[derive(Default)]
struct Raw<'a> {
    name: Option<&'a str>,
    mac: MacAddr,
    mtu: u32,
    lower: Option<IfIndex>,
    /// What it lies on is in another namespace.
    is_lower_elsewhere: bool,
    master: Option<IfIndex>,
    kind: Option<&'a str>,
    data: &'a [u8],
    has_xdp: bool,
}

impl<'a> Raw<'a> {
    fn take(&mut self, kind: u16, value: &'a [u8]) {
        let index = || native32(value).map(IfIndex);
        match kind {
            IFLA_IFNAME => self.name = text(value),
            IFLA_ADDRESS => self.mac = value.try_into().map(MacAddr).unwrap_or_default(),
            IFLA_MTU => self.mtu = native32(value).unwrap_or_default(),
            IFLA_LINK => self.lower = index(),
            IFLA_LINK_NETNSID => self.is_lower_elsewhere = true,
            IFLA_MASTER => self.master = index(),
            IFLA_LINKINFO => {
                self.kind = attribute(value, IFLA_INFO_KIND).and_then(text);
                self.data = attribute(value, IFLA_INFO_DATA).unwrap_or_default();
            }
            IFLA_XDP => {
                self.has_xdp = attribute(value, IFLA_XDP_ATTACHED)
                    .is_some_and(|how| how.iter().any(|byte| *byte != 0));
            }
            _ => {}
        }
    }
}

fn kind(raw: &Raw<'_>, index: IfIndex, hardware: u16, name: &str) -> LinkKind {
    match raw.kind {
        Some("vlan") => vlan(raw).unwrap_or_else(|| LinkKind::Other("vlan".to_owned())),
        Some("bridge") => bridge(raw.data),
        Some("vrf") => match attribute(raw.data, IFLA_VRF_TABLE).and_then(native32) {
            Some(table) => LinkKind::Vrf { table },
            None => LinkKind::Other("vrf".to_owned()),
        },
        Some(other) => LinkKind::Other(other.to_owned()),
        None if hardware == libc::ARPHRD_LOOPBACK => LinkKind::Other("loopback".to_owned()),
        None if hardware == libc::ARPHRD_ETHER => LinkKind::Device {
            bus_path: bus_path(Path::new("/sys/class/net"), index, name),
        },
        None => LinkKind::Other(format!("hardware type {hardware}")),
    }
}

fn bridge(data: &[u8]) -> LinkKind {
    let filters_vlans =
        attribute(data, IFLA_BR_VLAN_FILTERING).is_some_and(|is_so| is_so.contains(&1));
    let protocol = attribute(data, IFLA_BR_VLAN_PROTOCOL).and_then(network16);
    if filters_vlans && protocol == Some(SERVICE_TAG) {
        return LinkKind::Other("bridge of 802.1ad".to_owned());
    }
    LinkKind::Bridge { filters_vlans }
}

fn vlan(raw: &Raw<'_>) -> Option<LinkKind> {
    if raw.is_lower_elsewhere {
        return None;
    }
    Some(LinkKind::Vlan {
        on: raw.lower?,
        id: attribute(raw.data, IFLA_VLAN_ID).and_then(native16)?,
        is_service: nested(raw.data, &[IFLA_VLAN_PROTOCOL]).and_then(network16)
            == Some(SERVICE_TAG),
    })
}

/// Why nothing may go around the guest there, though the interface's kind allows it.
fn obstacle(raw: &Raw<'_>, header: &Header<'_>) -> Option<String> {
    if raw.has_xdp {
        return Some("an XDP program sees its packets".to_owned());
    }
    let is_ethernet = header.hardware == libc::ARPHRD_ETHER;
    if is_ethernet && header.flags & libc::IFF_NOARP as u32 != 0 && raw.kind != Some("vrf") {
        return Some("it does not resolve neighbours (NOARP)".to_owned());
    }
    None
}

/// The PCI function that an interface belongs to, as sysfs tells. A virtio device's parent is
/// the function.
fn bus_path(classes: &Path, index: IfIndex, name: &str) -> Option<String> {
    // A name with a slash cannot be, and would lead elsewhere.
    let mut parts = Path::new(name).components();
    let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else {
        return None;
    };
    let directory = classes.join(name);
    // sysfs may show another namespace than the one that netlink told of.
    let number = fs::read_to_string(directory.join("ifindex")).ok()?;
    if number.trim().parse() != Ok(index.0) {
        return None;
    }
    let device = fs::canonicalize(directory.join("device")).ok()?;
    device
        .components()
        .rev()
        .filter_map(|part| part.as_os_str().to_str())
        .find(|part| is_pci_function(part))
        .map(str::to_owned)
}

/// Whether a name is that of a PCI function: `0000:00:04.0`. Some domains are longer.
fn is_pci_function(name: &str) -> bool {
    let mut parts = name.split(':');
    let (Some(domain), Some(bus), Some(place), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Some((device, function)) = place.split_once('.') else {
        return false;
    };
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    (bus.len(), device.len(), function.len()) == (2, 2, 1)
        && domain.len() >= 4
        && [domain, bus, device, function].into_iter().all(is_hex)
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
