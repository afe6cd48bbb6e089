//! How values stand in JSON, and how a refused body is explained.
//!
//! *Promises*: an error names the leaf by its path, list entries counted from 1.
//! *Refuses*: bodies that are not exactly one JSON object of the expected shape.
//! *Caller's duty*: bound the body before.
//! *Standard*: RFC 7951 sections 4 (namespaces) and 6.1 (64-bit numbers are strings).

use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_path_to_error::Segment;

use super::error::{ApiError, ErrorTag};

/// The media type of every body.
pub const MEDIA_TYPE: &str = "application/yang-data+json";

/// Serialises a 64-bit number as RFC 7951 section 6.1 wants it: a string.
pub mod u64_text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes the digits as a string.
    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads a string of digits.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| de::Error::custom(format!("`{text}` is not a 64-bit number in a string")))
    }
}

/// The same for a leaf that may be absent.
pub mod u64_text_option {
    use serde::{Deserializer, Serializer};

    /// Writes the digits as a string.
    pub fn serialize<S: Serializer>(value: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::u64_text::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    /// Reads a string of digits: where the leaf stands, it has a value.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        super::u64_text::deserialize(from).map(Some)
    }
}

/// The body of an rpc.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input<T> {
    /// What is asked.
    #[serde(rename = "shunt-offload:input")]
    pub input: T,
}

/// The body of an rpc's answer.
#[derive(Serialize, Deserialize)]
pub struct Output<T> {
    /// What became of it.
    #[serde(rename = "shunt-offload:output")]
    pub output: T,
}

/// Reads an rpc's body.
///
/// # Errors
/// 400 with the leaf's path: no JSON, an unknown or a missing leaf, a value outside
/// its type.
pub fn read_input<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // To know the path at every leaf costs a third of the reading: only who erred waits for it.
    if let Ok(Input { input }) = serde_json::from_slice(body) {
        return Ok(input);
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let envelope: Input<T> =
        serde_path_to_error::deserialize(&mut json).map_err(|error| explain(&error))?;
    json.end().map_err(|error| malformed(&error))?;
    Ok(envelope.input)
}

pub(super) fn malformed(error: &serde_json::Error) -> ApiError {
    ApiError::protocol(
        StatusCode::BAD_REQUEST,
        ErrorTag::MalformedMessage,
        format!("the body is not JSON: {error}"),
    )
}

fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let inner = error.inner();
    if inner.is_syntax() || inner.is_eof() || inner.is_io() {
        return malformed(inner);
    }
    let text = inner.to_string();
    let (tag, text) = if let Some(rest) = text.strip_prefix("unknown field") {
        (ErrorTag::UnknownElement, format!("unknown leaf{rest}"))
    } else if let Some(rest) = text.strip_prefix("missing field") {
        (ErrorTag::MissingElement, format!("missing leaf{rest}"))
    } else if text.starts_with("duplicate field") || text.starts_with("invalid type") {
        (ErrorTag::BadElement, text)
    } else {
        (ErrorTag::InvalidValue, text)
    };
    ApiError::application(StatusCode::BAD_REQUEST, tag, text).at(path(error.path()))
}

/// `/shunt-offload:input/session[2]/original/dscp`.
fn path(segments: &serde_path_to_error::Path) -> String {
    let mut text = String::new();
    for segment in segments.iter() {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{}]", index + 1)),
            Segment::Map { key } => {
                text.push('/');
                // An unknown leaf's name is the client's: enough of it to be found.
                text.extend(key.chars().take(64));
            }
            Segment::Enum { variant } => {
                text.push('/');
                text.push_str(variant);
            }
            Segment::Unknown => text.push_str("/?"),
        }
    }
    if text.is_empty() {
        text.push('/');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    struct Sample {
        list: Vec<Inner>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    struct Inner {
        #[serde(with = "u64_text")]
        count: u64,
    }

    fn refuse(body: &str) -> (ErrorTag, Option<String>) {
        let error = read_input::<Sample>(body.as_bytes()).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        (error.entry.error_tag, error.entry.error_path.clone())
    }

    #[test]
    fn a_64_bit_number_is_read_from_a_string_only() {
        let good = r#"{"shunt-offload:input":{"list":[{"count":"18446744073709551615"}]}}"#;
        let sample: Sample = read_input(good.as_bytes()).unwrap();
        assert_eq!(sample.list[0].count, u64::MAX);
        let number = r#"{"shunt-offload:input":{"list":[{"count":"1"},{"count":1}]}}"#;
        assert_eq!(
            refuse(number),
            (
                ErrorTag::BadElement,
                Some("/shunt-offload:input/list[2]/count".to_owned())
            )
        );
    }

    #[test]
    fn each_kind_of_refusal_has_its_tag_and_path() {
        for (body, tag, path) in [
            ("", ErrorTag::MalformedMessage, None),
            ("{", ErrorTag::MalformedMessage, None),
            (
                r#"{"shunt-offload:input":{"list":[]}} x"#,
                ErrorTag::MalformedMessage,
                None,
            ),
            (
                r#"{"input":{"list":[]}}"#,
                ErrorTag::UnknownElement,
                Some("/input"),
            ),
            ("{}", ErrorTag::MissingElement, Some("/")),
            ("[]", ErrorTag::InvalidValue, Some("/")),
            (
                r#"{"shunt-offload:input":{"list":[{"count":"x"}]}}"#,
                ErrorTag::InvalidValue,
                Some("/shunt-offload:input/list[1]/count"),
            ),
            (
                r#"{"shunt-offload:input":{"list":[{"count":"1","cuont":1}]}}"#,
                ErrorTag::UnknownElement,
                Some("/shunt-offload:input/list[1]/cuont"),
            ),
            (
                r#"{"shunt-offload:input":{"list":[{}]}}"#,
                ErrorTag::MissingElement,
                Some("/shunt-offload:input/list[1]"),
            ),
        ] {
            assert_eq!(refuse(body), (tag, path.map(str::to_owned)), "{body}");
        }
    }
}
