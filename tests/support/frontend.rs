//! A vhost-user frontend with a driver of its own: a guest that does whatever a test wants.
//!
//! *Promises*: rings, descriptors and messages are written exactly as told; what is not
//! told is what a well-behaved driver does.
//! *Refuses*: nothing. *Caller's duty*: none of it is fast.
//! *Standard*: virtio 1.2 section 2.7; vhost-user.
//!
//! The tests of the device itself include this file, too: it uses nothing of the crate.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
};
use vmm_sys_util::eventfd::EventFd;

/// VHOST_F_LOG_ALL, which only a migration acknowledges.
const LOG_ALL: u64 = 1 << 26;
pub const MEMORY: usize = 0x40_0000;
pub const RING_SIZE: u16 = 64;
const VRING_STRIDE: u64 = 0x4000;
const BUFFERS: u64 = 0x10_0000;
pub const BUFFER: u32 = 2048;
pub const HEADER: usize = 12;

pub fn memfd(len: u64) -> File {
    // SAFETY: the name is a C string; the descriptor is new and ours.
    let file =
        unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len).unwrap();
    file
}

/// A guest's memory and the driver's side of its rings; outlives connections.
pub struct Guest {
    pub memory: GuestMemoryMmap,
    pub file: File,
    pub rings: Vec<Ring>,
}

/// The driver's side of one vring.
pub struct Ring {
    pub base: u64,
    pub avail: u16,
    pub used: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
}

impl Guest {
    pub fn new(pairs: usize) -> Self {
        let file = memfd(MEMORY as u64);
        let memory = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            MEMORY,
            Some(FileOffset::new(file.try_clone().unwrap(), 0)),
        )])
        .unwrap();
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let rings = (0..pairs * 2).map(|index| Ring {
            base: 0x1000 + index as u64 * VRING_STRIDE,
            avail: 0,
            used: 0,
            kick: event(),
            call: event(),
            error: event(),
        });
        Self {
            memory,
            file,
            rings: rings.collect(),
        }
    }

    pub fn region(&self) -> &GuestRegionMmap {
        self.memory.iter().next().unwrap()
    }

    pub fn host(&self, addr: u64) -> u64 {
        self.region().as_ptr() as u64 + addr
    }

    fn write<T: vm_memory::ByteValued>(&self, addr: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
    }

    fn read<T: vm_memory::ByteValued>(&self, addr: u64) -> T {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    /// Writes descriptor `index` of vring `ring`.
    pub fn describe(&self, ring: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.rings[ring].base + u64::from(index) * 16;
        self.write(at, addr);
        self.write(at + 8, len);
        self.write(at + 12, flags);
        self.write(at + 14, next);
    }

    /// Makes chain `head` available.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let Ring { base, avail, .. } = self.rings[ring];
        self.write(base + 0x1000 + 4 + u64::from(avail % RING_SIZE) * 2, head);
        self.rings[ring].avail = avail.wrapping_add(1);
        self.write(base + 0x1000 + 2, avail.wrapping_add(1));
    }

    fn buffer(&self, ring: usize, index: u16) -> u64 {
        BUFFERS + ring as u64 * 0x2_0000 + u64::from(index % RING_SIZE) * u64::from(BUFFER)
    }

    /// Sends a frame through the guest's transmit queue `ring`.
    pub fn send(&mut self, ring: usize, frame: &[u8]) {
        let head = self.rings[ring].avail % RING_SIZE;
        let addr = self.buffer(ring, head);
        let mut bytes = vec![0u8; HEADER];
        bytes.extend_from_slice(frame);
        self.memory.write_slice(&bytes, GuestAddress(addr)).unwrap();
        self.describe(ring, head, addr, bytes.len() as u32, 0, 0);
        self.offer(ring, head);
    }

    /// Gives an empty buffer to the guest's receive queue `ring`.
    pub fn post(&mut self, ring: usize) {
        let head = self.rings[ring].avail % RING_SIZE;
        self.describe(ring, head, self.buffer(ring, head), BUFFER, 2, 0);
        self.offer(ring, head);
    }

    pub fn used_index(&self, ring: usize) -> u16 {
        self.read(self.rings[ring].base + 0x2000 + 2)
    }

    /// The next frame that came in on receive queue `ring`.
    pub fn take(&mut self, ring: usize) -> Option<Vec<u8>> {
        let Ring { base, used, .. } = self.rings[ring];
        if self.used_index(ring) == used {
            return None;
        }
        let entry = base + 0x2000 + 4 + u64::from(used % RING_SIZE) * 8;
        let (head, len): (u32, u32) = (self.read(entry), self.read(entry + 4));
        self.rings[ring].used = used.wrapping_add(1);
        let mut bytes = vec![0u8; len as usize];
        let addr = self.buffer(ring, head as u16);
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        Some(bytes.split_off(HEADER))
    }
}

