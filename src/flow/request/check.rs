//! The rules a request must keep, each with its leaf and its mend.

use std::net::IpAddr;
use std::time::Duration;

use super::{
    DirectionRequest, ElementShape, KEY_MAX, RequestError, SessionRequest, TIMEOUT_MAX,
    TIMEOUT_MIN, fault,
};
use crate::flow::{Direction, FlowSpec};
use crate::packet::key::protocol;
use crate::packet::{MacAddr, Tuple};

/// The names of a direction's leaves.
pub(super) struct Leaves {
    pub ingress: &'static str,
    pub ingress_mac: &'static str,
    pub matched: &'static str,
    pub translation: &'static str,
    pub egress: &'static str,
    pub dst_mac: &'static str,
    pub src_mac: &'static str,
    pub l3_mtu: &'static str,
    pub dscp: &'static str,
}

impl Leaves {
    pub(super) fn of(direction: Direction) -> &'static Self {
        match direction {
            Direction::Original => &Self {
                ingress: "original/ingress",
                ingress_mac: "original/ingress-mac",
                matched: "original/match",
                translation: "original/translation",
                egress: "original/egress",
                dst_mac: "original/dst-mac",
                src_mac: "original/src-mac",
                l3_mtu: "original/l3-mtu",
                dscp: "original/dscp",
            },
            Direction::Reply => &Self {
                ingress: "reply/ingress",
                ingress_mac: "reply/ingress-mac",
                matched: "reply/match",
                translation: "reply/translation",
                egress: "reply/egress",
                dst_mac: "reply/dst-mac",
                src_mac: "reply/src-mac",
                l3_mtu: "reply/l3-mtu",
                dscp: "reply/dscp",
            },
        }
    }
}

/// What belongs to neither direction.
pub(super) fn session(request: &SessionRequest) -> Result<(), RequestError> {
    let printable = request.key.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if request.key.is_empty() || request.key.len() > KEY_MAX || !printable {
        let text = format!("give 1 to {KEY_MAX} printable ASCII characters");
        return Err(fault("key", text));
    }
    timeout("idle-timeout", request.idle_timeout)?;
    if let Some(span) = request.hard_timeout {
        timeout("hard-timeout", span)?;
    }
    if request.original.is_none() && request.reply.is_none() {
        let text = "a session has at least one direction: give `original`, `reply` or both";
        return Err(fault("original", text.to_owned()));
    }
    Ok(())
}

fn timeout(leaf: &'static str, span: Duration) -> Result<(), RequestError> {
    if (TIMEOUT_MIN..=TIMEOUT_MAX).contains(&span) {
        return Ok(());
    }
    let (from, to) = (TIMEOUT_MIN.as_secs(), TIMEOUT_MAX.as_secs());
    let text = format!("{} s is outside {from} to {to} s", span.as_secs_f64());
    Err(fault(leaf, text))
}

/// One direction by itself.
pub(super) fn direction(
    request: &SessionRequest,
    asked: &DirectionRequest,
    shape: &ElementShape,
    leaves: &Leaves,
) -> Result<(), RequestError> {
    for (leaf, id) in [
        (leaves.ingress, asked.ingress),
        (leaves.egress, asked.egress),
    ] {
        if shape.vnic(id).is_none() {
            let text = format!("the element has no vNIC {}: it has {}", id.0, shape.count());
            return Err(fault(leaf, text));
        }
    }
    tuple(leaves.matched, request.protocol, &asked.tuple)?;
    tuple(leaves.translation, request.protocol, &asked.translation)?;
    if asked.tuple.src.is_ipv4() != asked.translation.src.is_ipv4() {
        let text = "a translation stays within its IP version: use addresses of the match's";
        return Err(fault(leaves.translation, text.to_owned()));
    }
    let echo = [protocol::ICMP, protocol::ICMPV6].contains(&request.protocol);
    if echo && asked.tuple.dst_port != asked.translation.dst_port {
        let text = "the ICMP type of an echo is not translated: repeat the match's";
        return Err(fault(leaves.translation, text.to_owned()));
    }
    for (leaf, mac) in [
        (leaves.ingress_mac, asked.ingress_mac),
        (leaves.dst_mac, asked.dst_mac),
        (leaves.src_mac, asked.src_mac),
    ] {
        if mac.is_some_and(|mac| mac.is_group() || mac == MacAddr::default()) {
            let text = "give the address of one station, neither group nor zero".to_owned();
            return Err(fault(leaf, text));
        }
    }
    link(request, asked, shape, leaves)
}

