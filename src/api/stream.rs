//! A long answer, made while it is sent.
//!
//! *Promises*: memory for a few pages whatever the table holds; what fails before the
//! first bytes becomes a proper error, what fails later breaks the transfer off, so
//! that a client never takes half an answer for a whole one.
//! *Refuses*: to wait for a client that takes nothing for [`SEND_TIMEOUT`].
//! *Caller's duty*: the texts around the sessions make valid JSON of them.
//! *Standard*: RFC 9112 section 7.1 (an incomplete chunked body is an error).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::control::Control;
use super::error::ApiError;
use super::read::selected;
use super::select::Selection;
use super::server::answer;

/// Sessions asked of the backend at a time.
const PAGE: usize = 256;
/// How long a client may take nothing.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A piece of an answer.
pub(super) enum Part {
    /// Text as it is.
    Text(String),
    /// What is wanted of each session of an element, with commas between.
    Sessions(String, Selection),
}

/// Begins an answer of `parts`.
pub(super) async fn start(control: Arc<dyn Control>, parts: Vec<Part>) -> Result<Body, ApiError> {
    let mut writer = Writer {
        control,
        parts: parts.into(),
        cursor: 0,
        at_first: true,
    };
    let first = writer.next().await?.unwrap_or_default();
    if writer.parts.is_empty() {
        return Ok(Body::from(first));
    }
    let (sender, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut chunk = Ok(first);
        loop {
            let broken = chunk.is_err();
            let sent = tokio::time::timeout(SEND_TIMEOUT, sender.send(chunk)).await;
            if broken || !matches!(sent, Ok(Ok(()))) {
                return;
            }
            chunk = match writer.next().await {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => {
                    // Said explicitly: a sender that vanishes is a broken transfer.
                    let _ = sender.send(Ok(Bytes::new())).await;
                    return;
                }
                Err(error) => Err(error),
            };
        }
    });
    Ok(Body::new(Chunks {
        chunks,
        is_done: false,
    }))
}

/// Makes the answer, a chunk at a time.
struct Writer {
    control: Arc<dyn Control>,
    parts: VecDeque<Part>,
    cursor: u64,
    at_first: bool,
}

impl Writer {
    /// The next bytes, never none: text up to and including a page of sessions.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let mut chunk = String::new();
        while let Some(part) = self.parts.front() {
            match part {
                Part::Text(text) => {
                    chunk.push_str(text);
                    self.parts.pop_front();
                }
                Part::Sessions(element, wanted) => {
                    let page = answer(self.control.sessions(element, self.cursor, PAGE)).await?;
                    for session in &page.sessions {
                        if !std::mem::take(&mut self.at_first) {
                            chunk.push(',');
                        }
                        chunk.push_str(&selected(session, wanted)?);
                    }
                    match page.next {
                        Some(cursor) => self.cursor = cursor,
                        None => {
                            self.parts.pop_front();
                            self.cursor = 0;
                            self.at_first = true;
                        }
                    }
                    if !chunk.is_empty() {
                        return Ok(Some(chunk.into()));
                    }
                }
            }
        }
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }
}

/// The receiving end, as a body. An empty chunk is its end.
struct Chunks {
    chunks: mpsc::Receiver<Result<Bytes, ApiError>>,
    is_done: bool,
}

/// Why a transfer was broken off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Failed(#[from] ApiError),
    #[error("the answer was broken off: its receiver takes nothing")]
    Stalled,
}

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.is_done {
            return Poll::Ready(None);
        }
        self.chunks.poll_recv(context).map(|received| {
            let frame = match received {
                Some(Ok(bytes)) if bytes.is_empty() => None,
                Some(Ok(bytes)) => return Some(Ok(Frame::data(bytes))),
                Some(Err(error)) => Some(Err(error.into())),
                None => Some(Err(Broken::Stalled)),
            };
            self.is_done = true;
            frame
        })
    }
}
