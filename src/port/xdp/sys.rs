//! The system calls of an AF_XDP uplink that neither the standard library nor the `xdp`
//! crate has a safe form of: bpf(2), interface requests, memberships, and the look at a
//! ring's header that says whether the kernel wants to be woken.
//!
//! *Promises*: each function is one call (or a pair that belongs together); what the
//! kernel reads and writes is owned here and of the type that the call's number names.
//! *Refuses*: nothing; errors are the kernel's.
//! *Caller's duty*: none.
//! *Standard*: bpf(2), netdevice(7), packet(7), the kernel's
//! Documentation/networking/af_xdp.rst, include/uapi/linux/{bpf,ethtool,if_xdp}.h.
//!
//! The program is in [`super::program`], its way into the kernel in [`super::super::bpf`].

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, c_ulong, c_void};

use super::super::bpf::{Attr, bpf, bpf_fd};
use crate::packet::MacAddr;

const BPF_MAP_CREATE: c_int = 0;
const BPF_MAP_UPDATE_ELEM: c_int = 2;
const BPF_LINK_CREATE: c_int = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// A map from receive queue to AF_XDP socket.
pub(super) fn socket_map(queues: u32) -> io::Result<OwnedFd> {
    let attr = Attr::new()
        .with_u32(0, BPF_MAP_TYPE_XSKMAP)
        .with_u32(4, size_of::<u32>() as u32)
        .with_u32(8, size_of::<RawFd>() as u32)
        .with_u32(12, queues);
    bpf_fd(BPF_MAP_CREATE, &attr)
}

/// Puts a socket into the map.
pub(super) fn set_socket(map: &OwnedFd, queue: u32, socket: RawFd) -> io::Result<()> {
    let attr = Attr::new()
        .with_fd(0, map.as_raw_fd())
        .with_pointer(8, &raw const queue)
        .with_pointer(16, &raw const socket);
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(drop)
}

/// In which of the kernel's two places a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// In the driver.
    Native,
    /// In the kernel's stack: any driver, slower.
    Generic,
}

/// Attaches a program to an interface of the thread's namespace, for as long as the
/// descriptor is open: it ends with the process, however that ends.
pub(super) fn attach(program: &OwnedFd, interface: u32, place: Place) -> io::Result<OwnedFd> {
    let flags = match place {
        Place::Native => XDP_FLAGS_DRV_MODE,
        Place::Generic => XDP_FLAGS_SKB_MODE,
    };
    let attr = Attr::new()
        .with_fd(0, program.as_raw_fd())
        .with_u32(4, interface)
        .with_u32(8, BPF_XDP)
        .with_u32(12, flags);
    bpf_fd(BPF_LINK_CREATE, &attr)
}

/// An interface name as the kernel takes it: 1 to 15 bytes and a NUL.
#[derive(Clone, Copy, Debug)]
pub(super) struct IfName([libc::c_char; libc::IFNAMSIZ]);

impl IfName {
    /// The name, if an interface can have it.
    pub(super) fn new(name: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
        if name.is_empty()
            || name.len() >= libc::IFNAMSIZ
            || matches!(name, "." | "..")
            || !name.bytes().all(allowed)
        {
            return None;
        }
        let mut bytes = [0; libc::IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Some(Self(bytes))
    }

    fn request(&self) -> libc::ifreq {
        libc::ifreq {
            ifr_name: self.0,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 },
        }
    }
}

