//! Reads the elements of a named set of nftables.
//!
//! *Promises*: the elements as they were at one moment, as ranges of addresses with what is left
//! of their timeouts.
//! *Refuses*: sets that are no sets of addresses; more than [`ELEMENTS_MAX`] elements are cut off.
//! *Caller's duty*: CAP_NET_ADMIN; a thread that may wait for the kernel.
//! *Standard*: Linux `nfnetlink.h`, `nf_tables.h` (`NFT_MSG_GETSET`, `NFT_MSG_GETSETELEM`).
//!
//! A set is looked at again and again: what rules add to it (`add @set { ip saddr }`), and what
//! runs out, the kernel tells nobody.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::range::address;
use crate::agent::config::{Family, SetConfig};

/// Elements that are read at most.
pub const ELEMENTS_MAX: usize = 65_536;
/// Attempts at a set that changes while it is read.
const ATTEMPTS: u32 = 4;

const NFNL_SUBSYS_NFTABLES: u16 = 10 << 8;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_GETSETELEM: u16 = 13;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
/// Of an attribute's type, what is not flags.
const NLA_TYPE: u16 = 0x3fff;

/// In requests for a set and for its elements alike.
const NFTA_TABLE: u16 = 1;
const NFTA_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFT_SET_MAP: u32 = 8;
/// The types of keys, as nft(8) numbers them.
const IPV4_ADDR: u32 = 7;
const IPV6_ADDR: u32 = 8;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;
const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
const NFT_SET_ELEM_CATCHALL: u32 = 2;

/// Some addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Element {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
    /// What is left of their time; `None`: they stay.
    pub expires: Option<Duration>,
}

/// Why a set is not mirrored.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// There is none of that name.
    #[error("there is no such set")]
    Missing,
    /// Its elements are something else.
    #[error("its type is neither ipv4_addr nor ipv6_addr")]
    NotAddresses,
    /// It changes faster than it can be read.
    #[error("it changes while it is read")]
    Changing,
    /// The agent may not.
    #[error("reading it needs CAP_NET_ADMIN")]
    Denied,
    /// The kernel did not answer.
    #[error("the kernel does not answer: {0}")]
    Io(#[from] io::Error),
}

impl SetError {
    fn of(error: i32) -> Self {
        match -error {
            libc::ENOENT => Self::Missing,
            libc::EPERM => Self::Denied,
            number => Self::Io(io::Error::from_raw_os_error(number)),
        }
    }
}

/// The elements of a set.
pub fn read(set: &SetConfig) -> Result<Vec<Element>, SetError> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let bits = bits(&socket, set)?;
    for _ in 0..ATTEMPTS {
        if let Some(raw) = elements(&socket, set)? {
            return Ok(ranges(bits, raw));
        }
    }
    Err(SetError::Changing)
}

/// How long the set's addresses are.
fn bits(socket: &Socket, set: &SetConfig) -> Result<u32, SetError> {
    socket.send(&request(NFT_MSG_GETSET, 0, set), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let message = messages(&answer).next().ok_or(SetError::NotAddresses)?;
    if message.kind == NLMSG_ERROR {
        return Err(SetError::of(number(message.body) as i32));
    }
    let (mut flags, mut kind) = (0, 0);
    for (name, value) in attributes(message.attributes()) {
        match name {
            NFTA_SET_FLAGS => flags = big_endian(value),
            NFTA_SET_KEY_TYPE => kind = big_endian(value),
            _ => {}
        }
    }
    match kind {
        _ if flags & u64::from(NFT_SET_MAP) != 0 => Err(SetError::NotAddresses),
        kind if kind == u64::from(IPV4_ADDR) => Ok(32),
        kind if kind == u64::from(IPV6_ADDR) => Ok(128),
        _ => Err(SetError::NotAddresses),
    }
}

/// An element as the kernel has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Raw {
    key: u128,
    /// The last address of the same element, in sets that say so.
    last: Option<u128>,
    /// It is where an interval has ended.
    is_end: bool,
    expires: Option<Duration>,
}

