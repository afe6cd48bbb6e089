//! The flow table of one element: one writer, readers that never wait.
//!
//! *Promises*: [`Pin::lookup`] and its kin neither wait nor allocate, and what they find
//! stays whole until the pin ends. [`TableWriter::replace`] shows readers the old flow or
//! the new one, never neither. Whoever finds a flow sees all of its spec.
//! *Refuses*: a pair beyond the quota, with [`InsertError::TableFull`]: nothing is evicted
//! and everything that was in the table goes on. A key that another flow has, with
//! [`InsertError::KeyExists`].
//! *Caller's duty*: pins last for a burst, not longer: a reader that stays pinned holds
//! up reclaiming. Before a pair is removed its flows are closed and a [`Grace`] has
//! passed, if no packet may be forwarded after the removal.
//! *Standard*: none.
//!
//! **What is found by what.** Flows are indexed by ingress key and by egress key, in two
//! arrays, so that the first, which every packet visits, holds nothing else. Both keys
//! are unique within the table: two flows with one egress key would be told apart by
//! nobody who sees the guest's packets. A direction that its session does not have is in
//! neither index; its partner and its id alone lead to it.
//!
//! **Size** ([`table_memory_bytes`]): a flow takes a slot of 256 bytes, 4 in the free
//! list, 2 × 13.3 of index, and a thirty-second of the slot for spare slots: 590 bytes a
//! session, whose two directions are always there. All of it is allocated when the table
//! is made. Nearly half of a slot is two keys of 48 bytes; the second one follows from the
//! first and the rewrite.
//! **Longest probe**: 7 cache lines at full quota, 1.03 on average (see `buckets`).
//! **Full**: the quota counts flows in the table. Slots of removed flows come back when
//! the readers pinned at their removal have left; spare ones (a thirty-second, 64 at
//! least) bridge that time and let a full table still replace.

use std::ops::Deref;

use super::buckets::Buckets;
use super::hash::{HashSeed, hash};
use super::slab::{Flow, Slab, SlabWriter};
use super::spec::{FlowId, FlowSpec, FlowState};
use crate::packet::FlowKey;
use crate::sync::Arc;

/// Keys whose memory accesses [`Pin::lookup_burst`] overlaps: a burst of DESIGN section 4.
const BURST: usize = 64;

/// Why the table did not take a flow. It is as it was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InsertError {
    /// The quota is used up.
    #[error("the flow table is full: {flows_max} flows; end sessions or raise the quota")]
    TableFull {
        /// The quota.
        flows_max: u32,
    },
    /// All spare slots wait for a reader to unpin.
    #[error("removed flows are still being read; try again")]
    Reclaiming,
    /// Another flow matches the same packets, or sends the same ones.
    #[error("flow {0:?} has that key; remove or replace it first")]
    KeyExists(FlowId),
    /// Both directions match, or send, the same packets.
    #[error("original and reply direction have the same key; they need different ones")]
    SameKey,
    /// The flow to replace is not in the table.
    #[error("flow {0:?} is not in the table; insert instead")]
    UnknownFlow(FlowId),
    /// The replacement matches other packets.
    #[error("a replacement for flow {0:?} needs the same key; remove and insert instead")]
    OtherKey(FlowId),
}

/// What the writer and the readers share.
struct Shared {
    seed: HashSeed,
    slab: Arc<Slab>,
    ingress: Buckets,
    egress: Buckets,
}

/// Slots beyond the quota, for flows removed but perhaps still read.
const fn spare_slots(flows_max: u32) -> u32 {
    if cfg!(shunt_loom) {
        2
    } else {
        let share = flows_max / 32;
        if share > 64 { share } else { 64 }
    }
}

/// Heap bytes of a table with this quota, without its readers' 128 bytes each.
pub fn table_memory_bytes(flows_max: u32) -> u64 {
    let slots = u64::from(flows_max) + u64::from(spare_slots(flows_max));
    let slot = size_of::<Flow>() + size_of::<u32>();
    slots * slot as u64 + 2 * Buckets::memory_bytes(flows_max)
}

/// A table for `flows_max` flows (two a session), with its one writer and `readers_max`
/// readers. Allocates [`table_memory_bytes`] and nothing later, but for the writer's
/// short lists of what waits to be reclaimed.
pub fn flow_table(
    flows_max: u32,
    readers_max: usize,
    seed: HashSeed,
) -> (TableWriter, Vec<TableReader>) {
    let slots = flows_max.saturating_add(spare_slots(flows_max));
    let slab = SlabWriter::new(slots, readers_max);
    let shared = Arc::new(Shared {
        seed,
        slab: Arc::clone(slab.slab()),
        ingress: Buckets::new(flows_max),
        egress: Buckets::new(flows_max),
    });
    let readers = (0..readers_max)
        .map(|number| TableReader {
            shared: Arc::clone(&shared),
            number,
        })
        .collect();
    let writer = TableWriter {
        shared,
        slab,
        flows_max,
        flows: 0,
    };
    (writer, readers)
}

