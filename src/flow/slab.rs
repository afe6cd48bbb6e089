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
//! in which it was retired (see `epoch`). Free slots are a list through the slots themselves,
//! followed by those that were never used.

use std::collections::{HashMap, VecDeque};

use super::arena::{Arena, arena};
use super::entry::{self, Entry, FlowCounters, FlowRef, Notes};
use super::epoch::Epochs;
use super::prefetch::prefetch;
use super::spec::{FlowId, FlowSpec, FlowState};
use super::ways::{self, Way, Ways, WaysWriter};
use super::wide::{self, Wide, WideWriter};
use crate::packet::FlowKey;
use crate::sync::{Arc, Ordering};

/// In place of a slot number: none.
const NONE: u32 = u32::MAX;

/// The slots and the epochs that guard them.
pub(super) struct Slab {
    flows: Arena<Entry>,
    pub(super) notes: Arena<Notes>,
    pub(super) ways: Arc<Ways>,
    pub(super) wide: Arc<Wide>,
    pub(super) epochs: Epochs,
}

/// Bytes of a slab: what IPv4 flows take, and what IPv6 flows take besides.
pub(super) const fn memory_bytes(slots: u32) -> (u64, u64) {
    let slot = size_of::<Entry>() + size_of::<Notes>();
    (
        slots as u64 * slot as u64 + ways::memory_bytes(slots),
        wide::memory_bytes(slots),
    )
}

