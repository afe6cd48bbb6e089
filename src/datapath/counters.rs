//! An element's counters.
//!
//! *Promises*: forwarded, punted, passed on and dropped packets are disjoint; with what is
//! parked they add up to what came in ([`Snapshot::is_conserved`]). Packets are wire packets
//! (a GSO frame counts its segments), bytes are L3 bytes.
//! *Caller's duty*: one worker writes, anybody reads: an element has a set of counters for each
//! of its lanes, added when read ([`CrewCounters`]). A packet that goes on at another lane counts
//! as what became of it there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::flow::hand_over::HandOverStats;
use crate::packet::{DropReason, PuntReason};

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; cheaper than an atomic addition because nobody else writes.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Replaces the value of a gauge.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Packets and bytes of one kind of traffic.
#[derive(Debug, Default)]
pub struct Traffic {
    packets: Counter,
    bytes: Counter,
}

/// How much one frame is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wire {
    /// Wire packets.
    pub packets: u32,
    /// L3 bytes of all of them.
    pub bytes: u32,
}

/// What several frames are on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    packets: u64,
    bytes: u64,
}

impl Sum {
    #[inline]
    pub(super) fn add(&mut self, wire: Wire) {
        self.packets += u64::from(wire.packets);
        self.bytes += u64::from(wire.bytes);
    }
}

impl Traffic {
    #[inline]
    pub(super) fn add(&self, wire: Wire) {
        self.packets.add(u64::from(wire.packets));
        self.bytes.add(u64::from(wire.bytes));
    }

    #[inline]
    pub(super) fn add_sum(&self, sum: Sum) {
        self.packets.add(sum.packets);
        self.bytes.add(sum.bytes);
    }

    #[inline]
    pub(super) fn add_all(&self, wires: &[Wire]) {
        let mut sum = Sum::default();
        wires.iter().for_each(|wire| sum.add(*wire));
        self.add_sum(sum);
    }

    fn snapshot(&self) -> TrafficSnapshot {
        TrafficSnapshot {
            packets: self.packets.get(),
            bytes: self.bytes.get(),
        }
    }
}

/// All counters of an element.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ElementCounters {
    /// From the element's uplinks.
    pub from_uplink: Traffic,
    /// From the element's guest.
    pub from_guest: Traffic,
    /// Uplink to uplink: the fast path.
    pub forwarded: Traffic,
    /// Guest to paired uplink: the slow path's way out.
    pub passed: Traffic,
    /// Uplink to guest, all reasons.
    pub punted: Traffic,
    punts: Reasons<{ PuntReason::COUNT }>,
    drops: Reasons<{ DropReason::COUNT }>,
    /// Packets parked now.
    pub parked: Counter,
    /// Nanoseconds spent on bursts that found something.
    pub busy_ns: Counter,
    /// CPU time of its worker spent on this element, nanoseconds: also on looking in vain and
    /// on wake-ups.
    pub cpu_ns: Counter,
    hand_over: HandOverCounters,
}

/// A copy of [`HandOverStats`] that others can read; see there.
#[derive(Debug, Default)]
struct HandOverCounters([Counter; 16]);

impl HandOverCounters {
    fn set(&self, stats: &HandOverStats) {
        let values = [
            stats.proved,
            stats.activated,
            stats.disproved,
            stats.drain_bounds,
            stats.forced,
            stats.parked_frames,
            stats.released_to_egress,
            stats.released_to_guest,
            stats.released_lost,
            stats.overtaken,
            stats.transits,
            stats.transit_us_sum,
            stats.transit_us_min,
            stats.transit_us_last,
            stats.transit_us_ewma,
            stats.transit_us_max,
        ];
        for (counter, value) in self.0.iter().zip(values) {
            counter.set(value);
        }
    }

    fn get(&self) -> HandOverStats {
        let [
            proved,
            activated,
            disproved,
            drain_bounds,
            forced,
            parked_frames,
            released_to_egress,
            released_to_guest,
            released_lost,
            overtaken,
            transits,
            transit_us_sum,
            transit_us_min,
            transit_us_last,
            transit_us_ewma,
            transit_us_max,
        ] = self.0.each_ref().map(Counter::get);
        HandOverStats {
            proved,
            activated,
            disproved,
            drain_bounds,
            forced,
            parked_frames,
            released_to_egress,
            released_to_guest,
            released_lost,
            overtaken,
            transits,
            transit_us_sum,
            transit_us_min,
            transit_us_last,
            transit_us_ewma,
            transit_us_max,
        }
    }
}

#[derive(Debug)]
struct Reasons<const N: usize>([Counter; N]);

