//! Conntrack's messages: what they say of a connection, and what is asked with them.
//!
//! *Promises*: a message that does not name a connection's both tuples and its number is none;
//! of the rest, what is absent is `None`, and what is not known is left out.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: include/uapi/linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_tcp.h.

use std::net::IpAddr;
use std::time::Duration;

use super::wire::{
    Request, address, attribute, attributes, family, nested, network16, network32, network64,
    octets, split, text,
};
use crate::agent::connection::{Connection, Counters, Ports, Status, TcpState, Tuple};

/// The subsystem (`NFNL_SUBSYS_CTNETLINK`), where a message's type has it.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_NEW`: a change, or a wish for one.
pub(super) const NEW: u16 = SUBSYSTEM;
/// `IPCTNL_MSG_CT_GET`
const GET: u16 = SUBSYSTEM | 1;
/// `IPCTNL_MSG_CT_DELETE`: it is gone.
pub(super) const DELETE: u16 = SUBSYSTEM | 2;
/// `IPCTNL_MSG_CT_GET_STATS`
const GET_STATS: u16 = SUBSYSTEM | 5;

/// Bytes of `nlmsghdr` and `nfgenmsg`, before the attributes.
pub(super) const HEADERS: u32 = 16 + 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
pub(super) const CTA_PROTOINFO: u16 = 4;
const CTA_HELP: u16 = 5;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_ID: u16 = 12;
const CTA_TUPLE_MASTER: u16 = 14;
const CTA_SEQ_ADJ_ORIG: u16 = 15;
const CTA_SEQ_ADJ_REPLY: u16 = 16;
const CTA_ZONE: u16 = 18;
const CTA_SYNPROXY: u16 = 24;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Identifier, type and code of ICMP; three numbers on, those of ICMPv6.
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMPV6_ID: u16 = 7;

pub(super) const CTA_PROTOINFO_TCP: u16 = 1;
pub(super) const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;

/// `struct nf_ct_tcp_flags`: sets `IP_CT_TCP_FLAG_BE_LIBERAL`, clears
/// `IP_CT_TCP_FLAG_MAXACK_SET`, leaves the others.
const LIBERAL: [u8; 2] = [0x08, 0x08 | 0x20];

const CTA_HELP_NAME: u16 = 1;
const CTA_COUNTERS_PACKETS: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;

/// Reads what follows a message's `nlmsghdr`.
pub(super) fn read(payload: &[u8]) -> Option<Connection> {
    let (_, bytes) = split::<4>(payload)?;
    let mut raw = Raw::default();
    for (kind, value) in attributes(bytes) {
        raw.take(kind, value);
    }
    raw.connection()
}

/// What has been read so far: one pass over a message, as there are many.
#[derive(Default)]
struct Raw {
    id: Option<u32>,
    original: Option<Tuple>,
    reply: Option<Tuple>,
    zone: Option<u16>,
    status: u32,
    mark: u32,
    timeout: Option<u32>,
    tcp: Option<TcpState>,
    counters: [Option<Counters>; 2],
    helper: Option<String>,
    has_master: bool,
    shifts_sequence: bool,
}

impl Raw {
    fn take(&mut self, kind: u16, value: &[u8]) {
        match kind {
            CTA_TUPLE_ORIG => {
                self.original = read_tuple(value);
                // A zone of this direction only stands here.
                self.zone = self
                    .zone
                    .or(attribute(value, CTA_TUPLE_ZONE).and_then(network16));
            }
            CTA_TUPLE_REPLY => self.reply = read_tuple(value),
            CTA_ZONE => self.zone = network16(value),
            CTA_ID => self.id = network32(value),
            CTA_STATUS => self.status = network32(value).unwrap_or_default(),
            CTA_MARK => self.mark = network32(value).unwrap_or_default(),
            CTA_TIMEOUT => self.timeout = network32(value),
            CTA_PROTOINFO => {
                self.tcp = nested(value, &[CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE])
                    .and_then(|state| state.first())
                    .map(|state| TcpState(*state));
            }
            CTA_HELP => {
                self.helper = attribute(value, CTA_HELP_NAME)
                    .and_then(text)
                    .map(str::to_owned);
            }
            CTA_COUNTERS_ORIG => self.counters[0] = read_counters(value),
            CTA_COUNTERS_REPLY => self.counters[1] = read_counters(value),
            CTA_TUPLE_MASTER => self.has_master = true,
            CTA_SEQ_ADJ_ORIG | CTA_SEQ_ADJ_REPLY | CTA_SYNPROXY => self.shifts_sequence = true,
            _ => {}
        }
    }

