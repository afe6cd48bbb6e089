//! The worker's side of a hand-over: when a flow's packets may stop going through the
//! guest (DESIGN section 4, hand-over). One per element and worker.
//!
//! It holds records, no frames: those lie in the datapath's parking lot, by [`FlowId`],
//! and are moved when an answer says so. A flow is in one of three situations:
//!
//! | flow state | record | its packets |
//! |---|---|---|
//! | pending | perhaps | go to the guest |
//! | draining | last punted packet not distinct | go to the guest |
//! | draining | last punted packet distinct: the *marker* | park |
//!
//! A punted packet is *distinct* if its leaving the guest shows that all of the flow's
//! earlier packets have left: a TCP packet whose sequence end and acknowledgement are
//! both at or past everything seen of the flow since the request, and one of them past
//! it; another packet if it differs from the last eight different ones. The first packet seen of a flow
//! is never distinct, because what entered the guest before the request is unknown.
//!
//! A flow that control sends back to be proved again is in another *round*: frames parked for
//! it go to the guest, and its proof is a distinct packet that the guest got in this round, or one
//! behind that.
//!
//! *Promises*: a flow becomes active only after the guest sent a frame that is exactly
//! its rewrite. In ordered mode and behind a guest that keeps a flow's packets in order
//! (it may drop, merge, split and repeat them), nothing overtakes. Parked frames are
//! bounded in number, bytes and time, summed over the element's flows, and never lost.
//! Nothing is allocated after [`HandOver::new`]; every call takes constant time but
//! [`HandOver::expire`] and [`HandOver::revisit`], which take it per parked flow.
//! A clock that goes backwards stands still.
//!
//! *Refuses*: to tell apart what is equal. UDP and other packets of the same length and
//! first payload bytes are taken as interchangeable once 32 in a row were equal, and a
//! flow that only alternates between few payloads stays pending. A packet that is sent
//! again while its first copy is still in the guest *from before the flow's record began*
//! (before the request, as a rule), and is not known from later ones, may end the drain
//! one guest transit early.
//!
//! *Caller's duty*: all packets of a flow, from the uplink and from the guest, come to
//! the same machine in their order. Packets of closing flows come too, unless
//! [`HandOver::is_idle`]. What an answer releases is moved before the next packet is
//! looked at. [`HandOver::revisit`] is called at a burst's start whenever
//! [`ElementSignals::revisit`](super::ElementSignals) has changed; [`HandOver::expire`]
//! by [`HandOver::next_deadline`]. The lot holds what [`HandOverLimits`] allow.
//!
//! *Standard*: RFC 9293 section 3.4 (sequence numbers), RFC 6298 section 2 (smoothing).

mod answers;
mod records;
mod seen;

use std::collections::VecDeque;
use std::time::Duration;

pub use self::answers::{
    FlowEvent, GuestSent, HandOverLimits, HandOverStats, Ingress, Release, ReleaseTo, Toll,
};
use self::records::{Record, Records};
use super::entry::{FlowRef, Stand};
use super::table::Pin;
use super::{FlowId, FlowState, HandOverMode, Moment};
use crate::packet::{MacAddr, Marker};

/// The longest wait between two drains of a flow.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A timed packet that has not left the guest for so long never will.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// How many records [`HandOver::revisit`] looks at beside the parked ones.
const SWEEP: usize = 64;

/// The hand-over machine of one element on one worker.
#[derive(Debug)]
pub struct HandOver {
    limits: HandOverLimits,
    records: Records,
    parked_frames: u32,
    parked_bytes: usize,
    now: Moment,
    stats: HandOverStats,
    events: VecDeque<FlowEvent>,
}

impl HandOver {
    /// A machine without records; the only place that allocates.
    pub fn new(limits: HandOverLimits) -> Self {
        let flows = limits.flows.max(limits.frames.saturating_add(1)) as usize;
        Self {
            limits,
            records: Records::new(flows),
            parked_frames: 0,
            parked_bytes: 0,
            now: Moment(0),
            stats: HandOverStats::default(),
            events: VecDeque::with_capacity(flows),
        }
    }

