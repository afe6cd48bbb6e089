//! A watch of etcd, over members and connections.
//!
//! *Promises*: every change once and in order, whichever member tells it; where changes are
//! kept no longer (compaction), or do not fit an answer, everything anew.
//! *Refuses*: nothing: it tries until nobody listens, or the store is closed.
//! *Caller's duty*: has told what there was before revision `next`.
//! *Standard*: etcd's API v3, "Watch API": a response has whole revisions.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::Shared;
use super::cluster::Failed;
use crate::controller::store::{Change, Event, Revision};

/// The pause before a watch is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// A watch that goes on.
pub struct Follow {
    shared: Arc<Shared>,
    prefix: String,
    /// The first revision that was not told.
    next: u64,
    events: mpsc::Sender<Event>,
    /// Whether the last try failed: said once.
    is_away: bool,
}

/// Why a watch does not go on as it is.
enum End {
    /// It can be taken up where it ended.
    Broken(String),
    /// What comes next cannot be had.
    Lost,
    /// Nobody listens.
    Unheard,
}

impl From<Failed> for End {
    fn from(failed: Failed) -> Self {
        if failed.is_out_of_range() {
            Self::Lost
        } else {
            Self::Broken(failed.to_string())
        }
    }
}

impl Follow {
    /// Tells `events` what happens under `prefix` from revision `next` on.
    pub fn new(
        shared: Arc<Shared>,
        prefix: String,
        next: u64,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            shared,
            prefix,
            next,
            events,
            is_away: false,
        }
    }

    /// Runs until nobody listens, or `open` is gone.
    pub async fn run(mut self, mut open: watch::Receiver<()>) {
        let events = self.events.clone();
        let (shared, prefix) = (self.shared.clone(), self.prefix.clone());
        tokio::select! {
            () = self.tell() => {}
            () = events.closed() => {}
            // Nothing is ever sent: its sender is gone.
            _ = open.changed() => {}
        }
        shared.copies.forget(&prefix);
    }

    async fn tell(&mut self) {
        loop {
            let end = match self.tell_changes().await {
                End::Lost => self.tell_everything().await.err(),
                end => Some(end),
            };
            match end {
                Some(End::Broken(why)) => {
                    if !self.is_away {
                        let last = self.next.saturating_sub(1);
                        log::warn!("a watch broke, what is known is of revision {last}: {why}");
                    }
                    self.is_away = true;
                    sleep(AGAIN).await;
                }
                Some(End::Unheard) => return,
                Some(End::Lost) | None => {}
            }
        }
    }

    async fn tell_everything(&mut self) -> Result<(), End> {
        let listing = self.shared.list(&self.prefix).await?;
        log::info!("changes were missed; read anew at {}", listing.revision.0);
        self.next = listing.revision.0 + 1;
        self.shared.copies.replace(&listing);
        self.send(Event::Everything(listing)).await
    }

    /// Tells changes as long as they come.
    async fn tell_changes(&mut self) -> End {
        match self.try_tell_changes().await {
            Ok(()) => End::Broken("its member has ended it".to_owned()),
            Err(end) => end,
        }
    }

    async fn try_tell_changes(&mut self) -> Result<(), End> {
        let start = i64::try_from(self.next).unwrap_or(i64::MAX);
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(start)
            .with_progress_notify();
        let path = self.shared.prefix_of(&self.prefix);
        let mut stream = self.shared.cluster.watch(&path, options).await?;
        loop {
            let response = stream.message().await.map_err(|source| {
                End::from(Failed::Etcd {
                    member: "its member".to_owned(),
                    source,
                })
            })?;
            let Some(response) = response else {
                return Ok(());
            };
            if response.canceled() {
                return Err(if response.compact_revision() > 0 {
                    End::Lost
                } else {
                    End::Broken(response.cancel_reason().to_owned())
                });
            }
            if self.is_away {
                log::info!("a watch goes on from revision {}", self.next);
                self.is_away = false;
            }
            self.take(&response).await?;
        }
    }

    /// Tells the commits of one response.
    async fn take(&mut self, response: &WatchResponse) -> Result<(), End> {
        let mut changes = Vec::new();
        let mut of = Revision::default();
        for event in response.events() {
            let Some(found) = event.kv() else { continue };
            let revision = super::revision(found.mod_revision());
            if revision != of && !changes.is_empty() {
                self.tell_commit(of, std::mem::take(&mut changes)).await?;
            }
            of = revision;
            let Some(document) = self.shared.document(found) else {
                continue;
            };
            changes.push(Change {
                key: document.key.clone(),
                document: (event.event_type() == EventType::Put).then_some(document),
            });
        }
        if !changes.is_empty() {
            self.tell_commit(of, changes).await?;
        } else if !response.created()
            && let Some(header) = response.header()
        {
            // Nothing happened up to here: etcd says so now and then.
            let told = super::revision(header.revision()).0;
            self.next = self.next.max(told + 1);
        }
        Ok(())
    }

    async fn tell_commit(&mut self, revision: Revision, changes: Vec<Change>) -> Result<(), End> {
        self.shared.copies.apply(&self.prefix, revision, &changes);
        self.next = revision.0 + 1;
        self.send(Event::Changed(changes)).await
    }

    async fn send(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Unheard)
    }
}