    fn connection(self) -> Option<Connection> {
        Some(Connection {
            id: self.id?,
            original: self.original?,
            reply: self.reply?,
            zone: self.zone.unwrap_or_default(),
            status: Status(self.status),
            mark: self.mark,
            timeout: self.timeout.map(|s| Duration::from_secs(s.into())),
            tcp: self.tcp,
            counters: match self.counters {
                [Some(original), Some(reply)] => Some([original, reply]),
                _ => None,
            },
            helper: self.helper,
            has_master: self.has_master,
            shifts_sequence: self.shifts_sequence,
        })
    }
}

fn read_tuple(bytes: &[u8]) -> Option<Tuple> {
    let addresses = attribute(bytes, CTA_TUPLE_IP)?;
    let of = |v4, v6| {
        attribute(addresses, v4)
            .or_else(|| attribute(addresses, v6))
            .and_then(address)
    };
    let protocol = attribute(bytes, CTA_TUPLE_PROTO)?;
    Some(Tuple {
        source: of(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        destination: of(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        protocol: *attribute(protocol, CTA_PROTO_NUM)?.first()?,
        ports: read_ports(protocol),
    })
}

fn read_ports(bytes: &[u8]) -> Ports {
    let number = |kind| attribute(bytes, kind).and_then(network16);
    let byte = |kind| attribute(bytes, kind).and_then(<[u8]>::first).copied();
    if let (Some(source), Some(destination)) =
        (number(CTA_PROTO_SRC_PORT), number(CTA_PROTO_DST_PORT))
    {
        return Ports::Ports(source, destination);
    }
    [CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID]
        .into_iter()
        .find_map(|first| {
            Some(Ports::Icmp {
                id: number(first)?,
                kind: byte(first + 1)?,
                code: byte(first + 2)?,
            })
        })
        .unwrap_or(Ports::None)
}

fn read_counters(bytes: &[u8]) -> Option<Counters> {
    Some(Counters {
        packets: attribute(bytes, CTA_COUNTERS_PACKETS).and_then(network64)?,
        octets: attribute(bytes, CTA_COUNTERS_BYTES).and_then(network64)?,
    })
}

/// Asks for all connections, of both families.
pub(super) fn get_all() -> Request {
    Request::new(GET, &[libc::AF_UNSPEC as u8, 0, 0, 0])
}

/// Asks for one by its original tuple.
pub(super) fn get(of: &Connection) -> Request {
    named(GET, of)
}

/// Sets how long it lives from now on, in seconds.
pub(super) fn set_timeout(of: &Connection, seconds: u32) -> Request {
    named(NEW, of).with(CTA_TIMEOUT, &seconds.to_be_bytes())
}

/// Has the window checks of both directions let everything pass.
pub(super) fn set_liberal(of: &Connection) -> Request {
    named(NEW, of).with_nest(CTA_PROTOINFO, |info| {
        info.with_nest(CTA_PROTOINFO_TCP, |tcp| {
            tcp.with(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &LIBERAL)
                .with(CTA_PROTOINFO_TCP_FLAGS_REPLY, &LIBERAL)
        })
    })
}

/// A question that costs nothing: whether the kernel has this interface and we may use it.
pub(super) fn get_statistics() -> Request {
    Request::new(GET_STATS, &[libc::AF_UNSPEC as u8, 0, 0, 0])
}

fn named(kind: u16, of: &Connection) -> Request {
    Request::new(kind, &[family(of.original.source), 0, 0, 0])
        .with_nest(CTA_TUPLE_ORIG, |tuple| write_tuple(tuple, &of.original))
        .with(CTA_ZONE, &of.zone.to_be_bytes())
}

fn write_tuple(request: Request, tuple: &Tuple) -> Request {
    let kind = |v4, v6| match tuple.source {
        IpAddr::V4(_) => v4,
        IpAddr::V6(_) => v6,
    };
    request
        .with_nest(CTA_TUPLE_IP, |inside| {
            inside
                .with(kind(CTA_IP_V4_SRC, CTA_IP_V6_SRC), &octets(tuple.source))
                .with(
                    kind(CTA_IP_V4_DST, CTA_IP_V6_DST),
                    &octets(tuple.destination),
                )
        })
        .with_nest(CTA_TUPLE_PROTO, |inside| {
            let inside = inside.with(CTA_PROTO_NUM, &[tuple.protocol]);
            match tuple.ports {
                Ports::Ports(source, destination) => inside
                    .with(CTA_PROTO_SRC_PORT, &source.to_be_bytes())
                    .with(CTA_PROTO_DST_PORT, &destination.to_be_bytes()),
                Ports::Icmp { kind: of, code, id } => {
                    let first = kind(CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID);
                    inside
                        .with(first, &id.to_be_bytes())
                        .with(first + 1, &[of])
                        .with(first + 2, &[code])
                }
                Ports::None => inside,
            }
        })
}

#[cfg(test)]
#[path = "conntrack_tests.rs"]
mod tests;
