//! A queue pair as its worker uses it.
//!
//! *Promises*: no call waits: while the protocol thread has a ring, there is nothing to
//! receive, no room to transmit, and [`Port::arm`] says `Ready`. One notification of the
//! peer at most for each call. A ring that broke is stopped here, once.
//! *Refuses*: nothing.
//! *Caller's duty*: [`Port`]'s.
//! *Standard*: virtio 1.2 section 5.1.6.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::OpenError;
use super::device::{Pair, Shared};
use super::ring::{Popped, Pushed};
use super::slot::{Engine, Entered, Fault};
use crate::packet::{Burst, PeerOffloads, TxFrame};
use crate::port::counters::Tally;
use crate::port::{Armed, Poller, Port, TxReport};

/// How often a ring is looked at whose peer never kicks (`VHOST_USER_VRING_NOFD_MASK`):
/// a bound to the delay that costs little when nothing comes. No frontend known to us
/// asks for it.
const POLL_INTERVAL: Duration = Duration::from_micros(500);

/// The ports of a device, in queue pair order.
pub(super) fn all(device: &Arc<Shared>) -> Result<Vec<Box<dyn Port>>, OpenError> {
    (0..usize::from(device.config().queue_pairs))
        .map(|index| {
            let timer = TimerFd::new().map_err(|error| OpenError::System {
                action: "make a timer",
                source: error.into(),
            })?;
            Ok(Box::new(QueuePort {
                device: Arc::clone(device),
                index,
                timer,
                poller: None,
            }) as Box<dyn Port>)
        })
        .collect()
}

struct QueuePort {
    device: Arc<Shared>,
    index: usize,
    timer: TimerFd,
    poller: Option<Poller>,
}

impl QueuePort {
    #[inline]
    fn pair(&self) -> &Pair {
        self.device.pair(self.index)
    }

    /// Calls the peer if it wants that, and stops a ring that broke meanwhile.
    #[inline]
    fn finish<E: Engine>(&self, mut entered: Entered<'_, E>) {
        entered.call_if_needed();
        let lost = self.device.memory_lost();
        let fault = entered.ring().and_then(|ring| ring.fault().cloned());
        if lost || fault.is_some() {
            self.stop(entered, fault.filter(|_| !lost).map(Fault::Ring));
        }
    }

    #[cold]
    fn stop<E: Engine>(&self, mut entered: Entered<'_, E>, fault: Option<Fault>) {
        entered.fail(fault.unwrap_or(Fault::MemoryLost));
        drop(entered);
        self.device.count_fault();
    }
}

impl Port for QueuePort {
    fn attach(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(self.timer.as_raw_fd())?;
        self.poller = Some(poller.clone());
        self.pair().rx.control().set_poller(poller.clone())?;
        self.pair().tx.control().set_poller(poller)
    }

    #[inline]
    fn is_running(&self) -> bool {
        self.pair().rx.is_running() && self.pair().tx.is_running()
    }

    fn can_transmit(&self) -> bool {
        self.pair().tx.is_running()
    }

    #[inline]
    fn peer(&self) -> PeerOffloads {
        self.device.peer()
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        let pair = self.pair();
        if !pair.rx.is_running() {
            return 0;
        }
        let Some(mut entered) = pair.rx.enter() else {
            return 0;
        };
        let Some(ring) = entered.ring() else {
            return 0;
        };
        let Popped {
            frames,
            discarded,
            bytes,
        } = ring.pop(burst);
        self.finish(entered);
        pair.counters.rx.add(Tally {
            frames: frames as u64,
            bytes,
            discarded: discarded as u64,
        });
        frames
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        let pair = self.pair();
        if !pair.tx.is_running() {
            return TxReport::default();
        }
        let Some(mut entered) = pair.tx.enter() else {
            return TxReport::default();
        };
        let Some(ring) = entered.ring() else {
            return TxReport::default();
        };
        let Pushed {
            consumed,
            too_large,
            bytes,
        } = ring.push(frames);
        self.finish(entered);
        let discarded = u64::from(too_large.count_ones());
        pair.counters.tx.add(Tally {
            frames: consumed as u64 - discarded,
            bytes,
            discarded,
        });
        TxReport {
            consumed,
            too_large,
            ..TxReport::default()
        }
    }

    fn arm(&mut self) -> Armed {
        // A ring that starts later wakes the worker.
        if !self.pair().rx.is_running() {
            return Armed::Asleep;
        }
        let Some(mut entered) = self.pair().rx.enter() else {
            return Armed::Ready;
        };
        let polled = entered.is_polled();
        let armed = entered.ring().map_or(Armed::Asleep, |ring| ring.arm());
        self.finish(entered);
        if polled && armed == Armed::Asleep {
            // Fails only for intervals of 0 or less.
            if self.timer.reset(POLL_INTERVAL, None).is_err() {
                return Armed::Ready;
            }
        }
        armed
    }

    fn disarm(&mut self) {
        // A ring that the protocol thread has stays armed: a kick too many does no harm.
        if let Some(mut entered) = self.pair().rx.enter()
            && let Some(ring) = entered.ring()
        {
            ring.disarm();
        }
    }
}

impl Drop for QueuePort {
    fn drop(&mut self) {
        self.pair().rx.control().clear_poller();
        self.pair().tx.control().clear_poller();
        if let Some(poller) = &self.poller
            && let Err(error) = poller.remove(self.timer.as_raw_fd())
        {
            log::debug!("{}: its timer was not watched: {error}", self.device.name());
        }
    }
}
