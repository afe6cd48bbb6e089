//! Data resource paths: what a GET asks for.
//!
//! *Promises*: every path is a [`Resource`] or refused; keys are percent-decoded after
//! the path was cut into its steps, so an encoded `/` or `,` is part of a key.
//! *Refuses*: unknown steps, steps without the key they need (404), broken encoding.
//! *Caller's duty*: pass the path as it came, not decoded.
//! *Standard*: RFC 8040 section 3.5.3.

use axum::http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::{ApiError, ErrorTag};
use super::session::SessionKey;

/// Where data resources begin.
pub(super) const DATA: &str = "/restconf/data/";
/// The same as RFC 8527 names it: all there is, is operational.
const OPERATIONAL: &str = "/restconf/ds/ietf-datastores:operational";
/// Where operations begin.
pub(super) const OPERATIONS: &str = "/restconf/operations/";

/// Where streams of notifications begin, up to an element's name.
const STREAMS: &str = "/restconf/streams/shunt-offload/element=";

/// All of each.
const DATA_ALL: &str = "/restconf/data";
const OPERATIONS_ALL: &str = "/restconf/operations";

/// RFC 3986's unreserved characters stay as they are.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What can be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Resource {
    /// Everything, of all modules.
    Datastore,
    /// Container `yang-library` of ietf-yang-library.
    YangLibrary,
    /// Container `restconf-state` of ietf-restconf-monitoring.
    RestconfState,
    /// Container `state`: everything.
    State,
    /// Container `summary`.
    Summary,
    /// One element with all it has.
    Element(String),
    /// Container `sessions` of an element.
    Sessions(String),
    /// One session.
    Session(String, SessionKey),
    /// Container `ports` of an element.
    Ports(String),
    /// Container `statistics` of an element.
    Statistics(String),
    /// Container `shields` of an element.
    Shields(String),
}

impl Resource {
    /// Reads a path as it came.
    pub(super) fn parse(path: &str) -> Result<Self, ApiError> {
        let unknown = || no_resource(path);
        let whole = DATA.trim_end_matches('/');
        let rest = path
            .strip_prefix(whole)
            .or_else(|| path.strip_prefix(OPERATIONAL))
            .ok_or_else(unknown)?;
        let mut steps = rest.split('/');
        // What stands before the first slash, if there is one.
        if steps.next() != Some("") {
            return Err(unknown());
        }
        let module = steps.next();
        let steps: Vec<&str> = steps.collect();
        match (module, steps.as_slice()) {
            (None, _) => return Ok(Self::Datastore),
            (Some("ietf-yang-library:yang-library"), []) => return Ok(Self::YangLibrary),
            (Some("ietf-restconf-monitoring:restconf-state"), []) => {
                return Ok(Self::RestconfState);
            }
            (Some("shunt-offload:state"), []) => return Ok(Self::State),
            (Some("shunt-offload:state"), ["summary"]) => return Ok(Self::Summary),
            (Some("shunt-offload:state"), _) => {}
            _ => return Err(unknown()),
        }
        let element = steps
            .first()
            .and_then(|step| step.strip_prefix("element="))
            .and_then(decode)
            .ok_or_else(unknown)?;
        match *steps.as_slice() {
            [_] => Ok(Self::Element(element)),
            [_, "sessions"] => Ok(Self::Sessions(element)),
            [_, "ports"] => Ok(Self::Ports(element)),
            [_, "statistics"] => Ok(Self::Statistics(element)),
            [_, "shields"] => Ok(Self::Shields(element)),
            [_, "sessions", step] => step
                .strip_prefix("session=")
                .and_then(decode)
                .and_then(|key| SessionKey::try_from(key).ok())
                .map(|key| Self::Session(element, key))
                .ok_or_else(unknown),
            _ => Err(unknown()),
        }
    }

