//! Where the kernel would send a packet.
//!
//! *Promises*: the kernel's own answer, policy rules, VRFs, ECMP's choice and the check of the
//! source address included; "no" is an answer, not an error.
//! *Refuses*: nothing.
//! *Caller's duty*: protocols other than TCP, UDP and ICMP are not told to the kernel (it
//! refuses to hear of them): a rule for the ports of SCTP is not followed.
//! *Standard*: rtnetlink(7), include/uapi/linux/rtnetlink.h.

use std::io;
use std::net::IpAddr;

use super::socket::Socket;
use super::wire::{
    Request, address, attribute, attributes, family, native16, native32, octets, split,
};
use crate::agent::network::{IfIndex, Route, RouteQuery};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_METRICS: u16 = 8;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;

const RTAX_MTU: u16 = 2;

const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_ANYCAST: u8 = 4;

/// Asks for the route of a packet.
pub(super) async fn ask(socket: &mut Socket, query: &RouteQuery) -> io::Result<Route> {
    // What multicast routing does with it is no next hop.
    if query.destination.is_multicast() {
        return Ok(Route::None);
    }
    let is_of_own = query.ingress.is_none();
    match ask_once(socket, query, true).await {
        // A packet of the element's own cannot have another's address: then without it.
        Ok(Route::None) if is_of_own => ask_once(socket, query, false).await,
        answer => answer,
    }
}

async fn ask_once(socket: &mut Socket, query: &RouteQuery, has_source: bool) -> io::Result<Route> {
    let mut route = Route::None;
    let result = socket
        .ask(request(query, has_source), |message| {
            if message.kind == RTM_NEWROUTE {
                route = read(message.payload).unwrap_or(Route::None);
            }
        })
        .await;
    match result {
        Ok(()) => Ok(route),
        Err(error) if is_no_route(&error) => Ok(Route::None),
        Err(error) => Err(error),
    }
}

/// Errors that say that such a packet goes nowhere: unreachable, prohibited, a black hole, a
/// source that does not belong to the interface, or the interface is gone.
fn is_no_route(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EACCES
                | libc::EINVAL
                | libc::EXDEV
                | libc::EAGAIN
                | libc::ENODEV
                | libc::ENETDOWN
                | libc::ESRCH
        )
    )
}

fn request(query: &RouteQuery, has_source: bool) -> Request {
    let bits = match query.destination {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    // `struct rtmsg`
    let mut header = [0; 12];
    header[0] = family(query.destination);
    header[1] = bits;
    header[2] = if has_source { bits } else { 0 };
    let number = |index: Option<IfIndex>| index.map(|index| index.0.to_ne_bytes());
    let mut request = Request::new(RTM_GETROUTE, &header).with(RTA_DST, &octets(query.destination));
    if has_source {
        request = request.with(RTA_SRC, &octets(query.source));
    }
    request = request
        .with_some(RTA_IIF, number(query.ingress))
        // What comes in is in the VRF of its interface already.
        .with_some(
            RTA_OIF,
            number(query.vrf.filter(|_| query.ingress.is_none())),
        )
        .with(RTA_MARK, &query.mark.to_ne_bytes());
    if !is_told(query) {
        return request;
    }
    request = request.with(RTA_IP_PROTO, &[query.protocol]);
    match query.ports {
        Some((source, destination)) => request
            .with(RTA_SPORT, &source.to_be_bytes())
            .with(RTA_DPORT, &destination.to_be_bytes()),
        None => request,
    }
}

/// Whether the kernel takes the protocol in a question.
fn is_told(query: &RouteQuery) -> bool {
    let icmp = match query.destination {
        IpAddr::V4(_) => libc::IPPROTO_ICMP,
        IpAddr::V6(_) => libc::IPPROTO_ICMPV6,
    };
    [libc::IPPROTO_TCP, libc::IPPROTO_UDP, icmp].contains(&i32::from(query.protocol))
}

/// Reads an answer.
fn read(payload: &[u8]) -> Option<Route> {
    let (header, bytes) = split::<12>(payload)?;
    match header[7] {
        RTN_UNICAST => {}
        RTN_LOCAL | RTN_ANYCAST => return Some(Route::Local),
        _ => return Some(Route::None),
    }
    let mut by = None;
    let mut gateway = None;
    let mut mtu = None;
    let mut is_encapsulated = false;
    for (kind, value) in attributes(bytes) {
        match kind {
            RTA_OIF => by = native32(value).map(IfIndex),
            RTA_GATEWAY => gateway = address(value),
            RTA_VIA => gateway = read_via(value),
            RTA_METRICS => mtu = attribute(value, RTAX_MTU).and_then(native32),
            RTA_ENCAP_TYPE => is_encapsulated |= native16(value) != Some(0),
            _ => {}
        }
    }
    Some(Route::Unicast {
        by: by?,
        gateway,
        mtu: mtu.filter(|mtu| *mtu != 0),
        is_encapsulated,
    })
}

/// `struct rtvia`: a gateway of the other family.
fn read_via(value: &[u8]) -> Option<IpAddr> {
    let (_, bytes) = split::<2>(value)?;
    address(bytes)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
