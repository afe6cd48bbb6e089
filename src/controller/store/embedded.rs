//! A store in one file, or in memory, for a controller that is alone.
//!
//! *Promises*: a commit that was answered is on disk; after a crash the file is as the last
//! commit left it.
//! *Refuses*: a file that another process has open.
//! *Caller's duty*: a tokio runtime; the file's directory is the controller's alone.
//! *Standard*: none; the file is redb's, format 3.

#![expect(
    clippy::disallowed_types,
    reason = "keeps commits and their publication in one order, on threads made for waiting"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Database, DatabaseError, ReadableTable, Table, TableDefinition, WriteTransaction};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;

use super::{Change, Document, Event, Later, Listing, Revision, Step, Store, StoreError, Watch};

/// Documents by key, each with its revision.
const DOCUMENTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("documents");
/// The newest revision, under [`NEWEST`].
const REVISIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("revisions");
const NEWEST: &str = "newest";

/// Commits that a watch may be behind before it begins anew.
const COMMITS_KEPT: usize = 256;
/// Most steps of a commit: enough for a restore, and bounded.
const STEPS_MAX: usize = 65_536;

/// What was committed, and as what revision.
#[derive(Clone, Debug)]
struct Commit {
    revision: Revision,
    changes: Arc<Vec<Change>>,
}

/// See the module.
#[derive(Clone)]
pub struct Embedded {
    file: Arc<File>,
}

struct File {
    database: Database,
    /// Held from before a commit until it was told to watches.
    commits: Mutex<broadcast::Sender<Commit>>,
}

impl Embedded {
    /// Opens the file at `path`, or makes it, for its owner only.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |hint| {
            move |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
                path: path.display().to_string(),
                hint,
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| failed("its directory must exist and be writable")(error.into()))?;
        let database = redb::Builder::new()
            .create_with_file_format_v3(true)
            .create_file(file)
            .map_err(|error| {
                let hint = match error {
                    DatabaseError::DatabaseAlreadyOpen => "another controller has it open",
                    _ => "is it a store? Restore a backup into a new one",
                };
                failed(hint)(error.into())
            })?;
        Self::of(database)
    }

    /// A store that ends with the process.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub fn in_memory() -> Result<Self, StoreError> {
        let memory = redb::backends::InMemoryBackend::new();
        let database = redb::Builder::new()
            .create_with_backend(memory)
            .map_err(unavailable)?;
        Self::of(database)
    }

    fn of(database: Database) -> Result<Self, StoreError> {
        let (sender, _) = broadcast::channel(COMMITS_KEPT);
        let file = File {
            database,
            commits: Mutex::new(sender),
        };
        // Readers find the tables from now on.
        file.write(|_, _, _| Ok(()))?;
        Ok(Self {
            file: Arc::new(file),
        })
    }

    /// Runs `work` where waiting for the disk holds nobody up.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || work(&file))
            .await
            .map_err(unavailable)?
    }
}

type Documents<'a> = Table<'a, &'static str, (u64, &'static [u8])>;

