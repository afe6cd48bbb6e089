//! The way of a burst that came from an uplink (DESIGN section 4 steps 1 to 7).

use std::cell::Cell;

use arrayvec::ArrayVec;

use super::counters::{Sum, Wire};
use super::deliver::{Outcome, Patience, Refusal, send};
use super::lane::{Bench, Ingoing, Lane, Pipe};
use super::mates::{Errand, Label};
use crate::flow::hand_over::Ingress;
use crate::flow::{CloseCode, FlowEvent, FlowRef, FlowState, Moment, Pin, Route};
use crate::packet::{
    Burst, DropReason, FlowKey, Frame, MacAddr, Marker, Parsed, PuntReason, VnicId, parse_here,
};

/// One of each for the frames of a burst, or some of them.
pub(super) type Each<T> = ArrayVec<T, { Burst::FRAMES_MAX }>;

/// What is decided for a frame of the burst.
#[derive(Clone, Copy)]
pub(super) enum Fate<'p> {
    Punt(PuntReason),
    Forward(FlowRef<'p>),
    /// Its flow is at home on that lane.
    HandOn(usize),
    /// Nothing is left to be done: parked, handed over already, or lost.
    Settled,
}

/// A burst after step 1: what each frame is.
#[derive(Default)]
pub(super) struct Sorted {
    pub(super) parsed: Each<Result<Parsed, PuntReason>>,
    pub(super) wire: Each<Wire>,
    /// Of those that have one.
    keys: Each<FlowKey>,
    /// The egress asked about last, and whether it can transmit.
    reached: Cell<Option<(VnicId, bool)>>,
}

impl Lane {
    /// Receives one burst from an uplink's queue and sees it through. Says how many frames.
    pub(super) fn poll_uplink(
        &mut self,
        vnic: usize,
        queue: usize,
        bench: &mut Bench,
        now: Moment,
    ) -> usize {
        bench.burst.clear();
        let Some(port) = self.pipe.vnics[vnic].uplink.port(queue) else {
            return 0;
        };
        let count = port.receive(&mut bench.burst);
        if count == 0 {
            return 0;
        }
        let came = self.collect(bench, now);
        let mut sorted = Sorted::default();
        sorted.sort(&bench.burst, VnicId(vnic as u16));
        self.pipe.counters.from_uplink.add_all(&sorted.wire);
        self.see_through(&sorted, Ingoing { vnic, queue, now }, bench, true);
        came + count
    }

    /// Frames of the burst that another lane has received, counted, and held against the shields.
    pub(super) fn see_others_through(&mut self, ingoing: Ingoing, bench: &mut Bench) {
        let mut sorted = Sorted::default();
        sorted.sort(&bench.burst, VnicId(ingoing.vnic as u16));
        self.see_through(&sorted, ingoing, bench, false);
    }

    #[inline(always)]
    fn see_through(
        &mut self,
        sorted: &Sorted,
        ingoing: Ingoing,
        bench: &mut Bench,
        is_first: bool,
    ) {
        let pin = self.table.pin();
        self.pipe.revisit(&pin, bench);
        let mut fates = look_up(&pin, sorted);
        let fates = &mut fates[..];
        if is_first {
            self.pipe.shield(fates, sorted, ingoing, &bench.burst);
        }
        let mut waiting = 0u64;
        for index in 0..fates.len() {
            let fate = self.pipe.judge(&pin, fates, sorted, index, ingoing, bench);
            fates[index] = rewrite(fate, sorted, index, bench);
            waiting |= u64::from(matches!(fates[index], Fate::Forward(_))) << index;
        }
        self.pipe.forward(fates, sorted, waiting, ingoing, bench);
        self.pipe.punt(fates, sorted, ingoing, bench);
        self.pipe.hand_on(fates, sorted, ingoing, bench);
    }
}