/// An `ioctl` that reads or writes one `struct ifreq`.
fn ioctl_ifreq(control: &UnixDatagram, request: c_ulong, arg: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every caller below passes a request whose argument is a struct ifreq, and
    // what that points to, if it does, lives through the call; `arg` is a valid,
    // exclusively borrowed one for the whole call.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), request as _, std::ptr::from_mut(arg)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The interface's number in `control`'s namespace.
pub(super) fn index(control: &UnixDatagram, name: &IfName) -> io::Result<u32> {
    let mut request = name.request();
    ioctl_ifreq(control, libc::SIOCGIFINDEX as c_ulong, &mut request)?;
    // SAFETY: on success the kernel has written ifru_ifindex, and the union is plain integers.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
}

/// Whether the interface is set up.
pub(super) fn is_up(control: &UnixDatagram, name: &IfName) -> io::Result<bool> {
    let mut request = name.request();
    ioctl_ifreq(control, libc::SIOCGIFFLAGS as c_ulong, &mut request)?;
    // SAFETY: on success the kernel has written ifru_flags, and the union is plain integers.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(c_int::from(flags) & libc::IFF_UP != 0)
}

/// Its L3 MTU in bytes.
pub(super) fn mtu(control: &UnixDatagram, name: &IfName) -> io::Result<u32> {
    let mut request = name.request();
    ioctl_ifreq(control, libc::SIOCGIFMTU as c_ulong, &mut request)?;
    // SAFETY: on success the kernel has written ifru_mtu, and the union is plain integers.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// Its hardware address, if it is an Ethernet.
pub(super) fn mac(control: &UnixDatagram, name: &IfName) -> io::Result<Option<MacAddr>> {
    let mut request = name.request();
    ioctl_ifreq(control, libc::SIOCGIFHWADDR as c_ulong, &mut request)?;
    // SAFETY: on success the kernel has written ifru_hwaddr, and the union is plain integers.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let bytes = address.sa_data.map(|byte| byte as u8);
    let [a, b, c, d, e, f, ..] = bytes;
    let ethernet = address.sa_family == libc::ARPHRD_ETHER;
    Ok(ethernet.then_some(MacAddr([a, b, c, d, e, f])))
}

/// An ethtool request: `T` begins with the command's number.
fn ethtool<T>(control: &UnixDatagram, name: &IfName, argument: &mut T) -> io::Result<()> {
    let mut request = name.request();
    request.ifr_ifru.ifru_data = std::ptr::from_mut(argument).cast();
    ioctl_ifreq(control, libc::SIOCETHTOOL as c_ulong, &mut request)
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// The driver's name, such as `veth`.
pub(super) fn driver(control: &UnixDatagram, name: &IfName) -> io::Result<String> {
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    ethtool(control, name, &mut info)?;
    let text = info.driver.split(|byte| *byte == 0).next();
    Ok(String::from_utf8_lossy(text.unwrap_or_default()).into_owned())
}

/// Whether the interface takes VLAN tags out of the frames it receives.
pub(super) fn strips_vlan_tags(control: &UnixDatagram, name: &IfName) -> io::Result<bool> {
    // struct ethtool_value
    let mut value = [ETHTOOL_GFLAGS, 0];
    ethtool(control, name, &mut value)?;
    Ok(value[1] & ETH_FLAG_RXVLAN != 0)
}

/// Receive queues in use, of those that a driver says it has.
pub(super) fn receive_queues(control: &UnixDatagram, name: &IfName) -> io::Result<u32> {
    // struct ethtool_channels: command; the most of rx, tx, other, combined; how many of
    // each there are.
    let mut channels = [ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
    ethtool(control, name, &mut channels)?;
    Ok(channels[5].saturating_add(channels[8]))
}

/// A packet socket that receives nothing, but keeps the interface promiscuous and open to
/// all multicast for as long as it is open: the kernel counts, so that others' wishes stay.
pub(super) fn listen_to_all(interface: u32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes three integers. Protocol 0: no frame is delivered to it.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made `fd`, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for kind in [libc::PACKET_MR_PROMISC, libc::PACKET_MR_ALLMULTI] {
        let membership = libc::packet_mreq {
            mr_ifindex: interface as c_int,
            mr_type: kind as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_option(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            &membership,
        )?;
    }
    Ok(socket)
}

/// Sets a socket option whose argument is a `T`.
fn set_option<T>(socket: RawFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads size_of::<T>() bytes of `value`, borrowed for the call.
    let result = unsafe {
        libc::setsockopt(
            socket,
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads an option of an AF_XDP socket whose value is a `T` of plain integers.
fn xdp_option<T: Default>(socket: RawFd, option: c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `value`, into it; the
    // types below are integers, so that any bytes are a value.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_XDP,
            option,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// Whether a bound socket shares its frames with the device (zero-copy).
pub(super) fn is_zero_copy(socket: RawFd) -> io::Result<bool> {
    let options: u32 = xdp_option(socket, libc::XDP_OPTIONS)?;
    Ok(options & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17), not yet in libc.
const XDP_MAX_TX_SKB_BUDGET: c_int = 9;

/// Lets one wake-up send `frames` in copy mode instead of 32.
pub(super) fn set_send_budget(socket: RawFd, frames: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &frames)
}

/// Has the kernel send what is in the transmit ring.
pub(super) fn send_ring(socket: RawFd) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result = unsafe {
        libc::sendto(
            socket,
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Tells the driver that the fill ring has frames again.
pub(super) fn wake_receive(socket: RawFd) {
    // An error says what the next transmit says as well: the device is down or gone.
    // SAFETY: no memory is passed.
    let _ = unsafe {
        libc::recvfrom(
            socket,
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
}

/// Which of a socket's rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ring {
    Fill,
    Transmit,
}

/// The header of a ring, mapped once more for reading: the `xdp` crate has no way to see
/// the flag that need_wakeup is about.
#[derive(Debug)]
pub(super) struct RingHeader {
    page: *mut c_void,
    producer: usize,
    consumer: usize,
    flags: usize,
}

/// A ring's header lies in its first page.
const PAGE: usize = 4096;

// SAFETY: the mapping belongs to this value alone, and is only read, atomically.
unsafe impl Send for RingHeader {}

impl RingHeader {
    /// Maps the header of a ring that exists already; before the socket is bound.
    pub(super) fn map(socket: RawFd, ring: Ring) -> io::Result<Self> {
        let offsets: [u64; 16] = xdp_option(socket, libc::XDP_MMAP_OFFSETS)?;
        // struct xdp_mmap_offsets: rx, tx, fill, completion; of each: producer, consumer,
        // descriptors, flags.
        let (at, page_offset) = match ring {
            Ring::Transmit => (4, libc::XDP_PGOFF_TX_RING),
            Ring::Fill => (8, libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t),
        };
        let field = |number: usize| {
            usize::try_from(offsets[at + number])
                .ok()
                .filter(|offset| offset % 4 == 0 && *offset <= PAGE - 4)
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        let (producer, consumer, flags) = (field(0)?, field(1)?, field(3)?);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ,
                libc::MAP_SHARED,
                socket,
                page_offset,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            page,
            producer,
            consumer,
            flags,
        })
    }

    fn word(&self, offset: usize) -> u32 {
        // SAFETY: `map` has checked that the aligned word lies in the page, which stays
        // mapped for as long as `self`; user and kernel access it as a whole.
        let word = unsafe { AtomicU32::from_ptr(self.page.byte_add(offset).cast()) };
        word.load(Ordering::Relaxed)
    }

    /// Whether the kernel has to be woken to look at the ring. Meant to be read after a
    /// full fence behind what was put into the ring.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.word(self.flags) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// Entries that the kernel has not taken yet.
    pub(super) fn waiting(&self) -> u32 {
        self.word(self.producer)
            .wrapping_sub(self.word(self.consumer))
    }
}

impl Drop for RingHeader {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nobody keeps a pointer into it.
        unsafe { libc::munmap(self.page, PAGE) };
    }
}
