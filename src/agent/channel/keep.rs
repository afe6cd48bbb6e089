//! The task that has the port: a line, its connections one after another, and silence.
//!
//! *Promises*: whatever happens to line and host, the next connection is tried, at most
//! [`PAUSE`] apart. While it is silent nothing is sent, not even a bye, and the port stays taken.
//! *Refuses*: to start where another process has the port.
//! *Caller's duty*: ends the task to give the port back.
//! *Standard*: `docs/serial.md`, RFC 9113.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::events;
use super::port::{NoPort, PortChoice};
use super::{Current, FromHost, Shared};
use crate::serial::port::Way;
use crate::serial::{Connections, Stream, link};

/// From one attempt to the next: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// What lasted so long was no attempt.
const LONG: Duration = Duration::from_secs(10);
/// How long another process may have the port at the start: `shunt call`, say.
const BUSY_MAX: Duration = Duration::from_secs(3);
/// How long HTTP may take to begin.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer on their way, and of all answers together.
const STREAM_WINDOW: u32 = 256 * 1_024;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of a request's body that wait here.
const SEND_BUFFER: usize = 64 * 1_024;
/// Requests at a time until the relay has said how many it takes.
const STREAMS_AT_FIRST: usize = 16;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has the port.
    #[error(
        "{} is in use by another process: is another `shunt agent` running? One has the port, and \
         others go through its proxy socket",
        .0.display()
    )]
    InUse(PathBuf),
}

/// Why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    NoPort(#[from] NoPort),
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
}

impl OpenError {
    /// The port, if another process has it.
    fn in_use(&self) -> Option<&PathBuf> {
        match self {
            Self::Open { path, source } if source.kind() == io::ErrorKind::ResourceBusy => {
                Some(path)
            }
            _ => None,
        }
    }
}

/// Longer and longer pauses.
#[derive(Debug)]
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(PAUSE.0)
    }
}

impl Pause {
    /// The next one.
    pub(super) async fn pass(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSE.1);
    }
}

async fn open(choice: &PortChoice) -> Result<(PathBuf, Box<dyn Way>), OpenError> {
    let path = choice.find()?;
    match crate::serial::port::open(&path).await {
        Ok(line) => Ok((path, line)),
        Err(source) => Err(OpenError::Open { path, source }),
    }
}

/// The line, if it can be opened already.
pub(super) async fn first(
    choice: &PortChoice,
) -> Result<Option<(PathBuf, Box<dyn Way>)>, StartError> {
    let (until, mut pause) = (Instant::now() + BUSY_MAX, Pause::default());
    loop {
        let error = match open(choice).await {
            Ok(opened) => return Ok(Some(opened)),
            Err(error) => error,
        };
        match error.in_use() {
            None => return Ok(None),
            Some(path) if until <= Instant::now() => return Err(StartError::InUse(path.clone())),
            Some(_) => pause.pass().await,
        }
    }
}

/// Keeps the port, for ever.
pub(super) async fn keep(
    shared: Arc<Shared>,
    told: mpsc::Sender<FromHost>,
    mut opened: Option<(PathBuf, Box<dyn Way>)>,
) {
    let keeper = Keeper {
        silent_until: shared.silent_until.subscribe(),
        shared,
        told,
    };
    let mut pause = Pause::default();
    loop {
        let line = match opened.take() {
            Some(line) => Ok(line),
            None => open(&keeper.shared.options.port).await,
        };
        match line {
            Ok((path, line)) => {
                let began = Instant::now();
                let report = &keeper.shared.report;
                report.send_modify(|report| report.port = Some(path.clone()));
                keeper.use_line(&path, line).await;
                if began.elapsed() >= LONG {
                    pause = Pause::default();
                }
            }
            Err(error) => keeper.shared.trouble(Some(error.to_string())),
        }
        pause.pass().await;
    }
}

struct Keeper {
    shared: Arc<Shared>,
    told: mpsc::Sender<FromHost>,
    silent_until: watch::Receiver<Option<Instant>>,
}

impl Keeper {
    /// Uses a line until it ends or is to fall silent.
    async fn use_line(&self, path: &std::path::Path, line: Box<dyn Way>) {
        self.be_silent().await;
        let (mut driver, connections) = link(line, self.shared.options.timing);
        tokio::select! {
            error = &mut driver => {
                log::debug!("{}: {error}", path.display());
                let text = format!(
                    "{} was closed at the other end: is another process at it, or the relay away?",
                    path.display()
                );
                self.shared.trouble(Some(text));
            }
            () = self.serve_all(connections) => {}
            () = self.silence_asked() => {}
        }
        self.disconnected("the line is silent or gone").await;
        // Nobody moves bytes now; and until the driver is dropped, nobody else takes the port.
        self.be_silent().await;
        drop(driver);
    }

    async fn silence_asked(&self) {
        let mut silent_until = self.silent_until.clone();
        let asked = silent_until.wait_for(|until| until.is_some_and(|at| Instant::now() < at));
        // An error is that nobody can ask any more.
        if asked.await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until something may be said.
    async fn be_silent(&self) {
        loop {
            let until = *self.silent_until.borrow();
            match until {
                Some(until) if Instant::now() < until => sleep_until(until).await,
                _ => return,
            }
        }
    }

    async fn serve_all(&self, mut connections: Connections) {
        let mut pause = Pause::default();
        loop {
            let stream = match timeout(self.shared.options.timing.silence, connections.next()).await
            {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(_) => {
                    let text = "no relay answers at the port: is it running on the host?";
                    self.shared.trouble(Some(text.to_owned()));
                    continue;
                }
            };
            let began = Instant::now();
            let why = self.serve(stream).await;
            self.disconnected(&why).await;
            if began.elapsed() >= LONG {
                pause = Pause::default();
            }
            pause.pass().await;
        }
    }

    /// Uses a connection to its end; why it ended.
    async fn serve(&self, stream: Stream) -> String {
        let ended = stream.ended();
        // Dropped with this, it ends all that HTTP does here.
        let (_alive, tasks) = watch::channel(());
        let handshake = http2::Builder::new(Tasks(tasks))
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .max_send_buf_size(SEND_BUFFER)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = match timeout(HANDSHAKE_MAX, handshake).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "HTTP does not begin".to_owned(),
        };
        let renew = Arc::new(Notify::new());
        let current = Current {
            sender: sender.clone(),
            renew: Arc::clone(&renew),
        };
        self.shared.current.send_replace(Some(current));
        self.shared
            .report
            .send_modify(|report| report.connections += 1);
        self.shared.upheavals.send_modify(|count| *count += 1);
        self.shared.trouble(None);
        log::info!("the host is there");
        tokio::select! {
            biased;
            end = ended => end.to_string(),
            () = renew.notified() => "a newer connection took its place".to_owned(),
            outcome = connection => match outcome {
                Ok(()) => "the host has ended HTTP".to_owned(),
                Err(error) => error.to_string(),
            },
            never = events::follow(&self.shared, sender, &self.told) => match never {},
        }
    }

    /// There is no connection any more, if there was one.
    async fn disconnected(&self, why: &str) {
        if self.shared.current.send_replace(None).is_some() {
            log::info!("the host is gone: {why}");
            let _unheard = self.shared.raw.send(None);
            let _unheard = self.told.send(FromHost::Disconnected).await;
        }
    }
}

/// Runs what HTTP does beside requests, as long as the connection is used.
#[derive(Clone)]
struct Tasks(watch::Receiver<()>);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let mut ended = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = task => {}
                // Never sent to: it is over when the sender is gone.
                _ = ended.changed() => {}
            }
        });
    }
}
