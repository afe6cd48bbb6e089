//! The client of a backend, for the command line, the controller and tests.
//!
//! *Promises*: one connection a request, or all requests on a [`Link`]; an answer is whole or
//! an error; waiting is bounded by [`WAIT_MAX`] without progress.
//! *Refuses*: answers that are not of the model.
//! *Caller's duty*: run inside a tokio runtime with I/O and time enabled. A request
//! without an answer may have been carried out.
//! *Standard*: RFC 8040, RFC 9112, RFC 9113.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::epoch::{OpenEpochInput, OpenEpochOutput};
use super::error::{ErrorBody, ErrorEntry};
use super::events::RawEvent;
use super::link::{Link, LinkError};
use super::offload::{OffloadInput, OffloadOutput};
use super::path::{OPERATIONS, Resource, stream_path};
use super::reload::ReloadOutput;
use super::reprove::{ReproveInput, ReproveOutput};
use super::session::SessionKey;
use super::shield::{ShieldInput, ShieldOutput, Shields, UnshieldInput, UnshieldOutput};
use super::sse::{self, Parser, TooLong};
use super::state::{Ports, SessionReport, Sessions, Statistics, Summary};
use super::sync::{SyncInput, SyncOutput};
use super::wire::{Input, MEDIA_TYPE, Output};
use super::withdraw::{WithdrawInput, WithdrawOutput};

/// Longest wait for the backend to move on.
pub const WAIT_MAX: Duration = Duration::from_secs(15);

/// Longest silence of a stream of events: it tells that it lives far more often.
const SILENCE_MAX: Duration = Duration::from_secs(4 * sse::KEEP_ALIVE.as_secs());

