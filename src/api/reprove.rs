//! The rpc `reprove`: sessions wait for the guest's own forwarding again.
//!
//! *Promises*: as many results as keys, in their order; a key that is not there is
//! `absent`, which is a success.
//! *Refuses*: both keys and `all`, or neither; more than
//! [`ENTRIES_MAX`](super::offload::ENTRIES_MAX) keys; what comes too late (see
//! [`super::epoch`]).
//! *Caller's duty*: none.
//! *Standard*: RFC 8040 section 4.4.2 (operations), RFC 7951.

use serde::{Deserialize, Serialize};

use super::session::SessionKey;
use super::wire::{u64_text, u64_text_option};

/// Input of `reprove`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReproveInput {
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
    /// Which sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<SessionKey>,
    /// Every session of the element, instead of `key`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

impl ReproveInput {
    /// Every session of `element` is to be proved again.
    pub fn all_of(element: &str) -> Self {
        Self {
            element: Some(element.to_owned()),
            all: true,
            ..Self::default()
        }
    }
}

/// Output of `reprove`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReproveOutput {
    /// How many sessions were around the guest, or on the way there, and are no more.
    #[serde(with = "u64_text")]
    pub reproved: u64,
    /// One per key of the input, in order; empty for `all`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub result: Vec<ReproveResult>,
}

/// What became of one key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReproveResult {
    /// The key.
    pub key: SessionKey,
    /// What became of it.
    pub result: ReproveStatus,
}

/// What became of a key that was to be proved again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReproveStatus {
    /// Its packets go to the guest until that has forwarded one since.
    Pending,
    /// It is vouched, and goes on as it was.
    Vouched,
    /// No session has this key.
    Absent,
}

impl ReproveStatus {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Vouched => "vouched",
            Self::Absent => "absent",
        }
    }
}
