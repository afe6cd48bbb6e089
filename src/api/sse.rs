//! Server-sent events: how notifications stand on a connection that stays open.
//!
//! *Promises*: an answer carries the events of a feed until the feed or `until` ends, with a
//! comment every [`KEEP_ALIVE`] in which nothing came; [`Parser`] finds the same events in
//! whatever pieces the bytes come.
//! *Refuses*: to wait for a reader that takes nothing for [`STALL`]: the stream ends. An event
//! beyond [`EVENT_MAX`] when reading.
//! *Caller's duty*: an event's text has no line breaks.
//! *Standard*: RFC 8040 section 6.3; "Server-sent events" of the HTML standard, as far as its
//! `data` fields and comments.

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

use super::error::ApiError;
use super::events::{EventFeed, RawEvent};
use super::server::{accepts, respond};

/// The media type of a stream.
pub const MEDIA_TYPE: &str = "text/event-stream";
/// From one sign of life to the next at the latest.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a reader may take nothing.
pub const STALL: Duration = Duration::from_secs(60);
/// The longest event that is read, bytes.
pub const EVENT_MAX: usize = 4 << 20;

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

/// An event is longer than [`EVENT_MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an event of more than {EVENT_MAX} bytes")]
pub struct TooLong;

/// Finds events in bytes.
#[derive(Debug, Default)]
pub struct Parser {
    /// A line that has not ended.
    line: Vec<u8>,
    /// Data of an event that has not ended.
    data: Option<String>,
}

impl Parser {
    /// Takes some bytes; gives the events that end there.
    ///
    /// # Errors
    /// An event is too long.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Vec<RawEvent>, TooLong> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.hold(&rest[..end])?;
            events.extend(self.end_line());
            rest = &rest[end + 1..];
        }
        self.hold(rest)?;
        Ok(events)
    }

    fn hold(&mut self, part: &[u8]) -> Result<(), TooLong> {
        let known = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if known + part.len() > EVENT_MAX {
            return Err(TooLong);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self) -> Option<RawEvent> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        if line.is_empty() {
            return self.data.take().map(RawEvent);
        }
        // Comments and other fields say nothing here.
        if let Some(data) = line.strip_prefix("data:") {
            let data = data.strip_prefix(' ').unwrap_or(data);
            match &mut self.data {
                // JSON: a line break between two lines is white space.
                Some(known) => {
                    known.push(' ');
                    known.push_str(data);
                }
                None => self.data = Some(data.to_owned()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn events_are_found_in_whatever_pieces_they_come(
            texts in proptest::collection::vec("[ -~äß]{1,40}", 0..8),
            pieces in proptest::collection::vec(1usize..20, 1..60),
        ) {
            let events: Vec<_> = texts.into_iter().map(RawEvent).collect();
            let mut stream = COMMENT.to_vec();
            for event in &events {
                stream.extend(written(std::slice::from_ref(event)).as_bytes());
                stream.extend(COMMENT);
            }
            let (mut parser, mut found) = (Parser::default(), Vec::new());
            let mut rest = stream.as_slice();
            for piece in pieces.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(piece.min(rest.len()));
                found.extend(parser.take(now).unwrap());
                rest = later;
            }
            prop_assert_eq!(found, events);
        }
    }

    #[test]
    fn data_of_several_lines_and_carriage_returns_are_one_event() {
        let text = b"id: 7\r\nevent: x\r\ndata: {\"a\":\r\ndata:1}\r\n\r\n";
        let events = Parser::default().take(text).unwrap();
        assert_eq!(events, [RawEvent("{\"a\": 1}".to_owned())]);
    }

    #[test]
    fn an_event_without_end_is_not_held_for_ever() {
        let mut parser = Parser::default();
        let part = vec![b'x'; EVENT_MAX / 2];
        assert_eq!(parser.take(&part), Ok(Vec::new()));
        assert_eq!(parser.take(&part), Ok(Vec::new()));
        assert_eq!(parser.take(b"x"), Err(TooLong));
    }

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
