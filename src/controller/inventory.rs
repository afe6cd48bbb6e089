//! The inventory in a store: a document for each tenant, host and element.
//!
//! *Promises*: an element lies under its host, so that a host's elements are one prefix; a
//! name is an element's once, whatever its host; no element refers to a tenant or host that
//! is not there.
//! *Refuses*: what breaks that, with 409 and the leaf at fault.
//! *Caller's duty*: none. *Standard*: RFC 7950 sections 9.9 (leafref) and 15.
//!
//! ```text
//! generation              when anything changed last; every commit is judged by it
//! tenant/NAME  host/NAME
//! element/HOST/NAME
//! index/element/NAME      where the element is: HOST
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::store::{Document, Revision, Step, Store, StoreError};
use crate::api::config::schema::Module;
use crate::api::config::{
    Change, Committed, Datastore, DocumentId, Loaded, Scope, Stored, Tag, not_unique, predicate,
};
use crate::api::control::Answer;
use crate::api::error::{ApiError, ErrorTag};
use crate::api::inventory::MODULE;

const GENERATION: &str = "generation";
/// Lists of the model, and the first part of their documents' keys.
pub(super) const TENANT: &str = "tenant";
pub(super) const HOST: &str = "host";
pub(super) const ELEMENT: &str = "element";

/// A document's value.
#[derive(Serialize, Deserialize)]
struct Envelope {
    modified: u64,
    content: Value,
}

/// See the module.
#[derive(Clone)]
pub struct Inventory {
    store: Arc<dyn Store>,
}

