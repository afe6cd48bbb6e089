//! What keeps the fast path away from interfaces, or says what they are, and does not stand in
//! their own messages: queueing disciplines, VLANs of bridges, programs and rules of others.
//!
//! *Promises*: of the namespace as it is; what of it tells no event is found by
//! [`Marks::are_stale`].
//! *Refuses*: nothing.
//! *Caller's duty*: CAP_NET_ADMIN.
//! *Standard*: rtnetlink(7), include/uapi/linux/pkt_sched.h, if_bridge.h.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::links::{IFLA_EXT_MASK, RTM_GETLINK, RTM_NEWLINK};
use super::socket::table;
use super::wire::{Request, attribute, attributes, native16, native32, text};
use super::{ebtables, programs};
use crate::agent::network::{BridgeVlans, IfIndex, Link, LinkKind, Links};

pub(super) const RTM_NEWQDISC: u16 = 36;
pub(super) const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;

const TCA_KIND: u16 = 1;

/// Disciplines that a kernel or a distribution attaches on its own, and that neither shape nor
/// police.
const DEFAULT_QDISCS: [&str; 6] = ["noop", "noqueue", "mq", "pfifo_fast", "fq_codel", "fq"];

const IFLA_AF_SPEC: u16 = 26;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
/// `RTEXT_FILTER_BRVLAN_COMPRESSED`: ranges.
const VLAN_RANGES: u32 = 1 << 2;
// `BRIDGE_VLAN_INFO_…`
const PVID: u16 = 1 << 1;
const UNTAGGED: u16 = 1 << 2;
const RANGE_BEGIN: u16 = 1 << 3;

/// What is known beside interfaces' own messages.
#[derive(PartialEq, Eq, Default, Debug)]
pub(super) struct Marks {
    /// They have a discipline that is none of the defaults.
    shaped: BTreeSet<IfIndex>,
    vlans: BTreeMap<IfIndex, BridgeVlans>,
    unseen: Unseen,
}

/// What tells no event.
#[derive(PartialEq, Eq, Default, Debug)]
struct Unseen {
    /// They have programs of eBPF on `tcx` hooks.
    programs: BTreeSet<IfIndex>,
    /// Frames of bridges meet rules of ebtables, the older way.
    has_ebtables: bool,
}

impl Marks {
    /// Asks for all.
    pub(super) async fn read(links: &Links) -> io::Result<Self> {
        Ok(Self {
            shaped: read_shaped().await?,
            vlans: read_vlans(links).await?,
            unseen: Unseen::look(links),
        })
    }

    /// Whether what tells no event is another now.
    pub(super) fn are_stale(&self, links: &Links) -> bool {
        self.unseen != Unseen::look(links)
    }

    /// Tells an interface, as its own message told of it, what is known of it.
    pub(super) fn set(&self, index: IfIndex, link: &mut Link) {
        let Unseen {
            programs,
            has_ebtables,
        } = &self.unseen;
        link.is_shaped = self.shaped.contains(&index);
        link.vlans = self.vlans.get(&index).cloned().unwrap_or_default();
        let obstacle = if programs.contains(&index) {
            "a program on its tcx hooks sees its packets"
        } else if *has_ebtables && matches!(link.kind, LinkKind::Bridge { .. }) {
            "rules of ebtables-legacy see its frames"
        } else {
            return;
        };
        link.obstacle.get_or_insert_with(|| obstacle.to_owned());
    }
}

impl Unseen {
    fn look(links: &Links) -> Self {
        let mut kinds = links.0.values().map(|link| &link.kind);
        Self {
            programs: programs::on_any_of(links.0.keys().copied()),
            has_ebtables: kinds.any(|kind| matches!(kind, LinkKind::Bridge { .. }))
                && ebtables::has_rules(),
        }
    }
}

/// Which interfaces have a discipline that is none of the defaults.
async fn read_shaped() -> io::Result<BTreeSet<IfIndex>> {
    let request = Request::new(RTM_GETQDISC, &[0; 20]);
    let found = table(libc::NETLINK_ROUTE, &request, |message| {
        read_qdisc(message.payload)
    })
    .await;
    let found = match found {
        // A kernel without disciplines.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        found => found?,
    };
    Ok(found
        .into_iter()
        .filter_map(|(on, is_default)| (!is_default).then_some(on))
        .collect())
}

/// An interface that has a queueing discipline, and whether that is one of the defaults.
fn read_qdisc(payload: &[u8]) -> Option<(IfIndex, bool)> {
    // `struct tcmsg`
    let on = IfIndex(native32(payload.get(4..8)?)?);
    let kind = attribute(payload.get(20..)?, TCA_KIND).and_then(text)?;
    Some((on, DEFAULT_QDISCS.contains(&kind)))
}

/// The VLANs of bridges that filter them, and of their ports.
async fn read_vlans(links: &Links) -> io::Result<BTreeMap<IfIndex, BridgeVlans>> {
    let filters = LinkKind::Bridge {
        filters_vlans: true,
    };
    if !links.0.values().any(|link| link.kind == filters) {
        return Ok(BTreeMap::new());
    }
    // `struct ifinfomsg`
    let mut header = [0; 16];
    header[0] = libc::AF_BRIDGE as u8;
    let request =
        Request::new(RTM_GETLINK, &header).with(IFLA_EXT_MASK, &VLAN_RANGES.to_ne_bytes());
    let found = table(libc::NETLINK_ROUTE, &request, |message| {
        (message.kind == RTM_NEWLINK)
            .then(|| read_bridge_vlans(message.payload))
            .flatten()
    });
    Ok(found.await?.into_iter().collect())
}

/// A bridge, or a port of one, and its VLANs, if it has some.
fn read_bridge_vlans(payload: &[u8]) -> Option<(IfIndex, BridgeVlans)> {
    let index = IfIndex(native32(payload.get(4..8)?)?);
    let inside = attribute(payload.get(16..)?, IFLA_AF_SPEC)?;
    let mut vlans = BridgeVlans::default();
    let mut first = None;
    for (kind, value) in attributes(inside) {
        // `struct bridge_vlan_info`
        let (IFLA_BRIDGE_VLAN_INFO, Some((flags, vlan))) = (kind, value.split_at_checked(2)) else {
            continue;
        };
        let (flags, vlan) = (native16(flags)?, native16(vlan)?);
        if flags & RANGE_BEGIN != 0 {
            first = Some(vlan);
            continue;
        }
        if flags & PVID != 0 {
            vlans.untagged = Some(vlan);
        }
        let range = first.take().unwrap_or(vlan)..=vlan;
        let members = range.map(|vlan| (vlan, flags & UNTAGGED != 0));
        vlans.members.extend(members);
    }
    (!vlans.members.is_empty()).then_some((index, vlans))
}

#[cfg(test)]
#[path = "marks_tests.rs"]
mod tests;