/// Why there is no answer, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such socket.
    #[error("there is no control socket {}: is `shunt backend` running, and with this socket?", .0.display())]
    NoSocket(PathBuf),
    /// Nobody listens there.
    #[error("nobody answers at {}: `shunt backend` has ended; start it again", .0.display())]
    Dead(PathBuf),
    /// The user may not connect.
    #[error("you may not use {}: become a member of the group that owns it, or root", .0.display())]
    Denied(PathBuf),
    /// Connecting failed otherwise.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The exchange broke.
    #[error("the exchange with the backend broke; the request may have been carried out")]
    Broken(#[from] hyper::Error),
    /// The link failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Nothing came for too long.
    #[error("the backend took longer than {} s; the request may have been carried out", .0.as_secs())]
    Timeout(Duration),
    /// A stream's event has no end.
    #[error("the stream of events is broken")]
    Stream(#[from] TooLong),
    /// It said no.
    #[error("{}", describe(errors, *status))]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        errors: Vec<ErrorEntry>,
    },
    /// The answer is not of the model.
    #[error("the backend's answer is not understood: are both of the same version?")]
    Unreadable(#[from] serde_json::Error),
    /// The request cannot be put into HTTP.
    #[error("the request cannot be written")]
    Unwritable(#[from] axum::http::Error),
}

fn describe(errors: &[ErrorEntry], status: StatusCode) -> String {
    let texts: Vec<String> = errors
        .iter()
        .map(|error| match &error.error_path {
            Some(path) => format!("{path}: {}", error.error_message),
            None => error.error_message.clone(),
        })
        .collect();
    if texts.is_empty() {
        format!("the backend refused with {status}")
    } else {
        texts.join("; ")
    }
}

/// A client of one backend.
#[derive(Clone, Debug)]
pub struct Client {
    way: Way,
}

/// How it is reached.
#[derive(Clone, Debug)]
enum Way {
    /// Its socket, by a connection for each request.
    Socket(PathBuf),
    Link(Arc<Link>),
}

impl Client {
    /// A client of `socket`. Nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self {
            way: Way::Socket(socket.to_owned()),
        }
    }

    /// A client over `link`.
    pub fn over(link: Arc<Link>) -> Self {
        Self {
            way: Way::Link(link),
        }
    }

    /// Whether the backend has epochs and fences: those of the model of 2026-11-23 refuse to be
    /// told of them.
    pub async fn knows_epochs(&self) -> Result<bool, ClientError> {
        match &self.way {
            // Whoever asks a socket himself says what he means.
            Way::Socket(_) => Ok(true),
            Way::Link(link) => Ok(link.knows_epochs().await?),
        }
    }

    /// Begins an epoch: the element's sessions are withdrawn.
    pub async fn open_epoch(&self, input: OpenEpochInput) -> Result<OpenEpochOutput, ClientError> {
        self.call("open-epoch", input).await
    }

    /// A step of a sync.
    pub async fn sync(&self, input: SyncInput) -> Result<SyncOutput, ClientError> {
        self.call("sync", input).await
    }

    /// The notifications of `element` from now on.
    pub async fn events(&self, element: &str) -> Result<EventStream, ClientError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(stream_path(element))
            .header(header::ACCEPT, sse::MEDIA_TYPE)
            .body(Body::empty())?;
        let answer = match &self.way {
            Way::Socket(_) => self.send(request).await?,
            Way::Link(link) => {
                let sent = async { Ok(link.send_apart(request).await?) };
                Open::new(within(WAIT_MAX, sent).await?, None)
            }
        };
        if !answer.status.is_success() {
            return Err(answer.refusal().await);
        }
        Ok(EventStream {
            answer,
            parser: Parser::default(),
            found: VecDeque::new(),
        })
    }

    /// Offers sessions.
    ///
    /// # Errors
    /// See [`ClientError`], here and below. A refused entry is a result, not an error.
    pub async fn offload(&self, input: OffloadInput) -> Result<OffloadOutput, ClientError> {
        self.call("offload", input).await
    }

    /// Takes sessions back.
    pub async fn withdraw(&self, input: WithdrawInput) -> Result<WithdrawOutput, ClientError> {
        self.call("withdraw", input).await
    }

    /// Sends sessions back to be proved again.
    pub async fn reprove(&self, input: ReproveInput) -> Result<ReproveOutput, ClientError> {
        self.call("reprove", input).await
    }

    /// Has the configuration file read again. A change that failed is a result, not an error.
    pub async fn reload(&self) -> Result<ReloadOutput, ClientError> {
        self.invoke("reload", Body::empty()).await
    }

    /// What there is, in short.
    pub async fn summary(&self) -> Result<Summary, ClientError> {
        self.read(&Resource::Summary, "summary").await
    }

    /// All sessions of `element`.
    pub async fn sessions(&self, element: &str) -> Result<Sessions, ClientError> {
        let resource = Resource::Sessions(element.to_owned());
        self.read(&resource, "sessions").await
    }

    /// One session of `element`; `None` when it is not there.
    pub async fn session(
        &self,
        element: &str,
        key: &SessionKey,
    ) -> Result<Option<SessionReport>, ClientError> {
        let resource = Resource::Session(element.to_owned(), key.clone());
        let found: Result<Vec<SessionReport>, _> = self.read(&resource, "session").await;
        match found {
            Ok(found) => Ok(found.into_iter().next()),
            Err(ClientError::Refused { errors, .. })
                if errors
                    .iter()
                    .any(|error| error.error_app_tag.as_deref() == Some("unknown-session")) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The ports of `element`.
    pub async fn ports(&self, element: &str) -> Result<Ports, ClientError> {
        let resource = Resource::Ports(element.to_owned());
        self.read(&resource, "ports").await
    }

    /// The counters of `element`.
    pub async fn statistics(&self, element: &str) -> Result<Statistics, ClientError> {
        let resource = Resource::Statistics(element.to_owned());
        self.read(&resource, "statistics").await
    }

    /// Asks for shields.
    pub async fn shield(&self, input: ShieldInput) -> Result<ShieldOutput, ClientError> {
        self.call("shield", input).await
    }

    /// Ends shields.
    pub async fn unshield(&self, input: UnshieldInput) -> Result<UnshieldOutput, ClientError> {
        self.call("unshield", input).await
    }

    /// The shields of `element`.
    pub async fn shields(&self, element: &str) -> Result<Shields, ClientError> {
        let resource = Resource::Shields(element.to_owned());
        self.read(&resource, "shields").await
    }

    async fn call<I: Serialize, O: DeserializeOwned>(
        &self,
        rpc: &str,
        input: I,
    ) -> Result<O, ClientError> {
        let body = serde_json::to_vec(&Input { input })?;
        self.invoke(rpc, Body::from(body)).await
    }

    async fn invoke<O: DeserializeOwned>(&self, rpc: &str, body: Body) -> Result<O, ClientError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{OPERATIONS}shunt-offload:{rpc}"))
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .body(body)?;
        let answer = self.exchange(request).await?;
        let output: Output<O> = serde_json::from_slice(&answer)?;
        Ok(output.output)
    }

    async fn read<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        name: &str,
    ) -> Result<T, ClientError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(resource.path())
            .body(Body::empty())?;
        let answer = self.exchange(request).await?;
        let mut named: std::collections::HashMap<String, T> = serde_json::from_slice(&answer)?;
        named
            .remove(&format!("shunt-offload:{name}"))
            .ok_or_else(|| {
                let missing = format!("`shunt-offload:{name}` is missing");
                serde::de::Error::custom(missing)
            })
            .map_err(ClientError::Unreadable)
    }

    /// Sends one request and takes its whole answer.
    async fn exchange(&self, mut request: Request<Body>) -> Result<Bytes, ClientError> {
        let accept = axum::http::HeaderValue::from_static(MEDIA_TYPE);
        request.headers_mut().insert(header::ACCEPT, accept);
        let mut answer = self.send(request).await?;
        if answer.status.is_success() {
            answer.whole().await
        } else {
            Err(answer.refusal().await)
        }
    }

    /// Sends one request and takes the head of its answer.
    async fn send(&self, mut request: Request<Body>) -> Result<Open, ClientError> {
        let socket = match &self.way {
            Way::Socket(socket) => socket,
            Way::Link(link) => {
                let sent = async { Ok(link.send(request).await?) };
                return Ok(Open::new(within(WAIT_MAX, sent).await?, None));
            }
        };
        let host = axum::http::HeaderValue::from_static("shunt");
        request.headers_mut().insert(header::HOST, host);
        let stream = within(WAIT_MAX, connect(socket)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the exchange; what breaks it is told to the sender too.
        let carrier = Carrier(tokio::spawn(connection));
        let response = within(WAIT_MAX, async { Ok(sender.send_request(request).await?) }).await?;
        Ok(Open::new(response, Some(carrier)))
    }
}

