//! An index from hashes to slots: cache lines of eight entries.
//!
//! *Promises*: readers run beside the one writer and never wait. An entry never moves,
//! and [`Buckets::swap`] is one store, so a reader finds the old slot or the new one,
//! never neither. A lookup ends at the first bucket that nobody had to pass.
//! *Refuses*: nothing: the table above keeps the count below the places.
//! *Caller's duty*: one thread at a time calls the methods marked as the writer's;
//! entries are at most the number given to [`Buckets::new`] and one more; a slot is
//! complete before it is inserted.
//! *Standard*: none. The overflow count is the idea of Facebook's F14 maps.
//!
//! A bucket holds twelve 8-bit tags (0: empty place), twelve words of which each is a slot number
//! and 8 more bits of the hash, and the count of entries that passed it because it was full.
//! Buckets follow one another cyclically: the next one is the next cache line, which the processor
//! fetches by itself.
//!
//! Size: one bucket for 9 entries, that is 75 % load and 7.1 bytes an entry; the number of buckets
//! need not be a power of two, which would cost up to twice that. Longest probe: at full load 7 to
//! 9 buckets in a table of 128 Ki flows (a test holds it to 12), 1.04 on average.

use super::arena::{Arena, Vacant, arena};
use super::prefetch::prefetch;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Entries a bucket has room for.
const PLACES: usize = 12;
/// Tags in the first word of them; the second has the rest.
const LANES: usize = 8;
/// Entries for which there is one bucket.
const LOAD: u64 = 9;
/// Bits of a word that are the slot number.
const SLOT_BITS: u32 = 24;

/// How many slots an index can name.
pub(super) const SLOTS_MAX: u32 = 1 << SLOT_BITS;
/// In place of a slot number: there is none.
pub(super) const NO_SLOT: u32 = u32::MAX;
/// In place of a slot number: only a longer look can tell.
pub(super) const ASK: u32 = u32::MAX - 1;

#[repr(C, align(64))]
struct Bucket {
    tags: AtomicU64,
    more_tags: AtomicU32,
    /// Entries in later buckets that would be here if there had been room.
    overflow: AtomicU32,
    words: [AtomicU32; PLACES],
}

#[cfg(not(shunt_loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

// SAFETY: atomics, of which zeros are values, and nothing to drop.
unsafe impl Vacant for Bucket {
    #[cfg(shunt_loom)]
    fn vacant() -> Self {
        Self {
            tags: AtomicU64::new(0),
            more_tags: AtomicU32::new(0),
            overflow: AtomicU32::new(0),
            words: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }
}

impl Bucket {
    /// The places with this tag.
    #[inline(always)]
    fn with_tag(&self, tag: u8) -> Places {
        let more = self.more_tags.load(Ordering::Acquire);
        let first = self.tags.load(Ordering::Acquire);
        Places(equal_lanes(first, more, tag))
    }

    /// The slot with the bits of `hash`; without one [`ASK`] if entries have passed, else
    /// [`NO_SLOT`].
    #[inline(always)]
    fn lead(&self, hash: u64) -> u32 {
        let passed = self.overflow.load(Ordering::Relaxed) != 0;
        self.with_tag(tag_of(hash))
            .find_map(|place| slot_of(self.words[place].load(Ordering::Acquire), hash))
            .unwrap_or(if passed { ASK } else { NO_SLOT })
    }

    /// What the first place with the tag of `hash` says, without a branch: a slot, [`NO_SLOT`], or
    /// [`ASK`] if there is more to look at.
    #[inline(always)]
    fn glance(&self, hash: u64) -> u32 {
        let places = self.with_tag(tag_of(hash));
        let passed = self.overflow.load(Ordering::Relaxed);
        // Some place, if there is none.
        let place = (places.0 | 1 << (PLACES - 1)).trailing_zeros();
        let word = self.words[place as usize].load(Ordering::Acquire);
        let slot = word ^ mark_of(hash);
        let none = if places.0 | passed == 0 { NO_SLOT } else { ASK };
        // What is in a place without a tag is nobody's.
        if places.0 != 0 && slot < SLOTS_MAX {
            slot
        } else {
            none
        }
    }

