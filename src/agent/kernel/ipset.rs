//! Sets of ipset, which tell nobody when they change.
//!
//! *Promises*: the digest differs if an element or a set differs; elements' order, timeouts and
//! counters do not matter.
//! *Refuses*: nothing. A kernel without ipset is not made to load it.
//! *Caller's duty*: CAP_NET_ADMIN.
//! *Standard*: include/uapi/linux/netfilter/ipset/ip_set.h.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use super::socket::Socket;
use super::wire::{Request, attribute, attributes, split};

/// `NFNL_SUBSYS_IPSET`, `IPSET_CMD_LIST`
const LIST: u16 = 6 << 8 | 7;
const PROTOCOL: u16 = 1;
/// `IPSET_PROTOCOL_MIN`
const PROTOCOL_VERSION: u8 = 6;
const SET_NAME: u16 = 2;
const DATA: u16 = 7;
const ELEMENTS: u16 = 8;

/// Of a set: its seed, and what grows: hash size, size, elements, references, memory.
const CHANGING_OF_SET: [u16; 6] = [17, 18, 23, 24, 25, 26];
/// Of an element: timeout, bytes, packets.
const CHANGING_OF_ELEMENT: [u16; 3] = [6, 24, 25];

/// Whether the kernel has ipset now.
pub(super) fn is_present() -> bool {
    Path::new("/sys/module/ip_set").exists()
}

/// A number for all sets and elements of the namespace.
pub(super) async fn digest() -> io::Result<u64> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let request =
        Request::new(LIST, &[libc::AF_INET as u8, 0, 0, 0]).with(PROTOCOL, &[PROTOCOL_VERSION]);
    let mut sum = 0_u64;
    socket
        .dump(request, |message| {
            sum = sum.wrapping_add(of_message(message.payload));
        })
        .await?;
    Ok(sum)
}

fn of_message(payload: &[u8]) -> u64 {
    let Some((_, bytes)) = split::<4>(payload) else {
        return 0;
    };
    let name = attribute(bytes, SET_NAME).unwrap_or_default();
    let mut sum = 0_u64;
    if let Some(set) = attribute(bytes, DATA) {
        let kinds = attributes(bytes).filter(|(kind, _)| ![DATA, ELEMENTS].contains(kind));
        sum = hash(name, kinds.chain(unchanging(set, &CHANGING_OF_SET)));
    }
    let elements = attribute(bytes, ELEMENTS).unwrap_or_default();
    // A sum, as a set that grows is told in another order.
    attributes(elements)
        .map(|(_, element)| hash(name, unchanging(element, &CHANGING_OF_ELEMENT)))
        .fold(sum, u64::wrapping_add)
}

fn unchanging<'a>(bytes: &'a [u8], changing: &'a [u16]) -> impl Iterator<Item = (u16, &'a [u8])> {
    attributes(bytes).filter(|(kind, _)| !changing.contains(kind))
}

fn hash<'a>(name: &[u8], parts: impl Iterator<Item = (u16, &'a [u8])>) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    for part in parts {
        part.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message about set `a`: IPv4 elements, each with its timeout.
    fn message(elements: &[([u8; 4], u32)]) -> Vec<u8> {
        let whole = Request::new(LIST, &[0; 4])
            .with(SET_NAME, b"a\0")
            .with_nest(DATA, |set| set.with(24, &[elements.len() as u8, 0, 0, 0]))
            .with_nest(ELEMENTS, |mut list| {
                for (address, timeout) in elements {
                    list = list.with_nest(DATA, |element| {
                        element.with(1, address).with(6, &timeout.to_be_bytes())
                    });
                }
                list
            })
            .numbered(1, 0);
        whole[16..].to_vec()
    }

    proptest! {
        #[test]
        fn the_digest_is_of_elements_and_not_of_their_order_or_timeouts(
            mut elements in prop::collection::btree_map(any::<[u8; 4]>(), any::<u32>(), 1..20)
                .prop_map(|map| map.into_iter().collect::<Vec<_>>()),
            other: u32,
        ) {
            let before = of_message(&message(&elements));
            elements.reverse();
            elements[0].1 = other;
            prop_assert_eq!(before, of_message(&message(&elements)));
            elements[0].0[3] ^= 1;
            prop_assert_ne!(before, of_message(&message(&elements)));
            elements.pop();
            prop_assert_ne!(before, of_message(&message(&elements)));
        }

        #[test]
        fn any_bytes_have_a_digest(bytes: Vec<u8>) {
            of_message(&bytes);
        }
    }
}
