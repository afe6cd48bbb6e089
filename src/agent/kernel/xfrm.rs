//! Policies of IPsec, as far as they take packets away from plain forwarding.
//!
//! *Promises*: a packet that a policy would transform or block is found; policies that let it
//! pass as it is count by their priority, as in the kernel.
//! *Refuses*: policies of xfrm interfaces: the interface itself is the egress then.
//! *Caller's duty*: none.
//! *Standard*: RFC 4301 section 4.4.1; include/uapi/linux/xfrm.h.

use std::io;
use std::net::IpAddr;

use super::socket::{Socket, table};
use super::wire::{Request, address, attribute, native16, native32, network16, split};
use crate::agent::network::RouteQuery;

const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETSPDINFO: u16 = 0x25;

const XFRMA_SPD_INFO: u16 = 1;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;

/// Bytes of `struct xfrm_userpolicy_id`.
const POLICY_ID: usize = 64;
/// Bytes of `struct xfrm_userpolicy_info`.
const POLICY: usize = 168;

const POLICY_OUT: u8 = 1;
const POLICY_FORWARD: u8 = 2;
const ACTION_ALLOW: u8 = 0;

/// Whether a policy transforms or blocks such a packet when it is forwarded.
pub(super) async fn takes(socket: &mut Socket, query: &RouteQuery) -> io::Result<bool> {
    if !has_policies(socket).await? {
        return Ok(false);
    }
    let request = Request::new(XFRM_MSG_GETPOLICY, &[0; POLICY_ID]);
    let policies = table(libc::NETLINK_XFRM, &request, |message| {
        (message.kind == XFRM_MSG_NEWPOLICY)
            .then(|| read(message.payload))
            .flatten()
    })
    .await?;
    Ok([POLICY_OUT, POLICY_FORWARD]
        .into_iter()
        .any(|direction| is_taken(&policies, direction, query)))
}

/// One question instead of a dump, as most routers have none.
async fn has_policies(socket: &mut Socket) -> io::Result<bool> {
    let mut has_some = false;
    let request = Request::new(XFRM_MSG_GETSPDINFO, &[0; 4]);
    socket
        .ask(request, |message| {
            has_some |= message
                .payload
                .get(4..)
                .and_then(|bytes| attribute(bytes, XFRMA_SPD_INFO))
                .is_some_and(|counts| counts.iter().any(|byte| *byte != 0));
        })
        .await?;
    Ok(has_some)
}

fn is_taken(policies: &[Policy], direction: u8, query: &RouteQuery) -> bool {
    let matching = || {
        policies
            .iter()
            .filter(|policy| policy.direction == direction && policy.matches(query))
    };
    let first = matching().map(|policy| policy.priority).min();
    // Which of several of one priority is older is not told.
    matching().any(|policy| Some(policy.priority) == first && policy.takes)
}

/// A policy.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Policy {
    direction: u8,
    priority: u32,
    /// It transforms, or blocks.
    takes: bool,
    destination: (IpAddr, u8),
    source: (IpAddr, u8),
    /// Value and mask.
    ports: [(u16, u16); 2],
    /// 0: any.
    protocol: u8,
    /// Value and mask.
    mark: (u32, u32),
}

fn read(payload: &[u8]) -> Option<Policy> {
    let (info, bytes) = split::<POLICY>(payload)?;
    if attribute(bytes, XFRMA_IF_ID).is_some_and(|id| native32(id) != Some(0)) {
        return None;
    }
    let length = match i32::from(native16(&info[40..42])?) {
        libc::AF_INET => 4,
        _ => 16,
    };
    let port = |at: usize| {
        Some((
            network16(&info[at..at + 2])?,
            network16(&info[at + 2..at + 4])?,
        ))
    };
    let mark = attribute(bytes, XFRMA_MARK)
        .and_then(|mark| Some((native32(mark.get(..4)?)?, native32(mark.get(4..8)?)?)));
    Some(Policy {
        direction: info[160],
        priority: native32(&info[152..156])?,
        takes: info[161] != ACTION_ALLOW || attribute(bytes, XFRMA_TMPL).is_some(),
        destination: (address(&info[..length])?, info[42]),
        source: (address(&info[16..16 + length])?, info[43]),
        ports: [port(36)?, port(32)?],
        protocol: info[44],
        mark: mark.unwrap_or_default(),
    })
}

impl Policy {
    fn matches(&self, query: &RouteQuery) -> bool {
        let (source, destination) = query.ports.unwrap_or_default();
        let (mark, mask) = self.mark;
        is_within(query.destination, self.destination)
            && is_within(query.source, self.source)
            && (self.protocol == 0 || self.protocol == query.protocol)
            && query.mark & mask == mark
            && self
                .ports
                .into_iter()
                .zip([source, destination])
                .all(|((value, mask), port)| port & mask == value & mask)
    }
}

/// Whether an address is in a network. A policy for all addresses names none of a family.
fn is_within(address: IpAddr, (network, bits): (IpAddr, u8)) -> bool {
    let bits = u32::from(bits);
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let differ = address.to_bits() ^ network.to_bits();
            bits == 0 || differ.checked_shr(32_u32.saturating_sub(bits)) == Some(0)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let differ = address.to_bits() ^ network.to_bits();
            bits == 0 || differ.checked_shr(128_u32.saturating_sub(bits)) == Some(0)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority 7 tmpl … mode tunnel`
    fn policy(takes: bool, priority: u32, source: &str, bits: u8) -> Policy {
        Policy {
            direction: POLICY_OUT,
            priority,
            takes,
            destination: ("10.2.0.0".parse().unwrap(), 16),
            source: (source.parse().unwrap(), bits),
            ports: [(0, 0), (443, 0xffff)],
            protocol: 6,
            mark: (0, 0),
        }
    }

    fn query(source: &str, port: u16) -> RouteQuery {
        RouteQuery {
            source: source.parse().unwrap(),
            destination: "10.2.3.4".parse().unwrap(),
            protocol: 6,
            ports: Some((1000, port)),
            ingress: None,
            vrf: None,
            mark: 5,
        }
    }

    #[test]
    fn the_policy_of_the_lowest_number_decides() {
        let tunnel = policy(true, 7, "10.1.0.0", 16);
        let bypass = policy(false, 3, "10.1.5.0", 24);
        let all = [tunnel, bypass];
        assert!(is_taken(&all, POLICY_OUT, &query("10.1.4.4", 443)));
        assert!(!is_taken(&all, POLICY_OUT, &query("10.1.5.4", 443)));
        assert!(!is_taken(&all, POLICY_OUT, &query("10.1.4.4", 80)));
        assert!(!is_taken(&all, POLICY_OUT, &query("10.9.4.4", 443)));
        assert!(!is_taken(&all, POLICY_FORWARD, &query("10.1.4.4", 443)));
    }

    #[test]
    fn a_prefix_of_no_bits_is_every_address_of_its_family() {
        let any4 = ("0.0.0.0".parse().unwrap(), 0);
        assert!(is_within("255.1.2.3".parse().unwrap(), any4));
        assert!(!is_within("2001:db8::1".parse().unwrap(), any4));
        let host = ("2001:db8::1".parse().unwrap(), 128);
        assert!(is_within("2001:db8::1".parse().unwrap(), host));
        assert!(!is_within("2001:db8::2".parse().unwrap(), host));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_policy_or_none(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(policy) = read(&bytes) {
                policy.matches(&query("10.1.4.4", 443));
            }
        }
    }
}
