//! What a packet is recognised by after the guest has translated it.
//!
//! *Promises*: the marker of a frame and that of the same frame after any NAT, TTL, MAC,
//! VLAN or DSCP rewrite are equal. A GSO frame's marker ends where its last segment does.
//! *Refuses*: nothing; two packets with the same length and first 64 payload bytes have
//! the same marker, which only lets a flow move a packet early.
//! *Caller's duty*: sequence numbers wrap (RFC 9293 section 3.4): compare serially.
//! *Standard*: RFC 9293 (sequence space).

use super::headers::tcp_flag;
use super::key::protocol;
use super::parse::Parsed;

/// What a packet can be recognised by after the guest has translated it (DESIGN section 4, hand-over).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Marker {
    /// TCP: end of its sequence range and acknowledgement number.
    Tcp {
        /// Sequence number after the last byte (SYN and FIN count one).
        seq_end: u32,
        /// Acknowledgement number.
        ack: u32,
    },
    /// Others: payload length and a hash of the first payload bytes, which NAT leaves alone.
    Other {
        /// L4 payload bytes.
        len: u32,
        /// Hash of the first payload bytes (at most 64); of an echo, its sequence number too.
        hash: u32,
    },
}

/// Payload bytes that enter the hash.
const HASHED_MAX: usize = 64;

impl Marker {
    /// The marker of a frame.
    #[inline]
    pub fn of(data: &[u8], parsed: &Parsed) -> Self {
        let payload = parsed.payload(data);
        if let Some((seq, ack, _)) = parsed.tcp_position(data) {
            let flags = parsed.tcp_flags;
            let syn = u32::from(flags & tcp_flag::SYN != 0);
            let fin = u32::from(flags & tcp_flag::FIN != 0);
            let seq_end = seq
                .wrapping_add(payload.len() as u32)
                .wrapping_add(syn + fin);
            return Self::Tcp { seq_end, ack };
        }
        let hashed = match parsed.key.protocol() {
            // An echo's sequence number stands before its payload, and NAT leaves it alone.
            protocol::ICMP | protocol::ICMPV6 => {
                let start = usize::from(parsed.payload).saturating_sub(2);
                let end = usize::from(parsed.payload) + payload.len();
                data.get(start..end).unwrap_or(payload)
            }
            _ => payload,
        };
        Self::Other {
            len: payload.len() as u32,
            hash: hash(hashed.get(..HASHED_MAX).unwrap_or(hashed)),
        }
    }
}

/// Multiply and fold, eight bytes at a time. Not keyed: who finds collisions finds them in
/// his own packets.
#[inline]
fn hash(data: &[u8]) -> u32 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |state: u64, word: u64| (state ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let mut state = data.len() as u64;
    for chunk in data.chunks(8) {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        state = mix(state, u64::from_le_bytes(word));
    }
    (state ^ (state >> 32)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::{Sample, parsed};
    use proptest::prelude::*;

    #[test]
    fn a_tcp_marker_ends_behind_payload_syn_and_fin() {
        let mut sample = Sample::tcp4(&[7; 100]);
        sample.seq = u32::MAX - 10;
        let frame = sample.build();
        let expected = (u32::MAX - 10).wrapping_add(100);
        let marker = Marker::of(&frame, &parsed(&frame));
        assert!(matches!(marker, Marker::Tcp { seq_end, ack: 0x0102_0304 } if seq_end == expected));
        sample.flags = 0x13;
        let frame = sample.build();
        let marker = Marker::of(&frame, &parsed(&frame));
        assert!(
            matches!(marker, Marker::Tcp { seq_end, .. } if seq_end == expected.wrapping_add(2))
        );
    }

    #[test]
    fn echoes_differ_by_sequence_number_alone() {
        let mut sample = Sample::echo4(&[0; 32]);
        let first = sample.build();
        sample.seq += 1;
        let second = sample.build();
        assert_ne!(
            Marker::of(&first, &parsed(&first)),
            Marker::of(&second, &parsed(&second))
        );
    }

    #[test]
    fn ethernet_padding_is_not_in_the_marker() {
        let mut frame = Sample::udp4(&[1, 2, 3]).build();
        let bare = Marker::of(&frame, &parsed(&frame));
        frame.resize(60, 0xa5);
        assert_eq!(Marker::of(&frame, &parsed(&frame)), bare);
        assert!(matches!(bare, Marker::Other { len: 3, .. }));
    }

    proptest! {
        #[test]
        fn each_hashed_byte_counts(payload in proptest::collection::vec(any::<u8>(), 1..80), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut other = payload.clone();
            let at = at.index(payload.len());
            other[at] ^= 1 << bit;
            let cut = |data: &[u8]| hash(&data[..data.len().min(HASHED_MAX)]);
            prop_assert_eq!(cut(&payload) == cut(&other), at >= HASHED_MAX);
        }
    }
}
