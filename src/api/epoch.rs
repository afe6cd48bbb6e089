//! The rpc `open-epoch`, and how a call is told that it comes too late.
//!
//! *Promises*: a call of an epoch that has ended, or of a connection that a newer one has
//! taken the place of, is refused whole: nothing of it is done.
//! *Refuses*: nothing.
//! *Caller's duty*: who is told `stale-epoch` opens an epoch and then syncs; who is told
//! `fenced` gives up, since somebody newer speaks for the element.
//! *Standard*: RFC 8040 section 4.4.2 (operations), RFC 7951 section 6.1 (64-bit numbers).

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, ErrorTag};
use super::wire::{u64_text, u64_text_option};

/// Input of `open-epoch`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OpenEpochInput {
    /// Whose; may be left out where the backend serves exactly one element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<String>,
    /// The number of the element's connection.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub fence: Option<u64>,
}

/// Output of `open-epoch`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OpenEpochOutput {
    /// The new epoch.
    #[serde(with = "u64_text")]
    pub epoch: u64,
    /// Seconds that the agent may be unseen; absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<u32>,
}

impl ApiError {
    /// The call is of an epoch that is not the present one: 409.
    pub fn stale_epoch() -> Self {
        stale(
            "stale-epoch",
            "epoch",
            "the epoch has ended: the backend restarted, the lease expired, or a newer epoch was \
             opened; open an epoch, and sync",
        )
    }

    /// The call is of an older connection than one that was seen: 409.
    pub fn fenced() -> Self {
        stale(
            "fenced",
            "fence",
            "a newer connection of the element has taken the place of this one; nothing was done",
        )
    }

    /// The call names a sync that has ended: 409.
    pub fn stale_sync() -> Self {
        stale(
            "stale-sync",
            "sync",
            "this sync has ended, without having withdrawn anything unless its end was answered: \
             begin another",
        )
    }
}

fn stale(app_tag: &str, leaf: &str, message: &str) -> ApiError {
    ApiError::application(StatusCode::CONFLICT, ErrorTag::OperationFailed, message)
        .app_tag(app_tag)
        .at(format!("/shunt-offload:input/{leaf}"))
}
