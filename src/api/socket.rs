//! The unix socket that control is offered on.
//!
//! *Promises*: mode 0660 from the moment the name exists, so that the file's group
//! says who may connect; a socket left behind by a process that died is replaced; the
//! name is removed when the [`ControlSocket`] is dropped, if it is still ours.
//! *Refuses*: a name that another process serves, or that is not a socket.
//! *Caller's duty*: the directory exists and only trusted users may write to it; call
//! inside a tokio runtime with I/O enabled.
//! *Standard*: unix(7).

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// The socket's permissions: owner and group.
const MODE: u32 = 0o660;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// Why control cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("{} is served by another process: stop it, or choose another socket", .0.display())]
    InUse(PathBuf),
    /// It is something else.
    #[error("{} exists and is not a socket: remove it, or choose another name", .0.display())]
    NotASocket(PathBuf),
    /// Its directory is missing.
    #[error("the directory of {} does not exist: create it, or choose another name", .0.display())]
    NoDirectory(PathBuf),
    /// The system refused a step.
    #[error("cannot {step} the control socket {}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A listening socket and its name.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the name that was made.
    identity: (u64, u64),
}

impl ControlSocket {
    /// Listens on `path`.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        remove_stale(path).await?;
        let failed = |step| {
            move |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => SocketError::NoDirectory(path.to_owned()),
                io::ErrorKind::AddrInUse => SocketError::InUse(path.to_owned()),
                _ => SocketError::Io {
                    step,
                    path: path.to_owned(),
                    source,
                },
            }
        };
        let socket = UnixSocket::new_stream().map_err(failed("create"))?;
        // Linux gives the name the socket's own mode less the umask: narrowed before
        // bind, so that it is never wider, and set again after it for a strict umask.
        let handle = socket
            .as_fd()
            .try_clone_to_owned()
            .map_err(failed("create"))?;
        File::from(handle)
            .set_permissions(Permissions::from_mode(MODE))
            .map_err(failed("set the mode of"))?;
        socket.bind(path).map_err(failed("bind"))?;
        let identity = std::fs::symlink_metadata(path)
            .and_then(|made| {
                std::fs::set_permissions(path, Permissions::from_mode(MODE))?;
                Ok((made.dev(), made.ino()))
            })
            .map_err(failed("set the mode of"))?;
        let listener = socket.listen(BACKLOG).map_err(failed("listen on"))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            identity,
        })
    }

    /// What accepts connections.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes a socket that nobody serves.
async fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |step| {
        move |source| SocketError::Io {
            step,
            path: path.to_owned(),
            source,
        }
    };
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path).await {
        // A full backlog answers "would block": somebody serves it, slowly.
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::InUse(path.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!(
                "replacing {}, left behind by a process that is gone",
                path.display()
            );
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failed("remove the left-behind")(error))
                }
                _ => Ok(()),
            }
        }
        Err(error) => Err(failed("probe")(error)),
    }
}