impl Slab {
    #[inline(always)]
    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.flows.get(slot as usize)
    }

    /// The flow in a slot that an index or a link led to.
    #[inline(always)]
    pub(super) fn get(&self, slot: u32) -> Option<FlowRef<'_>> {
        Some(FlowRef::new(self.entry(slot)?, self))
    }

    /// The slot that an entry of this slab is.
    #[inline(always)]
    pub(super) fn slot_of(&self, entry: &Entry) -> u32 {
        let offset = (&raw const *entry).addr() - self.flows.as_ptr().addr();
        (offset / size_of::<Entry>()) as u32
    }

    /// The flow of that name, if it is in the table.
    #[inline]
    pub(super) fn by_id(&self, id: FlowId) -> Option<FlowRef<'_>> {
        let entry = self.entry(id.index)?;
        let is_in_table = entry.is_in_table(id.generation);
        is_in_table.then(|| FlowRef::new(entry, self))
    }

    /// Fetches what a worker reads of a hit.
    #[inline(always)]
    pub(super) fn prefetch(&self, slot: u32) {
        // Neither a branch, which would be mispredicted where there is no slot now and then, nor an
        // address beyond the arena, whose page the processor would look for.
        let slot = slot as usize;
        let slot = if slot < self.flows.len() { slot } else { 0 };
        prefetch(self.flows.as_ptr().wrapping_add(slot));
    }

    /// Fetches the addresses of what is probably an IPv6 flow; its entry has come in.
    #[inline(always)]
    pub(super) fn prefetch_wide(&self, slot: u32, key: &FlowKey) {
        if !key.is_ipv4()
            && let Some(entry) = self.entry(slot)
        {
            self.wide.prefetch(entry::wide_place(entry.fixed()));
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
    ways: WaysWriter,
    wide: WideWriter,
    /// The free slot used last, which leads to the others.
    free: u32,
    /// Slots from here on were never used.
    fresh: u32,
    free_slots: usize,
    retired: Vec<u32>,
    heirs: Vec<Heir>,
    waiting: VecDeque<Batch>,
    /// Packets and bytes that a flow's predecessor counted after it was replaced.
    late: HashMap<u32, (u64, u64)>,
}

impl SlabWriter {
    pub(super) fn new(slots: u32, readers_max: usize) -> Self {
        let (ways, wide) = (WaysWriter::new(slots), WideWriter::new(slots));
        Self {
            slab: Arc::new(Slab {
                flows: arena(slots as usize),
                notes: arena(slots as usize),
                ways: ways.shared(),
                wide: wide.shared(),
                epochs: Epochs::new(readers_max),
            }),
            ways,
            wide,
            free: NONE,
            fresh: 0,
            free_slots: slots as usize,
            retired: Vec::new(),
            heirs: Vec::new(),
            waiting: VecDeque::new(),
            late: HashMap::new(),
        }
    }

    /// What readers share.
    pub(super) fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    pub(super) fn free_slots(&self) -> usize {
        self.free_slots
    }

    /// Fills a free slot. It is reachable by its id at once, and by key when the caller
    /// puts it into an index. `None` without a free slot or a place for its way.
    pub(super) fn allocate(
        &mut self,
        spec: &FlowSpec,
        present: bool,
        state: FlowState,
    ) -> Option<FlowId> {
        if self.free_slots == 0 {
            return None;
        }
        let way = Way::of(spec, present);
        let place = self.ways.share(way)?;
        let wide = if way.narrow {
            None
        } else {
            let (from, to) = (spec.key.words(), spec.egress_key.words());
            let addresses = [
                from[1], from[2], from[3], from[4], to[1], to[2], to[3], to[4],
            ];
            Some(self.wide.take(addresses)?)
        };
        let index = self.take_slot();
        let entry = self.slab.entry(index)?;
        let id = FlowId {
            index,
            generation: entry.generation.load(Ordering::Relaxed).wrapping_add(1),
        };
        entry.reset(spec, state);
        entry.partner.store(NONE, Ordering::Relaxed);
        if let Some(notes) = self.slab.notes.get(index as usize) {
            notes.reset(spec.session);
        }
        entry.way.store(place, Ordering::Relaxed);
        let fixed = entry::fixed(spec, wide);
        // SAFETY: the slot was free: never used, or given back by `reclaim`, which found it
        // without readers; this `&mut self` shuts out the writer's own references.
        entry.fixed.with_mut(|cell| unsafe { *cell = fixed });
        entry.generation.store(id.generation, Ordering::Release);
        Some(id)
    }

    /// A free slot; there is one.
    fn take_slot(&mut self) -> u32 {
        self.free_slots -= 1;
        match self.slab.entry(self.free) {
            Some(entry) => {
                let next = entry.partner.load(Ordering::Relaxed);
                std::mem::replace(&mut self.free, next)
            }
            None => {
                self.fresh += 1;
                self.fresh - 1
            }
        }
    }

    /// Makes a slot free that no reader can see any more.
    fn give_back(&mut self, slot: u32) {
        let Some(entry) = self.slab.entry(slot) else {
            return;
        };
        let way = entry.way.load(Ordering::Relaxed);
        if !self.slab.ways.get(way).narrow {
            self.wide.give_back(entry::wide_place(entry.fixed()));
        }
        self.ways.release(way);
        entry.partner.store(self.free, Ordering::Relaxed);
        self.free = slot;
        self.free_slots += 1;
        if !self.late.is_empty() {
            self.late.remove(&slot);
        }
    }

    /// Links two directions.
    pub(super) fn pair(&mut self, a: u32, b: u32) {
        if let (Some(first), Some(second)) = (self.slab.get(a), self.slab.get(b)) {
            first.entry.partner.store(b, Ordering::Release);
            second.entry.partner.store(a, Ordering::Release);
        }
    }

    /// What a flow and those it replaced have counted. (What a replaced one counted after it
    /// was replaced is added when its slot is reclaimed.)
    pub(super) fn counters(&self, flow: FlowRef<'_>) -> FlowCounters {
        let mut counters = flow.counters();
        if let Some((packets, bytes)) = self.late.get(&flow.slot()) {
            counters.packets = counters.packets.wrapping_add(*packets);
            counters.bytes = counters.bytes.wrapping_add(*bytes);
        }
        counters
    }

    /// Makes `new` the heir of `old`, both in the table: the link to the partner, the route,
    /// MACs that its spec leaves open, what was counted, and what `old` counts until its slot is
    /// reclaimed.
    pub(super) fn inherit(&mut self, old: u32, new: u32) {
        let (Some(from), Some(to)) = (self.slab.get(old), self.slab.get(new)) else {
            return;
        };
        to.inherit_route(from);
        to.inherit_round(from);
        let carried = self.counters(from);
        to.carry(&carried);
        let (dst, src) = from.macs();
        to.learn_macs(dst, src);
        let partner = from.entry.partner.load(Ordering::Relaxed);
        to.entry.partner.store(partner, Ordering::Release);
        if let Some(partner) = self.slab.get(partner) {
            partner.entry.partner.store(new, Ordering::Release);
        }
        self.heirs.push(Heir {
            of: old,
            heir: new,
            carried,
        });
    }

    /// Takes a slot out of use. No index leads to it any more.
    pub(super) fn retire(&mut self, index: u32) {
        let Some(entry) = self.slab.entry(index) else {
            return;
        };
        let generation = &entry.generation;
        let current = generation.load(Ordering::Relaxed);
        // Before the epoch ends, so that no later reader gets here by the id.
        generation.store(current.wrapping_add(1), Ordering::Release);
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
            for slot in batch.slots {
                self.give_back(slot);
            }
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
    fn settle(&mut self, heir: &Heir) {
        let (Some(old), Some(new)) = (self.slab.get(heir.of), self.slab.get(heir.heir)) else {
            return;
        };
        let last = self.counters(old);
        let packets = last.packets.wrapping_sub(heir.carried.packets);
        let bytes = last.bytes.wrapping_sub(heir.carried.bytes);
        if (packets, bytes) != (0, 0) {
            let late = self.late.entry(heir.heir).or_default();
            late.0 = late.0.wrapping_add(packets);
            late.1 = late.1.wrapping_add(bytes);
        }
        if old.state() == FlowState::Closing {
            new.close();
        }
    }
}
