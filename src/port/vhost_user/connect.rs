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
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhost::vhost_user::Error as ProtocolError;
use vhost_user_backend::Error as DaemonError;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::bridge::Bridge;
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
        listener: UnixListener,
        /// The socket's file.
        file: SocketFile,
    },
    /// We connect there.
    Client {
        /// The path.
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
        Ok(Self::Server { listener, file })
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
pub(super) fn run(device: &Arc<Shared>, source: &Source) {
    match source {
        Source::Server { file, .. } => {
            log::info!("{}: waiting for a frontend", file.path.display());
        }
        Source::Client { path } => log::info!("{path}: connecting to the frontend"),
    }
    if let Err(error) = serve_all(device, source) {
        log::error!("{}: is no longer served: {error}", device.name());
    }
}

fn serve_all(device: &Arc<Shared>, source: &Source) -> io::Result<()> {
    let bell = Bell::new(device)?;
    let mut last_end = None;
    while !device.is_closing() {
        let Some(frontend) = connection(device, source, &bell)? else {
            continue;
        };
        match start(device, frontend) {
            Ok((daemon, bridge)) => {
                let end = serve(device, daemon, &bridge, &bell)?;
                report_end(device, &end, &mut last_end);
                device.connection_ended(end.map(Arc::from));
            }
            Err(error) => {
                log::warn!("{}: cannot serve a frontend: {error}", device.name());
                device.connection_ended(None);
                bell.wait(RETRY_MS);
            }
        }
    }
    Ok(())
}

/// Waits for the next peer; `None`: look whether the device closes, then ask again.
fn connection(device: &Shared, source: &Source, bell: &Bell<'_>) -> io::Result<Option<UnixStream>> {
    let stream = match source {
        Source::Server { listener, .. } => {
            bell.watch(listener)?;
            let ready = bell.wait(-1);
            bell.unwatch(listener)?;
            if !ready.contains(&Some(listener.as_raw_fd())) {
                return Ok(None);
            }
            let accepted = listener.accept().map(|(stream, _)| stream);
            if let Err(error) = &accepted {
                log::warn!("{}: cannot accept a frontend: {error}", device.name());
            }
            accepted
        }
        Source::Client { path } => UnixStream::connect(path),
    };
    if stream.is_err() {
        bell.wait(RETRY_MS);
    }
    Ok(stream.ok())
}

fn start(device: &Arc<Shared>, frontend: UnixStream) -> io::Result<(Daemon, Bridge)> {
    let shutdown = frontend.try_clone()?;
    let mut daemon = daemon(device).map_err(|error| io::Error::other(error.to_string()))?;
    let bridge = Bridge::open(frontend, &mut daemon)?;
    device.connection_began(shutdown);
    Ok((daemon, bridge))
}

/// Serves one peer to its end; says why it was sent away, if it was.
fn serve(
    device: &Shared,
    mut daemon: Daemon,
    bridge: &Bridge,
    bell: &Bell<'_>,
) -> io::Result<Option<String>> {
    log::info!("{}: a frontend is connected", device.name());
    bell.watch(bridge.frontend())?;
    bell.watch(bridge.daemon())?;
    let mut open = true;
    while open {
        let ready = bell.wait(-1);
        let has = |stream: &UnixStream| ready.contains(&Some(stream.as_raw_fd()));
        // A broken stream ends the connection as a closed one does.
        open = !has(bridge.daemon()) || bridge.answer().unwrap_or(false);
        if open && has(bridge.frontend()) {
            open = bridge.forward().unwrap_or(false);
        }
    }
    bell.unwatch(bridge.frontend())?;
    bell.unwatch(bridge.daemon())?;
    bridge.close();
    Ok(end_of(daemon.wait()))
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

/// Waits for the device's bell (a fault to be logged, or closing) and for sockets.
struct Bell<'d> {
    device: &'d Shared,
    epoll: Epoll,
}

/// Most descriptors that a [`Bell`] waits for: itself and both ends of a connection.
const WATCHED_MAX: usize = 3;

impl<'d> Bell<'d> {
    fn new(device: &'d Shared) -> io::Result<Self> {
        let bell = Self {
            device,
            epoll: Epoll::new()?,
        };
        bell.watch(device.bell())?;
        Ok(bell)
    }

    fn watch(&self, what: &impl AsRawFd) -> io::Result<()> {
        let fd = what.as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, fd as u64);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    fn unwatch(&self, what: &impl AsRawFd) -> io::Result<()> {
        let event = EpollEvent::default();
        self.epoll
            .ctl(ControlOperation::Delete, what.as_raw_fd(), event)
    }

    /// Waits for the bell, a socket, or the time, and says which descriptors are ready.
    /// Faults are reported on the way.
    fn wait(&self, timeout_ms: i32) -> [Option<RawFd>; WATCHED_MAX] {
        let mut events = [EpollEvent::default(); WATCHED_MAX];
        // Interrupted by a signal counts as nothing: the caller asks again.
        let count = self.epoll.wait(timeout_ms, &mut events).unwrap_or(0);
        let mut ready = [None; WATCHED_MAX];
        for (fd, event) in ready.iter_mut().zip(&events[..count]) {
            *fd = Some(event.fd());
        }
        if ready.contains(&Some(self.device.bell().as_raw_fd())) {
            // Empty only if somebody else had read it, and nobody does.
            let _ = self.device.bell().read();
            self.device.report_faults();
        }
        ready
    }
}