    /// The writer's: the place of an entry.
    fn place_of(&self, hash: u64, slot: u32) -> Option<usize> {
        let word = word_of(hash, slot);
        self.with_tag(tag_of(hash))
            .find(|&place| self.words[place].load(Ordering::Relaxed) == word)
    }

    /// The writer's: publishes `tag` in `place`, or empties it with tag 0.
    fn set_tag(&self, place: usize, tag: u8) {
        if place < LANES {
            let shift = 8 * place;
            let others = self.tags.load(Ordering::Relaxed) & !(0xff << shift);
            self.tags
                .store(others | u64::from(tag) << shift, Ordering::Release);
        } else {
            let shift = 8 * (place - LANES);
            let others = self.more_tags.load(Ordering::Relaxed) & !(0xff << shift);
            self.more_tags
                .store(others | u32::from(tag) << shift, Ordering::Release);
        }
    }
}

/// Places, a bit each; iterates over them.
struct Places(u32);

impl Iterator for Places {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let place = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(place)
    }
}

/// A bit for each of the twelve lanes that equals `tag`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn equal_lanes(first: u64, more: u32, tag: u8) -> u32 {
    use std::arch::x86_64::*;
    // SAFETY: SSE2, which has all four, is part of x86_64; none of them touches memory.
    let equal = unsafe {
        let lanes = _mm_set_epi64x(i64::from(more), first as i64);
        _mm_movemask_epi8(_mm_cmpeq_epi8(lanes, _mm_set1_epi8(tag as i8)))
    };
    // What is above the last four tags is no place.
    equal as u32 & ((1 << PLACES) - 1)
}

/// A bit for each of the twelve lanes that equals `tag`.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn equal_lanes(first: u64, more: u32, tag: u8) -> u32 {
    let lanes = first.to_le_bytes().into_iter().chain(more.to_le_bytes());
    let bits = lanes
        .zip(0..)
        .map(|(lane, bit)| u32::from(lane == tag) << bit);
    bits.fold(0, |all, bit| all | bit)
}

