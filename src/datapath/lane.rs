//! A lane: one element as a worker sees it: its queue pairs there. An element that several
//! workers serve has a lane on each (`mates.rs`).
//!
//! *Promises*: everything a packet of this element can reach hangs on its lane; there is no
//! way to another element's tables or ports.
//! *Refuses*: nothing.
//! *Caller's duty*: `Lane::turn` belongs to one thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ElementId;
use super::clock::Time;
use super::counters::ElementCounters;
use super::cpu::Claim;
use super::mates::Mates;
use super::pace::Pace;
use super::parking::Parking;
use super::poller::EpollSet;
use super::punt_meter::{PuntMeter, PuntRate};
use super::schedule::{Account, Crowd, Mix};
pub use super::vnic::Vnic;
use crate::flow::hand_over::{HandOver, Release};
use crate::flow::queue::Sender;
use crate::flow::sessions::ElementSignals;
use crate::flow::{FlowEvent, Moment, ShieldSet, TableReader};
use crate::packet::Burst;
use crate::port::{PollRegistry, Poller, Port};

/// Tells the keeper what happened to flows.
pub struct Reporter {
    events: Sender<(ElementId, FlowEvent)>,
    overflow: Arc<AtomicBool>,
    keeper: Arc<EpollSet>,
}

impl Reporter {
    /// A reporter over a bounded queue; `overflow` is raised when it was full.
    pub fn new(
        events: Sender<(ElementId, FlowEvent)>,
        overflow: Arc<AtomicBool>,
        keeper: Arc<EpollSet>,
    ) -> Self {
        Self {
            events,
            overflow,
            keeper,
        }
    }

    pub(super) fn report(&mut self, element: ElementId, event: FlowEvent) {
        if self.events.try_send((element, event)).is_err() {
            // The flows themselves hold the truth: the keeper reads all of them.
            self.overflow.store(true, Ordering::Release);
        }
        self.keeper.wake();
    }
}

/// What a worker lends to the lane it polls.
pub struct Bench {
    /// The burst being processed.
    pub(super) burst: Burst,
    /// Parked frames on their way out.
    pub(super) released: Burst,
    /// Segments and completed frames for a peer that takes less.
    pub(super) adapted: Burst,
    /// The burst at hand, while frames that others left go before it.
    pub(super) aside: Burst,
    pub(super) reporter: Reporter,
}

impl Bench {
    /// Four bursts, allocated once.
    pub fn new(reporter: Reporter) -> Self {
        Self {
            burst: Burst::new(),
            released: Burst::new(),
            adapted: Burst::new(),
            aside: Burst::new(),
            reporter,
        }
    }
}

/// Where and when a burst came in.
#[derive(Clone, Copy)]
pub(super) struct Ingoing {
    pub(super) vnic: usize,
    pub(super) queue: usize,
    pub(super) now: Moment,
}

/// What the pipeline works on; apart from the table so that a pin may stay while it changes.
pub(super) struct Pipe {
    pub(super) id: ElementId,
    pub(super) hand_over: HandOver,
    pub(super) parking: Parking,
    pub(super) vnics: Vec<Vnic>,
    /// The element's lanes on other workers, if there are any.
    pub(super) mates: Option<Mates>,
    pub(super) counters: Arc<ElementCounters>,
    pub(super) signals: Arc<ElementSignals>,
    pub(super) revisited: u32,
    pub(super) meter: PuntMeter,
    /// The element's shields, if it has any.
    pub(super) shields: Option<Arc<ShieldSet>>,
    /// What the burst at hand turned out to be.
    pub(super) mix: Mix,
    /// When an uplink that keeps frames is to be tried again.
    pub(super) retry: Option<Moment>,
    /// Scratch space for what the hand-over machine releases.
    pub(super) due: Vec<Release>,
}

/// One element on one worker.
pub struct Lane {
    pub(super) table: TableReader,
    pub(super) pipe: Pipe,
    pub(super) account: Account,
    pub(super) pace: Pace,
    pub(super) claim: Claim,
    pub(super) awake: bool,
    /// The queue that is next.
    next: Place,
}