    /// A keyed frame from the uplink hit a flow that is not active. `control`: the guest
    /// must see it whatever the flow's state ([`Parsed::control`](crate::packet::Parsed),
    /// expiring TTL, larger than the MTU).
    pub fn ingress(
        &mut self,
        flow: FlowRef<'_>,
        marker: Marker,
        control: bool,
        frame_len: usize,
        now: Moment,
    ) -> Ingress {
        let now = self.clock(now);
        let stand = flow.stand();
        let state = stand.state();
        if state == FlowState::Closing || state == FlowState::Active {
            return self.not_waiting(flow.id());
        }
        // The session is not idle while the guest carries it.
        flow.count(0, 0, now.millis() as u32);
        let place = self.records.obtain(flow.id());
        if self.begin_round(place, stand, now) {
            self.punt(place, marker, now);
            return Ingress::ReleaseThenPunt;
        }
        let record = self.records.peek(place);
        let draining = state == FlowState::Draining && record.distinct;
        // A marker older than the bound is lost in the guest: waiting for it would only
        // make this frame late. The frame becomes the marker instead.
        let lost = record.parked_frames == 0 && now.since(record.last_at) > self.limits.time;
        if draining && !control && !lost {
            return self.park(flow, place, marker, frame_len, now);
        }
        let released = self.return_parked(place, now);
        self.punt(place, marker, now);
        if released {
            Ingress::ReleaseThenPunt
        } else {
            Ingress::Punt
        }
    }

    /// The guest sent a frame whose key is the flow's egress key. `exact`: but for the
    /// MACs it is the requested rewrite.
    pub fn guest_sent(
        &mut self,
        flow: FlowRef<'_>,
        marker: Marker,
        dst_mac: MacAddr,
        src_mac: MacAddr,
        exact: bool,
        now: Moment,
    ) -> GuestSent {
        let now = self.clock(now);
        let stand = flow.stand();
        let state = stand.state();
        if state == FlowState::Closing || state == FlowState::Active {
            return GuestSent::Nothing;
        }
        let place = self.records.obtain(flow.id());
        if self.begin_round(place, stand, now) {
            return GuestSent::Disproved { release: true };
        }
        let timed = self.leaves(place, marker, now);
        let proves = exact
            && flow.takes_macs(dst_mac, src_mac)
            && !dst_mac.is_group()
            && !src_mac.is_group();
        if state == FlowState::Draining {
            if !proves || flow.macs() != (dst_mac, src_mac) {
                return self.disproved(flow, stand, place, now);
            }
        } else {
            // What was in the guest when the flow was sent back to be proved again proves nothing.
            let entered_since = stand.round() == 0 || timed;
            if !proves || !entered_since {
                return GuestSent::Nothing;
            }
            self.stats.proved += 1;
            flow.learn_macs(dst_mac, src_mac);
        }
        let record = self.records.peek(place);
        let out = record.distinct && record.last.is_some_and(|last| seen::reaches(marker, last));
        if out || flow.mode() == HandOverMode::Prompt {
            return self.activate(flow, stand, place);
        }
        if state == FlowState::Pending && now >= record.retry_at {
            flow.advance(stand, FlowState::Draining);
        }
        GuestSent::Nothing
    }

    /// Ends the drains whose time is up; `release` is told what to move, in order.
    pub fn expire(&mut self, pin: &Pin<'_>, now: Moment, mut release: impl FnMut(Release)) {
        let now = self.clock(now);
        while let Some(place) = self.records.oldest_parked() {
            let record = self.records.peek(place);
            if now < record.parked_since + self.limits.time {
                return;
            }
            let id = record.flow;
            let forced = match pin.by_id(id) {
                Some(flow) => self.bound(flow, place, now),
                None => {
                    self.drop_record(place);
                    false
                }
            };
            let to = if forced {
                ReleaseTo::Uplink
            } else {
                ReleaseTo::Guest
            };
            release(Release { flow: id, to });
        }
    }

    /// Looks again at flows with parked frames, after sessions have closed or were sent back;
    /// `release` is told what to move, in order.
    pub fn revisit(&mut self, pin: &Pin<'_>, mut release: impl FnMut(Release)) {
        let mut at = self.records.oldest_parked();
        while let Some(place) = at {
            at = self.records.next_parked(place);
            let Record { flow, round, .. } = *self.records.peek(place);
            let stand = pin.by_id(flow).map(FlowRef::stand);
            let drains = |stand: Stand| stand.state() == FlowState::Draining;
            if !stand.is_some_and(|stand| drains(stand) && stand.round() == round) {
                self.drop_record(place);
                let to = ReleaseTo::Guest;
                release(Release { flow, to });
            }
        }
        for _ in 0..SWEEP.min(self.records.len()) {
            let Some(place) = self.records.rotate_watched() else {
                return;
            };
            let now = state(pin, self.records.peek(place).flow);
            if !matches!(now, Some(FlowState::Pending | FlowState::Draining)) {
                self.drop_record(place);
            }
        }
    }

    /// When [`HandOver::expire`] is to be called next.
    pub fn next_deadline(&self) -> Option<Moment> {
        let place = self.records.oldest_parked()?;
        Some(self.records.peek(place).parked_since + self.limits.time)
    }