#[inline(always)]
fn same(a: &FlowKey, b: &FlowKey) -> bool {
    // One comparison at the end instead of a call to memcmp.
    let words = a.words().iter().zip(b.words());
    words.fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

impl Shared {
    #[inline]
    fn by_key(&self, key: &FlowKey, hash: u64) -> Option<&Flow> {
        self.ingress.find(hash, |slot| {
            let flow = self.slab.get(slot)?;
            same(&flow.spec().key, key).then_some(flow)
        })
    }

    #[inline]
    fn by_egress_key(&self, key: &FlowKey, hash: u64) -> Option<&Flow> {
        self.egress.find(hash, |slot| {
            let flow = self.slab.get(slot)?;
            same(&flow.spec().egress_key, key).then_some(flow)
        })
    }

    #[inline]
    fn hash(&self, key: &FlowKey) -> u64 {
        hash(&self.seed, key)
    }

    #[inline(always)]
    fn reference<'s>(&'s self, flow: &'s Flow) -> FlowRef<'s> {
        let slab = &*self.slab;
        FlowRef { flow, slab }
    }
}

/// One worker's way into a table.
pub struct TableReader {
    shared: Arc<Shared>,
    number: usize,
}

impl TableReader {
    /// Starts a look at the table: one store and one fence, so once a burst.
    #[inline]
    pub fn pin(&mut self) -> Pin<'_> {
        self.shared.slab.epochs.pin(self.number);
        Pin { reader: self }
    }
}

/// A leaked pin ends with its reader.
impl Drop for TableReader {
    fn drop(&mut self) {
        self.shared.slab.epochs.unpin(self.number);
    }
}

/// While it lives, no flow found through it goes away.
pub struct Pin<'p> {
    reader: &'p TableReader,
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        self.reader.shared.slab.epochs.unpin(self.reader.number);
    }
}

impl Pin<'_> {
    /// The flow that packets with this key belong to.
    #[inline]
    pub fn lookup(&self, key: &FlowKey) -> Option<FlowRef<'_>> {
        let shared = &*self.reader.shared;
        shared
            .by_key(key, shared.hash(key))
            .map(|flow| shared.reference(flow))
    }

    /// The flow whose rewritten packets have this key: what the guest sends.
    #[inline]
    pub fn lookup_egress(&self, key: &FlowKey) -> Option<FlowRef<'_>> {
        let shared = &*self.reader.shared;
        shared
            .by_egress_key(key, shared.hash(key))
            .map(|flow| shared.reference(flow))
    }

    /// [`Pin::lookup`] of many keys at once, their waits for memory overlapped. `out` gets
    /// one answer for each key, in order; what it is longer stays as it is, and keys beyond
    /// its length are not looked up.
    pub fn lookup_burst<'s>(&'s self, keys: &[FlowKey], out: &mut [Option<FlowRef<'s>>]) {
        for (keys, out) in keys.chunks(BURST).zip(out.chunks_mut(BURST)) {
            self.lookup_chunk(keys, out);
        }
    }

    fn lookup_chunk<'s>(&'s self, keys: &[FlowKey], out: &mut [Option<FlowRef<'s>>]) {
        let shared = &*self.reader.shared;
        let mut hashes = [0u64; BURST];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = shared.hash(key);
            shared.ingress.prefetch(*hash);
        }
        for hash in hashes.iter().take(keys.len()) {
            if let Some(slot) = shared.ingress.candidate(*hash) {
                shared.slab.prefetch(slot);
            }
        }
        for ((key, hash), out) in keys.iter().zip(hashes).zip(out) {
            *out = shared.by_key(key, hash).map(|flow| shared.reference(flow));
        }
    }

    /// The flow of that name; `None` once it was removed or replaced.
    #[inline]
    pub fn by_id(&self, id: FlowId) -> Option<FlowRef<'_>> {
        let shared = &*self.reader.shared;
        shared.slab.by_id(id).map(|flow| shared.reference(flow))
    }

    /// The other direction of the same session.
    #[inline]
    pub fn partner<'f>(&self, flow: FlowRef<'f>) -> Option<FlowRef<'f>> {
        let slab = flow.slab;
        let flow = slab.partner(flow.flow)?;
        Some(FlowRef { flow, slab })
    }
}

/// A flow found under a pin.
#[derive(Clone, Copy)]
pub struct FlowRef<'p> {
    flow: &'p Flow,
    /// The flow's own: what its links lead into, whatever pin is asked.
    slab: &'p Slab,
}