/// A queue among those of a lane.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    vnic: usize,
    guest: bool,
    queue: usize,
}

/// What a turn came to.
pub(super) struct Turn {
    /// Frames received or released.
    pub(super) frames: usize,
    /// Whether all queues were found empty at the end.
    pub(super) drained: bool,
    pub(super) end: Moment,
}

impl Lane {
    /// A lane, awake; `punt_rate` limits what its guest is handed, in wire packets a second.
    pub fn new(
        id: ElementId,
        table: TableReader,
        hand_over: HandOver,
        vnics: Vec<Vnic>,
        counters: Arc<ElementCounters>,
        signals: Arc<ElementSignals>,
        punt_rate: Option<u32>,
    ) -> Self {
        let parking = Parking::default();
        let due = Vec::new();
        let pipe = Pipe {
            id,
            hand_over,
            parking,
            vnics,
            mates: None,
            counters,
            signals,
            revisited: 0,
            meter: PuntMeter::new(PuntRate::new(punt_rate)),
            shields: None,
            mix: Mix::default(),
            retry: None,
            due,
        };
        Self {
            table,
            pipe,
            account: Account::default(),
            pace: Pace::default(),
            claim: Claim::default(),
            awake: true,
            next: Place::default(),
        }
    }

    /// From now on these are the element's shields; gives back those that were.
    pub fn set_shields(&mut self, shields: Option<Arc<ShieldSet>>) -> Option<Arc<ShieldSet>> {
        std::mem::replace(&mut self.pipe.shields, shields)
    }

    /// Registers all ports with a worker's poller under `token`.
    pub(super) fn attach(&mut self, set: &Arc<EpollSet>, token: u64) -> io::Result<()> {
        if let Some(mates) = &mut self.pipe.mates {
            mates.attach(Poller::new(set.clone(), token))?;
        }
        let mut vnics = self.pipe.vnics.iter_mut();
        vnics.try_for_each(|vnic| vnic.attach(set, token))
    }

    /// Puts a vNIC at an empty place, or behind the last one.
    pub(super) fn plug(
        &mut self,
        at: usize,
        mut vnic: Vnic,
        set: &Arc<EpollSet>,
        token: u64,
    ) -> io::Result<()> {
        vnic.attach(set, token)?;
        if self.pipe.vnics.len() <= at {
            self.pipe.vnics.resize_with(at + 1, Vnic::default);
        }
        self.pipe.vnics[at] = vnic;
        // It may sleep, and then has armed the others only.
        self.awake = true;
        self.disarm();
        Ok(())
    }

    /// Leaves the place of a vNIC empty and gives the vNIC.
    pub(super) fn unplug(&mut self, at: usize) -> Option<Vnic> {
        let mut vnic = self.pipe.vnics.get_mut(at).map(std::mem::take)?;
        vnic.ports().for_each(|port| port.detach());
        (!vnic.is_empty()).then_some(vnic)
    }

    /// All ports leave the worker.
    pub(super) fn detach(&mut self) {
        self.ports().for_each(|port| port.detach());
    }

    /// One turn: bursts from its queues in rotation until all are empty or the time is up.
    pub(super) fn turn(
        &mut self,
        bench: &mut Bench,
        began: Moment,
        crowd: Crowd,
        time: &impl Time,
    ) -> Turn {
        self.account.begin(began, crowd);
        let mut turn = Turn {
            frames: 0,
            drained: false,
            end: began,
        };
        let frames = self.prepare(bench, began);
        if frames > 0 {
            self.charge(&mut turn, frames, time);
        }
        let queues = self.queues();
        // Empty ones since the last that was not, and uplinks passed over for others' sake.
        let (mut empty, mut passed) = (0, 0);
        while self.account.goes_on() && empty < queues {
            self.pipe.meter.squeeze(self.account.is_squeezed());
            let place = self.step();
            if !place.guest && !self.account.takes_in() {
                (empty, passed) = (empty + 1, passed + 1);
                continue;
            }
            let frames = self.poll(place, bench, turn.end);
            if frames == 0 {
                empty += 1;
                continue;
            }
            (empty, passed) = (0, 0);
            self.charge(&mut turn, frames, time);
        }
        turn.drained = empty == queues && passed == 0 && !self.has_mail();
        self.account.end(turn.drained);
        turn
    }

