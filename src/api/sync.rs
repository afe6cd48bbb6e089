//! The rpc `sync`: makes an element's sessions those that its agent wants.
//!
//! *Promises*: as many results to a page as it has keys and sessions, in their order, keys
//! first; after the end there is what the pages named (and was there, or could be offloaded)
//! and what was offloaded meanwhile, and nothing else.
//! *Refuses*: more than [`KEYS_MAX`] keys or
//! [`ENTRIES_MAX`] sessions in a page, and a call that is not
//! exactly one of begin, page and end: nothing is done then.
//! *Caller's duty*: a page or an end without an answer may have been carried out. A page may be
//! sent again; an end that is told `stale-sync` then was carried out, or the sync had ended
//! before: begin again. A key stands once in a page.
//! *Standard*: RFC 8040 section 4.4.2 (operations), RFC 7951.

use axum::http::StatusCode;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{ApiError, ErrorEntry, ErrorTag};
use super::offload::{ENTRIES_MAX, OffloadResult, OffloadStatus, check_count};
use super::session::{Session, SessionKey};
use super::wire::{u64_text, u64_text_option};

/// Most keys of one page.
pub const KEYS_MAX: usize = 4096;

/// Input of `sync`; one of `begin`, `page` and `end` is given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SyncInput {
    /// Whose sessions; may be left out where the backend serves exactly one element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<String>,
    /// The epoch that the call belongs to.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub epoch: Option<u64>,
    /// The number of the element's connection.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub fence: Option<u64>,
    /// Begins a sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<Empty>,
    /// Names sessions that are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<SyncPage>,
    /// Withdraws what was not named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<SyncEnd>,
}

/// A leaf of type `empty`: `[null]` (RFC 7951 section 6.9).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Empty;

impl Serialize for Empty {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [()].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [()] = <[(); 1]>::deserialize(deserializer)
            .map_err(|_| D::Error::custom("invalid type: an empty leaf is written as [null]"))?;
        Ok(Self)
    }
}

/// Some of the wanted sessions.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SyncPage {
    /// What `begin` answered.
    #[serde(with = "u64_text")]
    pub sync: u64,
    /// Sessions to keep, if they are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<SessionKey>,
    /// Sessions to offload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session: Vec<Session>,
}

/// The end of a sync.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SyncEnd {
    /// What `begin` answered.
    #[serde(with = "u64_text")]
    pub sync: u64,
}

/// What a call of `sync` is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SyncStep {
    /// Begin.
    Begin,
    /// Take a page.
    Page(SyncPage),
    /// End the sync of that number.
    End(u64),
}

/// Refuses a call that is not exactly one of the three, or a page that is too large.
///
/// # Errors
/// 400, or 413 for a page.
pub fn check(input: &SyncInput) -> Result<(), ApiError> {
    let given = [
        input.begin.is_some(),
        input.page.is_some(),
        input.end.is_some(),
    ];
    if given.into_iter().filter(|given| *given).count() != 1 {
        return Err(one_of_three());
    }
    if let Some(page) = &input.page {
        check_count("page/key", page.key.len(), KEYS_MAX)?;
        check_count("page/session", page.session.len(), ENTRIES_MAX)?;
    }
    Ok(())
}

fn one_of_three() -> ApiError {
    ApiError::application(
        StatusCode::BAD_REQUEST,
        ErrorTag::MissingElement,
        "give one of `begin`, `page` and `end`",
    )
    .at("/shunt-offload:input")
}

impl SyncInput {
    /// A call of `step`, for the only element there is, in the present epoch.
    pub fn of(step: SyncStep) -> Self {
        let mut input = Self::default();
        match step {
            SyncStep::Begin => input.begin = Some(Empty),
            SyncStep::Page(page) => input.page = Some(page),
            SyncStep::End(sync) => input.end = Some(SyncEnd { sync }),
        }
        input
    }

    /// What is to be done.
    ///
    /// # Errors
    /// 400: not exactly one of the three is given.
    pub fn step(self) -> Result<SyncStep, ApiError> {
        match (self.begin, self.page, self.end) {
            (Some(Empty), None, None) => Ok(SyncStep::Begin),
            (None, Some(page), None) => Ok(SyncStep::Page(page)),
            (None, None, Some(end)) => Ok(SyncStep::End(end.sync)),
            _ => Err(one_of_three()),
        }
    }
}

/// Output of `sync`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SyncOutput {
    /// After `begin`: the sync's number.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub sync: Option<u64>,
    /// After a page: one per key, then one per session, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub result: Vec<SyncResult>,
    /// After the end: how many sessions were withdrawn.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub swept: Option<u64>,
    /// After the end: how many sessions there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
}

/// What became of an entry of a page.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SyncResult {
    /// Its key.
    pub key: SessionKey,
    /// What became of it.
    pub result: SyncStatus,
    /// Why it was refused; present exactly then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorEntry>,
}

/// What became of a key, or of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncStatus {
    /// Of a key: it is there, and stays.
    Kept,
    /// Of a key: it is not there.
    Absent,
    /// Of a session.
    #[serde(untagged)]
    Offload(OffloadStatus),
}

impl SyncStatus {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Absent => "absent",
            Self::Offload(status) => status.name(),
        }
    }
}

impl SyncResult {
    /// The result of a key.
    pub fn of_key(key: SessionKey, is_there: bool) -> Self {
        let result = if is_there {
            SyncStatus::Kept
        } else {
            SyncStatus::Absent
        };
        Self {
            key,
            result,
            error: None,
        }
    }
}

impl From<OffloadResult> for SyncResult {
    fn from(of_session: OffloadResult) -> Self {
        Self {
            key: of_session.key,
            result: SyncStatus::Offload(of_session.result),
            error: of_session.error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::read_input;

    fn read(input: &str) -> Result<SyncStep, ApiError> {
        let body = format!(r#"{{"shunt-offload:input":{input}}}"#);
        read_input::<SyncInput>(body.as_bytes())?.step()
    }

    #[test]
    fn a_call_is_exactly_one_of_begin_page_and_end() {
        assert_eq!(read(r#"{"begin":[null]}"#), Ok(SyncStep::Begin));
        assert_eq!(read(r#"{"end":{"sync":"7"}}"#), Ok(SyncStep::End(7)));
        let page = read(r#"{"page":{"sync":"7","key":["a"]}}"#).unwrap();
        let SyncStep::Page(page) = page else {
            panic!("{page:?}");
        };
        assert_eq!((page.sync, page.key.len(), page.session.len()), (7, 1, 0));
        for wrong in [
            "{}",
            r#"{"begin":[null],"end":{"sync":"7"}}"#,
            r#"{"begin":true}"#,
            r#"{"begin":[]}"#,
            r#"{"end":{}}"#,
            r#"{"page":{"sync":7}}"#,
        ] {
            let status = read(wrong).unwrap_err().status;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}");
        }
    }

    #[test]
    fn a_result_is_a_key_s_or_a_session_s_word() {
        for status in [
            SyncStatus::Kept,
            SyncStatus::Absent,
            SyncStatus::Offload(OffloadStatus::TableFull),
        ] {
            let text = serde_json::to_string(&status).unwrap();
            assert_eq!(text, format!("\"{}\"", status.name()));
            assert_eq!(serde_json::from_str::<SyncStatus>(&text).unwrap(), status);
        }
        assert!(serde_json::from_str::<SyncStatus>("\"else\"").is_err());
    }
}
