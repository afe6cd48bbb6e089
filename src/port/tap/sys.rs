//! The system calls of a tap that the standard library has no safe form of.
//!
//! *Promises*: each function is one call; what the kernel reads and writes is owned
//! here and of the type that the request's number names.
//! *Refuses*: nothing; errors are the kernel's.
//! *Caller's duty*: none.
//! *Standard*: the kernel's Documentation/networking/tuntap.rst, netdevice(7), rtnetlink(7).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use libc::{c_int, c_uint, c_ulong};

/// An interface name as the kernel takes it: 1 to 15 bytes and a NUL.
#[derive(Clone, Copy, Debug)]
pub(super) struct IfName([libc::c_char; libc::IFNAMSIZ]);

impl IfName {
    /// The name, if the kernel would take it. `%` is refused too: to the tun driver it
    /// starts a pattern, and the device made would have another name.
    pub(super) fn new(name: &str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
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
fn ioctl_ifreq(fd: &impl AsRawFd, request: c_ulong, arg: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every caller below passes a request whose argument is a struct ifreq;
    // `arg` is a valid, exclusively borrowed one for the whole call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(arg)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Attaches a freshly opened `/dev/net/tun` to a queue of device `name` (TUNSETIFF).
pub(super) fn attach_queue(tun: &File, name: &IfName, flags: c_int) -> io::Result<()> {
    let mut request = name.request();
    // The field is a short; the flags' bits are those of a u16.
    request.ifr_ifru.ifru_flags = flags as u16 as i16;
    ioctl_ifreq(tun, libc::TUNSETIFF, &mut request)
}

/// The flags of the device that `tun` is attached to (TUNGETIFF).
pub(super) fn queue_flags(tun: &File) -> io::Result<c_int> {
    let mut request = IfName([0; libc::IFNAMSIZ]).request();
    ioctl_ifreq(tun, libc::TUNGETIFF, &mut request)?;
    // SAFETY: on success the kernel has written ifru_flags, and the union is plain integers.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(c_int::from(flags as u16))
}

/// The interface flags (`IFF_UP` …) of device `name` in `control`'s namespace.
pub(super) fn link_flags(control: &UnixDatagram, name: &IfName) -> io::Result<c_int> {
    let mut request = name.request();
    ioctl_ifreq(control, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: on success the kernel has written ifru_flags, and the union is plain integers.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(c_int::from(flags as u16))
}

/// Sets device `name` up.
pub(super) fn set_up(control: &UnixDatagram, name: &IfName) -> io::Result<()> {
    let flags = link_flags(control, name)? | libc::IFF_UP;
    let mut request = name.request();
    request.ifr_ifru.ifru_flags = flags as u16 as i16;
    ioctl_ifreq(control, libc::SIOCSIFFLAGS, &mut request)
}

/// Sets the MTU of device `name`.
pub(super) fn set_mtu(control: &UnixDatagram, name: &IfName, mtu: u16) -> io::Result<()> {
    let mut request = name.request();
    request.ifr_ifru.ifru_mtu = c_int::from(mtu);
    ioctl_ifreq(control, libc::SIOCSIFMTU, &mut request)
}

/// Sets how many bytes the host may have in work before a write finds no room, for all queues
/// attached (TUNSETSNDBUF).
pub(super) fn set_send_buffer(tun: &File, mut bytes: c_int) -> io::Result<()> {
    ioctl_int(tun, libc::TUNSETSNDBUF, &mut bytes)
}

/// An `ioctl` that reads or writes one `int`.
fn ioctl_int(tun: &File, request: c_ulong, value: &mut c_int) -> io::Result<()> {
    // SAFETY: the callers here pass requests whose argument is a pointer to an int;
    // `value` is a valid, exclusively borrowed one for the whole call.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), request, std::ptr::from_mut(value)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has the program choose the queue of each frame to be read (TUNSETSTEERINGEBPF); the device
/// holds it from now on.
pub(super) fn set_steering(tun: &File, mut program: RawFd) -> io::Result<()> {
    ioctl_int(tun, libc::TUNSETSTEERINGEBPF, &mut program)
}

/// Sets the length of the virtio-net header (TUNSETVNETHDRSZ).
pub(super) fn set_header_len(tun: &File, mut bytes: c_int) -> io::Result<()> {
    ioctl_int(tun, libc::TUNSETVNETHDRSZ, &mut bytes)
}

/// Makes the virtio-net header little-endian on every host (TUNSETVNETLE).
pub(super) fn set_little_endian(tun: &File) -> io::Result<()> {
    ioctl_int(tun, libc::TUNSETVNETLE, &mut 1)
}

/// Says what frames read may leave undone, as `TUN_F_` bits (TUNSETOFFLOAD).
pub(super) fn set_offload(tun: &File, bits: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(bits)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A netlink socket to ask about links of the thread's namespace; plain reads and
/// writes go to and come from the kernel.
pub(super) fn route_socket() -> io::Result<File> {
    // SAFETY: socket takes three integers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made `fd`, and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}