impl Sorted {
    /// Step 1: parse.
    fn sort(&mut self, burst: &Burst, vnic: VnicId) {
        for index in 0..burst.len().min(Burst::FRAMES_MAX) {
            let frame = burst.frame(index);
            let parsed = parse_here(frame.data, &frame.offload, vnic);
            self.wire.push(wire_of(&frame, parsed.as_ref().ok()));
            if let Ok(parsed) = &parsed {
                self.keys.push(parsed.key);
            }
            self.parsed.push(parsed);
        }
    }
}

/// What a frame is on the wire; one without a key counts as one packet.
#[inline(always)]
pub(super) fn wire_of(frame: &Frame<'_>, parsed: Option<&Parsed>) -> Wire {
    const ETHERNET_HEADER: usize = 14;
    match parsed {
        Some(parsed) => {
            let (packets, bytes) = parsed.wire_count(&frame.offload);
            Wire {
                packets: packets as u32,
                bytes: bytes as u32,
            }
        }
        None => Wire {
            packets: 1,
            bytes: frame.data.len().saturating_sub(ETHERNET_HEADER) as u32,
        },
    }
}

/// Step 5: one look-up for the whole burst. A frame without a key, or without a flow, punts.
fn look_up<'p>(pin: &'p Pin<'_>, sorted: &Sorted) -> Each<Fate<'p>> {
    let mut found = [None; Burst::FRAMES_MAX];
    pin.lookup_burst(&sorted.keys, &mut found);
    let mut found = found.into_iter();
    let fate = |parsed: &Result<Parsed, PuntReason>| match parsed {
        Ok(_) => match found.next().flatten() {
            Some(flow) => Fate::Forward(flow),
            None => Fate::Punt(PuntReason::Miss),
        },
        Err(reason) => Fate::Punt(*reason),
    };
    sorted.parsed.iter().map(fate).collect()
}

/// Rewrites a frame that is to be forwarded, in place. What cannot be rewritten is as it came,
/// and the guest's.
#[inline(always)]
fn rewrite<'p>(fate: Fate<'p>, sorted: &Sorted, index: usize, bench: &mut Bench) -> Fate<'p> {
    let (Fate::Forward(flow), Ok(parsed)) = (fate, &sorted.parsed[index]) else {
        return fate;
    };
    if flow.rewrite_frame(&mut bench.burst.frame_mut(index), parsed) {
        fate
    } else {
        Fate::Punt(PuntReason::Malformed)
    }
}

