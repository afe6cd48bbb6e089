//! What a device's protocol side, its ports and its status share.
//!
//! *Promises*: counters are relaxed and each has one writer; a reader may see them a
//! burst late, never going back.
//! *Refuses*: nothing.
//! *Caller's duty*: only the connection's thread changes features, memory and session.
//! *Standard*: vhost-user.
#![expect(
    clippy::disallowed_types,
    reason = "taken by control threads and status readers; no worker takes these locks"
)]

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use vhost_user_backend::bitmap::MmapLogReg;
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::EventFd;

use super::connect::{self, Source};
use super::features;
use super::memory::{GuestMemory, Mapped, MemoryError, MigrationLog};
use super::ring::{GuestMap, RxRing, TxRing};
use super::sigbus::Owner;
use super::slot::{Control, Fault, Slot};
use super::vring::Vring;
use super::{DeviceConfig, OpenError};
use crate::packet::PeerOffloads;
use crate::port::counters::Counters;
use crate::port::{Device, DeviceStatus, QueueStatus};

/// How long a closing device waits for its thread. Only a connect to a listener whose
/// queue is full takes longer; the thread then ends by itself.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// One queue pair. "Receive" is ours: the guest's transmit queue.
pub(super) struct Pair {
    pub(super) rx: Slot<RxRing>,
    pub(super) tx: Slot<TxRing>,
    pub(super) counters: Counters,
}

#[derive(Default)]
struct MemoryState {
    mapped: Option<Arc<Mapped>>,
    map: Option<Arc<GuestMap>>,
    log: Option<Arc<MmapLogReg>>,
}

/// A device, but for its threads.
pub(super) struct Shared {
    config: DeviceConfig,
    pairs: Vec<Pair>,
    /// Negotiated features; [`UNKNOWN`] before.
    acked: AtomicU64,
    /// Whether the bridge's SET_FEATURES has been seen.
    primed: AtomicBool,
    connected: AtomicBool,
    connections: AtomicU64,
    faults: AtomicU64,
    /// The vrings of the connection there is.
    session: Mutex<Vec<Vring>>,
    memory: Mutex<MemoryState>,
    owner: Owner,
    bell: EventFd,
    closing: AtomicBool,
    shutdown: Mutex<Option<UnixStream>>,
}

