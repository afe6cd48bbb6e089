//! A vNIC as one lane sees it: the queue pairs of both devices, its own and those that other
//! lanes of the element have.
//!
//! *Promises*: traffic of a queue pair goes to the one of the same number on the other side, as
//! long as that runs. *Refuses*: nothing.
//! *Caller's duty*: [`Vnic::tell_others`] once a turn. *Standard*: none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::poller::EpollSet;
use crate::packet::MacAddr;
use crate::port::{Armed, PollRegistry, Poller, Port};

/// A queue pair of a device.
enum Seat {
    /// It is this lane's.
    Here(Box<dyn Port>),
    /// It is that of the element's lane with this number.
    Elsewhere(usize),
}

/// The way to a queue pair.
pub(super) enum Way<'a> {
    Here(&'a mut dyn Port),
    Elsewhere { lane: usize, queue: usize },
}

/// One side of a vNIC: a device's queue pairs, in order.
#[derive(Default)]
pub(super) struct Side {
    seats: Vec<Seat>,
    /// How many of them are here.
    own: usize,
    /// Which queue pairs can transmit, a bit each, as their lanes have seen it last; `None` if
    /// all are here.
    running: Option<Arc<AtomicU64>>,
}

impl Side {
    fn new(ports: Vec<Box<dyn Port>>) -> Self {
        Self {
            own: ports.len(),
            seats: ports.into_iter().map(Seat::Here).collect(),
            running: None,
        }
    }

    /// Deals the queue pairs out to `lanes` lanes in turn.
    fn split(self, lanes: usize) -> impl Iterator<Item = Self> {
        let running = Some(Arc::new(AtomicU64::new(0)));
        let mut sides: Vec<Self> = (0..lanes)
            .map(|_| Self {
                seats: Vec::with_capacity(self.seats.len()),
                own: 0,
                running: running.clone(),
            })
            .collect();
        for (queue, seat) in self.seats.into_iter().enumerate() {
            let owner = queue % lanes;
            sides
                .iter_mut()
                .for_each(|side| side.seats.push(Seat::Elsewhere(owner)));
            sides[owner].seats[queue] = seat;
            sides[owner].own += 1;
        }
        sides.into_iter()
    }

    /// The way for traffic that came in by queue pair `queue` of the other side: the same number
    /// if it runs, else the first that does, one of this lane before others, so that a flow
    /// keeps its queue.
    pub(super) fn toward(&mut self, queue: usize) -> Option<Way<'_>> {
        let same = self.counterpart(queue);
        let chosen = match self.runs(same) {
            true => same,
            false => self.other_than(same)?,
        };
        match self.seats.get_mut(chosen)? {
            Seat::Here(port) => Some(Way::Here(&mut **port)),
            Seat::Elsewhere(lane) => Some(Way::Elsewhere {
                lane: *lane,
                queue: chosen,
            }),
        }
    }

    /// The queue pair that belongs to `queue` of the other side, which may have more.
    #[inline]
    fn counterpart(&self, queue: usize) -> usize {
        match queue < self.seats.len() {
            true => queue,
            false => self.folded(queue),
        }
    }

    #[cold]
    fn folded(&self, queue: usize) -> usize {
        let same = queue % self.seats.len().max(1);
        match self.seats.get(same) {
            Some(Seat::Elsewhere(_)) => self.own_from(0).unwrap_or(same),
            _ => same,
        }
    }

    #[cold]
    fn other_than(&self, same: usize) -> Option<usize> {
        let all = || (0..self.seats.len()).filter(|queue| *queue != same && self.runs(*queue));
        let is_own = |queue: &usize| matches!(self.seats.get(*queue), Some(Seat::Here(_)));
        all().find(is_own).or_else(|| all().next())
    }

    #[inline]
    fn runs(&self, queue: usize) -> bool {
        match self.seats.get(queue) {
            Some(Seat::Here(port)) => port.can_transmit(),
            Some(Seat::Elsewhere(_)) => self.runs_elsewhere(queue),
            None => false,
        }
    }

    fn runs_elsewhere(&self, queue: usize) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.load(Ordering::Relaxed) >> queue & 1 != 0)
    }

    /// This lane's port of a queue pair.
    pub(super) fn port(&mut self, queue: usize) -> Option<&mut dyn Port> {
        match self.seats.get_mut(queue)? {
            Seat::Here(port) => Some(&mut **port),
            Seat::Elsewhere(_) => None,
        }
    }

    /// Whether the port toward queue pair `queue` is this lane's and keeps frames that found no
    /// room.
    pub(super) fn is_held_up(&mut self, queue: usize) -> bool {
        match self.toward(queue) {
            Some(Way::Here(port)) => port.is_held_up(),
            Some(Way::Elsewhere { .. }) | None => false,
        }
    }

    /// Whether any queue pair can transmit.
    pub(super) fn can_transmit(&self) -> bool {
        (0..self.seats.len()).any(|queue| self.runs(queue))
    }

    /// The first queue pair of this lane from `queue` on.
    #[inline]
    pub(super) fn own_from(&self, mut queue: usize) -> Option<usize> {
        while let Seat::Elsewhere(_) = self.seats.get(queue)? {
            queue += 1;
        }
        Some(queue)
    }

    /// The lanes that have queue pairs which this one has not.
    pub(super) fn owners(&self) -> impl Iterator<Item = usize> {
        self.seats.iter().filter_map(|seat| match seat {
            Seat::Elsewhere(lane) => Some(*lane),
            Seat::Here(_) => None,
        })
    }

    fn ports(&self) -> impl Iterator<Item = (usize, &dyn Port)> {
        let seats = self.seats.iter().enumerate();
        seats.filter_map(|(queue, seat)| match seat {
            Seat::Here(port) => Some((queue, &**port)),
            Seat::Elsewhere(_) => None,
        })
    }

    fn ports_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Port>> {
        self.seats.iter_mut().filter_map(|seat| match seat {
            Seat::Here(port) => Some(port),
            Seat::Elsewhere(_) => None,
        })
    }

    /// Tells the other lanes which of this lane's queue pairs can transmit.
    fn tell_running(&self, running: &AtomicU64) {
        let told = running.load(Ordering::Relaxed);
        for (queue, port) in self.ports() {
            let bit = 1 << queue;
            match (port.can_transmit(), told & bit != 0) {
                (true, false) => running.fetch_or(bit, Ordering::Relaxed),
                (false, true) => running.fetch_and(!bit, Ordering::Relaxed),
                _ => continue,
            };
        }
    }
}

