//! What frames meet whose keys meet the same shields, for all TCP flags at once.
//!
//! *Promises*: an answer that is kept does not change and is not lost while its set lives. Lanes
//! neither wait for nor disturb each other; of an answer that another lane is just writing nothing
//! is seen.
//! *Refuses*: more different answers than there is room for; octets beyond the first [`CLASSES`]
//! kinds of a set.
//! *Caller's duty*: none. *Standard*: none.
//!
//! Shields wait for few flags, so most of the 256 octets are alike to all shields of a set: where
//! they wait for SYN without ACK, there are two classes. Segments that have ACK and segments that
//! have PSH besides are mostly of one class, and where they are not, each has its place in the
//! answer. Flows are many and different answers few, since most flows meet the same shields.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::Flags;
use crate::sync::{AtomicU16, Ordering};

/// How many classes of octets are told apart: as many as make an answer a cache line. The octets
/// without URG, ECE and CWR are 32, and come first.
pub(super) const CLASSES: usize = if cfg!(shunt_loom) { 2 } else { 31 };

/// By class of octets, the number of the shield that rules.
pub(super) type Answer = [u16; CLASSES];

/// Which octets of TCP flags are alike to all shields of a set.
#[derive(Debug)]
pub(super) struct Classes {
    /// By octet: its class.
    of: [u8; 256],
    /// The first octet of each class.
    firsts: Vec<u8>,
}

impl Classes {
    /// The classes of shields that wait for these.
    pub(super) fn new(awaited: impl Iterator<Item = Flags>) -> Self {
        let mut of = [0u8; 256];
        for flags in awaited.collect::<HashSet<_>>() {
            // Each class falls into those that have these flags and those that do not; the first
            // octet has the lowest number, the first one that differs the next.
            let mut numbers = [[None; 2]; 256];
            let mut next = 0u8;
            for octet in 0..=u8::MAX {
                let class = &mut of[usize::from(octet)];
                let part = &mut numbers[usize::from(*class)][usize::from(flags.are_of(octet))];
                *class = *part.get_or_insert_with(|| {
                    let own = next;
                    next = next.wrapping_add(1);
                    own
                });
            }
        }
        let mut firsts = Vec::new();
        for octet in 0..=u8::MAX {
            if usize::from(of[usize::from(octet)]) == firsts.len() && firsts.len() < CLASSES {
                firsts.push(octet);
            }
        }
        Self { of, firsts }
    }

    /// The class of an octet; from [`CLASSES`] on there is no answer for it.
    #[inline(always)]
    pub(super) fn of(&self, octet: u8) -> usize {
        self.of[usize::from(octet)].into()
    }

    /// Notes in an answer that a shield that waits for `flags` matches but for them.
    pub(super) fn add(&self, flags: Flags, number: u16, answer: &mut Answer) {
        for (own, octet) in answer.iter_mut().zip(&self.firsts) {
            if flags.are_of(*octet) {
                *own = number.min(*own);
            }
        }
    }
}

/// Nothing is written there.
const FREE: u16 = 0;
/// A lane is writing.
const TAKEN: u16 = 1;
/// An answer, for good.
const WRITTEN: u16 = 2;

/// A place for an answer.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place {
    state: AtomicU16,
    answer: [AtomicU16; CLASSES],
}

impl Place {
    fn is_written(&self) -> bool {
        self.state.load(Ordering::Acquire) == WRITTEN
    }

    fn holds(&self, answer: &Answer) -> bool {
        let mut both = self.answer.iter().zip(answer);
        self.is_written() && both.all(|(kept, own)| kept.load(Ordering::Relaxed) == *own)
    }

    /// Writes an answer, if nobody was first.
    fn take(&self, answer: &Answer) -> bool {
        let (free, relaxed) = (FREE, Ordering::Relaxed);
        let is_ours = (self.state)
            .compare_exchange(free, TAKEN, relaxed, relaxed)
            .is_ok();
        if is_ours {
            for (place, own) in self.answer.iter().zip(answer) {
                place.store(*own, relaxed);
            }
            self.state.store(WRITTEN, Ordering::Release);
        }
        is_ours
    }
}

/// The answers of a set.
#[derive(Debug)]
pub(super) struct Answers {
    /// A power of two of them, or none.
    places: Box<[Place]>,
}

impl Answers {
    /// Places that are looked at before an answer is given up.
    const TRIES: usize = 16;
    const ROOM: std::ops::RangeInclusive<usize> = 256..=8192;