async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(socket).await.map_err(|source| {
        let path = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::NoSocket(path),
            io::ErrorKind::ConnectionRefused => ClientError::Dead(path),
            io::ErrorKind::PermissionDenied => ClientError::Denied(path),
            _ => ClientError::Connect { path, source },
        }
    })
}

/// What carries a connection's bytes; ends when dropped.
struct Carrier<T>(JoinHandle<T>);

impl<T> Drop for Carrier<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer whose body comes yet.
struct Open {
    status: StatusCode,
    body: Incoming,
    /// Of a connection of its own.
    _carrier: Option<Carrier<hyper::Result<()>>>,
}

impl Open {
    fn new(response: Response<Incoming>, carrier: Option<Carrier<hyper::Result<()>>>) -> Self {
        Self {
            status: response.status(),
            body: response.into_body(),
            _carrier: carrier,
        }
    }

    /// The next bytes, and `None` after the last ones.
    async fn next(&mut self, wait: Duration) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = within(wait, async { Ok(self.body.frame().await.transpose()?) }).await?;
            match frame.map(hyper::body::Frame::into_data) {
                Some(Ok(data)) => return Ok(Some(data)),
                // Trailers, of which there are none.
                Some(Err(_)) => {}
                None => return Ok(None),
            }
        }
    }

    async fn whole(&mut self) -> Result<Bytes, ClientError> {
        let mut answer = Vec::new();
        while let Some(data) = self.next(WAIT_MAX).await? {
            answer.extend_from_slice(&data);
        }
        Ok(answer.into())
    }

    async fn refusal(mut self) -> ClientError {
        let answer = match self.whole().await {
            Ok(answer) => answer,
            Err(error) => return error,
        };
        let errors = serde_json::from_slice(&answer)
            .map(|body: ErrorBody| body.errors.error)
            .unwrap_or_default();
        ClientError::Refused {
            status: self.status,
            errors,
        }
    }
}

/// Notifications as they come.
pub struct EventStream {
    answer: Open,
    parser: Parser,
    found: VecDeque<RawEvent>,
}

impl EventStream {
    /// The next one; `None` when the backend has ended the stream.
    ///
    /// # Errors
    /// The stream broke, or nothing came for longer than a stream that lives is silent.
    pub async fn next(&mut self) -> Result<Option<RawEvent>, ClientError> {
        loop {
            if let Some(event) = self.found.pop_front() {
                return Ok(Some(event));
            }
            let Some(bytes) = self.answer.next(SILENCE_MAX).await? else {
                return Ok(None);
            };
            self.found.extend(self.parser.take(&bytes)?);
        }
    }
}

async fn within<T>(
    wait: Duration,
    step: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(wait, step)
        .await
        .unwrap_or(Err(ClientError::Timeout(wait)))
}