impl Inventory {
    /// The inventory in `store`; a new store gets an empty one.
    ///
    /// # Errors
    /// The store's.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let first = Step::create(GENERATION, envelope(Value::Null)?);
        match store.commit(vec![first]).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(Self { store }),
            Err(error) => Err(error),
        }
    }

    async fn do_load(&self, scope: Scope) -> Result<Loaded, ApiError> {
        // First, so that a commit judged by it is judged by all that is read after it.
        let generation = match self.get(GENERATION).await? {
            Some(document) => stored(&document)?.tag,
            None => return Err(ApiError::failed("the store has lost its generation")),
        };
        let mut loaded = Loaded {
            generation,
            ..Loaded::default()
        };
        match scope {
            Scope::All => {
                for list in [TENANT, HOST, ELEMENT] {
                    for document in self.list(&format!("{list}/")).await? {
                        let key = last_part(&document.key).to_owned();
                        let id = DocumentId { list, key };
                        loaded.documents.insert(id, stored(&document)?);
                    }
                }
            }
            Scope::Some(ids) => {
                for id in ids {
                    if let Some(key) = self.key_of(&id).await?
                        && let Some(document) = self.get(&key).await?
                    {
                        loaded.documents.insert(id, stored(&document)?);
                    }
                }
            }
        }
        Ok(loaded)
    }

    /// Where a document lies; `None`: there is no such element.
    async fn key_of(&self, id: &DocumentId) -> Result<Option<String>, ApiError> {
        if id.list != ELEMENT {
            return Ok(Some(format!("{}/{}", id.list, id.key)));
        }
        let Some(index) = self.get(&index_key(&id.key)).await? else {
            return Ok(None);
        };
        let host = stored(&index)?.content;
        Ok(host.as_str().map(|host| element_key(host, &id.key)))
    }

    async fn do_commit(&self, base: Tag, changes: Vec<Change>) -> Result<Committed, ApiError> {
        self.check_references(&changes).await?;
        self.check_ports(&changes).await?;
        let now = now();
        let value = envelope_at(Value::Null, now).map_err(unavailable)?;
        let mut steps = vec![Step::replace(GENERATION, Revision(base.revision), value)];
        for change in changes {
            self.add_steps(change, now, &mut steps).await?;
        }
        match self.store.commit(steps).await {
            Ok(Revision(revision)) => Ok(Committed::Done(Tag {
                revision,
                modified: now,
            })),
            Err(StoreError::Conflict { .. }) => Ok(Committed::Raced),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn add_steps(
        &self,
        change: Change,
        now: u64,
        steps: &mut Vec<Step>,
    ) -> Result<(), ApiError> {
        let Change { id, before, after } = change;
        let place = |content: &Value| match id.list {
            ELEMENT => element_key(text(content, HOST), &id.key),
            list => format!("{list}/{}", id.key),
        };
        let old = before.map(|stored| (place(&stored.content), Revision(stored.tag.revision)));
        let new = match after {
            Some(content) => {
                let key = place(&content);
                let value = envelope_at(content, now).map_err(unavailable)?;
                Some((key, value))
            }
            None => None,
        };
        let is_moved = old.as_ref().map(|(key, _)| key) != new.as_ref().map(|(key, _)| key);
        if id.list == ELEMENT && is_moved {
            let host = new.as_ref().map(|(key, _)| host_part(key).to_owned());
            self.add_index_step(&id.key, host, now, steps).await?;
        }
        match (old, new) {
            (Some((key, revision)), Some((same, value))) if key == same => {
                steps.push(Step::replace(key, revision, value));
            }
            (old, new) => {
                steps.extend(old.map(|(key, revision)| Step::delete(key, revision)));
                steps.extend(new.map(|(key, value)| Step::create(key, value)));
            }
        }
        Ok(())
    }

    /// The step that says where an element is now.
    async fn add_index_step(
        &self,
        name: &str,
        host: Option<String>,
        now: u64,
        steps: &mut Vec<Step>,
    ) -> Result<(), ApiError> {
        let key = index_key(name);
        let known = self.get(&key).await?.map(|document| document.revision);
        let value = host.map(|host| envelope_at(host.into(), now)).transpose();
        steps.extend(match (known, value.map_err(unavailable)?) {
            (None, Some(value)) => Some(Step::create(key, value)),
            (Some(revision), Some(value)) => Some(Step::replace(key, revision, value)),
            (Some(revision), None) => Some(Step::delete(key, revision)),
            (None, None) => None,
        });
        Ok(())
    }

    /// Every tenant and host that an element refers to is there, afterwards too.
    async fn check_references(&self, changes: &[Change]) -> Result<(), ApiError> {
        let mut known = BTreeMap::new();
        for change in changes {
            known.insert(
                (change.id.list, change.id.key.clone()),
                change.after.is_some(),
            );
        }
        for (name, content) in elements(changes) {
            for list in [TENANT, HOST] {
                let key = text(content, list).to_owned();
                let id = (list, key);
                let is_there = match known.get(&id) {
                    Some(is_there) => *is_there,
                    None => {
                        let found = self.get(&format!("{list}/{}", id.1)).await?.is_some();
                        known.insert(id.clone(), found);
                        found
                    }
                };
                if !is_there {
                    return Err(dangling(name, list, &id.1));
                }
            }
        }
        for change in changes.iter().filter(|change| change.after.is_none()) {
            let prefix = match change.id.list {
                TENANT => format!("{ELEMENT}/"),
                HOST => format!("{ELEMENT}/{}/", change.id.key),
                _ => continue,
            };
            for document in self.list(&prefix).await? {
                let name = last_part(&document.key);
                // Of one that changes too, the new content was looked at.
                let is_old = !known.contains_key(&(ELEMENT, name.to_owned()));
                if is_old && text(&stored(&document)?.content, change.id.list) == change.id.key {
                    return Err(dangling(name, change.id.list, &change.id.key));
                }
            }
        }
        Ok(())
    }

    /// No two elements of a host have one port.
    async fn check_ports(&self, changes: &[Change]) -> Result<(), ApiError> {
        let hosts: BTreeSet<&str> = elements(changes)
            .filter(|(_, content)| content.get("port").is_some())
            .map(|(_, content)| text(content, HOST))
            .collect();
        for host in hosts {
            let mut ports = BTreeMap::new();
            for document in self.list(&format!("{ELEMENT}/{host}/")).await? {
                let content = stored(&document)?.content;
                ports.insert(last_part(&document.key).to_owned(), port_of(&content));
            }
            for change in changes.iter().filter(|change| change.id.list == ELEMENT) {
                ports.remove(&change.id.key);
            }
            let mut used: BTreeSet<String> = ports.into_values().flatten().collect();
            for (name, content) in elements(changes) {
                let port = port_of(content).filter(|_| text(content, HOST) == host);
                if port.is_some_and(|port| !used.insert(port)) {
                    return Err(not_unique(&[HOST, "port"], &element_path(name)));
                }
            }
        }
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Document>, ApiError> {
        self.store.get(key).await.map_err(unavailable)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Document>, ApiError> {
        let listing = self.store.list(prefix).await.map_err(unavailable)?;
        Ok(listing.documents)
    }
}

impl Datastore for Inventory {
    fn module(&self) -> &'static Module {
        &MODULE
    }

    fn load(&self, scope: Scope) -> Answer<'_, Loaded> {
        Box::pin(self.do_load(scope))
    }

    fn commit(&self, base: Tag, changes: Vec<Change>) -> Answer<'_, Committed> {
        Box::pin(self.do_commit(base, changes))
    }
}