    /// Room for the answers of a set of which so many shields wait for flags.
    pub(super) fn new(waiting: usize) -> Self {
        // Of how many kinds flows are is not known before they come. Some for each shield are
        // enough where each flow meets few of them.
        let room = (4 * waiting).next_power_of_two();
        let room = room.clamp(*Self::ROOM.start(), *Self::ROOM.end());
        Self::with_room(if waiting == 0 { 0 } else { room })
    }

    fn with_room(room: usize) -> Self {
        Self {
            places: (0..room).map(|_| Place::default()).collect(),
        }
    }

    /// Where an answer is kept; none if there is no room.
    pub(super) fn keep(&self, answer: &Answer) -> Option<u16> {
        let mut hasher = DefaultHasher::new();
        answer.hash(&mut hasher);
        let first = hasher.finish() as usize;
        let tries = 0..Self::TRIES.min(self.places.len());
        let mut places = tries.map(|step| first.wrapping_add(step) & (self.places.len() - 1));
        // One that another lane is writing is passed by: if it is the same, it is there twice.
        let kept = places.find(|place| {
            let place = &self.places[*place];
            place.holds(answer) || place.take(answer)
        });
        kept.map(|place| place as u16)
    }

    /// What is kept at a place for a class of octets. None: nothing for that class, or what was
    /// written there is not to be seen yet.
    #[inline(always)]
    pub(super) fn get(&self, place: u16, class: usize) -> Option<u16> {
        let place = self.places.get(usize::from(place))?;
        let own = place.answer.get(class)?;
        place.is_written().then(|| own.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[cfg(not(shunt_loom))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against what each of the shields says of each of the octets.
        #[test]
        fn octets_are_of_one_class_if_all_shields_take_them_for_the_same(
            all in prop::collection::vec((any::<u8>(), any::<u8>()), 0..12),
        ) {
            let all: Vec<Flags> = all
                .into_iter()
                .map(|(value, mask)| Flags { value: value & mask, mask })
                .collect();
            let classes = Classes::new(all.iter().copied());
            let says = |octet: u8| -> Vec<bool> {
                all.iter().map(|flags| octet & flags.mask == flags.value).collect()
            };
            let mut known: HashMap<Vec<bool>, usize> = HashMap::new();
            for octet in 0..=u8::MAX {
                // Numbered in the order of their first octets.
                let next = known.len();
                let class = *known.entry(says(octet)).or_insert(next);
                prop_assert_eq!(classes.of(octet), class);
            }
            prop_assert_eq!(classes.firsts.len(), known.len().min(CLASSES));
        }
    }

    #[test]
    fn what_is_kept_stays_where_it_is_and_no_more_is_kept_than_there_is_room() {
        let answers = Answers::with_room(64);
        let of = |number: u16| -> Answer { std::array::from_fn(|class| number + class as u16) };
        let places: Vec<_> = (0..1000).map(|number| answers.keep(&of(number))).collect();
        let kept = places.iter().flatten().count();
        assert!((32..=64).contains(&kept), "{kept}");
        for (number, place) in (0..).zip(places) {
            let again = answers.keep(&of(number));
            assert_eq!(again, place, "{number}");
            let Some(place) = place else { continue };
            for class in 0..CLASSES {
                assert_eq!(answers.get(place, class), Some(number + class as u16));
            }
            assert_eq!(answers.get(place, CLASSES), None);
        }
        let none = Answers::new(0);
        assert_eq!((none.keep(&of(0)), none.get(0, 0)), (None, None));
    }
}

#[cfg(test)]
#[cfg(shunt_loom)]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    /// Two lanes keep an answer each, the same or another, and a third reads at every moment what
    /// the flows' cells may lead it to: a whole answer or none.
    #[test]
    fn model_an_answer_is_seen_whole_or_not_at_all() {
        for other in [7, 8] {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = Some(2);
            builder.max_branches = 100_000;
            builder.check(move || {
                let answers = Arc::new(Answers::with_room(2));
                let lanes = [7, other].map(|number| {
                    let answers = answers.clone();
                    thread::spawn(move || (number, answers.keep(&[number; CLASSES])))
                });
                let last = CLASSES - 1;
                let reader = answers.clone();
                let reader = thread::spawn(move || {
                    for place in 0..2 {
                        // The cell's order is none, so a place may be looked at before it is told of.
                        let seen = [reader.get(place, last), reader.get(place, 0)];
                        assert!(seen.iter().flatten().all(|own| [7, other].contains(own)));
                        assert!(seen[0].is_none() || seen[0] == seen[1], "{seen:?}");
                    }
                });
                reader.join().unwrap();
                for lane in lanes {
                    let (number, place) = lane.join().unwrap();
                    let place = place.expect("room for both");
                    assert_eq!(answers.get(place, last), Some(number));
                }
            });
        }
    }
}
