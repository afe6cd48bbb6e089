//! The keyed hash of the flow table.
//!
//! *Promises*: SipHash-1-3 under a seed of 128 random bits: who does not know the
//! seed cannot choose keys that meet in a bucket.
//! *Refuses*: nothing; every key has a hash.
//! *Caller's duty*: the seed and anything that shows bucket numbers stay inside the
//! process.
//! *Standard*: J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF",
//! 2012, with one compression and three finalisation rounds (as Rust's own maps).
//!
//! What is hashed of an IPv4 key are its 24 bytes that can differ, of any other all 48: SipHash
//! closes with the length, so the one is as good as the other, and the shorter takes 7 rounds
//! instead of 10.

use std::fmt;
use std::hash::{BuildHasher, RandomState};

use crate::packet::FlowKey;

#[cfg(target_arch = "x86_64")]
mod lanes;

/// Fewer keys are as quick one by one as in a vector that is mostly empty.
#[cfg(target_arch = "x86_64")]
const VECTOR_FROM: usize = 3;

/// The secret of one table's hash.
#[derive(Clone)]
pub struct HashSeed {
    k0: u64,
    k1: u64,
}

impl HashSeed {
    /// A seed that nobody outside the process knows.
    ///
    /// `RandomState` takes its key from the operating system; the seed is two outputs
    /// of its hash, which tell nothing about each other.
    pub fn random() -> Self {
        let state = RandomState::new();
        Self::from_words(state.hash_one(0u64), state.hash_one(1u64))
    }

    /// A known seed, for tests that must repeat.
    pub const fn from_words(k0: u64, k1: u64) -> Self {
        Self { k0, k1 }
    }
}

/// Says nothing, so that no log gives the seed away.
impl fmt::Debug for HashSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashSeed(secret)")
    }
}

/// The closing blocks: the length in the highest byte, no bytes left over.
const NARROW_END: u64 = 24 << 56;
const WIDE_END: u64 = 48 << 56;

/// SipHash-1-3 of the key's words, little-endian; of an IPv4 key's first, both addresses in one
/// word, and the last.
#[inline]
pub fn hash(seed: &HashSeed, key: &FlowKey) -> u64 {
    let [a, b, c, d, e, f] = *key.words();
    let mut state = State::new(seed);
    state.compress(a);
    if key.is_ipv4() {
        state.compress(b ^ d >> 32);
        state.compress(f);
        state.compress(NARROW_END);
    } else {
        for word in [b, c, d, e, f, WIDE_END] {
            state.compress(word);
        }
    }
    state.finish()
}

/// [`hash()`] of each of `keys`, several at a time where the processor can; `out` is as long.
#[inline]
pub(super) fn hash_burst(seed: &HashSeed, keys: &[FlowKey], out: &mut [u64]) {
    #[cfg(target_arch = "x86_64")]
    if keys.len() >= VECTOR_FROM {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F, as was just found.
            return unsafe { lanes::avx512::hash_all(seed, keys, out) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just found.
            return unsafe { lanes::avx2::hash_all(seed, keys, out) };
        }
    }
    for (key, out) in keys.iter().zip(out) {
        *out = hash(seed, key);
    }
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline(always)]
    fn new(seed: &HashSeed) -> Self {
        Self {
            v0: seed.k0 ^ 0x736f_6d65_7073_6575,
            v1: seed.k1 ^ 0x646f_7261_6e64_6f6d,
            v2: seed.k0 ^ 0x6c79_6765_6e65_7261,
            v3: seed.k1 ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    fn compress(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use proptest::prelude::*;
    use siphasher::sip::SipHasher13;

    use super::*;
    use crate::packet::VnicId;

    proptest! {
        #[test]
        fn of_a_wide_key_it_is_siphash_1_3_of_the_words(
            seed: [u64; 2], vnic: u16, vlan: u16, protocol: u8,
            src: [u8; 16], dst: [u8; 16], ports: [u16; 2],
        ) {
            let vnic = VnicId(vnic);
            let key = FlowKey::from_parts(vnic, vlan, 6, protocol, &src, &dst, ports[0], ports[1]);
            prop_assert_eq!(hash(&HashSeed::from_words(seed[0], seed[1]), &key), oracle(seed, key.words()));
        }

        #[test]
        fn of_an_ipv4_key_it_is_siphash_1_3_of_what_can_differ(
            seed: [u64; 2], vnic: u16, vlan: u16, protocol: u8,
            src: u32, dst: u32, ports: [u16; 2],
        ) {
            let key = FlowKey::of_ipv4((VnicId(vnic), vlan, protocol), (src, dst), ports.into());
            let addresses = u64::from(src) << 32 | u64::from(dst);
            let [head, .., ports] = *key.words();
            prop_assert_eq!(
                hash(&HashSeed::from_words(seed[0], seed[1]), &key),
                oracle(seed, &[head, addresses, ports])
            );
        }
    }

    fn oracle(seed: [u64; 2], words: &[u64]) -> u64 {
        let mut oracle = SipHasher13::new_with_keys(seed[0], seed[1]);
        for word in words {
            oracle.write(&word.to_le_bytes());
        }
        oracle.finish()
    }

    #[test]
    fn a_burst_of_any_length_has_the_hashes_of_its_keys() {
        let seed = HashSeed::from_words(3, 4);
        for keys in mixtures() {
            for length in 0..=64 {
                let mut hashes = [0; 64];
                hash_burst(&seed, &keys[..length], &mut hashes[..length]);
                for (key, found) in keys[..length].iter().zip(hashes) {
                    assert_eq!(found, hash(&seed, key));
                }
            }
        }
    }

    /// 64 keys of IPv4, of IPv6, of both by turns, and in rows of eleven.
    pub(super) fn mixtures() -> [Vec<FlowKey>; 4] {
        let forms: [fn(u64) -> bool; 4] =
            [|_| true, |_| false, |n| n % 2 == 0, |n| n / 11 % 2 == 0];
        forms.map(|is_ipv4| (1..=64).map(|n| key(n, is_ipv4(n))).collect())
    }

    fn key(number: u64, is_ipv4: bool) -> FlowKey {
        let word = |at: u64| (number * 8 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if is_ipv4 {
            let end = |at| (word(at) >> 32) as u32;
            FlowKey::of_ipv4(
                (VnicId(number as u16), 0, 17),
                (end(0), end(1)),
                (9, end(2) as u16),
            )
        } else {
            let bytes = |at| (u128::from(word(at)) << 64 | u128::from(word(at + 1))).to_be_bytes();
            FlowKey::from_parts(VnicId(3), 7, 6, 6, &bytes(0), &bytes(2), 80, number as u16)
        }
    }

    #[test]
    fn two_random_seeds_differ_and_do_not_show_themselves() {
        let (a, b) = (HashSeed::random(), HashSeed::random());
        let key = FlowKey::default();
        assert_ne!(hash(&a, &key), hash(&b, &key));
        assert_eq!(format!("{a:?}"), "HashSeed(secret)");
    }
}
