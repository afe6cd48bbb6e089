//! Between a session of the model and a request to the flow table.
//!
//! *Promises*: [`to_request`] answers a request whose directions mirror each other, or
//! the first leaf that stands in the way; [`from_request`] is its inverse on every
//! request it has made.
//! *Refuses*: vNICs the element does not have, leaves that contradict the protocol or
//! `directions`, mixed address families.
//! *Caller's duty*: pass the names of the session's own element, so that one element
//! cannot name another's vNIC.
//! *Standard*: RFC 792 and RFC 4443 (echo has an identifier, no ports).

use std::net::IpAddr;
use std::time::Duration;

use super::error::ErrorTag;
use super::offload::Fault;
use super::session::{
    Directions, Dscp, Mtu, Original, Protocol, Reply, Seconds, Session, SessionKey, Translation,
    Vlan,
};
use crate::flow::{DirectionRequest, SessionRequest};
use crate::packet::key::protocol;
use crate::packet::{Tuple, VlanId, VnicId};

/// The vNICs of one element.
pub trait VnicNames {
    /// The number of the vNIC `name`.
    fn id(&self, name: &str) -> Option<VnicId>;
    /// The name of a vNIC.
    fn name(&self, id: VnicId) -> Option<&str>;
}

/// ICMP type of an echo request, for either version.
const ECHO_REQUEST: u16 = 8;
const ECHO_REQUEST_V6: u16 = 128;

/// The request to the flow table that `session` means.
///
/// # Errors
/// The leaf that cannot be meant so, and what to do.
pub fn to_request(session: &Session, vnics: &dyn VnicNames) -> Result<SessionRequest, Fault> {
    let tuple = original_tuple(session)?;
    let translated = translated_tuple(session, tuple)?;
    check_directions(session)?;
    let ends = Ends::new(session, vnics)?;
    let original = &session.original;
    let reply = &session.reply;
    let forward = DirectionRequest {
        ingress: ends.original.0,
        ingress_vlan: vlan_id(original.ingress_vlan),
        ingress_mac: original.ingress_mac,
        tuple,
        translation: translated,
        egress: ends.original.1,
        egress_vlan: vlan_id(original.egress_vlan),
        dst_mac: original.destination_mac,
        src_mac: original.source_mac,
        l3_mtu: original.l3_mtu.map(Mtu::get),
        decrement_ttl: original.decrement_ttl,
        dscp: original.dscp.map(Dscp::get),
    };
    let backward = DirectionRequest {
        ingress: ends.reply.0,
        ingress_vlan: vlan_id(reply.ingress_vlan.unwrap_or(original.egress_vlan)),
        ingress_mac: reply.ingress_mac,
        tuple: translated.reversed(),
        translation: tuple.reversed(),
        egress: ends.reply.1,
        egress_vlan: vlan_id(reply.egress_vlan.unwrap_or(original.ingress_vlan)),
        dst_mac: reply.destination_mac,
        src_mac: reply.source_mac,
        l3_mtu: reply.l3_mtu.map(Mtu::get),
        decrement_ttl: reply.decrement_ttl,
        dscp: reply.dscp.map(Dscp::get),
    };
    Ok(SessionRequest {
        key: session.key.to_string(),
        protocol: session.protocol.0,
        idle_timeout: span(session.idle_timeout),
        hard_timeout: session.hard_timeout.map(span),
        mode: session.hand_over.into(),
        vouched: session.vouched,
        original: (session.directions != Directions::Reply).then_some(forward),
        reply: (session.directions != Directions::Original).then_some(backward),
    })
}

fn span(seconds: Seconds) -> Duration {
    Duration::from_secs(u64::from(seconds.get()))
}

fn vlan_id(vlan: Vlan) -> Option<VlanId> {
    VlanId::try_from(vlan.get()).ok()
}

/// Ingress and egress of both directions.
struct Ends {
    original: (VnicId, VnicId),
    reply: (VnicId, VnicId),
}