/// Prefixes of all that concerns elements of hosts whose names begin with one of `hosts`, or
/// of all, in the order in which they are to be known.
pub(super) fn watched(hosts: &[String]) -> Vec<String> {
    if hosts.is_empty() {
        // One watch, so that everything is told in the order in which it was written.
        return vec![String::new()];
    }
    let of = |list| hosts.iter().map(move |host| format!("{list}/{host}"));
    let tenants = std::iter::once(format!("{TENANT}/"));
    tenants.chain(of(HOST)).chain(of(ELEMENT)).collect()
}

/// A stored document's list and content, where it is one of the inventory's lists.
pub(super) fn read(document: &Document) -> Option<(&'static str, Value)> {
    let list = list_of(&document.key)?;
    match stored(document) {
        Ok(stored) => Some((list, stored.content)),
        Err(error) => {
            log::error!("{error}");
            None
        }
    }
}

/// The list that a key belongs to.
pub(super) fn list_of(key: &str) -> Option<&'static str> {
    let (first, _) = key.split_once('/')?;
    [TENANT, HOST, ELEMENT]
        .into_iter()
        .find(|list| *list == first)
}

/// The name at the end of a key.
pub(super) fn last_part(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, last)| last)
}

/// The host in an element's key.
pub(super) fn host_part(key: &str) -> &str {
    key.split('/').nth(1).unwrap_or_default()
}

fn elements(changes: &[Change]) -> impl Iterator<Item = (&str, &Value)> {
    changes
        .iter()
        .filter(|change| change.id.list == ELEMENT)
        .filter_map(|change| Some((change.id.key.as_str(), change.after.as_ref()?)))
}

pub(super) fn element_key(host: &str, name: &str) -> String {
    format!("{ELEMENT}/{host}/{name}")
}

fn index_key(name: &str) -> String {
    format!("index/{ELEMENT}/{name}")
}

fn element_path(name: &str) -> String {
    let key = predicate("name", name);
    format!("/{}:{}/{ELEMENT}{key}", MODULE.name, MODULE.top.name)
}

fn text<'a>(content: &'a Value, leaf: &str) -> &'a str {
    content
        .get(leaf)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn port_of(content: &Value) -> Option<String> {
    content.get("port")?.as_str().map(ToOwned::to_owned)
}

fn stored(document: &Document) -> Result<Stored, ApiError> {
    let read: Envelope = serde_json::from_slice(&document.value).map_err(|error| {
        let key = &document.key;
        ApiError::failed(format!(
            "the store's document {key} cannot be read: {error}"
        ))
    })?;
    let tag = Tag {
        revision: document.revision.0,
        modified: read.modified,
    };
    Ok(Stored {
        tag,
        content: read.content,
    })
}

fn envelope(content: Value) -> Result<Vec<u8>, StoreError> {
    envelope_at(content, now())
}

fn envelope_at(content: Value, modified: u64) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Envelope { modified, content })
        .map_err(|error| StoreError::Unavailable(error.into()))
}

fn now() -> u64 {
    let since = super::wall_clock().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn dangling(element: &str, list: &str, missing: &str) -> ApiError {
    ApiError::application(
        StatusCode::CONFLICT,
        ErrorTag::DataMissing,
        format!("there is no {list} `{missing}` for it: create that first, or delete it last"),
    )
    .app_tag("instance-required")
    .at(format!("{}/{list}", element_path(element)))
}

fn unavailable(error: StoreError) -> ApiError {
    match error {
        StoreError::TooBig { .. } => ApiError::application(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorTag::TooBig,
            error.to_string(),
        ),
        error => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            log::error!("{error}: {}", cause.unwrap_or_default());
            ApiError::application(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorTag::ResourceDenied,
                "the store does not answer; an edit may have been carried out: read, and ask again",
            )
            .app_tag("store")
        }
    }
}

#[cfg(test)]
mod tests;
