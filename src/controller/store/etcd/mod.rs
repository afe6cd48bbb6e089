//! A store in etcd, for several controllers.
//!
//! *Promises*: a commit compares the revisions of all it touches in the transaction that
//! writes it; an edit through one controller is told to the watches of all. While etcd does
//! not answer, reads come from what a watch has told last, never from before what was read
//! already; the watch goes on where it was when etcd is back.
//! *Refuses*: commits of more operations or bytes than etcd takes at once.
//! *Caller's duty*: a tokio runtime; a prefix that nobody else writes under.
//! *Standard*: etcd's API v3. Keys are the prefix and the document's key; a document's
//! revision is its `mod_revision`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, KvClient, ResponseHeader, Txn, TxnOp, TxnOpResponse,
};
use tokio::sync::watch;

use super::{Document, Event, Later, Listing, Revision, Step, Store, StoreError, Watch};
use cluster::{Cluster, Failed};
use copy::Copies;
use follow::Follow;

mod cluster;
mod copy;
mod follow;
#[cfg(test)]
pub mod tests;

pub use cluster::Files;

/// Keys of one answer of a listing, and how many at least where they do not fit.
const PAGE: i64 = 4_096;
const PAGE_MIN: i64 = 32;
/// Bytes of a commit: etcd takes 1.5 MiB, with keys and what surrounds them.
const COMMIT_MAX: usize = (1 << 20) + (256 << 10);

/// Where etcd is, and what of it is ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// URLs of members, those to prefer first; at least one.
    pub members: Vec<String>,
    /// For members with TLS.
    pub files: Option<Files>,
    /// What all keys begin with; not empty.
    pub prefix: String,
    /// Operations of a transaction that etcd takes.
    pub operations_max: usize,
}

/// See the module.
pub struct Etcd {
    shared: Arc<Shared>,
    /// Watches end when it goes.
    open: watch::Sender<()>,
}

struct Shared {
    cluster: Cluster,
    prefix: String,
    operations_max: usize,
    copies: Copies,
    /// The newest revision of a document that was read or written.
    seen: AtomicU64,
}

impl Etcd {
    /// A store at `settings`; it need not answer yet.
    ///
    /// # Errors
    /// [`StoreError::Open`]: a file for TLS cannot be read.
    pub fn new(settings: Settings) -> Result<Self, StoreError> {
        let cluster = Cluster::new(settings.members, settings.files);
        cluster.check().map_err(|failed| StoreError::Open {
            path: "etcd".to_owned(),
            hint: "`ca`, `certificate` and `key` of [store] must be readable PEM files",
            source: failed.into(),
        })?;
        let shared = Shared {
            cluster,
            prefix: settings.prefix,
            operations_max: settings.operations_max,
            copies: Copies::default(),
            seen: AtomicU64::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            open: watch::Sender::new(()),
        })
    }

    async fn do_get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        let shared = &self.shared;
        let known = || shared.copies.get(key, shared.seen());
        self.or_known(shared.get(key), known).await
    }

    async fn do_list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let shared = &self.shared;
        let known = || shared.copies.list(prefix, shared.seen());
        self.or_known(shared.list(prefix), known).await
    }

    /// What etcd answers, or else what is `known`.
    async fn or_known<T>(
        &self,
        asked: impl Future<Output = Result<T, Failed>>,
        known: impl Fn() -> Option<T>,
    ) -> Result<T, StoreError> {
        if self.shared.cluster.is_resting()
            && let Some(known) = known()
        {
            return Ok(known);
        }
        match asked.await {
            Ok(answer) => Ok(answer),
            Err(failed) => known().ok_or_else(|| unavailable(failed)),
        }
    }

    async fn do_commit(&self, steps: Vec<Step>) -> Result<Revision, StoreError> {
        let shared = &self.shared;
        super::check(&steps, shared.operations_max)?;
        check_bytes(&steps)?;
        let txn = shared.transaction(&steps);
        let asked = |mut kv: KvClient| {
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        };
        let response = shared.cluster.change(asked).await.map_err(unavailable)?;
        if !response.succeeded() {
            return Err(conflict(&steps, &response.op_responses()));
        }
        let revision = newest(response.header());
        shared.saw(revision);
        Ok(revision)
    }

    async fn do_watch(&self, prefix: &str) -> Result<Watch, StoreError> {
        let listing = self.shared.list(prefix).await.map_err(unavailable)?;
        let next = listing.revision.0 + 1;
        let (events, watch) = Watch::new();
        self.shared.copies.replace(&listing);
        // The channel is empty.
        let _first = events.try_send(Event::Everything(listing));
        let follow = Follow::new(self.shared.clone(), prefix.to_owned(), next, events);
        tokio::spawn(follow.run(self.open.subscribe()));
        Ok(watch)
    }
}

