//! Where the configuration lies: documents under keys, each with the revision of its last
//! change.
//!
//! *Promises*: a commit is carried out whole, durably, or not at all, and only if every
//! document it touches is at the revision its step names; a watch misses nothing: it tells
//! what there is, then every change in order, and begins anew where it fell behind.
//! *Refuses*: to know what is in a document; documents above [`VALUE_MAX`], commits above
//! [`Store::steps_max`].
//! *Caller's duty*: never a session: sessions are the backends'. A commit that failed with
//! [`StoreError::Unavailable`] may have been carried out.
//! *Standard*: none.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::config::StoreConfig;

mod archive;
mod embedded;
mod etcd;
#[cfg(test)]
mod tests;

pub use archive::{ArchiveError, backup, restore};
pub use embedded::Embedded;
pub use etcd::{Etcd, Files, Settings};

/// Largest document, bytes: what etcd takes, with room for what surrounds it.
pub const VALUE_MAX: usize = 1 << 20;

/// Batches that a watch may be behind before it waits.
const WATCH_DEPTH: usize = 64;

/// A number that grows with every commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Revision(pub u64);

/// A document as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    /// Its key.
    pub key: String,
    /// The commit that wrote it.
    pub revision: Revision,
    /// Its content.
    pub value: Vec<u8>,
}

/// One change of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    key: String,
    /// The revision it must be at; `None`: it must not be there.
    expected: Option<Revision>,
    /// Its new content; `None`: it is deleted.
    value: Option<Vec<u8>>,
}

impl Step {
    /// Writes a document that is not there.
    pub fn create(key: impl Into<String>, value: Vec<u8>) -> Self {
        Self {
            key: key.into(),
            expected: None,
            value: Some(value),
        }
    }

    /// Writes a document that is at `revision`.
    pub fn replace(key: impl Into<String>, revision: Revision, value: Vec<u8>) -> Self {
        Self {
            key: key.into(),
            expected: Some(revision),
            value: Some(value),
        }
    }

    /// Deletes a document that is at `revision`.
    pub fn delete(key: impl Into<String>, revision: Revision) -> Self {
        Self {
            key: key.into(),
            expected: Some(revision),
            value: None,
        }
    }
}

/// All documents under a prefix, as they were at one revision, by key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listing {
    /// The prefix.
    pub prefix: String,
    /// The documents.
    pub documents: Vec<Document>,
    /// The newest commit there was.
    pub revision: Revision,
}

/// What became of a document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Its key.
    pub key: String,
    /// What it is now; `None`: it was deleted.
    pub document: Option<Document>,
}

/// What a watch tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// All there is. Told at first, and again where changes may have been missed.
    Everything(Listing),
    /// The changes of one commit.
    Changed(Vec<Change>),
}

/// A stream of what happens under a prefix. It ends when its store does.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Event>,
}

impl Watch {
    fn new() -> (mpsc::Sender<Event>, Self) {
        let (sender, events) = mpsc::channel(WATCH_DEPTH);
        (sender, Self { events })
    }

    /// The next event; `None`: the store is closed.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// All events of `watches`, those of each in order; ends when one of them does.
    pub fn merged(watches: Vec<Self>) -> Self {
        let (events, merged) = Self::new();
        let mut parts = JoinSet::new();
        for mut watch in watches {
            let events = events.clone();
            parts.spawn(async move {
                while let Some(event) = watch.next().await {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
            });
        }
        tokio::spawn(async move {
            // Without one of them the rest is not everything.
            parts.join_next().await;
        });
        merged
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A document is not at the revision that was named; nothing was done.
    #[error("`{key}` was changed meanwhile")]
    Conflict {
        /// Which.
        key: String,
    },
    /// More than it takes; nothing was done.
    #[error("{what} of {count} is more than the store takes ({max}): change less at a time")]
    TooBig {
        /// What is too big.
        what: &'static str,
        /// How big.
        count: usize,
        /// How big it may be.
        max: usize,
    },
    /// It cannot be opened.
    #[error("cannot open the store {path}: {hint}")]
    Open {
        /// The file.
        path: String,
        /// What to do.
        hint: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It does not work at the moment.
    #[error("the store does not answer")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A future answer of a store.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Documents that several readers and writers share.
pub trait Store: Send + Sync + 'static {
    /// The document under `key`.
    fn get<'a>(&'a self, key: &'a str) -> Later<'a, Option<Document>>;

    /// Carries out all of `steps`, which touch each key once, or none; gives the revision
    /// that what was written has.
    fn commit(&self, steps: Vec<Step>) -> Later<'_, Revision>;

    /// The documents whose keys begin with `prefix`.
    fn list<'a>(&'a self, prefix: &'a str) -> Later<'a, Listing>;

    /// What happens to documents whose keys begin with `prefix`.
    fn watch<'a>(&'a self, prefix: &'a str) -> Later<'a, Watch>;

    /// Most steps of a commit.
    fn steps_max(&self) -> usize;
}

/// The store that `config` names.
///
/// # Errors
/// [`StoreError::Open`].
pub fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match config.etcd() {
        Some(settings) => Arc::new(Etcd::new(settings)?),
        None => Arc::new(Embedded::open(config.file())?),
    })
}

/// Refuses what no store takes.
fn check(steps: &[Step], steps_max: usize) -> Result<(), StoreError> {
    let too_big = |what, count, max| Err(StoreError::TooBig { what, count, max });
    if steps.len() > steps_max {
        return too_big("a change", steps.len(), steps_max);
    }
    let largest = steps.iter().filter_map(|step| step.value.as_ref());
    match largest.map(Vec::len).max() {
        Some(bytes) if bytes > VALUE_MAX => too_big("a document", bytes, VALUE_MAX),
        _ => Ok(()),
    }
}
