//! A queue of an AF_XDP uplink as its worker uses it.
//!
//! *Promises*: received frames are copied into the burst and frames to send out of the
//! caller's; neither waits. A transmit ring that the kernel has not emptied (a full peer, a
//! budget) is looked after at every call, and keeps the worker awake while that helps.
//! *Refuses*: frames longer than the interface or the memory takes: `too_large`.
//! *Caller's duty*: after the poller has reported the port, or [`Port::arm`] answered
//! [`Armed::Ready`], to call [`Port::receive`] before sleeping (the poller is edge-triggered); and
//! [`Port::disarm`] after [`Armed::Asleep`], before frames are sent in numbers.
//! *Standard*: the kernel's Documentation/networking/af_xdp.rst.
//!
//! No wake-up is lost: the kernel rings after it has published what it received, whether
//! anybody sleeps or not, and the port sleeps only after it has seen the ring empty.
//!
//! **Watched while asleep.** The kernel tells whoever watches a socket of every frame that it has
//! sent, one by one: up to a tenth of what sending costs, for nothing. So a port that sends is taken
//! out of the poller until its worker is about to sleep; what came meanwhile is reported then.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::counters::Tally;
use super::super::{Armed, Poller, Port, TxReport};
use super::rings::Rings;
use super::{Link, Queue, Shared, State};
use crate::packet::{Burst, FrameMut, Offload, PeerOffloads, TxFrame, segment, unmarked};

/// Wake-ups in one call at most: a kernel that sends 32 frames each needs two for a burst,
/// and one more each time a peer was full.
const KICKS: usize = 4;
/// Wake-ups without effect after which the worker may sleep although frames wait.
const FRUITLESS_MAX: u32 = 1_000;
/// Bytes of a frame whose checksum is completed at once.
const SHORT: usize = 192;
/// Frames sent while watched whose notices cost as much as to leave the poller and come back.
const UNWATCH_FROM: u32 = 16;

/// One queue of an uplink.
pub(super) struct XdpPort {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    rings: Rings,
    poller: Option<Poller>,
    watch: Watch,
    /// The receive ring was seen empty after the last frame.
    drained: bool,
    /// Wake-ups in a row that sent nothing.
    fruitless: u32,
}

/// Whether the poller has the port's descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Watch {
    /// It has, and so many frames were sent since the worker slept last.
    Awake(u32),
    /// It has, and the worker relies on it.
    Asleep,
    /// It has not.
    Off,
}

impl XdpPort {
    pub(super) fn new(shared: Arc<Shared>, queue: Arc<Queue>, rings: Rings) -> Self {
        Self {
            shared,
            queue,
            rings,
            poller: None,
            watch: Watch::Off,
            drained: false,
            fruitless: 0,
        }
    }

    /// Whether frames may be tried: the interface is there and the device not dropped.
    fn is_open(&self) -> bool {
        self.queue.state() != State::Gone && !self.shared.closed.load(Ordering::Relaxed)
    }

    /// Has the kernel send what waits; says how many frames it dropped.
    fn kick(&mut self) -> u64 {
        let before = self.rings.unsent();
        let mut dropped = 0;
        for _ in 0..KICKS {
            let Err(error) = self.rings.kick() else {
                break;
            };
            match error.raw_os_error() {
                // The driver dropped one, the rest is still to come.
                Some(libc::EBUSY) => dropped += 1,
                Some(libc::ENETDOWN) => {
                    self.queue.set_state(State::Down);
                    break;
                }
                Some(libc::ENXIO | libc::ENODEV) => {
                    self.queue.set_state(State::Gone);
                    dropped = u64::from(self.rings.unsent());
                    break;
                }
                // Its budget is used up, or the peer or the completion ring is full.
                _ => self.rings.reclaim(),
            }
        }
        if before > 0 && self.rings.unsent() == before {
            self.fruitless = self.fruitless.saturating_add(1);
        } else {
            self.fruitless = 0;
        }
        dropped
    }

    /// Enters the poller if it has left it: the worker may sleep then.
    fn watch(&mut self) -> io::Result<()> {
        if self.watch == Watch::Off
            && let Some(poller) = &self.poller
        {
            poller.add(self.queue.socket.as_raw_fd())?;
        }
        self.watch = Watch::Asleep;
        Ok(())
    }

    /// Leaves the poller once `frames` more make that worth it; not while the worker sleeps: the
    /// sender may be another (`super::super::shared`).
    fn sends(&mut self, frames: usize) {
        let Watch::Awake(sent) = &mut self.watch else {
            return;
        };
        *sent = sent.saturating_add(frames as u32);
        if *sent >= UNWATCH_FROM
            && let Some(poller) = &self.poller
            && poller.remove(self.queue.socket.as_raw_fd()).is_ok()
        {
            self.watch = Watch::Off;
        }
    }

