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
//! **Size** ([`table_memory_bytes`]): a flow takes a line of 64 bytes, 20 of notes, 2 × 7.1 of
//! index, and a sixty-fourth of line and notes for spare slots: 199 bytes a session, whose two
//! directions are always there. Flows of IPv6 take 68 more each, for their addresses. All of it is
//! set aside when the table is made, and taken from the system as it is first used.
//! **Longest probe**: 7 cache lines at full quota, 1.03 on average (see `buckets`).
//! **Full**: the quota counts flows in the table. Slots of removed flows come back when
//! the readers pinned at their removal have left; spare ones (a sixty-fourth, 64 at
//! least) bridge that time and let a full table still replace.

use super::buckets::{self, Buckets};
use super::entry::FlowCounters;
use super::entry::FlowRef;
use super::hash::{HashSeed, hash};
use super::slab::{self, Slab, SlabWriter};
use super::spec::{FlowId, FlowSpec, FlowState};
use crate::packet::FlowKey;
use crate::sync::Arc;

mod burst;

/// Why the table did not take a flow. It is as it was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InsertError {
    /// The quota is used up.
    #[error("the flow table is full: {flows_max} flows; end sessions or raise the quota")]
    TableFull {
        /// The quota.
        flows_max: u32,
    },
    /// Flows of too many kinds: their VLANs, MTUs, DSCPs and the like differ too much.
    #[error("too many different combinations of vNIC, VLAN, MTU and DSCP: use fewer")]
    TooManyWays,
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
        let share = flows_max / 64;
        if share > 64 { share } else { 64 }
    }
}

/// How many slots a table for `flows_max` flows has: [`FlowId`]s have a smaller index.
pub const fn slots_of(flows_max: u32) -> u32 {
    let flows_max = if flows_max < FLOWS_MAX {
        flows_max
    } else {
        FLOWS_MAX
    };
    flows_max + spare_slots(flows_max)
}

/// The most flows a table can be made for: what its indexes can name.
pub const FLOWS_MAX: u32 = buckets::SLOTS_MAX / 64 * 63;

/// Bytes of a table with this quota, all of its flows IPv4's, and what it takes more when all
/// are IPv6's; without its readers' 128 bytes each.
pub fn table_memory_bytes(flows_max: u32) -> (u64, u64) {
    let flows_max = flows_max.min(FLOWS_MAX);
    let (slots, wide) = slab::memory_bytes(slots_of(flows_max));
    (slots + 2 * Buckets::memory_bytes(flows_max), wide)
}

