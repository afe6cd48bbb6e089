//! The serial port as a local HTTP socket: any program in the guest uses the API with its own
//! HTTP library.
//!
//! *Promises*: requests and answers are carried as they are, piece by piece, streams too; what
//! may be asked is the host's to say. Requests of others leave room for the agent's own.
//! Streams of notifications are the agent's own, told further (`stream`).
//! *Refuses*: more requests at a time than configured (503), requests while the host is not there
//! (503).
//! *Caller's duty*: the socket's group is trusted as much as the agent: it speaks for the element.
//! *Standard*: RFC 9110 sections 7.6 (what is of one hop) and 15, RFC 9457.

mod stream;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::channel::{Channel, ChannelError};
use super::local::{Local, problem};

/// Requests with a body at a time. Each may fill a window of 64 KiB at the relay, which has four
/// of them for all: the agent's own requests find room in the others.
const UPLOADS: usize = 2;

/// What is of one hop, or the next one's own.
const OF_THE_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Carries what comes to `local`, at most `requests` at a time, for ever.
pub async fn serve(local: &Local, channel: Channel, requests: usize) -> Infallible {
    let proxy = Proxy {
        channel,
        seats: Arc::new(Semaphore::new(requests)),
        uploads: Arc::new(Semaphore::new(UPLOADS)),
    };
    let answer = move |request| {
        let proxy = proxy.clone();
        async move { proxy.carry(request).await }
    };
    local.serve(answer).await
}

#[derive(Clone)]
struct Proxy {
    channel: Channel,
    seats: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
}

impl Proxy {
    async fn carry(&self, request: Request<Incoming>) -> Response<Body> {
        let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
            let text = "as many requests as may be are under way: ask again";
            return later(problem(StatusCode::SERVICE_UNAVAILABLE, text, false));
        };
        let (mut head, body) = request.into_parts();
        if head.method == Method::GET
            && let Some(element) = stream::asked(head.uri.path())
        {
            return match self.channel.name().await {
                Ok(own) if element.is_empty() || element == own => {
                    stream::answer(own, self.channel.raw_events(), seat)
                }
                Ok(_) => {
                    let text = "there is no such element here";
                    problem(StatusCode::NOT_FOUND, text, false)
                }
                Err(error) => failed(&error),
            };
        }
        strip(&mut head.headers);
        let body = if hyper::body::Body::is_end_stream(&body) {
            Body::empty()
        } else {
            // Seats are never closed.
            let seat = Arc::clone(&self.uploads).acquire_owned().await.ok();
            Body::new(Held { body, _seat: seat })
        };
        match self.channel.forward(Request::from_parts(head, body)).await {
            Ok(answer) => {
                let (head, body) = answer.into_parts();
                let seat = Some(seat);
                Response::from_parts(head, Body::new(Held { body, _seat: seat }))
            }
            Err(error) => failed(&error),
        }
    }
}

/// Says that the host has not answered.
fn failed(error: &ChannelError) -> Response<Body> {
    if error.is_perhaps_done() {
        problem(StatusCode::BAD_GATEWAY, &error.to_string(), true)
    } else {
        later(problem(
            StatusCode::SERVICE_UNAVAILABLE,
            &error.to_string(),
            false,
        ))
    }
}

/// Says that another time is better.
fn later(mut response: Response<Body>) -> Response<Body> {
    let seconds = header::HeaderValue::from_static("1");
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

/// Takes out what is of one hop, and what that names (RFC 9110 section 7.6.1).
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in OF_THE_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// A body that has a seat to its end.
struct Held {
    body: Incoming,
    _seat: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_one_hop_is_not_carried_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-own"),
            ("connection", "X-Other"),
            ("x-own", "1"),
            ("x-other", "1"),
            ("host", "localhost"),
            ("expect", "100-continue"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
            ("content-type", "application/yang-data+json"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-type"]);
    }
}
