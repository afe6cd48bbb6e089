//! All shields of an element, to be searched: a hash table for each different mask.
//!
//! *Promises*: it does not change, and is read by any number of lanes; a search looks into a
//! table only while that may hold a shield that goes before what was found. What is found for a
//! flow that is in the flow table is remembered, until the next set.
//! *Refuses*: nothing. *Caller's duty*: none. *Standard*: V. Srinivasan, S. Suri, G. Varghese,
//! "Packet Classification using Tuple Space Search", SIGCOMM 1999, ordered by priority as Open
//! vSwitch does.
//!
//! A mask takes in what can be said bit by bit: vNIC, family, protocol, prefixes, and ports where
//! they are one, or a range as long as a mask makes. Other ranges, and TCP flags, are compared one
//! by one for the shields that agree with a frame in all the rest.
//!
//! The memory is a cell of 64 bits for each slot of the flow table, read and written whole: the
//! slot's generation (32 bits), the set's (16), and what was found (16): the shield that rules
//! whatever the TCP flags are, or none; or, if one goes before it that waits for flags, where the
//! flow's [`Answers`] are kept, by class of flags. So once a flow has been searched for, none of
//! its frames is, whatever flags they have. Searched for each time are frames of classes beyond
//! the 31 that an answer has, and of flows for whose answer there was no room. Lanes that write a
//! cell at a time write what means the same.
//!
//! A stale cell is not believed. One of an earlier set has another generation; when the sets' come
//! round, after 65,536 changes, the book sets aside new cells ([`super::ShieldBook`]), so no two
//! sets write the same cell under the same generation, and a place in one set's answers is never
//! looked up in another's. One of an earlier flow has another generation of the slot: of these there
//! are 2³¹, so it would take that many flows in one slot, one after the other, none of which sends
//! a frame, while the shields stay the same: three hours at 200,000 sessions a second, if all of
//! them used that slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::answers::{Answer, Answers, CLASSES, Classes};
use super::{Action, Flags, Matches, Ports, Tally};
use crate::flow::{FlowRef, HashSeed, Moment};
use crate::packet::{FlowKey, VnicId};

/// Most shields of a set.
pub(super) const RULES_MAX: usize = 30_000;

/// In place of a shield's number: none.
const NONE: u16 = 0x7fff;
/// In a cell, beside a place: it depends on the TCP flags, and the place is that of the answer.
const DEPENDS: u16 = 0x8000;

/// A shield in its set: its place in the order in which they rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rank(u16);

impl Rank {
    fn of(number: u16) -> Option<Self> {
        (number < RULES_MAX as u16).then_some(Self(number))
    }

    /// The place, from 0.
    pub fn place(self) -> usize {
        self.0.into()
    }
}

/// What a shield decides for a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ruling {
    /// It goes on as if there were no shields.
    Pass,
    /// It goes to the guest.
    Punt,
    /// It is gone.
    Drop,
    /// It is gone: more than the rate.
    Exceeds,
}

/// A shield as it is put into a set.
pub(super) struct Rule {
    pub(super) vnic: Option<VnicId>,
    pub(super) matches: Matches,
    pub(super) action: Action,
    pub(super) tally: Arc<Tally>,
}

/// What is looked at of a shield once a table has led to it.
#[derive(Debug)]
struct Judge {
    tally: Arc<Tally>,
    source: Ports,
    destination: Ports,
    flags: Option<Flags>,
    needs_transport: bool,
    action: Action,
}

/// A place of a table: the shields that have this pattern.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Slot {
    value: [u64; 6],
    /// Where their numbers begin, and how many there are; 0: the place is free.
    start: u32,
    count: u32,
}

/// The shields of one mask.
#[derive(Debug)]
struct Table {
    mask: [u64; 6],
    /// The number of the first of them.
    first: u16,
    /// Whether there are some for frames without a key.
    is_network: bool,
    shift: u32,
    /// A power of two, half of them free at least.
    slots: Box<[Slot]>,
    /// Their numbers, slot by slot, in order.
    numbers: Box<[u16]>,
}

/// What flows are remembered to meet.
pub(super) type Memory = Arc<[AtomicU64]>;

/// An element's shields.
#[derive(Debug)]
pub struct ShieldSet {
    judges: Box<[Judge]>,
    /// By their first shields.
    tables: Box<[Table]>,
    classes: Classes,
    answers: Answers,
    seed: [u64; 4],
    generation: u16,
    memory: Memory,
}