    /// Whether nothing is parked, so that nothing can become due.
    pub fn is_idle(&self) -> bool {
        self.parked_frames == 0
    }

    /// Frames parked now.
    pub fn parked_frames(&self) -> u32 {
        self.parked_frames
    }

    /// Flows remembered now.
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// The next event for the element's sessions. Up to one per record is kept, so it is
    /// enough to ask once a burst; what does not fit is lost, and the sessions find out
    /// when their timers look at the flow.
    pub fn next_event(&mut self) -> Option<FlowEvent> {
        self.events.pop_front()
    }

    /// So many of the frames of `flow` that were released now found no room. Events that say
    /// why they were released, and that nobody has taken yet, say it too.
    pub fn lost(&mut self, flow: FlowId, frames: u32) {
        self.stats.released_lost += u64::from(frames);
        let mut events = self.events.iter_mut().rev();
        let toll = events.find_map(|event| match event {
            FlowEvent::Activated { flow: of, toll, .. }
            | FlowEvent::DrainBound { flow: of, toll }
                if *of == flow =>
            {
                Some(toll)
            }
            _ => None,
        });
        if let Some(toll) = toll {
            toll.lost = toll.lost.saturating_add(frames);
        }
    }

    /// Counters since the start.
    pub fn stats(&self) -> &HandOverStats {
        &self.stats
    }

    fn clock(&mut self, now: Moment) -> Moment {
        self.now = self.now.max(now);
        self.now
    }

    /// A packet of a closing flow; or of one that just became active elsewhere.
    fn not_waiting(&mut self, flow: FlowId) -> Ingress {
        let Some(place) = self.records.find(flow) else {
            return Ingress::Punt;
        };
        if self.drop_record(place) > 0 {
            Ingress::ReleaseThenPunt
        } else {
            Ingress::Punt
        }
    }

    fn park(
        &mut self,
        flow: FlowRef<'_>,
        place: u32,
        marker: Marker,
        frame_len: usize,
        now: Moment,
    ) -> Ingress {
        if self.parked_frames >= self.limits.frames
            || self.parked_bytes.saturating_add(frame_len) > self.limits.bytes
        {
            let parked = self.records.peek(place).parked_frames > 0;
            if self.bound(flow, place, now) {
                return Ingress::ReleaseThenForward;
            }
            if let Some(place) = self.records.find(flow.id()) {
                self.punt(place, marker, now);
            }
            return if parked {
                Ingress::ReleaseThenPunt
            } else {
                Ingress::Punt
            };
        }
        self.parked_frames += 1;
        self.parked_bytes += frame_len;
        self.stats.parked_frames += 1;
        self.records.park(place, frame_len, now);
        let record = self.records.get(place);
        let distinct = record.seen.enters(marker);
        record.tail = Some((marker, distinct));
        Ingress::Park
    }

    /// Notes a packet that goes to the guest.
    fn punt(&mut self, place: u32, marker: Marker, now: Moment) {
        let record = self.records.get(place);
        record.distinct = record.seen.enters(marker);
        record.last = Some(marker);
        record.last_at = now;
        record.inside = record.inside.saturating_add(1);
        if record.distinct
            && record
                .probe
                .is_none_or(|(_, since)| now.since(since) > PROBE_MAX)
        {
            record.probe = Some((marker, now));
        }
    }

