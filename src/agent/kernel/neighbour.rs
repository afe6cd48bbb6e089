//! Neighbours and bridges' forwarding entries: what they say, and keeping them in use.
//!
//! *Promises*: what is asked for here never changes a MAC or moves an entry to another port.
//! *Refuses*: bridge entries that are not at the port that is named.
//! *Caller's duty*: only neighbours whose packets go by.
//! *Standard*: rtnetlink(7), include/uapi/linux/neighbour.h.

use std::io;
use std::net::IpAddr;

use super::socket::{Socket, table};
use super::wire::{Request, address, attribute, family, native16, native32, octets, split};
use crate::agent::network::{Bridged, IfIndex};
use crate::packet::MacAddr;

pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const NLM_F_CREATE: u16 = 0x400;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_VLAN: u16 = 5;

const NTF_USE: u8 = 1 << 0;
const NTF_SELF: u8 = 1 << 1;
const NTF_MASTER: u8 = 1 << 2;
const NTF_PROXY: u8 = 1 << 3;

const NUD_REACHABLE: u16 = 0x02;
const NUD_STALE: u16 = 0x04;
const NUD_DELAY: u16 = 0x08;
const NUD_PROBE: u16 = 0x10;
const NUD_FAILED: u16 = 0x20;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
/// States in which the MAC is used.
const VALID: u16 = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT;

/// What a message says of a neighbour, or of a MAC behind a bridge's port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Neighbour {
    /// The interface, or the bridge's port.
    pub(super) on: IfIndex,
    /// Its address; `None` for an entry of a bridge.
    pub(super) address: Option<IpAddr>,
    /// Its MAC, as long as that is used.
    pub(super) mac: Option<MacAddr>,
    /// VLAN of a bridge's entry.
    pub(super) vlan: Option<u16>,
    /// It does not answer.
    pub(super) has_failed: bool,
    /// It never fails or ages.
    is_fixed: bool,
}

/// Reads a message of either kind.
pub(super) fn read(payload: &[u8]) -> Option<Neighbour> {
    // `struct ndmsg`
    let (header, bytes) = split::<12>(payload)?;
    let state = native16(&header[8..10])?;
    // Answers for others, and what a device filters for itself.
    if header[10] & (NTF_PROXY | NTF_SELF) != 0 {
        return None;
    }
    let address = match i32::from(header[0]) {
        libc::AF_INET | libc::AF_INET6 => Some(attribute(bytes, NDA_DST).and_then(address)?),
        libc::AF_BRIDGE => None,
        _ => return None,
    };
    // Groups have entries, but nobody to ask.
    if address.is_some_and(|address| address.is_multicast()) {
        return None;
    }
    Some(Neighbour {
        on: IfIndex(native32(&header[4..8])?),
        address,
        // A bridge's learned entries have no state of their own.
        mac: attribute(bytes, NDA_LLADDR)
            .and_then(|mac| mac.try_into().ok().map(MacAddr))
            .filter(|_| address.is_none() || state & VALID != 0),
        vlan: attribute(bytes, NDA_VLAN).and_then(native16),
        has_failed: state & NUD_FAILED != 0,
        is_fixed: state & (NUD_PERMANENT | NUD_NOARP) != 0,
    })
}

/// All neighbours and bridge entries.
pub(super) async fn read_all() -> io::Result<Vec<Neighbour>> {
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_BRIDGE] {
        let mut header = [0; 12];
        header[0] = family as u8;
        let request = Request::new(RTM_GETNEIGH, &header);
        let found = table(libc::NETLINK_ROUTE, &request, |message| {
            (message.kind == RTM_NEWNEIGH)
                .then(|| read(message.payload))
                .flatten()
        })
        .await;
        match found {
            Ok(found) => all.extend(found),
            // A kernel without bridges, or without IPv6.
            Err(error) if is_unknown(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Tells the kernel that a neighbour is used: what is stale is asked for, as by a packet.
pub(super) async fn use_neighbour(
    socket: &mut Socket,
    on: IfIndex,
    address: IpAddr,
) -> io::Result<()> {
    let request = Request::new(RTM_NEWNEIGH, &header(family(address), on, NTF_USE))
        .flagged(NLM_F_CREATE)
        .with(NDA_DST, &octets(address));
    socket.ask(request, |_| {}).await
}

/// The MAC that a neighbour's packets go to.
pub(super) async fn mac_of(
    socket: &mut Socket,
    on: IfIndex,
    address: IpAddr,
) -> io::Result<Option<MacAddr>> {
    let request = Request::new(RTM_GETNEIGH, &header(family(address), on, 0));
    let found = find(socket, request.with(NDA_DST, &octets(address))).await?;
    Ok(found.and_then(|found| found.mac))
}

/// Tells a bridge that a MAC was seen there. An entry that is elsewhere, or nowhere, stays so:
/// what the bridge itself sees is newer.
pub(super) async fn use_fdb(socket: &mut Socket, bridged: Bridged, mac: MacAddr) -> io::Result<()> {
    let (bridge, on) = (libc::AF_BRIDGE as u8, bridged.port);
    let entry = |request: Request| {
        let vlan = bridged.vlan.map(u16::to_ne_bytes);
        request.with(NDA_LLADDR, &mac.0).with_some(NDA_VLAN, vlan)
    };
    let asked = Request::new(RTM_GETNEIGH, &header(bridge, on, NTF_MASTER));
    let found = find(socket, entry(asked)).await?;
    if !found.is_some_and(|found| found.on == on && !found.is_fixed) {
        return Ok(());
    }
    let mut used = header(bridge, on, NTF_USE | NTF_MASTER);
    // Bridges take no entry without a state.
    used[8..10].copy_from_slice(&NUD_REACHABLE.to_ne_bytes());
    socket
        .ask(entry(Request::new(RTM_NEWNEIGH, &used)), |_| {})
        .await
}

/// The one entry that is asked for, if it is there.
async fn find(socket: &mut Socket, request: Request) -> io::Result<Option<Neighbour>> {
    let mut found = None;
    let asked = socket.ask(request, |message| found = read(message.payload));
    match asked.await {
        Ok(()) => Ok(found),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `struct ndmsg`
fn header(family: u8, on: IfIndex, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&on.0.to_ne_bytes());
    header[10] = flags;
    header
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EINVAL)
    )
}
