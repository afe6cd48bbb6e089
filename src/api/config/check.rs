//! Whether content is of the module.
//!
//! *Promises*: what passes has nodes of the module only, values in their canonical form,
//! and no entry twice; a refusal names the leaf by its instance identifier.
//! *Refuses*: the rest, with 400 (409 for leaves that must differ and do not).
//! *Caller's duty*: [`content`] before an edit, [`complete`] after it.
//! *Standard*: RFC 7950 sections 7.6.5 (mandatory), 7.8.3 (unique) and 15; RFC 7951.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::schema::{Kind, List, Node};
use crate::api::error::{ApiError, ErrorTag};

/// The canonical form of what `node` is given; for a list: of one entry, for a leaf-list: of
/// one value. `at` is its instance identifier.
pub(super) fn content(node: &Node, value: &Value, at: &str) -> Result<Value, ApiError> {
    match &node.kind {
        Kind::Container(nodes) => Ok(Value::Object(children(nodes, value, at)?)),
        Kind::List(list) => {
            key_of(list, value, at)?;
            Ok(Value::Object(children(list.nodes, value, at)?))
        }
        Kind::LeafList(of) => of
            .check(value)
            .map_err(|wrong| refuse(wrong.tag, wrong.message, at)),
        Kind::Leaf(leaf) => leaf
            .of
            .check(value)
            .map_err(|wrong| refuse(wrong.tag, wrong.message, at)),
    }
}

fn children(nodes: &[Node], value: &Value, at: &str) -> Result<Map<String, Value>, ApiError> {
    let given = value
        .as_object()
        .ok_or_else(|| refuse(ErrorTag::BadElement, "this is a JSON object of nodes", at))?;
    let mut checked = Map::new();
    for (name, value) in given {
        let shown: String = name.chars().take(64).collect();
        let at = format!("{at}/{shown}");
        let node = nodes.iter().find(|node| node.name == name).ok_or_else(|| {
            let known: Vec<&str> = nodes.iter().map(|node| node.name).collect();
            let message = format!("unknown node; there are {}", known.join(", "));
            refuse(ErrorTag::UnknownElement, message, &at)
        })?;
        checked.insert(name.clone(), child(node, value, &at)?);
    }
    Ok(checked)
}

/// As [`content`], and all of a list or leaf-list.
fn child(node: &Node, value: &Value, at: &str) -> Result<Value, ApiError> {
    let entries = || {
        value
            .as_array()
            .ok_or_else(|| refuse(ErrorTag::BadElement, "this is a JSON array of entries", at))
    };
    let mut seen = BTreeSet::new();
    let mut first = |key: &str, at: &str| {
        if seen.insert(key.to_owned()) {
            return Ok(());
        }
        Err(refuse(
            ErrorTag::InvalidValue,
            "this entry is there twice",
            at,
        ))
    };
    match &node.kind {
        Kind::List(list) => {
            let one = |(index, entry)| {
                let key = key_of(list, entry, &format!("{at}[{}]", index + 1))?;
                let at = format!("{at}{}", predicate(list.key, &key));
                first(&key, &at)?;
                content(node, entry, &at)
            };
            let checked: Result<_, _> = entries()?.iter().enumerate().map(one).collect();
            Ok(Value::Array(checked?))
        }
        Kind::LeafList(_) => {
            let one = |(index, entry)| {
                let at = format!("{at}[{}]", index + 1);
                let checked = content(node, entry, &at)?;
                first(&text(&checked), &at)?;
                Ok(checked)
            };
            let checked: Result<_, ApiError> = entries()?.iter().enumerate().map(one).collect();
            Ok(Value::Array(checked?))
        }
        Kind::Container(_) | Kind::Leaf(_) => content(node, value, at),
    }
}

/// The key of a list's entry.
pub(super) fn key_of(list: &List, entry: &Value, at: &str) -> Result<String, ApiError> {
    if !entry.is_object() {
        return Err(refuse(
            ErrorTag::BadElement,
            "an entry is a JSON object",
            at,
        ));
    }
    let message = format!("the entry lacks its key, `{}`", list.key);
    let given = entry
        .get(list.key)
        .ok_or_else(|| refuse(ErrorTag::MissingElement, message, at))?;
    let at = format!("{at}/{}", list.key);
    match list.key_type().map(|of| of.check(given)) {
        Some(Ok(Value::String(key))) => Ok(key),
        Some(Err(wrong)) => Err(refuse(wrong.tag, wrong.message, &at)),
        _ => Err(ApiError::failed("a list's key is no string").at(at)),
    }
}

/// Refuses a document, or what is below, that lacks what must be there or has twice what
/// must differ.
pub(super) fn complete(nodes: &[Node], value: &Value, at: &str) -> Result<(), ApiError> {
    for node in nodes {
        let found = value.get(node.name);
        let at = format!("{at}/{}", node.name);
        match (&node.kind, found) {
            (Kind::Leaf(leaf), None) if leaf.is_mandatory => {
                let message = "this leaf is missing and must be there";
                return Err(refuse(ErrorTag::MissingElement, message, &at));
            }
            (Kind::Container(nodes), found) => {
                complete(nodes, found.unwrap_or(&Value::Null), &at)?;
            }
            (Kind::List(list), Some(Value::Array(entries))) => {
                for entry in entries {
                    let key = entry.get(list.key).map(text).unwrap_or_default();
                    let at = format!("{at}{}", predicate(list.key, &key));
                    complete(list.nodes, entry, &at)?;
                }
                differ(list, entries, &at)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses entries that have the same in all leaves of a `unique` statement.
fn differ(list: &List, entries: &[Value], at: &str) -> Result<(), ApiError> {
    for leaves in list.unique {
        let mut seen = BTreeSet::new();
        for entry in entries {
            let values: Option<Vec<String>> = leaves
                .iter()
                .map(|leaf| entry.get(*leaf).map(text))
                .collect();
            if values.is_some_and(|values| !seen.insert(values)) {
                let key = entry.get(list.key).map(text).unwrap_or_default();
                let at = format!("{at}{}", predicate(list.key, &key));
                return Err(not_unique(leaves, &at));
            }
        }
    }
    Ok(())
}

/// 409: another entry has the same `leaves`.
pub fn not_unique(leaves: &[&str], at: &str) -> ApiError {
    let message = format!("another entry has the same {}", leaves.join(" and "));
    ApiError::application(StatusCode::CONFLICT, ErrorTag::OperationFailed, message)
        .app_tag("data-not-unique")
        .at(at)
}

/// `[name='r1']`.
pub fn predicate(name: &str, value: &str) -> String {
    let quote = if value.contains('\'') { '"' } else { '\'' };
    format!("[{name}={quote}{value}{quote}]")
}

/// A value as text, to compare.
fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn refuse(tag: ErrorTag, message: impl Into<String>, at: &str) -> ApiError {
    ApiError::application(StatusCode::BAD_REQUEST, tag, message).at(at)
}
