//! The way of a burst that the guest sent, and of frames that were parked for it.
//!
//! What the guest sends, it has decided: it goes to the paired uplink. Its packets are looked
//! up only while flows wait for proof or drain, and for one rule: a SYN on a session's tuple
//! closes the old session.
//!
//! While the uplink keeps frames for want of room, the guest's others stay in its ring.

use std::cell::Cell;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::counters::{Sum, Wire};
use super::deliver::{Outcome, Patience, send};
use super::from_uplink::{Each, destination, wire_of};
use super::lane::{Bench, Ingoing, Lane, Pipe};
use super::mates::{Errand, Label, Sighting};
use super::parking::Parked;
use crate::flow::hand_over::{GuestSent, Release, ReleaseTo};
use crate::flow::{CloseCode, FlowId, FlowRef, FlowState, Moment, Pin};
use crate::packet::{
    Burst, DropReason, Frame, GsoKind, MacAddr, Marker, Parsed, PuntReason, VnicId, parse,
};

/// How soon an uplink that keeps frames is tried again: nobody tells when it has room.
const RETRY: Duration = Duration::from_millis(1);

/// Parked frames of `flow` go out right behind the guest's frame before `after`.
struct Behind {
    after: usize,
    flow: FlowId,
}

impl Lane {
    /// Receives one burst from a guest's queue and passes it on. Says how many frames.
    pub(super) fn poll_guest(
        &mut self,
        vnic: usize,
        queue: usize,
        bench: &mut Bench,
        now: Moment,
    ) -> usize {
        bench.burst.clear();
        if self.pipe.vnics[vnic].uplink.is_held_up(queue) {
            self.pipe.retry.get_or_insert(now + RETRY);
            return 0;
        }
        let Some(port) = self.pipe.vnics[vnic].guest.port(queue) else {
            return 0;
        };
        let count = port.receive(&mut bench.burst);
        if count == 0 {
            return 0;
        }
        let came = self.collect(bench, now);
        let mut wire = [Wire::default(); Burst::FRAMES_MAX];
        let ingoing = Ingoing { vnic, queue, now };
        let pin = self.table.pin();
        self.pipe.revisit(&pin, bench);
        let mut sent = 0;
        if self.pipe.signals.sessions.load(Relaxed) > 0 {
            for index in 0..count {
                let released = self
                    .pipe
                    .observe(&pin, ingoing, index, &mut wire[index], bench);
                let Some(Behind { after, flow }) = released else {
                    continue;
                };
                self.pipe.pass(vnic, queue, sent..after, &wire, bench);
                sent = after;
                if let Some(flow) = pin.by_id(flow) {
                    self.pipe.release_to_egress(flow, queue, bench, now);
                }
                self.pipe.tell_events(bench);
            }
        } else {
            for (index, wire) in wire[..count].iter_mut().enumerate() {
                let frame = bench.burst.frame(index);
                *wire = if frame.offload.gso.kind == GsoKind::None {
                    wire_of(&frame, None)
                } else {
                    let parsed = parse(frame.data, &frame.offload, VnicId(vnic as u16));
                    wire_of(&frame, parsed.as_ref().ok())
                };
            }
        }
        self.pipe.counters.from_guest.add_all(&wire[..count]);
        self.pipe.pass(vnic, queue, sent..count, &wire, bench);
        came + count
    }

    /// What the hand-over's clock asks for: flows that have been parked too long go to the guest.
    pub(super) fn hand_over_due(&mut self, bench: &mut Bench, now: Moment) -> usize {
        let pin = self.table.pin();
        self.pipe.revisit(&pin, bench);
        let mut due = std::mem::take(&mut self.pipe.due);
        self.pipe
            .hand_over
            .expire(&pin, now, |release| due.push(release));
        let released = self.pipe.release_all(&pin, &mut due, bench, now);
        self.pipe.due = due;
        self.pipe.tell_events(bench);
        released
    }
}

impl Pipe {
    /// Looks at one frame of the guest for proof, drain and SYN.
    fn observe(
        &mut self,
        pin: &Pin<'_>,
        ingoing: Ingoing,
        index: usize,
        wire: &mut Wire,
        bench: &mut Bench,
    ) -> Option<Behind> {
        let frame = bench.burst.frame(index);
        let parsed = parse(frame.data, &frame.offload, VnicId(ingoing.vnic as u16));
        *wire = wire_of(&frame, parsed.as_ref().ok());
        let parsed = parsed.ok()?;
        let reopens = opens(&parsed, frame.data);
        if !reopens && self.signals.waiting.load(Relaxed) == 0 {
            return None;
        }
        let flow = pin.lookup_egress(&parsed.key)?;
        if reopens {
            self.close(pin, flow, CloseCode::Reopened, bench);
            return None;
        }
        if !matches!(flow.state(), FlowState::Pending | FlowState::Draining) {
            return None;
        }
        let sighting = self.sighting(flow, &parsed, &frame, ingoing.queue);
        let lane = self.mates.as_ref().map(|mates| mates.number());
        let home = flow.route().map(|route| route.home());
        match (&mut self.mates, home) {
            (Some(mates), Some(home)) if Some(home) != lane => {
                mates.sight(home, sighting);
                return None;
            }
            // Nothing of it came in yet, so it is at home nowhere.
            (Some(_), None) => return None,
            _ => {}
        }
        self.prove(flow, &sighting, bench, ingoing.now)
            .then_some(Behind {
                after: index + 1,
                flow: flow.id(),
            })
    }

