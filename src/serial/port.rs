//! The guest's end: the character device of a virtio-serial port.
//!
//! *Promises*: an `AsyncRead + AsyncWrite` that lasts: a host that is not connected, or goes
//! and comes back, is a pause, not the end. [`open`] takes a unix socket that leads to a port
//! as well; there a host that goes is the end.
//! *Refuses*: to share the port: the kernel lets one process open it (EBUSY).
//! *Caller's duty*: one task reads and writes, on a tokio runtime with I/O and time.
//! *Standard*: virtio 1.3 section 5.3; Linux `drivers/char/virtio_console.c`.
//!
//! While no host is connected the device hangs up (EPOLLHUP), reads nothing at once and
//! takes nothing. To tokio a hang-up is final: it would call the device ready for ever. So
//! whenever the device turns out not to be what epoll said, it rests, and is then watched
//! anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

/// How often is looked whether the host is there again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What bytes go through, both ways.
pub trait Way: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Way for T {}

/// Opens what is at `path`: a port's device, or a unix socket that leads to a port.
///
/// # Errors
/// It is not there, or another process has it. (Who listens on a socket and serves another
/// process takes the connection, and ends it.)
pub async fn open(path: &Path) -> io::Result<Box<dyn Way>> {
    let is_socket = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        Ok(Box::new(UnixStream::connect(path).await?))
    } else {
        Ok(Box::new(Port::open(path)?))
    }
}

/// An open port.
#[derive(Debug)]
pub struct Port {
    file: Arc<File>,
    watch: Option<AsyncFd<Arc<File>>>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Port {
    /// Opens the device at `path`.
    ///
    /// # Errors
    /// It is not there, or another process has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        Ok(Self {
            file: Arc::new(file),
            watch: None,
            rest: None,
        })
    }

    /// Does `work` once the device is ready for it.
    fn poll_io<T>(
        &mut self,
        cx: &mut Context<'_>,
        is_write: bool,
        mut work: impl FnMut(&File) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
            self.watch = None;
        }
        let watch = match &self.watch {
            Some(watch) => watch,
            None => self.watch.insert(watch(self.file.clone())?),
        };
        // The first attempt may be on old news.
        for _ in 0..2 {
            let mut guard = ready!(if is_write {
                watch.poll_write_ready(cx)
            } else {
                watch.poll_read_ready(cx)
            })?;
            match guard.try_io(|file| work(file.get_ref())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => return Poll::Ready(outcome),
                Err(_would_block) => {}
            }
        }
        self.rest(cx)
    }

    /// Comes back later.
    fn rest<T>(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        let rest = self.rest.insert(Box::pin(sleep(LOOK_AGAIN)));
        if rest.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

fn watch(file: Arc<File>) -> io::Result<AsyncFd<Arc<File>>> {
    // SAFETY: the file is open as long as the `Arc` in the `AsyncFd` is there, and a `File`
    // has one descriptor all its life.
    Ok(unsafe { AsyncFd::register(file) }?)
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let port = self.get_mut();
        let room = buffer.initialize_unfilled();
        let read = ready!(port.poll_io(cx, false, |mut file| file.read(room)))?;
        if read == 0 {
            return port.rest(cx);
        }
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_io(cx, true, |mut file| file.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
