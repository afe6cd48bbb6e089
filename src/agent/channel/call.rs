//! One request and its answer.
//!
//! *Promises*: an answer is whole, of the model and in time, or an error that says whether the
//! request may have been carried out.
//! *Refuses*: answers of more than [`ANSWER_MAX`] bytes.
//! *Caller's duty*: what may have been carried out is asked again, or seen by a sync.
//! *Standard*: RFC 8040 section 7, RFC 9457 (what the relay says), RFC 9113.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::Shared;
use crate::api::error::ErrorBody;
use crate::api::wire::{Input, MEDIA_TYPE, Output};

/// Longest answer that is read, bytes.
const ANSWER_MAX: usize = 16 << 20;

/// Why there is no answer, or not the one asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChannelError {
    /// The line is down, or nobody is at its other end.
    #[error("there is no connection to the host now")]
    NotConnected,
    /// No epoch is open, or it has ended: the backend restarted, or the lease ran out.
    #[error("the epoch has ended: open one, and sync")]
    StaleEpoch,
    /// A newer connection of the element took the place of this one; another is being made.
    #[error("a newer connection of this element has taken the place of this one")]
    Fenced,
    /// Another sync took the place of this one.
    #[error("the sync was ended by another")]
    StaleSync,
    /// Nothing was done; later it may be.
    #[error("not now: {0}")]
    NotNow(String),
    /// No answer, so it may have been carried out.
    #[error("no answer, so it may have been carried out: {0}")]
    Unanswered(String),
    /// It was refused.
    #[error("refused with {status}: {text}")]
    Refused {
        /// The status.
        status: u16,
        /// Why.
        text: String,
    },
    /// The answer is not of the model.
    #[error("the host's answer is not understood: are agent and host of the same version?")]
    Unreadable,
}

impl ChannelError {
    /// Whether the request may have been carried out.
    pub fn is_perhaps_done(&self) -> bool {
        matches!(self, Self::Unanswered(_) | Self::Unreadable)
    }
}

/// What the relay says of its own refusals.
#[derive(Deserialize)]
struct Problem {
    detail: String,
}

impl Shared {
    /// Calls an operation of `shunt-offload`.
    pub(super) async fn rpc<I: Serialize, O: DeserializeOwned>(
        &self,
        rpc: &str,
        input: &I,
        patience: Duration,
    ) -> Result<O, ChannelError> {
        let body = serde_json::to_vec(&Input { input }).map_err(|_| ChannelError::Unreadable)?;
        let path = format!("/restconf/operations/shunt-offload:{rpc}");
        let (status, answer) = self.ask(Method::POST, &path, body, patience).await?;
        if !status.is_success() {
            return Err(self.refusal(status, &answer));
        }
        let output: Output<O> =
            serde_json::from_slice(&answer).map_err(|_| ChannelError::Unreadable)?;
        Ok(output.output)
    }

    /// Reads the resource at `path`, whose name is `name`; `None` where there is none.
    pub(super) async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        name: &str,
    ) -> Result<Option<T>, ChannelError> {
        let patience = self.options.call_timeout;
        let (status, answer) = self.ask(Method::GET, path, Vec::new(), patience).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.refusal(status, &answer));
        }
        let mut named: HashMap<String, T> =
            serde_json::from_slice(&answer).map_err(|_| ChannelError::Unreadable)?;
        named.remove(name).map(Some).ok_or(ChannelError::Unreadable)
    }

    /// Sends a request; the status and the whole body of its answer.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), ChannelError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, MEDIA_TYPE)
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .body(Body::from(body))
            .map_err(|_| ChannelError::Unreadable)?;
        let exchange = async {
            let (head, body) = self.forward(request).await?.into_parts();
            let whole = Limited::new(body, ANSWER_MAX).collect().await;
            let whole = whole.map_err(|error| ChannelError::Unanswered(error.to_string()))?;
            Ok((head.status, whole.to_bytes()))
        };
        self.report.send_modify(|report| report.calls += 1);
        let outcome = timeout(patience, exchange).await.unwrap_or_else(|_| {
            let text = format!("nothing came within {} s", patience.as_secs_f32());
            Err(ChannelError::Unanswered(text))
        });
        if matches!(outcome, Err(ChannelError::Unanswered(_))) {
            self.report.send_modify(|report| report.unanswered += 1);
        }
        outcome
    }

    /// Sends a request; the head of its answer.
    pub(super) async fn forward(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, ChannelError> {
        let current = self.current.borrow().clone();
        let mut sender = current.ok_or(ChannelError::NotConnected)?.sender;
        *request.uri_mut() = addressed(request.uri());
        sender.try_send_request(request).await.map_err(|mut error| {
            if error.take_message().is_some() {
                ChannelError::NotConnected
            } else {
                ChannelError::Unanswered(error.into_error().to_string())
            }
        })
    }

    /// What an answer that is no success means.
    pub(super) fn refusal(&self, status: StatusCode, answer: &[u8]) -> ChannelError {
        let error = meaning(status, answer);
        self.report.send_modify(|report| report.refused += 1);
        match error {
            ChannelError::StaleEpoch => {
                self.epoch.send_replace(None);
            }
            ChannelError::Fenced => self.renew(),
            _ => {}
        }
        error
    }

    /// Asks for another connection in the place of the present one.
    fn renew(&self) {
        if let Some(current) = &*self.current.borrow() {
            current.renew.notify_one();
        }
    }
}

