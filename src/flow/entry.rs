//! A flow in its table: one cache line, and what is said about it.
//!
//! *Promises*: what a worker needs of a UDP flow over IPv4 is in one line, besides its way (see
//! `ways`), which many flows share. A flow's fixed part is whole for whoever finds the flow.
//! *Refuses*: nothing.
//! *Caller's duty*: counting and noting are for the one worker where the flow is at home
//! ([`FlowRef::route`]); changes of state are compare-exchanges and may come from anywhere.
//! *Standard*: RFC 9293 (the numbers noted).
//!
//! Packets are counted in 32 bits here and in steps of 2³¹ in the notes, which are written once
//! in two thousand million packets; the lowest bit of the steps repeats the highest here, so that
//! a reader puts both together rightly whichever it sees first.

use super::arena::Vacant;
use super::route::{Route, RouteCell};
use super::slab::Slab;
use super::spec::{Direction, FlowId, FlowSpec, FlowState, HandOverMode, SessionId};
use super::ways::Way;
use super::wide::Addresses;
use crate::packet::rewrite::{Narrow, Rewrite, Wide};
use crate::packet::{FlowKey, FrameMut, MacAddr, Parsed, VnicId};
use crate::sync::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, UnsafeCell};

/// Packets in a step of the notes, as a shift.
const STEP: u32 = 31;

/// Totals of one flow at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowCounters {
    /// Packets on the wire (a GSO frame counts its segments).
    pub packets: u64,
    /// L3 bytes.
    pub bytes: u64,
    /// When the last one passed, in the worker's coarse milliseconds; 0 before the first.
    pub last_seen_ms: u32,
    /// Sequence number, acknowledgement and window of the last TCP segment noted.
    pub tcp: Option<(u32, u32, u16)>,
}

/// Addresses and ports, which do not change while the flow is in the table: of IPv4 itself, of
/// IPv6 the place of the addresses in `from`.
pub(super) type Fixed = Narrow;

/// The fixed part of `spec`; `wide` is the place of its addresses if they are IPv6's.
pub(super) fn fixed(spec: &FlowSpec, wide: Option<u32>) -> Fixed {
    let (from, to) = (spec.key.words(), spec.egress_key.words());
    let addresses = |words: &[u64; 6]| words[1] | words[3] >> 32;
    let [from_addresses, to_addresses] = match wide {
        Some(place) => [place.into(), 0],
        None => [addresses(from), addresses(to)],
    };
    Fixed {
        from: [from_addresses],
        to: [to_addresses],
        from_ports: from[5] as u32,
        to_ports: to[5] as u32,
    }
}

/// Where the addresses of an IPv6 flow are.
#[inline(always)]
pub(super) fn wide_place(fixed: &Fixed) -> u32 {
    fixed.from[0] as u32
}

/// The bits of [`Entry::state`] that are the state; those above are the round.
const STATE_MASK: u8 = 3;
/// One round further.
const ROUND: u8 = STATE_MASK + 1;

/// A flow's state as it was at one moment, and its *round*: 0 at first, another after each time
/// that it was sent back to be proved again. So what was concluded in one round changes nothing
/// in the next ([`FlowRef::advance`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stand(u8);

impl Stand {
    /// The state.
    #[inline]
    pub fn state(self) -> FlowState {
        match self.0 & STATE_MASK {
            0 => FlowState::Pending,
            1 => FlowState::Draining,
            2 => FlowState::Active,
            _ => FlowState::Closing,
        }
    }

    /// The round; numbers come again after 63 others, 0 does not.
    #[inline]
    pub fn round(self) -> u8 {
        self.0 / ROUND
    }

    /// Pending in the next round; `None` of a flow that is closing.
    fn again(self) -> Option<u8> {
        let next = (self.0 & !STATE_MASK).wrapping_add(ROUND).max(ROUND);
        (self.state() != FlowState::Closing).then_some(next | FlowState::Pending as u8)
    }
}

