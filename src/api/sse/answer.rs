//! How a feed of notifications is answered.
//!
//! *Promises*: an answer carries the events of a feed until the feed or `until` ends, with a
//! comment every [`KEEP_ALIVE`] in which nothing came.
//! *Refuses*: to wait for a reader that takes nothing for [`STALL`]: the stream ends.
//! *Caller's duty*: an event's text has no line breaks.
//! *Standard*: as [`super`].

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{KEEP_ALIVE, MEDIA_TYPE};
use crate::api::error::ApiError;
use crate::api::events::{EventFeed, RawEvent};
use crate::api::server::{accepts, respond};

/// How long a reader may take nothing.
const STALL: Duration = Duration::from_secs(60);

/// Events that are written at a time.
const TOGETHER: usize = 32;
/// A sign of life.
pub(crate) const COMMENT: &[u8] = b": keep-alive\n\n";

/// Refuses a reader that does not take streams.
pub(crate) fn check_accept(headers: &HeaderMap) -> Result<(), ApiError> {
    accepts(headers, "text/*", MEDIA_TYPE)
}

/// An answer that carries `feed` until it, `until` or the reader ends. `stalled` is called where
/// the reader takes nothing: the connection is of no more use.
pub(crate) fn answer(
    feed: EventFeed,
    until: impl Future<Output = ()> + Send + 'static,
    stalled: impl FnOnce() + Send + 'static,
) -> Response {
    let (sender, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            outcome = pump(feed, &sender) => if outcome == Err(Stalled) { stalled() },
            () = until => {}
            () = sender.closed() => {}
        }
    });
    carry(Body::new(Chunks(chunks)))
}

/// An answer that carries the stream `body`.
pub(crate) fn carry(body: Body) -> Response {
    let mut response = respond(body);
    let kind = HeaderValue::from_static(MEDIA_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The reader took nothing for too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stalled;

/// Writes a feed, to its end or the reader's.
async fn pump(mut feed: EventFeed, chunks: &mpsc::Sender<Bytes>) -> Result<(), Stalled> {
    // That the stream is there is told before anything happens on it.
    let mut chunk = Bytes::from_static(COMMENT);
    loop {
        match timeout(STALL, chunks.send(chunk)).await {
            Ok(Ok(())) => {}
            Ok(Err(_gone)) => return Ok(()),
            Err(_) => return Err(Stalled),
        }
        let mut events = Vec::new();
        chunk = match timeout(KEEP_ALIVE, feed.recv_many(&mut events, TOGETHER)).await {
            Ok(0) => return Ok(()),
            Ok(_) => written(&events).into(),
            Err(_) => Bytes::from_static(COMMENT),
        };
    }
}

/// Events as they are written.
pub(crate) fn written(events: &[RawEvent]) -> String {
    let mut text = String::with_capacity(events.iter().map(|event| event.0.len() + 8).sum());
    for RawEvent(event) in events {
        text.push_str("data: ");
        text.push_str(event);
        text.push_str("\n\n");
    }
    text
}

/// The receiving end, as a body.
struct Chunks(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.0.poll_recv(context);
        chunk.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_tells_that_it_lives_and_a_stalled_reader_ends_it() {
        let (_events, feed) = mpsc::channel(1);
        let (sender, mut chunks) = mpsc::channel(1);
        let pump = tokio::spawn(async move { pump(feed, &sender).await });
        for _ in 0..3 {
            assert_eq!(chunks.recv().await.as_deref(), Some(COMMENT));
        }
        assert_eq!(pump.await.unwrap(), Err(Stalled));
    }
}
