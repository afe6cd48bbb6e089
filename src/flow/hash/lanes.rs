//! [`super::hash`] of several keys side by side, one in each lane of a vector.
//!
//! *Promises*: the same hashes. *Refuses*: nothing. *Caller's duty*: each function needs the
//! processor feature it is named after. *Standard*: that of [`super::hash`].
//!
//! Written with the processor's own instructions, since the compiler makes worse than nothing of
//! plain arrays: 246 instructions for six words where AVX2 needs 75, and one key at a time 160.

use std::arch::x86_64::*;

use super::{HashSeed, NARROW_END, WIDE_END};
use crate::packet::FlowKey;

/// The two halves of a key's words `2 * pair` and `2 * pair + 1`.
#[inline(always)]
fn load(key: &FlowKey, pair: usize) -> __m128i {
    let (words, _) = key.words().as_chunks::<2>();
    // SAFETY: sixteen bytes that a reference leads to; SSE2, which reads them wherever they lie,
    // is part of x86_64.
    unsafe { _mm_loadu_si128(words[pair].as_ptr().cast()) }
}

/// The hash in terms of a vector type and its operations, which stand beside the call.
macro_rules! siphash {
    ($feature:literal) => {
        /// The hashes of `keys`; `out` is as long. The last vector is filled up with its first key.
        #[target_feature(enable = $feature)]
        pub(in crate::flow::hash) fn hash_all(seed: &HashSeed, keys: &[FlowKey], out: &mut [u64]) {
            let start = [
                every(seed.k0 ^ 0x736f_6d65_7073_6575),
                every(seed.k1 ^ 0x646f_7261_6e64_6f6d),
                every(seed.k0 ^ 0x6c79_6765_6e65_7261),
                every(seed.k1 ^ 0x7465_6462_7974_6573),
            ];
            let (groups, last) = keys.as_chunks();
            let (outs, out_last) = out.as_chunks_mut();
            for (keys, out) in groups.iter().zip(outs) {
                *out = hash_group(start, keys);
            }
            if let [first, ..] = last {
                let mut keys = [*first; LANES];
                keys[..last.len()].copy_from_slice(last);
                let hashes = hash_group(start, &keys);
                out_last.copy_from_slice(&hashes[..last.len()]);
            }
        }

        #[target_feature(enable = $feature)]
        #[inline]
        fn hash_group(mut v: [Vector; 4], keys: &[FlowKey; LANES]) -> [u64; LANES] {
            let (a, b) = words(keys, 0);
            let (c, d) = words(keys, 1);
            let (e, f) = words(keys, 2);
            compress(&mut v, a);
            let narrow = || rest(v, [xor(b, high_half(d)), f, every(NARROW_END)]);
            let wide = || rest(v, [b, c, d, e, f, every(WIDE_END)]);
            let are_ipv4 = equal(and(a, every(0xff)), every(4));
            numbers(match count(are_ipv4) {
                LANES => narrow(),
                0 => wide(),
                _ => choose(are_ipv4, narrow(), wide()),
            })
        }

        /// From the state after the first word to the hashes.
        #[target_feature(enable = $feature)]
        #[inline]
        fn rest<const WORDS: usize>(mut v: [Vector; 4], words: [Vector; WORDS]) -> Vector {
            for word in words {
                compress(&mut v, word);
            }
            v[2] = xor(v[2], every(0xff));
            for _ in 0..3 {
                round(&mut v);
            }
            xor(xor(v[0], v[1]), xor(v[2], v[3]))
        }

        #[target_feature(enable = $feature)]
        #[inline]
        fn compress(v: &mut [Vector; 4], word: Vector) {
            v[3] = xor(v[3], word);
            round(v);
            v[0] = xor(v[0], word);
        }

        #[target_feature(enable = $feature)]
        #[inline]
        fn round(v: &mut [Vector; 4]) {
            let [mut v0, mut v1, mut v2, mut v3] = *v;
            v0 = add(v0, v1);
            v2 = add(v2, v3);
            v1 = xor(rotate_left::<13, 51>(v1), v0);
            v3 = xor(rotate_left::<16, 48>(v3), v2);
            v0 = rotate_left::<32, 32>(v0);
            v2 = add(v2, v1);
            v0 = add(v0, v3);
            v1 = xor(rotate_left::<17, 47>(v1), v2);
            v3 = xor(rotate_left::<21, 43>(v3), v0);
            v2 = rotate_left::<32, 32>(v2);
            *v = [v0, v1, v2, v3];
        }
    };
}

/// Eight keys in a vector.
pub(super) mod avx512 {
    use super::*;

    type Vector = __m512i;
    const LANES: usize = 8;
    type Mask = __mmask8;

    siphash!("avx512f");

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn equal(a: Vector, b: Vector) -> Mask {
        _mm512_cmpeq_epi64_mask(a, b)
    }

