//! A vNIC's part of a shared device: a port for each queue, and its status.
//!
//! *Promises*: as [`Port`] asks. Members of one device may belong to different workers.
//! *Refuses*: what [`super::hub`] refuses.
//! *Caller's duty*: as for every port. *Standard*: none.
//!
//! A queue's members share its hub under a lock, taken once a burst and held for as long
//! as the burst takes. Members that one worker polls never wait for each other.

#![expect(
    clippy::disallowed_types,
    reason = "once a burst, contended only where members of one queue are on several workers"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::counters::{Counters, Tally};
use super::super::{Armed, Device, DeviceStatus, Poller, Port, TxReport};
use super::hub::{Hub, Place};
use super::selector::{Selector, Taken};
use crate::packet::{Burst, PeerOffloads, TxFrame};

/// A queue of the device, shared.
pub(super) struct SharedQueue {
    hub: Mutex<Hub>,
    // What the port said last, so that asking for each packet locks nothing.
    running: AtomicBool,
    transmits: AtomicBool,
}

impl SharedQueue {
    pub(super) fn new(port: Box<dyn Port>) -> Self {
        Self {
            running: AtomicBool::new(port.is_running()),
            transmits: AtomicBool::new(port.can_transmit()),
            hub: Mutex::new(Hub::new(port)),
        }
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hub, for a worker: what the port can do is noted.
    fn enter(&self) -> MutexGuard<'_, Hub> {
        let hub = self.hub();
        self.running
            .store(hub.port().is_running(), Ordering::Relaxed);
        self.transmits
            .store(hub.port().can_transmit(), Ordering::Relaxed);
        hub
    }

    /// Frames that no member's selector takes.
    pub(super) fn unclaimed(&self) -> u64 {
        self.hub().unclaimed
    }

    /// A new member's port.
    pub(super) fn join(
        self: &Arc<Self>,
        selector: Selector,
        counters: Arc<Counters>,
    ) -> Result<MemberPort, JoinError> {
        let bell = EventFd::new(EFD_NONBLOCK).map_err(JoinError::NoDescriptor)?;
        let rung = bell.try_clone().map_err(JoinError::NoDescriptor)?;
        let place = self.hub().join(selector, counters.clone(), rung)?;
        Ok(MemberPort {
            queue: self.clone(),
            place,
            bell,
            poller: None,
            counters,
        })
    }
}

/// Why a vNIC could not become a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Another has the same address.
    #[error(transparent)]
    Taken(#[from] Taken),
    /// The system refused a descriptor.
    #[error("no eventfd for a shared uplink: raise the limit of open files")]
    NoDescriptor(#[source] io::Error),
}

/// A member's port of one queue.
pub(super) struct MemberPort {
    queue: Arc<SharedQueue>,
    place: Place,
    bell: EventFd,
    poller: Option<Poller>,
    counters: Arc<Counters>,
}

impl Port for MemberPort {
    fn attach(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(self.bell.as_raw_fd())?;
        self.poller = Some(poller.clone());
        self.queue.hub().attach(self.place, poller)
    }

    fn detach(&mut self) {
        // Its thread may be the one that looks after the device.
        self.queue.hub().detach();
    }

    fn is_running(&self) -> bool {
        self.queue.running.load(Ordering::Relaxed)
    }

    fn can_transmit(&self) -> bool {
        self.queue.transmits.load(Ordering::Relaxed)
    }

    fn peer(&self) -> PeerOffloads {
        self.queue.hub().port().peer()
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        let before = burst.len();
        let count = self.queue.enter().receive(self.place, burst);
        let mut tally = Tally::default();
        for index in before..burst.len() {
            tally.took(burst.frame(index).data.len());
        }
        self.counters.rx.add(tally);
        count
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        let report = self.queue.enter().transmit(self.place, frames);
        let lost = report.too_large | report.refused;
        let mut tally = Tally::default();
        for (index, frame) in frames[..report.consumed].iter().enumerate() {
            match lost >> index & 1 {
                0 => tally.took(frame.data.len()),
                _ => tally.discarded += 1,
            }
        }
        self.counters.tx.add(tally);
        report
    }

    fn arm(&mut self) -> Armed {
        self.queue.enter().arm(self.place)
    }

    fn disarm(&mut self) {
        self.queue.enter().disarm(self.place);
    }
}

impl Drop for MemberPort {
    fn drop(&mut self) {
        self.queue.hub().leave(self.place);
        if let Some(poller) = &self.poller {
            // The worker may be ending too, its epoll set with it.
            let _gone = poller.remove(self.bell.as_raw_fd());
        }
    }
}

/// A member's device: the shared one, with the member's own counters.
pub(super) struct MemberDevice {
    pub(super) device: Arc<dyn Device>,
    pub(super) queues: Vec<(Arc<SharedQueue>, Arc<Counters>)>,
}

impl Device for MemberDevice {
    fn status(&self) -> DeviceStatus {
        let status = self.device.status();
        let queues = status.queues.into_iter().zip(&self.queues);
        let own = queues.map(|(queue, (_, counters))| counters.fill(queue));
        DeviceStatus {
            queues: own.collect(),
            unclaimed: self.queues.iter().map(|(queue, _)| queue.unclaimed()).sum(),
            ..status
        }
    }
}