    /// Sends what an earlier call had to leave in the ring.
    fn send_leftovers(&mut self) {
        if self.rings.has_unsent() && self.queue.state() == State::Running {
            self.rings.reclaim();
            let tally = Tally {
                discarded: self.kick(),
                ..Tally::default()
            };
            self.queue.counters.tx.add(tally);
        }
    }
}

/// Deals with a checksum that is partial and unmarked: a long frame's is marked, since its
/// receiver may not need it complete; a short frame's costs less to complete than to mark.
fn mark_or_complete(mut frame: FrameMut<'_>) {
    if let Some(checksum) = unmarked::partial(frame.data()) {
        frame.offload().checksum = checksum;
        if frame.data().len() <= SHORT {
            // What was recognised can be completed; if not, it stays marked.
            let _ = segment::complete(&mut frame);
        }
    }
}

impl Port for XdpPort {
    fn attach(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(self.queue.socket.as_raw_fd())?;
        self.poller = Some(poller);
        self.watch = Watch::Awake(0);
        Ok(())
    }

    /// While the interface is known to be down each call asks the kernel whether it is up
    /// again; otherwise it costs nothing.
    fn is_running(&self) -> bool {
        if !self.is_open() {
            return false;
        }
        if self.queue.state() == State::Down {
            match self.shared.link() {
                Link::Up => self.queue.set_state(State::Running),
                Link::Down => return false,
                Link::Gone => {
                    self.queue.set_state(State::Gone);
                    return false;
                }
            }
        }
        true
    }

    /// Nothing may be left to a wire.
    fn peer(&self) -> PeerOffloads {
        PeerOffloads::default()
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        self.drained = !self.is_open();
        if self.drained {
            return 0;
        }
        let mut tally = Tally::default();
        let unmarked_partials = self.shared.unmarked_partials;
        let taken = self.rings.receive(burst.room(), |frame| {
            if !burst.push(frame, Offload::default()) {
                tally.discarded += 1;
                return;
            }
            tally.took(frame.len());
            if unmarked_partials {
                mark_or_complete(burst.frame_mut(burst.len() - 1));
            }
        });
        self.drained = taken == 0;
        self.queue.counters.rx.add(tally);
        self.send_leftovers();
        tally.frames as usize
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        if !self.is_open() || frames.is_empty() {
            return TxReport::default();
        }
        self.rings.reclaim();
        let frame_max = self.shared.frame_max;
        let sendable = |frame: &TxFrame<'_>| {
            frame.data.len() <= frame_max && self.rings.is_sendable(frame.data.len())
        };
        let mut places = [0; Burst::FRAMES_MAX];
        let mut count = 0;
        for (place, frame) in frames.iter().enumerate().take(Burst::FRAMES_MAX) {
            if sendable(frame) {
                places[count] = place;
                count += 1;
            }
        }
        let places = &places[..count];
        let queued = self
            .rings
            .send(places.iter().map(|place| frames[*place].data));
        // Up to the first that found no room; those between that no ring takes are lost.
        let consumed = places.get(queued).copied().unwrap_or(frames.len());
        let mut too_large = 0;
        let mut tally = Tally::default();
        for (place, frame) in frames[..consumed].iter().enumerate() {
            if frame.data.len() > frame_max {
                too_large |= 1 << place;
                tally.discarded += 1;
            } else if !self.rings.is_sendable(frame.data.len()) {
                tally.discarded += 1;
            } else {
                tally.took(frame.data.len());
            }
        }
        self.sends(consumed);
        tally.discarded += self.kick();
        self.queue.counters.tx.add(tally);
        TxReport {
            consumed,
            too_large,
            ..TxReport::default()
        }
    }

    fn arm(&mut self) -> Armed {
        let leftovers = self.queue.state() == State::Running
            && self.fruitless < FRUITLESS_MAX
            && self.rings.has_unsent();
        // A poller that does not take it, for want of memory: the worker polls.
        if self.drained && !leftovers && self.watch().is_ok() {
            Armed::Asleep
        } else {
            Armed::Ready
        }
    }

    fn disarm(&mut self) {
        if self.watch == Watch::Asleep {
            self.watch = Watch::Awake(0);
        }
    }
}

impl Drop for XdpPort {
    fn drop(&mut self) {
        if let Some(poller) = &self.poller {
            // The worker may be ending too, its epoll with it: then there is nothing to undo.
            let _ = poller.remove(self.queue.socket.as_raw_fd());
        }
    }
}
