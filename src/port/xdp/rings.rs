//! One AF_XDP socket with its rings and its memory: the `xdp` crate behind safe calls.
//!
//! *Promises*: received frames are handed over as bytes and their memory goes back to the
//! kernel in the same call; frames to send are copied in, so that nothing here is shared
//! with anybody but the kernel. Receiving and sending never take each other's memory.
//! *Refuses*: a frame longer than [`Rings::frame_max`] or shorter than an Ethernet header:
//! the kernel would skip the descriptor and the memory would be lost.
//! *Caller's duty*: [`Rings::kick`] after [`Rings::send`], and again while
//! [`Rings::has_unsent`].
//! *Standard*: the kernel's Documentation/networking/af_xdp.rst.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use xdp::nic::NicIndex;
use xdp::slab::{Slab, StackSlab};
use xdp::socket::{SocketError, XdpSocket, XdpSocketBuilder};
use xdp::umem::{FrameSize, UmemCfgBuilder};
use xdp::{
    CompletionRing, Packet, RingConfigBuilder, RxRing, Umem, WakableFillRing, WakableTxRing,
};

use super::sys::{self, Ring, RingHeader};
use super::{CopyMode, ETHERNET};
use crate::packet::Burst;

/// Frames a queue receives before it is read; the kernel drops what comes then.
const RECEIVE_FRAMES: u32 = 2048;
/// Frames on their way out.
const SEND_FRAMES: u32 = 1024;
/// Bytes that the kernel keeps for itself in front of each frame (XDP_PACKET_HEADROOM).
const KERNEL_HEADROOM: usize = 256;

/// Memory of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Chunk {
    TwoKib,
    FourKib,
}

impl Chunk {
    /// The longest frame in bytes, Ethernet header and tags included.
    pub(super) const fn frame_max(self) -> usize {
        match self {
            Self::TwoKib => 2048 - KERNEL_HEADROOM,
            Self::FourKib => 4096 - KERNEL_HEADROOM,
        }
    }
}

/// A socket's rings. Fields drop in this order; the kernel holds the memory's pages for
/// as long as the socket is open.
pub(super) struct Rings {
    socket: Arc<XdpSocket>,
    receive: RxRing,
    fill: WakableFillRing,
    transmit: WakableTxRing,
    completion: CompletionRing,
    fill_header: RingHeader,
    transmit_header: RingHeader,
    umem: Umem,
    /// Free frames that belong into the fill ring, which had no room yet: the kernel
    /// publishes what it took out of it only after what it received.
    owed: usize,
    chunk: Chunk,
}

/// What a slab says it has room for, less than it has.
struct Limited<'a> {
    packets: &'a mut StackSlab<{ Burst::FRAMES_MAX }>,
    room: usize,
}

impl Slab for Limited<'_> {
    fn available(&self) -> usize {
        self.room
    }

    fn len(&self) -> usize {
        self.packets.len()
    }

    fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    fn push_front(&mut self, packet: Packet) -> Option<Packet> {
        // Another core has written it: by the time its turn comes it shall be here.
        prefetch(packet.as_ptr());
        self.packets.push_front(packet)
    }

    fn pop_back(&mut self) -> Option<Packet> {
        self.packets.pop_back()
    }
}

/// Asks for the cache line at `address`.
#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 neither faults nor changes memory, whatever the address; SSE, which
    // has it, is part of x86_64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The system's word in an error of the crate; those that say nothing cannot come from
/// constant configurations.
fn system(error: SocketError) -> io::Error {
    match error {
        SocketError::SocketCreation(error) | SocketError::Bind(error) => error,
        SocketError::SetSockOpt { inner, .. }
        | SocketError::GetSockOpt { inner, .. }
        | SocketError::RingMap { inner, .. } => inner,
    }
}