fn meaning(status: StatusCode, answer: &[u8]) -> ChannelError {
    let entry = serde_json::from_slice::<ErrorBody>(answer)
        .ok()
        .and_then(|body| body.errors.error.into_iter().next());
    let app_tag = entry.as_ref().and_then(|entry| entry.error_app_tag.clone());
    match (status, app_tag.as_deref()) {
        (StatusCode::CONFLICT, Some("stale-epoch")) => return ChannelError::StaleEpoch,
        (StatusCode::CONFLICT, Some("stale-sync")) => return ChannelError::StaleSync,
        (StatusCode::CONFLICT | StatusCode::FORBIDDEN, Some("fenced")) => {
            return ChannelError::Fenced;
        }
        _ => {}
    }
    let text = match entry {
        Some(entry) => match entry.error_path {
            Some(path) => format!("{path}: {}", entry.error_message),
            None => entry.error_message,
        },
        None => serde_json::from_slice::<Problem>(answer)
            .map_or_else(|_| status.to_string(), |problem| problem.detail),
    };
    match status {
        StatusCode::TOO_MANY_REQUESTS => ChannelError::NotNow(text),
        // The controller says so of a backend that broke off as well.
        StatusCode::SERVICE_UNAVAILABLE if app_tag.as_deref() != Some("backend") => {
            ChannelError::NotNow(text)
        }
        status if status.is_server_error() => ChannelError::Unanswered(text),
        status => ChannelError::Refused {
            status: status.as_u16(),
            text,
        },
    }
}

/// The URI that HTTP/2 wants.
fn addressed(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned();
    Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(Authority::from_static("localhost"))
        .path_and_query(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
        .build()
        // Its parts are sound, and so is it.
        .unwrap_or_default()
}

/// The head of a request for the stream of notifications.
pub(super) fn stream_request() -> Request<Body> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = addressed(&Uri::from_static("/restconf/streams/shunt-offload/json"));
    let kind = HeaderValue::from_static(crate::api::sse::MEDIA_TYPE);
    request.headers_mut().insert(header::ACCEPT, kind);
    request
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_says_what_to_do_and_whether_it_may_have_been_done() {
        let of = |tag: &str| {
            json!({ "ietf-restconf:errors": { "error": [{
                "error-type": "application", "error-tag": "operation-failed",
                "error-app-tag": tag, "error-message": "why",
            }]}})
        };
        let problem = json!({ "title": "x", "detail": "of the relay", "applied": "unknown" });
        let why = || "why".to_owned();
        for (status, answer, error) in [
            (409, of("stale-epoch"), ChannelError::StaleEpoch),
            (409, of("stale-sync"), ChannelError::StaleSync),
            (409, of("fenced"), ChannelError::Fenced),
            (403, of("fenced"), ChannelError::Fenced),
            (503, of("busy"), ChannelError::NotNow(why())),
            (503, of("backend"), ChannelError::Unanswered(why())),
            (500, of("timeout"), ChannelError::Unanswered(why())),
            (
                429,
                problem.clone(),
                ChannelError::NotNow("of the relay".to_owned()),
            ),
            (
                504,
                problem,
                ChannelError::Unanswered("of the relay".to_owned()),
            ),
            (
                400,
                of("other"),
                ChannelError::Refused {
                    status: 400,
                    text: why(),
                },
            ),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(meaning(status, answer.to_string().as_bytes()), error);
        }
        let nothing = meaning(StatusCode::BAD_GATEWAY, b"");
        assert_eq!(
            nothing,
            ChannelError::Unanswered("502 Bad Gateway".to_owned())
        );
        assert!(nothing.is_perhaps_done());
        assert!(!ChannelError::NotNow(String::new()).is_perhaps_done());
    }

    #[test]
    fn a_path_keeps_its_query_and_loses_its_host() {
        let uri = Uri::from_static("http://elsewhere/restconf/data?depth=1");
        assert_eq!(addressed(&uri), "http://localhost/restconf/data?depth=1");
        assert_eq!(addressed(&Uri::from_static("*")).path(), "*");
    }
}