    /// Notes a packet that has left the guest; whether it is the one that was to be timed, or one
    /// behind that.
    fn leaves(&mut self, place: u32, marker: Marker, now: Moment) -> bool {
        let record = self.records.get(place);
        record.seen.leaves(marker);
        let is_last = record.last.is_some_and(|last| seen::reaches(marker, last));
        record.inside = match is_last {
            true => 0,
            false => record.inside.saturating_sub(1),
        };
        let Some((_, since)) = record
            .probe
            .take_if(|(probe, _)| seen::reaches(marker, *probe))
        else {
            return false;
        };
        let us = u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX);
        let stats = &mut self.stats;
        stats.transits += 1;
        stats.transit_us_sum = stats.transit_us_sum.saturating_add(us);
        stats.transit_us_min = match stats.transits {
            1 => us,
            _ => stats.transit_us_min.min(us),
        };
        stats.transit_us_last = us;
        stats.transit_us_max = stats.transit_us_max.max(us);
        stats.transit_us_ewma = match stats.transit_us_ewma {
            0 => us,
            ewma => ewma - ewma / 8 + us / 8,
        };
        true
    }

    /// A record of an earlier round is the present one's from now on: what the guest has got
    /// before no longer tells when it is empty. Whether frames were parked, which go to the
    /// guest; the last of them does tell.
    fn begin_round(&mut self, place: u32, stand: Stand, now: Moment) -> bool {
        if self.records.peek(place).round == stand.round() {
            return false;
        }
        let released = self.return_parked(place, now);
        let record = self.records.get(place);
        record.round = stand.round();
        record.probe = None;
        if !released {
            record.last = None;
            record.distinct = false;
        }
        released
    }

    fn activate(&mut self, flow: FlowRef<'_>, from: Stand, place: u32) -> GuestSent {
        if !flow.advance(from, FlowState::Active) {
            // It is closing, or to be proved again: what is parked goes to the guest when that
            // is looked at.
            return GuestSent::Nothing;
        }
        let frames = self.leave_guest(flow.id(), place, false);
        GuestSent::Activated {
            release: frames > 0,
        }
    }

    fn disproved(&mut self, flow: FlowRef<'_>, from: Stand, place: u32, now: Moment) -> GuestSent {
        if !flow.advance(from, FlowState::Pending) {
            return GuestSent::Nothing;
        }
        self.stats.disproved += 1;
        let release = self.return_parked(place, now);
        GuestSent::Disproved { release }
    }

    /// A drain met a bound. `true`: the flow is active all the same, its parked frames go
    /// to the uplink; else they go to the guest.
    fn bound(&mut self, flow: FlowRef<'_>, place: u32, now: Moment) -> bool {
        self.stats.drain_bounds += 1;
        let id = flow.id();
        let stand = flow.stand();
        let drains =
            stand.state() == FlowState::Draining && stand.round() == self.records.peek(place).round;
        if drains && self.limits.forced && flow.advance(stand, FlowState::Active) {
            self.leave_guest(id, place, true);
            return true;
        }
        if !drains || !flow.advance(stand, FlowState::Pending) {
            self.drop_record(place);
            return false;
        }
        let returned = self.records.peek(place).parked_frames;
        let shortest = Duration::from_micros(self.stats.transit_us_ewma.saturating_mul(4));
        self.return_parked(place, now);
        let record = self.records.get(place);
        record.backoff = if record.backoff.is_zero() {
            shortest.max(self.limits.time)
        } else {
            record.backoff.saturating_mul(2)
        }
        .min(BACKOFF_MAX);
        record.retry_at = now + record.backoff;
        let toll = Toll {
            returned,
            ..Toll::default()
        };
        self.tell(FlowEvent::DrainBound { flow: id, toll });
        false
    }

    /// The flow is active: its parked frames go to the egress uplink. How many.
    fn leave_guest(&mut self, flow: FlowId, place: u32, forced: bool) -> u32 {
        let overtaken = self.records.peek(place).inside;
        let frames = self.drop_accounts(place);
        self.records.forget(place);
        self.stats.released_to_egress += u64::from(frames);
        self.stats.activated += 1;
        self.stats.forced += u64::from(forced);
        self.stats.overtaken += u64::from(overtaken);
        self.tell(FlowEvent::Activated {
            flow,
            transit: self.transit(),
            forced,
            toll: Toll {
                overtaken,
                ..Toll::default()
            },
        });
        frames
    }

    /// The record's parked frames go to the guest; whether there are any. The last of them
    /// is then the packet that went to the guest last.
    fn return_parked(&mut self, place: u32, now: Moment) -> bool {
        let frames = self.drop_accounts(place);
        self.stats.released_to_guest += u64::from(frames);
        let record = self.records.get(place);
        record.inside = record.inside.saturating_add(frames);
        if let Some((marker, distinct)) = record.tail.take() {
            record.last = Some(marker);
            record.last_at = now;
            record.distinct = distinct;
        }
        frames > 0
    }

    /// The record goes, its parked frames to the guest; how many.
    fn drop_record(&mut self, place: u32) -> u32 {
        let frames = self.drop_accounts(place);
        self.records.forget(place);
        self.stats.released_to_guest += u64::from(frames);
        frames
    }

    fn drop_accounts(&mut self, place: u32) -> u32 {
        let (frames, bytes) = self.records.release(place);
        self.parked_frames -= frames;
        self.parked_bytes -= bytes;
        frames
    }

    fn transit(&self) -> Option<Duration> {
        let us = self.stats.transit_us_last;
        (us > 0).then(|| Duration::from_micros(us))
    }

    fn tell(&mut self, event: FlowEvent) {
        if self.events.len() < self.events.capacity() {
            self.events.push_back(event);
        }
    }
}

fn state(pin: &Pin<'_>, id: FlowId) -> Option<FlowState> {
    pin.by_id(id).map(|flow| flow.state())
}
