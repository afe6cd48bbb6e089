//! Conditional requests.
//!
//! *Promises*: an edit under a condition is carried out on exactly the state that the
//! condition was judged by (the caller commits against it).
//! *Refuses*: edits whose condition does not hold (412); header fields that cannot be read
//! (400).
//! *Caller's duty*: judge again when the state has changed.
//! *Standard*: RFC 9110 section 13; RFC 8040 sections 3.4.1 and 3.5.

use std::time::{Duration, SystemTime};

use axum::http::header::{
    ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::Tag;
use crate::api::error::{ApiError, ErrorTag};

/// The conditions of a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Conditions {
    matches: Option<Tags>,
    matches_none: Option<Tags>,
    modified_since: Option<u64>,
    unmodified_since: Option<u64>,
}

/// A list of entity tags.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Tags {
    /// `*`.
    Any,
    /// These; of a weak one only what is behind `W/`, and that it is weak.
    Some(Vec<(bool, String)>),
}

/// What a condition says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Go on.
    Go,
    /// 304: what is there is known to the client.
    NotModified,
}

impl Conditions {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        Ok(Self {
            matches: tags(headers, IF_MATCH)?,
            matches_none: tags(headers, IF_NONE_MATCH)?,
            modified_since: date(headers, IF_MODIFIED_SINCE),
            unmodified_since: date(headers, IF_UNMODIFIED_SINCE),
        })
    }

    /// Judges by what is there; `None`: nothing is.
    pub(super) fn judge(&self, found: Option<Tag>, is_read: bool) -> Result<Verdict, ApiError> {
        if let Some(wanted) = &self.matches {
            if !found.is_some_and(|tag| wanted.have(tag, true)) {
                return Err(failed(
                    "it is not as `If-Match` says: read it again, and decide again",
                ));
            }
        } else if let (Some(since), Some(tag)) = (self.unmodified_since, found)
            && tag.modified > since
        {
            return Err(failed(
                "it was changed since: read it again, and decide again",
            ));
        }
        if let Some(known) = &self.matches_none {
            if !found.is_some_and(|tag| known.have(tag, false)) {
                return Ok(Verdict::Go);
            }
            if is_read {
                return Ok(Verdict::NotModified);
            }
            return Err(failed(
                "it is there, and `If-None-Match` says it must not be",
            ));
        }
        match (self.modified_since, found) {
            (Some(since), Some(tag)) if is_read && tag.modified <= since => {
                Ok(Verdict::NotModified)
            }
            _ => Ok(Verdict::Go),
        }
    }
}

impl Tags {
    /// Whether `tag` is among them; by the strong comparison a weak one never is.
    fn have(&self, tag: Tag, is_strong: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Some(tags) => tags
                .iter()
                .any(|(is_weak, text)| !(is_strong && *is_weak) && *text == opaque(tag)),
        }
    }
}

fn opaque(tag: Tag) -> String {
    format!("r{}", tag.revision)
}

/// Says in the headers what the state is.
pub(super) fn tell(headers: &mut HeaderMap, tag: Tag) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(tag.modified);
    let values = [
        (ETAG, format!("\"{}\"", opaque(tag))),
        (LAST_MODIFIED, httpdate::fmt_http_date(time)),
    ];
    for (name, text) in values {
        // Digits and letters are always a header's value.
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name, value);
        }
    }
}

fn tags(headers: &HeaderMap, name: HeaderName) -> Result<Option<Tags>, ApiError> {
    let mut read = Vec::new();
    let mut is_given = false;
    for value in headers.get_all(&name) {
        is_given = true;
        let wrong = || {
            ApiError::protocol(
                StatusCode::BAD_REQUEST,
                ErrorTag::InvalidValue,
                format!("`{name}` is a list of tags in double quotes, or *"),
            )
        };
        let text = value.to_str().map_err(|_| wrong())?;
        if text.trim() == "*" {
            return Ok(Some(Tags::Any));
        }
        // No tag of ours has a comma.
        for tag in text.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            let (is_weak, quoted) = match tag.strip_prefix("W/") {
                Some(rest) => (true, rest),
                None => (false, tag),
            };
            let inner = quoted
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'))
                .ok_or_else(wrong)?;
            read.push((is_weak, inner.to_owned()));
        }
    }
    Ok(is_given.then_some(Tags::Some(read)))
}

/// A date in seconds; one that cannot be read is none (RFC 9110 section 13.1.3).
fn date(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    let text = headers.get(name)?.to_str().ok()?;
    let time = httpdate::parse_http_date(text).ok()?;
    time.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .map(|since| since.as_secs())
}

fn failed(message: &str) -> ApiError {
    ApiError::protocol(
        StatusCode::PRECONDITION_FAILED,
        ErrorTag::OperationFailed,
        message,
    )
    .app_tag("precondition-failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Tag = Tag {
        revision: 7,
        modified: 784_111_777,
    };
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn judge(fields: &[(HeaderName, &str)], found: Option<Tag>, is_read: bool) -> Option<Verdict> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        match Conditions::read(&headers).unwrap().judge(found, is_read) {
            Ok(verdict) => Some(verdict),
            Err(error) => {
                assert_eq!(error.status, StatusCode::PRECONDITION_FAILED);
                None
            }
        }
    }

    #[test]
    fn an_edit_is_carried_out_only_under_its_condition() {
        let go = Some(Verdict::Go);
        for (name, value, of_present, of_absent) in [
            (IF_MATCH, "\"r7\"", go, None),
            (IF_MATCH, "\"r6\", \"r7\"", go, None),
            (IF_MATCH, "*", go, None),
            (IF_MATCH, "\"r6\"", None, None),
            (IF_MATCH, "W/\"r7\"", None, None),
            (IF_NONE_MATCH, "*", None, go),
            (IF_NONE_MATCH, "W/\"r7\"", None, go),
            (IF_NONE_MATCH, "\"r6\"", go, go),
            (IF_UNMODIFIED_SINCE, DATE, go, go),
            (IF_UNMODIFIED_SINCE, BEFORE, None, go),
            (IF_UNMODIFIED_SINCE, "yesterday", go, go),
            (IF_MODIFIED_SINCE, DATE, go, go),
        ] {
            let fields = [(name.clone(), value)];
            assert_eq!(
                judge(&fields, Some(NOW), false),
                of_present,
                "{name}: {value}"
            );
            assert_eq!(judge(&fields, None, false), of_absent, "{name}: {value}");
        }
        // If-Match is given, so the date is not looked at.
        let both = [(IF_MATCH, "\"r7\""), (IF_UNMODIFIED_SINCE, BEFORE)];
        assert_eq!(judge(&both, Some(NOW), false), go);
    }

    #[test]
    fn a_read_of_what_is_known_is_304() {
        for (name, value, verdict) in [
            (IF_NONE_MATCH, "\"r7\"", Verdict::NotModified),
            (IF_NONE_MATCH, "W/\"r7\"", Verdict::NotModified),
            (IF_NONE_MATCH, "\"r6\"", Verdict::Go),
            (IF_MODIFIED_SINCE, DATE, Verdict::NotModified),
            (IF_MODIFIED_SINCE, BEFORE, Verdict::Go),
        ] {
            assert_eq!(
                judge(&[(name, value)], Some(NOW), true),
                Some(verdict),
                "{value}"
            );
        }
    }

    #[test]
    fn a_tag_without_quotes_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, HeaderValue::from_static("r7"));
        let error = Conditions::read(&headers).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
    }
}
