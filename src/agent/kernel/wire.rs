//! Netlink's messages and attributes, as bytes.
//!
//! *Promises*: reading never panics and never looks beyond what it was given; what does not
//! parse is left out, and the rest is read nevertheless: newer kernels say more.
//! *Refuses*: nothing.
//! *Caller's duty*: the fixed header of each message (`nfgenmsg`, `ifinfomsg`…).
//! *Standard*: netlink(7), rtnetlink(7); RFC 3549.

use std::net::IpAddr;

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of an attribute before its value.
const NLA_HEADER: usize = 4;
/// There are attributes in it.
const NESTED: u16 = 1 << 15;
/// Without the flags: nested, and in the network's byte order.
const TYPE: u16 = !(NESTED | 1 << 14);

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message<'a> {
    /// Its type.
    pub(super) kind: u16,
    /// `NLM_F_…`
    pub(super) flags: u16,
    /// Of the request that it answers.
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

/// The messages of one datagram, up to the first that is cut off.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER>()?;
        let length = native32(&header[..4])? as usize;
        let found = Message {
            kind: native16(&header[4..6])?,
            flags: native16(&header[6..8])?,
            sequence: native32(&header[8..12])?,
            payload: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
        Some(found)
    })
}

/// A message's fixed header of `N` bytes, and its attributes' bytes.
pub(super) fn split<const N: usize>(payload: &[u8]) -> Option<(&[u8; N], &[u8])> {
    payload.split_first_chunk()
}

/// Attributes by type (without the flags in it) and value, up to the first that is cut off.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<NLA_HEADER>()?;
        let length = usize::from(native16(&header[..2])?);
        let kind = native16(&header[2..])? & TYPE;
        let value = bytes.get(NLA_HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of that type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(of, value)| (of == kind).then_some(value))
}

/// The first attribute at the end of a path of nested ones.
pub(super) fn nested<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |inside, kind| attribute(inside, *kind))
}

/// A number in this machine's byte order.
pub(super) fn native16(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.try_into().ok()?))
}

/// A number in this machine's byte order.
pub(super) fn native32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// A number in the network's byte order.
pub(super) fn network16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

/// A number in the network's byte order.
pub(super) fn network32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A number in the network's byte order, of 32 bits or 64.
pub(super) fn network64(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => network32(value).map(u64::from),
        _ => Some(u64::from_be_bytes(value.try_into().ok()?)),
    }
}

/// An address, of either family by its length.
pub(super) fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
    }
}

/// A text up to its NUL, or to the end.
pub(super) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
}

/// An address's bytes.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The socket family of an address.
pub(super) fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// A request in the making.
#[derive(Clone, Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// A message of that type; `header` is what its type begins with.
    pub(super) fn new(kind: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(header);
        let mut request = Self(bytes);
        request.pad();
        request
    }

    /// Adds an attribute.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let start = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(start);
        self
    }

    /// Adds an attribute, if there is a value.
    pub(super) fn with_some<const N: usize>(self, kind: u16, value: Option<[u8; N]>) -> Self {
        match value {
            Some(value) => self.with(kind, &value),
            None => self,
        }
    }

    /// Adds an attribute of attributes.
    pub(super) fn with_nest(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.open(kind | NESTED);
        self = inside(self);
        self.close(start);
        self
    }

    /// The message with its number and flags (`NLM_F_…`, beyond those it has).
    pub(super) fn numbered(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self = self.flagged(flags);
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }

    /// Adds flags (`NLM_F_…`).
    pub(super) fn flagged(mut self, flags: u16) -> Self {
        for (byte, more) in self.0[6..8].iter_mut().zip(flags.to_ne_bytes()) {
            *byte |= more;
        }
        self
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// Values here are names and addresses: no attribute comes near 64 KiB.
    fn close(&mut self, start: usize) {
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(aligned(self.0.len()), 0);
    }
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_reads_back_as_it_was_made() {
        let bytes = Request::new(0x101, &[2, 0, 0, 0])
            .with_nest(1, |inside| inside.with(2, b"abc").with(3, &[9]))
            .with(4, &7_u32.to_be_bytes())
            .flagged(1)
            .numbered(77, 4);
        let message = messages(&bytes).next().unwrap();
        assert_eq!(
            (message.kind, message.flags, message.sequence),
            (0x101, 5, 77)
        );
        let (header, rest) = split::<4>(message.payload).unwrap();
        assert_eq!(header, &[2, 0, 0, 0]);
        assert_eq!(nested(rest, &[1, 2]), Some(&b"abc"[..]));
        assert_eq!(nested(rest, &[1, 3]), Some(&[9][..]));
        assert_eq!(attribute(rest, 4).and_then(network32), Some(7));
        assert_eq!(attribute(rest, 5), None);
    }

    #[test]
    fn messages_of_a_datagram_come_in_turn_and_end_at_the_cut() {
        let mut bytes = Request::new(1, b"abcde").numbered(1, 0);
        bytes.extend(Request::new(2, b"").numbered(2, 0));
        let cut = bytes.len() - 1;
        let kinds = |bytes: &[u8]| messages(bytes).map(|m| m.kind).collect::<Vec<_>>();
        assert_eq!(kinds(&bytes), [1, 2]);
        assert_eq!(kinds(&bytes[..cut]), [1]);
    }

    #[test]
    fn texts_end_at_their_nul() {
        assert_eq!(text(b"eth0\0\0"), Some("eth0"));
        assert_eq!(text(b"eth0"), Some("eth0"));
        assert_eq!(text(&[0xff, 0]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_to_an_end(bytes: Vec<u8>) {
            for message in messages(&bytes) {
                for (_, value) in attributes(message.payload) {
                    prop_assert!(value.len() <= bytes.len());
                }
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len() / NLA_HEADER);
        }
    }
}