    /// What a frame of the guest says about a flow that waits.
    fn sighting(
        &self,
        flow: FlowRef<'_>,
        parsed: &Parsed,
        frame: &Frame<'_>,
        queue: usize,
    ) -> Sighting {
        let src_mac = frame.data.get(6..12);
        Sighting {
            flow: flow.id(),
            marker: Marker::of(frame.data, parsed),
            dst_mac: destination(frame.data),
            src_mac: src_mac.map_or(MacAddr::default(), destination),
            exact: flow.rewrite().matches(frame.data, parsed),
            queue,
        }
    }

    /// A frame with the tuple a waiting flow is to have: proof, or the end of its drain. Says
    /// whether the flow's parked frames are to follow it.
    pub(super) fn prove(
        &mut self,
        flow: FlowRef<'_>,
        seen: &Sighting,
        bench: &mut Bench,
        now: Moment,
    ) -> bool {
        let Sighting {
            marker,
            dst_mac,
            src_mac,
            exact,
            ..
        } = *seen;
        let sent = self
            .hand_over
            .guest_sent(flow, marker, dst_mac, src_mac, exact, now);
        match sent {
            GuestSent::Activated { release } => {
                flow.settle_egress_queue(seen.queue);
                if release {
                    // Told when it is known what became of the frames.
                    return true;
                }
            }
            GuestSent::Disproved { release: true } => {
                self.release_to_guest(flow.id(), bench);
            }
            GuestSent::Nothing | GuestSent::Disproved { release: false } => {}
        }
        self.tell_events(bench);
        false
    }

    /// Sends guest frames `range` to the paired uplink.
    fn pass(
        &mut self,
        vnic: usize,
        queue: usize,
        range: std::ops::Range<usize>,
        wire: &[Wire; Burst::FRAMES_MAX],
        bench: &mut Bench,
    ) {
        let Bench { burst, adapted, .. } = bench;
        let frames: Each<Frame<'_>> = range.clone().map(|index| burst.frame(index)).collect();
        let counters = &self.counters;
        let way = self.vnics[vnic].uplink.toward(queue);
        let label = |place: usize, queue| Label {
            errand: Errand::Pass,
            vnic,
            queue,
            wire: wire[range.start + place],
        };
        let mut passed = Sum::default();
        let told = |place: usize, outcome| {
            let wire = wire[range.start + place];
            match outcome {
                Outcome::Delivered => passed.add(wire),
                Outcome::HandedOn => {}
                Outcome::Refused(refusal) => counters.lose(refusal.by_uplink(), wire),
            }
        };
        let waits = Patience::Waits;
        send(waits, way, &mut self.mates, &frames, label, adapted, told);
        counters.passed.add_sum(passed);
    }

    /// When control has changed sessions: parked frames of flows that no longer drain go to the
    /// guest. Called under a pin, so that the keeper's grace period covers it.
    #[inline]
    pub(super) fn revisit(&mut self, pin: &Pin<'_>, bench: &mut Bench) {
        let now = self.signals.revisit.load(Acquire);
        if now != self.revisited {
            self.revisited = now;
            self.release_closed(pin, bench);
        }
    }

    /// Parked frames of flows that are no longer waiting go to the guest.
    pub(super) fn release_closed(&mut self, pin: &Pin<'_>, bench: &mut Bench) {
        let mut due = std::mem::take(&mut self.due);
        self.hand_over.revisit(pin, |release| due.push(release));
        for release in due.drain(..) {
            self.release_to_guest(release.flow, bench);
        }
        self.due = due;
    }

    fn release_all(
        &mut self,
        pin: &Pin<'_>,
        due: &mut Vec<Release>,
        bench: &mut Bench,
        now: Moment,
    ) -> usize {
        let mut released = 0;
        for Release { flow, to } in due.drain(..) {
            released += match (to, pin.by_id(flow)) {
                (ReleaseTo::Uplink, Some(flow)) => {
                    flow.settle_egress_queue(0);
                    self.release_to_egress(flow, 0, bench, now)
                }
                _ => self.release_to_guest(flow, bench),
            };
        }
        released
    }

    /// What the hand-over machine has to say goes to the keeper.
    pub(super) fn tell_events(&mut self, bench: &mut Bench) {
        while let Some(event) = self.hand_over.next_event() {
            bench.reporter.report(self.id, event);
        }
        self.counters.set_hand_over(self.hand_over.stats());
    }

