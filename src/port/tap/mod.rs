//! A tap: the host's own network stack as a device.
//!
//! *Promises*: one [`Port`] per queue, and a flow from the host stays in one queue; frames
//! cross with their virtio-net header: the host's kernel is asked for no checksum and to cut no
//! segment train, whatever the guest takes, since what goes around the guest may stay whole; what
//! a guest cannot take the datapath finishes. A full one makes a sender wait that
//! can, and takes nothing newer meanwhile. An interface that is set down, or removed, costs its
//! frames (counted) and nothing else; down ends by itself when it is set up again.
//! *Refuses*: devices of another kind or mode, and devices that another process holds,
//! at [`open()`]; frames that were cut short or whose header lies are discarded, counted.
//! *Caller's duty*: after the poller has reported a port, or [`Port::arm`] answered
//! [`Ready`](super::Armed::Ready), to call [`Port::receive`] before sleeping (the poller
//! is edge-triggered). Device and ports are dropped before the name is opened again.
//! *Standard*: the kernel's Documentation/networking/tuntap.rst; virtio 1.2 section 5.1.6
//! for the header, 12 bytes, little-endian.
//!
//! What it cannot do: keep a device that it made beyond its own life (create it with
//! `ip tuntap add` for that), and notice a queue that another process adds later.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use libc::c_uint;

use super::counters::Counters;
use super::ifname::IfName;
use super::netns::NetnsError;
use super::{Device, DeviceStatus, Port, QueueStatus};
use crate::packet::{PeerOffloads, vnet_hdr};

mod batch;
mod held;
mod link;
mod open;
mod port;
mod steering;
mod sys;
#[cfg(test)]
mod tests;

pub use open::open;

/// An open tap: its control, and a port for each queue, in order.
pub type Opened = (Arc<dyn Device>, Vec<Box<dyn Port>>);

/// The most queues a tap has (the kernel's `MAX_TAP_QUEUES`).
pub const QUEUES_MAX: u16 = 256;

/// The largest L3 MTU of a tap in bytes: 65,535 less the Ethernet header.
pub const MTU_MAX: u16 = 65_521;

/// Bytes of the virtio-net header before each frame (virtio 1.2 section 5.1.6).
const VNET_HEADER: usize = vnet_hdr::LEN;

/// Whether the kernel would make an interface of this name: 1 to 15 printable ASCII
/// characters other than `/`, `:` and `%`.
pub fn is_valid_name(name: &str) -> bool {
    sys::tap_name(name).is_some()
}

/// Which tap to open and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapConfig {
    /// Interface name, 1 to 15 bytes.
    pub name: String,
    /// Network namespace it is in, by its name under `/run/netns`; the process's own if
    /// absent.
    pub netns: Option<String>,
    /// Queue pairs, 1 to [`QUEUES_MAX`]. More than one needs a multi-queue device.
    pub queues: u16,
    /// L3 MTU in bytes, 68 to [`MTU_MAX`], for a device that Shunt creates; the kernel's
    /// 1500 if absent. An existing device keeps its own.
    pub mtu: Option<u16>,
    /// How many bytes of written frames, with the kernel's own of them, the host may have in
    /// work, held by a queueing discipline, say, before the tap is full. Absent, it never is: what
    /// the host has no room for it drops, and each small frame costs it less.
    pub send_buffer: Option<u32>,
}

