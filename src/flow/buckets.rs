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
//! A bucket holds eight 16-bit tags (0: empty place), eight slot numbers and the count
//! of entries that passed it because it was full. Buckets follow one another cyclically:
//! the next one is the next cache line, which the processor fetches by itself.
//!
//! Size: one bucket for 4.8 entries, that is 60 % load and 13.3 bytes an entry; the
//! number of buckets need not be a power of two, which would cost up to twice that.
//! Longest probe: at full load 5 to 7 buckets in tables of 128 Ki flows (a test holds
//! it to 10), 1.1 on average.

use super::prefetch::prefetch;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Entries a bucket has room for.
const PLACES: usize = 8;
/// Tags in one word.
const LANES: usize = 4;
/// A one in each lane.
const ONES: u64 = 0x0001_0001_0001_0001;
/// All but the highest bit of each lane.
const LOW_BITS: u64 = 0x7fff_7fff_7fff_7fff;

#[repr(C, align(64))]
struct Bucket {
    tags: [AtomicU64; PLACES / LANES],
    slots: [AtomicU32; PLACES],
    /// Entries in later buckets that would be here if there had been room.
    overflow: AtomicU32,
}

#[cfg(not(shunt_loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    fn new() -> Self {
        Self {
            tags: std::array::from_fn(|_| AtomicU64::new(0)),
            slots: std::array::from_fn(|_| AtomicU32::new(0)),
            overflow: AtomicU32::new(0),
        }
    }

    /// The places with this tag, as marks for [`Places`].
    #[inline(always)]
    fn with_tag(&self, half: usize, tag: u16) -> Places {
        Places {
            marks: equal_lanes(self.tags[half].load(Ordering::Acquire), tag),
            first: half * LANES,
        }
    }

    /// The writer's: the place that names `slot` under `tag`.
    fn place_of(&self, tag: u16, slot: u32) -> Option<usize> {
        (0..self.tags.len())
            .flat_map(|half| self.with_tag(half, tag))
            .find(|&place| self.slots[place].load(Ordering::Relaxed) == slot)
    }

    /// The writer's: publishes `tag` in `place`, or empties it with tag 0.
    fn set_tag(&self, place: usize, tag: u16) {
        let word = &self.tags[place / LANES];
        let shift = 16 * (place % LANES);
        let others = word.load(Ordering::Relaxed) & !(0xffff << shift);
        word.store(others | u64::from(tag) << shift, Ordering::Release);
    }
}

/// Iterates over marked places.
struct Places {
    marks: u64,
    first: usize,
}

impl Iterator for Places {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.marks == 0 {
            return None;
        }
        let lane = self.marks.trailing_zeros() as usize / 16;
        self.marks &= self.marks - 1;
        Some(self.first + lane)
    }
}

/// The highest bit of each lane of `word` that equals `tag`; exact, no false marks.
#[inline(always)]
fn equal_lanes(word: u64, tag: u16) -> u64 {
    let difference = word ^ (u64::from(tag) * ONES);
    let carried = (difference & LOW_BITS) + LOW_BITS;
    !(carried | difference | LOW_BITS)
}

/// The tag of a hash: its highest bits, never 0.
#[inline(always)]
fn tag_of(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}

/// See the module.
pub(super) struct Buckets {
    buckets: Box<[Bucket]>,
}

impl Buckets {
    /// An empty index for so many entries.
    pub(super) fn new(entries_max: u32) -> Self {
        Self {
            buckets: (0..Self::count(entries_max))
                .map(|_| Bucket::new())
                .collect(),
        }
    }

    /// Buckets for so many entries at 60 % load; always more places than entries.
    const fn count(entries_max: u32) -> u64 {
        entries_max as u64 * 10 / (6 * PLACES as u64) + 1
    }

    /// Heap bytes for so many entries.
    pub(super) const fn memory_bytes(entries_max: u32) -> u64 {
        Self::count(entries_max) * size_of::<Bucket>() as u64
    }

    /// Where the search for a hash starts: its low half, scaled to the count.
    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        ((hash & 0xffff_ffff) * self.buckets.len() as u64 >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() {
            0
        } else {
            at + 1
        }
    }

    /// Fetches the first bucket of `hash`.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&raw const self.buckets[self.home(hash)]);
    }

    /// A slot that `hash` probably leads to: a hint for prefetching.
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u64) -> Option<u32> {
        let bucket = &self.buckets[self.home(hash)];
        let tag = tag_of(hash);
        let place = bucket
            .with_tag(0, tag)
            .next()
            .or_else(|| bucket.with_tag(1, tag).next())?;
        Some(bucket.slots[place].load(Ordering::Relaxed))
    }

    /// The first answer `check` gives for a slot with the tag of `hash`.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, check: impl Fn(u32) -> Option<T>) -> Option<T> {
        let tag = tag_of(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            for half in 0..bucket.tags.len() {
                for place in bucket.with_tag(half, tag) {
                    // Acquire: the slot may be newer than the tag was.
                    let found = check(bucket.slots[place].load(Ordering::Acquire));
                    if found.is_some() {
                        return found;
                    }
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
            let free = (0..bucket.tags.len()).find_map(|half| bucket.with_tag(half, 0).next());
            if let Some(place) = free {
                bucket.slots[place].store(slot, Ordering::Release);
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
            self.buckets[at].slots[place].store(new, Ordering::Release);
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
            if let Some(place) = bucket.place_of(tag_of(hash), slot) {
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

#[cfg(all(test, not(shunt_loom)))]
mod tests {
    use super::*;

    /// A well-mixed number for each small one (the finaliser of MurmurHash3).
    fn mixed(mut x: u64) -> u64 {
        x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ x >> 33
    }

    /// Buckets looked at until `slot` is found.
    fn probe_length(index: &Buckets, hash: u64, slot: u32) -> usize {
        let (found, _) = index.locate(hash, slot).expect("present");
        let count = index.buckets.len();
        (found + count - index.home(hash)) % count + 1
    }

    #[test]
    fn lanes_are_equal_only_where_all_sixteen_bits_are() {
        let tags = [0u16, 1, 2, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff];
        for window in tags.windows(4) {
            let word = (0..4).fold(0, |word, i| word | u64::from(window[i]) << (16 * i));
            for tag in tags {
                let places: Vec<_> = Places {
                    marks: equal_lanes(word, tag),
                    first: 0,
                }
                .collect();
                let plain: Vec<_> = (0..4).filter(|&i| window[i] == tag).collect();
                assert_eq!(places, plain, "{word:#x} {tag:#x}");
            }
        }
    }

    #[test]
    fn entries_that_share_a_home_are_all_found_and_removal_restores_the_short_way() {
        let index = Buckets::new(48);
        assert!(index.buckets.len() >= 10);
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
        for bucket in &index.buckets {
            assert_eq!(bucket.overflow.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn probing_wraps_round_the_end() {
        let index = Buckets::new(9);
        let last = u64::from(u32::MAX);
        for slot in 0..10 {
            index.insert(last, slot);
        }
        assert_eq!(index.find(last, |s| (s == 9).then_some(s)), Some(9));
        assert_eq!(index.locate(last, 9).map(|(at, _)| at), Some(0));
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
            let lengths = (0..ENTRIES).map(|slot| probe_length(&index, hash(slot), slot));
            let (sum, longest) = lengths.fold((0, 0), |(s, m), l| (s + l, m.max(l)));
            println!("sum {sum} longest {longest}");
            assert!(longest <= 10, "longest probe {longest}");
            assert!(sum < ENTRIES as usize * 5 / 4, "mean probe above 1.25");
        }
    }
}
