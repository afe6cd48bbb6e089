//! What a request is about: from a path to a place in the configuration.
//!
//! *Promises*: keys are percent-decoded after the path was cut into its steps; a target's
//! path reads back as the same target.
//! *Refuses*: nodes that the module does not have, lists without a key (404).
//! *Caller's duty*: pass the path as it came, not decoded.
//! *Standard*: RFC 8040 section 3.5.3; RFC 7951 section 6.11 (instance identifiers).

use serde_json::Value;

use super::schema::{Kind, Module, Node};
use super::{DocumentId, check};
use crate::api::error::ApiError;
use crate::api::path::{DATA, decode, encode, no_resource};

/// A place in the configuration. Without steps: all of it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) module: &'static Module,
    pub(super) steps: Vec<Step>,
}

/// A node, and which of several.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) node: &'static Node,
    /// The entry's key, or the value of a leaf-list's entry.
    pub(super) key: Option<String>,
}

impl Target {
    /// Reads a path that begins with [`DATA`], without the slash at its end for all of it.
    pub(super) fn parse(module: &'static Module, path: &str) -> Result<Self, ApiError> {
        let unknown = || no_resource(path);
        let mut target = Self {
            module,
            steps: Vec::new(),
        };
        if path == DATA.trim_end_matches('/') {
            return Ok(target);
        }
        let rest = path.strip_prefix(DATA).ok_or_else(unknown)?;
        for (depth, text) in rest.split('/').enumerate() {
            let (name, key) = match text.split_once('=') {
                Some((name, key)) => (name, Some(decode(key).ok_or_else(unknown)?)),
                None => (text, None),
            };
            let node = if depth == 0 {
                let name = name
                    .strip_prefix(module.name)
                    .and_then(|name| name.strip_prefix(':'));
                (name == Some(module.top.name)).then_some(&module.top)
            } else {
                // The module's name may be said again (RFC 8040 section 3.5.3).
                let name = name
                    .strip_prefix(module.name)
                    .and_then(|name| name.strip_prefix(':'))
                    .unwrap_or(name);
                target.steps.last().and_then(|step| step.node.child(name))
            };
            let step = Step::new(node.ok_or_else(unknown)?, key).ok_or_else(unknown)?;
            target.steps.push(step);
        }
        Ok(target)
    }

    /// The place of `node` below, with `key`.
    pub(super) fn child(&self, node: &'static Node, key: Option<String>) -> Self {
        let mut steps = self.steps.clone();
        steps.push(Step { node, key });
        Self {
            module: self.module,
            steps,
        }
    }

    /// The node; `None`: all of the configuration.
    pub(super) fn node(&self) -> Option<&'static Node> {
        self.steps.last().map(|step| step.node)
    }

    /// The node `name` below, with its module's name.
    pub(super) fn child_node(&self, qualified: &str) -> Option<&'static Node> {
        let name = qualified
            .strip_prefix(self.module.name)
            .and_then(|name| name.strip_prefix(':'))?;
        match self.node() {
            Some(node) => node.child(name),
            None => (name == self.module.top.name).then_some(&self.module.top),
        }
    }

    /// The document it is in; `None`: it is above documents.
    pub(super) fn document(&self) -> Option<DocumentId> {
        let step = self.steps.get(1)?;
        step.key.as_ref().map(|key| DocumentId {
            list: step.node.name,
            key: key.clone(),
        })
    }

    /// Its path.
    pub(super) fn path(&self) -> String {
        let mut path = DATA.trim_end_matches('/').to_owned();
        for (depth, step) in self.steps.iter().enumerate() {
            path.push('/');
            if depth == 0 {
                path.push_str(self.module.name);
                path.push(':');
            }
            path.push_str(step.node.name);
            if let Some(key) = &step.key {
                path.push('=');
                path.push_str(&encode(key));
            }
        }
        path
    }

    /// Its instance identifier, for errors.
    pub(super) fn instance(&self) -> String {
        let mut path = String::new();
        for (depth, step) in self.steps.iter().enumerate() {
            path.push('/');
            if depth == 0 {
                path.push_str(self.module.name);
                path.push(':');
            }
            path.push_str(step.node.name);
            match (&step.node.kind, &step.key) {
                (Kind::List(list), Some(key)) => path.push_str(&check::predicate(list.key, key)),
                (Kind::LeafList(_), Some(key)) => path.push_str(&check::predicate(".", key)),
                _ => {}
            }
        }
        path
    }

    /// The methods it takes, for `Allow`.
    pub(super) fn methods(&self) -> &'static str {
        match self.node() {
            None => "GET, HEAD, OPTIONS, POST, PUT, PATCH",
            Some(node) if node.is_leaf() => "GET, HEAD, OPTIONS, PUT, PATCH, DELETE",
            Some(_) => "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE",
        }
    }
}

impl Step {
    /// `None`: a key is missing, too much or none of its type.
    fn new(node: &'static Node, key: Option<String>) -> Option<Self> {
        let of = match &node.kind {
            Kind::List(list) => list.key_type(),
            Kind::LeafList(of) => Some(*of),
            Kind::Container(_) | Kind::Leaf(_) => None,
        };
        let key = match (of, key) {
            (None, None) => None,
            (Some(of), Some(key)) => match of.check(&Value::String(key)).ok()? {
                Value::String(key) => Some(key),
                _ => return None,
            },
            _ => return None,
        };
        Some(Self { node, key })
    }
}
