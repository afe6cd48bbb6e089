//! One vring as the protocol sees it; every callback settles what its ring should do.
//!
//! *Promises*: a ring runs exactly while its peer wants it (enabled, addressed, with a kick
//! descriptor or none on purpose) and it can (features and memory known, no fault).
//! *Refuses*: queue sizes that are no power of two: the ring does not start, with a fault.
//! *Caller's duty*: callbacks come from one thread, as the protocol crate's handler lock
//! makes sure.
//! *Standard*: vhost-user "Ring states", "Starting and stopping rings".
//!
//! Where a ring begins: always at the used index in its memory. Shunt completes what it
//! takes within the burst, so that index is the truth about an earlier run, its own or a
//! crashed one's. Frontends that lost their backend send other bases: cloud-hypervisor the
//! available index (which would skip frames) unless IN_ORDER is negotiated. DPDK does the
//! same as we do. A disabled ring is not drained; it goes on when enabled again.
#![expect(
    clippy::disallowed_types,
    reason = "only the protocol thread takes this lock; no worker does"
)]

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::GuestMemoryAtomic;

use super::device::Shared;
use super::eventfd::EventFd;
use super::features;
use super::memory::GuestMemory;
use super::ring::{RingConfig, published};
use super::slot::{Control, Fault};

/// The protocol crate's handle on a guest's memory.
pub(super) type Memory = GuestMemoryAtomic<GuestMemory>;

thread_local! {
    /// The device whose vrings the protocol crate is making on this thread: it makes them
    /// from nothing but memory and a size.
    static MAKING: RefCell<Option<Making>> = const { RefCell::new(None) };
}

struct Making {
    device: Arc<Shared>,
    made: Vec<Vring>,
}

/// Runs `make`, in which the vrings of `device` are made, and returns them too.
pub(super) fn make_for<T>(device: &Arc<Shared>, make: impl FnOnce() -> T) -> (T, Vec<Vring>) {
    let making = Making {
        device: Arc::clone(device),
        made: Vec::new(),
    };
    MAKING.with(|slot| slot.replace(Some(making)));
    let value = make();
    let made = MAKING.with(RefCell::take).map(|making| making.made);
    (value, made.unwrap_or_default())
}

/// What the peer said about a ring that [`VringState`] does not keep.
#[derive(Clone, Copy, Default)]
struct Said {
    addressed: bool,
    refused_size: Option<u16>,
    /// It will not kick (`VHOST_USER_VRING_NOFD_MASK`).
    polled: bool,
    /// GET_VRING_BASE is under way: the next kick descriptor is taken away, not left out.
    stopping: bool,
}

/// One vring; a clone is the same one.
#[derive(Clone)]
pub(super) struct Vring {
    inner: Arc<Inner>,
}

struct Inner {
    index: usize,
    device: Arc<Shared>,
    vring: VringMutex<Memory>,
    said: Mutex<Said>,
}

impl Vring {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.inner.said.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn slot(&self) -> &dyn Control {
        self.inner.device.slot(self.inner.index)
    }

    /// Stops the ring, if it runs, and keeps where it stood.
    pub(super) fn stop(&self) {
        if let Some(next) = self.slot().stop() {
            self.inner.vring.set_queue_next_avail(next);
        }
    }

    /// Starts the ring if it should and can run, and does not.
    pub(super) fn settle(&self) {
        let slot = self.slot();
        if slot.is_running() || slot.has_fault() || !self.is_wanted() {
            return;
        }
        if let Err(fault) = self.start() {
            self.inner.device.fail(slot, fault);
        }
    }

    /// Starts the ring anew after a change that a running one cannot take.
    pub(super) fn restart(&self) {
        self.stop();
        self.settle();
    }

    /// Back to the state of a new connection (`VHOST_USER_RESET_DEVICE`).
    pub(super) fn reset(&self) {
        self.stop();
        self.slot().set_kick(None, false);
        self.slot().set_call(None);
        self.slot().clear_fault();
        *self.said() = Said::default();
        self.inner.vring.set_kick(None);
        self.inner.vring.get_mut().get_queue_mut().reset();
    }

    /// The connection is over; a ring of a peer that was sent away keeps `reason`.
    pub(super) fn close(&self, reason: Option<&Arc<str>>) {
        let slot = self.slot();
        slot.stop();
        slot.set_kick(None, false);
        if let Some(reason) = reason
            && !slot.has_fault()
        {
            slot.fail(Fault::Disconnected(Arc::clone(reason)));
        }
        slot.set_call(None);
        slot.set_error(None);
    }

