//! What a shield has done, and the bucket of one that polices.
//!
//! *Promises*: lanes neither wait for nor disturb each other when they count; the bucket is one
//! for all of them, and no more passes in any span than the rate, one burst, and one frame for
//! each lane besides.
//! *Refuses*: nothing. *Caller's duty*: each lane counts under its own number, on one thread.
//! *Standard*: none.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Action, Unit};
use crate::flow::{Moment, TokenBucket};

/// What a shield has matched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Packets on the wire.
    pub packets: u64,
    /// Bytes of their network layer.
    pub octets: u64,
    /// Of the packets, those that are gone.
    pub dropped: u64,
}

impl Count {
    /// What has come since an earlier one.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            packets: self.packets.wrapping_sub(earlier.packets),
            octets: self.octets.wrapping_sub(earlier.octets),
            dropped: self.dropped.wrapping_sub(earlier.dropped),
        }
    }
}

/// A lane's count, on a line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct LaneCount {
    packets: AtomicU64,
    octets: AtomicU64,
    dropped: AtomicU64,
}

/// Of one shield, for all lanes, as long as it is the same shield.
#[derive(Debug)]
pub struct Tally {
    bucket: Option<(Unit, TokenBucket)>,
    lanes: Box<[LaneCount]>,
}

impl Tally {
    /// Nothing matched yet, and the bucket full.
    pub(super) fn new(action: Action, lanes: usize) -> Self {
        let bucket = match action {
            Action::Police(rate) => Some((rate.unit, TokenBucket::new(rate.rate, rate.burst))),
            Action::Drop | Action::Punt => None,
        };
        Self {
            bucket,
            lanes: (0..lanes.max(1)).map(|_| LaneCount::default()).collect(),
        }
    }

    /// Whether a frame passes the bucket; without one it does.
    #[inline]
    pub(super) fn passes(&self, packets: u64, octets: u64, now: Moment) -> bool {
        let Some((unit, bucket)) = &self.bucket else {
            return true;
        };
        let found = bucket.has_more_than(0, now);
        if found {
            let tokens = match unit {
                Unit::Packets => packets,
                Unit::Bits => octets.saturating_mul(8),
            };
            bucket.take(tokens, now);
        }
        found
    }

    /// Notes a frame that `lane` has matched.
    #[inline]
    pub(super) fn count(&self, lane: usize, packets: u64, octets: u64, is_gone: bool) {
        let Some(own) = self.lanes.get(lane) else {
            return;
        };
        // A load and a store: nobody else writes.
        let add = |counter: &AtomicU64, more| {
            counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
        };
        add(&own.packets, packets);
        add(&own.octets, octets);
        if is_gone {
            add(&own.dropped, packets);
        }
    }

    /// The sum over all lanes.
    pub fn total(&self) -> Count {
        let mut total = Count::default();
        for lane in &self.lanes {
            total.packets = total.packets.wrapping_add(lane.packets.load(Relaxed));
            total.octets = total.octets.wrapping_add(lane.octets.load(Relaxed));
            total.dropped = total.dropped.wrapping_add(lane.dropped.load(Relaxed));
        }
        total
    }
}
