//! The rpc `withdraw`: takes sessions back to the guest.
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

/// Input of `withdraw`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WithdrawInput {
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

impl WithdrawInput {
    /// Takes back every session of `element`.
    pub fn all_of(element: &str) -> Self {
        Self {
            element: Some(element.to_owned()),
            all: true,
            ..Self::default()
        }
    }
}

/// Output of `withdraw`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WithdrawOutput {
    /// How many sessions were taken back.
    #[serde(with = "u64_text")]
    pub withdrawn: u64,
    /// One per key of the input, in order; empty for `all`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub result: Vec<WithdrawResult>,
}

/// What became of one key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WithdrawResult {
    /// The key.
    pub key: SessionKey,
    /// What became of it.
    pub result: WithdrawStatus,
}

/// What became of a withdrawn key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithdrawStatus {
    /// The session was there; its packets go to the guest from now on.
    Withdrawn,
    /// No session has this key.
    Absent,
}

impl WithdrawStatus {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Withdrawn => "withdrawn",
            Self::Absent => "absent",
        }
    }
}
