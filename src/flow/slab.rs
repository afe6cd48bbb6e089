//! The slots of a table, and how a slot comes back into use.
//!
//! *Promises*: a slot's fixed part is written only while no reader can reach the slot,
//! and read only while it is in the table or a pinned reader may still hold it.
//! *Refuses*: an allocation without a free slot gives `None`; nothing is evicted.
//! *Caller's duty*: a slot is out of every index, and its partner's link is on its way
//! out with it, before [`SlabWriter::retire`]; readers look only while pinned.
//! *Standard*: none.
//!
//! A slot's life: free, in the table (odd generation), retired (even generation, no
//! index leads to it, pinned readers may hold it), free again once the epoch has passed
//! in which it was retired (see `epoch`).

use std::collections::VecDeque;
use std::mem::{MaybeUninit, needs_drop, offset_of};

use super::epoch::Epochs;
use super::prefetch::prefetch;
use super::route::{Route, RouteCell};
use super::spec::{FlowId, FlowSpec, FlowState};
use crate::packet::MacAddr;
use crate::sync::{Arc, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, UnsafeCell};

/// In place of a slot number: none.
const NONE: u32 = u32::MAX;
/// In place of TCP numbers: none were noted. (A segment that has both at their last value
/// counts as none.)
const NOT_NOTED: u64 = u64::MAX;

// Slots are overwritten, never dropped.
const _: () = assert!(!needs_drop::<FlowSpec>());

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

/// One direction of a session, in its table.
///
/// Any thread may read it. Counting is for the one worker where the flow is at home
/// ([`Flow::route`]); state changes are compare-exchanges and may come from anywhere.
#[repr(C, align(64))]
pub struct Flow {
    /// Odd while the slot is in the table; one more once it is retired.
    generation: AtomicU32,
    partner: AtomicU32,
    last_seen_ms: AtomicU32,
    tcp_window: AtomicU16,
    state: AtomicU8,
    /// Its flag: whether the session has this direction.
    route: RouteCell,
    dst_mac: AtomicU64,
    src_mac: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    tcp_numbers: AtomicU64,
    /// What flows that this one replaced had counted; the writer's to store.
    base_packets: AtomicU64,
    base_bytes: AtomicU64,
    spec: UnsafeCell<MaybeUninit<FlowSpec>>,
}

// SAFETY: all fields but `spec` are atomics. `spec` is written in `SlabWriter::allocate`
// only, for a slot that came off the free list, where no other thread can reach it.
unsafe impl Sync for Flow {}
// SAFETY: a `FlowSpec` is plain data and the atomics belong to no thread.
unsafe impl Send for Flow {}