impl Ends {
    fn new(session: &Session, vnics: &dyn VnicNames) -> Result<Self, Fault> {
        let find = |leaf: &str, name: &str| {
            vnics.id(name).ok_or_else(|| Fault {
                leaf: leaf.to_owned(),
                tag: ErrorTag::InvalidValue,
                app_tag: "unknown-vnic",
                message: format!(
                    "the element has no vNIC `{name}`; `shunt show ports` lists those it has"
                ),
            })
        };
        let find_or = |leaf: &str, name: &Option<String>, mirror| match name {
            Some(name) => find(leaf, name),
            None => Ok(mirror),
        };
        let ingress = find("original/ingress-vnic", &session.original.ingress_vnic)?;
        let egress = find("original/egress-vnic", &session.original.egress_vnic)?;
        Ok(Self {
            original: (ingress, egress),
            reply: (
                find_or("reply/ingress-vnic", &session.reply.ingress_vnic, egress)?,
                find_or("reply/egress-vnic", &session.reply.egress_vnic, ingress)?,
            ),
        })
    }
}

/// What the protocol's packets carry besides addresses.
enum Carries {
    Ports,
    Identifier(u16),
    Nothing,
}

fn carries(number: u8) -> Carries {
    match number {
        protocol::TCP | protocol::UDP | protocol::SCTP => Carries::Ports,
        protocol::ICMP => Carries::Identifier(ECHO_REQUEST),
        protocol::ICMPV6 => Carries::Identifier(ECHO_REQUEST_V6),
        _ => Carries::Nothing,
    }
}

/// The ports and the identifier of a match or a translation.
struct Numbers {
    source_port: Option<u16>,
    destination_port: Option<u16>,
    identifier: Option<u16>,
}

impl Numbers {
    /// Those present although `protocol` does not have them are refused; the others
    /// are taken in the tuple's order. `parent` is `original` or its `translation`.
    fn pick(
        &self,
        parent: &str,
        session_protocol: Protocol,
    ) -> Result<(Option<u16>, Option<u16>), Fault> {
        let refuse = |leaf: &str, value: Option<u16>| match value {
            Some(_) => Err(Fault {
                leaf: format!("{parent}/{leaf}"),
                tag: ErrorTag::BadElement,
                app_tag: "protocol-mismatch",
                message: format!("protocol {session_protocol} has no {leaf}: leave it out"),
            }),
            None => Ok(()),
        };
        let kind = carries(session_protocol.0);
        if !matches!(kind, Carries::Ports) {
            refuse("source-port", self.source_port)?;
            refuse("destination-port", self.destination_port)?;
        }
        if !matches!(kind, Carries::Identifier(_)) {
            refuse("identifier", self.identifier)?;
        }
        Ok(match kind {
            Carries::Ports => (self.source_port, self.destination_port),
            Carries::Identifier(echo) => (self.identifier, Some(echo)),
            Carries::Nothing => (Some(0), Some(0)),
        })
    }
}

fn original_tuple(session: &Session) -> Result<Tuple, Fault> {
    let original = &session.original;
    let numbers = Numbers {
        source_port: original.source_port,
        destination_port: original.destination_port,
        identifier: original.identifier,
    };
    let (source, destination) = numbers.pick("original", session.protocol)?;
    let first = match carries(session.protocol.0) {
        Carries::Identifier(_) => "identifier",
        Carries::Ports | Carries::Nothing => "source-port",
    };
    let need = |leaf: &str, value: Option<u16>| {
        value.ok_or_else(|| Fault {
            leaf: format!("original/{leaf}"),
            tag: ErrorTag::MissingElement,
            app_tag: "protocol-mismatch",
            message: format!("protocol {} needs {leaf}: give it", session.protocol),
        })
    };
    let tuple = Tuple {
        src: original.source_address,
        dst: original.destination_address,
        protocol: session.protocol.0,
        src_port: need(first, source)?,
        dst_port: need("destination-port", destination)?,
    };
    same_family("original/destination-address", tuple.dst, tuple.src)?;
    match (session.protocol.0, tuple.src) {
        (protocol::ICMP, IpAddr::V6(_)) | (protocol::ICMPV6, IpAddr::V4(_)) => Err(Fault {
            leaf: "protocol".to_owned(),
            tag: ErrorTag::InvalidValue,
            app_tag: "protocol-mismatch",
            message: "icmp goes with IPv4 addresses, icmpv6 with IPv6 addresses".to_owned(),
        }),
        _ => Ok(tuple),
    }
}

