//! Programs that keep messages out of a socket before they cost anything.
//!
//! *Promises*: what a program cannot read it lets in.
//! *Refuses*: nothing.
//! *Caller's duty*: the socket hears the messages that the program is for, and no others.
//! *Standard*: classic BPF, Documentation/networking/filter.rst (`SKF_AD_NLATTR`).

use libc::sock_filter;

use super::conntrack::{
    CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE, DELETE, HEADERS,
};
use crate::agent::connection::TcpState;

const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE_INDEXED: u16 = 0x50;
const LOAD_WORD: u16 = 0x20;
const LOAD: u16 = 0x00;
const LOAD_INDEX: u16 = 0x01;
const TO_INDEX: u16 = 0x07;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const RETURN: u16 = 0x06;

/// Where a message's type stands.
const TYPE: u32 = 4;
/// From here on an attribute of type X is looked for, at A and onwards.
const FIND: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;
/// An attribute of type X is looked for inside the one at A.
const FIND_INSIDE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR_NEST) as u32;
/// Bytes of an attribute before its value.
const NLA_HEADER: u32 = 4;

const PASS: sock_filter = step(RETURN, u32::MAX);
const DROP: sock_filter = step(RETURN, 0);

/// Drops conntrack's words of the end of TCP connections that had been closing before: such a
/// connection was handed back with its FIN or RST, and nobody waits to hear of its end.
///
/// Old kernels do not tell the state: then a message passes.
pub(super) const fn ends_of_open_connections() -> [sock_filter; 17] {
    [
        step(LOAD_HALF, TYPE),
        branch(IF_EQUAL, seen_as(DELETE), 0, 13),
        step(LOAD_INDEX, CTA_PROTOINFO as u32),
        step(LOAD, HEADERS),
        step(LOAD_WORD, FIND),
        branch(IF_EQUAL, 0, 9, 0),
        step(LOAD_INDEX, CTA_PROTOINFO_TCP as u32),
        step(LOAD_WORD, FIND_INSIDE),
        branch(IF_EQUAL, 0, 6, 0),
        step(LOAD_INDEX, CTA_PROTOINFO_TCP_STATE as u32),
        step(LOAD_WORD, FIND_INSIDE),
        branch(IF_EQUAL, 0, 3, 0),
        step(TO_INDEX, 0),
        step(LOAD_BYTE_INDEXED, NLA_HEADER),
        branch(IF_GREATER, TcpState::ESTABLISHED.0 as u32, 1, 0),
        PASS,
        DROP,
    ]
}

/// Lets only messages of one type in.
pub(super) const fn only(kind: u16) -> [sock_filter; 4] {
    [
        step(LOAD_HALF, TYPE),
        branch(IF_EQUAL, seen_as(kind), 0, 1),
        PASS,
        DROP,
    ]
}

/// The program reads in the network's byte order what is written in the machine's.
const fn seen_as(kind: u16) -> u32 {
    u16::from_be_bytes(kind.to_ne_bytes()) as u32
}

const fn step(code: u16, k: u32) -> sock_filter {
    branch(code, k, 0, 0)
}

const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}
