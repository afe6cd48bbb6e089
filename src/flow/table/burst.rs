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
    /// buckets, then entries, then second buckets where first ones do not tell (one key in twenty
    /// that has a flow, one in six that has none), then (IPv6) addresses, and the answers last.
    fn chunk_by_keys<'s>(&'s self, keys: &[FlowKey], out: &mut [Option<FlowRef<'s>>]) {
        let (mut hashes, mut homes) = ([0u64; BURST], [0u32; BURST]);
        let (hashes, homes) = (&mut hashes[..keys.len()], &mut homes[..keys.len()]);
        let groups = keys.chunks(GROUP).zip(hashes.chunks_mut(GROUP));
        for ((keys, hashes), homes) in groups.zip(homes.chunks_mut(GROUP)) {
            hash_burst(&self.seed, keys, hashes);
            for (hash, home) in hashes.iter().zip(homes) {
                *home = self.ingress.home(*hash) as u32;
                self.ingress.prefetch(*home as usize);
            }
        }
        let mut leads = [buckets::NO_SLOT; BURST];
        let leads = &mut leads[..keys.len()];
        self.lead_all(hashes, homes, leads);
        for (key, lead) in keys.iter().zip(&*leads) {
            self.slab.prefetch_wide(*lead, key);
        }
        let each = keys.iter().zip(hashes).zip(leads).zip(out);
        for (((key, hash), lead), out) in each {
            *out = match self.slab.get(*lead) {
                Some(flow) if flow.has_key(key) => Some(flow),
                _ if *lead == buckets::NO_SLOT => None,
                _ => self.by_key_at_last(key, *hash),
            };
        }
    }

    /// Where the index leads for each hash of a burst: the entries there are on their way in.
    #[inline(always)]
    fn lead_all(&self, hashes: &[u64], homes: &[u32], leads: &mut [u32]) {
        // Those whose first bucket does not tell, counted without a branch: it would be
        // mispredicted for each of them.
        let (mut asking, mut count) = ([0u8; BURST], 0);
        let each = hashes.iter().zip(homes).zip(&mut *leads);
        for (at, ((hash, home), lead)) in (0..).zip(each) {
            *lead = self.ingress.glance(*home as usize, *hash);
            self.slab.prefetch(*lead);
            asking[count % BURST] = at;
            count += usize::from(*lead == buckets::ASK);
        }
        let asking = asking.iter().take(count).map(|at| usize::from(*at));
        for at in asking.clone() {
            self.ingress.prefetch_after(homes[at] as usize);
        }
        for at in asking {
            leads[at] = self.ingress.lead(homes[at] as usize, hashes[at]);
            self.slab.prefetch(leads[at]);
        }
    }

    /// The whole search, for what two buckets did not tell.
    #[cold]
    #[inline(never)]
    fn by_key_at_last(&self, key: &FlowKey, hash: u64) -> Option<FlowRef<'_>> {
        self.by_key(key, hash)
    }
}