/// The tag of a hash: its highest bits, never 0.
#[inline(always)]
fn tag_of(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

/// The hash's next bits, as high as they are in a word.
#[inline(always)]
fn mark_of(hash: u64) -> u32 {
    (hash >> 24) as u32 & !(SLOTS_MAX - 1)
}

/// What an entry's word is.
#[inline(always)]
fn word_of(hash: u64, slot: u32) -> u32 {
    mark_of(hash) | slot
}

/// The slot that a word names, if it has the hash's bits.
#[inline(always)]
fn slot_of(word: u32, hash: u64) -> Option<u32> {
    let slot = word ^ mark_of(hash);
    (slot < SLOTS_MAX).then_some(slot)
}

/// See the module.
pub(super) struct Buckets {
    buckets: Arena<Bucket>,
}

impl Buckets {
    /// An empty index for so many entries.
    pub(super) fn new(entries_max: u32) -> Self {
        Self {
            buckets: arena(Self::count(entries_max) as usize),
        }
    }

    /// Buckets for so many entries; always more places than entries.
    const fn count(entries_max: u32) -> u64 {
        entries_max as u64 / LOAD + 1
    }

    /// Bytes for so many entries.
    pub(super) const fn memory_bytes(entries_max: u32) -> u64 {
        Self::count(entries_max) * size_of::<Bucket>() as u64
    }

    /// Where the search for a hash starts: its low half, scaled to the count.
    #[inline(always)]
    pub(super) fn home(&self, hash: u64) -> usize {
        (((hash & 0xffff_ffff) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() {
            0
        } else {
            at + 1
        }
    }

    /// Fetches a bucket.
    #[inline(always)]
    pub(super) fn prefetch(&self, at: usize) {
        prefetch(self.buckets.as_ptr().wrapping_add(at));
    }

    /// Fetches the bucket after that.
    #[inline(always)]
    pub(super) fn prefetch_after(&self, at: usize) {
        self.prefetch(self.after(at));
    }

    /// What the first bucket of `hash`, which is at `home`, says at a glance: a slot, [`NO_SLOT`],
    /// or [`ASK`] if only [`Buckets::lead`] can tell. It takes no branch on what it reads.
    #[inline(always)]
    pub(super) fn glance(&self, home: usize, hash: u64) -> u32 {
        self.buckets[home].glance(hash)
    }

    /// What the first two buckets of `hash` say: a slot, [`NO_SLOT`], or [`ASK`] if only
    /// [`Buckets::find`] can tell.
    #[inline(always)]
    pub(super) fn lead(&self, home: usize, hash: u64) -> u32 {
        match self.buckets[home].lead(hash) {
            ASK => self.buckets[self.after(home)].lead(hash),
            answer => answer,
        }
    }

    /// The first answer `check` gives for a slot with the bits of `hash`.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, check: impl Fn(u32) -> Option<T>) -> Option<T> {
        let tag = tag_of(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            for place in bucket.with_tag(tag) {
                // Acquire: the slot may be newer than the tag was.
                let word = bucket.words[place].load(Ordering::Acquire);
                let found = slot_of(word, hash).and_then(&check);
                if found.is_some() {
                    return found;
                }
            }
            if bucket.overflow.load(Ordering::Relaxed) == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// The writer's: publishes `slot` under `hash`.
    pub(super) fn insert(&self, hash: u64, slot: u32) {
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            if let Some(place) = bucket.with_tag(0).next() {
                bucket.words[place].store(word_of(hash, slot), Ordering::Release);
                bucket.set_tag(place, tag_of(hash));
                return;
            }
            // Raised before the tag is there, so that who knows of the entry passes.
            let passed = bucket.overflow.load(Ordering::Relaxed);
            bucket.overflow.store(passed + 1, Ordering::Release);
            at = self.after(at);
        }
        debug_assert!(false, "more entries than the index was made for");
    }

    /// The writer's: what led to `old` leads to `new`, from one moment to the next.
    pub(super) fn swap(&self, hash: u64, old: u32, new: u32) {
        if let Some((at, place)) = self.locate(hash, old) {
            self.buckets[at].words[place].store(word_of(hash, new), Ordering::Release);
        }
    }

    /// The writer's: takes the entry of `slot` out.
    pub(super) fn remove(&self, hash: u64, slot: u32) {
        let Some((found, place)) = self.locate(hash, slot) else {
            return;
        };
        self.buckets[found].set_tag(place, 0);
        let mut at = self.home(hash);
        while at != found {
            let overflow = &self.buckets[at].overflow;
            let passed = overflow.load(Ordering::Relaxed);
            overflow.store(passed - 1, Ordering::Release);
            at = self.after(at);
        }
    }

    fn locate(&self, hash: u64, slot: u32) -> Option<(usize, usize)> {
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            if let Some(place) = bucket.place_of(hash, slot) {
                return Some((at, place));
            }
            if bucket.overflow.load(Ordering::Relaxed) == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }
}

#[cfg(test)]
#[cfg(not(shunt_loom))]
impl Buckets {
    /// Buckets looked at until `slot` is found.
    pub(super) fn probe_length(&self, hash: u64, slot: u32) -> usize {
        let (found, _) = self.locate(hash, slot).expect("present");
        let count = self.buckets.len();
        (found + count - self.home(hash)) % count + 1
    }
}

#[cfg(test)]
#[cfg(not(shunt_loom))]
mod tests {
    use super::*;

    /// A well-mixed number for each small one (the finaliser of MurmurHash3).
    fn mixed(mut x: u64) -> u64 {
        x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ x >> 33
    }

    #[test]
    fn tags_are_found_where_all_eight_bits_are_equal() {
        let tags = [0u8, 1, 2, 0x7f, 0x80, 0x81, 0xfe, 0xff, 0, 1, 0x80, 0x81];
        for turn in 0..tags.len() {
            let mut lanes = tags;
            lanes.rotate_left(turn);
            let bucket = Bucket {
                tags: AtomicU64::new(u64::from_le_bytes(*lanes.first_chunk().unwrap())),
                more_tags: AtomicU32::new(u32::from_le_bytes(*lanes.last_chunk().unwrap())),
                overflow: AtomicU32::new(0),
                words: std::array::from_fn(|_| AtomicU32::new(0)),
            };
            for tag in tags {
                let places: Vec<_> = bucket.with_tag(tag).collect();
                let plain: Vec<_> = (0..PLACES).filter(|&i| lanes[i] == tag).collect();
                assert_eq!(places, plain, "{lanes:x?} {tag:#x}");
            }
        }
    }

    #[test]
    fn a_word_gives_its_slot_to_its_hash_only() {
        let hash = 0x1234_5678_9abc_def0;
        for slot in [0, 1, SLOTS_MAX - 1] {
            let word = word_of(hash, slot);
            assert_eq!(slot_of(word, hash), Some(slot));
            assert_eq!(slot_of(word, hash ^ 1 << 48), None);
            assert_eq!(slot_of(word, hash ^ 1 << 55), None);
        }
    }

    #[test]
    fn a_glance_and_a_lead_say_what_the_whole_search_says_or_ask() {
        const ENTRIES: u32 = 4096;
        let index = Buckets::new(ENTRIES);
        for slot in 0..ENTRIES {
            index.insert(mixed(slot.into()), slot);
        }
        let mut asked = [0; 2];
        for number in 0..2 * ENTRIES {
            let hash = mixed(number.into());
            let found = index.find(hash, Some).unwrap_or(NO_SLOT);
            let home = index.home(hash);
            let answers = [index.glance(home, hash), index.lead(home, hash)];
            for (answer, asked) in answers.into_iter().zip(&mut asked) {
                *asked += u32::from(answer == ASK);
                assert!(answer == ASK || answer == found, "{answer} for {found}");
            }
        }
        let [glances, leads] = asked;
        assert!(leads < glances && glances < ENTRIES / 2, "{asked:?}");
    }

    #[test]
    fn entries_that_share_a_home_are_all_found_and_removal_restores_the_short_way() {
        let index = Buckets::new(48);
        assert!(index.buckets.len() >= 5);
        for slot in 0..30 {
            index.insert(0, slot);
        }
        for slot in 0..30 {
            assert_eq!(index.find(0, |s| (s == slot).then_some(s)), Some(slot));
        }
        for slot in 0..30 {
            index.remove(0, slot);
            assert_eq!(index.find(0, |s| (s == slot).then_some(s)), None);
        }
        for bucket in index.buckets.iter() {
            assert_eq!(bucket.overflow.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn probing_wraps_round_the_end() {
        let index = Buckets::new(18);
        let last = u64::from(u32::MAX);
        for slot in 0..14 {
            index.insert(last, slot);
        }
        assert_eq!(index.find(last, |s| (s == 13).then_some(s)), Some(13));
        assert_eq!(index.locate(last, 13).map(|(at, _)| at), Some(0));
    }

    #[test]
    fn the_longest_probe_at_full_load_is_short() {
        const ENTRIES: u32 = 128 << 10;
        for round in 0..3u64 {
            let index = Buckets::new(ENTRIES);
            let hash = |slot: u32| mixed(u64::from(slot) | round << 40);
            for slot in 0..ENTRIES {
                index.insert(hash(slot), slot);
            }
            let lengths = (0..ENTRIES).map(|slot| index.probe_length(hash(slot), slot));
            let (sum, longest) = lengths.fold((0, 0), |(s, m), l| (s + l, m.max(l)));
            assert!(longest <= 12, "longest probe {longest}");
            assert!(sum < ENTRIES as usize * 11 / 10, "mean probe above 1.1");
        }
    }
}
