//! What can be said of an IP packet that never gets a key: its network layer.
//!
//! *Promises*: a key with addresses, version and protocol that never reads past the frame; its
//! VLAN and ports are 0. Neighbour discovery has none, as ARP has not: whoever matches by
//! these keys cannot cut a link's neighbours off.
//! *Refuses*: `None` for what is not IP, or whose IP header is not whole.
//! *Caller's duty*: to ask for frames that [`parse`](super::parse()) refused; for the others it
//! tells less. *Standard*: RFC 791, RFC 8200 section 4 (extension headers), RFC 4302 (the
//! length of AH), RFC 4861 section 7.1 (neighbour discovery has a hop limit of 255).
//!
//! The protocol of IPv6 is the first header that is no extension header, also behind a fragment
//! header. In a fragment after the first it is what that header names; of more than eight
//! extension headers it is the number of the ninth.

use super::headers::{self, IPV4, IPV6, be16, ethertype, extension};
use super::key::protocol;
use super::{FlowKey, VnicId};

/// Extension headers walked at most.
const EXTENSIONS_MAX: usize = 8;

/// The network layer of a frame that came in on `ingress`.
pub fn network_key(data: &[u8], ingress: VnicId) -> Option<FlowKey> {
    let (kind, l3) = headers::link(data)?;
    let packet = data.get(l3..)?;
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    let (version, number) = match kind {
        ethertype::IPV4 => {
            let header = packet.first_chunk::<IPV4>()?;
            let len = usize::from(header[0] & 0x0f) * 4;
            if header[0] >> 4 != 4 || len < IPV4 || len > packet.len() {
                return None;
            }
            src[..4].copy_from_slice(&header[12..16]);
            dst[..4].copy_from_slice(&header[16..20]);
            (4, header[9])
        }
        ethertype::IPV6 => {
            let (header, rest) = packet.split_first_chunk::<IPV6>()?;
            if header[0] >> 4 != 6 {
                return None;
            }
            let (number, upper) = behind_extensions(header[6], rest);
            if header[7] == 255 && number == protocol::ICMPV6 && discovers(upper) {
                return None;
            }
            src.copy_from_slice(&header[8..24]);
            dst.copy_from_slice(&header[24..40]);
            (6, number)
        }
        _ => return None,
    };
    Some(FlowKey::from_parts(
        ingress, 0, version, number, &src, &dst, 0, 0,
    ))
}

/// The protocol behind IPv6's extension headers, and what begins there; nothing if that is in
/// another fragment, or cut off.
fn behind_extensions(mut next: u8, mut rest: &[u8]) -> (u8, &[u8]) {
    for _ in 0..EXTENSIONS_MAX {
        let Some(header) = rest.first_chunk::<4>() else {
            return (next, &[]);
        };
        let units = usize::from(header[1]);
        let len = match next {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => (units + 1) * 8,
            extension::AUTHENTICATION => (units + 2) * 4,
            // An offset: what it names is in the first fragment.
            extension::FRAGMENT if be16(header, 2) & 0xfff8 != 0 => return (header[0], &[]),
            extension::FRAGMENT => 8,
            _ => return (next, rest),
        };
        next = header[0];
        rest = rest.get(len..).unwrap_or(&[]);
    }
    (next, &[])
}

/// Whether an ICMPv6 message is one of neighbour discovery.
fn discovers(message: &[u8]) -> bool {
    message
        .first()
        .is_some_and(|kind| (133..=137).contains(kind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::testing::Sample;
    use crate::packet::{Offload, parse};

    const VNIC: VnicId = VnicId(1);

    /// The key of a sample without its VLAN and ports.
    fn expected(sample: &Sample) -> FlowKey {
        let mut tuple = sample.tuple;
        (tuple.src_port, tuple.dst_port) = (0, 0);
        FlowKey::new(VNIC, 0, &tuple)
    }

    /// An IPv6 sample with `headers` between its IPv6 header, which names the first, and the rest.
    fn extended(sample: &Sample, first: u8, headers: &[u8]) -> Vec<u8> {
        let mut frame = sample.build();
        frame[20] = first;
        frame.splice(54..54, headers.iter().copied());
        frame
    }

    #[test]
    fn whole_frames_have_the_addresses_and_protocol_of_their_keys() {
        for tag in [None, Some(0x2064)] {
            for mut sample in [
                Sample::tcp4(b"abc"),
                Sample::udp6(b"abc"),
                Sample::echo4(b""),
            ] {
                sample.tag = tag;
                let key = network_key(&sample.build(), VNIC);
                assert_eq!(key, Some(expected(&sample)));
            }
        }
    }

    #[test]
    fn fragments_options_and_extension_headers_hide_neither_addresses_nor_protocol() {
        let v4 = Sample::udp4(b"abc");
        let mut fragment = v4.build();
        fragment[20] = 0x20;
        assert_eq!(network_key(&fragment, VNIC), Some(expected(&v4)));
        let v6 = Sample::udp6(b"abc");
        let udp = protocol::UDP;
        let cases: [(u8, &[u8]); 4] = [
            (extension::HOP_BY_HOP, &[udp, 0, 1, 4, 0, 0, 0, 0]),
            (extension::FRAGMENT, &[udp, 0, 0x05, 0xb9, 0, 0, 0, 1]),
            (extension::FRAGMENT, &[udp, 0, 0, 1, 0, 0, 0, 1]),
            (
                extension::AUTHENTICATION,
                &[udp, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
            ),
        ];
        for (first, headers) in cases {
            let frame = extended(&v6, first, headers);
            assert!(parse(&frame, &Offload::default(), VNIC).is_err());
            assert_eq!(network_key(&frame, VNIC), Some(expected(&v6)), "{first}");
        }
    }

    #[test]
    fn arp_and_neighbour_discovery_have_none_and_other_icmpv6_has_one() {
        let arp = [&[0xff; 6][..], &[2; 6], &[8, 6], &[0; 28]].concat();
        assert_eq!(network_key(&arp, VNIC), None);
        let mut sample = Sample::v6(protocol::ICMPV6, b"");
        sample.ttl = 255;
        let mut frame = sample.build();
        for kind in 0..=255u8 {
            frame[54] = kind;
            let discovers = (133..=137).contains(&kind);
            assert_eq!(network_key(&frame, VNIC).is_none(), discovers, "{kind}");
        }
        // From afar it is none: whoever forwards it counts down.
        (frame[21], frame[54]) = (254, 135);
        assert!(network_key(&frame, VNIC).is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut data in proptest::collection::vec(any::<u8>(), 0..140), kind in 0usize..4
        ) {
            if data.len() >= 15 && kind < 3 {
                let (kind, version) = [(0x0800u16, 4), (0x86dd, 6), (0x8100, 0)][kind];
                data[12..14].copy_from_slice(&kind.to_be_bytes());
                data[14] = version << 4 | data[14] & 0x0f;
            }
            let _ = network_key(&data, VNIC);
        }
    }
}