fn translated_tuple(session: &Session, tuple: Tuple) -> Result<Tuple, Fault> {
    let translation = &session.original.translation;
    let numbers = Numbers {
        source_port: translation.source_port,
        destination_port: translation.destination_port,
        identifier: translation.identifier,
    };
    let (source, destination) = numbers.pick("original/translation", session.protocol)?;
    let pick = |leaf: &str, address: Option<IpAddr>, kept: IpAddr| match address {
        Some(address) => {
            let leaf = format!("original/translation/{leaf}");
            same_family(&leaf, address, kept).map(|()| address)
        }
        None => Ok(kept),
    };
    Ok(Tuple {
        src: pick("source-address", translation.source_address, tuple.src)?,
        dst: pick(
            "destination-address",
            translation.destination_address,
            tuple.dst,
        )?,
        protocol: tuple.protocol,
        src_port: source.unwrap_or(tuple.src_port),
        dst_port: destination.unwrap_or(tuple.dst_port),
    })
}

fn same_family(leaf: &str, address: IpAddr, other: IpAddr) -> Result<(), Fault> {
    if address.is_ipv4() == other.is_ipv4() {
        return Ok(());
    }
    Err(Fault {
        leaf: leaf.to_owned(),
        tag: ErrorTag::InvalidValue,
        app_tag: "address-family",
        message: format!(
            "{address} and {other} are of different families: \
             translation between IPv4 and IPv6 is left to the guest"
        ),
    })
}

/// Leaves of a direction that is not offloaded have no effect and are refused.
fn check_directions(session: &Session) -> Result<(), Fault> {
    let refuse = |leaf: &str, direction: &str| Fault {
        leaf: leaf.to_owned(),
        tag: ErrorTag::BadElement,
        app_tag: "direction-absent",
        message: format!(
            "the {direction} direction is not offloaded (`directions`): leave this out"
        ),
    };
    let original = &session.original;
    match session.directions {
        Directions::Both => Ok(()),
        Directions::Original if session.reply.is_default() => Ok(()),
        Directions::Original => Err(refuse("reply", "reply")),
        Directions::Reply => [
            ("original/ingress-mac", original.ingress_mac.is_some()),
            (
                "original/destination-mac",
                original.destination_mac.is_some(),
            ),
            ("original/source-mac", original.source_mac.is_some()),
            ("original/l3-mtu", original.l3_mtu.is_some()),
            ("original/decrement-ttl", !original.decrement_ttl),
            ("original/dscp", original.dscp.is_some()),
        ]
        .into_iter()
        .find(|(_, present)| *present)
        .map_or(Ok(()), |(leaf, _)| Err(refuse(leaf, "original"))),
    }
}

/// Why a request is not one of the model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotInModel {
    /// It has neither direction.
    #[error("the request has no direction")]
    NoDirection,
    /// Its directions do not follow from each other.
    #[error("the request's reply is not the reverse of its original direction")]
    NotMirrored,
    /// A vNIC has no name.
    #[error("the element has no vNIC number {0}")]
    UnnamedVnic(u16),
    /// A value the model has no place for.
    #[error("{0}")]
    OutOfRange(#[from] super::session::OutOfRange),
}

/// The session that `request` means: the inverse of [`to_request`]. What is the
/// mirror of the original direction is left out of the reply.
///
/// # Errors
/// The request was not made by [`to_request`], or not with these vNICs.
pub fn from_request(
    request: &SessionRequest,
    vnics: &dyn VnicNames,
) -> Result<Session, NotInModel> {
    let (forward, directions) = match (&request.original, &request.reply) {
        (Some(forward), Some(backward)) => {
            if backward.tuple != forward.translation.reversed()
                || backward.translation != forward.tuple.reversed()
            {
                return Err(NotInModel::NotMirrored);
            }
            (forward.clone(), Directions::Both)
        }
        (Some(forward), None) => (forward.clone(), Directions::Original),
        (None, Some(backward)) => (mirror(backward), Directions::Reply),
        (None, None) => return Err(NotInModel::NoDirection),
    };
    Ok(Session {
        key: SessionKey::try_from(request.key.clone())?,
        protocol: Protocol(request.protocol),
        idle_timeout: seconds(request.idle_timeout)?,
        hard_timeout: request.hard_timeout.map(seconds).transpose()?,
        hand_over: request.mode.into(),
        vouched: request.vouched,
        directions,
        original: original(&forward, vnics)?,
        reply: match &request.reply {
            Some(backward) => reply(backward, &forward, vnics)?,
            None => Reply::default(),
        },
    })
}

