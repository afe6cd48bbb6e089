//! Answers that the relay gives itself.
//!
//! *Promises*: each says on whose side the reason lies and whether the upstream may have
//! acted on the request. *Refuses*: nothing. *Caller's duty*: none.
//! *Standard*: RFC 9457 (problem details), RFC 9110 section 15, RFC 6585 (429).

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;
use serde::Serialize;

/// The methods that pass.
pub const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT";
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Why a request was not carried to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// A target that can be read in several ways.
    #[error(
        "the path is not canonical: send it without dot segments, empty segments and encoded slashes"
    )]
    Target,
    /// A path that does not pass.
    #[error("nothing is carried to this path")]
    Path,
    /// CONNECT, TRACE or a method nobody knows.
    #[error("this method is not carried")]
    Method,
    /// A body beyond the limit.
    #[error("the body is larger than is carried: send it in parts")]
    Body,
    /// A body with trailers.
    #[error("trailers are not carried")]
    Trailers,
    /// A body that broke off.
    #[error("the body broke off")]
    Broken,
    /// Too many requests.
    #[error("too many requests: wait")]
    Rate(Duration),
    /// The upstream cannot be reached.
    #[error("the upstream cannot be reached: try again")]
    Away,
    /// The upstream failed while it had the request.
    #[error("the upstream has failed: whether it acted on the request is not known")]
    Failed,
    /// No answer in time.
    #[error("the upstream has not answered in time: whether it acted on the request is not known")]
    Slow,
    /// The relay cannot vouch for the element.
    #[error("the relay cannot sign the request; its log says why")]
    Unsigned,
}

/// Where the reason lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Side {
    Guest,
    Relay,
    Upstream,
}

/// The body of a refusal.
#[derive(Serialize)]
struct Problem {
    title: &'static str,
    status: u16,
    detail: String,
    side: Side,
    /// Whether the upstream may have acted on the request.
    applied: &'static str,
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::Target | Self::Trailers | Self::Broken => StatusCode::BAD_REQUEST,
            Self::Path => StatusCode::FORBIDDEN,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Body => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Rate(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Away | Self::Unsigned => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed => StatusCode::BAD_GATEWAY,
            Self::Slow => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn side(self) -> Side {
        match self {
            Self::Away | Self::Failed | Self::Slow => Side::Upstream,
            Self::Unsigned => Side::Relay,
            _ => Side::Guest,
        }
    }

    /// Whether the upstream may have acted on the request.
    fn is_perhaps_applied(self) -> bool {
        matches!(self, Self::Failed | Self::Slow)
    }

    /// The answer.
    pub fn response(self) -> Response<Full<Bytes>> {
        let status = self.status();
        let problem = Problem {
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: self.to_string(),
            side: self.side(),
            applied: if self.is_perhaps_applied() {
                "unknown"
            } else {
                "no"
            },
        };
        // Strings and a number: there is no problem that JSON cannot say.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, MEDIA_TYPE);
        let wait = match self {
            Self::Rate(wait) => Some(wait.as_secs() + 1),
            Self::Away => Some(1),
            _ => None,
        };
        if let Some(seconds) = wait {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self == Self::Method {
            headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
        }
        response
    }
}
