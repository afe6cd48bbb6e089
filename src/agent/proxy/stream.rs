//! Notifications for programs in the guest.
//!
//! The host has one stream for the element, and a newer one takes the place of the older. The
//! agent has it; here it tells others what comes.
//!
//! *Promises*: a stream as the host's own: it begins with `events-lost`, since nobody knows what
//! was before, and ends where something may be missing.
//! *Refuses*: to wait for a reader that is more than some hundred notifications behind: the
//! stream ends.
//! *Caller's duty*: none. *Standard*: RFC 8040 section 6, "Server-sent events" of the HTML
//! standard.

use std::time::SystemTime;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, header};
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tokio::time::timeout;

use crate::api::events::{Event, EventsLost, RawEvent};
use crate::api::sse::{KEEP_ALIVE, MEDIA_TYPE};

/// A sign of life.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// The stream that `path` asks for: the name of an element, empty where none is named.
pub(super) fn asked(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/restconf/streams/shunt-offload/")?;
    match rest.strip_suffix("json")? {
        "" => Some(""),
        named => named.strip_prefix("element=")?.strip_suffix('/'),
    }
}

/// The answer that carries `events` of `element`, as long as it has `seat`.
pub(super) fn answer(
    element: String,
    events: broadcast::Receiver<Option<RawEvent>>,
    seat: OwnedSemaphorePermit,
) -> Response<Body> {
    let (sender, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = pump(element, events, &sender) => {}
            // The reader has gone.
            () = sender.closed() => {}
        }
        drop(seat);
    });
    let mut response = Response::new(Body::new(Chunks(chunks)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Writes what comes, to the first gap.
async fn pump(
    element: String,
    mut events: broadcast::Receiver<Option<RawEvent>>,
    chunks: &mpsc::Sender<Bytes>,
) {
    let lost = Event::EventsLost(EventsLost { element, count: 0 });
    let Ok(first) = RawEvent::new(wall_clock(), lost) else {
        return;
    };
    // As the host does: that the stream is there is told first.
    let mut chunk = [COMMENT, &written(&first)].concat().into();
    while chunks.send(chunk).await.is_ok() {
        chunk = match timeout(KEEP_ALIVE, events.recv()).await {
            Ok(Ok(Some(event))) => written(&event),
            // A gap, too far behind, or the agent ends.
            Ok(Ok(None) | Err(_)) => return,
            Err(_) => Bytes::from_static(COMMENT),
        };
    }
}

/// An event as it is written.
fn written(RawEvent(event): &RawEvent) -> Bytes {
    format!("data: {event}\n\n").into()
}

#[expect(
    clippy::disallowed_methods,
    reason = "what a notification tells people"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The receiving end, as a body.
struct Chunks(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let chunk = self.0.poll_recv(context);
        chunk.map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_asked_for_with_a_name_or_without() {
        for (path, element) in [
            ("/restconf/streams/shunt-offload/json", Some("")),
            (
                "/restconf/streams/shunt-offload/element=r-1/json",
                Some("r-1"),
            ),
            ("/restconf/streams/shunt-offload", None),
            ("/restconf/streams/shunt-offload/xjson", None),
            ("/restconf/streams/shunt-offload/element=r1json", None),
            ("/restconf/data", None),
        ] {
            assert_eq!(asked(path), element, "{path}");
        }
    }

    #[tokio::test]
    async fn a_stream_begins_with_a_loss_and_ends_at_a_gap() {
        let (sender, events) = broadcast::channel(4);
        let seats = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let seat = seats.clone().try_acquire_owned().unwrap();
        let answer = answer("r1".to_owned(), events, seat);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
        sender.send(Some(RawEvent("{}".to_owned()))).unwrap();
        sender.send(None).unwrap();
        let body = axum::body::to_bytes(answer.into_body(), 4_096)
            .await
            .unwrap();
        let mut parser = crate::api::sse::Parser::default();
        let found = parser.take(&body).unwrap();
        assert_eq!(found.len(), 2);
        let lost = found[0].read().unwrap().event;
        let expected = EventsLost {
            element: "r1".to_owned(),
            count: 0,
        };
        assert_eq!(lost, Event::EventsLost(expected));
        assert_eq!(found[1].0, "{}");
        // Its seat is another's again.
        let _seat = seats.acquire().await.unwrap();
    }
}