impl File {
    /// A transaction that gets the newest revision, and sets it.
    fn write<T>(
        &self,
        work: impl FnOnce(&mut Documents<'_>, u64, &mut dyn FnMut(u64)) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let transaction = self.database.begin_write().map_err(unavailable)?;
        let done = Self::in_transaction(&transaction, work)?;
        transaction.commit().map_err(unavailable)?;
        Ok(done)
    }

    /// The part of [`File::write`] that is undone where it fails.
    fn in_transaction<T>(
        transaction: &WriteTransaction,
        work: impl FnOnce(&mut Documents<'_>, u64, &mut dyn FnMut(u64)) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut documents = transaction.open_table(DOCUMENTS).map_err(unavailable)?;
        let mut revisions = transaction.open_table(REVISIONS).map_err(unavailable)?;
        let newest = revisions
            .get(NEWEST)
            .map_err(unavailable)?
            .map_or(0, |found| found.value());
        let mut next = newest;
        let done = work(&mut documents, newest, &mut |revision| next = revision)?;
        revisions.insert(NEWEST, next).map_err(unavailable)?;
        Ok(done)
    }

    fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        let transaction = self.database.begin_read().map_err(unavailable)?;
        let documents = transaction.open_table(DOCUMENTS).map_err(unavailable)?;
        let found = documents.get(key).map_err(unavailable)?;
        Ok(found.map(|found| document(key, found.value())))
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let transaction = self.database.begin_read().map_err(unavailable)?;
        let documents = transaction.open_table(DOCUMENTS).map_err(unavailable)?;
        let revisions = transaction.open_table(REVISIONS).map_err(unavailable)?;
        let newest = revisions.get(NEWEST).map_err(unavailable)?;
        let mut listing = Listing {
            prefix: prefix.to_owned(),
            documents: Vec::new(),
            revision: Revision(newest.map_or(0, |found| found.value())),
        };
        for entry in documents.range(prefix..).map_err(unavailable)? {
            let (key, value) = entry.map_err(unavailable)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let found = document(key.value(), value.value());
            listing.documents.push(found);
        }
        Ok(listing)
    }

    fn commit(&self, steps: Vec<Step>) -> Result<Revision, StoreError> {
        super::check(&steps, STEPS_MAX)?;
        // A writer that panicked has committed nothing.
        let commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let (revision, changes) = self.write(|documents, newest, set_newest| {
            let revision = Revision(newest + 1);
            set_newest(revision.0);
            let changes: Result<Vec<_>, _> = steps
                .into_iter()
                .map(|step| carry_out(documents, step, revision))
                .collect();
            Ok((revision, Arc::new(changes?)))
        })?;
        // Nobody watches: fine.
        let _nobody = commits.send(Commit { revision, changes });
        Ok(revision)
    }

    fn subscribe(&self) -> broadcast::Receiver<Commit> {
        let commits = self.commits.lock();
        commits.unwrap_or_else(PoisonError::into_inner).subscribe()
    }
}

fn carry_out(
    documents: &mut Documents<'_>,
    step: Step,
    revision: Revision,
) -> Result<Change, StoreError> {
    let key = step.key;
    let found = documents
        .get(key.as_str())
        .map_err(unavailable)?
        .map(|found| Revision(found.value().0));
    if found != step.expected {
        return Err(StoreError::Conflict { key });
    }
    let document = match step.value {
        Some(value) => {
            documents
                .insert(key.as_str(), (revision.0, value.as_slice()))
                .map_err(unavailable)?;
            Some(Document {
                key: key.clone(),
                revision,
                value,
            })
        }
        None => {
            documents.remove(key.as_str()).map_err(unavailable)?;
            None
        }
    };
    Ok(Change { key, document })
}

fn document(key: &str, (revision, value): (u64, &[u8])) -> Document {
    Document {
        key: key.to_owned(),
        revision: Revision(revision),
        value: value.to_vec(),
    }
}

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unavailable(Box::new(error))
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> Later<'a, Option<Document>> {
        let key = key.to_owned();
        Box::pin(self.run(move |file| file.get(&key)))
    }

    fn commit(&self, steps: Vec<Step>) -> Later<'_, Revision> {
        Box::pin(self.run(move |file| file.commit(steps)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Later<'a, Listing> {
        let prefix = prefix.to_owned();
        Box::pin(self.run(move |file| file.list(&prefix)))
    }

    fn watch<'a>(&'a self, prefix: &'a str) -> Later<'a, Watch> {
        Box::pin(async move {
            let (events, watch) = Watch::new();
            // Before the first listing, so that nothing falls between.
            let commits = self.file.subscribe();
            let weak = Arc::downgrade(&self.file);
            let listing = self.list(prefix).await?;
            let told = listing.revision;
            // The channel is empty.
            let _first = events.try_send(Event::Everything(listing));
            tokio::spawn(follow(weak, prefix.to_owned(), commits, told, events));
            Ok(watch)
        })
    }

    fn steps_max(&self) -> usize {
        STEPS_MAX
    }
}

/// Tells a watch what is committed, until it or the store is gone.
async fn follow(
    file: std::sync::Weak<File>,
    prefix: String,
    mut commits: broadcast::Receiver<Commit>,
    mut told: Revision,
    events: mpsc::Sender<Event>,
) {
    loop {
        let event = match commits.recv().await {
            Ok(commit) if commit.revision <= told => continue,
            Ok(commit) => {
                told = commit.revision;
                let of_prefix = |change: &&Change| change.key.starts_with(&prefix);
                let changes: Vec<Change> =
                    commit.changes.iter().filter(of_prefix).cloned().collect();
                if changes.is_empty() {
                    continue;
                }
                Event::Changed(changes)
            }
            Err(RecvError::Lagged(_)) => {
                let Some(file) = file.upgrade() else { return };
                match (Embedded { file }).list(&prefix).await {
                    Ok(listing) => {
                        told = listing.revision;
                        Event::Everything(listing)
                    }
                    Err(error) => {
                        log::error!("a watch ends: {error}");
                        return;
                    }
                }
            }
            Err(RecvError::Closed) => return,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
