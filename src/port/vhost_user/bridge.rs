//! Between a frontend's socket and the protocol crate's daemon.
//!
//! QEMU sends SET_VRING_ENABLE before SET_FEATURES: when a virtio-net device is made, and
//! again when a guest resets it. The protocol crate takes the message only once
//! `VHOST_USER_F_PROTOCOL_FEATURES` is *acknowledged*, and ends the connection otherwise,
//! while QEMU regards it as negotiated from the moment it is offered. The crate keeps that
//! state to itself, so the bridge acknowledges the one bit ahead of the frontend, at the
//! start and after each RESET_DEVICE.
//!
//! *Promises*: every message passes whole, unchanged, in order, with the descriptors that
//! came with it; nothing of it is kept.
//! *Refuses*: nothing: what is malformed is for the daemon to refuse.
//! *Caller's duty*: the first SET_FEATURES that the daemon calls back is the bridge's.
//! *Standard*: vhost-user "Message specification".

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::daemon::Daemon;
use super::features;

/// Bytes of a message's header: request, flags, size.
const HEADER: usize = 12;
const SET_FEATURES: u32 = 2;
const RESET_DEVICE: u32 = 34;
/// Version 1, and no reply asked.
const FLAGS: u32 = 1;
/// Descriptors of one message at most, as the protocol crate has it.
const DESCRIPTORS_MAX: usize = 32;
/// A piece of payload; messages are at most this long.
const PIECE: usize = 4096;

/// One connection.
pub(super) struct Bridge {
    frontend: UnixStream,
    daemon: UnixStream,
}

impl Bridge {
    /// Starts `daemon` on a private connection to `frontend`.
    pub(super) fn open(frontend: UnixStream, daemon: &mut Daemon) -> io::Result<Self> {
        let place = PrivatePlace::new()?;
        let path = place.directory.join("s");
        let listener = UnixListener::bind(&path)?;
        let text = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        daemon
            .start_client(text)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let (stream, _) = listener.accept()?;
        let bridge = Self {
            frontend,
            daemon: stream,
        };
        bridge.prime()?;
        Ok(bridge)
    }

    pub(super) fn frontend(&self) -> &UnixStream {
        &self.frontend
    }

    pub(super) fn daemon(&self) -> &UnixStream {
        &self.daemon
    }

    /// Acknowledges the protocol features in the frontend's name.
    fn prime(&self) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + 8);
        for word in [SET_FEATURES, FLAGS, 8] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(&features::PROTOCOL_FEATURES.to_ne_bytes());
        (&self.daemon).write_all(&message)
    }

    /// Passes one message of the frontend on; false when it has left.
    pub(super) fn forward(&self) -> io::Result<bool> {
        let mut header = [0u8; HEADER];
        let (count, files) = self.receive(&mut header)?;
        if count == 0 {
            return Ok(false);
        }
        (&self.frontend).read_exact(&mut header[count..])?;
        let descriptors: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = if descriptors.is_empty() {
            0
        } else {
            self.daemon.send_with_fds(&[&header[..]], &descriptors)?
        };
        (&self.daemon).write_all(&header[sent..])?;
        let word = |at: usize| {
            let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u32::from_ne_bytes(bytes)
        };
        let mut left = word(8) as usize;
        let mut piece = [0u8; PIECE];
        while left > 0 {
            let part = &mut piece[..left.min(PIECE)];
            (&self.frontend).read_exact(part)?;
            (&self.daemon).write_all(part)?;
            left -= part.len();
        }
        if word(0) == RESET_DEVICE {
            self.prime()?;
        }
        Ok(true)
    }

    /// Receives the beginning of a message, with its descriptors.
    fn receive(&self, into: &mut [u8; HEADER]) -> io::Result<(usize, Vec<File>)> {
        let mut descriptors = [-1; DESCRIPTORS_MAX];
        let mut vectors = [libc::iovec {
            iov_base: into.as_mut_ptr().cast(),
            iov_len: HEADER,
        }];
        // SAFETY: the only vector is `into`, whose length it has and whose bytes may be
        // anything.
        let (count, received) =
            unsafe { self.frontend.recv_with_fds(&mut vectors, &mut descriptors) }?;
        let files = descriptors
            .iter()
            .take(received)
            // SAFETY: the kernel has just made these descriptors for us; nobody else
            // knows them.
            .map(|&fd| unsafe { File::from_raw_fd(fd) })
            .collect();
        Ok((count, files))
    }

    /// Passes what the daemon answers back; false when it has ended.
    pub(super) fn answer(&self) -> io::Result<bool> {
        let mut piece = [0u8; PIECE];
        let count = (&self.daemon).read(&mut piece)?;
        (&self.frontend).write_all(&piece[..count])?;
        Ok(count > 0)
    }

    /// Ends the connection; the daemon still reads what was passed on.
    pub(super) fn close(&self) {
        for (stream, how) in [
            (&self.daemon, Shutdown::Write),
            (&self.frontend, Shutdown::Both),
        ] {
            if let Err(error) = stream.shutdown(how) {
                log::debug!("connection already closed: {error}");
            }
        }
    }
}

/// A directory that only we can look into, for as long as two ends need to meet: the
/// crate's daemon connects by path alone.
struct PrivatePlace {
    directory: PathBuf,
}

impl PrivatePlace {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("shunt-{}-{count}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            // Fails if there is such a thing already, so it is ours and new.
            match DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => return Ok(Self { directory }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for PrivatePlace {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            log::warn!("cannot remove {}: {error}", self.directory.display());
        }
    }
}
