//! The Internet checksum: sums, incremental updates, pseudo-headers.
//!
//! Sums here are *un-complemented* one's-complement sums of big-endian 16-bit words,
//! folded to 16 bits; a checksum field holds the complement of one.
//!
//! *Promises*: [`sum`] equals the plain loop of RFC 1071; [`update`] of a field keeps its
//! distance from the right value, so a wrong checksum stays wrong by the same difference.
//! A field updated by a [`difference`] is what a full recomputation writes (RFC 1624
//! section 3: never the second zero), as long as not every summed word is zero.
//! *Refuses*: a [`complete`] that would reach past the frame: false, and no change.
//! *Caller's duty*: the rules that belong to a protocol (UDP's zero, no pseudo-header in
//! ICMP) are not known here.
//! *Standard*: RFC 1071, RFC 1624, RFC 9293 section 3.1, RFC 8200 section 8.1.

/// Folds a wide sum of 16-bit words into 16 bits (end-around carry).
#[inline]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// One's-complement addition.
#[inline]
pub const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// The sum of `data` as big-endian 16-bit words, a last odd byte padded with zero.
///
/// Works on sixteen bytes at a time in the machine's byte order, which only swaps the
/// bytes of the result (RFC 1071 section 2 (B)).
pub fn sum(data: &[u8]) -> u16 {
    // Halves of 32 bits in 64-bit lanes: 2^32 additions would have to pass before one
    // overflows.
    let mut lanes = [0u64; 4];
    let chunks = data.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
            *lane += word
                .first_chunk()
                .map_or(0, |word| u64::from(u32::from_ne_bytes(*word)));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    for pair in rest.chunks(2) {
        let pair = [pair[0], pair.get(1).copied().unwrap_or(0)];
        total += u64::from(u16::from_ne_bytes(pair));
    }
    u16::from_be(fold(total))
}

/// What [`update`] needs when the summed words `old` become `new` (as many): the sum of `new`
/// minus that of `old`, not folded. Never 0, so that an update never yields the zero that no
/// recomputation gives.
#[inline(always)]
pub fn difference(old: &[u64], new: &[u64]) -> u64 {
    let words = old.iter().map(|word| !word).chain(new.iter().copied());
    let sum = words.fold(0u64, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u64::from(carry)
    });
    // All ones change no sum.
    u64::from(fold(sum)) + 0xffff
}

/// The checksum field `check` after the summed bytes changed by `delta`, a [`difference`] or a
/// sum of such: `HC' = ~(~HC + ~m + m')` (RFC 1624 equation 3).
#[inline]
pub const fn update(check: u16, delta: u64) -> u16 {
    !fold((!check) as u64 + delta)
}

/// The sum of an IPv4 pseudo-header (RFC 9293 section 3.1); `len` in bytes.
pub fn pseudo_ipv4(src: [u8; 4], dst: [u8; 4], protocol: u8, len: u16) -> u16 {
    let ends = add(sum(&src), sum(&dst));
    add(ends, add(u16::from(protocol), len))
}

/// The sum of an IPv6 pseudo-header (RFC 8200 section 8.1); `len` in bytes.
pub fn pseudo_ipv6(src: &[u8; 16], dst: &[u8; 16], protocol: u8, len: u32) -> u16 {
    let ends = add(sum(src), sum(dst));
    add(ends, fold(u64::from(protocol) + u64::from(len)))
}

/// What a checksum field holds when its value comes out as zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zero {
    /// Zero (TCP, ICMP).
    AsIs,
    /// All ones, since zero means "no checksum" (UDP, RFC 768).
    AllOnes,
}

