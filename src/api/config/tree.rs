//! Documents as one tree, and what is at a place in it.
//!
//! *Promises*: a tree taken apart is the documents it was made of.
//! *Refuses*: nothing; what is not there is `None`.
//! *Caller's duty*: content is of the module.
//! *Standard*: RFC 8040 section 3.5.4 (defaults).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::schema::{Kind, Node};
use super::target::{Step, Target};
use super::{DocumentId, Loaded, Tag, edit};

/// Documents as the content of a datastore.
pub(super) fn tree_of(target: &Target, loaded: &Loaded) -> Map<String, Value> {
    let mut top = Map::new();
    for (id, stored) in &loaded.documents {
        let list = top
            .entry(id.list)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(entries) = list {
            entries.push(stored.content.clone());
        }
    }
    Map::from_iter([(target.module.top.name.to_owned(), Value::Object(top))])
}

/// The reverse of [`tree_of`].
pub(super) fn documents(
    top: &'static Node,
    mut tree: Map<String, Value>,
) -> BTreeMap<DocumentId, Value> {
    let content = tree
        .remove(top.name)
        .map_or_else(Map::new, edit::into_object);
    let mut documents = BTreeMap::new();
    for (name, entries) in content {
        let Some(node) = top.child(&name) else {
            continue;
        };
        for entry in edit::into_array(entries) {
            if let Some(id) = id_of(node, &entry) {
                documents.insert(id, entry);
            }
        }
    }
    documents
}

pub(super) fn id_of(node: &'static Node, entry: &Value) -> Option<DocumentId> {
    let Kind::List(list) = &node.kind else {
        return None;
    };
    let key = entry.get(list.key)?.as_str()?.to_owned();
    Some(DocumentId {
        list: node.name,
        key,
    })
}

/// What is at `target`, or holds there by default.
pub(super) fn find(tree: &Map<String, Value>, target: &Target) -> Option<Value> {
    let Some((last, above)) = target.steps.split_last() else {
        return Some(Value::Object(tree.clone()));
    };
    let mut content = Some(tree);
    for step in above {
        content = match &step.node.kind {
            // Without presence it is there, empty.
            Kind::Container(_) => content.and_then(|content| content.get(step.node.name)),
            _ => Some(entry_of(content?, step)?),
        }
        .and_then(Value::as_object);
    }
    match &last.node.kind {
        Kind::Container(_) => {
            let found = content.and_then(|content| content.get(last.node.name));
            Some(found.cloned().unwrap_or_else(|| json!({})))
        }
        Kind::List(_) | Kind::LeafList(_) => entry_of(content?, last).cloned(),
        Kind::Leaf(leaf) => {
            let found = content.and_then(|content| content.get(last.node.name));
            found.cloned().or_else(|| leaf.default.map(Value::from))
        }
    }
}

fn entry_of<'a>(content: &'a Map<String, Value>, step: &Step) -> Option<&'a Value> {
    let entries = content.get(step.node.name)?.as_array()?;
    let place = edit::place_of(entries, step.node, step.key.as_deref())?;
    entries.get(place)
}

/// The state of what is at `target`: of its document, or of everything.
pub(super) fn tag_of(target: &Target, loaded: &Loaded) -> Option<Tag> {
    match target.document() {
        Some(id) => loaded.documents.get(&id).map(|stored| stored.tag),
        None => Some(loaded.generation),
    }
}
