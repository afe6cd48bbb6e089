//! Whether a connection may be offloaded at all, by what conntrack and its owner say of it.
//!
//! *Promises*: the first reason that stands against it, or none. What is only seen on its way
//! (interfaces, tunnels, the element's own addresses) is judged by [`super::paths`].
//! *Refuses*: all that the guest must see every packet of.
//! *Caller's duty*: what was eligible is judged again whenever it is looked at.
//! *Standard*: Linux `nf_conntrack_common.h`; RFC 1112, RFC 4291 (addresses).

use std::net::{IpAddr, Ipv4Addr};

use super::reason::Reason;
use super::settings::{Settings, Switches};
use crate::agent::connection::{Connection, Ports, Status, TcpState, Tuple};
use crate::agent::network::Hazard;
use crate::packet::key::protocol;

/// Echo request and reply of either version.
const ECHO: [(u8, u8, u8); 2] = [(protocol::ICMP, 8, 0), (protocol::ICMPV6, 128, 129)];

/// Protocols that the fast path does not tell apart by their number alone: those with ports, IPv6's
/// extension headers, GRE (keys).
const UNTAKEN: [u8; 12] = [
    0,
    protocol::TCP,
    protocol::UDP,
    33,
    43,
    44,
    protocol::GRE,
    51,
    60,
    protocol::SCTP,
    135,
    136,
];

/// What the whole ruleset means for connections.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Rules {
    hazards: Vec<Hazard>,
}

impl Rules {
    /// A ruleset with these hazards.
    pub fn new(mut hazards: Vec<Hazard>, switches: &Switches) -> Self {
        hazards.retain(|hazard| !switches.hazards_ignored.contains(&hazard.what));
        Self { hazards }
    }

    /// What has to see every packet.
    pub fn hazards(&self) -> &[Hazard] {
        &self.hazards
    }
}

/// Judges `connection`.
///
/// # Errors
/// The first reason that stands against it.
pub fn judge(connection: &Connection, settings: &Settings, rules: &Rules) -> Result<(), Reason> {
    by_status(connection)?;
    by_protocol(connection)?;
    for tuple in [&connection.original, &connection.reply] {
        by_address(tuple.source)?;
        by_address(tuple.destination)?;
    }
    by_switches(connection, &settings.switches)?;
    let is_opted_in = settings.switches.is_opted_in(connection.mark);
    if !rules.hazards.is_empty() && !is_opted_in {
        return Err(Reason::Ruleset);
    }
    Ok(())
}

/// Stops at the first that is so.
fn none_of(reasons: &[(bool, Reason)]) -> Result<(), Reason> {
    match reasons.iter().find(|(is_so, _)| *is_so) {
        Some((_, reason)) => Err(*reason),
        None => Ok(()),
    }
}

fn by_status(connection: &Connection) -> Result<(), Reason> {
    let status = connection.status;
    none_of(&[
        (status.has(Status::DYING), Reason::Dying),
        (status.has(Status::TEMPLATE), Reason::Template),
        (!status.has(Status::CONFIRMED), Reason::Unconfirmed),
        (
            status.has(Status::HELPER) || connection.helper.is_some(),
            Reason::Helper,
        ),
        (
            status.has(Status::EXPECTED) || connection.has_master,
            Reason::Master,
        ),
        (
            status.has(Status::SEQ_ADJUST) || connection.shifts_sequence,
            Reason::Sequence,
        ),
        (status.has(Status::NAT_CLASH), Reason::NatClash),
        (
            status.has(Status::OFFLOAD) || status.has(Status::HW_OFFLOAD),
            Reason::KernelOffload,
        ),
        (status.has(Status::FIXED_TIMEOUT), Reason::FixedTimeout),
    ])
}

fn by_protocol(connection: &Connection) -> Result<(), Reason> {
    let (original, reply) = (&connection.original, &connection.reply);
    match (original.protocol, original.ports, reply.ports) {
        (protocol::TCP, Ports::Ports(..), Ports::Ports(..)) => none_of(&[
            // A message that does not say its state is not believed to be established.
            (
                connection.tcp != Some(TcpState::ESTABLISHED),
                Reason::TcpState,
            ),
            (!connection.status.has(Status::ASSURED), Reason::Unassured),
        ]),
        (protocol::UDP, Ports::Ports(..), Ports::Ports(..)) => Ok(()),
        // A checksum of all of the packet (CRC32c) stands against changing ports.
        (protocol::SCTP, Ports::Ports(from, to), Ports::Ports(back_from, back_to)) => {
            none_of(&[((from, to) != (back_to, back_from), Reason::Protocol)])
        }
        (
            number @ (protocol::ICMP | protocol::ICMPV6),
            Ports::Icmp { kind, code, .. },
            Ports::Icmp {
                kind: back,
                code: back_code,
                ..
            },
        ) => {
            let is_echo = ECHO.contains(&(number, kind, back)) && (code, back_code) == (0, 0);
            none_of(&[(!is_echo, Reason::Icmp)])
        }
        (protocol::ICMP | protocol::ICMPV6, ..) => Err(Reason::Icmp),
        (number, Ports::None, Ports::None) => {
            none_of(&[(UNTAKEN.contains(&number), Reason::Protocol)])
        }
        _ => Err(Reason::Protocol),
    }?;
    none_of(&[
        (original.protocol != reply.protocol, Reason::Protocol),
        (families(original, reply) > 1, Reason::Families),
    ])
}

/// How many IP versions a connection has.
fn families(original: &Tuple, reply: &Tuple) -> usize {
    let all = [
        original.source,
        original.destination,
        reply.source,
        reply.destination,
    ];
    let v4 = all.iter().filter(|address| address.is_ipv4()).count();
    if v4 == 0 || v4 == all.len() { 1 } else { 2 }
}

fn by_address(address: IpAddr) -> Result<(), Reason> {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        // Mapped addresses are no addresses of packets.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    none_of(&[
        (address.is_multicast() || is_broadcast, Reason::Group),
        (
            is_link_local || address.is_loopback() || address.is_unspecified(),
            Reason::LinkLocal,
        ),
    ])
}

fn by_switches(connection: &Connection, switches: &Switches) -> Result<(), Reason> {
    let (original, reply) = (&connection.original, &connection.reply);
    let is_opted_out = switches
        .opt_out
        .is_some_and(|bits| bits.is_on(connection.mark));
    let is_left_out = switches.is_opt_in_only && !switches.is_opted_in(connection.mark);
    let ends = [
        original.source,
        original.destination,
        reply.source,
        reply.destination,
    ];
    let is_off = |address: &IpAddr| {
        let mut prefixes = switches.prefixes_off.iter();
        prefixes.any(|prefix| prefix.contains(*address))
    };
    let is_on = |address: &IpAddr| {
        let mut prefixes = switches.prefixes_on.iter();
        prefixes.any(|prefix| prefix.contains(*address))
    };
    let is_elsewhere = !switches.prefixes_on.is_empty() && !ends.iter().any(is_on);
    // The port that is asked for, as the client and as the server know it.
    let is_port_off = match (original.ports, reply.ports) {
        (Ports::Ports(_, asked), Ports::Ports(answers, _)) => {
            switches.ports_off.contains(&asked) || switches.ports_off.contains(&answers)
        }
        _ => false,
    };
    none_of(&[
        (is_opted_out, Reason::OptedOut),
        (is_left_out, Reason::NotOptedIn),
        (ends.iter().any(is_off) || is_elsewhere, Reason::Prefix),
        (is_port_off, Reason::Port),
    ])
}

#[cfg(test)]
mod tests;
