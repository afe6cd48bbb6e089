//! Connections of a device: one after the other, for as long as the device is open.
//!
//! *Promises*: the listener stays while peers come and go; a socket file that a dead
//! process left is replaced; ours is removed at the end (if it is still ours). Closing the
//! device ends all waiting at once.
//! *Refuses*: a path that another process listens on, or that is no socket.
//! *Caller's duty*: nobody else removes the socket meanwhile.
//! *Standard*: vhost-user "Communication", unix(7).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::Error as DaemonError;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::daemon::{Daemon, daemon};
use super::device::Shared;
use super::{DeviceConfig, OpenError, SocketMode};

/// Between two attempts to connect, or after a failed one to accept.
const RETRY_MS: i32 = 250;

/// Where connections come from.
pub(super) enum Source {
    /// Peers connect here.
    Server {
        /// Kept for ever: binding again would lose a peer that comes in between.
        listener: Listener,
        /// The socket's file.
        file: SocketFile,
    },
    /// We connect there.
    Client {
        /// The path, which the protocol crate wants as text.
        path: String,
    },
}

/// A socket's file, removed at the end unless it has been replaced.
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let current = std::fs::symlink_metadata(&self.path).map(|meta| (meta.dev(), meta.ino()));
        if current.is_ok_and(|current| current == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Source {
    /// Prepares the socket that `config` names.
    pub(super) fn open(config: &DeviceConfig) -> Result<Self, OpenError> {
        let path = &config.socket;
        let text = path.to_str().filter(|text| text.len() < 108);
        let Some(text) = text else {
            return Err(OpenError::BadPath(path.clone()));
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !parent.is_dir() {
            return Err(OpenError::NoDirectory(parent.to_owned()));
        }
        match config.mode {
            SocketMode::Server => Self::listen(path, config.permissions),
            SocketMode::Client => Ok(Self::Client {
                path: text.to_owned(),
            }),
        }
    }

    fn listen(path: &Path, permissions: Option<u32>) -> Result<Self, OpenError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source| OpenError::Socket {
                action,
                path,
                source,
            }
        };
        remove_stale(path)?;
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(OpenError::InUse(path.to_owned()));
            }
            bound => bound.map_err(failed("listen on"))?,
        };
        let meta = std::fs::symlink_metadata(path).map_err(failed("examine"))?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: (meta.dev(), meta.ino()),
        };
        if let Some(bits) = permissions {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(bits))
                .map_err(failed("set the permissions of"))?;
        }
        Ok(Self::Server {
            listener: Listener::from(listener),
            file,
        })
    }
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), OpenError> {
    let failed = |action, source| OpenError::Socket {
        action,
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("examine", error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(OpenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    // A datagram socket asks without a trace: a living listener answers that it is of
    // another type, and never has a connection to accept.
    let probe = UnixDatagram::unbound().map_err(|error| failed("examine", error))?;
    match probe.connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!(
                "{}: replacing a socket that nobody listens on",
                path.display()
            );
            std::fs::remove_file(path).map_err(|error| failed("remove", error))
        }
        Err(error) if error.raw_os_error() != Some(libc::EPROTOTYPE) => {
            Err(failed("examine", error))
        }
        _ => Err(OpenError::InUse(path.to_owned())),
    }
}

/// Serves `source` until the device closes.
pub(super) fn run(device: &Arc<Shared>, mut source: Source) {
    let listener = match &source {
        Source::Server { listener, file } => {
            log::info!("{}: waiting for a frontend", file.path.display());
            Some(listener.as_raw_fd())
        }
        Source::Client { path } => {
            log::info!("{path}: connecting to the frontend");
            None
        }
    };
    let bell = match Bell::new(device) {
        Ok(bell) => bell,
        Err(error) => {
            log::error!("{}: cannot be served: {error}", device.name());
            return;
        }
    };
    let mut last_end = None;
    while !device.is_closing() {
        let Some(daemon) = connection(device, &mut source, &bell, listener) else {
            continue;
        };
        let end = serve(device, daemon, &bell);
        report_end(device, &end, &mut last_end);
        device.connection_ended(end.map(Arc::from));
    }
}

/// Waits for the next peer; `None`: look whether the device closes, then ask again.
fn connection(
    device: &Arc<Shared>,
    source: &mut Source,
    bell: &Bell<'_>,
    listener: Option<RawFd>,
) -> Option<Daemon> {
    if let Some(listener) = listener
        && !bell.wait(Some(listener), -1)
    {
        return None;
    }
    let started = daemon(device).and_then(|mut daemon| {
        match source {
            Source::Server { listener, .. } => daemon.start(listener)?,
            Source::Client { path } => daemon.start_client(path)?,
        }
        Ok(daemon)
    });
    match started {
        Ok(daemon) => Some(daemon),
        Err(error) => {
            if listener.is_some() {
                log::warn!("{}: cannot accept a frontend: {error}", device.name());
            }
            device.begin_session(Vec::new());
            bell.wait(None, RETRY_MS);
            None
        }
    }
}

/// Serves one peer to its end; says why it was sent away, if it was.
fn serve(device: &Arc<Shared>, mut daemon: Daemon, bell: &Bell<'_>) -> Option<String> {
    device.connection_began(daemon.shutdown_handle());
    log::info!("{}: a frontend is connected", device.name());
    let over = AtomicBool::new(false);
    // The crate's daemon can only be waited for by joining it, and faults must be
    // reported meanwhile.
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let result = daemon.wait();
            over.store(true, Ordering::Release);
            device.ring_bell();
            result
        });
        while !over.load(Ordering::Acquire) {
            bell.wait(None, -1);
        }
        match waiter.join() {
            Ok(result) => end_of(result),
            Err(_) => Some("its thread panicked".to_owned()),
        }
    })
}