impl Flow {
    fn vacant() -> Self {
        Self {
            generation: AtomicU32::new(0),
            partner: AtomicU32::new(NONE),
            state: AtomicU8::new(FlowState::Closing as u8),
            route: RouteCell::new(),
            dst_mac: AtomicU64::new(0),
            src_mac: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            last_seen_ms: AtomicU32::new(0),
            tcp_window: AtomicU16::new(0),
            tcp_numbers: AtomicU64::new(NOT_NOTED),
            base_packets: AtomicU64::new(0),
            base_bytes: AtomicU64::new(0),
            spec: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// What it was told to do.
    #[inline]
    pub fn spec(&self) -> &FlowSpec {
        // SAFETY: a `&Flow` leaves this floor only through an index, an id of the current
        // generation or a partner link; all three are set after `SlabWriter::allocate` has
        // filled the slot. It is not filled again while this reference lives: readers hold
        // it under a pin, which `SlabWriter::reclaim` waits for, and the writer holds it by
        // a borrow of itself, while `allocate` needs `&mut`.
        self.spec.with(|spec| unsafe { (*spec).assume_init_ref() })
    }

    /// Whether the session has this direction. If not, the entry exists only so that a
    /// session always has two: no packet finds it, and none is ever forwarded by it.
    #[inline]
    pub fn is_present(&self) -> bool {
        self.route.flag()
    }

    /// Where it stands. Who reads `Active` also reads the MACs learned before it.
    #[inline]
    pub fn state(&self) -> FlowState {
        match self.state.load(Ordering::Acquire) {
            0 => FlowState::Pending,
            1 => FlowState::Draining,
            2 => FlowState::Active,
            _ => FlowState::Closing,
        }
    }

    /// Moves from one state to another; false if it was not in `from`.
    pub fn transition(&self, from: FlowState, to: FlowState) -> bool {
        self.state
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Whatever it was, it is now closing; true for the one caller who made it so.
    pub fn close(&self) -> bool {
        let closing = FlowState::Closing as u8;
        self.state.swap(closing, Ordering::AcqRel) != closing
    }

    /// Destination and source MAC on egress; both are right once it is `Active`.
    #[inline]
    pub fn macs(&self) -> (MacAddr, MacAddr) {
        (
            MacAddr::from_u64(self.dst_mac.load(Ordering::Relaxed)),
            MacAddr::from_u64(self.src_mac.load(Ordering::Relaxed)),
        )
    }

    /// Takes the MACs of the proving frame where the spec left them open. The transition
    /// that follows publishes them.
    pub fn learn_macs(&self, dst: MacAddr, src: MacAddr) {
        if self.spec().dst_mac.is_none() {
            self.dst_mac.store(dst.to_u64(), Ordering::Relaxed);
        }
        if self.spec().src_mac.is_none() {
            self.src_mac.store(src.to_u64(), Ordering::Relaxed);
        }
    }

    /// Counts packets and L3 bytes forwarded. Loads and stores, no locked additions: only
    /// the one worker where the flow is at home may call it.
    #[inline]
    pub fn count(&self, packets: u64, bytes: u64, now_ms: u32) {
        add(&self.packets, packets);
        add(&self.bytes, bytes);
        self.last_seen_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Notes a TCP segment's numbers for the hand-back. The worker's, like
    /// [`Flow::count`]; a reader may see the window of the next segment already.
    #[inline]
    pub fn note_tcp(&self, seq: u32, ack: u32, window: u16) {
        let numbers = u64::from(seq) << 32 | u64::from(ack);
        self.tcp_numbers.store(numbers, Ordering::Relaxed);
        self.tcp_window.store(window, Ordering::Relaxed);
    }

    /// Where its frames are dealt with and the egress queue pair they leave by, once that is
    /// settled.
    #[inline]
    pub fn route(&self) -> Option<Route> {
        self.route.get()
    }

    /// Takes `own` for its route where there is none, or where it is active and has long been
    /// idle; says what the route is then.
    pub fn claim_route(&self, own: Route, now_ms: u32) -> Route {
        let seen = self.last_seen_ms.load(Ordering::Relaxed);
        let active = self.state() == FlowState::Active;
        // Another worker's clock may be a little ahead.
        self.route
            .claim(own, active, now_ms.wrapping_sub(seen) as i32)
    }

    /// Its packets leave by the egress queue pair `queue` from now on: the one that the guest's
    /// own last packet left by, so that none overtakes it. For the flow's home.
    pub fn settle_egress_queue(&self, queue: usize) {
        self.route.set_queue(queue);
    }

    /// What it has counted, with what the flows it replaced had.
    pub fn counters(&self) -> FlowCounters {
        let sum = |base: &AtomicU64, own: &AtomicU64| {
            base.load(Ordering::Relaxed)
                .wrapping_add(own.load(Ordering::Relaxed))
        };
        let numbers = self.tcp_numbers.load(Ordering::Relaxed);
        let window = self.tcp_window.load(Ordering::Relaxed);
        FlowCounters {
            packets: sum(&self.base_packets, &self.packets),
            bytes: sum(&self.base_bytes, &self.bytes),
            last_seen_ms: self.last_seen_ms.load(Ordering::Relaxed),
            tcp: (numbers != NOT_NOTED).then_some(((numbers >> 32) as u32, numbers as u32, window)),
        }
    }

    fn is_in_table(&self, generation: u32) -> bool {
        generation % 2 == 1 && self.generation.load(Ordering::Acquire) == generation
    }
}

/// Adds to a counter that only this thread stores to.
#[inline(always)]
fn add(counter: &AtomicU64, amount: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(amount);
    counter.store(sum, Ordering::Relaxed);
}

/// The slots and the epochs that guard them.
pub(super) struct Slab {
    flows: Box<[Flow]>,
    pub(super) epochs: Epochs,
}

impl Slab {
    /// The flow in a slot that an index or a link led to.
    #[inline(always)]
    pub(super) fn get(&self, index: u32) -> Option<&Flow> {
        self.flows.get(index as usize)
    }

    /// The name of a flow of this slab. It stays the same while the reference lives: in that
    /// time the slot may be retired, but not used again.
    #[inline]
    pub(super) fn id_of(&self, flow: &Flow) -> FlowId {
        let offset = (&raw const *flow).addr() - self.flows.as_ptr().addr();
        let generation = flow.generation.load(Ordering::Relaxed);
        FlowId {
            index: (offset / size_of::<Flow>()) as u32,
            generation: generation.wrapping_sub(1) | 1,
        }
    }

    /// The flow of that name, if it is in the table.
    #[inline]
    pub(super) fn by_id(&self, id: FlowId) -> Option<&Flow> {
        self.get(id.index)
            .filter(|flow| flow.is_in_table(id.generation))
    }

    /// The other direction.
    #[inline]
    pub(super) fn partner(&self, flow: &Flow) -> Option<&Flow> {
        self.get(flow.partner.load(Ordering::Acquire))
    }

    /// Fetches what a worker reads of a hit: state and counters, key, rewrite.
    #[inline(always)]
    pub(super) fn prefetch(&self, index: u32) {
        const KEY: usize = offset_of!(Flow, spec) + offset_of!(FlowSpec, key);
        const REWRITE: usize = offset_of!(Flow, spec) + offset_of!(FlowSpec, rewrite);
        if let Some(flow) = self.get(index) {
            let start = (&raw const *flow).cast::<u8>();
            prefetch(start.wrapping_add(KEY));
            prefetch(start);
            if REWRITE / 64 != KEY / 64 {
                prefetch(start.wrapping_add(REWRITE));
            }
        }
    }
}

/// A flow that took the place of another, which may still count for a while.
struct Heir {
    of: u32,
    heir: u32,
    carried: FlowCounters,
}

/// Slots retired in or before one epoch.
struct Batch {
    epoch: u64,
    slots: Vec<u32>,
    heirs: Vec<Heir>,
}

/// The writer's side of the slab.
pub(super) struct SlabWriter {
    slab: Arc<Slab>,
    free: Vec<u32>,
    retired: Vec<u32>,
    heirs: Vec<Heir>,
    waiting: VecDeque<Batch>,
}

impl SlabWriter {
    pub(super) fn new(slots: u32, readers_max: usize) -> Self {
        let flows = (0..slots).map(|_| Flow::vacant()).collect();
        Self {
            slab: Arc::new(Slab {
                flows,
                epochs: Epochs::new(readers_max),
            }),
            free: (0..slots).rev().collect(),
            retired: Vec::new(),
            heirs: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// What readers share.
    pub(super) fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Fills a free slot. It is reachable by its id at once, and by key when the caller
    /// puts it into an index.
    pub(super) fn allocate(
        &mut self,
        spec: FlowSpec,
        present: bool,
        state: FlowState,
    ) -> Option<FlowId> {
        let index = self.free.pop()?;
        let flow = self.slab.get(index)?;
        let id = FlowId {
            index,
            generation: flow.generation.load(Ordering::Relaxed).wrapping_add(1),
        };
        let mac = |mac: Option<MacAddr>| mac.unwrap_or_default().to_u64();
        flow.dst_mac.store(mac(spec.dst_mac), Ordering::Relaxed);
        flow.src_mac.store(mac(spec.src_mac), Ordering::Relaxed);
        for counter in [
            &flow.packets,
            &flow.bytes,
            &flow.base_packets,
            &flow.base_bytes,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        flow.last_seen_ms.store(0, Ordering::Relaxed);
        flow.tcp_numbers.store(NOT_NOTED, Ordering::Relaxed);
        flow.route.reset(None, present);
        flow.partner.store(NONE, Ordering::Relaxed);
        flow.state.store(state as u8, Ordering::Relaxed);
        // SAFETY: the slot was on the free list, which holds slots that were never used and
        // those `reclaim` found without readers; this `&mut self` shuts out the writer's own
        // references.
        flow.spec.with_mut(|place| unsafe { (*place).write(spec) });
        flow.generation.store(id.generation, Ordering::Release);
        Some(id)
    }

    /// Links two directions.
    pub(super) fn pair(&mut self, a: u32, b: u32) {
        if let (Some(first), Some(second)) = (self.slab.get(a), self.slab.get(b)) {
            first.partner.store(b, Ordering::Release);
            second.partner.store(a, Ordering::Release);
        }
    }

    /// Makes `new` the heir of `old`, both in the table: the link to the partner, the route,
    /// MACs that its spec leaves open, what was counted, and what `old` counts until its slot is
    /// reclaimed.
    pub(super) fn inherit(&mut self, old: u32, new: u32) {
        let (Some(from), Some(to)) = (self.slab.get(old), self.slab.get(new)) else {
            return;
        };
        let carried = from.counters();
        to.base_packets.store(carried.packets, Ordering::Relaxed);
        to.base_bytes.store(carried.bytes, Ordering::Relaxed);
        to.last_seen_ms
            .store(carried.last_seen_ms, Ordering::Relaxed);
        if let Some((seq, ack, window)) = carried.tcp {
            to.note_tcp(seq, ack, window);
        }
        to.route.reset(from.route.get(), to.is_present());
        let (dst, src) = from.macs();
        to.learn_macs(dst, src);
        let partner = from.partner.load(Ordering::Relaxed);
        to.partner.store(partner, Ordering::Release);
        if let Some(partner) = self.slab.get(partner) {
            partner.partner.store(new, Ordering::Release);
        }
        self.heirs.push(Heir {
            of: old,
            heir: new,
            carried,
        });
    }

    /// Takes a slot out of use. No index leads to it any more.
    pub(super) fn retire(&mut self, index: u32) {
        let Some(flow) = self.slab.get(index) else {
            return;
        };
        let generation = flow.generation.load(Ordering::Relaxed);
        // Before the epoch ends, so that no later reader gets here by the id.
        flow.generation
            .store(generation.wrapping_add(1), Ordering::Release);
        self.retired.push(index);
    }

    /// Ends the epoch and names it; what was retired waits for it to pass.
    pub(super) fn end_epoch(&mut self) -> u64 {
        let epoch = self.slab.epochs.advance();
        if !self.retired.is_empty() {
            self.waiting.push_back(Batch {
                epoch,
                slots: std::mem::take(&mut self.retired),
                heirs: std::mem::take(&mut self.heirs),
            });
        }
        epoch
    }

    /// Frees the retired slots that no reader can see any more; says how many.
    pub(super) fn reclaim(&mut self) -> usize {
        if !self.retired.is_empty() {
            self.end_epoch();
        }
        let mut freed = 0;
        while let Some(batch) = self.passed_batch() {
            for heir in &batch.heirs {
                self.settle(heir);
            }
            freed += batch.slots.len();
            self.free.extend(batch.slots);
        }
        freed
    }

    /// The oldest batch, if no reader is left in its epoch.
    fn passed_batch(&mut self) -> Option<Batch> {
        let epoch = self.waiting.front()?.epoch;
        if self.slab.epochs.has_passed(epoch) {
            self.waiting.pop_front()
        } else {
            None
        }
    }

    /// Hands on what a replaced flow was told after it was replaced. The heir's slot may
    /// be retired by now but not free: it was retired later.
    fn settle(&self, heir: &Heir) {
        let (Some(old), Some(new)) = (self.slab.get(heir.of), self.slab.get(heir.heir)) else {
            return;
        };
        let last = old.counters();
        let packets = last.packets.wrapping_sub(heir.carried.packets);
        let bytes = last.bytes.wrapping_sub(heir.carried.bytes);
        add(&new.base_packets, packets);
        add(&new.base_bytes, bytes);
        if old.state() == FlowState::Closing {
            new.close();
        }
    }
}
