//! Many look-ups at once, their waits for memory overlapped.
//!
//! *Promises*: each answer is [`super::Pin::lookup`]'s; nothing is waited for that could have been
//! asked for before.
//! *Refuses*: nothing. *Caller's duty*: a pin. *Standard*: none.
//!
//! What a load brings decides no branch as long as others could be waited for meanwhile: a branch
//! that is mispredicted on a line from memory costs the whole wait, and all that was begun after it.

use super::super::buckets;
use super::super::entry::FlowRef;
use super::super::hash::hash_burst;
use super::Shared;
use crate::packet::FlowKey;

/// Keys looked up together: a burst of DESIGN section 4.
const BURST: usize = 64;

/// Keys hashed before their buckets are asked for: the first buckets come in while the last keys
/// are hashed.
const GROUP: usize = 16;

impl Shared {
    /// The flow of each key, in order, as far as both lists go.
    pub(super) fn by_keys<'s>(&'s self, keys: &[FlowKey], out: &mut [Option<FlowRef<'s>>]) {
        for (keys, out) in keys.chunks(BURST).zip(out.chunks_mut(BURST)) {
            self.chunk_by_keys(keys, out);
        }
    }

    /// In stages, so that the waits of all keys for one kind of line overlap: hashes and
    /// buckets, then entries, then second buckets where first ones were full (one key in thirty
    /// that has a flow, one in eight that has none), then (IPv6) addresses, and the answers last.
    fn chunk_by_keys<'s>(&'s self, keys: &[FlowKey], out: &mut [Option<FlowRef<'s>>]) {
        let (mut hashes, mut leads) = ([0u64; BURST], [buckets::NO_SLOT; BURST]);
        let keys = &keys[..keys.len().min(BURST)];
        for (keys, hashes) in keys.chunks(GROUP).zip(hashes.chunks_mut(GROUP)) {
            hash_burst(&self.seed, keys, &mut hashes[..keys.len()]);
            for hash in &hashes[..keys.len()] {
                self.ingress.prefetch(*hash);
            }
        }
        let (hashes, leads) = (&hashes[..keys.len()], &mut leads[..keys.len()]);
        self.lead_all(hashes, leads);
        for (key, lead) in keys.iter().zip(&*leads) {
            self.slab.prefetch_wide(*lead, key);
        }
        for (place, (key, out)) in keys.iter().zip(out).enumerate() {
            let led = self.slab.get(leads[place]);
            *out = match led.filter(|flow| flow.has_key(key)) {
                None if leads[place] != buckets::NO_SLOT => self.by_key(key, hashes[place]),
                found => found,
            };
        }
    }

    /// Where the index leads for each hash of a burst: the entries there are on their way in.
    #[inline(always)]
    fn lead_all(&self, hashes: &[u64], leads: &mut [u32]) {
        let mut passed = [false; BURST];
        for (hash, passed) in hashes.iter().zip(&mut passed) {
            *passed = self.ingress.is_passed(*hash);
        }
        // Those whose first bucket does not tell, counted without a branch: it would be
        // mispredicted for each of them.
        let (mut asking, mut count) = ([0u8; BURST], 0);
        let each = hashes.iter().zip(passed).zip(&mut *leads);
        for (at, ((hash, passed), lead)) in each.enumerate() {
            *lead = self.ingress.lead(*hash, passed);
            self.slab.prefetch(*lead);
            asking[count % BURST] = at as u8;
            count += usize::from(*lead == buckets::ASK);
        }
        let asking = asking.iter().take(count).map(|at| usize::from(*at));
        for at in asking.clone() {
            self.ingress.prefetch_after(hashes[at]);
        }
        for at in asking {
            leads[at] = self.ingress.lead_after(hashes[at]);
            self.slab.prefetch(leads[at]);
        }
    }
}
