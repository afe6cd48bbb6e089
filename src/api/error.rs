//! Errors as RESTCONF says them.
//!
//! *Promises*: every answer that is not a success carries an `ietf-restconf:errors`
//! body; its `error-message` says what to do, its `error-path` which leaf is meant.
//! *Refuses*: nothing.
//! *Caller's duty*: put no secrets into messages; clients see them.
//! *Standard*: RFC 8040 section 7 (tags and their status), RFC 6241 appendix A.

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// The error tags of RFC 6241 appendix A that Shunt uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorTag {
    /// A value is out of range, unknown or contradicts another.
    InvalidValue,
    /// The message, or a list in it, is too large.
    TooBig,
    /// A mandatory leaf is missing.
    MissingElement,
    /// A leaf has a value of another type.
    BadElement,
    /// There is no such leaf.
    UnknownElement,
    /// The caller may not do this.
    AccessDenied,
    /// No room or no time: a table or a queue is full.
    ResourceDenied,
    /// What the request is about does not exist.
    DataMissing,
    /// What was to be created is there already.
    DataExists,
    /// The method or the encoding is not served here.
    OperationNotSupported,
    /// It failed for a reason of the server's.
    OperationFailed,
    /// The body is not JSON.
    MalformedMessage,
}

/// Which layer an error comes from (RFC 8040 section 8, `error-type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorType {
    /// HTTP: method, media type, path, size.
    Protocol,
    /// The content.
    Application,
}

/// One `error` entry of RFC 8040 section 8, also used in the result of a refused
/// session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ErrorEntry {
    /// Layer.
    pub error_type: ErrorType,
    /// Kind.
    pub error_tag: ErrorTag,
    /// Shunt's own, finer name, such as `unknown-vnic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_app_tag: Option<String>,
    /// The leaf in question, as an instance identifier (RFC 7951 section 6.11).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_path: Option<String>,
    /// What is wrong and what to do.
    pub error_message: String,
}

/// The `errors` container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Errors {
    /// At least one.
    pub error: Vec<ErrorEntry>,
}

/// The body of an answer that is not a success.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The container.
    #[serde(rename = "ietf-restconf:errors")]
    pub errors: Errors,
}

/// A refused request: an error entry and its HTTP status.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", entry.error_message)]
pub struct ApiError {
    /// The status of the answer.
    pub status: StatusCode,
    /// What its body says.
    pub entry: Box<ErrorEntry>,
}

impl ApiError {
    /// An error of the content (`application`).
    pub fn application(status: StatusCode, tag: ErrorTag, message: impl Into<String>) -> Self {
        Self::new(ErrorType::Application, status, tag, message.into())
    }

    /// An error of the exchange (`protocol`).
    pub fn protocol(status: StatusCode, tag: ErrorTag, message: impl Into<String>) -> Self {
        Self::new(ErrorType::Protocol, status, tag, message.into())
    }

    fn new(error_type: ErrorType, status: StatusCode, tag: ErrorTag, message: String) -> Self {
        Self {
            status,
            entry: Box::new(ErrorEntry {
                error_type,
                error_tag: tag,
                error_app_tag: None,
                error_path: None,
                error_message: message,
            }),
        }
    }

    /// Adds the leaf in question.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Self {
        self.entry.error_path = Some(path.into());
        self
    }

    /// Adds Shunt's own name for the kind of error.
    #[must_use]
    pub fn app_tag(mut self, name: &str) -> Self {
        self.entry.error_app_tag = Some(name.to_owned());
        self
    }

    /// The request names an element that this backend does not serve: 404.
    pub fn unknown_element(name: &str) -> Self {
        Self::application(
            StatusCode::NOT_FOUND,
            ErrorTag::InvalidValue,
            format!(
                "there is no element `{name}` here; `shunt show summary` lists those there are"
            ),
        )
        .app_tag("unknown-element")
    }

    /// The request left the element out and there is not exactly one: 400.
    pub fn element_needed() -> Self {
        Self::application(
            StatusCode::BAD_REQUEST,
            ErrorTag::MissingElement,
            "say which element is meant: this backend does not serve exactly one",
        )
        .at("/shunt-offload:input/element")
    }

    /// The command queue is full; nothing was done: 503.
    pub fn busy() -> Self {
        Self::application(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorTag::ResourceDenied,
            "too many commands wait; nothing was done, ask again",
        )
        .app_tag("busy")
    }

    /// This control does not offer the operation: 501.
    pub fn not_offered() -> Self {
        Self::protocol(
            StatusCode::NOT_IMPLEMENTED,
            ErrorTag::OperationNotSupported,
            "this is not offered here: ask the backend itself",
        )
    }

    /// The backend of the element's host is of a revision without this operation: 501.
    pub fn of_older_backend() -> Self {
        Self::protocol(
            StatusCode::NOT_IMPLEMENTED,
            ErrorTag::OperationNotSupported,
            "the backend of the host is of the model of 2026-11-23: offer and withdraw sessions, \
             without epochs",
        )
        .app_tag("older-backend")
    }

    /// The backend is ending or a part of it failed: 500. `what` says which.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::application(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorTag::OperationFailed,
            what,
        )
    }

    /// The body of the answer.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            errors: Errors {
                error: vec![(*self.entry).clone()],
            },
        }
    }
}