impl<const N: usize> Default for Reasons<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl ElementCounters {
    #[inline]
    pub(super) fn punt(&self, reason: PuntReason, wire: Wire) {
        self.punted.add(wire);
        self.punts.0[reason.index()].add(u64::from(wire.packets));
    }

    #[inline]
    pub(super) fn lose(&self, reason: DropReason, wire: Wire) {
        self.drops.0[reason.index()].add(u64::from(wire.packets));
    }

    pub(super) fn set_hand_over(&self, stats: &HandOverStats) {
        self.hand_over.set(stats);
    }

    /// A copy of all values. Taken while packets move, it is consistent only counter by counter.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            from_uplink: self.from_uplink.snapshot(),
            from_guest: self.from_guest.snapshot(),
            forwarded: self.forwarded.snapshot(),
            passed: self.passed.snapshot(),
            punted: self.punted.snapshot(),
            punts: PuntReason::ALL
                .iter()
                .map(|r| (*r, self.punts.0[r.index()].get()))
                .collect(),
            drops: DropReason::ALL
                .iter()
                .map(|r| (*r, self.drops.0[r.index()].get()))
                .collect(),
            parked: self.parked.get(),
            busy_ns: self.busy_ns.get(),
            cpu_ns: self.cpu_ns.get(),
            hand_over: self.hand_over.get(),
        }
    }
}

/// The counters of all lanes of an element.
#[derive(Clone, Debug)]
pub struct CrewCounters(Vec<Arc<ElementCounters>>);

impl CrewCounters {
    /// One set for each lane.
    pub fn new(lanes: Vec<Arc<ElementCounters>>) -> Self {
        Self(lanes)
    }

    /// The sums of all values; of transit times the longest.
    pub fn snapshot(&self) -> Snapshot {
        let mut lanes = self.0.iter().map(|lane| lane.snapshot());
        let first = lanes
            .next()
            .unwrap_or_else(|| ElementCounters::default().snapshot());
        lanes.fold(first, Snapshot::and)
    }

    /// One lane's values.
    pub fn lanes(&self) -> impl Iterator<Item = Snapshot> {
        self.0.iter().map(|lane| lane.snapshot())
    }
}

/// A copy of [`Traffic`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TrafficSnapshot {
    /// Wire packets.
    pub packets: u64,
    /// L3 bytes.
    pub bytes: u64,
}

/// A copy of [`ElementCounters`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// From the element's uplinks.
    pub from_uplink: TrafficSnapshot,
    /// From the element's guest.
    pub from_guest: TrafficSnapshot,
    /// Uplink to uplink.
    pub forwarded: TrafficSnapshot,
    /// Guest to paired uplink.
    pub passed: TrafficSnapshot,
    /// Uplink to guest.
    pub punted: TrafficSnapshot,
    /// Packets by punt reason.
    pub punts: Vec<(PuntReason, u64)>,
    /// Packets by drop reason.
    pub drops: Vec<(DropReason, u64)>,
    /// Packets parked now.
    pub parked: u64,
    /// Nanoseconds of useful work.
    pub busy_ns: u64,
    /// CPU time spent on the element, nanoseconds.
    pub cpu_ns: u64,
    /// How sessions moved to the fast path.
    pub hand_over: HandOverStats,
}

impl TrafficSnapshot {
    fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Snapshot {
    /// Two lanes of one element together.
    fn and(mut self, other: Self) -> Self {
        for (own, other) in self.punts.iter_mut().zip(other.punts) {
            own.1 += other.1;
        }
        for (own, other) in self.drops.iter_mut().zip(other.drops) {
            own.1 += other.1;
        }
        Self {
            from_uplink: self.from_uplink.and(other.from_uplink),
            from_guest: self.from_guest.and(other.from_guest),
            forwarded: self.forwarded.and(other.forwarded),
            passed: self.passed.and(other.passed),
            punted: self.punted.and(other.punted),
            parked: self.parked + other.parked,
            busy_ns: self.busy_ns + other.busy_ns,
            cpu_ns: self.cpu_ns + other.cpu_ns,
            hand_over: self.hand_over.and(&other.hand_over),
            ..self
        }
    }

    /// Packets of one punt reason.
    pub fn punted_for(&self, reason: PuntReason) -> u64 {
        self.punts[reason.index()].1
    }

    /// Packets of one drop reason.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.drops[reason.index()].1
    }

    /// Whether what came in is what went out, was dropped, or is parked.
    pub fn is_conserved(&self) -> bool {
        let dropped: u64 = self.drops.iter().map(|(_, count)| count).sum();
        let punted: u64 = self.punts.iter().map(|(_, count)| count).sum();
        punted == self.punted.packets
            && self.from_uplink.packets + self.from_guest.packets
                == self.forwarded.packets + self.passed.packets + punted + dropped + self.parked
    }
}