/// No feature word: nothing with this bit is offered.
const UNKNOWN: u64 = 1 << 63;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    pub(super) fn new(config: DeviceConfig) -> Result<Self, OpenError> {
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
            OpenError::System {
                action: "make an eventfd",
                source,
            }
        })?;
        let pairs = (0..config.queue_pairs).map(|_| Pair {
            rx: Slot::new(),
            tx: Slot::new(),
            counters: Counters::default(),
        });
        Ok(Self {
            pairs: pairs.collect(),
            config,
            acked: AtomicU64::new(UNKNOWN),
            primed: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            session: Mutex::default(),
            memory: Mutex::default(),
            owner: Owner::new().ok_or(OpenError::TooManyDevices)?,
            bell,
            closing: AtomicBool::new(false),
            shutdown: Mutex::default(),
        })
    }

    pub(super) fn config(&self) -> &DeviceConfig {
        &self.config
    }

    /// The socket's path, for messages.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.config.socket.display()
    }

    pub(super) fn pair(&self, index: usize) -> &Pair {
        &self.pairs[index]
    }

    /// The slot of vring `index`: the guest's receive queue is even, its transmit queue odd
    /// (virtio 1.2 section 5.1.2). The protocol crate makes no vring beyond our pairs.
    pub(super) fn slot(&self, index: usize) -> &dyn Control {
        let pair = &self.pairs[index / 2];
        if index & 1 == 0 { &pair.tx } else { &pair.rx }
    }

    fn slots(&self) -> impl Iterator<Item = (usize, &dyn Control)> {
        (0..self.pairs.len() * 2).map(|index| (index, self.slot(index)))
    }

    /// The negotiated features, once they are.
    pub(super) fn features(&self) -> Option<u64> {
        match self.acked.load(Ordering::Relaxed) {
            UNKNOWN => None,
            acked => Some(acked),
        }
    }

    /// What the peer takes unfinished.
    #[inline]
    pub(super) fn peer(&self) -> PeerOffloads {
        features::peer(self.features().unwrap_or(0))
    }

    /// The memory that rings start on.
    pub(super) fn map(&self) -> Option<Arc<GuestMap>> {
        lock(&self.memory).map.clone()
    }

    /// Whether the peer took memory away from under us.
    #[inline]
    pub(super) fn memory_lost(&self) -> bool {
        self.owner.is_lost()
    }

    fn vrings(&self) -> Vec<Vring> {
        lock(&self.session).clone()
    }

    /// SET_FEATURES. A change of what shapes a ring restarts the rings; only LOG_ALL
    /// changes on a running device in practice.
    pub(super) fn set_features(&self, acked: u64) {
        // The bridge's own message says nothing about the peer.
        if self.primed.swap(true, Ordering::Relaxed) {
            self.adopt_features(acked);
        }
    }

    fn adopt_features(&self, acked: u64) {
        let before = self.acked.swap(acked, Ordering::Relaxed);
        if before != UNKNOWN && (before ^ acked) & features::RING != 0 {
            self.vrings().iter().for_each(Vring::restart);
        }
        if (before ^ acked) & features::LOG_ALL != 0 {
            self.remap();
        }
        self.vrings().iter().for_each(Vring::settle);
    }

    /// RESET_DEVICE: as after a new connection, but memory and protocol features stay.
    pub(super) fn reset(&self) {
        self.vrings().iter().for_each(Vring::reset);
        self.primed.store(false, Ordering::Relaxed);
        self.acked.store(UNKNOWN, Ordering::Relaxed);
    }

    /// A new memory table: checked, then given to the rings.
    pub(super) fn set_memory(self: &Arc<Self>, table: Arc<GuestMemory>) -> Result<(), MemoryError> {
        let mapped = Mapped::new(table, &self.owner)?;
        // Overlaps and the like end here, before the rings move.
        mapped.guest_map(None)?;
        if let Some(last) = mapped.memory().iter().last() {
            (**last).bitmap().tell(self);
        }
        lock(&self.memory).mapped = Some(mapped);
        self.remap();
        self.vrings().iter().for_each(Vring::settle);
        Ok(())
    }

    /// SET_LOG_BASE.
    pub(super) fn set_log(&self, log: Arc<MmapLogReg>) {
        lock(&self.memory).log = Some(log);
        self.remap();
    }

    /// Makes the map anew and moves the running rings to it. One that is not there any
    /// more stops.
    fn remap(&self) {
        let map = {
            let mut memory = lock(&self.memory);
            memory.map = self.make_map(&memory);
            memory.map.clone()
        };
        let Some(map) = map else {
            return;
        };
        for (_, slot) in self.slots().filter(|(_, slot)| slot.is_running()) {
            if let Err(fault) = slot.remap(Arc::clone(&map)) {
                self.fail(slot, fault);
            }
        }
    }

    fn make_map(&self, memory: &MemoryState) -> Option<Arc<GuestMap>> {
        let mapped = memory.mapped.as_ref()?;
        let logging = self.features().unwrap_or(0) & features::LOG_ALL != 0;
        let log = memory.log.as_ref().filter(|_| logging).and_then(|log| {
            let log = MigrationLog::new(Arc::clone(log), mapped.memory(), &self.owner);
            if log.is_none() {
                log::warn!("{}: the migration log covers no memory", self.name());
            }
            log.map(Arc::new)
        });
        mapped.guest_map(log).ok()
    }

    /// Stops a ring for `fault`; the bell has it logged.
    pub(super) fn fail(&self, slot: &dyn Control, fault: Fault) {
        slot.fail(fault);
        self.count_fault();
    }

    /// A ring has failed: count it and have it logged, by another thread than a worker's.
    pub(super) fn count_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.ring_bell();
    }

    /// Wakes the connection's thread.
    pub(super) fn ring_bell(&self) {
        if let Err(error) = self.bell.write(1)
            && error.kind() != std::io::ErrorKind::WouldBlock
        {
            log::error!("{}: cannot wake its thread: {error}", self.name());
        }
    }

    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Logs each new fault once.
    pub(super) fn report_faults(&self) {
        for (index, slot) in self.slots() {
            if let Some(text) = slot.unreported_fault() {
                log::warn!("{}: vring {index} stopped: {text}", self.name());
            }
        }
    }

    /// The protocol crate has made these vrings for the next connection.
    pub(super) fn begin_session(&self, vrings: Vec<Vring>) {
        *lock(&self.session) = vrings;
        self.primed.store(false, Ordering::Relaxed);
    }

    /// A peer is there; shutting `shutdown` down ends it.
    pub(super) fn connection_began(&self, shutdown: UnixStream) {
        for (_, slot) in self.slots() {
            slot.clear_fault();
        }
        self.connected.store(true, Ordering::Relaxed);
        self.connections.fetch_add(1, Ordering::Relaxed);
        *lock(&self.shutdown) = Some(shutdown);
        if self.is_closing() {
            self.disconnect();
        }
    }

    /// The peer is gone, for `reason` if it was sent away. Its rings stop (their kick
    /// descriptors are still open), its memory is let go.
    pub(super) fn connection_ended(&self, reason: Option<Arc<str>>) {
        lock(&self.shutdown).take();
        for vring in std::mem::take(&mut *lock(&self.session)) {
            vring.close(reason.as_ref());
        }
        if reason.is_some() {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        self.acked.store(UNKNOWN, Ordering::Relaxed);
        *lock(&self.memory) = MemoryState::default();
        self.owner.renew();
        self.connected.store(false, Ordering::Release);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    fn disconnect(&self) {
        if let Some(frontend) = lock(&self.shutdown).as_ref()
            && let Err(error) = frontend.shutdown(Shutdown::Both)
        {
            log::debug!("{}: already disconnected: {error}", self.name());
        }
    }

    fn queue_status(&self, index: usize) -> QueueStatus {
        let pair = &self.pairs[index];
        pair.counters.fill(QueueStatus {
            queue: index as u16,
            running: pair.rx.is_running() && pair.tx.is_running(),
            fault: pair.rx.fault_text().or_else(|| pair.tx.fault_text()),
            ..QueueStatus::default()
        })
    }
}

/// A vhost-user device's control side. Dropping it disconnects the peer, ends the
/// device's threads and removes the socket; its ports then stay idle.
pub struct VhostUserDevice {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Closed by the thread's end.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl VhostUserDevice {
    /// Starts the thread that serves `source`.
    pub(super) fn serve(shared: Arc<Shared>, source: Source) -> Result<Self, OpenError> {
        let (alive, ended) = mpsc::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("vhost-user-conn".to_owned())
            .spawn(move || {
                let _alive = alive;
                connect::run(&for_thread, &source);
            })
            .map_err(|source| OpenError::System {
                action: "start a thread",
                source,
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            ended: Mutex::new(ended),
        })
    }
}

impl Device for VhostUserDevice {
    fn status(&self) -> DeviceStatus {
        let shared = &self.shared;
        DeviceStatus {
            kind: "vhost-user".to_owned(),
            name: shared.name().to_string(),
            connected: shared.connected.load(Ordering::Acquire),
            features: features::names(shared.features().unwrap_or(0)),
            connections: shared.connections.load(Ordering::Relaxed),
            faults: shared.faults.load(Ordering::Relaxed),
            unclaimed: 0,
            queues: (0..shared.pairs.len())
                .map(|index| shared.queue_status(index))
                .collect(),
        }
    }
}

impl std::fmt::Debug for VhostUserDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostUserDevice")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

impl Drop for VhostUserDevice {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.disconnect();
        self.shared.ring_bell();
        let waited = lock(&self.ended).recv_timeout(CLOSE_WAIT);
        match (waited, self.thread.take()) {
            (Err(mpsc::RecvTimeoutError::Timeout), _) => {
                log::warn!("{}: still busy, left to end by itself", self.shared.name());
            }
            (_, Some(thread)) => {
                if thread.join().is_err() {
                    log::error!("{}: its thread panicked", self.shared.name());
                }
            }
            (_, None) => {}
        }
    }
}