impl Shared {
    /// etcd's key, or prefix, of ours.
    fn prefix_of(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn seen(&self) -> Revision {
        Revision(self.seen.load(Ordering::Relaxed))
    }

    fn saw(&self, revision: Revision) {
        self.seen.fetch_max(revision.0, Ordering::Relaxed);
    }

    /// Our document of etcd's; `None`: its key is none of ours.
    fn document(&self, found: &KeyValue) -> Option<Document> {
        let key = found.key_str().ok()?.strip_prefix(&self.prefix)?;
        Some(Document {
            key: key.to_owned(),
            revision: revision(found.mod_revision()),
            value: found.value().to_vec(),
        })
    }

    fn transaction(&self, steps: &[Step]) -> Txn {
        let compares: Vec<Compare> = steps
            .iter()
            .map(|step| {
                // Of what is not there it is 0.
                let expected = step.expected.unwrap_or_default().0;
                let expected = i64::try_from(expected).unwrap_or(i64::MAX);
                Compare::mod_revision(self.prefix_of(&step.key), CompareOp::Equal, expected)
            })
            .collect();
        let writes: Vec<TxnOp> = steps
            .iter()
            .map(|step| match &step.value {
                Some(value) => TxnOp::put(self.prefix_of(&step.key), value.clone(), None),
                None => TxnOp::delete(self.prefix_of(&step.key), None),
            })
            .collect();
        let only_keys = GetOptions::new().with_keys_only();
        let reads: Vec<TxnOp> = steps
            .iter()
            .map(|step| TxnOp::get(self.prefix_of(&step.key), Some(only_keys.clone())))
            .collect();
        Txn::new().when(compares).and_then(writes).or_else(reads)
    }

    async fn get(&self, key: &str) -> Result<Option<Document>, Failed> {
        let path = self.prefix_of(key);
        let asked = |mut kv: KvClient| {
            let path = path.clone();
            async move { kv.get(path, None).await }
        };
        let response = self.cluster.ask(asked).await?;
        let found = response.kvs().first();
        let found = found.and_then(|found| self.document(found));
        if let Some(document) = &found {
            self.saw(document.revision);
        }
        Ok(found)
    }

    /// What is under `prefix`, at one revision, page by page.
    async fn list(&self, prefix: &str) -> Result<Listing, Failed> {
        let mut page = PAGE;
        loop {
            match self.list_by(prefix, page).await {
                // A page was too large, or took so long that its revision is kept no longer.
                Err(failed) if failed.is_out_of_range() && page > PAGE_MIN => page /= 8,
                outcome => return outcome,
            }
        }
    }

    async fn list_by(&self, prefix: &str, page: i64) -> Result<Listing, Failed> {
        let mut listing = Listing {
            prefix: prefix.to_owned(),
            ..Listing::default()
        };
        let mut from = self.prefix_of(prefix).into_bytes();
        let end = end_of(from.clone());
        loop {
            let at = i64::try_from(listing.revision.0).unwrap_or(i64::MAX);
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(page)
                .with_revision(at);
            let asked = |mut kv: KvClient| {
                let (from, options) = (from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            };
            let response = self.cluster.ask(asked).await?;
            if at == 0 {
                listing.revision = newest(response.header());
            }
            let found = response.kvs();
            let documents = found.iter().filter_map(|found| self.document(found));
            listing.documents.extend(documents);
            match found.last() {
                Some(last) if response.more() => {
                    from.clear();
                    from.extend_from_slice(last.key());
                    from.push(0);
                }
                _ => break,
            }
        }
        let newest = listing.documents.iter().map(|one| one.revision).max();
        self.saw(newest.unwrap_or_default());
        Ok(listing)
    }
}

/// The first key after all that begin with `prefix`.
fn end_of(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if let Some(next) = last.checked_add(1) {
            prefix.push(next);
            return prefix;
        }
    }
    // To etcd: the end of all keys.
    vec![0]
}

fn check_bytes(steps: &[Step]) -> Result<(), StoreError> {
    let of = |step: &Step| step.key.len() + step.value.as_ref().map_or(0, Vec::len);
    let count = steps.iter().map(of).sum();
    if count > COMMIT_MAX {
        return Err(StoreError::TooBig {
            what: "a change's bytes",
            count,
            max: COMMIT_MAX,
        });
    }
    Ok(())
}

/// Which of `steps` was in the way, by what there is.
fn conflict(steps: &[Step], there: &[TxnOpResponse]) -> StoreError {
    let is_other = |(step, there): &(&Step, &TxnOpResponse)| {
        let TxnOpResponse::Get(found) = there else {
            return false;
        };
        let found = found.kvs().first();
        found.map(|found| revision(found.mod_revision())) != step.expected
    };
    let other = steps.iter().zip(there).find(is_other);
    let step = other.map(|(step, _)| step).or(steps.first());
    StoreError::Conflict {
        key: step.map(|step| step.key.clone()).unwrap_or_default(),
    }
}

/// etcd's revisions are never negative.
fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or_default())
}

fn newest(header: Option<&ResponseHeader>) -> Revision {
    revision(header.map_or(0, ResponseHeader::revision))
}

fn unavailable(failed: Failed) -> StoreError {
    StoreError::Unavailable(failed.into())
}

impl Store for Etcd {
    fn get<'a>(&'a self, key: &'a str) -> Later<'a, Option<Document>> {
        Box::pin(self.do_get(key))
    }

    fn commit(&self, steps: Vec<Step>) -> Later<'_, Revision> {
        Box::pin(self.do_commit(steps))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Later<'a, Listing> {
        Box::pin(self.do_list(prefix))
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> Later<'a, Watch> {
        Box::pin(self.do_watch(prefix))
    }

    fn steps_max(&self) -> usize {
        self.shared.operations_max
    }
}