/// A table for `flows_max` flows (two a session; [`FLOWS_MAX`] at most), with its one writer and
/// `readers_max` readers. Sets [`table_memory_bytes`] aside, and allocates nothing later but the
/// writer's short lists of what waits to be reclaimed.
pub fn flow_table(
    flows_max: u32,
    readers_max: usize,
    seed: HashSeed,
) -> (TableWriter, Vec<TableReader>) {
    let flows_max = flows_max.min(FLOWS_MAX);
    let slab = SlabWriter::new(slots_of(flows_max), readers_max);
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
    fn by_key(&self, key: &FlowKey, hash: u64) -> Option<FlowRef<'_>> {
        self.ingress.find(hash, |slot| {
            self.slab.get(slot).filter(|flow| flow.has_key(key))
        })
    }

    #[inline]
    fn by_egress_key(&self, key: &FlowKey, hash: u64) -> Option<FlowRef<'_>> {
        self.egress.find(hash, |slot| {
            self.slab.get(slot).filter(|flow| flow.has_egress_key(key))
        })
    }

    #[inline]
    fn hash(&self, key: &FlowKey) -> u64 {
        hash(&self.seed, key)
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
        shared.by_key(key, shared.hash(key))
    }

    /// The flow whose rewritten packets have this key: what the guest sends.
    #[inline]
    pub fn lookup_egress(&self, key: &FlowKey) -> Option<FlowRef<'_>> {
        let shared = &*self.reader.shared;
        shared.by_egress_key(key, shared.hash(key))
    }

    /// [`Pin::lookup`] of many keys at once, their waits for memory overlapped. `out` gets
    /// one answer for each key, in order; what it is longer stays as it is, and keys beyond
    /// its length are not looked up.
    pub fn lookup_burst<'s>(&'s self, keys: &[FlowKey], out: &mut [Option<FlowRef<'s>>]) {
        self.reader.shared.by_keys(keys, out);
    }

    /// The flow of that name; `None` once it was removed or replaced.
    #[inline]
    pub fn by_id(&self, id: FlowId) -> Option<FlowRef<'_>> {
        self.reader.shared.slab.by_id(id)
    }

    /// The other direction of the same session.
    #[inline]
    pub fn partner<'f>(&self, flow: FlowRef<'f>) -> Option<FlowRef<'f>> {
        flow.partner()
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
        let hashes = [self.hashes(&original), self.hashes(&reply)];
        for hashes in &hashes {
            self.prefetch(hashes);
        }
        self.check_keys([&original, &reply], &hashes, presence)?;
        if self.flows_max - self.flows < 2 {
            return Err(InsertError::TableFull {
                flows_max: self.flows_max,
            });
        }
        self.ensure_free(2)?;
        let a = self.allocate(&original, presence[0], state)?;
        let b = match self.allocate(&reply, presence[1], state) {
            Ok(b) => b,
            Err(error) => {
                self.slab.retire(a.index);
                return Err(error);
            }
        };
        self.flows += 2;
        self.slab.pair(a.index, b.index);
        for (place, id) in [a, b].into_iter().enumerate() {
            if presence[place] {
                // The egress index first: a worker that forwards by the new flow finds
                // what the guest sends, too.
                self.shared.egress.insert(hashes[place].egress, id.index);
                self.shared.ingress.insert(hashes[place].ingress, id.index);
            }
        }
        Ok((a, b))
    }

    fn check_keys(
        &self,
        specs: [&FlowSpec; 2],
        hashes: &[Hashes; 2],
        presence: [bool; 2],
    ) -> Result<(), InsertError> {
        for place in 0..2 {
            let (spec, hashes) = (specs[place], &hashes[place]);
            let taken = || {
                let shared = &self.shared;
                shared
                    .by_key(&spec.key, hashes.ingress)
                    .or_else(|| shared.by_egress_key(&spec.egress_key, hashes.egress))
            };
            if let Some(flow) = presence[place].then(taken).flatten() {
                return Err(InsertError::KeyExists(flow.id()));
            }
        }
        let [original, reply] = specs;
        let equal =
            same(&original.key, &reply.key) || same(&original.egress_key, &reply.egress_key);
        if presence == [true, true] && equal {
            return Err(InsertError::SameKey);
        }
        Ok(())
    }

    /// Fetches what changes when a flow with these hashes comes or goes.
    fn prefetch(&self, hashes: &Hashes) {
        for (index, hash) in [
            (&self.shared.ingress, hashes.ingress),
            (&self.shared.egress, hashes.egress),
        ] {
            index.prefetch(index.home(hash));
        }
    }

    /// The flow with this ingress key.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let flow = self.shared.by_key(key, self.shared.hash(key))?;
        Some(flow.id())
    }

    /// The flow with this egress key.
    pub fn find_egress(&self, key: &FlowKey) -> Option<FlowId> {
        let flow = self.shared.by_egress_key(key, self.shared.hash(key))?;
        Some(flow.id())
    }

    /// The flow of that name, if it is in the table.
    pub fn flow(&self, id: FlowId) -> Option<FlowRef<'_>> {
        self.shared.slab.by_id(id)
    }

    /// The flow in a slot that its owner knows to be in the table.
    pub(super) fn in_slot(&self, slot: u32) -> Option<FlowRef<'_>> {
        self.shared.slab.get(slot)
    }

    /// The flow of that name counts as moved at `ms`, if it has not moved later.
    pub(super) fn touch(&self, id: FlowId, ms: u32) {
        if let Some(flow) = self.flow(id) {
            flow.touch(ms);
        }
    }

    /// What the flow of that name has counted, with all that flows it replaced had.
    pub fn counters(&self, id: FlowId) -> Option<FlowCounters> {
        self.flow(id).map(|flow| self.slab.counters(flow))
    }

    /// The name of the other direction.
    pub fn partner(&self, id: FlowId) -> Option<FlowId> {
        self.flow(id)?.partner().map(FlowRef::id)
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
        state: impl Fn(&FlowRef<'_>, &FlowSpec) -> FlowState,
    ) -> Result<FlowId, InsertError> {
        let from = self.flow(old).ok_or(InsertError::UnknownFlow(old))?;
        if !from.has_key(&spec.key) {
            return Err(InsertError::OtherKey(old));
        }
        let present = from.is_present();
        let before = self.hashes_of(&spec.key, &from.egress_key());
        let moved = !from.has_egress_key(&spec.egress_key);
        let state = state(&from, &spec);
        if let Some(other) = self.find_egress(&spec.egress_key)
            && present
            && moved
        {
            return Err(InsertError::KeyExists(other));
        }
        self.ensure_free(1)?;
        let after = self.hashes(&spec);
        let new = self.allocate(&spec, present, state)?;
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
        let hashes = [a, b].map(|id| {
            let flow = self.flow(id).filter(|flow| flow.is_present())?;
            let hashes = self.hashes_of(&flow.key(), &flow.egress_key());
            self.prefetch(&hashes);
            Some(hashes)
        });
        for (id, hashes) in [a, b].into_iter().zip(hashes) {
            let Some(flow) = self.flow(id) else {
                continue;
            };
            flow.close();
            if let Some(hashes) = hashes {
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
        spec: &FlowSpec,
        present: bool,
        state: FlowState,
    ) -> Result<FlowId, InsertError> {
        // Slots are there: the caller has made sure.
        self.slab
            .allocate(spec, present, state)
            .ok_or(InsertError::TooManyWays)
    }

    fn hashes(&self, spec: &FlowSpec) -> Hashes {
        self.hashes_of(&spec.key, &spec.egress_key)
    }

    fn hashes_of(&self, key: &FlowKey, egress_key: &FlowKey) -> Hashes {
        Hashes {
            ingress: self.shared.hash(key),
            egress: self.shared.hash(egress_key),
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
fn inherited_state(from: &FlowRef<'_>, spec: &FlowSpec) -> FlowState {
    let (old, new) = (from.egress_key(), &spec.egress_key);
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
