//! Query parameters of a request.
//!
//! *Promises*: a parameter is carried out or refused, never ignored.
//! *Refuses*: unknown and repeated parameters, and values outside their type, with 400.
//! *Caller's duty*: pass the query as it came, not decoded.
//! *Standard*: RFC 8040 section 4.8.

use axum::http::StatusCode;
use percent_encoding::percent_decode_str;

use super::error::{ApiError, ErrorTag};
use super::select::{Fields, Selection};

/// Longest query taken, bytes.
const QUERY_MAX: usize = 4096;

/// Which data are asked for (RFC 8040 section 4.8.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Content {
    /// Both.
    #[default]
    All,
    /// Configuration.
    Config,
    /// State.
    Nonconfig,
}

/// The query of a read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Query {
    /// `content`.
    pub(super) content: Content,
    /// `depth` and `fields`.
    pub(super) selection: Selection,
}

impl Query {
    /// Reads the query of a GET or HEAD on data.
    pub(super) fn of_read(query: Option<&str>) -> Result<Self, ApiError> {
        let (mut content, mut depth, mut fields) = (None, None, None);
        for (name, value) in parameters(query)? {
            let text = value.as_str();
            let is_first = match name {
                "content" => content.replace(read_content(text)?).is_none(),
                "depth" => depth.replace(read_depth(text)?).is_none(),
                "fields" => fields
                    .replace(Fields::parse(text).map_err(refused)?)
                    .is_none(),
                _ => return Err(unknown(name, "content, depth and fields")),
            };
            if !is_first {
                return Err(refused(format!("the query parameter `{name}` is repeated")));
            }
        }
        Ok(Self {
            content: content.unwrap_or_default(),
            selection: Selection::new(fields, depth.flatten()),
        })
    }

    /// Refuses every parameter: the request is no read of data.
    pub(super) fn none(query: Option<&str>) -> Result<(), ApiError> {
        match parameters(query)?.first() {
            None => Ok(()),
            Some((name, _)) => Err(unknown(name, "none")),
        }
    }
}

/// Names, and values decoded.
fn parameters(query: Option<&str>) -> Result<Vec<(&str, String)>, ApiError> {
    let query = query.unwrap_or_default();
    if query.len() > QUERY_MAX {
        return Err(refused(format!(
            "a query has at most {QUERY_MAX} bytes: ask for less at a time"
        )));
    }
    query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match percent_decode_str(value).decode_utf8() {
                Ok(value) => Ok((name, value.into_owned())),
                Err(_) => Err(refused(format!("the value of `{name}` is no UTF-8"))),
            }
        })
        .collect()
}

fn read_content(text: &str) -> Result<Content, ApiError> {
    match text {
        "all" => Ok(Content::All),
        "config" => Ok(Content::Config),
        "nonconfig" => Ok(Content::Nonconfig),
        _ => Err(refused(format!(
            "content is all, config or nonconfig, not `{text}`"
        ))),
    }
}

/// Levels; `None`: unbounded.
fn read_depth(text: &str) -> Result<Option<u16>, ApiError> {
    if text == "unbounded" {
        return Ok(None);
    }
    match text.parse() {
        Ok(levels) if levels > 0 => Ok(Some(levels)),
        _ => Err(refused(format!(
            "depth is 1 to 65535 or unbounded, not `{text}`"
        ))),
    }
}

fn unknown(name: &str, known: &str) -> ApiError {
    let name: String = name.chars().take(64).collect();
    refused(format!(
        "the query parameter `{name}` is not served here: leave it out (served: {known})"
    ))
}

fn refused(message: impl Into<String>) -> ApiError {
    ApiError::protocol(StatusCode::BAD_REQUEST, ErrorTag::InvalidValue, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_in_any_order_and_decoded() {
        let query = Query::of_read(Some("depth=3&content=nonconfig&fields=a%2Fb%3Bc")).unwrap();
        let fields = Fields::parse("a/b;c").unwrap();
        assert_eq!(query.content, Content::Nonconfig);
        assert_eq!(query.selection, Selection::new(Some(fields), Some(3)));
        for nothing in [None, Some(""), Some("depth=unbounded&content=all")] {
            assert_eq!(Query::of_read(nothing).unwrap(), Query::default());
        }
    }

    #[test]
    fn what_is_not_served_is_refused() {
        let long = format!("fields={}", "a;".repeat(4096));
        for query in [
            "depth=0",
            "depth=65536",
            "depth=",
            "depth=-1",
            "depth",
            "content=operational",
            "content=all&content=all",
            "depth=1&depth=1",
            "fields=a&fields=b",
            "fields=",
            "fields=%ff",
            "with-defaults=trim",
            "insert=first",
            "point=/a",
            "filter=/a",
            "Depth=1",
            &long,
        ] {
            let error = Query::of_read(Some(query)).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{query}");
        }
        assert!(Query::none(Some("depth=1")).is_err());
        assert!(Query::none(None).is_ok() && Query::none(Some("")).is_ok());
    }
}
