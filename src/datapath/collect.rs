//! What the element's other lanes have left for this one ([`super::mates`]).

use std::ops::Range;

use super::deliver::{Outcome, Patience, deliver};
use super::lane::{Bench, Ingoing, Lane, Pipe};
use super::mates::{Errand, Label, Mates, Parcel, Sighting};
use crate::flow::{FlowState, Moment, Pin};
use crate::packet::{Burst, DropReason, Frame};

impl Lane {
    /// Deals with what others have left, before anything is decided about the burst at hand.
    /// Says how many frames.
    #[inline]
    pub(super) fn collect(&mut self, bench: &mut Bench, now: Moment) -> usize {
        match self.has_mail() {
            true => self.collect_all(bench, now),
            false => 0,
        }
    }

    #[cold]
    fn collect_all(&mut self, bench: &mut Bench, now: Moment) -> usize {
        let Some(posts) = self.pipe.mates.as_ref().map(|mates| mates.take()) else {
            return 0;
        };
        std::mem::swap(&mut bench.burst, &mut bench.aside);
        let mut count = 0;
        for node in posts {
            self.unpack(&node.item, bench, now);
            count += node.item.len();
            if let Some(mates) = &self.pipe.mates {
                mates.give_back(node);
            }
        }
        std::mem::swap(&mut bench.burst, &mut bench.aside);
        count
    }

    fn unpack(&mut self, parcel: &Parcel, bench: &mut Bench, now: Moment) {
        let mut start = 0;
        while start < parcel.len() {
            let first = *parcel.label(start);
            let rest = start..parcel.len();
            let alike = rest.take_while(|place| parcel.label(*place).goes_with(&first));
            let run = start..start + alike.count();
            start = run.end;
            match first.errand {
                Errand::Decide => self.decide(parcel, run, first, bench, now),
                _ => self.pipe.deliver_run(parcel, run, first, bench),
            }
        }
        if !parcel.sightings().is_empty() {
            let pin = self.table.pin();
            for sighting in parcel.sightings() {
                self.pipe.take_sighting(&pin, sighting, bench, now);
            }
        }
    }

    /// Frames that another lane received, of flows that are at home here. They are dealt with as
    /// if they had come in here: what goes to the guest must not go by another of its queues than
    /// the flow's other frames.
    fn decide(
        &mut self,
        parcel: &Parcel,
        run: Range<usize>,
        Label { vnic, .. }: Label,
        bench: &mut Bench,
        now: Moment,
    ) {
        let queue = self.pipe.mates.as_ref().map_or(0, Mates::number);
        bench.burst.clear();
        for place in run {
            let frame = parcel.frame(place);
            // A parcel is smaller than a burst, so all of it fits.
            if self.pipe.vnics.get(vnic).is_none() || !bench.burst.push(frame.data, frame.offload) {
                let wire = parcel.label(place).wire;
                self.pipe.counters.lose(DropReason::GuestAbsent, wire);
            }
        }
        if !bench.burst.is_empty() {
            self.see_others_through(Ingoing { vnic, queue, now }, bench);
        }
    }
}

impl Pipe {
    /// Frames for one of this lane's queue pairs.
    fn deliver_run(
        &mut self,
        parcel: &Parcel,
        run: Range<usize>,
        Label {
            errand,
            vnic,
            queue,
            ..
        }: Label,
        bench: &mut Bench,
    ) {
        let mut frames = [Frame::default(); Burst::FRAMES_MAX];
        let count = run.len();
        for (frame, place) in frames.iter_mut().zip(run.clone()) {
            *frame = parcel.frame(place);
        }
        let is_punt = matches!(errand, Errand::Punt(_));
        let port = self.vnics.get_mut(vnic).and_then(|vnic| match is_punt {
            true => vnic.guest.port(queue),
            false => vnic.uplink.port(queue),
        });
        let port = port.filter(|port| port.can_transmit());
        let counters = &self.counters;
        let told = |place: usize, outcome| {
            let Label { errand, wire, .. } = *parcel.label(run.start + place);
            match (outcome, errand) {
                (Outcome::Refused(refusal), Errand::Punt(_)) => {
                    counters.lose(refusal.by_guest(), wire);
                }
                (Outcome::Refused(refusal), _) => counters.lose(refusal.by_uplink(), wire),
                (_, Errand::Forward) => counters.forwarded.add(wire),
                (_, Errand::Pass) => counters.passed.add(wire),
                (_, Errand::Punt(reason)) => counters.punt(reason, wire),
                (_, Errand::Decide) => {}
            }
        };
        let patience = match errand {
            Errand::Pass => Patience::Waits,
            _ => Patience::None,
        };
        let frames = &frames[..count];
        deliver(patience, port, frames, &mut bench.adapted, told);
        match is_punt {
            true => self.mix.punts += count,
            false => self.mix.hits += count,
        }
    }

    /// The guest has sent something of a flow that is at home here, by another lane.
    fn take_sighting(&mut self, pin: &Pin<'_>, seen: &Sighting, bench: &mut Bench, now: Moment) {
        let waits = |state| matches!(state, FlowState::Pending | FlowState::Draining);
        let flow = pin.by_id(seen.flow).filter(|flow| waits(flow.state()));
        if let Some(flow) = flow
            && self.prove(flow, seen, bench, now)
        {
            self.release_to_egress(flow, seen.queue, bench, now);
            self.tell_events(bench);
        }
    }
}
