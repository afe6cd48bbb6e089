//! Changing content.
//!
//! *Promises*: an edit changes its place and nothing else; what became empty is absent
//! afterwards, entries stand in the order of their keys.
//! *Refuses*: places below entries that are not there (404), to create what is there (409).
//! *Caller's duty*: content and place were checked; the result is to be.
//! *Standard*: RFC 8040 sections 4.4.1 and 4.5 to 4.7; RFC 7950 section 7 (merging).

use serde_json::{Map, Value};

use super::schema::{Kind, Node};
use super::target::Step;

/// What is done at a place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    /// It must not be there, and is then.
    Create(Value),
    /// It is then this.
    Replace(Value),
    /// It must be there; what is told of it changes.
    Merge(Value),
    /// It must be there, and is not then.
    Remove,
}

/// Why an edit cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The place is not there.
    Absent,
    /// It is there already.
    Present,
}

/// Carries out `operation` at the place `steps` below `tree`, the content of a container or
/// of an entry. Says whether the place was there.
pub(super) fn apply(
    tree: &mut Map<String, Value>,
    steps: &[Step],
    operation: &Operation,
) -> Result<bool, Fault> {
    let Some((step, below)) = steps.split_first() else {
        return Ok(true);
    };
    let name = step.node.name;
    match &step.node.kind {
        Kind::Container(nodes) => {
            let mut content = tree.remove(name).map_or_else(Map::new, into_object);
            let outcome = match below {
                [] => at_container(&mut content, nodes, operation),
                _ => apply(&mut content, below, operation),
            };
            tree.insert(name.to_owned(), Value::Object(content));
            outcome
        }
        Kind::List(_) | Kind::LeafList(_) => {
            let mut entries = tree.remove(name).map_or_else(Vec::new, into_array);
            let outcome = at_entries(&mut entries, step, below, operation);
            tree.insert(name.to_owned(), Value::Array(entries));
            outcome
        }
        Kind::Leaf(_) => {
            let found = tree.contains_key(name);
            match judge(found, operation)? {
                Some(value) => drop(tree.insert(name.to_owned(), value.clone())),
                None => drop(tree.remove(name)),
            }
            Ok(found)
        }
    }
}

fn at_container(
    content: &mut Map<String, Value>,
    nodes: &[Node],
    operation: &Operation,
) -> Result<bool, Fault> {
    let found = !content.is_empty();
    match operation {
        // Without presence it is always there to be merged into.
        Operation::Merge(value) => merge(nodes, content, value.clone()),
        _ => {
            *content = judge(found, operation)?
                .cloned()
                .map_or_else(Map::new, into_object)
        }
    }
    Ok(found)
}

fn at_entries(
    entries: &mut Vec<Value>,
    step: &Step,
    below: &[Step],
    operation: &Operation,
) -> Result<bool, Fault> {
    let place = place_of(entries, step.node, step.key.as_deref());
    if !below.is_empty() {
        return match place.and_then(|place| entries[place].as_object_mut()) {
            Some(entry) => apply(entry, below, operation),
            None => Err(Fault::Absent),
        };
    }
    let value = judge(place.is_some(), operation)?;
    match (place, value) {
        (Some(place), Some(value)) => match (&mut entries[place], operation) {
            (Value::Object(entry), Operation::Merge(_)) => {
                merge(step.node.nodes(), entry, value.clone());
            }
            (entry, _) => *entry = value.clone(),
        },
        (Some(place), None) => drop(entries.remove(place)),
        (None, Some(value)) => entries.push(value.clone()),
        (None, None) => {}
    }
    Ok(place.is_some())
}

/// What a place that is, or is not, there becomes.
fn judge(found: bool, operation: &Operation) -> Result<Option<&Value>, Fault> {
    match (operation, found) {
        (Operation::Create(_), true) => Err(Fault::Present),
        (Operation::Merge(_) | Operation::Remove, false) => Err(Fault::Absent),
        (Operation::Remove, true) => Ok(None),
        (Operation::Create(value) | Operation::Replace(value) | Operation::Merge(value), _) => {
            Ok(Some(value))
        }
    }
}

/// Where in `entries` the entry with `key` is.
pub(super) fn place_of(entries: &[Value], node: &Node, key: Option<&str>) -> Option<usize> {
    entries.iter().position(|entry| {
        let found = match &node.kind {
            Kind::List(list) => entry.get(list.key),
            _ => Some(entry),
        };
        found.and_then(Value::as_str) == key
    })
}

/// Adds `more` to `content`: leaves are replaced, entries added or merged.
pub(super) fn merge(nodes: &[Node], content: &mut Map<String, Value>, more: Value) {
    for (name, value) in into_object(more) {
        let Some(node) = nodes.iter().find(|node| node.name == name) else {
            continue;
        };
        match &node.kind {
            Kind::Leaf(_) => drop(content.insert(name, value)),
            Kind::Container(nodes) => {
                let mut below = content.remove(&name).map_or_else(Map::new, into_object);
                merge(nodes, &mut below, value);
                content.insert(name, Value::Object(below));
            }
            Kind::List(_) | Kind::LeafList(_) => {
                let mut entries = content.remove(&name).map_or_else(Vec::new, into_array);
                for entry in into_array(value) {
                    merge_entry(node, &mut entries, entry);
                }
                content.insert(name, Value::Array(entries));
            }
        }
    }
}

fn merge_entry(node: &Node, entries: &mut Vec<Value>, entry: Value) {
    let key = match &node.kind {
        Kind::List(list) => entry.get(list.key).and_then(Value::as_str),
        _ => entry.as_str(),
    };
    match place_of(entries, node, key) {
        None => entries.push(entry),
        Some(place) => {
            if let Value::Object(found) = &mut entries[place] {
                merge(node.nodes(), found, entry);
            }
        }
    }
}

/// Takes away what is empty, and sorts entries.
pub(super) fn tidy(nodes: &[Node], content: &mut Map<String, Value>) {
    content.retain(|name, value| {
        let node = nodes.iter().find(|node| node.name == name);
        match (node.map(|node| &node.kind), value) {
            (Some(Kind::Container(nodes)), Value::Object(below)) => {
                tidy(nodes, below);
                !below.is_empty()
            }
            (Some(Kind::List(list)), Value::Array(entries)) => {
                for entry in entries.iter_mut().filter_map(Value::as_object_mut) {
                    tidy(list.nodes, entry);
                }
                entries.sort_by_key(|entry| sorted_by(entry.get(list.key)));
                !entries.is_empty()
            }
            (Some(Kind::LeafList(_)), Value::Array(entries)) => {
                entries.sort_by_key(|entry| sorted_by(Some(entry)));
                !entries.is_empty()
            }
            _ => true,
        }
    });
}

fn sorted_by(key: Option<&Value>) -> String {
    key.and_then(Value::as_str).unwrap_or_default().to_owned()
}

pub(super) fn into_object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(content) => content,
        _ => Map::new(),
    }
}

pub(super) fn into_array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(entries) => entries,
        _ => Vec::new(),
    }
}