/// Completes a partial checksum: the field at `start + offset`, which holds the
/// pseudo-header's sum, gets the checksum of everything from `start` to the end of
/// `data` (virtio 1.2 section 5.1.6.2). False, and no change, if the field lies outside.
pub fn complete(data: &mut [u8], start: usize, offset: usize, zero: Zero) -> bool {
    let Some(summed) = data.get_mut(start..) else {
        return false;
    };
    let check = match (!sum(summed), zero) {
        (0, Zero::AllOnes) => 0xffff,
        (check, _) => check,
    };
    let field = offset
        .checked_add(2)
        .and_then(|end| summed.get_mut(offset..end));
    let Some(field) = field else {
        return false;
    };
    field.copy_from_slice(&check.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word.
    fn plain(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc1071_section_3_example_sums_to_ddf2() {
        let words = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&words), 0xddf2);
        assert_eq!(sum(&words[..7]), plain(&words[..7]));
    }

    #[test]
    fn rfc1624_section_4_example_never_yields_the_second_zero() {
        // HC = 0xdd2f, m = 0x5555, m' = 0x3285: equation 2 would give 0xffff.
        let delta = difference(&[0x5555], &[0x3285]);
        assert_eq!(update(0xdd2f, delta), 0x0000);
        assert_eq!(difference(&[u64::MAX], &[0]), 0xffff);
        assert_eq!(difference(&[], &[]), 0xffff);
    }

    #[test]
    fn sums_of_extremes_equal_the_plain_loop() {
        for byte in [0x00, 0x01, 0x80, 0xff] {
            for len in [0, 1, 2, 15, 16, 17, 31, 33, 65_535, 65_597] {
                let data = vec![byte; len];
                assert_eq!(sum(&data), plain(&data), "{len} bytes of {byte:#x}");
            }
        }
    }

    #[test]
    fn a_field_outside_the_frame_is_not_completed() {
        let mut data = [0xa5; 8];
        for (start, offset) in [
            (0, 7),
            (7, 0),
            (8, 0),
            (9, 0),
            (2, usize::MAX),
            (usize::MAX, 0),
        ] {
            assert!(!complete(&mut data, start, offset, Zero::AsIs));
        }
        assert_eq!(data, [0xa5; 8]);
        assert!(complete(&mut data, 2, 4, Zero::AsIs));
        assert_eq!(data[..6], [0xa5; 6]);
    }

    #[test]
    fn a_zero_checksum_becomes_all_ones_only_for_udp() {
        let mut udp = [0xff, 0xff, 0, 0];
        assert!(complete(&mut udp, 0, 2, Zero::AllOnes));
        assert_eq!(udp, [0xff; 4]);
        let mut tcp = [0xff, 0xff, 0, 0];
        assert!(complete(&mut tcp, 0, 2, Zero::AsIs));
        assert_eq!(tcp, [0xff, 0xff, 0, 0]);
    }

    proptest! {
        #[test]
        fn the_wide_sum_equals_the_plain_loop(data in proptest::collection::vec(any::<u8>(), 0..300), skip in 0usize..8) {
            let data = &data[skip.min(data.len())..];
            prop_assert_eq!(sum(data), plain(data));
        }

        #[test]
        fn an_update_equals_a_full_recomputation(
            mut data in proptest::collection::vec(any::<u8>(), 24..64),
            new in any::<[u8; 16]>(),
            error in any::<u16>(),
        ) {
            data[0] |= 1;
            let check = !plain(&data);
            let words = |bytes: &[u8]| -> Vec<u64> {
                bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect()
            };
            let delta = difference(&words(&data[4..20]), &words(&new));
            data[4..20].copy_from_slice(&new);
            let full = !plain(&data);
            prop_assert_eq!(update(check, delta), full);
            // Off by `error` before, off by the same after.
            prop_assert_eq!(update(add(check, error), delta) % 0xffff, add(full, error) % 0xffff);
        }

        #[test]
        fn pseudo_headers_equal_their_bytes(
            src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(), protocol in any::<u8>(), len in any::<u16>(),
        ) {
            let mut six = [src, dst].concat();
            six.extend(u32::from(len).to_be_bytes());
            six.extend([0, 0, 0, protocol]);
            prop_assert_eq!(pseudo_ipv6(&src, &dst, protocol, len.into()), plain(&six));
            let (src, dst) = (*src.first_chunk().unwrap(), *dst.first_chunk().unwrap());
            let mut four = [src, dst].concat();
            four.extend([0, protocol]);
            four.extend(len.to_be_bytes());
            prop_assert_eq!(pseudo_ipv4(src, dst, protocol, len), plain(&four));
        }
    }
}