    /// A flow's parked frames go to the guest, in order. Says how many.
    pub(super) fn release_to_guest(&mut self, flow: FlowId, bench: &mut Bench) -> usize {
        let mut parked = self.parking.take(flow);
        let lost = Cell::new(0);
        for chunk in parked.make_contiguous().chunks(Burst::FRAMES_MAX) {
            let (vnic, queue) = chunk[0].ingress;
            let mut frames = [Frame::default(); Burst::FRAMES_MAX];
            for (frame, parked) in frames.iter_mut().zip(chunk) {
                *frame = parked.frame();
            }
            let way = self.vnics[vnic].guest.toward(queue);
            let counters = &self.counters;
            let label = |place: usize, queue| Label {
                errand: Errand::Punt(PuntReason::DrainBound),
                vnic,
                queue,
                wire: chunk[place].wire,
            };
            let told = |place: usize, outcome| {
                let wire = chunk[place].wire;
                match outcome {
                    Outcome::Delivered => counters.punt(PuntReason::DrainBound, wire),
                    Outcome::HandedOn => {}
                    Outcome::Refused(refusal) => {
                        counters.lose(refusal.by_guest(), wire);
                        lost.set(lost.get() + 1);
                    }
                }
            };
            let (frames, adapted) = (&frames[..chunk.len()], &mut bench.adapted);
            let none = Patience::None;
            send(none, way, &mut self.mates, frames, label, adapted, told);
        }
        self.hand_over.lost(flow, lost.get());
        self.unparked(parked)
    }

    /// A flow has just become active: its parked frames follow the guest's last one, by the
    /// same egress queue. Says how many.
    pub(super) fn release_to_egress(
        &mut self,
        flow: FlowRef<'_>,
        queue: usize,
        bench: &mut Bench,
        now: Moment,
    ) -> usize {
        let egress = usize::from(flow.egress().0);
        let mut parked = self.parking.take(flow.id());
        let lost = Cell::new(0);
        let mut rest = &*parked.make_contiguous();
        while !rest.is_empty() {
            let (fitting, taken) = self.rewrite_parked(flow, rest, bench);
            let (chunk, later) = rest.split_at(taken.max(1));
            // One that cannot be rewritten.
            lost.set(lost.get() + (chunk.len() - fitting) as u32);
            let Bench {
                released, adapted, ..
            } = &mut *bench;
            let mut frames = [Frame::default(); Burst::FRAMES_MAX];
            for (place, frame) in frames[..fitting].iter_mut().enumerate() {
                *frame = released.frame(place);
            }
            let counters = &self.counters;
            let way = self
                .vnics
                .get_mut(egress)
                .and_then(|vnic| vnic.uplink.toward(queue));
            let now_ms = now.millis() as u32;
            let label = |place: usize, queue| Label {
                errand: Errand::Forward,
                vnic: egress,
                queue,
                wire: chunk[place].wire,
            };
            let told = |place: usize, outcome| {
                let wire = chunk[place].wire;
                match outcome {
                    Outcome::Delivered | Outcome::HandedOn => {
                        if outcome == Outcome::Delivered {
                            counters.forwarded.add(wire);
                        }
                        flow.count(u64::from(wire.packets), u64::from(wire.bytes), now_ms);
                    }
                    Outcome::Refused(refusal) => {
                        counters.lose(refusal.by_uplink(), wire);
                        lost.set(lost.get() + 1);
                    }
                }
            };
            let frames = &frames[..fitting];
            let none = Patience::None;
            send(none, way, &mut self.mates, frames, label, adapted, told);
            rest = later;
        }
        self.hand_over.lost(flow.id(), lost.get());
        self.unparked(parked)
    }

    /// Copies parked frames into the `released` burst and rewrites them, up to the first that
    /// does not fit or cannot be rewritten; the latter is lost, counted. Says how many are ready
    /// to be sent and how many were taken.
    fn rewrite_parked(
        &self,
        flow: FlowRef<'_>,
        parked: &[Parked],
        bench: &mut Bench,
    ) -> (usize, usize) {
        let vnic = flow.key().vnic();
        bench.released.clear();
        for (ready, one) in parked.iter().enumerate() {
            let frame = one.frame();
            if !bench.released.push(frame.data, frame.offload) {
                return (ready, ready);
            }
            // What was parked had a key, so it parses again.
            let rewritten = parse(frame.data, &frame.offload, vnic).is_ok_and(|parsed| {
                let mut frame = bench.released.frame_mut(ready);
                flow.rewrite_frame(&mut frame, &parsed)
            });
            if !rewritten {
                self.counters.lose(DropReason::ParkedLost, one.wire);
                return (ready, ready + 1);
            }
        }
        (parked.len(), parked.len())
    }

    fn unparked(&mut self, parked: std::collections::VecDeque<Parked>) -> usize {
        let count = parked.len();
        self.parking.recycle(parked);
        self.counters.parked.set(self.parking.packets());
        count
    }
}

/// Whether a packet begins a connection: a TCP SYN without ACK, or an SCTP INIT.
fn opens(parsed: &Parsed, data: &[u8]) -> bool {
    parsed.control(data) == Some(PuntReason::TcpSyn) || parsed.sctp_opens(data)
}
