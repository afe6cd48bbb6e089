//! A connection to a backend that is kept, and where backends are.
//!
//! *Promises*: one connection of HTTP/2 for all requests, made when it is first needed and
//! again when it broke or its certificates are old. While the backend is away requests are
//! refused at once, but for one attempt every `HOLD_OFF`. A request is sent once; it is tried
//! on a second connection only where it was not on the first.
//! A backend of the model's revision 2026-11-23 speaks HTTP/1.1 only, on a socket: it is asked for its
//! revision first, and gets a connection for each request.
//! *Refuses*: backends whose certificate is not believed, or does not name their host.
//! *Caller's duty*: what broke after it was sent is the sender's to judge.
//! *Standard*: RFC 9113; over TLS by ALPN, on a unix socket with prior knowledge.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Deserializer, de};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::previous::{ask_single, is_previous};

/// A backend of that is looked at again after so long: it may have been brought up to date.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// After an attempt failed, how long no other is made.
const HOLD_OFF: Duration = Duration::from_millis(250);
/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// An idle connection is tried so often, …
const PING_EVERY: Duration = Duration::from_secs(10);
/// … and given up when no answer came for so long.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer that may be on their way.
const WINDOW: u32 = 1 << 20;
/// The longest path of a unix socket: `sun_path` has 108 bytes with the final NUL.
const PATH_MAX: usize = 107;
/// The longest name of a host, and of its parts (RFC 1035 section 2.3.4).
const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Where a backend is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Address {
    /// Its control socket, on this machine.
    Socket(PathBuf),
    /// Its listener with mutual TLS.
    Https {
        /// A name, or an IPv4 address, as the certificate says it.
        host: String,
        /// The port.
        port: u16,
    },
}

/// A text that is no address of a backend.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{0}` is no backend: write a path such as /run/shunt/backend.sock, or https://HOST:PORT")]
pub struct InvalidAddress(String);

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let read = || {
            if text.starts_with('/') {
                let is_sound = (2..=PATH_MAX).contains(&text.len()) && !text.contains(is_break);
                return is_sound.then(|| Self::Socket(text.into()));
            }
            let (host, port) = text.strip_prefix("https://")?.rsplit_once(':')?;
            let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port
                .parse()
                .ok()
                .filter(|number| is_number && *number > 0 && !port.starts_with('0'))?;
            is_host(host).then(|| Self::Https {
                host: host.to_owned(),
                port,
            })
        };
        read().ok_or_else(|| InvalidAddress(text.chars().take(64).collect()))
    }
}

/// What no YANG string has, and what no path in a line should.
fn is_break(c: char) -> bool {
    c.is_control() && c != '\t'
}

fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=LABEL_MAX).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= HOST_MAX && text.split('.').all(is_label)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Why a request was not sent, or not answered.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// An attempt failed just now.
    #[error("the backend {0} is away")]
    Away(Address),
    /// Nobody is there.
    #[error("cannot connect to the backend {address}")]
    Connect {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// It is not who it should be, or does not believe us.
    #[error("TLS with the backend {address}")]
    Tls {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// There are no certificates for it.
    #[error("there are no certificates for the backend {0}: add [backends] to the configuration")]
    NoCertificates(Address),
    /// It took too long.
    #[error("the backend {0} does not take connections")]
    Slow(Address),
    /// The exchange broke; the request may have been carried out.
    #[error("the exchange with the backend {address} broke; the request may have been carried out")]
    Broken {
        /// Where.
        address: Address,
        /// Why.
        source: hyper::Error,
    },
}

/// What connections over TLS are made with; new where certificates are rotated.
pub type Credentials = watch::Receiver<Arc<ClientConfig>>;

/// See the module.
#[derive(Debug)]
pub struct Link {
    address: Address,
    credentials: Option<Credentials>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Idle,
    Connected(Connection),
    /// Its backend is of the previous revision; looked at again at this time.
    Previous(Instant),
    /// No attempt before this time.
    Away(Instant),
}

/// How a request gets to the backend.
enum Way {
    Kept(Connection),
    /// By a connection of HTTP/1.1 each, to this socket.
    Single(PathBuf),
}

/// A connection, and what it was made with.
#[derive(Clone, Debug)]
struct Connection {
    sender: SendRequest<Body>,
    made_with: Option<Arc<ClientConfig>>,
    /// Tells it from others.
    identity: Arc<()>,
}

impl Link {
    /// A link to `address`. Nothing is opened yet.
    pub fn new(address: Address, credentials: Option<Credentials>) -> Self {
        Self {
            address,
            credentials,
            state: Mutex::new(State::Idle),
        }
    }

    /// Sends a request whose URI is a path.
    ///
    /// # Errors
    /// See [`LinkError`]; all but [`LinkError::Broken`] mean that it was not sent.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, LinkError> {
        let mut connection = match self.way().await? {
            Way::Kept(connection) => connection,
            Way::Single(socket) => return self.send_single(&socket, request).await,
        };
        let sent = connection.sender.try_send_request(self.addressed(request));
        let mut error = match sent.await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        // The connection had ended: its backend restarted, or gives it a time.
        let Some(unsent) = error.take_message() else {
            return Err(self.broken(error.into_error()));
        };
        self.forget(&connection).await;
        match self.way().await? {
            Way::Kept(mut connection) => {
                let sent = connection.sender.send_request(unsent).await;
                sent.map_err(|error| self.broken(error))
            }
            Way::Single(socket) => self.send_single(&socket, unsent).await,
        }
    }

    /// Whether the backend is of a revision that has epochs and fences.
    ///
    /// # Errors
    /// It is not there.
    pub async fn knows_epochs(&self) -> Result<bool, LinkError> {
        let way = self.way().await?;
        Ok(matches!(way, Way::Kept(_)))
    }

    /// Sends one over a connection of its own: for streams, which would take the places of
    /// requests.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub async fn send_apart(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, LinkError> {
        match self.connect_in_time().await? {
            Way::Kept(mut connection) => {
                let sent = connection.sender.send_request(self.addressed(request));
                sent.await.map_err(|error| self.broken(error))
            }
            Way::Single(socket) => self.send_single(&socket, request).await,
        }
    }

    /// Sends one to a backend of the previous revision.
    async fn send_single(
        &self,
        socket: &Path,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, LinkError> {
        let connect = |source| LinkError::Connect {
            address: self.address.clone(),
            source,
        };
        let stream = UnixStream::connect(socket).await.map_err(connect)?;
        ask_single(stream, request)
            .await
            .map_err(|error| self.broken(error))
    }

    fn broken(&self, source: hyper::Error) -> LinkError {
        LinkError::Broken {
            address: self.address.clone(),
            source,
        }
    }

    /// The request with the URI that HTTP/2 wants.
    fn addressed(&self, mut request: Request<Body>) -> Request<Body> {
        let (scheme, authority) = match &self.address {
            Address::Socket(_) => (Scheme::HTTP, None),
            Address::Https { host, port } => (Scheme::HTTPS, Some(format!("{host}:{port}"))),
        };
        let authority = authority.and_then(|text| text.parse().ok());
        let path = request.uri().path_and_query().cloned();
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(authority.unwrap_or_else(|| Authority::from_static("shunt")))
            .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
            .build();
        // Its parts are sound, and so is it.
        if let Ok(uri) = uri {
            *request.uri_mut() = uri;
        }
        request.headers_mut().remove(header::HOST);
        request
    }

    /// The present connection, or a new one.
    async fn way(&self) -> Result<Way, LinkError> {
        let current = self.current_credentials();
        // Held while connecting: whoever comes meanwhile waits for the same attempt.
        let mut state = self.state.lock().await;
        match &*state {
            State::Connected(connection)
                if !connection.sender.is_closed() && is_same(&connection.made_with, &current) =>
            {
                return Ok(Way::Kept(connection.clone()));
            }
            State::Previous(until) if Instant::now() < *until => {
                if let Address::Socket(socket) = &self.address {
                    return Ok(Way::Single(socket.clone()));
                }
            }
            State::Away(until) if Instant::now() < *until => {
                return Err(LinkError::Away(self.address.clone()));
            }
            _ => {}
        }
        match self.connect_in_time().await {
            Ok(way) => {
                *state = match &way {
                    Way::Kept(connection) => State::Connected(connection.clone()),
                    Way::Single(_) => State::Previous(Instant::now() + LOOK_AGAIN),
                };
                Ok(way)
            }
            Err(error) => {
                *state = State::Away(Instant::now() + HOLD_OFF);
                Err(error)
            }
        }
    }

    /// Makes the next request's connection another one.
    async fn forget(&self, ended: &Connection) {
        let mut state = self.state.lock().await;
        if let State::Connected(present) = &*state
            && Arc::ptr_eq(&present.identity, &ended.identity)
        {
            *state = State::Idle;
        }
    }

    fn current_credentials(&self) -> Option<Arc<ClientConfig>> {
        match (&self.address, &self.credentials) {
            (Address::Https { .. }, Some(current)) => Some(current.borrow().clone()),
            _ => None,
        }
    }

    async fn connect_in_time(&self) -> Result<Way, LinkError> {
        timeout(CONNECT_MAX, self.connect())
            .await
            .unwrap_or_else(|_| Err(LinkError::Slow(self.address.clone())))
    }

    async fn connect(&self) -> Result<Way, LinkError> {
        let failed = |source| LinkError::Connect {
            address: self.address.clone(),
            source,
        };
        let made_with = self.current_credentials();
        let sender = match (&self.address, &made_with) {
            (Address::Socket(path), _) => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                if is_previous(stream).await {
                    return Ok(Way::Single(path.clone()));
                }
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                shake_hands(stream).await
            }
            (Address::Https { host, port }, Some(tls)) => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                let of_tls = |source| LinkError::Tls {
                    address: self.address.clone(),
                    source,
                };
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| of_tls(io::Error::other(error)))?;
                let connector = TlsConnector::from(tls.clone());
                let stream = connector.connect(name, stream).await.map_err(of_tls)?;
                shake_hands(stream).await
            }
            (Address::Https { .. }, None) => {
                return Err(LinkError::NoCertificates(self.address.clone()));
            }
        };
        let sender = sender.map_err(|error| self.broken(error))?;
        Ok(Way::Kept(Connection {
            sender,
            made_with,
            identity: Arc::new(()),
        }))
    }
}

fn is_same(one: &Option<Arc<ClientConfig>>, other: &Option<Arc<ClientConfig>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

async fn shake_hands<I>(stream: I) -> hyper::Result<SendRequest<Body>>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(TokioIo::new(stream))
        .await?;
    // It ends by itself, when it breaks or when its last sender is gone.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            log::debug!("a connection to a backend broke: {error}");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_an_https_origin_with_its_port() {
        for text in [
            "/b",
            "/run/shunt/backend.sock",
            "https://h1.example.net:8443",
            "https://192.0.2.1:1",
            "https://h:65535",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let long = format!("/{}", "b".repeat(PATH_MAX));
        for text in [
            "",
            "/",
            &long,
            "run/b",
            "/a\nb",
            "http://h:1",
            "https://h",
            "https://h:",
            "https://h:0",
            "https://h:01",
            "https://h:+1",
            "https://h:65536",
            "https://:1",
            "https://a..b:1",
            "https://-a:1",
            "https://a/b:1",
            "https://u@a:1",
            "https://a:1/",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
