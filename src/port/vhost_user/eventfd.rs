//! Event descriptors that a frontend gave us to write to.
//!
//! *Promises*: [`EventFd::signal`] is one system call and does not wait: the descriptor is
//! an eventfd (a pipe or socket could be full) and does not block.
//! *Refuses*: any other kind of descriptor.
//! *Caller's duty*: none. The non-blocking flag is shared with the frontend's process; one
//! that clears it and fills the counter could hold up a worker. Only a VMM can do so,
//! never its guest.
//! *Standard*: vhost-user `VHOST_USER_SET_VRING_CALL`, `VHOST_USER_SET_VRING_ERR`.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

/// Why a descriptor is not used.
#[derive(Debug, thiserror::Error)]
#[error("the frontend passed a {purpose} descriptor that is not an eventfd")]
pub(super) struct NotAnEventFd {
    purpose: &'static str,
}

/// An eventfd, to be signalled.
#[derive(Debug)]
pub(super) struct EventFd {
    file: File,
}

impl EventFd {
    /// Takes over `file` for `purpose` (`call` or `error`).
    pub(super) fn new(file: File, purpose: &'static str) -> Result<Self, NotAnEventFd> {
        let fd = file.as_raw_fd();
        let target = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        let is_eventfd = target.is_ok_and(|t| t.as_os_str() == "anon_inode:[eventfd]");
        // SAFETY: F_GETFL takes no argument; `file` owns the descriptor.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        // SAFETY: F_SETFL takes an int; `file` owns the descriptor.
        let set = unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) };
        if is_eventfd && flags >= 0 && set == 0 {
            Ok(Self { file })
        } else {
            Err(NotAnEventFd { purpose })
        }
    }

    /// Adds one.
    #[inline]
    pub(super) fn signal(&self) {
        // The only error left is a full counter, and then the other side has been told.
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_pipe_is_refused() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let error = EventFd::new(File::from(OwnedFd::from(writer)), "call").unwrap_err();
        assert!(error.to_string().contains("call descriptor"));
    }

    #[test]
    fn a_full_counter_does_not_block() {
        use std::os::fd::{FromRawFd, IntoRawFd};
        let raw = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        raw.write(u64::MAX - 1).unwrap();
        // SAFETY: the descriptor's owner has just been dissolved.
        let file = unsafe { File::from_raw_fd(raw.into_raw_fd()) };
        EventFd::new(file, "call").unwrap().signal();
    }
}
