//! A line as `AsyncRead + AsyncWrite`: one [`Stream`] for each connection.
//!
//! *Promises*: [`Driver`] moves bytes as long as it is polled; a stream whose connection
//! has ended says so at the next read or write, with an [`End`]; dropping a stream ends its
//! connection.
//! *Refuses*: nothing. *Caller's duty*: poll the driver; one task reads and one writes a
//! stream. A tokio runtime with time. *Standard*: `docs/serial.md`.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::num::NonZeroU32;
use std::pin::Pin;
#[expect(
    clippy::disallowed_types,
    reason = "never on the packet path, and held for copies of at most a window"
)]
use std::sync::Mutex;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep_until};

use super::line::{End, Line, Progress, Timing};

/// Bytes read from the line at a time.
const READ: usize = 16 * 1_024;
/// Rounds of reading and writing before other tasks have their turn.
const ROUNDS: usize = 16;

struct Shared {
    line: Line,
    /// Who waits to read, to write, and the driver.
    reader: Option<Waker>,
    writer: Option<Waker>,
    driver: Option<Waker>,
    progress: watch::Sender<Progress>,
}

impl Shared {
    /// Tells everybody what has changed. Woken once too often is harmless.
    fn publish(&mut self) {
        let now = self.line.progress();
        self.progress
            .send_if_modified(|seen| std::mem::replace(seen, now) != now);
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.take() {
            waker.wake();
        }
    }
}

#[expect(clippy::disallowed_types, reason = "as above")]
struct Handle(Mutex<Shared>);

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing panics while it is held; if it did, the state would still be whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a link of a byte line: the driver, to be polled, and its connections.
pub fn link<I>(io: I, timing: Timing) -> (Driver<I>, Connections) {
    let line = Line::new(timing, random_epoch, now());
    let (sender, receiver) = watch::channel(line.progress());
    #[expect(clippy::disallowed_types, reason = "as above")]
    let handle = Arc::new(Handle(Mutex::new(Shared {
        line,
        reader: None,
        writer: None,
        driver: None,
        progress: sender,
    })));
    let driver = Driver {
        io,
        handle: Arc::clone(&handle),
        frame: Vec::new(),
        written: 0,
        input: vec![0; READ].into_boxed_slice(),
        timer: Box::pin(sleep_until(tokio::time::Instant::now())),
    };
    let connections = Connections {
        handle,
        progress: receiver,
        last: 0,
    };
    (driver, connections)
}

/// The runtime's clock, so that tests can hold it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn random_epoch() -> NonZeroU32 {
    // Need not be secret, only different each time: the hasher's keys are random.
    let [a, b, c, d, ..] = RandomState::new().hash_one(now()).to_ne_bytes();
    NonZeroU32::new(u32::from_ne_bytes([a, b, c, d])).unwrap_or(NonZeroU32::MIN)
}

