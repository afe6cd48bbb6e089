//! A connection of a server, and when it ends.
//!
//! *Promises*: an ordinary connection of the control socket has one of the listener's seats and ends after
//! [`LIFE`], with the request it is at; one that carries a stream of events gives its seat back
//! and stays as long as the stream.
//! *Refuses*: more than [`STREAMS_MAX`] streams at a time (503).
//! *Caller's duty*: a stream's answer is the last on its connection ([`Connection::stream`] says
//! so in its head); over HTTP/2 other requests may share it, and its end.
//! *Standard*: RFC 9112 section 9.6 (closing), RFC 9113.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::{Extension, Router};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::error::{ApiError, ErrorTag};
use super::events::EventFeed;
use super::{listen, preface, sse};

/// Streams served at a time.
pub const STREAMS_MAX: usize = 1024;
/// After this a connection ends with the request it is at.
const LIFE: Duration = Duration::from_secs(60);
/// How much longer that request may take.
const GRACE: Duration = Duration::from_secs(60);

/// What a connection is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    Requests,
    Stream,
    /// A stream whose reader takes nothing.
    Stalled,
}

/// Bounds that all connections share.
#[derive(Clone)]
pub(super) struct Bounds {
    /// Places for streams.
    streams: Arc<Semaphore>,
    /// Becomes true when the server ends.
    is_ending: watch::Receiver<bool>,
}

impl Bounds {
    /// Bounds for a server that ends when `is_ending` is true.
    pub(super) fn new(is_ending: watch::Receiver<bool>) -> Self {
        Self {
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            is_ending,
        }
    }
}

/// A connection, as requests on it see it.
pub(super) struct Connection {
    bounds: Bounds,
    used: watch::Sender<Use>,
}

impl Connection {
    /// A new one, and what it is used for.
    pub(super) fn new(bounds: Bounds) -> (Arc<Self>, watch::Receiver<Use>) {
        let (used, uses) = watch::channel(Use::Requests);
        (Arc::new(Self { bounds, used }), uses)
    }

    /// The answer that carries `feed`, from now on the connection's only use.
    ///
    /// # Errors
    /// There are too many streams.
    pub(super) fn stream(self: &Arc<Self>, feed: EventFeed) -> Result<Response, ApiError> {
        let place = Arc::clone(&self.bounds.streams).try_acquire_owned();
        let place = place.map_err(|_none| too_many())?;
        self.used.send_replace(Use::Stream);
        let mut is_ending = self.bounds.is_ending.clone();
        let until = async move {
            let _ended = is_ending.wait_for(|ending| *ending).await;
            drop(place);
        };
        let own = Arc::clone(self);
        let stalled = move || {
            own.used.send_replace(Use::Stalled);
        };
        let mut response = sse::answer(feed, until, stalled);
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        Ok(response)
    }
}

fn too_many() -> ApiError {
    ApiError::protocol(
        StatusCode::SERVICE_UNAVAILABLE,
        ErrorTag::ResourceDenied,
        format!("{STREAMS_MAX} streams are open, which is the most: close some"),
    )
}

/// One connection, to its end.
pub(super) async fn converse(
    stream: UnixStream,
    app: Router,
    bounds: Bounds,
    seat: OwnedSemaphorePermit,
) {
    let mut is_ending = bounds.is_ending.clone();
    let (is_two, stream) = match preface::look(stream).await {
        Ok(found) => found,
        Err(error) => return log::debug!("a control connection did not begin: {error}"),
    };
    let (own, mut uses) = Connection::new(bounds);
    let app = app.layer(Extension(own));
    let builder = listen::http(is_two);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = std::pin::pin!(connection);
    let mut finished = tokio::select! {
        result = connection.as_mut() => Some(result),
        () = until(&mut is_ending, |ending| *ending) => None,
        () = tokio::time::sleep(LIFE) => None,
        () = until(&mut uses, |used| *used != Use::Requests) => None,
    };
    if finished.is_none() && *uses.borrow() != Use::Requests {
        drop(seat);
        finished = tokio::select! {
            result = connection.as_mut() => Some(result),
            () = until(&mut is_ending, |ending| *ending) => None,
            () = until(&mut uses, |used| *used == Use::Stalled) => {
                log::debug!("a stream was cut: its reader takes nothing");
                return;
            }
        };
    }
    let result = match finished {
        Some(result) => Ok(result),
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await
        }
    };
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("a control connection broke: {error}"),
        Err(_) => log::debug!("a control connection was cut: it took too long"),
    }
}

/// Waits until what is watched is so; for ever if nobody changes it any more.
async fn until<T>(watched: &mut watch::Receiver<T>, is_so: impl Fn(&T) -> bool) {
    if watched.wait_for(is_so).await.is_err() {
        std::future::pending().await
    }
}