impl FlowRef<'_> {
    /// Its name.
    #[inline]
    pub fn id(self) -> FlowId {
        self.slab.id_of(self.flow)
    }
}

impl Deref for FlowRef<'_> {
    type Target = Flow;

    #[inline]
    fn deref(&self) -> &Flow {
        self.flow
    }
}

/// A moment of the writer's, to wait until no reader still acts on what was before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grace(u64);

/// The only one who changes a table.
pub struct TableWriter {
    shared: Arc<Shared>,
    slab: SlabWriter,
    flows_max: u32,
    flows: u32,
}

impl TableWriter {
    /// Puts a session's two directions into the table, each the other's partner, and
    /// publishes those that are present. MACs the specs give are in place; counters are 0.
    ///
    /// # Errors
    /// The quota has no room for two, spare slots are still being read, or a key of a
    /// present direction is taken, by another flow or by the other direction.
    pub fn insert_pair(
        &mut self,
        original: FlowSpec,
        reply: FlowSpec,
        presence: [bool; 2],
        state: FlowState,
    ) -> Result<(FlowId, FlowId), InsertError> {
        self.check_keys(&original, &reply, presence)?;
        if self.flows_max - self.flows < 2 {
            return Err(InsertError::TableFull {
                flows_max: self.flows_max,
            });
        }
        self.ensure_free(2)?;
        let (first, second) = (self.hashes(&original), self.hashes(&reply));
        let a = self.allocate(original, presence[0], state)?;
        let b = self.allocate(reply, presence[1], state)?;
        self.flows += 2;
        self.slab.pair(a.index, b.index);
        for (id, hashes, present) in [(a, first, presence[0]), (b, second, presence[1])] {
            if present {
                // The egress index first: a worker that forwards by the new flow finds
                // what the guest sends, too.
                self.shared.egress.insert(hashes.egress, id.index);
                self.shared.ingress.insert(hashes.ingress, id.index);
            }
        }
        Ok((a, b))
    }

    fn check_keys(
        &self,
        original: &FlowSpec,
        reply: &FlowSpec,
        presence: [bool; 2],
    ) -> Result<(), InsertError> {
        for (spec, present) in [(original, presence[0]), (reply, presence[1])] {
            let taken = || {
                self.find(&spec.key)
                    .or_else(|| self.find_egress(&spec.egress_key))
            };
            if let Some(id) = present.then(taken).flatten() {
                return Err(InsertError::KeyExists(id));
            }
        }
        let equal =
            same(&original.key, &reply.key) || same(&original.egress_key, &reply.egress_key);
        if presence == [true, true] && equal {
            return Err(InsertError::SameKey);
        }
        Ok(())
    }

