//! Where the sessions are kept: in 32 bytes while nothing is unusual about them.
//!
//! *Promises*: a session is *folded* (a record of 32 bytes beside its two flows, which say the
//! rest) or *open* (an [`Entry`], the whole of it). Folding loses nothing of the request: it is
//! refused unless the request made of record and flows equals the one that was made. Of a transit
//! time twelve binary digits are kept, of a moment milliseconds. A tally that says more than that each
//! direction was handed over once is kept beside, as long keys are.
//! *Refuses*: more sessions than it was made for.
//! *Caller's duty*: an entry is opened before it is changed.
//! *Standard*: none.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::{Entry, SessionPhase, Tally, Totals};
use crate::flow::arena::{Arena, Vacant, arena};
use crate::flow::buckets::Buckets;
use crate::flow::entry::FlowRef;
use crate::flow::request::{DirectionRequest, SessionRequest};
use crate::flow::table::TableWriter;
use crate::flow::{Direction, Moment, SessionId};
use crate::packet::VlanId;

/// Bits of a session's number that are its place; the others tell it from later ones there.
const PLACE_BITS: u32 = 24;
/// Client keys up to this long are in the record.
const KEY_INLINE: usize = 11;
/// In place of the first byte of a key: it is too long and kept elsewhere.
const KEY_ELSEWHERE: u8 = 0xff;
/// In place of a record: none.
const NONE: u32 = u32::MAX;

const FOLDED: u8 = 1;
const VOUCHED: u8 = 2;
const WAITING: [u8; 2] = [4, 8];
const MTU_GIVEN: [u8; 2] = [16, 32];
const MAC_GIVEN: [u8; 2] = [64, 128];

/// A folded session; what is not here is in its flows.
#[derive(Clone, Copy)]
#[repr(C)]
struct Record {
    key: [u8; KEY_INLINE],
    flags: u8,
    /// The slot of its original flow; in a free record the next free one.
    flow: u32,
    /// When it was asked for, milliseconds, rounded up: 40 bits.
    born_low: u32,
    idle_ms: u32,
    /// 0 for none.
    hard_ms: u32,
    transit: u16,
    born_high: u8,
    drain_bounds: u8,
}

const _: () = assert!(size_of::<Record>() == 32);

// SAFETY: numbers; nothing to drop.
unsafe impl Vacant for Record {
    #[cfg(shunt_loom)]
    fn vacant() -> Self {
        Self::free(0)
    }
}