impl Pipe {
    /// Steps 3 and 5 for one frame: whether the guest must see it all the same. Fates before
    /// `index` are judged already.
    #[inline(always)]
    fn judge<'p>(
        &mut self,
        pin: &'p Pin<'_>,
        fates: &mut [Fate<'p>],
        sorted: &Sorted,
        index: usize,
        ingoing: Ingoing,
        bench: &mut Bench,
    ) -> Fate<'p> {
        let fate = fates[index];
        let Ok(parsed) = &sorted.parsed[index] else {
            return fate;
        };
        let frame = bench.burst.frame(index);
        let dst_mac = destination(frame.data);
        let Fate::Forward(flow) = fate else {
            if let Fate::Settled = fate {
                return fate;
            }
            let own = dst_mac == self.vnics[ingoing.vnic].mac;
            return if own {
                fate
            } else {
                Fate::Punt(PuntReason::OtherMac)
            };
        };
        if dst_mac != flow.ingress_mac() {
            return Fate::Punt(PuntReason::OtherMac);
        }
        if let Some(lane) = self.home_elsewhere(flow, ingoing) {
            return Fate::HandOn(lane);
        }
        if let Some(reason) = parsed.control(frame.data) {
            let code = close_code(reason, parsed, frame.data);
            self.punt_earlier(&mut fates[..index], sorted, ingoing, bench);
            self.close(pin, flow, code, bench);
            return Fate::Punt(reason);
        }
        let must_see = guest_must_see(flow, parsed, &frame);
        let state = flow.state();
        let waits = match state {
            FlowState::Pending | FlowState::Draining => true,
            FlowState::Closing => !self.hand_over.is_idle(),
            FlowState::Active => false,
        };
        if waits {
            let reason = must_see.or((state == FlowState::Closing).then_some(PuntReason::Closing));
            return self.hold(flow, reason, fates, sorted, (index, ingoing), bench);
        }
        match (must_see, state) {
            (Some(reason), _) => Fate::Punt(reason),
            (None, FlowState::Closing) => Fate::Punt(PuntReason::Closing),
            (None, _) if self.can_reach(flow.egress(), sorted) => fate,
            (None, _) => Fate::Punt(PuntReason::EgressGone),
        }
    }

    /// Whether an egress can transmit: asked once for a run of frames to the same one.
    #[inline]
    fn can_reach(&self, egress: VnicId, sorted: &Sorted) -> bool {
        match sorted.reached.get() {
            Some((last, can)) if last == egress => can,
            _ => {
                let vnic = self.vnics.get(usize::from(egress.0));
                let can = vnic.is_some_and(|vnic| vnic.uplink.can_transmit());
                if let (false, Some(vnic), Some(mates)) = (can, vnic, &self.mates) {
                    vnic.uplink.owners().for_each(|lane| mates.nudge(lane));
                }
                sorted.reached.set(Some((egress, can)));
                can
            }
        }
    }

    /// The lane that a flow is at home on, if not on this one.
    #[inline]
    fn home_elsewhere(&self, flow: FlowRef<'_>, ingoing: Ingoing) -> Option<usize> {
        let own = Route::new(self.mates.as_ref()?.number(), ingoing.queue);
        if flow.route() == Some(own) {
            return None;
        }
        let home = flow.claim_route(own, ingoing.now.millis() as u32).home();
        (home != own.home()).then_some(home)
    }

    /// A packet of a flow that is not active: the hand-over machine decides. What the guest
    /// `must_see` goes there in any case, but not before what is parked, and that not before
    /// what this burst has for the guest from earlier.
    fn hold<'p>(
        &mut self,
        flow: FlowRef<'p>,
        must_see: Option<PuntReason>,
        fates: &mut [Fate<'p>],
        sorted: &Sorted,
        (index, ingoing): (usize, Ingoing),
        bench: &mut Bench,
    ) -> Fate<'p> {
        let Ingoing { vnic, queue, now } = ingoing;
        let Ok(parsed) = &sorted.parsed[index] else {
            return fates[index];
        };
        let frame = bench.burst.frame(index);
        let marker = Marker::of(frame.data, parsed);
        let control = must_see.is_some();
        let answer = self
            .hand_over
            .ingress(flow, marker, control, frame.data.len(), now);
        match answer {
            Ingress::Punt => Fate::Punt(must_see.unwrap_or(PuntReason::NotActive)),
            Ingress::Park => {
                let wire = sorted.wire[index];
                self.parking.park(flow.id(), frame, wire, (vnic, queue));
                self.counters.parked.set(self.parking.packets());
                Fate::Settled
            }
            Ingress::ReleaseThenPunt => {
                self.punt_earlier(&mut fates[..index], sorted, ingoing, bench);
                self.release_to_guest(flow.id(), bench);
                self.tell_events(bench);
                Fate::Punt(must_see.unwrap_or(PuntReason::DrainBound))
            }
            Ingress::ReleaseThenForward => {
                let queue = flow.route().map_or(queue, Route::queue);
                self.release_to_egress(flow, queue, bench, now);
                self.tell_events(bench);
                Fate::Forward(flow)
            }
        }
    }

    /// Closes a session: both directions punt from now on, parked frames go to the guest first.
    pub(super) fn close(
        &mut self,
        pin: &Pin<'_>,
        flow: FlowRef<'_>,
        code: CloseCode,
        bench: &mut Bench,
    ) {
        let first = flow.close();
        if let Some(partner) = pin.partner(flow) {
            partner.close();
        }
        if !self.hand_over.is_idle() {
            self.release_closed(pin, bench);
        }
        if first {
            bench.reporter.report(
                self.id,
                FlowEvent::Closed {
                    session: flow.session(),
                    code,
                },
            );
        }
    }

    /// Step 6: one transmit burst per egress for the frames `waiting`, which are rewritten.
    fn forward(
        &mut self,
        fates: &[Fate<'_>],
        sorted: &Sorted,
        mut waiting: u64,
        ingoing: Ingoing,
        bench: &mut Bench,
    ) {
        self.mix.hits += waiting.count_ones() as usize;
        while waiting != 0 {
            waiting &= !self.forward_to_one(fates, sorted, waiting, ingoing, bench);
        }
    }

    /// Sends the frames among `waiting` that have the egress of the first; says which they were.
    fn forward_to_one(
        &mut self,
        fates: &[Fate<'_>],
        sorted: &Sorted,
        waiting: u64,
        ingoing: Ingoing,
        bench: &mut Bench,
    ) -> u64 {
        let Bench { burst, adapted, .. } = bench;
        let mut egress = None;
        let mut frames = Each::<Frame<'_>>::new();
        let mut places = Each::<u8>::new();
        let mut taken = 0u64;
        for index in ones(waiting) {
            let Fate::Forward(flow) = &fates[index] else {
                continue;
            };
            let queue = flow.route().map_or(ingoing.queue, Route::queue);
            let own = (flow.egress(), queue);
            if *egress.get_or_insert(own) == own {
                frames.push(burst.frame(index));
                places.push(index as u8);
                taken |= 1 << index;
            }
        }
        let way = egress.and_then(|(vnic, queue)| {
            let vnic = self.vnics.get_mut(usize::from(vnic.0))?;
            vnic.uplink.toward(queue)
        });
        let now_ms = ingoing.now.millis() as u32;
        let counters = &self.counters;
        let vnic = egress.map_or(0, |(vnic, _)| usize::from(vnic.0));
        let label = |place: usize, queue| Label {
            errand: Errand::Forward,
            vnic,
            queue,
            wire: sorted.wire[usize::from(places[place])],
        };
        let mut forwarded = Sum::default();
        let told = |place: usize, outcome| {
            let index = usize::from(places[place]);
            let wire = sorted.wire[index];
            match (outcome, &fates[index]) {
                (Outcome::Delivered | Outcome::HandedOn, Fate::Forward(flow)) => {
                    if outcome == Outcome::Delivered {
                        forwarded.add(wire);
                    }
                    flow.count(u64::from(wire.packets), u64::from(wire.bytes), now_ms);
                    if let Ok(parsed) = &sorted.parsed[index]
                        && let Some((seq, ack, window)) = parsed.tcp_position(frames[place].data)
                    {
                        flow.note_tcp(seq, ack, window);
                    }
                }
                (Outcome::Refused(refusal), _) => counters.lose(refusal.by_uplink(), wire),
                (Outcome::Delivered | Outcome::HandedOn, _) => {}
            }
        };
        let none = Patience::None;
        send(none, way, &mut self.mates, &frames, label, adapted, told);
        counters.forwarded.add_sum(forwarded);
        taken
    }

    /// Punts the burst's frames before the one at hand, when parked ones are about to follow them.
    fn punt_earlier(
        &mut self,
        earlier: &mut [Fate<'_>],
        sorted: &Sorted,
        ingoing: Ingoing,
        bench: &mut Bench,
    ) {
        if self.parking.packets() == 0 {
            return;
        }
        self.punt(earlier, sorted, ingoing, bench);
        for fate in earlier {
            if matches!(fate, Fate::Punt(_)) {
                *fate = Fate::Settled;
            }
        }
    }

    /// Step 7: everything else into the guest's receive ring.
    fn punt(&mut self, fates: &[Fate<'_>], sorted: &Sorted, ingoing: Ingoing, bench: &mut Bench) {
        let Bench { burst, adapted, .. } = bench;
        let mut frames = Each::<Frame<'_>>::new();
        let mut reasons = Each::<(PuntReason, u8)>::new();
        for (index, fate) in fates.iter().enumerate() {
            if let Fate::Punt(reason) = fate {
                frames.push(burst.frame(index));
                reasons.push((*reason, index as u8));
            }
        }
        if frames.is_empty() {
            return;
        }
        self.mix.punts += frames.len();
        if !self.meter.is_open() {
            self.meter_out(&mut frames, &mut reasons, sorted, ingoing.now);
        }
        let way = self.vnics[ingoing.vnic].guest.toward(ingoing.queue);
        let counters = &self.counters;
        let label = |place: usize, queue| Label {
            errand: Errand::Punt(reasons[place].0),
            vnic: ingoing.vnic,
            queue,
            wire: sorted.wire[usize::from(reasons[place].1)],
        };
        let told = |place: usize, outcome| {
            let (reason, index) = reasons[place];
            let wire = sorted.wire[usize::from(index)];
            match outcome {
                Outcome::Delivered => counters.punt(reason, wire),
                Outcome::HandedOn => {}
                Outcome::Refused(refusal) => counters.lose(refusal.by_guest(), wire),
            }
        };
        let none = Patience::None;
        send(none, way, &mut self.mates, &frames, label, adapted, told);
    }

    /// Frames of flows that are at home on other lanes go there.
    #[inline]
    fn hand_on(&mut self, fates: &[Fate<'_>], sorted: &Sorted, ingoing: Ingoing, bench: &Bench) {
        let Some(mates) = &mut self.mates else {
            return;
        };
        for (index, fate) in fates.iter().enumerate() {
            let Fate::HandOn(lane) = *fate else {
                continue;
            };
            let label = Label {
                errand: Errand::Decide,
                vnic: ingoing.vnic,
                queue: ingoing.queue,
                wire: sorted.wire[index],
            };
            if !mates.send(lane, &bench.burst.frame(index), label) {
                self.counters.lose(Refusal::Full.by_uplink(), label.wire);
            }
        }
    }
}

impl Pipe {
    /// Keeps of a burst's punts those that the element's meter lets pass, in their order; the
    /// others are lost, counted.
    fn meter_out(
        &mut self,
        frames: &mut Each<Frame<'_>>,
        reasons: &mut Each<(PuntReason, u8)>,
        sorted: &Sorted,
        now: Moment,
    ) {
        let asked = |place: usize| {
            let (reason, index) = reasons[place];
            (reason.share(), sorted.wire[usize::from(index)].packets)
        };
        let admitted = self.meter.admit(frames.len(), asked, now);
        let mut kept = 0;
        for place in 0..frames.len() {
            if admitted >> place & 1 != 0 {
                frames[kept] = frames[place];
                reasons[kept] = reasons[place];
                kept += 1;
            } else {
                let wire = sorted.wire[usize::from(reasons[place].1)];
                self.counters.lose(DropReason::PuntMeter, wire);
            }
        }
        frames.truncate(kept);
        reasons.truncate(kept);
    }
}

/// The places of the set bits, lowest first.
fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (bits != 0).then(|| bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        place
    })
}

/// A frame's destination MAC; a parsed frame has one.
pub(super) fn destination(data: &[u8]) -> MacAddr {
    data.first_chunk()
        .map_or(MacAddr::default(), |mac| MacAddr(*mac))
}

/// A hit that the guest must see although its session goes on.
fn guest_must_see(flow: FlowRef<'_>, parsed: &Parsed, frame: &Frame<'_>) -> Option<PuntReason> {
    if flow.decrements_ttl() && parsed.ttl <= 1 {
        return Some(PuntReason::TtlExpiring);
    }
    if parsed.wire_l3_max(&frame.offload) > u32::from(flow.l3_mtu()) {
        return Some(PuntReason::TooBig);
    }
    if !flow.is_present() {
        return Some(PuntReason::Miss);
    }
    None
}

/// Which close code a packet that ends its session gives it.
pub(super) fn close_code(reason: PuntReason, parsed: &Parsed, data: &[u8]) -> CloseCode {
    match reason {
        PuntReason::TcpSyn => CloseCode::Reopened,
        PuntReason::TcpRst => CloseCode::Rst,
        PuntReason::SctpControl if parsed.sctp_opens(data) => CloseCode::Reopened,
        PuntReason::SctpControl if parsed.sctp_aborts(data) => CloseCode::Rst,
        _ => CloseCode::Fin,
    }
}
