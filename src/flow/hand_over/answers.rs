//! What a hand-over answers, reports, counts, and may take.
//!
//! *Promises*: plain data; every answer says all that its caller has to do.
//! *Refuses*: nothing. *Caller's duty*: to do it before the next packet.
//! *Standard*: none.

use std::time::Duration;

use crate::flow::{CloseCode, FlowId, SessionId};
use crate::packet::FRAME_MAX;

/// What a hand-over may take, summed over an element's flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandOverLimits {
    /// Frames parked at a time.
    pub frames: u32,
    /// Bytes parked at a time.
    pub bytes: usize,
    /// How long a frame is parked.
    pub time: Duration,
    /// A proven flow becomes active at the bound, instead of returning to the guest.
    pub forced: bool,
    /// Flows that something is remembered about; raised to `frames + 1` if it is less.
    pub flows: u32,
}

impl HandOverLimits {
    /// The part of each of `lanes` that serve one element together; the largest frame fits.
    #[must_use]
    pub fn shared_by(self, lanes: usize) -> Self {
        let lanes = lanes.max(1);
        let part = |all: u32| (all / u32::try_from(lanes).unwrap_or(u32::MAX)).max(1);
        Self {
            frames: part(self.frames),
            bytes: (self.bytes / lanes).max(self.bytes.min(FRAME_MAX)),
            flows: part(self.flows),
            ..self
        }
    }
}

impl Default for HandOverLimits {
    fn default() -> Self {
        Self {
            frames: 1024,
            bytes: 4 << 20,
            time: Duration::from_millis(20),
            forced: false,
            flows: 2048,
        }
    }
}

/// What becomes of a keyed frame from the uplink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingress {
    /// To the guest.
    Punt,
    /// Into the parking lot.
    Park,
    /// The flow's parked frames to the guest in their order, then this one.
    ReleaseThenPunt,
    /// The flow's parked frames to the egress uplink in their order, then this one: it was
    /// forced to become active.
    ReleaseThenForward,
}

/// What follows from a frame of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestSent {
    /// Nothing.
    Nothing,
    /// The flow is active. With `release` its parked frames go, rewritten and in their
    /// order, to the egress uplink right after this very frame.
    Activated {
        /// Whether frames are parked.
        release: bool,
    },
    /// While draining the guest sent something else than the rewrite: the flow is pending
    /// again. With `release` its parked frames go to the guest in their order.
    Disproved {
        /// Whether frames are parked.
        release: bool,
    },
}

/// Where parked frames go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReleaseTo {
    /// The guest, unchanged.
    Guest,
    /// The flow's egress uplink, rewritten.
    Uplink,
}

/// A flow whose parked frames leave the lot, all of them and in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    /// Whose frames.
    pub flow: FlowId,
    /// Where they go.
    pub to: ReleaseTo,
}

/// What a hand-over, or the attempt, did to packets of its flow, as far as a backend can know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Toll {
    /// Packets that later ones may have overtaken: the guest had got them and was not seen to
    /// send them. It may have dropped or merged some, or sent them otherwise.
    pub overtaken: u32,
    /// Parked frames that went to the guest after all.
    pub returned: u32,
    /// Parked frames that found no room where they were released to.
    pub lost: u32,
}

impl Toll {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            overtaken: self.overtaken.saturating_add(other.overtaken),
            returned: self.returned.saturating_add(other.returned),
            lost: self.lost.saturating_add(other.lost),
        }
    }
}

/// What a worker tells the element's [`Sessions`](crate::flow::Sessions).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowEvent {
    /// The flow is active.
    Activated {
        /// Which.
        flow: FlowId,
        /// The guest's transit time as measured last, on any of the element's flows.
        transit: Option<Duration>,
        /// At a bound, not at its marker.
        forced: bool,
        /// What that did to its packets.
        toll: Toll,
    },
    /// A drain met a bound; the flow is pending again.
    DrainBound {
        /// Which.
        flow: FlowId,
        /// What that did to its packets.
        toll: Toll,
    },
    /// A packet was seen that ends the session.
    Closed {
        /// Whose. (The session, not the flow: a replacement changes the flow's id.)
        session: SessionId,
        /// Why.
        code: CloseCode,
    },
}

/// Counters of one machine since it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HandOverStats {
    /// Proofs of forwarding.
    pub proved: u64,
    /// Flows that became active, the forced ones included.
    pub activated: u64,
    /// Draining flows that the guest sent otherwise than requested.
    pub disproved: u64,
    /// Drains that met a bound of frames, bytes or time.
    pub drain_bounds: u64,
    /// Of these, flows that became active all the same.
    pub forced: u64,
    /// Frames parked in total.
    pub parked_frames: u64,
    /// Of these, released to the egress uplink.
    pub released_to_egress: u64,
    /// Of these, released to the guest.
    pub released_to_guest: u64,
    /// Of those released, lost for want of room.
    pub released_lost: u64,
    /// Packets that may have been overtaken, see [`Toll::overtaken`].
    pub overtaken: u64,
    /// How often the guest's transit time was measured.
    pub transits: u64,
    /// All of these together, microseconds.
    pub transit_us_sum: u64,
    /// The shortest, microseconds; 0 before the first.
    pub transit_us_min: u64,
    /// The guest's transit time as measured last, microseconds.
    pub transit_us_last: u64,
    /// Smoothed over about eight measurements, microseconds.
    pub transit_us_ewma: u64,
    /// The longest measured, microseconds.
    pub transit_us_max: u64,
}

impl HandOverStats {
    /// Two machines of one element together: the sums, and of single transit times the longest
    /// (of the shortest the shortest).
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            proved: self.proved + other.proved,
            activated: self.activated + other.activated,
            disproved: self.disproved + other.disproved,
            drain_bounds: self.drain_bounds + other.drain_bounds,
            forced: self.forced + other.forced,
            parked_frames: self.parked_frames + other.parked_frames,
            released_to_egress: self.released_to_egress + other.released_to_egress,
            released_to_guest: self.released_to_guest + other.released_to_guest,
            released_lost: self.released_lost + other.released_lost,
            overtaken: self.overtaken + other.overtaken,
            transits: self.transits + other.transits,
            transit_us_sum: self.transit_us_sum + other.transit_us_sum,
            transit_us_min: match (self.transit_us_min, other.transit_us_min) {
                (0, other) => other,
                (own, 0) => own,
                (own, other) => own.min(other),
            },
            transit_us_last: self.transit_us_last.max(other.transit_us_last),
            transit_us_ewma: self.transit_us_ewma.max(other.transit_us_ewma),
            transit_us_max: self.transit_us_max.max(other.transit_us_max),
        }
    }
}