    fn is_wanted(&self) -> bool {
        let said = *self.said();
        let state = self.inner.vring.get_ref();
        state.is_enabled() && said.addressed && (said.polled || state.get_kick().is_some())
    }

    fn start(&self) -> Result<(), Fault> {
        let device = &self.inner.device;
        let (Some(acked), Some(map)) = (device.features(), device.map()) else {
            return Ok(());
        };
        if let Some(size) = self.said().refused_size {
            return Err(Fault::Size(size));
        }
        let (mut config, base) = self.config(acked);
        let used = published(Arc::clone(&map), &config)?;
        if device.memory_lost() {
            return Err(Fault::MemoryLost);
        }
        if used != base {
            log::debug!(
                "{}: vring {} starts at its used index {used}, not at {base}",
                device.name(),
                self.inner.index
            );
        }
        (config.next_avail, config.used_idx) = (used, used);
        self.slot().start(map, config)
    }

    /// The ring's configuration but for its indices, and the base the peer gave.
    fn config(&self, acked: u64) -> (RingConfig, u16) {
        let state = self.inner.vring.get_ref();
        let queue = state.get_queue();
        let config = RingConfig {
            size: queue.size(),
            desc: queue.desc_table(),
            avail: queue.avail_ring(),
            used: queue.used_ring(),
            event_idx: acked & features::EVENT_IDX != 0,
            indirect: acked & features::INDIRECT_DESC != 0,
            in_order: acked & features::IN_ORDER != 0,
            mrg_rxbuf: acked & features::MRG_RXBUF != 0,
            header_len: features::header_len(acked),
            next_avail: 0,
            used_idx: 0,
        };
        (config, queue.next_avail())
    }
}

type Guard<'a> = MutexGuard<'a, VringState<Memory>>;

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = Guard<'a>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = Guard<'a>;
}

impl VringT<Memory> for Vring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let vring = VringMutex::new(mem, max_queue_size)?;
        MAKING.with(|slot| {
            let mut slot = slot.borrow_mut();
            // Outside of `make_for` there is no device: nothing in this crate does that.
            let making = slot.as_mut().ok_or(QueueError::QueueNotReady)?;
            let made = Self {
                inner: Arc::new(Inner {
                    index: making.made.len(),
                    device: Arc::clone(&making.device),
                    vring,
                    said: Mutex::default(),
                }),
            };
            making.made.push(made.clone());
            Ok(made)
        })
    }

    fn get_ref(&self) -> Guard<'_> {
        self.inner.vring.get_ref()
    }

    fn get_mut(&self) -> Guard<'_> {
        self.inner.vring.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.inner.vring.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.vring.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.vring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.vring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.vring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.vring.set_enabled(enabled);
        if enabled {
            self.settle();
        } else {
            self.stop();
        }
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        let moved = {
            let state = self.inner.vring.get_ref();
            let queue = state.get_queue();
            (queue.desc_table(), queue.avail_ring(), queue.used_ring()) != (desc, avail, used)
        };
        self.inner.vring.set_queue_info(desc, avail, used)?;
        self.said().addressed = true;
        // QEMU says the same addresses again when a migration begins.
        if moved {
            self.stop();
        }
        self.settle();
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.vring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.vring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.inner.vring.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.vring.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        // A running ring keeps the size it was started with.
        if num.is_power_of_two() {
            self.said().refused_size = None;
            self.inner.vring.set_queue_size(num);
        } else {
            self.said().refused_size = Some(num);
        }
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.vring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.vring.set_queue_ready(ready);
        if ready {
            self.settle();
        } else {
            self.stop();
            self.said().stopping = true;
        }
    }

    fn set_kick(&self, file: Option<File>) {
        let stopping = std::mem::take(&mut self.said().stopping);
        let polled = file.is_none() && !stopping;
        self.stop();
        // Out of the poller first: the crate's setter closes the old descriptor.
        self.slot().set_kick(None, false);
        self.inner.vring.set_kick(file);
        self.said().polled = polled;
        let kick = self.get_ref().get_kick().as_ref().map(AsRawFd::as_raw_fd);
        self.slot().set_kick(kick, polled);
        if !stopping {
            self.slot().clear_fault();
            self.settle();
        }
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.vring.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        match file.map(|file| EventFd::new(file, "call")).transpose() {
            Ok(call) => self.slot().set_call(call),
            Err(error) => self.inner.device.fail(self.slot(), Fault::Call(error)),
        }
    }

    fn set_err(&self, file: Option<File>) {
        match file.map(|file| EventFd::new(file, "error")).transpose() {
            Ok(error) => self.slot().set_error(error),
            Err(refused) => log::warn!("{}: {refused}; ignored", self.inner.device.name()),
        }
    }
}