    /// The path of this resource.
    pub(super) fn path(&self) -> String {
        let state = format!("{DATA}shunt-offload:state");
        let of = |element: &str, rest: &str| format!("{state}/element={}{rest}", encode(element));
        match self {
            Self::Datastore => DATA.trim_end_matches('/').to_owned(),
            Self::YangLibrary => format!("{DATA}ietf-yang-library:yang-library"),
            Self::RestconfState => format!("{DATA}ietf-restconf-monitoring:restconf-state"),
            Self::State => state,
            Self::Summary => format!("{state}/summary"),
            Self::Element(element) => of(element, ""),
            Self::Sessions(element) => of(element, "/sessions"),
            Self::Session(element, key) => of(
                element,
                &format!("/sessions/session={}", encode(key.as_str())),
            ),
            Self::Ports(element) => of(element, "/ports"),
            Self::Statistics(element) => of(element, "/statistics"),
            Self::Shields(element) => of(element, "/shields"),
        }
    }
}

/// The element whose notifications are at `path`.
pub(crate) fn stream_of(path: &str) -> Option<String> {
    let name = path.strip_prefix(STREAMS)?.strip_suffix("/json")?;
    decode(name).filter(|_| !name.contains('/'))
}

/// Where the notifications of `element` are.
pub(super) fn stream_path(element: &str) -> String {
    format!("{STREAMS}{}/json", encode(element))
}

pub(super) fn encode(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

pub(super) fn decode(text: &str) -> Option<String> {
    // A bare comma separates keys (RFC 8040 section 3.5.3); our lists have one key.
    if text.is_empty() || text.contains(',') {
        return None;
    }
    percent_decode_str(text)
        .decode_utf8()
        .ok()
        .map(|text| text.into_owned())
}

/// There is nothing at `path`: 404.
pub(crate) fn no_resource(path: &str) -> ApiError {
    let shown: String = path.chars().take(200).collect();
    ApiError::protocol(
        StatusCode::NOT_FOUND,
        ErrorTag::InvalidValue,
        format!(
            "there is nothing at {shown}: GET {OPERATIONS_ALL} lists the operations, GET \
             {DATA_ALL} the data"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_as_it_was_written_whatever_the_keys_contain() {
        let key = SessionKey::try_from("a/b,c=%2F?#".to_owned()).unwrap();
        for resource in [
            Resource::Datastore,
            Resource::YangLibrary,
            Resource::RestconfState,
            Resource::State,
            Resource::Summary,
            Resource::Element("röuter 1/x".to_owned()),
            Resource::Sessions("r".to_owned()),
            Resource::Session("r,2".to_owned(), key),
            Resource::Ports("r".to_owned()),
            Resource::Statistics("r".to_owned()),
            Resource::Shields("r".to_owned()),
        ] {
            let path = resource.path();
            let by_datastore = path.replace("/restconf/data", OPERATIONAL);
            assert_eq!(Resource::parse(&path), Ok(resource.clone()));
            assert_eq!(Resource::parse(&by_datastore), Ok(resource));
        }
    }

    #[test]
    fn a_stream_is_found_by_its_element_s_name() {
        for name in ["r1", "r\u{f6}uter 1/x", "json", "a,b"] {
            assert_eq!(stream_of(&stream_path(name)).as_deref(), Some(name));
        }
        for wrong in ["/json", "r1", "r1/json/", "a/b/json", "%ff/json", "r1/xml"] {
            assert_eq!(stream_of(&format!("{STREAMS}{wrong}")), None, "{wrong}");
        }
        assert_eq!(stream_of("/restconf/streams/shunt-offload/json"), None);
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        for rest in [
            "",
            "shunt-offload:sate",
            "shunt-offload:state/",
            "shunt-offload:state/element",
            "shunt-offload:state/element=",
            "shunt-offload:state/element=a,b",
            "shunt-offload:state/element=%ff",
            "shunt-offload:state/element=a/session=c",
            "shunt-offload:state/element=a/sessions/session=",
            "shunt-offload:state/element=a/sessions/session=%20",
            "shunt-offload:state/element=a/sessions/session=c/status",
        ] {
            let error = Resource::parse(&format!("{DATA}{rest}")).unwrap_err();
            assert_eq!(error.status, StatusCode::NOT_FOUND, "{rest}");
        }
    }
}
