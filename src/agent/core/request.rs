//! The session that a connection on a path is.
//!
//! *Promises*: what the session's original direction does to a packet of the connection's
//! original tuple gives the packet whose answer the reply tuple is, and the other way round. MACs
//! of next hops are left out: they are learned from the frame that proves the forwarding.
//! *Refuses*: paths whose interfaces are vNICs no longer, and MTUs out of range.
//! *Caller's duty*: the connection is eligible.
//! *Standard*: RFC 8512's words for translations; RFC 791, RFC 8200 (MTU).

use std::net::IpAddr;
use std::time::Duration;

use super::identity::Id;
use super::paths::{Leg, Path};
use super::ports::{Port, Ports};
use super::reason::Reason;
use crate::agent::connection::{Connection, Ports as Numbers};
use crate::api::session::{
    Directions, HandOver, Mtu, Original, Protocol, Reply, Seconds, Session, Translation, Vlan,
};

/// The shortest and longest idle timeouts of sessions, seconds.
pub const IDLE_SECONDS: (u64, u64) = (1, 604_800);

/// The session that `connection` is on `path`. `full` is how long it lives without packets.
///
/// # Errors
/// Why it can be none.
pub fn session(
    connection: &Connection,
    path: &Path,
    ports: &Ports,
    full: Duration,
    hand_over: HandOver,
) -> Result<Session, Reason> {
    let tuple = &connection.original;
    let is_v4 = tuple.source.is_ipv4();
    let forth = Ends::new(&path.original, ports, is_v4)?;
    let back = Ends::new(&path.reply, ports, is_v4)?;
    let (least, most) = IDLE_SECONDS;
    let idle = Seconds::try_from(full.as_secs().clamp(least, most));
    let numbers = Numbered::of(tuple.ports);
    Ok(Session {
        key: Id::of(connection).key().ok_or(Reason::Protocol)?,
        protocol: Protocol(tuple.protocol),
        idle_timeout: idle.or(Err(Reason::FixedTimeout))?,
        hard_timeout: None,
        hand_over,
        vouched: false,
        directions: Directions::Both,
        original: Original {
            ingress_vnic: forth.ingress.vnic.to_string(),
            ingress_vlan: vlan(forth.ingress)?,
            ingress_mac: forth.ingress.mac,
            source_address: tuple.source,
            destination_address: tuple.destination,
            source_port: numbers.source_port,
            destination_port: numbers.destination_port,
            identifier: numbers.identifier,
            translation: translation(connection),
            egress_vnic: forth.egress.vnic.to_string(),
            egress_vlan: vlan(forth.egress)?,
            destination_mac: None,
            source_mac: None,
            l3_mtu: forth.l3_mtu,
            decrement_ttl: true,
            dscp: None,
        },
        reply: Reply {
            ingress_mac: back.ingress.mac,
            l3_mtu: back.l3_mtu,
            ..elsewhere(&forth, &back)?
        },
    })
}

/// The answers' vNICs and VLANs where they are not the original's, exchanged.
fn elsewhere(forth: &Ends, back: &Ends) -> Result<Reply, Reason> {
    let vnic =
        |own: &Port, mirrored: &Port| (own.vnic != mirrored.vnic).then(|| own.vnic.to_string());
    let tag = |own: &Port, mirrored: &Port| {
        let is_other = own.vlan != mirrored.vlan;
        is_other.then(|| vlan(own)).transpose()
    };
    Ok(Reply {
        ingress_vnic: vnic(back.ingress, forth.egress),
        ingress_vlan: tag(back.ingress, forth.egress)?,
        egress_vnic: vnic(back.egress, forth.ingress),
        egress_vlan: tag(back.egress, forth.ingress)?,
        ..Reply::default()
    })
}

/// One direction's way on the wire.
struct Ends<'a> {
    ingress: &'a Port,
    egress: &'a Port,
    l3_mtu: Option<Mtu>,
}

impl<'a> Ends<'a> {
    fn new(leg: &Leg, ports: &'a Ports, is_v4: bool) -> Result<Self, Reason> {
        let egress = ports.get(leg.exit.by)?;
        let l3_mtu = leg.exit.l3_mtu(egress, is_v4)?;
        let l3_mtu = l3_mtu.map(|bytes| Mtu::try_from(u64::from(bytes)));
        Ok(Self {
            ingress: ports.get(leg.ingress)?,
            egress,
            l3_mtu: l3_mtu.transpose().or(Err(Reason::Mtu))?,
        })
    }
}

fn vlan(port: &Port) -> Result<Vlan, Reason> {
    Vlan::try_from(u64::from(port.vlan)).or(Err(Reason::ServiceTag))
}

/// The leaves that a tuple's numbers stand in.
#[derive(Default)]
struct Numbered {
    source_port: Option<u16>,
    destination_port: Option<u16>,
    identifier: Option<u16>,
}

impl Numbered {
    fn of(numbers: Numbers) -> Self {
        match numbers {
            Numbers::Ports(source, destination) => Self {
                source_port: Some(source),
                destination_port: Some(destination),
                identifier: None,
            },
            Numbers::Icmp { id, .. } => Self {
                identifier: Some(id),
                ..Self::default()
            },
            Numbers::None => Self::default(),
        }
    }
}

/// What the guest changes in the original direction: answers go to what became of the source, and
/// come from what became of the destination.
fn translation(connection: &Connection) -> Translation {
    let (original, reply) = (&connection.original, &connection.reply);
    let (before, answer) = (Numbered::of(original.ports), Numbered::of(reply.ports));
    let changed = |new: Option<u16>, old: Option<u16>| new.filter(|_| new != old);
    let moved = |new: IpAddr, old: IpAddr| (new != old).then_some(new);
    Translation {
        source_address: moved(reply.destination, original.source),
        destination_address: moved(reply.source, original.destination),
        source_port: changed(answer.destination_port, before.source_port),
        destination_port: changed(answer.source_port, before.destination_port),
        identifier: changed(answer.identifier, before.identifier),
    }
}

#[cfg(test)]
mod tests;