impl Rings {
    /// Makes a socket and binds it to receive queue `queue` of an interface of the
    /// thread's namespace.
    pub(super) fn bind(
        interface: u32,
        queue: u32,
        mode: CopyMode,
        chunk: Chunk,
    ) -> io::Result<Self> {
        let invalid = |error: xdp::error::Error| io::Error::other(error.to_string());
        let frame_size = match chunk {
            Chunk::TwoKib => FrameSize::TwoK,
            Chunk::FourKib => FrameSize::FourK,
        };
        let memory = UmemCfgBuilder {
            frame_size,
            frame_count: RECEIVE_FRAMES + SEND_FRAMES,
            ..UmemCfgBuilder::default()
        };
        let mut umem = Umem::map(memory.build().map_err(invalid)?)?;
        let sizes = RingConfigBuilder {
            rx_count: RECEIVE_FRAMES,
            fill_count: RECEIVE_FRAMES,
            // The kernel may give a frame back before its place in the ring.
            tx_count: 2 * SEND_FRAMES,
            completion_count: SEND_FRAMES,
        };
        let sizes = sizes.build().map_err(invalid)?;
        let mut builder = XdpSocketBuilder::new().map_err(system)?;
        let (rings, mut flags) = builder.build_wakable_rings(&umem, sizes).map_err(system)?;
        let (Some(receive), Some(transmit)) = (rings.rx_ring, rings.tx_ring) else {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        };
        let mut fill = rings.fill_ring;
        let fd = builder.as_raw_fd();
        let fill_header = RingHeader::map(fd, Ring::Fill)?;
        let transmit_header = RingHeader::map(fd, Ring::Transmit)?;
        // Older kernels send 32 frames a wake-up: `kick` asks again.
        let _ = sys::set_send_budget(fd, Burst::FRAMES_MAX as u32);
        // SAFETY: the memory and the socket end up in one `Rings`.
        unsafe { fill.enqueue(&mut umem, RECEIVE_FRAMES as usize, false) }?;
        match mode {
            CopyMode::Auto => {}
            CopyMode::Copy => flags.force_copy(),
            CopyMode::ZeroCopy => flags.force_zerocopy(),
        }
        let socket = builder
            .bind(NicIndex::new(interface), queue, flags)
            .map_err(system)?;
        Ok(Self {
            socket: Arc::new(socket),
            receive,
            fill,
            transmit,
            completion: rings.completion_ring,
            fill_header,
            transmit_header,
            umem,
            owed: 0,
            chunk,
        })
    }

    /// The socket, for its statistics and its descriptor.
    pub(super) fn socket(&self) -> &Arc<XdpSocket> {
        &self.socket
    }

    /// The longest frame, in bytes.
    pub(super) fn frame_max(&self) -> usize {
        self.chunk.frame_max()
    }

    /// Shows at most `limit` received frames to `take`, oldest first; says how many.
    pub(super) fn receive(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut packets = StackSlab::new();
        let mut limited = Limited {
            packets: &mut packets,
            room: limit.min(Burst::FRAMES_MAX),
        };
        // SAFETY: the packets are freed below, within the borrow of the memory's owner.
        let count = unsafe { self.receive.recv(&self.umem, &mut limited) };
        if count == 0 {
            return 0;
        }
        while let Some(packet) = packets.pop_back() {
            take(&packet);
            self.umem.free_packet(packet);
        }
        self.owed += count;
        // Without a wake-up there is no system call, hence no error.
        // SAFETY: the memory lives as long as the socket: both are `self`'s.
        let queued = unsafe { self.fill.enqueue(&mut self.umem, self.owed, false) };
        self.owed -= queued.unwrap_or(0);
        fence(Ordering::SeqCst);
        if self.fill_header.needs_wakeup() {
            sys::wake_receive(self.socket.as_raw_fd());
        }
        count
    }

    /// Takes back the memory of frames that have been sent.
    pub(super) fn reclaim(&mut self) {
        while self
            .completion
            .dequeue(&mut self.umem, SEND_FRAMES as usize)
            > 0
        {}
    }

    /// Puts frames into the transmit ring, in order, until memory runs out; says how many.
    /// Each must be [`Rings::is_sendable`].
    pub(super) fn send<'f>(&mut self, frames: impl Iterator<Item = &'f [u8]>) -> usize {
        let mut packets: StackSlab<{ Burst::FRAMES_MAX }> = StackSlab::new();
        let share = self.umem.allocatable().saturating_sub(self.owed);
        for frame in frames.take(share.min(Burst::FRAMES_MAX)) {
            // SAFETY: the packet goes into the ring or back, within this call.
            let Some(mut packet) = (unsafe { self.umem.alloc() }) else {
                break;
            };
            if packet.append(frame).is_err() {
                self.umem.free_packet(packet);
                break;
            }
            if let Some(packet) = packets.push_front(packet) {
                self.umem.free_packet(packet);
                break;
            }
        }
        let count = packets.len();
        // No wake-up, no error; and the ring has a place for each frame of the share.
        // SAFETY: the memory lives as long as the socket: both are `self`'s.
        let queued = unsafe { self.transmit.send(&mut packets, false) };
        while let Some(packet) = packets.pop_back() {
            self.umem.free_packet(packet);
        }
        queued.unwrap_or(0).min(count)
    }

    /// Whether the kernel takes a frame of this length.
    pub(super) fn is_sendable(&self, len: usize) -> bool {
        (ETHERNET..=self.frame_max()).contains(&len)
    }

    /// Whether frames wait in the transmit ring for a [`Rings::kick`].
    pub(super) fn has_unsent(&self) -> bool {
        self.transmit_header.waiting() > 0 && self.transmit_header.needs_wakeup()
    }

    /// Has the kernel send what is in the transmit ring, if it must be told.
    pub(super) fn kick(&self) -> io::Result<()> {
        fence(Ordering::SeqCst);
        if self.transmit_header.needs_wakeup() {
            sys::send_ring(self.socket.as_raw_fd())?;
        }
        Ok(())
    }

    /// Frames in the transmit ring.
    pub(super) fn unsent(&self) -> u32 {
        self.transmit_header.waiting()
    }
}