    /// The flow with this ingress key.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let flow = self.shared.by_key(key, self.shared.hash(key))?;
        Some(self.shared.slab.id_of(flow))
    }

    /// The flow with this egress key.
    pub fn find_egress(&self, key: &FlowKey) -> Option<FlowId> {
        let flow = self.shared.by_egress_key(key, self.shared.hash(key))?;
        Some(self.shared.slab.id_of(flow))
    }

    /// The flow of that name, if it is in the table.
    pub fn flow(&self, id: FlowId) -> Option<&Flow> {
        self.shared.slab.by_id(id)
    }

    /// The name of the other direction.
    pub fn partner(&self, id: FlowId) -> Option<FlowId> {
        let slab = &self.shared.slab;
        slab.partner(self.flow(id)?).map(|flow| slab.id_of(flow))
    }

    /// Puts a flow with the same ingress key into the place of `old`: for a reader one or
    /// the other is there at any moment. Presence, partner, counters, TCP numbers and the
    /// MACs that `spec` leaves open are carried over, and what workers still count on `old`
    /// is added when its slot is reclaimed; if one closes it meanwhile, the new one is
    /// closed then. (Whoever handles a close in the meantime goes by the session.)
    ///
    /// The state is the old one's; but where a MAC is open and the egress vNIC or VLAN is
    /// another, the learned MACs are of the wrong network, and an unclosed flow becomes
    /// `Pending`.
    ///
    /// # Errors
    /// `old` is not in the table or has another key, another flow has the new egress key,
    /// or spare slots are still being read.
    pub fn replace(&mut self, old: FlowId, spec: FlowSpec) -> Result<FlowId, InsertError> {
        self.swap(old, spec, inherited_state)
    }

    /// The same for a flow whose change has to be proved: it starts `Pending`, whatever workers
    /// made of the old one meanwhile, unless that is closing.
    ///
    /// # Errors
    /// As of [`TableWriter::replace`].
    pub fn replace_unproved(&mut self, old: FlowId, spec: FlowSpec) -> Result<FlowId, InsertError> {
        self.swap(old, spec, |from, _| match from.state() {
            FlowState::Closing => FlowState::Closing,
            FlowState::Pending | FlowState::Draining | FlowState::Active => FlowState::Pending,
        })
    }

    fn swap(
        &mut self,
        old: FlowId,
        spec: FlowSpec,
        state: impl Fn(&Flow, &FlowSpec) -> FlowState,
    ) -> Result<FlowId, InsertError> {
        let from = self.flow(old).ok_or(InsertError::UnknownFlow(old))?;
        if !same(&from.spec().key, &spec.key) {
            return Err(InsertError::OtherKey(old));
        }
        let present = from.is_present();
        let before = self.hashes(from.spec());
        let moved = !same(&from.spec().egress_key, &spec.egress_key);
        let state = state(from, &spec);
        if let Some(other) = self.find_egress(&spec.egress_key)
            && present
            && moved
        {
            return Err(InsertError::KeyExists(other));
        }
        self.ensure_free(1)?;
        let after = self.hashes(&spec);
        let new = self.allocate(spec, present, state)?;
        self.slab.inherit(old.index, new.index);
        if present {
            self.exchange(old.index, before, new.index, after, moved);
        }
        self.slab.retire(old.index);
        Ok(new)
    }

    /// Leads both indexes from `old` to `new`.
    fn exchange(&self, old: u32, before: Hashes, new: u32, after: Hashes, moved: bool) {
        let Shared {
            ingress, egress, ..
        } = &*self.shared;
        if moved {
            egress.insert(after.egress, new);
            ingress.swap(after.ingress, old, new);
            egress.remove(before.egress, old);
        } else {
            egress.swap(after.egress, old, new);
            ingress.swap(after.ingress, old, new);
        }
    }

    /// Closes both directions, takes them out of the table and retires their slots. Names
    /// of flows that are not in the table are passed over.
    pub fn remove_pair(&mut self, a: FlowId, b: FlowId) {
        for id in [a, b] {
            let Some(flow) = self.flow(id) else {
                continue;
            };
            flow.close();
            if flow.is_present() {
                let hashes = self.hashes(flow.spec());
                self.shared.ingress.remove(hashes.ingress, id.index);
                self.shared.egress.remove(hashes.egress, id.index);
            }
            self.slab.retire(id.index);
            self.flows -= 1;
        }
    }

    /// Frees the slots of removed and replaced flows that no pinned reader can still see,
    /// and says how many. What such flows counted last is with their heirs then.
    pub fn reclaim(&mut self) -> usize {
        self.slab.reclaim()
    }

    /// Marks this moment. To end sessions with nothing lost: close the flows, wait until
    /// the grace has passed, [`TableWriter::reclaim`], read the counters, remove.
    pub fn grace(&mut self) -> Grace {
        Grace(self.slab.end_epoch())
    }

    /// Whether every reader that was pinned at that moment has unpinned since. Readers
    /// that pinned later see all that the writer did, or had seen, before it.
    pub fn has_passed(&self, grace: &Grace) -> bool {
        self.shared.slab.epochs.has_passed(grace.0)
    }

    /// Flows in the table, absent directions included.
    pub fn len(&self) -> usize {
        self.flows as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.flows == 0
    }

    /// The quota, in flows.
    pub fn capacity(&self) -> usize {
        self.flows_max as usize
    }

    fn ensure_free(&mut self, slots: usize) -> Result<(), InsertError> {
        if self.slab.free_slots() < slots {
            self.slab.reclaim();
        }
        if self.slab.free_slots() < slots {
            return Err(InsertError::Reclaiming);
        }
        Ok(())
    }

    fn allocate(
        &mut self,
        spec: FlowSpec,
        present: bool,
        state: FlowState,
    ) -> Result<FlowId, InsertError> {
        self.slab
            .allocate(spec, present, state)
            .ok_or(InsertError::Reclaiming)
    }

    fn hashes(&self, spec: &FlowSpec) -> Hashes {
        Hashes {
            ingress: self.shared.hash(&spec.key),
            egress: self.shared.hash(&spec.egress_key),
        }
    }
}

/// The hashes of a flow's two keys.
#[derive(Clone, Copy)]
struct Hashes {
    ingress: u64,
    egress: u64,
}

/// The state in which a replacement starts; see [`TableWriter::replace`].
fn inherited_state(from: &Flow, spec: &FlowSpec) -> FlowState {
    let (old, new) = (&from.spec().egress_key, &spec.egress_key);
    let same_network = (old.vnic(), old.vlan()) == (new.vnic(), new.vlan());
    let macs_known = spec.dst_mac.is_some() && spec.src_mac.is_some();
    match from.state() {
        FlowState::Closing => FlowState::Closing,
        state if same_network || macs_known => state,
        _ => FlowState::Pending,
    }
}

#[cfg(test)]
#[cfg(not(shunt_loom))]
mod tests;