/// One direction of a session, in its table.
#[repr(C, align(64))]
pub(super) struct Entry {
    bytes: AtomicU64,
    /// Destination MAC, and the upper third of the source MAC.
    macs_high: AtomicU64,
    pub(super) fixed: UnsafeCell<Fixed>,
    /// The rest of the source MAC.
    macs_low: AtomicU32,
    packets: AtomicU32,
    pub(super) last_seen_ms: AtomicU32,
    /// Odd while the slot is in the table; one more once it is retired.
    pub(super) generation: AtomicU32,
    /// The slot of the other direction; in a free slot the next free one.
    pub(super) partner: AtomicU32,
    /// Its way; the writer's, set before the flow is published.
    pub(super) way: AtomicU16,
    /// A [`Stand`].
    state: AtomicU8,
    /// Its flag: a TCP segment was noted.
    route: RouteCell,
}

#[cfg(not(shunt_loom))]
const _: () = assert!(size_of::<Entry>() == 64);

// SAFETY: atomics and numbers, of which zeros are values, and nothing to drop.
unsafe impl Vacant for Entry {
    #[cfg(shunt_loom)]
    fn vacant() -> Self {
        let fixed = Fixed {
            from: [0],
            to: [0],
            from_ports: 0,
            to_ports: 0,
        };
        Self {
            bytes: AtomicU64::new(0),
            macs_high: AtomicU64::new(0),
            fixed: UnsafeCell::new(fixed),
            macs_low: AtomicU32::new(0),
            packets: AtomicU32::new(0),
            last_seen_ms: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            partner: AtomicU32::new(0),
            way: AtomicU16::new(0),
            state: AtomicU8::new(0),
            route: RouteCell::new(),
        }
    }
}

// SAFETY: all fields but `fixed` are atomics. `fixed` is written in `SlabWriter::allocate` only,
// for a slot that came off the free list, where no other thread can reach it.
unsafe impl Sync for Entry {}

impl Entry {
    /// Makes a free slot a flow that nothing has happened to.
    pub(super) fn reset(&self, spec: &FlowSpec, state: FlowState) {
        self.bytes.store(0, Ordering::Relaxed);
        self.packets.store(0, Ordering::Relaxed);
        self.last_seen_ms.store(0, Ordering::Relaxed);
        self.route.reset(None, false);
        self.state.store(state as u8, Ordering::Relaxed);
        self.set_macs(
            spec.dst_mac.unwrap_or_default(),
            spec.src_mac.unwrap_or_default(),
        );
    }

    fn set_macs(&self, dst: MacAddr, src: MacAddr) {
        let (dst, src) = (dst.to_u64(), src.to_u64());
        self.macs_high
            .store(dst << 16 | src >> 32, Ordering::Relaxed);
        self.macs_low.store(src as u32, Ordering::Relaxed);
    }

    /// Destination and source MAC as on the wire.
    #[inline(always)]
    fn wire_macs(&self) -> [u8; 12] {
        let high = self.macs_high.load(Ordering::Relaxed).to_be_bytes();
        let low = self.macs_low.load(Ordering::Relaxed).to_be_bytes();
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&high);
        bytes[8..].copy_from_slice(&low);
        bytes
    }

    #[inline]
    fn macs(&self) -> (MacAddr, MacAddr) {
        let high = self.macs_high.load(Ordering::Relaxed);
        let low = u64::from(self.macs_low.load(Ordering::Relaxed));
        (
            MacAddr::from_u64(high >> 16),
            MacAddr::from_u64((high & 0xffff) << 32 | low),
        )
    }

    #[inline(always)]
    pub(super) fn fixed(&self) -> &Fixed {
        // SAFETY: an `&Entry` leaves this floor only through an index, an id of the current
        // generation or a partner link; all three are set after `SlabWriter::allocate` has
        // filled the slot. It is not filled again while this reference lives: readers hold
        // it under a pin, which `SlabWriter::reclaim` waits for, and the writer holds it by
        // a borrow of itself, while `allocate` needs `&mut`.
        self.fixed.with(|fixed| unsafe { &*fixed })
    }

    pub(super) fn is_in_table(&self, generation: u32) -> bool {
        generation % 2 == 1 && self.generation.load(Ordering::Acquire) == generation
    }
}

/// What is seldom touched of a flow, or only ever stored by the worker.
#[repr(C)]
pub(super) struct Notes {
    seq: AtomicU32,
    ack: AtomicU32,
    /// Session number, low and high half; the writer's, set before the flow is published.
    session: [AtomicU32; 2],
    window: AtomicU16,
    /// Packets, in steps.
    steps: AtomicU16,
}