/// The original direction that a lone reply implies: its match and its ends.
fn mirror(backward: &DirectionRequest) -> DirectionRequest {
    DirectionRequest {
        ingress: backward.egress,
        ingress_vlan: backward.egress_vlan,
        ingress_mac: None,
        tuple: backward.translation.reversed(),
        translation: backward.tuple.reversed(),
        egress: backward.ingress,
        egress_vlan: backward.ingress_vlan,
        dst_mac: None,
        src_mac: None,
        l3_mtu: None,
        decrement_ttl: true,
        dscp: None,
    }
}

fn seconds(span: Duration) -> Result<Seconds, NotInModel> {
    Ok(Seconds::try_from(span.as_secs())?)
}

fn vlan(id: Option<VlanId>) -> Result<Vlan, NotInModel> {
    Ok(Vlan::try_from(u64::from(id.map_or(0, VlanId::get)))?)
}

fn name(vnics: &dyn VnicNames, id: VnicId) -> Result<String, NotInModel> {
    vnics
        .name(id)
        .map(str::to_owned)
        .ok_or(NotInModel::UnnamedVnic(id.0))
}

fn mtu(bytes: Option<u16>) -> Result<Option<Mtu>, NotInModel> {
    Ok(bytes
        .map(|bytes| Mtu::try_from(u64::from(bytes)))
        .transpose()?)
}

fn dscp(value: Option<u8>) -> Result<Option<Dscp>, NotInModel> {
    Ok(value
        .map(|value| Dscp::try_from(u64::from(value)))
        .transpose()?)
}

fn original(forward: &DirectionRequest, vnics: &dyn VnicNames) -> Result<Original, NotInModel> {
    let (tuple, to) = (forward.tuple, forward.translation);
    let kind = carries(tuple.protocol);
    let has_ports = matches!(kind, Carries::Ports);
    let has_identifier = matches!(kind, Carries::Identifier(_));
    let source = (to.src_port != tuple.src_port).then_some(to.src_port);
    Ok(Original {
        ingress_vnic: name(vnics, forward.ingress)?,
        ingress_vlan: vlan(forward.ingress_vlan)?,
        ingress_mac: forward.ingress_mac,
        source_address: tuple.src,
        destination_address: tuple.dst,
        source_port: has_ports.then_some(tuple.src_port),
        destination_port: has_ports.then_some(tuple.dst_port),
        identifier: has_identifier.then_some(tuple.src_port),
        translation: Translation {
            source_address: (to.src != tuple.src).then_some(to.src),
            destination_address: (to.dst != tuple.dst).then_some(to.dst),
            source_port: source.filter(|_| has_ports),
            destination_port: (has_ports && to.dst_port != tuple.dst_port).then_some(to.dst_port),
            identifier: source.filter(|_| has_identifier),
        },
        egress_vnic: name(vnics, forward.egress)?,
        egress_vlan: vlan(forward.egress_vlan)?,
        destination_mac: forward.dst_mac,
        source_mac: forward.src_mac,
        l3_mtu: mtu(forward.l3_mtu)?,
        decrement_ttl: forward.decrement_ttl,
        dscp: dscp(forward.dscp)?,
    })
}

fn reply(
    backward: &DirectionRequest,
    forward: &DirectionRequest,
    vnics: &dyn VnicNames,
) -> Result<Reply, NotInModel> {
    let vnic =
        |end: VnicId, mirrored: VnicId| (end != mirrored).then(|| name(vnics, end)).transpose();
    let tag = |end: Option<VlanId>, mirrored: Option<VlanId>| {
        (end != mirrored).then(|| vlan(end)).transpose()
    };
    Ok(Reply {
        ingress_vnic: vnic(backward.ingress, forward.egress)?,
        ingress_vlan: tag(backward.ingress_vlan, forward.egress_vlan)?,
        ingress_mac: backward.ingress_mac,
        egress_vnic: vnic(backward.egress, forward.ingress)?,
        egress_vlan: tag(backward.egress_vlan, forward.ingress_vlan)?,
        destination_mac: backward.dst_mac,
        source_mac: backward.src_mac,
        l3_mtu: mtu(backward.l3_mtu)?,
        decrement_ttl: backward.decrement_ttl,
        dscp: dscp(backward.dscp)?,
    })
}

#[cfg(feature = "host")]
mod ports;
#[cfg(test)]
mod tests;