impl ShieldSet {
    /// The set of `rules`, which come in the order in which they rule; at most [`RULES_MAX`].
    /// `memory` is cells that no other set of this `generation` has written.
    pub(super) fn new(rules: Vec<Rule>, generation: u16, memory: Memory) -> Self {
        let secret = HashSeed::random();
        let word =
            |number: u64| crate::flow::hash::hash(&secret, &FlowKey::from_words([number; 6]));
        let seed = [word(0), word(1), word(2), word(3)];
        let mut groups: Vec<(Vec<u16>, [u64; 6])> = Vec::new();
        let patterns: Vec<_> = rules
            .iter()
            .map(|rule| rule.matches.pattern(rule.vnic))
            .collect();
        for (number, pattern) in (0u16..).zip(&patterns) {
            match groups.iter_mut().find(|(_, mask)| *mask == pattern.mask) {
                Some((numbers, _)) => numbers.push(number),
                None => groups.push((vec![number], pattern.mask)),
            }
        }
        // Groups were opened in the order of their first shields.
        let tables = groups.into_iter().map(|(numbers, mask)| {
            let of = |number: &u16| &rules[usize::from(*number)].matches;
            let values = numbers
                .iter()
                .map(|number| (patterns[usize::from(*number)].value, *number));
            let mut table = Table::new(mask, values.collect(), &seed);
            table.is_network = numbers.iter().any(|number| !of(number).needs_transport());
            table
        });
        let tables = tables.collect();
        let awaited = || rules.iter().filter_map(|rule| rule.matches.flags);
        let classes = Classes::new(awaited());
        let answers = Answers::new(awaited().count());
        let judges = rules.into_iter().map(|rule| Judge {
            tally: rule.tally,
            source: rule.matches.source_ports,
            destination: rule.matches.destination_ports,
            flags: rule.matches.flags,
            needs_transport: rule.matches.needs_transport(),
            action: rule.action,
        });
        Self {
            judges: judges.collect(),
            tables,
            classes,
            answers,
            seed,
            generation,
            memory,
        }
    }

    /// The shield for a frame with a key; `flags` is a TCP segment's octet of flags.
    pub fn of_key(&self, key: &FlowKey, flags: u8) -> Option<Rank> {
        let has_flags = |_, own: Option<Flags>| own.is_none_or(|own| own.are_of(flags));
        Rank::of(self.seek(key, false, has_flags))
    }

    /// The shield for a frame without a key, by its network layer
    /// ([`network_key`](crate::packet::network_key)).
    pub fn of_network(&self, key: &FlowKey) -> Option<Rank> {
        Rank::of(self.seek(key, true, |_, own| own.is_none()))
    }

    /// The same as [`ShieldSet::of_key`] for a frame of `flow`, found under a pin by this key.
    #[inline]
    pub fn of_flow(&self, flow: FlowRef<'_>, key: &FlowKey, flags: u8) -> Option<Rank> {
        let id = flow.id();
        let Some(cell) = self.memory.get(id.index as usize) else {
            return self.of_key(key, flags);
        };
        let own = u64::from(id.generation) << 32 | u64::from(self.generation) << 16;
        let kept = cell.load(Relaxed);
        if kept & !0xffff != own {
            return self.learn(key, flags, |found| {
                cell.store(own | u64::from(found), Relaxed)
            });
        }
        let found = kept as u16;
        if found & DEPENDS == 0 {
            return Rank::of(found);
        }
        match self.answers.get(found & !DEPENDS, self.classes.of(flags)) {
            Some(number) => Rank::of(number),
            None => self.of_key(key, flags),
        }
    }

    /// Searches for all that a key meets with any flags, and has it remembered if there is room.
    #[cold]
    fn learn(&self, key: &FlowKey, flags: u8, remember: impl FnOnce(u16)) -> Option<Rank> {
        let mut answer: Answer = [NONE; CLASSES];
        let mut waiting = NONE;
        let sure = self.seek(key, false, |number, own| {
            if let Some(flags) = own {
                waiting = number.min(waiting);
                self.classes.add(flags, number, &mut answer);
            }
            own.is_none()
        });
        for own in &mut answer {
            *own = sure.min(*own);
        }
        if sure <= waiting {
            remember(sure);
        } else if let Some(place) = self.answers.keep(&answer) {
            remember(place | DEPENDS);
        }
        match answer.get(self.classes.of(flags)) {
            Some(number) => Rank::of(*number),
            None => self.of_key(key, flags),
        }
    }

