//! What the body of an edit means.
//!
//! *Promises*: the place and content that come out are of the module.
//! *Refuses*: bodies that are not one node, of the name and key that the path says (400).
//! *Caller's duty*: none.
//! *Standard*: RFC 8040 sections 4.4.1, 4.5 and 4.6; RFC 7951 section 4.

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value};

use super::check;
use super::edit::Operation;
use super::schema::{Kind, Node};
use super::target::Target;
use crate::api::error::{ApiError, ErrorTag};

/// The place and the operation that a request with a body means.
pub(super) fn read(
    method: &Method,
    asked: &Target,
    body: &Value,
) -> Result<(Target, Operation), ApiError> {
    let (name, value) = only_member(body)?;
    if *method == Method::POST {
        let at = format!("{}/{name}", asked.instance());
        let node = asked.child_node(name).ok_or_else(|| unknown(&at))?;
        let (place, value) = addressed(asked, node, value)?;
        return kept(place, Operation::Create(value));
    }
    let value = match asked.node() {
        None if name == "ietf-restconf:data" => whole(asked, value)?,
        None => return Err(misnamed(name, "ietf-restconf:data")),
        Some(node) => {
            let expected = format!("{}:{}", asked.module.name, node.name);
            if name != expected {
                return Err(misnamed(name, &expected));
            }
            named(asked, node, value)?
        }
    };
    let operation = match *method {
        Method::PUT => Operation::Replace(value),
        _ => Operation::Merge(value),
    };
    kept(asked.clone(), operation)
}

/// What a DELETE means.
pub(super) fn removal(asked: &Target) -> Result<(Target, Operation), ApiError> {
    kept(asked.clone(), Operation::Remove)
}

fn kept(place: Target, operation: Operation) -> Result<(Target, Operation), ApiError> {
    keep_key(&place, &operation)?;
    Ok((place, operation))
}

/// The one member of a body.
fn only_member(body: &Value) -> Result<(&str, &Value), ApiError> {
    match body.as_object().map(|object| object.iter()) {
        Some(mut members) if members.len() == 1 => members
            .next()
            .map(|(name, value)| (name.as_str(), value))
            .ok_or_else(|| misnamed("", "a node")),
        _ => Err(bad(
            ErrorTag::InvalidValue,
            "a body is a JSON object with one node, under its module's name",
            "/",
        )),
    }
}

/// The place and content of a new child `node` of `parent`.
fn addressed(
    parent: &Target,
    node: &'static Node,
    value: &Value,
) -> Result<(Target, Value), ApiError> {
    let at = format!("{}/{}", parent.child(node, None).instance(), "");
    let at = at.trim_end_matches('/');
    match &node.kind {
        Kind::Container(_) | Kind::Leaf(_) => {
            let value = check::content(node, value, at)?;
            Ok((parent.child(node, None), value))
        }
        Kind::List(list) => {
            let entry = only_entry(value, at)?;
            let key = check::key_of(list, entry, at)?;
            let place = parent.child(node, Some(key));
            let value = check::content(node, entry, &place.instance())?;
            Ok((place, value))
        }
        Kind::LeafList(_) => {
            let value = check::content(node, only_entry(value, at)?, at)?;
            let key = value.as_str().map(ToOwned::to_owned);
            Ok((parent.child(node, key), value))
        }
    }
}

/// The content for `target`, whose key it must have.
fn named(target: &Target, node: &'static Node, value: &Value) -> Result<Value, ApiError> {
    let at = target.instance();
    let key = target.steps.last().and_then(|step| step.key.as_deref());
    let (value, given, at_key) = match &node.kind {
        Kind::Container(_) | Kind::Leaf(_) => return check::content(node, value, &at),
        Kind::List(list) => {
            let entry = only_entry(value, &at)?;
            let given = check::key_of(list, entry, &at)?;
            (entry, given, format!("{at}/{}", list.key))
        }
        Kind::LeafList(_) => {
            let entry = only_entry(value, &at)?;
            let checked = check::content(node, entry, &at)?;
            (
                entry,
                checked.as_str().unwrap_or_default().to_owned(),
                at.clone(),
            )
        }
    };
    if Some(given.as_str()) != key {
        let message = format!(
            "the path says `{}`, the body `{given}`",
            key.unwrap_or_default()
        );
        return Err(bad(ErrorTag::InvalidValue, message, &at_key));
    }
    check::content(node, value, &at)
}

/// The content of `ietf-restconf:data`.
fn whole(target: &Target, value: &Value) -> Result<Value, ApiError> {
    let at = "/ietf-restconf:data";
    let given = value
        .as_object()
        .ok_or_else(|| bad(ErrorTag::BadElement, "this is a JSON object of nodes", at))?;
    let mut content = Map::new();
    for (name, value) in given {
        let node = target
            .child_node(name)
            .ok_or_else(|| unknown(&format!("/{name}")))?;
        let at = target.child(node, None).instance();
        content.insert(node.name.to_owned(), check::content(node, value, &at)?);
    }
    Ok(Value::Object(content))
}

fn only_entry<'a>(value: &'a Value, at: &str) -> Result<&'a Value, ApiError> {
    match value.as_array().map(Vec::as_slice) {
        Some([entry]) => Ok(entry),
        _ => Err(bad(
            ErrorTag::BadElement,
            "this is a JSON array with one entry",
            at,
        )),
    }
}

/// Refuses to change the key of an entry, which is what it is found by.
fn keep_key(place: &Target, operation: &Operation) -> Result<(), ApiError> {
    let [.., entry, leaf] = place.steps.as_slice() else {
        return Ok(());
    };
    let Kind::List(list) = &entry.node.kind else {
        return Ok(());
    };
    if list.key != leaf.node.name {
        return Ok(());
    }
    let is_kept = match operation {
        Operation::Create(value) | Operation::Replace(value) | Operation::Merge(value) => {
            value.as_str() == entry.key.as_deref()
        }
        Operation::Remove => false,
    };
    if is_kept {
        Ok(())
    } else {
        let message = "a key stays as long as its entry: create another entry";
        Err(bad(ErrorTag::InvalidValue, message, &place.instance()))
    }
}

fn unknown(at: &str) -> ApiError {
    let shown: String = at.chars().take(300).collect();
    bad(
        ErrorTag::UnknownElement,
        "there is no such node here",
        &shown,
    )
}

fn misnamed(found: &str, expected: &str) -> ApiError {
    let shown: String = found.chars().take(64).collect();
    let message = format!("the body's node is `{shown}`: `{expected}` is what the path names");
    bad(ErrorTag::UnknownElement, message, &format!("/{shown}"))
}

fn bad(tag: ErrorTag, message: impl Into<String>, at: &str) -> ApiError {
    ApiError::application(StatusCode::BAD_REQUEST, tag, message).at(at)
}
