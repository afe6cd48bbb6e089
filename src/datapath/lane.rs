//! A lane: one element as its worker sees it.
//!
//! *Promises*: everything a packet of this element can reach hangs on its lane; there is no
//! way to another element's tables or ports.
//! *Refuses*: nothing.
//! *Caller's duty*: `Lane::poll` belongs to one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ElementId;
use super::budget::Budget;
use super::counters::ElementCounters;
use super::parking::Parking;
use super::poller::EpollSet;
use crate::flow::hand_over::{HandOver, Release};
use crate::flow::queue::Sender;
use crate::flow::sessions::ElementSignals;
use crate::flow::{FlowEvent, Moment, TableReader};
use crate::packet::{Burst, MacAddr, PeerOffloads};
use crate::port::{Armed, Device, PollRegistry, Poller, Port};

/// One side of a vNIC: a device's queue pairs.
pub struct Side {
    ports: Vec<Box<dyn Port>>,
}

impl Side {
    /// A side with the ports of one device, in queue order; at least one.
    pub fn new(ports: Vec<Box<dyn Port>>) -> Self {
        Self { ports }
    }

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

    pub(super) fn can_transmit(&self) -> bool {
        self.ports.iter().any(|port| port.can_transmit())
    }
}

/// A vNIC as the datapath knows it.
pub struct Vnic {
    /// The MAC its guest uses.
    pub mac: MacAddr,
    /// The element's side.
    pub guest: Side,
    /// The physical side.
    pub uplink: Side,
    /// The uplink's device, told what the guest takes.
    pub uplink_device: Arc<dyn Device>,
    /// What it was told last.
    pub told: PeerOffloads,
}

impl Vnic {
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
            self.uplink_device.set_far_side(accepts);
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
    /// Scratch space for what the hand-over machine releases.
    pub(super) due: Vec<Release>,
}

/// One element on one worker.
pub struct Lane {
    pub(super) table: TableReader,
    pub(super) pipe: Pipe,
    pub(super) budget: Budget,
    pub(super) awake: bool,
}

impl Lane {
    /// A lane, awake.
    pub fn new(
        id: ElementId,
        table: TableReader,
        hand_over: HandOver,
        vnics: Vec<Vnic>,
        counters: Arc<ElementCounters>,
        signals: Arc<ElementSignals>,
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
            due,
        };
        Self {
            table,
            pipe,
            budget: Budget::default(),
            awake: true,
        }
    }

    /// Registers all ports with a worker's poller under `token`.
    pub(super) fn attach(&mut self, set: &Arc<EpollSet>, token: u64) -> std::io::Result<()> {
        for port in self.ports() {
            let registry: Arc<dyn PollRegistry> = set.clone();
            port.attach(Poller::new(registry, token))?;
        }
        Ok(())
    }

    /// One round: at most one burst from every queue of every vNIC, then what is due.
    /// Says how many frames were received or released.
    pub(super) fn poll(&mut self, bench: &mut Bench, now: Moment) -> usize {
        let mut frames = 0;
        for vnic in 0..self.pipe.vnics.len() {
            self.pipe.vnics[vnic].tell_far_side();
            for queue in 0..self.pipe.vnics[vnic].uplink.ports.len() {
                frames += self.poll_uplink(vnic, queue, bench, now);
            }
            for queue in 0..self.pipe.vnics[vnic].guest.ports.len() {
                frames += self.poll_guest(vnic, queue, bench, now);
            }
        }
        if !self.pipe.hand_over.is_idle() {
            frames += self.hand_over_due(bench, now);
        }
        frames
    }

    /// When the lane needs a round although nothing comes in.
    pub(super) fn next_deadline(&mut self) -> Option<Moment> {
        self.pipe.hand_over.next_deadline()
    }

    /// Asks all ports for a notification; false if something came meanwhile.
    pub(super) fn arm(&mut self) -> bool {
        let mut quiet = true;
        for port in self.ports() {
            quiet &= port.arm() == Armed::Asleep;
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
        let vnics = self.pipe.vnics.iter_mut();
        vnics.flat_map(|vnic| {
            vnic.uplink
                .ports
                .iter_mut()
                .chain(vnic.guest.ports.iter_mut())
        })
    }
}
