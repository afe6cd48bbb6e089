//! The rpc `offload`: asks for sessions to be moved to the fast path.
//!
//! *Promises*: as many results as sessions, in their order; an entry is judged alone,
//! so a refused one changes nothing about the others; offering the same again succeeds.
//! *Refuses*: the whole message, with nothing done, when it does not follow the model,
//! has more than [`ENTRIES_MAX`] sessions, or comes too late (see [`super::epoch`]).
//! *Caller's duty*: a call without an answer may have been carried out; offer again.
//! *Standard*: RFC 8040 section 4.4.2 (operations), RFC 7951.

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, ErrorEntry, ErrorTag, ErrorType};
use super::session::{Session, SessionKey};
use super::wire::u64_text_option;
use crate::flow::{Outcome, RequestError};

/// Most entries (sessions, keys) of one call.
pub const ENTRIES_MAX: usize = 1024;

/// Refuses a call whose `list` has more than `max` entries.
///
/// # Errors
/// 413: it has.
pub fn check_count(list: &str, count: usize, max: usize) -> Result<(), ApiError> {
    if count <= max {
        return Ok(());
    }
    Err(ApiError::application(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorTag::TooBig,
        format!("{count} entries in a call; at most {max}, nothing was done: split it"),
    )
    .at(format!("/shunt-offload:input/{list}")))
}

/// Input of `offload`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OffloadInput {
    /// Whose sessions; may be left out where the backend serves exactly one element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<String>,
    /// The epoch that the call belongs to; the present one if left out.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub epoch: Option<u64>,
    /// The number of the element's connection that it came by.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub fence: Option<u64>,
    /// The sessions.
    pub session: Vec<Session>,
}

/// Output of `offload`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OffloadOutput {
    /// One per session of the input, in order.
    pub result: Vec<OffloadResult>,
}

/// What became of one session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OffloadResult {
    /// Its key.
    pub key: SessionKey,
    /// What became of it.
    pub result: OffloadStatus,
    /// Why it was refused; present exactly then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorEntry>,
}

/// What became of an offered session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OffloadStatus {
    /// It is new in the table.
    Offloaded,
    /// The same was there already.
    Unchanged,
    /// Its rewrite was replaced, atomically.
    Replaced,
    /// It took the place of another session.
    Superseded,
    /// Refused: the element's table is full.
    TableFull,
    /// Refused: it contradicts itself or the element's vNICs.
    Invalid,
    /// Refused by a controller: the element may not ask for it.
    AccessDenied,
    /// Refused by a controller: the element has, or asks for, too many.
    Quota,
}

impl OffloadStatus {
    /// Whether the session was refused.
    pub const fn is_refused(self) -> bool {
        matches!(
            self,
            Self::TableFull | Self::Invalid | Self::AccessDenied | Self::Quota
        )
    }

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offloaded => "offloaded",
            Self::Unchanged => "unchanged",
            Self::Replaced => "replaced",
            Self::Superseded => "superseded",
            Self::TableFull => "table-full",
            Self::Invalid => "invalid",
            Self::AccessDenied => "access-denied",
            Self::Quota => "quota",
        }
    }
}

/// Why one session was refused: a leaf relative to the session, and what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{leaf}: {message}")]
pub struct Fault {
    /// The leaf, such as `original/source-port`.
    pub leaf: String,
    /// Kind.
    pub tag: ErrorTag,
    /// Shunt's own name for the kind.
    pub app_tag: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl From<RequestError> for Fault {
    fn from(error: RequestError) -> Self {
        Self {
            leaf: model_leaf(error.leaf),
            tag: ErrorTag::InvalidValue,
            app_tag: "invalid-session",
            message: error.text,
        }
    }
}

/// The model's path of a leaf that the flow floor names its own way; what follows from
/// several leaves is shown at their container.
fn model_leaf(leaf: &str) -> String {
    let Some((direction, name)) = leaf.split_once('/') else {
        return leaf.to_owned();
    };
    let name = match name {
        "ingress" => "ingress-vnic",
        "egress" => "egress-vnic",
        "dst-mac" => "destination-mac",
        "src-mac" => "source-mac",
        "translation" if direction == "original" => "translation",
        // The reply's match and translation follow from the original direction.
        "match" | "translation" => return direction.to_owned(),
        same => same,
    };
    format!("{direction}/{name}")
}

impl OffloadResult {
    /// The result of a session that contradicts itself or what there is.
    pub fn invalid(key: SessionKey, fault: Fault) -> Self {
        Self::fault(key, OffloadStatus::Invalid, fault)
    }

    /// The result of a session that is refused with `result` for a leaf; an empty one means
    /// the session itself.
    pub fn fault(key: SessionKey, result: OffloadStatus, fault: Fault) -> Self {
        let mut path = format!("/shunt-offload:input/session[key='{key}']");
        if !fault.leaf.is_empty() {
            path.push('/');
            path.push_str(&fault.leaf);
        }
        Self::refused(
            key,
            result,
            ErrorEntry {
                error_type: ErrorType::Application,
                error_tag: fault.tag,
                error_app_tag: Some(fault.app_tag.to_owned()),
                error_path: Some(path),
                error_message: fault.message,
            },
        )
    }

    /// The result of a session that the flow table answered with `outcome`.
    pub fn new(key: SessionKey, outcome: Outcome) -> Self {
        let result = match outcome {
            Outcome::Offloaded(_) => OffloadStatus::Offloaded,
            Outcome::Unchanged(_) => OffloadStatus::Unchanged,
            Outcome::Replaced(_) => OffloadStatus::Replaced,
            Outcome::Superseded(_) => OffloadStatus::Superseded,
            Outcome::TableFull => return Self::table_full(key),
            Outcome::Invalid(error) => return Self::invalid(key, error.into()),
        };
        Self {
            key,
            result,
            error: None,
        }
    }

    fn table_full(key: SessionKey) -> Self {
        let path = format!("/shunt-offload:input/session[key='{key}']");
        Self::refused(
            key,
            OffloadStatus::TableFull,
            ErrorEntry {
                error_type: ErrorType::Application,
                error_tag: ErrorTag::ResourceDenied,
                error_app_tag: Some("table-full".to_owned()),
                error_path: Some(path),
                error_message: "the element's table is full: withdraw sessions, shorten idle \
                                timeouts or raise the element's quota"
                    .to_owned(),
            },
        )
    }

    fn refused(key: SessionKey, result: OffloadStatus, error: ErrorEntry) -> Self {
        Self {
            key,
            result,
            error: Some(error),
        }
    }
}
