//! An element's port: its socket, its line, its connections one after another.
//!
//! *Promises*: only the configured user's process is talked to, and only one at a time;
//! whatever comes over the line ends in the next connection, never in the end of the port.
//! *Refuses*: other users, a second process, HTTP beyond the limits (RFC 9113: streams by
//! REFUSED_STREAM, long heads by 431).
//! *Caller's duty*: a user of its own for each VM, or a MAC label. *Standard*: unix(7)
//! (SO_PEERCRED), RFC 9113, `docs/serial.md`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};

use super::carry::Carrier;
use super::config::{Config, PortConfig};
use super::presence::Presence;
use super::upstream::chain;
use super::wall_milliseconds;
use crate::api::ControlSocket;
use crate::serial::{Connections, Stream, link};

/// Bytes of a request's head that are taken.
const HEAD_MAX: u32 = 16 * 1_024;
/// Bytes of a request's body that wait in the relay, and of all bodies together.
const STREAM_WINDOW: u32 = 64 * 1_024;
const CONNECTION_WINDOW: u32 = 256 * 1_024;
/// Bytes of an answer's body that wait in the relay.
const SEND_BUFFER: usize = 64 * 1_024;
/// A guest whose connections end sooner than this …
const SHORT: Duration = Duration::from_secs(10);
/// … waits from the one to the next, longer each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(3));
/// From one attempt to reach QEMU to the next.
const RETRY: Duration = Duration::from_millis(200);
/// Most characters of a reason in a log line: parts of it may be the guest's words.
const REASON_MAX: usize = 200;

/// An element's port.
pub struct Port {
    config: Arc<Config>,
    own: PortConfig,
    /// Which of the presence's ports it is.
    index: usize,
    presence: Arc<Presence>,
    carrier: Arc<Carrier>,
}

impl Port {
    /// The port number `index` of `config`.
    pub fn new(
        config: Arc<Config>,
        (index, own): (usize, PortConfig),
        presence: Arc<Presence>,
        carrier: Carrier,
    ) -> Self {
        Self {
            config,
            own,
            index,
            presence,
            carrier: Arc::new(carrier),
        }
    }

    /// Serves whoever connects to `socket`, for ever.
    pub async fn listen(&self, socket: &ControlSocket) {
        loop {
            match socket.listener().accept().await {
                Ok((stream, _)) if self.is_trusted(&stream) => tokio::select! {
                    () = self.talk(stream) => {}
                    () = self.refuse_others(socket.listener()) => {}
                },
                Ok(_) => {}
                Err(error) => self.complain_of_accept(&error).await,
            }
        }
    }

    /// Connects to QEMU's socket, again and again, for ever.
    pub async fn connect(&self) {
        let mut is_told = false;
        loop {
            match UnixStream::connect(&self.own.socket).await {
                Ok(stream) if self.is_trusted(&stream) => {
                    is_told = false;
                    self.talk(stream).await;
                }
                Ok(_) => {}
                Err(error) => {
                    if !std::mem::replace(&mut is_told, true) {
                        let socket = self.own.socket.display();
                        log::info!("{}: nobody at {socket} yet: {error}", self.own.name);
                    }
                }
            }
            sleep(RETRY).await;
        }
    }

    /// While one process is served, others are turned away.
    async fn refuse_others(&self, listener: &UnixListener) {
        loop {
            match listener.accept().await {
                Ok(_) => log::warn!("{}: a second connection was refused", self.own.name),
                Err(error) => self.complain_of_accept(&error).await,
            }
            sleep(RETRY).await;
        }
    }

    async fn complain_of_accept(&self, error: &io::Error) {
        log::warn!("{}: cannot accept a connection: {error}", self.own.name);
        sleep(RETRY).await;
    }

    fn is_trusted(&self, stream: &UnixStream) -> bool {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == self.own.uid => true,
            Ok(peer) => {
                log::warn!(
                    "{}: refused: user {} is at the other end, not {}",
                    self.own.name,
                    peer.uid(),
                    self.own.uid
                );
                false
            }
            Err(error) => {
                log::warn!(
                    "{}: refused: the other end is unknown: {error}",
                    self.own.name
                );
                false
            }
        }
    }

    /// Serves one process until it closes the socket.
    async fn talk(&self, stream: UnixStream) {
        let (driver, connections) = link(stream, self.config.serial.timing());
        tokio::select! {
            error = driver => log::info!("{}: the socket was closed: {error}", self.own.name),
            () = self.serve_all(connections) => {}
        }
        self.presence.left(self.index, wall_milliseconds());
    }

    async fn serve_all(&self, mut connections: Connections) {
        let mut pause = PAUSE.0;
        while let Some(stream) = connections.next().await {
            let began = Instant::now();
            let (_, epoch) = stream.epochs();
            let fence = self
                .presence
                .arrived(self.index, epoch, wall_milliseconds());
            log::info!("{}: the guest is there, fence {fence}", self.own.name);
            let reason = self.serve(stream, fence).await;
            self.presence.left(self.index, wall_milliseconds());
            let reason: String = reason.chars().take(REASON_MAX).collect();
            log::info!(
                "{}: the guest is gone: {reason} ({} damaged frames so far)",
                self.own.name,
                connections.damaged()
            );
            pause = if began.elapsed() < SHORT {
                (pause * 2).min(PAUSE.1)
            } else {
                PAUSE.0
            };
            sleep(pause).await;
        }
    }

    /// Serves one connection; why it ended.
    async fn serve(&self, stream: Stream, fence: u64) -> String {
        let ended = stream.ended();
        let service = service_fn(|request| {
            let carrier = Arc::clone(&self.carrier);
            async move { carrier.carry(fence, request).await }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.config.limits.streams)
            .max_header_list_size(HEAD_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            biased;
            end = ended => end.to_string(),
            outcome = connection => match outcome {
                Ok(()) => "it has ended HTTP".to_owned(),
                Err(error) => chain(&error),
            },
        }
    }
}
