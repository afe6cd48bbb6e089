//! What watches have told, for the time in which etcd does not answer.
//!
//! *Promises*: an answer is what there was at one revision, and not older than
//! what the caller has seen.
//! *Refuses*: what no watch covers.
//! *Caller's duty*: one watch of a prefix; its events are told in order, and its end.
//! *Standard*: none.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::controller::store::{Change, Document, Listing, Revision};

/// See the module.
#[derive(Default)]
pub struct Copies {
    /// By the watches' prefixes.
    copies: RwLock<BTreeMap<String, Copy>>,
}

#[derive(Default)]
struct Copy {
    documents: BTreeMap<String, Document>,
    revision: Revision,
}

impl Copies {
    /// A watch has told everything.
    pub fn replace(&self, listing: &Listing) {
        let documents = listing.documents.iter().cloned();
        let copy = Copy {
            documents: documents.map(|one| (one.key.clone(), one)).collect(),
            revision: listing.revision,
        };
        let mut copies = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        copies.insert(listing.prefix.clone(), copy);
    }

    /// The watch of `prefix` has told the changes of `revision`.
    pub fn apply(&self, prefix: &str, revision: Revision, changes: &[Change]) {
        let mut copies = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        let Some(copy) = copies.get_mut(prefix) else {
            return;
        };
        copy.revision = revision;
        for change in changes {
            match &change.document {
                Some(document) => {
                    copy.documents.insert(change.key.clone(), document.clone());
                }
                None => {
                    copy.documents.remove(&change.key);
                }
            }
        }
    }

    /// The watch of `prefix` has ended.
    pub fn forget(&self, prefix: &str) {
        let mut copies = self.copies.write().unwrap_or_else(PoisonError::into_inner);
        copies.remove(prefix);
    }

    /// The document under `key`, at `seen` or later; `None`: it is not known whether there is
    /// one.
    pub fn get(&self, key: &str, seen: Revision) -> Option<Option<Document>> {
        self.with(key, seen, |copy| copy.documents.get(key).cloned())
    }

    /// The documents under `prefix`, as [`Copies::get`].
    pub fn list(&self, prefix: &str, seen: Revision) -> Option<Listing> {
        self.with(prefix, seen, |copy| {
            let documents = copy.documents.range(prefix.to_owned()..);
            Listing {
                prefix: prefix.to_owned(),
                documents: documents
                    .take_while(|(key, _)| key.starts_with(prefix))
                    .map(|(_, document)| document.clone())
                    .collect(),
                revision: copy.revision,
            }
        })
    }

    fn with<T>(&self, of: &str, seen: Revision, read: impl Fn(&Copy) -> T) -> Option<T> {
        let copies = self.copies.read().unwrap_or_else(PoisonError::into_inner);
        let covers = |(prefix, copy): &(&String, &Copy)| {
            of.starts_with(prefix.as_str()) && copy.revision >= seen
        };
        copies.iter().find(covers).map(|(_, copy)| read(copy))
    }
}
