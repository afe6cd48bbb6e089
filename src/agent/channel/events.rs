//! The stream of notifications, kept open.
//!
//! The host ends a stream in order when its token does, within a minute, and the next stream of the
//! same connection goes on where it ended. A stream that cannot, begins with `events-lost`. What
//! was on its way when a stream broke off is lost, and that only this end knows.
//!
//! *Promises*: notifications in order; [`FromHost::EventsLost`] where some may be missing.
//! *Refuses*: notifications that it cannot read: they are of a later model.
//! *Caller's duty*: takes what is told. *Standard*: RFC 8040 section 6, `docs/controller.md`.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::call::{ChannelError, stream_request};
use super::keep::Pause;
use super::{FromHost, Shared};
use crate::api::events::{Event, RawEvent};
use crate::api::sse::{KEEP_ALIVE, Parser};

/// Longest silence of a stream: it tells that it lives far more often.
const SILENCE_MAX: Duration = KEEP_ALIVE.saturating_mul(3);
/// How long the first attempt may take before other calls begin.
const FIRST_MAX: Duration = Duration::from_secs(3);
/// Streams that last so long are no trouble.
const LONG: Duration = Duration::from_secs(5);
/// Longest refusal that is read, bytes.
const REFUSAL_MAX: usize = 4_096;

/// How a stream ended.
enum Ended {
    /// In order: its token has ended.
    InOrder,
    /// In the middle.
    Broken,
}

/// Tells that there is a connection, and then what it brings.
pub(super) async fn follow(
    shared: &Shared,
    mut sender: SendRequest<Body>,
    told: &mpsc::Sender<FromHost>,
) -> Infallible {
    let mut pause = Pause::default();
    // What happens to sessions that are offloaded from now on is then not missed.
    let mut body = timeout(FIRST_MAX, open(shared, &mut sender)).await.ok();
    tell(told, FromHost::Connected).await;
    loop {
        let opened = match body.take() {
            Some(opened) => opened,
            None => open(shared, &mut sender).await,
        };
        match opened {
            Ok(body) => {
                shared.trouble(None);
                let began = Instant::now();
                if let Ended::Broken = read(shared, body, told).await {
                    let _unheard = shared.raw.send(None);
                    lost(shared, told).await;
                }
                if began.elapsed() >= LONG {
                    pause = Pause::default();
                    continue;
                }
            }
            Err(error) => shared.trouble(Some(format!("no notifications come: {error}"))),
        }
        pause.pass().await;
    }
}

async fn open(shared: &Shared, sender: &mut SendRequest<Body>) -> Result<Incoming, ChannelError> {
    let broken = |error: hyper::Error| ChannelError::Unanswered(error.to_string());
    let answer = sender.send_request(stream_request()).await;
    let (head, mut body) = answer.map_err(broken)?.into_parts();
    if head.status == StatusCode::OK {
        return Ok(body);
    }
    let mut refusal = Vec::new();
    while refusal.len() < REFUSAL_MAX
        && let Some(data) = next(&mut body).await.map_err(broken)?
    {
        refusal.extend_from_slice(&data);
    }
    Err(shared.refusal(head.status, &refusal))
}

/// Tells what a stream brings, to its end.
async fn read(shared: &Shared, mut body: Incoming, told: &mpsc::Sender<FromHost>) -> Ended {
    let mut parser = Parser::default();
    loop {
        let events = match timeout(SILENCE_MAX, next(&mut body)).await {
            Ok(Ok(Some(bytes))) => parser.take(&bytes),
            Ok(Ok(None)) => return Ended::InOrder,
            Ok(Err(_)) | Err(_) => return Ended::Broken,
        };
        let Ok(events) = events else {
            return Ended::Broken;
        };
        for event in events {
            take(shared, &event, told).await;
            // Nobody else may want to know.
            let _unheard = shared.raw.send(Some(event));
        }
    }
}

async fn take(shared: &Shared, raw: &RawEvent, told: &mpsc::Sender<FromHost>) {
    match raw.read() {
        Ok(read) => {
            shared.report.send_modify(|report| report.events += 1);
            match read.event {
                Event::EventsLost(_) => lost(shared, told).await,
                event => tell(told, FromHost::Event(event)).await,
            }
        }
        Err(error) => log::debug!("a notification is not understood: {error}"),
    }
}

async fn lost(shared: &Shared, told: &mpsc::Sender<FromHost>) {
    shared.report.send_modify(|report| report.events_lost += 1);
    shared.upheavals.send_modify(|count| *count += 1);
    tell(told, FromHost::EventsLost).await;
}

async fn tell(told: &mpsc::Sender<FromHost>, what: FromHost) {
    // Nobody listens where nothing is offloaded (`shunt agent proxy`).
    let _unheard = told.send(what).await;
}

/// The next bytes of a body, and `None` after the last ones.
async fn next(body: &mut Incoming) -> hyper::Result<Option<Bytes>> {
    while let Some(frame) = body.frame().await {
        // Anything else are trailers, of which there are none.
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