/// All elements; `None` if the set has changed meanwhile.
fn elements(socket: &Socket, set: &SetConfig) -> Result<Option<Vec<Raw>>, SetError> {
    socket.send(&request(NFT_MSG_GETSETELEM, NLM_F_DUMP, set), 0)?;
    let mut found = Vec::new();
    let mut is_whole = true;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for message in messages(&answer) {
            is_whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                // Either may carry an error, as its first number.
                NLMSG_ERROR | NLMSG_DONE => {
                    return match number(message.body) as i32 {
                        0 => Ok(is_whole.then_some(found)),
                        error if -error == libc::EINTR => Ok(None),
                        error => Err(SetError::of(error)),
                    };
                }
                _ if found.len() < ELEMENTS_MAX => take(message.attributes(), &mut found),
                _ => {}
            }
        }
    }
}

fn take(bytes: &[u8], found: &mut Vec<Raw>) {
    let lists = attributes(bytes).filter(|(name, _)| *name == NFTA_SET_ELEM_LIST_ELEMENTS);
    for (_, list) in lists {
        for (_, element) in attributes(list) {
            let mut raw = Raw {
                key: 0,
                last: None,
                is_end: false,
                expires: None,
            };
            let mut is_key = false;
            for (name, value) in attributes(element) {
                match name {
                    NFTA_SET_ELEM_KEY => {
                        is_key = true;
                        raw.key = key(value);
                    }
                    NFTA_SET_ELEM_KEY_END => raw.last = Some(key(value)),
                    NFTA_SET_ELEM_FLAGS => {
                        let flags = big_endian(value);
                        is_key &= flags & u64::from(NFT_SET_ELEM_CATCHALL) == 0;
                        raw.is_end = flags & u64::from(NFT_SET_ELEM_INTERVAL_END) != 0;
                    }
                    NFTA_SET_ELEM_EXPIRATION => {
                        raw.expires = Some(Duration::from_millis(big_endian(value)));
                    }
                    _ => {}
                }
            }
            if is_key {
                found.push(raw);
            }
        }
    }
}

/// The address in an attribute of data.
fn key(data: &[u8]) -> u128 {
    let value = attributes(data).find(|(name, _)| *name == NFTA_DATA_VALUE);
    let value = value.map_or(&[][..], |(_, value)| value);
    value
        .iter()
        .take(16)
        .fold(0, |number, byte| number << 8 | u128::from(*byte))
}

/// Elements as ranges. An interval is two of the kernel's elements: its first address, and the
/// one behind its last.
fn ranges(bits: u32, mut raw: Vec<Raw>) -> Vec<Element> {
    // Where one interval ends another may begin.
    raw.sort_by_key(|one| (one.key, !one.is_end));
    let has_ends = raw.iter().any(|one| one.is_end);
    let highest = u128::MAX >> (128 - bits);
    let mut found = Vec::new();
    let mut open: Option<Raw> = None;
    let mut close = |one: Raw, last: u128| {
        found.push(Element {
            first: address(bits, one.key),
            last: address(bits, last),
            expires: one.expires,
        });
    };
    for one in raw {
        if one.is_end {
            if let Some(open) = open.take() {
                close(open, one.key.saturating_sub(1));
            }
        } else if let Some(last) = one.last {
            close(one, last);
        } else if has_ends {
            if let Some(before) = open.replace(one) {
                close(before, one.key.saturating_sub(1));
            }
        } else {
            close(one, one.key);
        }
    }
    if let Some(open) = open {
        close(open, highest);
    }
    found
}