// SAFETY: atomics, of which zeros are values, and nothing to drop.
unsafe impl Vacant for Notes {
    #[cfg(shunt_loom)]
    fn vacant() -> Self {
        Self {
            seq: AtomicU32::new(0),
            ack: AtomicU32::new(0),
            session: [AtomicU32::new(0), AtomicU32::new(0)],
            window: AtomicU16::new(0),
            steps: AtomicU16::new(0),
        }
    }
}

impl Notes {
    pub(super) fn reset(&self, session: SessionId) {
        self.session[0].store(session.0 as u32, Ordering::Relaxed);
        self.session[1].store((session.0 >> 32) as u32, Ordering::Relaxed);
        self.steps.store(0, Ordering::Relaxed);
    }
}

/// A flow that its finder may look at: found under a pin, or by the table's writer.
#[derive(Clone, Copy)]
pub struct FlowRef<'p> {
    pub(super) entry: &'p Entry,
    way: &'p Way,
    /// The flow's own: what its links lead into, whatever pin is asked.
    pub(super) slab: &'p Slab,
}

impl<'p> FlowRef<'p> {
    /// The flow in a slot that was filled and that the caller may look at.
    #[inline(always)]
    pub(super) fn new(entry: &'p Entry, slab: &'p Slab) -> Self {
        let way = slab.ways.get(entry.way.load(Ordering::Relaxed));
        Self { entry, way, slab }
    }

    /// The other direction of the same session.
    #[inline]
    pub(super) fn partner(self) -> Option<FlowRef<'p>> {
        self.slab.get(self.entry.partner.load(Ordering::Acquire))
    }
}