    /// Has a shield rule over a frame, and counts it for `lane`.
    #[inline]
    pub fn rule(&self, rank: Rank, lane: usize, size: (u64, u64), now: Moment) -> Ruling {
        let Some(judge) = self.judges.get(rank.place()) else {
            return Ruling::Pass;
        };
        let (packets, octets) = size;
        let ruling = match judge.action {
            Action::Drop => Ruling::Drop,
            Action::Punt => Ruling::Punt,
            Action::Police(_) if judge.tally.passes(packets, octets, now) => Ruling::Pass,
            Action::Police(_) => Ruling::Exceeds,
        };
        let is_gone = matches!(ruling, Ruling::Drop | Ruling::Exceeds);
        judge.tally.count(lane, packets, octets, is_gone);
        ruling
    }

    /// How many shields there are.
    pub fn len(&self) -> usize {
        self.judges.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.judges.is_empty()
    }

    /// How many different masks they have.
    pub fn masks(&self) -> usize {
        self.tables.len()
    }

    /// Goes through the shields that match a key but for TCP flags, and says which is the first of
    /// those that `settles` takes: it is asked for some of those after it, too, and for all
    /// before it.
    #[inline(always)]
    fn seek(
        &self,
        key: &FlowKey,
        by_network: bool,
        mut settles: impl FnMut(u16, Option<Flags>) -> bool,
    ) -> u16 {
        let words = key.words();
        let (source, destination) = ((words[5] >> 16) as u16, words[5] as u16);
        let mut first = NONE;
        for table in &self.tables {
            if table.first >= first {
                break;
            }
            if by_network && !table.is_network {
                continue;
            }
            for number in table.numbers_of(words, &self.seed) {
                if *number >= first {
                    break;
                }
                let judge = &self.judges[usize::from(*number)];
                if (by_network && judge.needs_transport)
                    || !judge.source.has(source)
                    || !judge.destination.has(destination)
                {
                    continue;
                }
                if settles(*number, judge.flags) {
                    first = *number;
                    break;
                }
            }
        }
        first
    }
}

impl Table {
    /// The table of shields, by pattern and number, in order.
    fn new(mask: [u64; 6], mut shields: Vec<([u64; 6], u16)>, seed: &[u64; 4]) -> Self {
        let first = shields.first().map_or(NONE, |(_, number)| *number);
        // Of one pattern together, and in order among themselves.
        shields.sort();
        let room = (2 * shields.len()).next_power_of_two().max(2);
        let shift = u64::BITS - room.trailing_zeros();
        let free = Slot {
            value: [0; 6],
            start: 0,
            count: 0,
        };
        let mut slots = vec![free; room].into_boxed_slice();
        let mut start = 0u32;
        for run in shields.chunk_by(|one, next| one.0 == next.0) {
            let value = run[0].0;
            let mut at = (hash(&value, seed) >> shift) as usize;
            while slots[at].count != 0 {
                at = (at + 1) % room;
            }
            slots[at] = Slot {
                value,
                start,
                count: run.len() as u32,
            };
            start += run.len() as u32;
        }
        let numbers = shields.into_iter().map(|(_, number)| number).collect();
        Self {
            mask,
            first,
            is_network: false,
            shift,
            slots,
            numbers,
        }
    }

    /// The shields whose pattern a key has.
    #[inline(always)]
    fn numbers_of(&self, words: &[u64; 6], seed: &[u64; 4]) -> &[u16] {
        let value: [u64; 6] = std::array::from_fn(|word| words[word] & self.mask[word]);
        let mut at = (hash(&value, seed) >> self.shift) as usize;
        loop {
            // Half of the slots are free, so this ends.
            let slot = &self.slots[at & (self.slots.len() - 1)];
            if slot.count == 0 {
                return &[];
            }
            if slot.value == value {
                let start = slot.start as usize;
                return &self.numbers[start..start + slot.count as usize];
            }
            at += 1;
        }
    }
}

/// Of a pattern. What an element can bring about with patterns that meet is that its own frames
/// take longer, so speed goes before strength.
#[inline(always)]
fn hash(words: &[u64; 6], seed: &[u64; 4]) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let addresses = fold(words[1] ^ seed[0], words[3] ^ seed[1]);
    let rest = fold(words[0] ^ seed[2], words[5] ^ seed[3]);
    let low = fold(words[2] ^ seed[3], words[4] ^ seed[2]);
    fold(addresses ^ low.rotate_left(32), rest ^ seed[0])
}
