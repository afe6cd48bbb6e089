//! vhost-user: a virtio-net device of ours for a VMM's guest (or a DPDK process).
//!
//! [`open`] makes a device on a socket: one control side, and a [`Port`] for each queue
//! pair, to be given to workers.
//!
//! *Promises*: a peer that disconnects finds the device again, and its rings go on from
//! the used index in their own memory, so nothing is sent twice and nothing is skipped. A
//! broken ring stops alone, says why once in the log, on its error descriptor and in the
//! status, until its peer starts it anew. Workers never wait for the protocol.
//! *Refuses*: a second peer at a time (it waits in the socket's queue), more than eight
//! queue pairs, packed rings, an IOMMU, memory that is no regular file. What a VMM does
//! wrong in the protocol disconnects it.
//! *Caller's duty*: workers are stopped, or at least their ports dropped, at leisure; the
//! [`Device`](super::Device) alone decides about the connection. A vhost-user peer can hold up its own
//! worker in one way, see `eventfd`.
//! *Standard*: vhost-user protocol specification (QEMU), virtio 1.2 section 5.1.
//!
//! Lock order: the session's list, then memory, then one slot; a slot's lock is the only
//! one a worker takes, and it never waits for it.

mod bridge;
mod connect;
mod daemon;
mod device;
mod eventfd;
mod features;
mod memory;
mod port;
pub mod ring;
mod sigbus;
mod slot;
mod vring;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use device::VhostUserDevice;

use super::Port;
use crate::packet::MacAddr;
use device::Shared;

/// Queue pairs of one device at most.
pub const QUEUE_PAIRS_MAX: u16 = 8;

/// Who listens on the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketMode {
    /// Shunt listens and the VMM connects.
    #[default]
    Server,
    /// The VMM listens and Shunt connects, again and again until it is there.
    Client,
}

/// Who the peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The element's guest.
    #[default]
    Vnic,
    /// The physical side: another VM or a DPDK process.
    Uplink,
}

/// What a device is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// The socket's path, at most 107 bytes.
    pub socket: PathBuf,
    /// Who listens there.
    pub mode: SocketMode,
    /// Queue pairs, 1 to [`QUEUE_PAIRS_MAX`].
    pub queue_pairs: u16,
    /// The guest's MAC address, if Shunt is to know it: `VIRTIO_NET_F_MAC` is offered.
    /// The VMM owns the value that the guest reads.
    pub mac: Option<MacAddr>,
    /// L3 MTU in bytes; `VIRTIO_NET_F_MTU` is offered unless 0. The VMM owns the value
    /// that the guest reads (QEMU: `host_mtu=`).
    pub mtu: u16,
    /// Who the peer is.
    pub side: Side,
    /// Permission bits of the socket in server mode; without, the umask decides.
    pub permissions: Option<u32>,
}

impl DeviceConfig {
    /// One queue pair for a guest, listening on `socket`, MTU 1500.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            mode: SocketMode::Server,
            queue_pairs: 1,
            mac: None,
            mtu: 1500,
            side: Side::Vnic,
            permissions: None,
        }
    }
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a number of queue pairs.
    #[error("{0} queue pairs: give a number from 1 to {QUEUE_PAIRS_MAX}")]
    QueuePairs(u16),
    /// The directory of the socket is missing.
    #[error("the directory {0} does not exist: create it, or give another socket path")]
    NoDirectory(PathBuf),
    /// Somebody else uses the socket.
    #[error("{0} is in use by another process: stop it, or give another socket path")]
    InUse(PathBuf),
    /// There is something at the path, and it is not a socket.
    #[error("{0} exists and is not a socket: remove it, or give another socket path")]
    NotASocket(PathBuf),
    /// The path is not one for a socket.
    #[error("{0} is no socket path: at most 107 bytes of UTF-8")]
    BadPath(PathBuf),
    /// The system said no.
    #[error("cannot {action} {path}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// 1024 devices are open.
    #[error("too many vhost-user devices in one process: run a second one")]
    TooManyDevices,
    /// A thread, a descriptor or a signal handler was not to be had.
    #[error("cannot {action} for a vhost-user device")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A device and its ports, in queue pair order.
pub type Opened = (Arc<VhostUserDevice>, Vec<Box<dyn Port>>);

/// Opens a device and serves its socket from now on.
///
/// # Errors
/// [`OpenError`], in words that say what helps. In client mode a missing listener is no
/// error: the device waits for it.
pub fn open(config: DeviceConfig) -> Result<Opened, OpenError> {
    if !(1..=QUEUE_PAIRS_MAX).contains(&config.queue_pairs) {
        return Err(OpenError::QueuePairs(config.queue_pairs));
    }
    sigbus::install().map_err(|source| OpenError::System {
        action: "install a SIGBUS handler",
        source,
    })?;
    let source = connect::Source::open(&config)?;
    let shared = Arc::new(Shared::new(config)?);
    let device = VhostUserDevice::serve(Arc::clone(&shared), source)?;
    let ports = port::all(&shared)?;
    Ok((Arc::new(device), ports))
}