impl FlowRef<'_> {
    /// Its name. It stays the same while the reference lives: in that time the slot may be
    /// retired, but not used again.
    #[inline]
    pub fn id(self) -> FlowId {
        let generation = self.entry.generation.load(Ordering::Relaxed);
        FlowId {
            index: self.slot(),
            generation: generation.wrapping_sub(1) | 1,
        }
    }

    #[inline(always)]
    pub(super) fn slot(self) -> u32 {
        self.slab.slot_of(self.entry)
    }

    #[inline(always)]
    fn notes(&self) -> Option<&Notes> {
        self.slab.notes.get(self.slot() as usize)
    }

    #[inline(always)]
    fn addresses(&self) -> &Addresses {
        self.slab.wide.get(wide_place(self.entry.fixed()))
    }

    /// Whether packets with this key are its own.
    #[inline(always)]
    pub(super) fn has_key(&self, key: &FlowKey) -> bool {
        let (fixed, words) = (self.entry.fixed(), key.words());
        let same = words[0] ^ self.way.head | words[5] ^ u64::from(fixed.from_ports);
        let same = if self.way.narrow {
            let addresses = words[1] | words[3] >> 32;
            let low = words[1] << 32 | words[3] << 32;
            same | low | words[2] | words[4] | addresses ^ fixed.from[0]
        } else {
            same | differing(&self.addresses()[..4], &words[1..5])
        };
        same == 0
    }

    /// Whether its rewritten packets have this key.
    #[inline(always)]
    pub(super) fn has_egress_key(&self, key: &FlowKey) -> bool {
        *key.words() == *self.egress_key().words()
    }

    /// What it matches.
    #[inline]
    pub fn key(self) -> FlowKey {
        let fixed = self.entry.fixed();
        self.key_of(self.way.head, fixed.from[0], 0, fixed.from_ports)
    }

    /// The key its packets have when the guest sends them rewritten.
    #[inline]
    pub fn egress_key(self) -> FlowKey {
        let fixed = self.entry.fixed();
        self.key_of(self.way.egress_head, fixed.to[0], 4, fixed.to_ports)
    }

    #[inline(always)]
    fn key_of(&self, head: u64, narrow: u64, wide: usize, ports: u32) -> FlowKey {
        let [a, b, c, d] = if self.way.narrow {
            [narrow & !0xffff_ffff, 0, narrow << 32, 0]
        } else {
            let words = self.addresses();
            [
                words[wide],
                words[wide + 1],
                words[wide + 2],
                words[wide + 3],
            ]
        };
        FlowKey::from_words([head, a, b, c, d, ports.into()])
    }

    /// What becomes of its packets, but for addresses, ports and MACs.
    #[inline]
    pub fn rewrite(&self) -> &Rewrite {
        &self.way.rewrite
    }

    /// Makes of a frame that has its key what the guest would send. False, and no change, as
    /// [`Rewrite::apply`] says.
    #[inline]
    pub fn rewrite_frame(self, frame: &mut FrameMut<'_>, parsed: &Parsed) -> bool {
        let macs = self.entry.wire_macs();
        if self.way.narrow {
            let change = self.entry.fixed();
            self.way.rewrite.apply(change, frame, parsed, &macs)
        } else {
            self.rewrite_wide(frame, parsed, &macs)
        }
    }

    fn rewrite_wide(&self, frame: &mut FrameMut<'_>, parsed: &Parsed, macs: &[u8; 12]) -> bool {
        let (fixed, [a, b, c, d, e, f, g, h]) = (self.entry.fixed(), *self.addresses());
        let change = Wide {
            from: [a, b, c, d],
            to: [e, f, g, h],
            from_ports: fixed.from_ports,
            to_ports: fixed.to_ports,
        };
        self.way.rewrite.apply(&change, frame, parsed, macs)
    }

    /// Whether TTL or hop limit goes down.
    #[inline]
    pub fn decrements_ttl(self) -> bool {
        self.way.rewrite.decrements_ttl()
    }

    /// The destination MAC a frame must have to match.
    #[inline]
    pub fn ingress_mac(self) -> MacAddr {
        self.way.ingress_mac
    }

    /// The vNIC whose uplink its packets leave by.
    #[inline]
    pub fn egress(self) -> VnicId {
        self.way.egress
    }

    /// Largest L3 packet the egress takes, bytes.
    #[inline]
    pub fn l3_mtu(self) -> u16 {
        self.way.l3_mtu
    }

    /// How it moves to the fast path.
    #[inline]
    pub fn mode(self) -> HandOverMode {
        self.way.mode
    }

    /// Which half of its session it is.
    #[inline]
    pub fn direction(self) -> Direction {
        self.way.direction
    }

    /// When it moved last, in the worker's coarse milliseconds.
    pub(super) fn last_seen_ms(self) -> u32 {
        self.entry.last_seen_ms.load(Ordering::Relaxed)
    }

    /// Counts as moved at `ms`, if it has not moved later. The writer's.
    pub(super) fn touch(self, ms: u32) {
        let seen = &self.entry.last_seen_ms;
        // Milliseconds wrap: later is what is less than half the circle ahead.
        if (ms.wrapping_sub(seen.load(Ordering::Relaxed)) as i32) > 0 {
            seen.store(ms, Ordering::Relaxed);
        }
    }

    /// Whose it is.
    pub fn session(self) -> SessionId {
        let half = |half: usize| {
            let notes = self.notes();
            notes.map_or(0, |notes| {
                u64::from(notes.session[half].load(Ordering::Relaxed))
            })
        };
        SessionId(half(1) << 32 | half(0))
    }

    /// Whether the session has this direction. If not, the entry exists only so that a
    /// session always has two: no packet finds it, and none is ever forwarded by it.
    #[inline]
    pub fn is_present(self) -> bool {
        self.way.present
    }

    /// All it was told to do.
    pub fn spec(self) -> FlowSpec {
        let (dst, src) = self.macs();
        let [dst_given, src_given] = self.way.given;
        FlowSpec {
            key: self.key(),
            egress_key: self.egress_key(),
            ingress_mac: self.ingress_mac(),
            egress: self.egress(),
            rewrite: *self.rewrite(),
            dst_mac: dst_given.then_some(dst),
            src_mac: src_given.then_some(src),
            l3_mtu: self.l3_mtu(),
            mode: self.mode(),
            session: self.session(),
            direction: self.direction(),
        }
    }

    /// Whether a frame of the guest with these MACs is as the flow was told to send it.
    #[inline]
    pub fn takes_macs(self, dst: MacAddr, src: MacAddr) -> bool {
        let (own_dst, own_src) = self.macs();
        let [dst_given, src_given] = self.way.given;
        (!dst_given || own_dst == dst) && (!src_given || own_src == src)
    }

    /// Where it stands. Who reads `Active` also reads the MACs learned before it.
    #[inline]
    pub fn state(self) -> FlowState {
        self.stand().state()
    }

    /// Where it stands, and in which round.
    #[inline]
    pub fn stand(self) -> Stand {
        Stand(self.entry.state.load(Ordering::Acquire))
    }

    /// Moves from where it stood to another state of the same round; false if it does not stand
    /// there any more.
    pub fn advance(self, from: Stand, to: FlowState) -> bool {
        let to = from.0 & !STATE_MASK | to as u8;
        self.entry
            .state
            .compare_exchange(from.0, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Moves from one state to another; false if it was not in `from`.
    #[cfg(test)]
    pub fn transition(self, from: FlowState, to: FlowState) -> bool {
        let stand = self.stand();
        stand.state() == from && self.advance(stand, to)
    }

    /// Waits for proof again, in another round, unless it is closing; says what it was. The
    /// writer's.
    pub(super) fn reprove(self) -> FlowState {
        let again = |stood| Stand(stood).again();
        let state = &self.entry.state;
        let (Ok(stood) | Err(stood)) =
            state.fetch_update(Ordering::AcqRel, Ordering::Acquire, again);
        Stand(stood).state()
    }

    /// Is in the round that another flow is in. The writer's, before the flow is published.
    pub(super) fn inherit_round(self, from: FlowRef<'_>) {
        let round = from.entry.state.load(Ordering::Relaxed) & !STATE_MASK;
        let state = self.entry.state.load(Ordering::Relaxed) & STATE_MASK;
        self.entry.state.store(round | state, Ordering::Relaxed);
    }

    /// Whatever it was, it is now closing; true for the one caller who made it so.
    pub fn close(self) -> bool {
        let closing = FlowState::Closing as u8;
        self.entry.state.swap(closing, Ordering::AcqRel) & STATE_MASK != closing
    }

    /// Destination and source MAC on egress; both are right once it is `Active`.
    #[inline]
    pub fn macs(self) -> (MacAddr, MacAddr) {
        self.entry.macs()
    }

    /// The same, but for those that a proof is still to tell.
    pub(super) fn macs_known(self) -> (MacAddr, MacAddr) {
        let is_pending = self.state() == FlowState::Pending;
        let (dst, src) = self.macs();
        let [dst_given, src_given] = self.way.given;
        let known = |mac, given| {
            if given || !is_pending {
                mac
            } else {
                MacAddr::default()
            }
        };
        (known(dst, dst_given), known(src, src_given))
    }

    /// Takes the MACs of the proving frame where the spec left them open. The transition
    /// that follows publishes them. For one worker at a time.
    pub fn learn_macs(self, dst: MacAddr, src: MacAddr) {
        let (own_dst, own_src) = self.macs();
        let [dst_given, src_given] = self.way.given;
        self.entry.set_macs(
            if dst_given { own_dst } else { dst },
            if src_given { own_src } else { src },
        );
    }

    /// Counts packets and L3 bytes forwarded. Loads and stores, no locked additions: only
    /// the one worker where the flow is at home may call it.
    #[inline]
    pub fn count(self, packets: u64, bytes: u64, now_ms: u32) {
        let entry = self.entry;
        let before = entry.packets.load(Ordering::Relaxed);
        let after = before.wrapping_add(packets as u32);
        if (before ^ after) >> STEP != 0
            && let Some(notes) = self.notes()
        {
            let steps = notes.steps.load(Ordering::Relaxed).wrapping_add(1);
            notes.steps.store(steps, Ordering::Relaxed);
        }
        entry.packets.store(after, Ordering::Relaxed);
        let sum = entry.bytes.load(Ordering::Relaxed).wrapping_add(bytes);
        entry.bytes.store(sum, Ordering::Relaxed);
        entry.last_seen_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Notes a TCP segment's numbers for the hand-back. The worker's, like
    /// [`FlowRef::count`]; a reader may see some of the next segment already.
    #[inline]
    pub fn note_tcp(self, seq: u32, ack: u32, window: u16) {
        let Some(notes) = self.notes() else {
            return;
        };
        notes.seq.store(seq, Ordering::Relaxed);
        notes.ack.store(ack, Ordering::Relaxed);
        notes.window.store(window, Ordering::Relaxed);
        self.entry.route.raise_flag();
    }

    /// Where its frames are dealt with and the egress queue pair they leave by, once that is
    /// settled.
    #[inline]
    pub fn route(self) -> Option<Route> {
        self.entry.route.get()
    }

    /// Takes `own` for its route where there is none, or where it is active and has long been
    /// idle; says what the route is then.
    pub fn claim_route(self, own: Route, now_ms: u32) -> Route {
        let seen = self.entry.last_seen_ms.load(Ordering::Relaxed);
        let active = self.state() == FlowState::Active;
        // Another worker's clock may be a little ahead.
        let idle = now_ms.wrapping_sub(seen) as i32;
        self.entry.route.claim(own, active, idle)
    }

    /// Its packets leave by the egress queue pair `queue` from now on: the one that the guest's
    /// own last packet left by, so that none overtakes it. For the flow's home.
    pub fn settle_egress_queue(self, queue: usize) {
        self.entry.route.set_queue(queue);
    }

    /// Starts where another flow was. The writer's, before the flow is published.
    pub(super) fn inherit_route(self, from: FlowRef<'_>) {
        self.entry.route.reset(from.entry.route.get(), false);
    }

    /// What it has counted; with what the flows it replaced had when it replaced them.
    pub fn counters(self) -> FlowCounters {
        let entry = self.entry;
        let packets = entry.packets.load(Ordering::Relaxed);
        let noted = |notes: &Notes| {
            let (seq, ack) = (&notes.seq, &notes.ack);
            (
                seq.load(Ordering::Relaxed),
                ack.load(Ordering::Relaxed),
                notes.window.load(Ordering::Relaxed),
            )
        };
        let has_tcp = entry.route.flag();
        let steps = self
            .notes()
            .map_or(0, |notes| notes.steps.load(Ordering::Relaxed));
        FlowCounters {
            packets: joined(packets, steps),
            bytes: entry.bytes.load(Ordering::Relaxed),
            last_seen_ms: entry.last_seen_ms.load(Ordering::Relaxed),
            tcp: self.notes().filter(|_| has_tcp).map(noted),
        }
    }

    /// Starts with what another flow has counted. The writer's, before the flow is published.
    pub(super) fn carry(self, carried: &FlowCounters) {
        let entry = self.entry;
        entry
            .packets
            .store(carried.packets as u32, Ordering::Relaxed);
        entry.bytes.store(carried.bytes, Ordering::Relaxed);
        entry
            .last_seen_ms
            .store(carried.last_seen_ms, Ordering::Relaxed);
        if let Some(notes) = self.notes() {
            let steps = (carried.packets >> STEP) as u16;
            notes.steps.store(steps, Ordering::Relaxed);
        }
        if let Some((seq, ack, window)) = carried.tcp {
            self.note_tcp(seq, ack, window);
        }
    }
}

/// Packets from their low 32 bits and their steps, read one after the other in either order.
fn joined(low: u32, steps: u16) -> u64 {
    let (below, steps) = (low & ((1 << STEP) - 1), u64::from(steps));
    let step = if steps & 1 == u64::from(low >> STEP) {
        steps
    } else if below >> (STEP - 1) != 0 {
        // The step is just being made.
        steps.wrapping_sub(1)
    } else {
        steps + 1
    };
    step << STEP | u64::from(below)
}

#[inline(always)]
fn differing(a: &[u64], b: &[u64]) -> u64 {
    a.iter()
        .zip(b)
        .fold(0, |difference, (a, b)| difference | (a ^ b))
}

#[cfg(test)]
#[cfg(not(shunt_loom))]
mod tests {
    use super::joined;

    #[test]
    fn packets_are_joined_rightly_whichever_half_is_seen_newer() {
        for packets in [
            5u64,
            (1 << 31) - 3,
            1 << 31,
            (1 << 32) - 1,
            7 << 31,
            1 << 45,
        ] {
            for later in [0, 1, 5, 1 << 20] {
                let (old, new) = (packets, packets + later);
                let steps = |packets: u64| (packets >> 31) as u16;
                assert_eq!(joined(old as u32, steps(new)), old);
                assert_eq!(joined(new as u32, steps(old)), new);
            }
        }
    }
}
