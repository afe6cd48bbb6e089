//! The addresses of IPv6 flows: what does not fit into a flow's own cache line.
//!
//! *Promises*: memory is used as IPv6 flows come, none for IPv4; an entry is written before its
//! flow is published and stays as it is until the flow's slot is free again.
//! *Refuses*: nothing: there is one for each slot.
//! *Caller's duty*: each entry taken is given back when its flow's slot is free again.
//! *Standard*: RFC 8200 section 3.

use super::arena::{Arena, Vacant, arena};
use super::prefetch::prefetch;
use crate::sync::{Arc, UnsafeCell};

/// Source and destination that match, then those on egress: words 1 to 4 of both keys.
pub(super) type Addresses = [u64; 8];

#[repr(C, align(64))]
struct Place(UnsafeCell<Addresses>);

// SAFETY: zeros are numbers; nothing to drop.
unsafe impl Vacant for Place {
    #[cfg(shunt_loom)]
    fn vacant() -> Self {
        Self(UnsafeCell::new([0; 8]))
    }
}

// SAFETY: a place is written in `WideWriter::take` only, while no flow names it.
unsafe impl Sync for Place {}

/// Bytes a table's IPv6 addresses take, if all of its flows have such.
pub(super) const fn memory_bytes(slots: u32) -> u64 {
    slots as u64 * (size_of::<Place>() + size_of::<u32>()) as u64
}

/// The addresses, for readers.
pub(super) struct Wide {
    places: Arena<Place>,
}

impl Wide {
    /// The addresses of a flow that the caller may look at.
    #[inline(always)]
    pub(super) fn get(&self, place: u32) -> &Addresses {
        // SAFETY: written before the flow was published, and not again before its slot is
        // free; who has the flow keeps its slot from that.
        self.places[place as usize]
            .0
            .with(|addresses| unsafe { &*addresses })
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, place: u32) {
        if let Some(place) = self.places.get(place as usize) {
            prefetch(place);
        }
    }
}

/// The writer's side.
pub(super) struct WideWriter {
    wide: Arc<Wide>,
    free: Vec<u32>,
    used: u32,
}

impl WideWriter {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            wide: Arc::new(Wide {
                places: arena(slots as usize),
            }),
            free: Vec::new(),
            used: 0,
        }
    }

    pub(super) fn shared(&self) -> Arc<Wide> {
        Arc::clone(&self.wide)
    }

    /// A place for one more flow's addresses.
    pub(super) fn take(&mut self, addresses: Addresses) -> Option<u32> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        let entry = self.wide.places.get(place as usize)?;
        // SAFETY: the place was never used or was given back: no flow names it.
        entry.0.with_mut(|cell| unsafe { *cell = addresses });
        Some(place)
    }

    pub(super) fn give_back(&mut self, place: u32) {
        self.free.push(place);
    }
}
