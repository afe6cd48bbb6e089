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
//! The memory is a cell for each slot of the flow table: the slot's generation, the set's, and
//! what was found: the shield that rules, or none, and whether one with the right TCP flags would
//! go before it. Where so, packets with flags that any shield of the set waits for are searched
//! for again, and for nothing but those. Lanes that write a cell at a time write the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Action, Flags, Matches, Ports, Tally};
use crate::flow::{FlowRef, HashSeed, Moment};
use crate::packet::{FlowKey, VnicId};

/// Most shields of a set.
pub(super) const RULES_MAX: usize = 30_000;

/// In place of a shield's number: none.
const NONE: u16 = 0x7fff;
/// In a cell, beside a number: one with the right TCP flags goes before it.
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
    /// Whether some have TCP flags.
    is_flagged: bool,
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
    /// The octets of TCP flags that any shield waits for, a bit each.
    awaited: [u64; 4],
    seed: [u64; 4],
    generation: u16,
    memory: Memory,
}

/// What a search has found, by number.
struct Found {
    /// The first that matches.
    best: u16,
    /// The first of those that match whatever the TCP flags are.
    sure: u16,
    /// The first of those that match with some flags.
    perhaps: u16,
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
            table.is_flagged = numbers.iter().any(|number| of(number).flags.is_some());
            table
        });
        let tables = tables.collect();
        let mut awaited = [0; 4];
        for Flags { value, mask } in rules.iter().filter_map(|rule| rule.matches.flags) {
            let octets = (0..=u8::MAX).filter(|octet| octet & mask == value);
            octets.for_each(|octet| awaited[usize::from(octet >> 6)] |= 1 << (octet & 63));
        }
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
            awaited,
            seed,
            generation,
            memory,
        }
    }

    /// The shield for a frame with a key; `flags` is a TCP segment's octet of flags.
    pub fn of_key(&self, key: &FlowKey, flags: u8) -> Option<Rank> {
        Rank::of(self.search(key, flags, false).best)
    }

    /// The shield for a frame without a key, by its network layer
    /// ([`network_key`](crate::packet::network_key)).
    pub fn of_network(&self, key: &FlowKey) -> Option<Rank> {
        Rank::of(self.search(key, 0, true).best)
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
        if kept & !0xffff == own {
            let (sure, depends) = (kept as u16 & !DEPENDS, kept as u16 & DEPENDS != 0);
            return Rank::of(match depends && self.awaits(flags) {
                true => self.search_flagged(key, flags, sure),
                false => sure,
            });
        }
        let found = self.search(key, flags, false);
        let depends = match found.perhaps < found.sure {
            true => DEPENDS,
            false => 0,
        };
        cell.store(own | u64::from(found.sure | depends), Relaxed);
        Rank::of(found.best)
    }

    /// Whether any shield waits for these flags.
    #[inline]
    fn awaits(&self, flags: u8) -> bool {
        self.awaited[usize::from(flags >> 6)] >> (flags & 63) & 1 != 0
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

    fn search(&self, key: &FlowKey, flags: u8, by_network: bool) -> Found {
        let words = key.words();
        let (source, destination) = ((words[5] >> 16) as u16, words[5] as u16);
        let mut found = Found {
            best: NONE,
            sure: NONE,
            perhaps: NONE,
        };
        for table in &self.tables {
            if table.first >= found.sure {
                break;
            }
            if by_network && !table.is_network {
                continue;
            }
            for number in table.numbers_of(words, &self.seed) {
                if *number >= found.sure {
                    break;
                }
                let judge = &self.judges[usize::from(*number)];
                if (by_network && judge.needs_transport)
                    || !judge.source.has(source)
                    || !judge.destination.has(destination)
                {
                    continue;
                }
                let Some(own) = judge.flags else {
                    found.sure = *number;
                    break;
                };
                found.perhaps = found.perhaps.min(*number);
                if flags & own.mask == own.value {
                    found.best = found.best.min(*number);
                }
            }
        }
        found.best = found.best.min(found.sure);
        found
    }

    /// The first shield with these flags, or `sure`, the first without any.
    fn search_flagged(&self, key: &FlowKey, flags: u8, sure: u16) -> u16 {
        let words = key.words();
        let (source, destination) = ((words[5] >> 16) as u16, words[5] as u16);
        let mut best = sure;
        for table in self.tables.iter().filter(|table| table.is_flagged) {
            if table.first >= best {
                break;
            }
            for number in table.numbers_of(words, &self.seed) {
                if *number >= best {
                    break;
                }
                let judge = &self.judges[usize::from(*number)];
                let has_flags = |own: Flags| flags & own.mask == own.value;
                if judge.flags.is_some_and(has_flags)
                    && judge.source.has(source)
                    && judge.destination.has(destination)
                {
                    best = *number;
                    break;
                }
            }
        }
        best
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
            is_flagged: false,
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