/// Why a tap could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel would refuse the name.
    #[error(
        "`{0}` is no tap name: give 1 to 15 printable ASCII characters other than `/`, `:` and `%`"
    )]
    InvalidName(String),
    /// A number of queues out of range.
    #[error("tap `{name}`: {queues} queues; give 1 to {QUEUES_MAX}")]
    InvalidQueues {
        /// The device.
        name: String,
        /// What was asked for.
        queues: u16,
    },
    /// An MTU out of range.
    #[error("tap `{name}`: an MTU of {mtu} bytes; give 68 to {MTU_MAX}")]
    InvalidMtu {
        /// The device.
        name: String,
        /// What was asked for.
        mtu: u16,
    },
    /// The namespace could not be entered.
    #[error("tap `{name}`: its network namespace cannot be used")]
    Netns {
        /// The device.
        name: String,
        /// Why not.
        source: NetnsError,
    },
    /// The kernel has no tun driver, or the process does not see it.
    #[error(
        "/dev/net/tun cannot be opened: load the driver with `modprobe tun`; in a container, \
         add the device (`--device /dev/net/tun`)"
    )]
    NoDriver {
        /// What the system said.
        source: io::Error,
    },
    /// The device does not exist and may not be created.
    #[error(
        "no permission to create tap `{name}`: run shunt as root or with CAP_NET_ADMIN, or \
         create it first: `{command}`"
    )]
    MayNotCreate {
        /// The device.
        name: String,
        /// The command that creates it.
        command: String,
    },
    /// The device exists and belongs to somebody else.
    #[error(
        "no permission to attach to tap `{name}`: run shunt as root or with CAP_NET_ADMIN, or \
         make its user the owner: `ip tuntap add ... user NAME` when creating it"
    )]
    MayNotAttach {
        /// The device.
        name: String,
    },
    /// The name belongs to something that is no tap.
    #[error(
        "`{name}` exists and is {what}, not a tap: choose another name, or remove it with \
         `{command}`"
    )]
    NotATap {
        /// The device.
        name: String,
        /// What it is, such as `a veth device`.
        what: String,
        /// The command that removes it.
        command: String,
    },
    /// Several queues of a device made for one.
    #[error(
        "tap `{name}` exists with a single queue, and {queues} are asked for: ask for 1, or \
         create it anew: `{command}`"
    )]
    SingleQueue {
        /// The device.
        name: String,
        /// What was asked for.
        queues: u16,
        /// The commands that remove and create it.
        command: String,
    },
    /// Another process holds the device.
    #[error(
        "tap `{name}` is in use by another process: stop that one (another shunt or a VM; \
         `grep -lx iff:.{name} /proc/*/fdinfo/*` shows its number) or choose another tap"
    )]
    Busy {
        /// The device.
        name: String,
    },
    /// The device has no virtio-net header although it was asked for.
    #[error(
        "tap `{name}` has no virtio-net header: create it anew, so that nothing else \
         decides its mode: `{command}`"
    )]
    NoHeader {
        /// The device.
        name: String,
        /// The commands that remove and create it.
        command: String,
    },
    /// A step failed for a reason of its own.
    #[error("tap `{name}`: cannot {step}")]
    Step {
        /// The device.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What a queue can do at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum State {
    /// Frames go both ways.
    Running,
    /// The interface is set down: frames to it are discarded.
    Down,
    /// The device was removed from under us: for good.
    Gone,
}

/// What a queue's port and the device share.
#[derive(Debug)]
struct Queue {
    file: File,
    state: AtomicU8,
    counters: Counters,
}

impl Queue {
    fn new(file: File, state: State) -> Self {
        Self {
            file,
            state: AtomicU8::new(state as u8),
            counters: Counters::default(),
        }
    }

    fn state(&self) -> State {
        match self.state.load(Ordering::Relaxed) {
            0 => State::Running,
            1 => State::Down,
            _ => State::Gone,
        }
    }

    fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn status(&self, queue: u16, up: bool) -> QueueStatus {
        let gone = self.state() == State::Gone;
        self.counters.fill(QueueStatus {
            queue,
            running: up && !gone,
            fault: gone.then(|| "the interface was removed; restart the backend".to_owned()),
            ..QueueStatus::default()
        })
    }
}

/// What all queues of a device share.
#[derive(Debug)]
struct Shared {
    name: String,
    if_name: IfName,
    /// Any socket made in the device's namespace: link requests go there.
    control: UnixDatagram,
    /// What may be left undone in frames, both ways: all but what this kernel does not know
    /// (UDP segmentation before Linux 6.2).
    offloads: PeerOffloads,
    /// Whether the kernel takes only so many bytes before some have gone on.
    fills_up: bool,
    /// The device was dropped: ports stand still.
    closed: AtomicBool,
}

impl Shared {
    /// Whether the interface is set up. One system call: not for each packet.
    fn is_up(&self) -> bool {
        sys::link_flags(&self.control, &self.if_name).is_ok_and(|flags| flags & libc::IFF_UP != 0)
    }
}

/// The control side of an open tap.
#[derive(Debug)]
struct Tap {
    shared: Arc<Shared>,
    queues: Vec<Arc<Queue>>,
}

impl Device for Tap {
    fn status(&self) -> DeviceStatus {
        let up = self.shared.is_up();
        let gone = |queue: &&Arc<Queue>| queue.state() == State::Gone;
        DeviceStatus {
            kind: "tap".to_owned(),
            name: self.shared.name.clone(),
            connected: up && !self.queues.iter().any(|queue| gone(&queue)),
            features: feature_names(self.shared.offloads),
            connections: 1,
            faults: self.queues.iter().filter(gone).count() as u64,
            unclaimed: 0,
            queues: (0..)
                .zip(&self.queues)
                .map(|(number, queue)| queue.status(number, up))
                .collect(),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }
}

fn offload_bits(offloads: PeerOffloads) -> c_uint {
    [
        (offloads.checksum, libc::TUN_F_CSUM),
        (offloads.tso4, libc::TUN_F_TSO4),
        (offloads.tso6, libc::TUN_F_TSO6),
        (offloads.ecn, libc::TUN_F_TSO_ECN),
        (offloads.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(0, |all, (_, bits)| all | bits)
}

fn feature_names(offloads: PeerOffloads) -> Vec<String> {
    [
        (offloads.checksum, "csum"),
        (offloads.tso4, "tso4"),
        (offloads.tso6, "tso6"),
        (offloads.ecn, "ecn"),
        (offloads.uso, "uso"),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .map(|(_, name)| name.to_owned())
    .collect()
}