/// A peer that leaves, even amid a message, is no error.
fn end_of(result: Result<(), DaemonError>) -> Option<String> {
    match result {
        Ok(())
        | Err(DaemonError::HandleRequest(
            ProtocolError::Disconnected
            | ProtocolError::PartialMessage
            | ProtocolError::SocketBroken(_),
        )) => None,
        Err(DaemonError::HandleRequest(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// Says how a connection ended; a peer that tries the same again and again, once.
fn report_end(device: &Shared, end: &Option<String>, last: &mut Option<String>) {
    match end {
        None => log::info!("{}: the frontend left", device.name()),
        Some(reason) if last.as_ref() == Some(reason) => {
            log::debug!("{}: frontend disconnected again: {reason}", device.name());
        }
        Some(reason) => log::warn!("{}: frontend disconnected: {reason}", device.name()),
    }
    last.clone_from(end);
}

/// Waits for the device's bell: a fault to be logged, the end of a connection, or closing.
struct Bell<'d> {
    device: &'d Shared,
    epoll: Epoll,
}

impl<'d> Bell<'d> {
    fn new(device: &'d Shared) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let fd = device.bell().as_raw_fd();
        epoll.ctl(
            ControlOperation::Add,
            fd,
            EpollEvent::new(EventSet::IN, fd as u64),
        )?;
        Ok(Self { device, epoll })
    }

    /// Waits for the bell, `other`, or the time; whether it was `other`. Faults are
    /// reported on the way.
    fn wait(&self, other: Option<RawFd>, timeout_ms: i32) -> bool {
        if let Some(fd) = other {
            let event = EpollEvent::new(EventSet::IN, fd as u64);
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, event) {
                log::error!("{}: cannot wait: {error}", self.device.name());
                return false;
            }
        }
        let mut events = [EpollEvent::default(); 2];
        // Interrupted by a signal counts as nothing: the caller asks again.
        let count = self.epoll.wait(timeout_ms, &mut events).unwrap_or(0);
        let rang = |fd: RawFd| events[..count].iter().any(|event| event.fd() == fd);
        let ready = other.is_some_and(rang);
        if rang(self.device.bell().as_raw_fd()) {
            // Empty only if somebody else had read it, and nobody does.
            let _ = self.device.bell().read();
            self.device.report_faults();
        }
        if let Some(fd) = other
            && let Err(error) = self
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default())
        {
            log::error!("{}: cannot wait: {error}", self.device.name());
        }
        ready
    }
}
