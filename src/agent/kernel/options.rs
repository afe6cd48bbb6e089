//! Socket options that no crate offers safely.
//!
//! *Promises*: each function is one system call; what it points to is borrowed over the call.
//! *Refuses*: nothing; errors are the kernel's.
//! *Caller's duty*: none.
//! *Standard*: socket(7); include/uapi/linux/filter.h, netfilter_ipv4/ip_tables.h.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, sock_filter, socklen_t};
use tokio::io::unix::AsyncFd;

/// Has tokio's reactor watch a netlink socket.
pub(super) fn watch(socket: netlink_sys::Socket) -> io::Result<AsyncFd<netlink_sys::Socket>> {
    // SAFETY: the socket owns its descriptor, always the same, until it is dropped, which is
    // with the `AsyncFd`: nobody takes it out.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Sets the receive buffer to `bytes`, beyond the system's limit where that is allowed.
pub(super) fn set_receive_buffer(socket: &impl AsRawFd, bytes: u32) -> io::Result<()> {
    let value = bytes.to_ne_bytes();
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &value)
        .or_else(|_| set(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &value))
}

/// Lets only those messages in that a program of classic BPF does not answer with 0.
pub(super) fn attach_filter(socket: &impl AsRawFd, program: &[sock_filter]) -> io::Result<()> {
    let whole = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the option's value is a `sock_fprog`, whose size goes with it; it points to
    // `len` instructions that are borrowed over the call and that the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const whole).cast::<c_void>(),
            size_of_val(&whole) as socklen_t,
        )
    };
    checked(result)
}

/// A socket of that family without name or peer, to ask for options of its family.
pub(super) fn plain_socket(family: c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket takes three integers.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    checked(fd)?;
    // SAFETY: the descriptor was made just now, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks for an option. `value` holds the question, then the answer; gives the answer's length.
pub(super) fn get(
    socket: &OwnedFd,
    level: c_int,
    name: c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut length = socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `length` bytes, which `value` has, and the length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast::<c_void>(),
            &raw mut length,
        )
    };
    checked(result)?;
    Ok(value.len().min(length as usize))
}

fn set(socket: &impl AsRawFd, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `value.len()` bytes of a value that is borrowed over the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast::<c_void>(),
            value.len() as socklen_t,
        )
    };
    checked(result)
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
