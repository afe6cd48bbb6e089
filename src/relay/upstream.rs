//! An element's connection to the upstream.
//!
//! *Promises*: one connection, made when it is first needed and again when it broke. While
//! the upstream is away requests are refused at once, but for one attempt every
//! [`HOLD_OFF`]. A request is sent once: what broke after that is for its sender to judge.
//! *Refuses*: anything but HTTP/2; an upstream whose certificate is not believed.
//! *Caller's duty*: tokens are signed with the credentials of the connection that carries
//! them ([`Connection::credentials`]).
//! *Standard*: RFC 9113; over TLS by ALPN, on this host with prior knowledge.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::uri::{Authority, Scheme};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::body::Guarded;
use super::config::{UpstreamConfig, Url};
use super::credentials::{Credentials, Way};
use super::refusal::Refusal;

/// After an attempt failed, how long no other is made.
const HOLD_OFF: Duration = Duration::from_millis(250);
/// An idle connection is tried so often, …
const PING_EVERY: Duration = Duration::from_secs(10);
/// … and given up when no answer came for so long.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer's body, and of all answers' together, that wait in the relay.
const STREAM_WINDOW: u32 = 64 * 1_024;
const CONNECTION_WINDOW: u32 = 256 * 1_024;
/// Bytes of an answer's head that are taken.
const HEAD_MAX: u32 = 32 * 1_024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    #[error("no HTTP/2: {0}")]
    Http(hyper::Error),
    #[error("not within the time")]
    Slow,
    #[error("the name in its URL cannot be in a certificate")]
    Name,
}

/// The upstream as one element sees it.
pub struct Upstream {
    config: UpstreamConfig,
    credentials: watch::Receiver<Arc<Credentials>>,
    state: Mutex<State>,
    /// The last attempt failed.
    is_away: AtomicBool,
}

enum State {
    Idle,
    Connected(Connection),
    /// No attempt before this time.
    Away(Instant),
}

/// A connection and what it was made with.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Guarded>,
    /// Whose certificate the upstream sees on it.
    pub credentials: Arc<Credentials>,
}

impl Upstream {
    /// Nothing is connected yet. `credentials` may change; then a new connection is made.
    pub fn new(config: UpstreamConfig, credentials: watch::Receiver<Arc<Credentials>>) -> Self {
        Self {
            config,
            credentials,
            state: Mutex::new(State::Idle),
            is_away: AtomicBool::new(false),
        }
    }

    /// The scheme and authority of requests.
    pub fn address(&self) -> Result<(Scheme, Authority), Refusal> {
        match &self.config.url {
            Url::Https { host, port } => {
                let host = if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{host}:{port}")
                };
                let authority = host.parse().map_err(|_| Refusal::Away)?;
                Ok((Scheme::HTTPS, authority))
            }
            Url::Unix(_) | Url::Inside => Ok((Scheme::HTTP, Authority::from_static("localhost"))),
        }
    }

    /// The present connection, or a new one.
    ///
    /// # Errors
    /// [`Refusal::Away`].
    pub async fn connection(&self) -> Result<Connection, Refusal> {
        // Held while connecting: whoever comes meanwhile waits for the same attempt, unless
        // the one before has failed.
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(_) if self.is_away.load(Ordering::Relaxed) => return Err(Refusal::Away),
            Err(_) => self.state.lock().await,
        };
        let credentials = Arc::clone(&self.credentials.borrow());
        match &*state {
            State::Connected(connection)
                if !connection.sender.is_closed()
                    && Arc::ptr_eq(&connection.credentials, &credentials) =>
            {
                return Ok(connection.clone());
            }
            State::Away(until) if Instant::now() < *until => return Err(Refusal::Away),
            _ => {}
        }
        let limit = Duration::from_millis(u64::from(self.config.connect_timeout_ms));
        let attempt = timeout(limit, self.connect(credentials)).await;
        match attempt.unwrap_or(Err(ConnectError::Slow)) {
            Ok(connection) => {
                self.is_away.store(false, Ordering::Relaxed);
                *state = State::Connected(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                if !self.is_away.swap(true, Ordering::Relaxed) {
                    log::warn!("upstream {}: {}", self.name(), chain(&error));
                }
                *state = State::Away(Instant::now() + HOLD_OFF);
                Err(Refusal::Away)
            }
        }
    }

    async fn connect(&self, credentials: Arc<Credentials>) -> Result<Connection, ConnectError> {
        let sender = match (&self.config.url, &credentials.way) {
            (Url::Unix(path), _) => {
                let io = UnixStream::connect(path).await;
                shake_hands(io.map_err(ConnectError::Connect)?).await?
            }
            (Url::Https { host, port }, Way::Tls(tls)) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::Name)?;
                let io = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(ConnectError::Connect)?;
                io.set_nodelay(true).map_err(ConnectError::Connect)?;
                let connector = TlsConnector::from(Arc::clone(tls));
                let io = connector.connect(name, io).await;
                shake_hands(io.map_err(ConnectError::Tls)?).await?
            }
            (Url::Inside, Way::Door(door)) => {
                let io = door.connect().await;
                shake_hands(io.map_err(ConnectError::Connect)?).await?
            }
            // The configuration's check: https has authorities, so it has TLS.
            (Url::Https { .. } | Url::Inside, _) => return Err(ConnectError::Name),
        };
        log::info!("upstream {}: connected", self.name());
        Ok(Connection {
            sender,
            credentials,
        })
    }

    fn name(&self) -> String {
        match &self.config.url {
            Url::Https { host, port } => format!("{host}:{port}"),
            Url::Unix(path) => path.display().to_string(),
            Url::Inside => "in this process".to_owned(),
        }
    }
}

impl Connection {
    /// Sends a request, once.
    ///
    /// # Errors
    /// [`Refusal::Away`] if it was not sent, [`Refusal::Failed`] if it may have been.
    pub async fn send(mut self, request: Request<Guarded>) -> Result<Response<Incoming>, Refusal> {
        self.sender.ready().await.map_err(|_| Refusal::Away)?;
        self.sender.send_request(request).await.map_err(|error| {
            log::debug!("upstream: {}", chain(&error));
            if error.is_canceled() {
                Refusal::Away
            } else {
                Refusal::Failed
            }
        })
    }
}

async fn shake_hands<I>(io: I) -> Result<SendRequest<Guarded>, ConnectError>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .max_header_list_size(HEAD_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(io))
        .await
        .map_err(ConnectError::Http)?;
    // It ends by itself, when it breaks or when its last sender is gone.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            log::info!("upstream: the connection broke: {}", chain(&error));
        }
    });
    Ok(sender)
}

/// An error and what caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