/// MTU, DSCP, and what vouching needs.
fn link(
    request: &SessionRequest,
    asked: &DirectionRequest,
    shape: &ElementShape,
    leaves: &Leaves,
) -> Result<(), RequestError> {
    // RFC 791 and RFC 8200 name what every link must carry.
    let least = if asked.translation.dst.is_ipv4() {
        68
    } else {
        1280
    };
    let most = shape.vnic(asked.egress).map_or(0, |vnic| vnic.mtu);
    if let Some(mtu) = asked.l3_mtu
        && !(least..=most).contains(&mtu)
    {
        let text = format!("{mtu} is outside {least} to {most}, the egress vNIC's MTU");
        return Err(fault(leaves.l3_mtu, text));
    }
    if let Some(dscp) = asked.dscp
        && dscp > 63
    {
        let text = format!("{dscp} is no DSCP: give 0 to 63, or leave it out to keep it");
        return Err(fault(leaves.dscp, text));
    }
    for (leaf, mac) in [
        (leaves.dst_mac, asked.dst_mac),
        (leaves.src_mac, asked.src_mac),
    ] {
        if request.vouched && mac.is_none() {
            let text = "a vouched session proves nothing, so nothing is learned: give both MACs";
            return Err(fault(leaf, text.to_owned()));
        }
    }
    Ok(())
}

fn tuple(leaf: &'static str, protocol: u8, tuple: &Tuple) -> Result<(), RequestError> {
    if tuple.protocol != protocol {
        let text = format!(
            "protocol {} is not the session's {protocol}",
            tuple.protocol
        );
        return Err(fault(leaf, text));
    }
    if tuple.src.is_ipv4() != tuple.dst.is_ipv4() {
        let text = format!(
            "{} and {} are of different IP versions",
            tuple.src, tuple.dst
        );
        return Err(fault(leaf, text));
    }
    for address in [tuple.src, tuple.dst] {
        if !is_routed_unicast(address) {
            let text = format!(
                "packets of {address} always go to the guest: give unicast addresses, neither \
                 loopback nor link-local"
            );
            return Err(fault(leaf, text));
        }
    }
    let kinds: &[u16] = match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => return Ok(()),
        protocol::ICMP if tuple.src.is_ipv4() => &[8, 0],
        protocol::ICMPV6 if tuple.src.is_ipv6() => &[128, 129],
        protocol::ICMP | protocol::ICMPV6 => &[],
        _ if tuple.src_port == 0 && tuple.dst_port == 0 => return Ok(()),
        _ => {
            let text = format!("protocol {protocol} has no ports: leave them 0");
            return Err(fault(leaf, text));
        }
    };
    if kinds.contains(&tuple.dst_port) {
        return Ok(());
    }
    let text = "of ICMP only echo is offloaded: type 8 or 0 over IPv4, 128 or 129 over IPv6";
    Err(fault(leaf, text.to_owned()))
}

fn is_routed_unicast(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !special
        && match address {
            IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_broadcast() && v4.octets()[0] != 0,
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        }
}

/// What the directions must agree on.
pub(super) fn pair(
    request: &SessionRequest,
    flows: &[Option<FlowSpec>; 2],
) -> Result<(), RequestError> {
    let [Some(original), Some(reply)] = request.directions() else {
        return Ok(());
    };
    if reply.tuple != original.translation.reversed() {
        let text = format!(
            "the answers to {:?} are not matched by {:?}: give the original's translation reversed",
            original.translation, reply.tuple
        );
        return Err(fault("reply/match", text));
    }
    if reply.translation != original.tuple.reversed() {
        let text = format!(
            "{:?} does not lead back to {:?}: give the original's match reversed",
            reply.translation, original.tuple
        );
        return Err(fault("reply/translation", text));
    }
    let [Some(original), Some(reply)] = flows else {
        return Ok(());
    };
    if original.key == reply.key {
        let text = "both directions match the same packets: give their ingress or addresses";
        return Err(fault("reply/match", text.to_owned()));
    }
    if original.egress_key == reply.egress_key {
        let text = "both directions leave as the same packets: give their egress or addresses";
        return Err(fault("reply/egress", text.to_owned()));
    }
    Ok(())
}
