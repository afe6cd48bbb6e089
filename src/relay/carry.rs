//! One request's way from a guest to the upstream and back.
//!
//! *Promises*: every request gets an answer, the upstream's or a [`Refusal`]; what the
//! upstream sees says whose request it is by the relay's word only.
//! *Refuses*: what [`head`], [`Guarded`] and [`Rate`] refuse.
//! *Caller's duty*: a [`Carrier`] is one element's: nothing of it is shared with another.
//! *Standard*: RFC 9110 section 7, RFC 6750 section 2.1.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use super::body::{Guarded, Trimmed};
use super::config::Config;
use super::credentials::Credentials;
use super::head;
use super::rate::Rate;
use super::refusal::Refusal;
use super::upstream::Upstream;
use super::wall_clock;

/// How long a token is used for further requests: two thirds of its life remain then.
const TOKEN_REUSE: Duration = Duration::from_secs(20);

/// The body of an answer.
pub type AnswerBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// Carries the requests of one element.
pub struct Carrier {
    config: Arc<Config>,
    element: String,
    upstream: Upstream,
    rate: Rate,
    token: Mutex<Option<Token>>,
}

/// A token in use.
struct Token {
    value: HeaderValue,
    fence: u64,
    credentials: Arc<Credentials>,
    until: Instant,
}

impl Carrier {
    /// A carrier for `element`.
    pub fn new(
        config: Arc<Config>,
        element: &str,
        credentials: watch::Receiver<Arc<Credentials>>,
    ) -> Self {
        let limits = &config.limits;
        let now = Instant::now().into_std();
        Self {
            element: element.to_owned(),
            upstream: Upstream::new(config.upstream.clone(), credentials),
            rate: Rate::new(limits.requests_per_second, limits.burst, now),
            token: Mutex::new(None),
            config,
        }
    }

    /// Carries a request of connection `fence`.
    ///
    /// # Errors
    /// None: a refusal is an answer.
    pub async fn carry(
        &self,
        fence: u64,
        request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        Ok(match self.try_carry(fence, request).await {
            Ok(answer) => answer,
            Err(refusal) => {
                log::debug!("{}: refused: {refusal}", self.element);
                let refused = refusal.response();
                refused.map(|body| body.map_err(|never| match never {}).boxed_unsync())
            }
        })
    }

    async fn try_carry(
        &self,
        fence: u64,
        request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Refusal> {
        let Config { allow, limits, .. } = &*self.config;
        let (head, body) = request.into_parts();
        self.rate
            .admit(Instant::now().into_std())
            .map_err(Refusal::Rate)?;
        head::judge(&head, allow)?;
        let (body, fault) = Guarded::new(body, u64::from(limits.body_bytes))?;

        let connection = self.upstream.connection().await?;
        let token = self.token(fence, &connection.credentials).await?;
        let head = head::outward(&head, allow, self.upstream.address()?, token)?;
        let patience = u64::from(self.config.upstream.response_timeout_ms);
        let answer = connection.send(Request::from_parts(head, body));
        let answer = tokio::select! {
            biased;
            // What is wrong with the body is why the upstream did not answer.
            Ok(refusal) = fault => return Err(refusal),
            answer = timeout(Duration::from_millis(patience), answer) => {
                answer.map_err(|_| Refusal::Slow)??
            }
        };
        let (head, body) = answer.into_parts();
        let body = Trimmed(body).boxed_unsync();
        Ok(Response::from_parts(head::inward(&head, allow), body))
    }

    /// `authorization` for a request over a connection that was made with `credentials`.
    async fn token(
        &self,
        fence: u64,
        credentials: &Arc<Credentials>,
    ) -> Result<HeaderValue, Refusal> {
        let mut kept = self.token.lock().await;
        let now = Instant::now();
        if let Some(token) = &*kept
            && token.fence == fence
            && Arc::ptr_eq(&token.credentials, credentials)
            && now < token.until
        {
            return Ok(token.value.clone());
        }
        let unsigned = |error: &dyn std::fmt::Display| {
            log::error!("{}: cannot sign a token: {error}", self.element);
            Refusal::Unsigned
        };
        let text = credentials
            .signer
            .sign(&self.element, fence, wall_clock())
            .map_err(|error| unsigned(&error))?;
        let mut value =
            HeaderValue::try_from(format!("Bearer {text}")).map_err(|error| unsigned(&error))?;
        value.set_sensitive(true);
        *kept = Some(Token {
            value: value.clone(),
            fence,
            credentials: Arc::clone(credentials),
            until: now + TOKEN_REUSE,
        });
        Ok(value)
    }
}