    /// Pays for `frames` frames with the time since the turn's last ones.
    #[inline]
    fn charge(&mut self, turn: &mut Turn, frames: usize, time: &impl Time) {
        let end = time.now();
        let mix = std::mem::take(&mut self.pipe.mix);
        self.account.charge(end.since(turn.end), frames, mix);
        turn.end = end;
        turn.frames += frames;
    }

    /// What comes before a turn's bursts. Says how many frames were released, or came from the
    /// element's other lanes.
    pub(super) fn prepare(&mut self, bench: &mut Bench, now: Moment) -> usize {
        for vnic in &mut self.pipe.vnics {
            vnic.tell_others();
        }
        if self.pipe.retry.is_some_and(|due| due <= now) {
            self.pipe.retry = None;
            self.rouse(now);
        }
        let came = self.collect(bench, now);
        let released = match self.pipe.hand_over.is_idle() {
            true => 0,
            false => self.hand_over_due(bench, now),
        };
        self.flush();
        came + released
    }

    /// What was packed for the element's other lanes goes there.
    #[inline]
    fn flush(&mut self) {
        if let Some(mates) = &mut self.pipe.mates {
            mates.flush();
        }
    }

    /// Whether other lanes have left something.
    #[inline]
    pub(super) fn has_mail(&self) -> bool {
        self.pipe
            .mates
            .as_ref()
            .is_some_and(|mates| !mates.is_empty())
    }

    /// How many queues there are to receive from.
    pub(super) fn queues(&self) -> usize {
        self.pipe.vnics.iter().map(Vnic::queues).sum()
    }

    /// One burst from a queue. Says how many frames.
    pub(super) fn poll(&mut self, place: Place, bench: &mut Bench, now: Moment) -> usize {
        let frames = match place.guest {
            false => self.poll_uplink(place.vnic, place.queue, bench, now),
            true => self.poll_guest(place.vnic, place.queue, bench, now),
        };
        self.flush();
        frames
    }

    /// The next queue: every vNIC's uplink queues and then its guest's, in rotation.
    pub(super) fn step(&mut self) -> Place {
        let vnics = &self.pipe.vnics;
        let mut place = self.next;
        loop {
            let Some(vnic) = vnics.get(place.vnic) else {
                place = Place::default();
                continue;
            };
            let side = if place.guest {
                &vnic.guest
            } else {
                &vnic.uplink
            };
            if let Some(queue) = side.own_from(place.queue) {
                place.queue = queue;
                break;
            }
            place = Place {
                vnic: place.vnic + usize::from(place.guest),
                guest: !place.guest,
                queue: 0,
            };
        }
        self.next = Place {
            queue: place.queue + 1,
            ..place
        };
        place
    }

    /// When the lane needs a round although nothing comes in.
    pub(super) fn next_deadline(&mut self) -> Option<Moment> {
        let due = self.pipe.hand_over.next_deadline();
        due.into_iter().chain(self.pipe.retry).min()
    }

    /// Wakes the lane if it is asleep.
    pub(super) fn rouse(&mut self, now: Moment) {
        if !self.awake {
            self.awake = true;
            self.disarm();
            self.pace.woke(now);
            self.claim.wake_up();
        }
    }

    /// Asks all ports for a notification; false if something came meanwhile.
    pub(super) fn arm(&mut self) -> bool {
        let mut quiet = self.pipe.mates.as_ref().is_none_or(Mates::arm);
        for vnic in &mut self.pipe.vnics {
            quiet &= vnic.arm();
        }
        if !quiet {
            self.disarm();
        }
        quiet
    }

    /// Takes [`Lane::arm`] back.
    pub(super) fn disarm(&mut self) {
        if let Some(mates) = &self.pipe.mates {
            mates.disarm();
        }
        for port in self.ports() {
            port.disarm();
        }
    }

    fn ports(&mut self) -> impl Iterator<Item = &mut Box<dyn Port>> {
        self.pipe.vnics.iter_mut().flat_map(Vnic::ports)
    }
}