/// A request about a set.
fn request(kind: u16, flags: u16, set: &SetConfig) -> Vec<u8> {
    let mut text = vec![0; NLMSG_HEADER];
    let family = match set.family {
        Family::Inet => libc::NFPROTO_INET,
        Family::Ip => libc::NFPROTO_IPV4,
        Family::Ip6 => libc::NFPROTO_IPV6,
        Family::Netdev => libc::NFPROTO_NETDEV,
        Family::Bridge => libc::NFPROTO_BRIDGE,
    };
    text.extend([u8::try_from(family).unwrap_or(0), 0, 0, 0]);
    for (name, value) in [(NFTA_TABLE, &set.table), (NFTA_NAME, &set.set)] {
        // With the NUL at its end; the configuration bounds names to 255 bytes.
        let length = u16::try_from(4 + value.len() + 1).unwrap_or(u16::MAX);
        text.extend(length.to_ne_bytes());
        text.extend(name.to_ne_bytes());
        text.extend(value.as_bytes());
        text.push(0);
        text.resize(text.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let mut header = Vec::with_capacity(NLMSG_HEADER);
    header.extend(length.to_ne_bytes());
    header.extend((NFNL_SUBSYS_NFTABLES | kind).to_ne_bytes());
    header.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and sender: one question at a time, on a socket of its own.
    header.resize(NLMSG_HEADER, 0);
    text.splice(..NLMSG_HEADER, header);
    text
}

/// A message of netlink.
struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind the header of nfnetlink.
    fn attributes(&self) -> &'a [u8] {
        self.body.get(NFGEN_HEADER..).unwrap_or_default()
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = number(bytes) as usize;
        let body = bytes.get(NLMSG_HEADER..length)?;
        let [kind, flags] = [4, 6].map(|at| half(bytes.get(at..).unwrap_or_default()));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, body })
    })
}

/// Names and values of attributes.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes));
        let value = bytes.get(4..length)?;
        let name = half(bytes.get(2..)?) & NLA_TYPE;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((name, value))
    })
}

/// The 16 bits at the beginning, in the machine's order; 0 if there are none.
fn half(bytes: &[u8]) -> u16 {
    bytes
        .first_chunk()
        .map_or(0, |half| u16::from_ne_bytes(*half))
}

/// The 32 bits at the beginning, in the machine's order; 0 if there are none.
fn number(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |word| u32::from_ne_bytes(*word))
}

/// A number of up to 64 bits, in the network's order.
fn big_endian(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(key: &str, is_end: bool, expires: Option<u64>) -> Raw {
        let key: std::net::Ipv4Addr = key.parse().unwrap();
        Raw {
            key: key.to_bits().into(),
            last: None,
            is_end,
            expires: expires.map(Duration::from_millis),
        }
    }

    fn texts(raw: Vec<Raw>) -> Vec<String> {
        let text = |one: Element| format!("{}-{} {:?}", one.first, one.last, one.expires);
        ranges(32, raw).into_iter().map(text).collect()
    }

    #[test]
    fn single_addresses_are_ranges_of_one() {
        let found = texts(vec![
            raw("10.0.0.9", false, None),
            raw("10.0.0.1", false, Some(5)),
        ]);
        assert_eq!(
            found,
            ["10.0.0.1-10.0.0.1 Some(5ms)", "10.0.0.9-10.0.0.9 None"]
        );
    }

    #[test]
    fn intervals_end_before_their_end_and_the_last_may_have_none() {
        // As the kernel lists them: from the highest down, with one in front of all.
        let found = texts(vec![
            raw("255.0.0.0", false, None),
            raw("10.0.1.0", true, None),
            raw("10.0.0.128", false, Some(7)),
            raw("10.0.0.128", true, None),
            raw("10.0.0.0", false, None),
            raw("0.0.0.0", true, None),
        ]);
        assert_eq!(
            found,
            [
                "10.0.0.0-10.0.0.127 None",
                "10.0.0.128-10.0.0.255 Some(7ms)",
                "255.0.0.0-255.255.255.255 None",
            ]
        );
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_messages_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut found = Vec::new();
            for message in messages(&bytes) {
                take(message.attributes(), &mut found);
            }
            take(&bytes, &mut found);
            ranges(128, found);
        }
    }
}