/// A connected frontend.
pub struct Vmm {
    pub frontend: Frontend,
}

impl Vmm {
    /// Connects and negotiates everything but `without`.
    pub fn connect(socket: &Path, pairs: usize, without: u64) -> Self {
        Self::negotiate(
            Frontend::connect(socket, pairs as u64 * 2).unwrap(),
            without,
        )
    }

    pub fn negotiate(frontend: Frontend, without: u64) -> Self {
        frontend.set_owner().unwrap();
        Self::set_features(frontend, without)
    }

    pub fn set_features(mut frontend: Frontend, without: u64) -> Self {
        let offered = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(protocol & !(VhostUserProtocolFeatures::XEN_MMAP))
            .unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let acked = offered & !LOG_ALL & !without;
        frontend.set_features(acked).unwrap();
        Self { frontend }
    }

    pub fn share(&self, guest: &Guest) {
        let region = VhostUserMemoryRegionInfo::from_guest_region(guest.region()).unwrap();
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    /// Sets up vring `index` and enables it.
    pub fn start(&mut self, guest: &Guest, index: usize, base: u16) {
        let ring = &guest.rings[index];
        self.frontend.set_vring_num(index, RING_SIZE).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.address(guest, index);
        self.frontend.set_vring_err(index, &ring.error).unwrap();
        self.frontend.set_vring_call(index, &ring.call).unwrap();
        self.frontend.set_vring_kick(index, &ring.kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    pub fn address(&self, guest: &Guest, index: usize) {
        let base = guest.rings[index].base;
        let config = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: 0,
            desc_table_addr: guest.host(base),
            avail_ring_addr: guest.host(base + 0x1000),
            used_ring_addr: guest.host(base + 0x2000),
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &config).unwrap();
    }

    /// Everything for all rings of `guest`, from index 0.
    pub fn bring_up(socket: &Path, guest: &Guest) -> Self {
        let mut vmm = Self::connect(socket, guest.rings.len() / 2, 0);
        vmm.share(guest);
        for index in 0..guest.rings.len() {
            vmm.start(guest, index, 0);
        }
        vmm
    }
}

/// SET_VRING_KICK without a descriptor, which the crate's frontend cannot say.
pub fn send_no_kick(frontend: &Frontend, index: u64) {
    let mut stream = send_raw(frontend, 12, 1 | 8, &(index | 0x100).to_ne_bytes());
    let mut reply = [0u8; 20];
    std::io::Read::read_exact(&mut stream, &mut reply).unwrap();
    assert_eq!(reply[12..], [0; 8]);
}

/// SET_VRING_ENABLE at a time when the crate's frontend would not send it.
pub fn send_enable(frontend: &Frontend, index: u32) {
    let payload = u64::from(index) | 1 << 32;
    send_raw(frontend, 18, 1, &payload.to_ne_bytes());
}

fn send_raw(frontend: &Frontend, request: u32, flags: u32, payload: &[u8]) -> UnixStream {
    // SAFETY: `frontend` owns the socket and outlives this borrow of it.
    let socket = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
    let mut stream = UnixStream::from(socket.try_clone_to_owned().unwrap());
    let mut message = Vec::new();
    for word in [request, flags, payload.len() as u32] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    message.extend_from_slice(payload);
    std::io::Write::write_all(&mut stream, &message).unwrap();
    stream
}

/// Whether `fd` can be read within ten seconds.
pub fn becomes_readable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, as said.
    unsafe { libc::poll(&mut poll, 1, 10_000) == 1 }
}