impl Record {
    fn free(next: u32) -> Self {
        Self {
            key: [0; KEY_INLINE],
            flags: 0,
            flow: next,
            born_low: 0,
            idle_ms: 0,
            hard_ms: 0,
            transit: 0,
            born_high: 0,
            drain_bounds: 0,
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The tally of most sessions: each direction that was to be proved, and does not wait any
    /// more, was handed over once.
    fn first_tally(&self) -> Tally {
        let asked = if self.has(VOUCHED) { 0 } else { 2 };
        let waiting = WAITING.map(|bit| u32::from(self.has(bit)));
        let waiting: u32 = waiting.into_iter().sum();
        Tally {
            hand_overs: u32::saturating_sub(asked, waiting),
            ..Tally::default()
        }
    }

    fn born(&self) -> Moment {
        let ms = u64::from(self.born_high) << 32 | u64::from(self.born_low);
        Moment(ms * 1_000_000)
    }

    /// The record of an entry, as far as a record can say it.
    fn of(entry: &Entry, flow: u32) -> Option<Self> {
        let request = &entry.request;
        let mut flags = FOLDED | if request.vouched { VOUCHED } else { 0 };
        for (place, asked) in request.directions().into_iter().enumerate() {
            let bits = [
                (entry.waiting[place], WAITING[place]),
                (asked.is_some_and(|a| a.l3_mtu.is_some()), MTU_GIVEN[place]),
                (
                    asked.is_some_and(|a| a.ingress_mac.is_some()),
                    MAC_GIVEN[place],
                ),
            ];
            flags |= bits
                .iter()
                .filter(|(is, _)| *is)
                .fold(0, |all, (_, bit)| all | bit);
        }
        let ms = |span: Duration| u32::try_from(span.as_millis()).ok();
        let born = entry.born.0.div_ceil(1_000_000);
        let mut key = [0; KEY_INLINE];
        match key.get_mut(..request.key.len()) {
            Some(inline) => inline.copy_from_slice(request.key.as_bytes()),
            None => key[0] = KEY_ELSEWHERE,
        }
        Some(Self {
            key,
            flags,
            flow,
            born_low: born as u32,
            idle_ms: ms(request.idle_timeout)?,
            hard_ms: request.hard_timeout.map_or(Some(0), ms)?,
            transit: short(entry.transit),
            born_high: u8::try_from(born >> 32).ok()?,
            drain_bounds: u8::try_from(entry.drain_bounds).ok()?,
        })
    }
}

/// What a timer asks of a folded session.
pub(super) struct Terms {
    pub idle: Duration,
    pub hard: Option<Moment>,
    pub waiting: bool,
}

/// The sessions of one element.
pub(super) struct Book {
    records: Arena<Record>,
    /// The free record used last, which leads to the others.
    free: u32,
    /// Records from here on were never used.
    used: u32,
    open: HashMap<u32, Box<Entry>>,
    long_keys: HashMap<u32, Box<str>>,
    /// Those that are not what a first hand-over of each active direction comes to.
    tallies: HashMap<u32, Tally>,
    by_key: Buckets,
    hasher: RandomState,
    len: usize,
}

/// How many sessions a book has room for: a full table's, and some that wait for others to leave.
pub(super) const fn entries_max(sessions_max: u32) -> u32 {
    let waiting = sessions_max / 64;
    sessions_max + if waiting > 64 { waiting } else { 64 }
}

impl Book {
    /// A book for a table with so many sessions.
    pub(super) fn new(sessions_max: u32) -> Self {
        let entries = entries_max(sessions_max);
        Self {
            records: arena(entries as usize),
            free: NONE,
            used: 0,
            open: HashMap::new(),
            long_keys: HashMap::new(),
            tallies: HashMap::new(),
            by_key: Buckets::new(entries),
            hasher: RandomState::new(),
            len: 0,
        }
    }

    /// Bytes of a book, without open sessions and long keys.
    pub(super) const fn memory_bytes(sessions_max: u32) -> u64 {
        let entries = entries_max(sessions_max);
        entries as u64 * size_of::<Record>() as u64 + Buckets::memory_bytes(entries)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Places in use lie below this.
    pub(super) fn end(&self) -> u32 {
        self.used
    }

    pub(super) fn is_full(&self) -> bool {
        self.free == NONE && self.used as usize >= self.records.len()
    }

    /// The number of the session that is entered next, if it is the `count`-th.
    pub(super) fn next_id(&self, count: u64) -> SessionId {
        let place = if self.free == NONE {
            self.used
        } else {
            self.free
        };
        SessionId(count << PLACE_BITS | u64::from(place))
    }

    /// How many sessions had been asked for when the one of that number was.
    pub(super) fn count_of(id: SessionId) -> u64 {
        id.0 >> PLACE_BITS
    }

    /// Where a session of that number is, if it is.
    pub(super) fn slot_of(&self, id: SessionId, writer: &TableWriter) -> Option<u32> {
        let slot = (id.0 & ((1 << PLACE_BITS) - 1)) as u32;
        (self.id(slot, writer)? == id).then_some(slot)
    }

    fn id(&self, slot: u32, writer: &TableWriter) -> Option<SessionId> {
        match self.folded(slot) {
            Some(record) => Some(writer.in_slot(record.flow)?.session()),
            None => Some(self.open.get(&slot)?.id),
        }
    }

    /// Takes an entry in; its number is [`Book::next_id`]'s.
    pub(super) fn add(&mut self, entry: Box<Entry>) -> u32 {
        let slot = if self.free == NONE {
            self.used += 1;
            self.used - 1
        } else {
            let slot = self.free;
            self.free = self.records[slot as usize].flow;
            slot
        };
        self.records[slot as usize] = Record::free(NONE);
        let hash = self.hasher.hash_one(entry.request.key.as_str());
        self.open.insert(slot, entry);
        self.by_key.insert(hash, slot);
        self.len += 1;
        slot
    }

    /// Takes an open entry out.
    pub(super) fn take(&mut self, slot: u32) -> Option<Box<Entry>> {
        self.forget_key(slot);
        let entry = self.open.remove(&slot)?;
        self.records[slot as usize] = Record::free(self.free);
        self.free = slot;
        self.len -= 1;
        Some(entry)
    }

    /// The session at `slot` is no more what its client key means.
    pub(super) fn forget_key(&mut self, slot: u32) {
        if let Some(entry) = self.open.get(&slot) {
            let hash = self.hasher.hash_one(entry.request.key.as_str());
            self.by_key.remove(hash, slot);
        }
    }

    /// Whose client key that is.
    pub(super) fn by_key(&self, key: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.by_key
            .find(hash, |slot| self.has_key(slot, key).then_some(slot))
    }

    fn has_key(&self, slot: u32, key: &str) -> bool {
        match self.folded(slot) {
            Some(record) => self.key_of(slot, record) == key,
            None => self
                .open
                .get(&slot)
                .is_some_and(|entry| entry.request.key == key),
        }
    }

    fn key_of<'k>(&'k self, slot: u32, record: &'k Record) -> &'k str {
        if record.key[0] == KEY_ELSEWHERE {
            return self.long_keys.get(&slot).map_or("", |key| key);
        }
        let length = record.key.iter().position(|byte| *byte == 0);
        let bytes = &record.key[..length.unwrap_or(KEY_INLINE)];
        str::from_utf8(bytes).unwrap_or("")
    }

    fn tally(&self, slot: u32, record: &Record) -> Tally {
        let known = self.tallies.get(&slot);
        known.copied().unwrap_or_else(|| record.first_tally())
    }

    fn folded(&self, slot: u32) -> Option<&Record> {
        let record = self.records.get(slot as usize)?;
        record.has(FOLDED).then_some(record)
    }

    /// Whether there is a session at `slot` that is not ending.
    pub(super) fn is_wanted(&self, slot: u32) -> bool {
        let goes_on = |entry: &Entry| !matches!(entry.phase, SessionPhase::Closing(_));
        self.folded(slot).is_some() || self.opened(slot).is_some_and(goes_on)
    }

    /// Whether a session that is not ending is vouched, and which of its flows count as waiting.
    pub(super) fn proof(&self, slot: u32) -> Option<(bool, [bool; 2])> {
        if let Some(record) = self.folded(slot) {
            return Some((record.has(VOUCHED), WAITING.map(|bit| record.has(bit))));
        }
        let entry = self.opened(slot).filter(|_| self.is_wanted(slot))?;
        Some((entry.request.vouched, entry.waiting))
    }

    /// Its flows count as waiting, or not.
    pub(super) fn set_waiting(&mut self, slot: u32, waiting: [bool; 2]) {
        if let Some(record) = self.folded(slot) {
            // What follows from a record follows from who waits.
            let tally = self.tally(slot, record);
            self.tallies.insert(slot, tally);
            let flags = &mut self.records[slot as usize].flags;
            for (bit, waits) in WAITING.into_iter().zip(waiting) {
                *flags = *flags & !bit | if waits { bit } else { 0 };
            }
        } else if let Some(entry) = self.opened_mut(slot) {
            entry.waiting = waiting;
        }
    }

    /// An open entry.
    pub(super) fn opened(&self, slot: u32) -> Option<&Entry> {
        self.open.get(&slot).map(|entry| &**entry)
    }

    /// An open entry, to change it.
    pub(super) fn opened_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.open.get_mut(&slot).map(|entry| &mut **entry)
    }

    /// When a folded session ends if nothing moves, and whether a flow of it waits.
    pub(super) fn terms(&self, slot: u32) -> Option<Terms> {
        let record = self.folded(slot)?;
        let span = |ms: u32| Duration::from_millis(ms.into());
        Some(Terms {
            idle: span(record.idle_ms),
            hard: (record.hard_ms != 0).then(|| record.born() + span(record.hard_ms)),
            waiting: record.has(WAITING[0] | WAITING[1]),
        })
    }

    /// The slot of a folded session's original flow.
    pub(super) fn flow(&self, slot: u32) -> Option<u32> {
        self.folded(slot).map(|record| record.flow)
    }

    /// The entry of a folded session, as it was.
    pub(super) fn unfolded(&self, slot: u32, writer: &TableWriter) -> Option<Entry> {
        let record = self.folded(slot)?;
        let original = writer.in_slot(record.flow)?;
        let reply = original.partner()?;
        let flows = [original, reply];
        let asked = |place: usize| {
            flows[place]
                .is_present()
                .then(|| direction(record, flows[place], place))
        };
        let span = |ms: u32| Duration::from_millis(ms.into());
        let id = original.session();
        let request = SessionRequest {
            key: self.key_of(slot, record).to_owned(),
            protocol: original.key().protocol(),
            idle_timeout: span(record.idle_ms),
            hard_timeout: (record.hard_ms != 0).then(|| span(record.hard_ms)),
            mode: original.mode(),
            vouched: record.has(VOUCHED),
            original: asked(0),
            reply: asked(1),
        };
        Some(Entry {
            id,
            request,
            phase: SessionPhase::Live,
            asked: Self::count_of(id),
            pair: Some(flows.map(FlowRef::id)),
            wanted: [None, None],
            changed: [false; 2],
            waiting: WAITING.map(|bit| record.has(bit)),
            carried: [Totals::default(); 2],
            born: record.born(),
            // The flows were told.
            touched: Moment(0),
            transit: long(record.transit),
            drain_bounds: record.drain_bounds.into(),
            tally: self.tally(slot, record),
            again: false,
        })
    }

    /// Opens a folded session.
    pub(super) fn unfold(&mut self, slot: u32, writer: &TableWriter) {
        if let Some(entry) = self.unfolded(slot, writer) {
            self.records[slot as usize] = Record::free(NONE);
            self.long_keys.remove(&slot);
            self.tallies.remove(&slot);
            self.open.insert(slot, Box::new(entry));
        }
    }

    /// Folds an open session, if that loses nothing. `older` says that no session waits which may
    /// have been asked for later than this one.
    pub(super) fn fold(&mut self, slot: u32, writer: &TableWriter, older: bool) {
        let Some(entry) = self.open.get(&slot) else {
            return;
        };
        let plain = entry.phase == SessionPhase::Live
            && entry.wanted.iter().all(Option::is_none)
            && entry.carried == [Totals::default(); 2]
            && (older || entry.asked == Self::count_of(entry.id));
        let Some(pair) = entry.pair.filter(|_| plain) else {
            return;
        };
        let Some(record) = Record::of(entry, pair[0].index) else {
            return;
        };
        let Some(entry) = self.open.remove(&slot) else {
            return;
        };
        if record.key[0] == KEY_ELSEWHERE {
            self.long_keys
                .insert(slot, entry.request.key.as_str().into());
        }
        self.records[slot as usize] = record;
        if entry.tally != record.first_tally() {
            self.tallies.insert(slot, entry.tally);
        }
        let same = self
            .unfolded(slot, writer)
            .is_some_and(|made| made.request == entry.request && made.pair == entry.pair);
        if same {
            let touched = entry.touched.millis() as u32;
            for flow in pair {
                writer.touch(flow, touched);
            }
        } else {
            self.records[slot as usize] = Record::free(NONE);
            self.long_keys.remove(&slot);
            self.tallies.remove(&slot);
            self.open.insert(slot, entry);
        }
    }
}

/// What was asked of a direction.
fn direction(record: &Record, flow: FlowRef<'_>, place: usize) -> DirectionRequest {
    debug_assert_eq!(flow.direction() == Direction::Reply, place == 1);
    let (key, egress_key, spec) = (flow.key(), flow.egress_key(), flow.spec());
    let vlan = |id: u16| VlanId::try_from(id).ok();
    DirectionRequest {
        ingress: key.vnic(),
        ingress_vlan: vlan(key.vlan()),
        ingress_mac: record.has(MAC_GIVEN[place]).then_some(spec.ingress_mac),
        tuple: key.tuple(),
        translation: egress_key.tuple(),
        egress: spec.egress,
        egress_vlan: vlan(egress_key.vlan()),
        dst_mac: spec.dst_mac,
        src_mac: spec.src_mac,
        l3_mtu: record.has(MTU_GIVEN[place]).then_some(spec.l3_mtu),
        decrement_ttl: flow.decrements_ttl(),
        dscp: spec.rewrite.dscp(),
    }
}

/// A span in microseconds, as twelve digits and how many more there were; 0 for none.
fn short(span: Option<Duration>) -> u16 {
    let Some(span) = span else {
        return 0;
    };
    let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
    let more = (64 - micros.leading_zeros()).saturating_sub(12);
    if more > 15 {
        return u16::MAX;
    }
    (more << 12) as u16 | (micros >> more) as u16
}

fn long(short: u16) -> Option<Duration> {
    let micros = u64::from(short & 0xfff) << (short >> 12);
    (short != 0).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transit_time_keeps_twelve_digits() {
        for micros in [1, 999, 1000, 4095, 4096, 5001, 1_000_000, 100_000_000] {
            let span = Duration::from_micros(micros);
            let kept = long(short(Some(span))).unwrap();
            assert!(
                kept <= span && span - kept <= span / 2048,
                "{span:?} {kept:?}"
            );
        }
        assert_eq!(long(short(None)), None);
        assert_eq!(
            long(short(Some(Duration::ZERO))),
            Some(Duration::from_micros(1))
        );
    }
}