    /// How many lanes `mask` names.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn count(mask: Mask) -> usize {
        mask.count_ones() as usize
    }

    /// `yes` in the lanes that `mask` names, `no` in the others.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn choose(mask: Mask, yes: Vector, no: Vector) -> Vector {
        _mm512_mask_blend_epi64(mask, no, yes)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn and(a: Vector, b: Vector) -> Vector {
        _mm512_and_si512(a, b)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn high_half(a: Vector) -> Vector {
        _mm512_srli_epi64::<32>(a)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn every(number: u64) -> Vector {
        _mm512_set1_epi64(number as i64)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add(a: Vector, b: Vector) -> Vector {
        _mm512_add_epi64(a, b)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn xor(a: Vector, b: Vector) -> Vector {
        _mm512_xor_si512(a, b)
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn rotate_left<const LEFT: i32, const RIGHT: i32>(a: Vector) -> Vector {
        _mm512_rol_epi64::<LEFT>(a)
    }

    /// A word of all keys, and the next word.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn words(keys: &[FlowKey; LANES], pair: usize) -> (Vector, Vector) {
        let every_other = |first: usize| {
            let four = _mm512_castsi128_si512(load(&keys[first], pair));
            let four = _mm512_inserti32x4::<1>(four, load(&keys[first + 2], pair));
            let four = _mm512_inserti32x4::<2>(four, load(&keys[first + 4], pair));
            _mm512_inserti32x4::<3>(four, load(&keys[first + 6], pair))
        };
        let (even, odd) = (every_other(0), every_other(1));
        (
            _mm512_unpacklo_epi64(even, odd),
            _mm512_unpackhi_epi64(even, odd),
        )
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn numbers(vector: Vector) -> [u64; LANES] {
        let mut numbers = [0; LANES];
        // SAFETY: the array has the vector's 64 bytes, and need not be aligned.
        unsafe { _mm512_storeu_si512(numbers.as_mut_ptr().cast(), vector) };
        numbers
    }
}

/// Four keys in a vector.
pub(super) mod avx2 {
    use super::*;

    type Vector = __m256i;
    const LANES: usize = 4;
    type Mask = __m256i;

    siphash!("avx2");

    #[target_feature(enable = "avx2")]
    #[inline]
    fn equal(a: Vector, b: Vector) -> Mask {
        _mm256_cmpeq_epi64(a, b)
    }

    /// How many lanes `mask` names.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn count(mask: Mask) -> usize {
        _mm256_movemask_pd(_mm256_castsi256_pd(mask)).count_ones() as usize
    }

    /// `yes` in the lanes that `mask` names, `no` in the others.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn choose(mask: Mask, yes: Vector, no: Vector) -> Vector {
        _mm256_blendv_epi8(no, yes, mask)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn and(a: Vector, b: Vector) -> Vector {
        _mm256_and_si256(a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn high_half(a: Vector) -> Vector {
        _mm256_srli_epi64::<32>(a)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn every(number: u64) -> Vector {
        _mm256_set1_epi64x(number as i64)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(a: Vector, b: Vector) -> Vector {
        _mm256_add_epi64(a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn xor(a: Vector, b: Vector) -> Vector {
        _mm256_xor_si256(a, b)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn rotate_left<const LEFT: i32, const RIGHT: i32>(a: Vector) -> Vector {
        if LEFT == 32 {
            return _mm256_shuffle_epi32::<0b10_11_00_01>(a);
        }
        _mm256_or_si256(_mm256_slli_epi64::<LEFT>(a), _mm256_srli_epi64::<RIGHT>(a))
    }

    /// A word of all keys, and the next word.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn words(keys: &[FlowKey; LANES], pair: usize) -> (Vector, Vector) {
        let every_other = |first: usize| {
            let two = _mm256_castsi128_si256(load(&keys[first], pair));
            _mm256_inserti128_si256::<1>(two, load(&keys[first + 2], pair))
        };
        let (even, odd) = (every_other(0), every_other(1));
        (
            _mm256_unpacklo_epi64(even, odd),
            _mm256_unpackhi_epi64(even, odd),
        )
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn numbers(vector: Vector) -> [u64; LANES] {
        let mut numbers = [0; LANES];
        // SAFETY: the array has the vector's 32 bytes, and need not be aligned.
        unsafe { _mm256_storeu_si256(numbers.as_mut_ptr().cast(), vector) };
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash;
    use super::super::tests::mixtures;
    use super::*;

    type HashAll = unsafe fn(&HashSeed, &[FlowKey], &mut [u64]);

    #[test]
    fn every_lane_has_the_hash_of_its_key_at_any_length() {
        let seed = HashSeed::from_words(3, 4);
        let forms: [(bool, HashAll); 2] = [
            (is_x86_feature_detected!("avx512f"), avx512::hash_all),
            (is_x86_feature_detected!("avx2"), avx2::hash_all),
        ];
        for (_, hash_all) in forms.into_iter().filter(|(can, _)| *can) {
            for keys in mixtures() {
                for length in 0..=64 {
                    let mut hashes = vec![0; length];
                    // SAFETY: the processor has the feature, as was just asked.
                    unsafe { hash_all(&seed, &keys[..length], &mut hashes) };
                    let plain: Vec<_> = keys[..length].iter().map(|key| hash(&seed, key)).collect();
                    assert_eq!(hashes, plain);
                }
            }
        }
    }
}
