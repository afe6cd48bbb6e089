//! Requests that are answered before their body was read.
//!
//! *Promises*: the rest of such a body is taken, at most [`BODY_MAX`] bytes in [`PATIENCE`],
//! before the answer goes out: over HTTP/2 a stream would be reset otherwise, and clients
//! (curl is one) take the reset for the answer.
//! *Refuses*: to wait longer; the stream is reset then.
//! *Caller's duty*: outermost of all layers.
//! *Standard*: RFC 9113 section 8.1.

#![expect(
    clippy::disallowed_types,
    reason = "lends a body for the time of a poll, to one task at a time; no worker takes it"
)]

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Frame, SizeHint};

use super::server::BODY_MAX;

/// How long is waited for what nobody reads.
const PATIENCE: Duration = Duration::from_secs(1);

/// The layer.
pub(super) async fn drained(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let lent = Lent(Arc::new(Mutex::new(body)));
    let request = Request::from_parts(head, Body::new(lent.clone()));
    let response = next.run(request).await;
    let rest = Limited::new(Body::new(lent), BODY_MAX);
    // Too much, too slow or broken: the stream is reset, as it would have been.
    let _given_up = tokio::time::timeout(PATIENCE, take(rest)).await;
    response
}

async fn take(mut rest: Limited<Body>) {
    while let Some(Ok(_)) = rest.frame().await {}
}

/// A body that comes back when it was not read to its end.
#[derive(Clone)]
struct Lent(Arc<Mutex<Body>>);

impl Lent {
    fn body(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.body()).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}
