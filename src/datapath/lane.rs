//! A lane: one element as its worker sees it.
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
use super::pace::Pace;
use super::parking::Parking;
use super::poller::EpollSet;
use super::punt_meter::PuntMeter;
use super::schedule::{Account, Crowd, Mix};
use crate::flow::hand_over::{HandOver, Release};
use crate::flow::queue::Sender;
use crate::flow::sessions::ElementSignals;
use crate::flow::{FlowEvent, Moment, TableReader};
use crate::packet::{Burst, MacAddr, PeerOffloads};
use crate::port::{Armed, Device, PollRegistry, Poller, Port};

/// One side of a vNIC: a device's queue pairs, in order.
#[derive(Default)]
pub(super) struct Side {
    ports: Vec<Box<dyn Port>>,
}

impl Side {
    /// The port for traffic that came in by queue pair `queue` of the other side: the same
    /// number if it runs here, else the first that runs, so that a flow keeps its queue.
    pub(super) fn toward(&mut self, queue: usize) -> Option<&mut dyn Port> {
        let same = queue % self.ports.len().max(1);
        let chosen = match self.ports.get(same) {
            Some(port) if port.can_transmit() => same,
            _ => self.ports.iter().position(|port| port.can_transmit())?,
        };
        self.ports
            .get_mut(chosen)
            .map(|port| &mut **port as &mut dyn Port)
    }

    pub(super) fn port(&mut self, queue: usize) -> Option<&mut dyn Port> {
        self.ports
            .get_mut(queue)
            .map(|port| &mut **port as &mut dyn Port)
    }

    /// Whether the port toward queue pair `queue` keeps frames that found no room.
    pub(super) fn is_held_up(&mut self, queue: usize) -> bool {
        self.toward(queue).is_some_and(Port::is_held_up)
    }

    pub(super) fn can_transmit(&self) -> bool {
        self.ports.iter().any(|port| port.can_transmit())
    }
}

/// A vNIC as the datapath knows it. One without ports is an empty place among others.
#[derive(Default)]
pub struct Vnic {
    /// The MAC its guest uses.
    pub(super) mac: MacAddr,
    /// The element's side.
    pub(super) guest: Side,
    /// The physical side.
    pub(super) uplink: Side,
    /// The uplink's device, told what the guest takes.
    uplink_device: Option<Arc<dyn Device>>,
    /// What it was told last.
    told: PeerOffloads,
}

impl Vnic {
    /// A vNIC whose guest uses `mac`, with the ports of both sides' devices in queue order.
    pub fn new(
        mac: MacAddr,
        guest: Vec<Box<dyn Port>>,
        (uplink_device, uplink): (Arc<dyn Device>, Vec<Box<dyn Port>>),
    ) -> Self {
        Self {
            mac,
            guest: Side { ports: guest },
            uplink: Side { ports: uplink },
            uplink_device: Some(uplink_device),
            told: PeerOffloads::default(),
        }
    }

    fn ports(&mut self) -> impl Iterator<Item = &mut Box<dyn Port>> {
        let Self { guest, uplink, .. } = self;
        uplink.ports.iter_mut().chain(guest.ports.iter_mut())
    }

    fn is_empty(&self) -> bool {
        self.guest.ports.is_empty() && self.uplink.ports.is_empty()
    }

    /// Registers all ports with a worker's poller under `token`.
    fn attach(&mut self, set: &Arc<EpollSet>, token: u64) -> io::Result<()> {
        self.ports().try_for_each(|port| {
            let registry: Arc<dyn PollRegistry> = set.clone();
            port.attach(Poller::new(registry, token))
        })
    }

    /// Tells the uplink's device when the guest's negotiated offloads have changed.
    fn tell_far_side(&mut self) {
        let Some(port) = self.guest.ports.first() else {
            return;
        };
        // A guest that is absent gets nothing, so nothing need be finished for it: what goes
        // around it may stay whole.
        let accepts = if port.is_running() {
            port.peer()
        } else {
            PeerOffloads::ALL
        };
        if accepts != self.told {
            if let Some(device) = &self.uplink_device {
                device.set_far_side(accepts);
            }
            self.told = accepts;
        }
    }
}

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
    pub(super) reporter: Reporter,
}

impl Bench {
    /// Three bursts, allocated once.
    pub fn new(reporter: Reporter) -> Self {
        Self {
            burst: Burst::new(),
            released: Burst::new(),
            adapted: Burst::new(),
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
    pub(super) counters: Arc<ElementCounters>,
    pub(super) signals: Arc<ElementSignals>,
    pub(super) revisited: u32,
    pub(super) meter: PuntMeter,
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
            counters,
            signals,
            revisited: 0,
            meter: PuntMeter::new(punt_rate),
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

    /// Registers all ports with a worker's poller under `token`.
    pub(super) fn attach(&mut self, set: &Arc<EpollSet>, token: u64) -> io::Result<()> {
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
            frames: self.prepare(bench, began),
            drained: false,
            end: began,
        };
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
            let end = time.now();
            let mix = std::mem::take(&mut self.pipe.mix);
            self.account.charge(end.since(turn.end), frames, mix);
            turn.end = end;
            turn.frames += frames;
        }
        turn.drained = empty == queues && passed == 0;
        self.account.end(turn.drained);
        turn
    }

    /// What comes before a turn's bursts. Says how many parked frames were released.
    pub(super) fn prepare(&mut self, bench: &mut Bench, now: Moment) -> usize {
        for vnic in &mut self.pipe.vnics {
            vnic.tell_far_side();
        }
        if self.pipe.retry.is_some_and(|due| due <= now) {
            self.pipe.retry = None;
            self.rouse(now);
        }
        match self.pipe.hand_over.is_idle() {
            true => 0,
            false => self.hand_over_due(bench, now),
        }
    }

    /// How many queues there are to receive from.
    pub(super) fn queues(&self) -> usize {
        let queues = |vnic: &Vnic| vnic.uplink.ports.len() + vnic.guest.ports.len();
        self.pipe.vnics.iter().map(queues).sum()
    }

    /// One burst from a queue. Says how many frames.
    pub(super) fn poll(&mut self, place: Place, bench: &mut Bench, now: Moment) -> usize {
        match place.guest {
            false => self.poll_uplink(place.vnic, place.queue, bench, now),
            true => self.poll_guest(place.vnic, place.queue, bench, now),
        }
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
            if place.queue < side.ports.len() {
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

    /// Asks all ports for a notification; false if something came meanwhile. A guest whose
    /// uplink is held up need not notify: its frames wait, and the uplink is tried again.
    pub(super) fn arm(&mut self) -> bool {
        let mut quiet = true;
        for Vnic { guest, uplink, .. } in &mut self.pipe.vnics {
            for port in &mut uplink.ports {
                quiet &= port.arm() == Armed::Asleep;
            }
            for (queue, port) in guest.ports.iter_mut().enumerate() {
                quiet &= uplink.is_held_up(queue) || port.arm() == Armed::Asleep;
            }
        }
        if !quiet {
            self.disarm();
        }
        quiet
    }

    /// Takes [`Lane::arm`] back.
    pub(super) fn disarm(&mut self) {
        for port in self.ports() {
            port.disarm();
        }
    }

    fn ports(&mut self) -> impl Iterator<Item = &mut Box<dyn Port>> {
        self.pipe.vnics.iter_mut().flat_map(Vnic::ports)
    }
}
