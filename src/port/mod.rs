//! Ports: where frames come from and go to.
//!
//! A [`Port`] is one queue pair of a device, as its worker sees it. It belongs to one
//! worker and is used by `&mut`, so nothing on the packet path locks. A device's
//! control side (protocol thread, status) lives with the device, not here.
//!
//! *Promises*: bursts of at most 64 frames, copied out of memory that others can
//! change; after [`Port::arm`] answered [`Armed::Asleep`] the poller fires for the next frame.
//! *Refuses*: to wait: a full or absent peer leaves frames unconsumed.
//! *Caller's duty*: frames passed to [`Port::transmit`] ask for no more than
//! [`Port::peer`] takes (the datapath completes and segments before).
//! *Standard*: virtio 1.2 sections 2.7 and 5.1.

mod bpf;
mod counters;
mod ifname;
pub mod netns;
pub mod shared;
pub mod tap;
pub mod testing;
pub mod vhost_user;
pub mod xdp;

use std::sync::Arc;

use crate::packet::{Burst, PeerOffloads, TxFrame};

/// Wakes a worker for one port: registers descriptors with the worker's epoll.
/// Edge-triggered, so an eventfd need not be read.
#[derive(Clone)]
pub struct Poller {
    register: Arc<dyn PollRegistry>,
    token: u64,
}

/// What a [`Poller`] stands on; the datapath implements it over `epoll`.
pub trait PollRegistry: Send + Sync {
    /// Watches `fd` for input, edge-triggered, reporting `token`.
    fn add(&self, fd: std::os::fd::RawFd, token: u64) -> std::io::Result<()>;
    /// Stops watching `fd`; must come before it is closed.
    fn remove(&self, fd: std::os::fd::RawFd) -> std::io::Result<()>;
    /// Wakes the worker now.
    fn wake(&self);
}

impl Poller {
    /// A poller that reports `token` to `register`'s worker.
    pub fn new(register: Arc<dyn PollRegistry>, token: u64) -> Self {
        Self { register, token }
    }

    /// Watches `fd`, edge-triggered.
    pub fn add(&self, fd: std::os::fd::RawFd) -> std::io::Result<()> {
        self.register.add(fd, self.token)
    }

    /// Stops watching `fd`; must come before it is closed.
    pub fn remove(&self, fd: std::os::fd::RawFd) -> std::io::Result<()> {
        self.register.remove(fd)
    }

    /// Wakes the worker now, for example when a ring has started.
    pub fn wake(&self) {
        self.register.wake();
    }
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// What became of the frames given to [`Port::transmit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxReport {
    /// Frames taken, from the front; the rest found no room.
    pub consumed: usize,
    /// Of those taken, which were discarded because no buffer of the peer could hold them:
    /// bit n is frame n. (A port without such limits says 0.)
    pub too_large: u64,
    /// Of those taken, which were discarded because they are not the sender's to send, in the
    /// same form. (Only a shared uplink says other than 0.)
    pub refused: u64,
}

/// The answer of [`Port::arm`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Armed {
    /// Nothing waits; the poller fires when something does.
    Asleep,
    /// Something came meanwhile: receive again before sleeping.
    Ready,
}

/// One queue pair of a device.
pub trait Port: Send {
    /// Connects the port to its worker; called once, before any other call.
    fn attach(&mut self, poller: Poller) -> std::io::Result<()>;

    /// Leaves its worker, on whose thread this is called last: what the thread keeps for the port
    /// is let go of. Another may drop it then.
    fn detach(&mut self) {}

    /// Whether both directions can run now (rings started, device up).
    fn is_running(&self) -> bool;

    /// Whether [`Port::transmit`] can run now, also when the other direction has stopped by fault.
    fn can_transmit(&self) -> bool {
        self.is_running()
    }

    /// What the peer takes unfinished, as negotiated now.
    fn peer(&self) -> PeerOffloads;

    /// Appends waiting frames to `burst`, oldest first, and says how many.
    fn receive(&mut self, burst: &mut Burst) -> usize;

    /// Hands over at most 64 frames in order and notifies the peer once. Not running: consumes none.
    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport;

    /// The same for a sender that can wait, such as a guest. A port whose peer lacks room for
    /// a while only keeps what found none, up to a bound, and sends it before anything else; until
    /// then [`Port::is_held_up`], and the sender's other frames should stay where they are. By
    /// default nothing is kept.
    fn transmit_or_keep(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        self.transmit(frames)
    }

    /// Whether kept frames wait for room still; tries to send them. Nobody is notified when
    /// there is room.
    fn is_held_up(&mut self) -> bool {
        false
    }

    /// Asks for a notification at the next frame to receive.
    fn arm(&mut self) -> Armed;

    /// Takes back [`Port::arm`]: the worker polls.
    fn disarm(&mut self);
}

/// What `show ports` tells about a device's queue pair or ring. Counters never go back.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueStatus {
    /// Queue pair number, from 0.
    pub queue: u16,
    /// Whether both rings run.
    pub running: bool,
    /// Why a ring stopped by fault, in words; absent while all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Frames received from the peer.
    pub rx_frames: u64,
    /// Bytes of those frames.
    pub rx_bytes: u64,
    /// Frames handed to the peer.
    pub tx_frames: u64,
    /// Bytes of those frames.
    pub tx_bytes: u64,
    /// Frames discarded on receive, such as a bad virtio-net header or one too long.
    pub rx_discarded: u64,
    /// Frames discarded on transmit because the peer's buffers were too small.
    pub tx_discarded: u64,
}

/// What `show ports` tells about a device.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceStatus {
    /// `vhost-user`, `tap` or `xdp`.
    pub kind: String,
    /// Socket path or interface name.
    pub name: String,
    /// Whether a peer is connected (tap and xdp: the link is up).
    pub connected: bool,
    /// Negotiated feature names.
    pub features: Vec<String>,
    /// How often a peer connected.
    pub connections: u64,
    /// How often a ring was stopped by fault.
    pub faults: u64,
    /// Frames of a shared device that are no vNIC's.
    pub unclaimed: u64,
    /// One entry per queue pair.
    pub queues: Vec<QueueStatus>,
}

/// A device's control side: kept by the backend while its ports are with workers.
/// Dropping it disconnects the peer and ends its threads.
pub trait Device: Send + Sync {
    /// The status now.
    fn status(&self) -> DeviceStatus;
}