/// A vNIC as the datapath knows it. One without queue pairs is an empty place among others.
#[derive(Default)]
pub struct Vnic {
    /// The MAC its guest uses.
    pub(super) mac: MacAddr,
    /// The element's side.
    pub(super) guest: Side,
    /// The physical side.
    pub(super) uplink: Side,
}

impl Vnic {
    /// A vNIC whose guest uses `mac`, with the ports of both sides' devices in queue order.
    pub fn new(mac: MacAddr, guest: Vec<Box<dyn Port>>, uplink: Vec<Box<dyn Port>>) -> Self {
        Self {
            mac,
            guest: Side::new(guest),
            uplink: Side::new(uplink),
        }
    }

    /// The most queue pairs that either side has.
    pub fn queue_pairs(&self) -> usize {
        self.guest.seats.len().max(self.uplink.seats.len())
    }

    /// The parts of an element's `lanes` lanes, of which number n has the queue pairs n,
    /// n + `lanes` and so on of both sides.
    #[must_use]
    pub fn split(self, lanes: usize) -> Vec<Self> {
        if lanes <= 1 {
            return vec![self];
        }
        let sides = self.guest.split(lanes).zip(self.uplink.split(lanes));
        let part = |(guest, uplink)| Self {
            mac: self.mac,
            guest,
            uplink,
        };
        sides.map(part).collect()
    }

    /// How many queues of this lane there are to receive from.
    pub(super) fn queues(&self) -> usize {
        self.uplink.own + self.guest.own
    }

    pub(super) fn ports(&mut self) -> impl Iterator<Item = &mut Box<dyn Port>> {
        let Self { guest, uplink, .. } = self;
        uplink.ports_mut().chain(guest.ports_mut())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue_pairs() == 0
    }

    /// Registers all ports with a worker's poller under `token`.
    pub(super) fn attach(&mut self, set: &Arc<EpollSet>, token: u64) -> io::Result<()> {
        self.ports().try_for_each(|port| {
            let registry: Arc<dyn PollRegistry> = set.clone();
            port.attach(Poller::new(registry, token))
        })
    }

    /// Asks its ports for a notification; false if something came meanwhile. A guest whose
    /// uplink is held up need not notify: its frames wait, and the uplink is tried again.
    pub(super) fn arm(&mut self) -> bool {
        let Self { guest, uplink, .. } = self;
        let mut quiet = true;
        for port in uplink.ports_mut() {
            quiet &= port.arm() == Armed::Asleep;
        }
        for queue in 0..guest.seats.len() {
            if let Some(port) = guest.port(queue) {
                quiet &= uplink.is_held_up(queue) || port.arm() == Armed::Asleep;
            }
        }
        quiet
    }

    /// Tells the element's other lanes which queue pairs run.
    pub(super) fn tell_others(&self) {
        for side in [&self.guest, &self.uplink] {
            if let Some(running) = &side.running {
                side.tell_running(running);
            }
        }
    }
}
