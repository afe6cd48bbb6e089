//! AF_XDP: a network card or a veth as an uplink, past the host's network stack.
//!
//! *Promises*: one [`Port`] per receive queue, all of them bound. The interface is
//! promiscuous and open to all multicast while the uplink is open. Both, and the XDP
//! program, belong to open descriptors: they end with the process, however that ends.
//! An interface that is set down, or removed, costs its frames (counted) and nothing
//! else; down ends by itself when it is set up again.
//! *Refuses*: interfaces of which a queue would be left out, that take VLAN tags out of
//! frames, or that another XDP program or socket holds, at [`open()`]; frames longer than
//! a chunk of memory (counted).
//! *Caller's duty*: as with every [`Port`]; it takes no offloads ([`Port::peer`]), so the
//! datapath completes and segments.
//! *Standard*: the kernel's Documentation/networking/af_xdp.rst.
//!
//! **Whose frame is it?** A frame to the interface's own MAC, read at start, is the host's
//! and goes on into its kernel, unless the vNIC has that MAC as well. Every other frame is
//! the element's, group addresses included: the host does not see them, so that on an
//! interface shared this way it must speak first (or have static neighbours).
//!
//! **Checksums.** Nothing says whether a checksum was verified, so no frame is passed on
//! as verified. On a veth the peer's own packets come with partial checksums that nothing
//! marks; they are recognised ([`crate::packet::unmarked`]). SCTP's and those inside tunnels are not:
//! where the peer itself sends such, it needs `ethtool -K PEER tx off`.
//!
//! **VLAN.** Tags are bytes of the frame. A card that strips them is refused; a veth's peer
//! with VLAN interfaces on it needs `ethtool -K PEER txvlan off`, or its tags are lost
//! before anybody here could see them.
//!
//! **Zero-copy** is asked for with `mode`; it has been tried on no card yet.
//!
//! The rings are those of the crate `xdp`: no C, no dependencies, maintained. `xsk-rs`
//! builds libxdp and wants clang; `aya` loads programs, but has no rings.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use ::xdp::socket::XdpSocket;

use super::counters::Counters;
use super::{Device, DeviceStatus, Port, QueueStatus};
use crate::packet::MacAddr;

mod error;
mod open;
mod port;
mod program;
mod rings;
mod sys;

pub use error::XdpError;
pub use open::open;

/// An open uplink: its control, and a port for each queue, in order.
pub type Opened = (Arc<dyn Device>, Vec<Box<dyn Port>>);

/// The most queues of an uplink.
pub const QUEUES_MAX: u16 = 64;

/// The largest L3 MTU in bytes: a frame with two tags must fit a page, less what the
/// kernel keeps of it.
pub const MTU_MAX: u16 = (rings::Chunk::FourKib.frame_max() - ETHERNET - 2 * TAG) as u16;

/// Ethernet header, bytes.
const ETHERNET: usize = 14;
/// A VLAN tag, bytes.
const TAG: usize = 4;

/// Whether an interface can have this name: 1 to 15 printable ASCII characters other than
/// `/` and `:`.
pub fn is_valid_name(name: &str) -> bool {
    sys::IfName::new(name).is_some()
}

/// Whether frames are copied between the device and the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CopyMode {
    /// Not where the driver can do without.
    #[default]
    Auto,
    /// Always.
    Copy,
    /// Never: a driver that cannot do without is refused.
    ZeroCopy,
}

/// Which interface to open and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XdpConfig {
    /// Interface name, 1 to 15 bytes.
    pub interface: String,
    /// Network namespace it is in, by its name under `/run/netns`; the process's own if
    /// absent.
    pub netns: Option<String>,
    /// Receive queues, 1 to [`QUEUES_MAX`]: as many as the interface has.
    pub queues: u16,
    /// Copy or not.
    pub mode: CopyMode,
    /// The vNIC's address: frames to it are never the host's.
    pub mac: MacAddr,
    /// The vNIC's L3 MTU in bytes; the interface keeps its own.
    pub mtu: u16,
}

/// What a queue can do at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum State {
    /// Frames go both ways.
    Running,
    /// The interface is set down.
    Down,
    /// The interface was removed: for good.
    Gone,
}

/// What a queue's port and the device share.
struct Queue {
    socket: Arc<XdpSocket>,
    state: AtomicU8,
    counters: Counters,
}

impl Queue {
    fn new(socket: Arc<XdpSocket>, state: State) -> Self {
        Self {
            socket,
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

    fn status(&self, queue: u16, link: Link) -> QueueStatus {
        let gone = link == Link::Gone || self.state() == State::Gone;
        // What the kernel dropped for want of room in the ring, or because a frame was
        // longer than its memory.
        let lost = self
            .socket
            .statistics()
            .map_or(0, |kernel| kernel.rx_dropped + kernel.rx_ring_full);
        let mut status = self.counters.fill(QueueStatus {
            queue,
            running: link == Link::Up && !gone,
            fault: gone.then(|| "the interface was removed; restart the backend".to_owned()),
            ..QueueStatus::default()
        });
        status.rx_discarded += lost;
        status
    }
}

/// What the kernel says of the interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Up,
    Down,
    /// No more, or another of that name.
    Gone,
}

/// What all queues of an uplink share.
struct Shared {
    name: String,
    if_name: sys::IfName,
    index: u32,
    /// Any socket made in the interface's namespace: requests go there.
    control: UnixDatagram,
    /// The longest frame that the interface and the memory take, in bytes.
    frame_max: usize,
    /// A veth: the peer's packets come with checksums that are partial, unmarked.
    unmarked_partials: bool,
    /// The device was dropped: ports stand still.
    closed: AtomicBool,
}

impl Shared {
    /// Two system calls: not for each packet.
    fn link(&self) -> Link {
        if sys::index(&self.control, &self.if_name).ok() != Some(self.index) {
            return Link::Gone;
        }
        match sys::is_up(&self.control, &self.if_name) {
            Ok(true) => Link::Up,
            Ok(false) => Link::Down,
            Err(_) => Link::Gone,
        }
    }
}

/// The control side of an open uplink. With it the program goes from the interface, and
/// the interface is no longer promiscuous.
struct Xdp {
    shared: Arc<Shared>,
    queues: Vec<Arc<Queue>>,
    features: Vec<String>,
    _attachment: open::Attachment,
}

impl Device for Xdp {
    fn status(&self) -> DeviceStatus {
        let link = self.shared.link();
        DeviceStatus {
            kind: "xdp".to_owned(),
            name: self.shared.name.clone(),
            connected: link == Link::Up,
            features: self.features.clone(),
            connections: 1,
            faults: u64::from(link == Link::Gone),
            unclaimed: 0,
            queues: (0..)
                .zip(&self.queues)
                .map(|(number, queue)| queue.status(number, link))
                .collect(),
        }
    }
}

impl Drop for Xdp {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }
}
