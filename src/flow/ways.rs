//! Ways: what flows have in common, kept once.
//!
//! *Promises*: flows with equal ways share one; a way is written before the first flow that has
//! it is published and stays as it is until the slots of all its flows are free again.
//! *Refuses*: more different ways at a time than [`ways_max`].
//! *Caller's duty*: one [`WaysWriter::share`] for each slot filled and one
//! [`WaysWriter::release`] when that slot is free again.
//! *Standard*: none.
//!
//! A way is everything of a flow but its addresses, its ports and its next hop: vNICs, VLANs,
//! protocol, MTU, DSCP and the like. An element with thousands of sessions has a few dozen.

use std::collections::HashMap;
use std::mem::{MaybeUninit, needs_drop};

use super::arena::{Arena, Vacant, arena};
use super::spec::{Direction, FlowSpec, HandOverMode};
use crate::packet::rewrite::Rewrite;
use crate::packet::{MacAddr, VnicId};
use crate::sync::{Arc, UnsafeCell};

/// What flows have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Way {
    /// First word of the key, and of the egress key.
    pub head: u64,
    pub egress_head: u64,
    pub rewrite: Rewrite,
    pub ingress_mac: MacAddr,
    pub egress: VnicId,
    pub l3_mtu: u16,
    pub mode: HandOverMode,
    pub direction: Direction,
    /// Whether destination and source MAC on egress were given, not to be learned.
    pub given: [bool; 2],
    /// Whether the session has this direction.
    pub present: bool,
    /// Whether its addresses are IPv4's and lie in the flow itself.
    pub narrow: bool,
}

impl Way {
    pub(super) fn of(spec: &FlowSpec, present: bool) -> Self {
        Self {
            head: spec.key.words()[0],
            egress_head: spec.egress_key.words()[0],
            rewrite: spec.rewrite,
            ingress_mac: spec.ingress_mac,
            egress: spec.egress,
            l3_mtu: spec.l3_mtu,
            mode: spec.mode,
            direction: spec.direction,
            given: [spec.dst_mac.is_some(), spec.src_mac.is_some()],
            present,
            narrow: spec.key.is_ipv4() && spec.egress_key.is_ipv4(),
        }
    }
}

/// A way's place, on a line of its own.
#[repr(C, align(64))]
struct Place(UnsafeCell<MaybeUninit<Way>>);

const _: () = assert!(!needs_drop::<Way>());

// SAFETY: an uninitialised `Way` may have any bytes, and has nothing to drop.
unsafe impl Vacant for Place {
    #[cfg(shunt_loom)]
    fn vacant() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }
}

// SAFETY: a place is written in `WaysWriter::share` only, while no flow that another thread can
// reach names it.
unsafe impl Sync for Place {}
// SAFETY: a `Way` is plain data.
unsafe impl Send for Place {}

/// How many different ways a table with so many slots takes.
pub(super) const fn ways_max(slots: u32) -> u16 {
    if cfg!(shunt_loom) {
        return 8;
    }
    let share = slots / 16 + 64;
    if share < 0xffff { share as u16 } else { 0xffff }
}

/// Bytes of a table's ways.
pub(super) const fn memory_bytes(slots: u32) -> u64 {
    ways_max(slots) as u64 * size_of::<Place>() as u64
}

/// The ways, for readers.
pub(super) struct Ways {
    places: Arena<Place>,
}

impl Ways {
    /// The way of a flow that the caller may look at.
    #[inline(always)]
    pub(super) fn get(&self, way: u16) -> &Way {
        // SAFETY: a flow's way was written before the flow was published, and is not written
        // again before its slot is free; who has the flow keeps its slot from that.
        self.places[usize::from(way)]
            .0
            .with(|way| unsafe { (*way).assume_init_ref() })
    }
}

/// The writer's side.
pub(super) struct WaysWriter {
    ways: Arc<Ways>,
    by_value: HashMap<Way, u16>,
    /// Slots that have each way.
    users: Vec<u32>,
    free: Vec<u16>,
    /// The way shared last, by direction: the next flow mostly has the same.
    recent: [Option<u16>; 2],
}

impl WaysWriter {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            ways: Arc::new(Ways {
                places: arena(usize::from(ways_max(slots))),
            }),
            by_value: HashMap::new(),
            users: Vec::new(),
            free: Vec::new(),
            recent: [None; 2],
        }
    }

    pub(super) fn shared(&self) -> Arc<Ways> {
        Arc::clone(&self.ways)
    }

    /// A way for one more slot.
    pub(super) fn share(&mut self, way: Way) -> Option<u16> {
        let side = way.direction as usize;
        if let Some(recent) = self.recent[side]
            && *self.ways.get(recent) == way
        {
            self.users[usize::from(recent)] += 1;
            return Some(recent);
        }
        let place = match self.by_value.get(&way) {
            Some(&place) => place,
            None => self.add(way)?,
        };
        self.users[usize::from(place)] += 1;
        self.recent[side] = Some(place);
        Some(place)
    }

    fn add(&mut self, way: Way) -> Option<u16> {
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.users.len() < self.ways.places.len() => {
                self.users.push(0);
                (self.users.len() - 1) as u16
            }
            None => return None,
        };
        // SAFETY: the place is new or no slot has it; no reader gets at it before a flow that
        // names it is published.
        self.ways.places[usize::from(place)]
            .0
            .with_mut(|cell| unsafe { (*cell).write(way) });
        self.by_value.insert(way, place);
        Some(place)
    }

    /// A slot with that way is free again.
    pub(super) fn release(&mut self, place: u16) {
        let Some(users) = self.users.get_mut(usize::from(place)) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.by_value.remove(self.ways.get(place));
            self.free.push(place);
            for recent in &mut self.recent {
                recent.take_if(|recent| *recent == place);
            }
        }
    }
}
