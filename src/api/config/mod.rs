//! Configuration over RESTCONF: one implementation for every program that has some.
//!
//! *Promises*: an edit is carried out whole or not at all, on exactly the state that its
//! conditions were judged by; what is stored is of the module; a refusal names the leaf.
//! *Refuses*: `insert` and `point` (no list is ordered by its user), `with-defaults`, RFC
//! 8072.
//! *Caller's duty*: a [`Datastore`], and judging who may ask, before the routes.
//! *Standard*: RFC 8040 sections 3 to 5 and 7; RFC 7951.

use std::collections::BTreeMap;

use serde_json::Value;

mod body;
mod check;
mod condition;
mod edit;
mod http;
pub mod schema;
mod target;
#[cfg(test)]
mod tests;
mod tree;

pub use super::prefix::{InvalidPrefix, Prefix};
pub use check::{not_unique, predicate};
pub use http::{Site, Told, routes};

use super::control::Answer;
use schema::Module;

/// Which state something is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tag {
    /// Changes whenever it does.
    pub revision: u64,
    /// When it was changed last: seconds since 1970.
    pub modified: u64,
}

/// The name of a document: an entry of a list in the module's container.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct DocumentId {
    /// The list.
    pub list: &'static str,
    /// The entry's key.
    pub key: String,
}

/// Which documents are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All of them.
    All,
    /// Of these those that are there.
    Some(Vec<DocumentId>),
}

/// A document, and its state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Its state.
    pub tag: Tag,
    /// Its content: a JSON object.
    pub content: Value,
}

/// Documents as they were at one time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Loaded {
    /// The state of the whole configuration.
    pub generation: Tag,
    /// The documents asked for.
    pub documents: BTreeMap<DocumentId, Stored>,
}

/// What a document becomes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which.
    pub id: DocumentId,
    /// What it was when it was loaded.
    pub before: Option<Stored>,
    /// What it is to be; `None`: absent.
    pub after: Option<Value>,
}

/// What became of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Committed {
    /// It was carried out; the state that is now.
    Done(Tag),
    /// The configuration has changed since it was loaded; nothing was done.
    Raced,
}

/// The document that `path` is about, and the node below it on the way.
pub(crate) fn document_at(
    module: &'static Module,
    path: &str,
) -> Option<(DocumentId, Option<&'static str>)> {
    let target = target::Target::parse(module, path).ok()?;
    let below = target.steps.get(2).map(|step| step.node.name);
    Some((target.document()?, below))
}

/// Where a module's configuration lies.
pub trait Datastore: Send + Sync + 'static {
    /// The module.
    fn module(&self) -> &'static Module;

    /// Documents, and the state of the whole: if that has not changed by the time of a
    /// commit, nothing that was read has.
    fn load(&self, scope: Scope) -> Answer<'_, Loaded>;

    /// Carries out all of `changes`, or none, if the configuration is still as `base` was.
    /// Judges what follows from several documents before.
    fn commit(&self, base: Tag, changes: Vec<Change>) -> Answer<'_, Committed>;
}