/// Moves bytes between a line and its connections. As a future it ends when the line does,
/// with the reason.
pub struct Driver<I> {
    io: I,
    handle: Arc<Handle>,
    /// The frame being sent, and how much of it is.
    frame: Vec<u8>,
    written: usize,
    input: Box<[u8]>,
    timer: Pin<Box<Sleep>>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Driver<I> {
    /// Sends what there is to send, as far as the line takes it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while let Some(rest) = self.frame.get(self.written..)
                && !rest.is_empty()
            {
                let sent = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
                if sent == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += sent;
            }
            self.frame.clear();
            self.written = 0;
            if !self.next_frame() {
                return Pin::new(&mut self.io).poll_flush(cx);
            }
        }
    }

    /// Makes the next frame; whether there is one.
    fn next_frame(&mut self) -> bool {
        let mut shared = self.handle.lock();
        let is_made = shared.line.transmit(&mut self.frame, now());
        // There is room to write again.
        if is_made && let Some(writer) = shared.writer.take() {
            writer.wake();
        }
        is_made
    }

    /// Takes what has come, for some rounds; `Ready` only when the line has ended.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        for _ in 0..ROUNDS {
            let mut buffer = ReadBuf::new(&mut self.input);
            if let Err(error) = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
                return Poll::Ready(error);
            }
            if buffer.filled().is_empty() {
                return Poll::Ready(io::ErrorKind::UnexpectedEof.into());
            }
            let mut shared = self.handle.lock();
            shared.line.receive(buffer.filled(), now());
            shared.publish();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends what is overdue.
    fn look_at_clock(&self) {
        let mut shared = self.handle.lock();
        let before = shared.line.progress();
        shared.line.on_timeout(now());
        if shared.line.progress() != before {
            shared.publish();
        }
    }

    /// Wakes this task when something is due again.
    fn arm(&mut self, cx: &mut Context<'_>) {
        let is_blocked = self.written < self.frame.len();
        let Some(due) = self.handle.lock().line.timeout(is_blocked) else {
            return;
        };
        self.timer.as_mut().reset(due.into());
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Future for Driver<I> {
    type Output = io::Error;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Error> {
        let driver = self.get_mut();
        driver.handle.lock().driver = Some(cx.waker().clone());
        let mut ended = driver.poll_take(cx);
        if ended.is_pending() {
            driver.look_at_clock();
            if let Poll::Ready(Err(error)) = driver.poll_send(cx) {
                ended = Poll::Ready(error);
            }
        }
        if ended.is_ready() {
            driver.lose();
        } else {
            driver.arm(cx);
        }
        ended
    }
}

impl<I> Driver<I> {
    fn lose(&self) {
        let mut shared = self.handle.lock();
        shared.line.lose(now());
        shared.publish();
    }
}

impl<I> Drop for Driver<I> {
    fn drop(&mut self) {
        self.lose();
    }
}

/// The connections of a line, one after another.
pub struct Connections {
    handle: Arc<Handle>,
    progress: watch::Receiver<Progress>,
    last: u64,
}

impl Connections {
    /// Waits for the next connection; `None` when the line is gone. A connection that
    /// ended before it was asked for is passed over.
    pub async fn next(&mut self) -> Option<Stream> {
        loop {
            let last = self.last;
            let progress = *self
                .progress
                .wait_for(|now| now.is_lost || (now.opened > last && now.opened > now.ended))
                .await
                .ok()?;
            if progress.is_lost {
                return None;
            }
            self.last = progress.opened;
            let shared = self.handle.lock();
            if let Some((own, peer)) = shared.line.epochs()
                && shared.line.is_open(self.last)
            {
                return Some(Stream {
                    handle: Arc::clone(&self.handle),
                    progress: self.progress.clone(),
                    number: self.last,
                    own,
                    peer,
                });
            }
        }
    }

    /// Frames that came damaged so far.
    pub fn damaged(&self) -> u64 {
        self.handle.lock().line.damaged()
    }
}

/// A connection.
pub struct Stream {
    handle: Arc<Handle>,
    progress: watch::Receiver<Progress>,
    number: u64,
    own: u32,
    peer: u32,
}

impl Stream {
    /// The epochs of this connection: this end's and the peer's.
    pub fn epochs(&self) -> (u32, u32) {
        (self.own, self.peer)
    }

    /// A future of the end of this connection.
    pub fn ended(&self) -> impl Future<Output = End> + Send + 'static {
        let (mut progress, number) = (self.progress.clone(), self.number);
        async move {
            match progress.wait_for(|now| now.ended >= number).await {
                // A later connection may have ended since; this one then ended by a hello.
                Ok(now) if now.ended == number => now.end.unwrap_or(End::Line),
                Ok(_) => End::PeerOpened,
                Err(_) => End::Line,
            }
        }
    }
}

/// What a stream says whose connection has ended.
fn ended(shared: &Shared) -> io::Error {
    let end = shared.line.progress().end.unwrap_or(End::Line);
    io::Error::new(io::ErrorKind::ConnectionReset, end)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut shared = self.handle.lock();
        match shared.line.read(self.number, buffer.initialize_unfilled()) {
            None => Poll::Ready(Err(ended(&shared))),
            Some(0) if buffer.remaining() > 0 => {
                shared.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(taken) => {
                buffer.advance(taken);
                // The peer may send more now.
                shared.wake_driver();
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.handle.lock();
        match shared.line.write(self.number, bytes, now()) {
            None => Poll::Ready(Err(ended(&shared))),
            Some(0) if !bytes.is_empty() => {
                shared.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(taken) => {
                shared.wake_driver();
                Poll::Ready(Ok(taken))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The driver sends without being asked.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.handle.lock();
        if shared.line.is_drained(self.number) {
            shared.line.close(self.number, now());
            shared.publish();
            shared.wake_driver();
            return Poll::Ready(Ok(()));
        }
        shared.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut shared = self.handle.lock();
        shared.line.close(self.number, now());
        shared.publish();
        shared.wake_driver();
    }
}

#[cfg(test)]
mod tests;
