//! The inventory in memory, as a watch tells it.
//!
//! *Promises*: what is looked up is the inventory at one revision, at most a moment old; what
//! must be handed back, and which backends are to be looked at, follows from each change. Where
//! several watches tell it, each of their prefixes is at one revision.
//! *Refuses*: documents that the model does not have (reported, left out).
//! *Caller's duty*: [`Registry::apply`] every event, in order.
//! *Standard*: none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use super::inventory::{self, ELEMENT, HOST, TENANT};
use super::store::{Change, Event};
use crate::api::inventory::{Element, Host, Tenant};
use crate::api::link::Address;

/// See the module.
#[derive(Default)]
pub struct Registry {
    books: RwLock<Books>,
    /// Counts changes.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Books {
    tenants: HashMap<String, Arc<Tenant>>,
    hosts: HashMap<String, Arc<Host>>,
    elements: HashMap<String, Arc<Element>>,
    /// Elements by host and port.
    ports: HashMap<(String, String), String>,
    /// Hosts by the name of their relay's certificate.
    relays: HashMap<String, BTreeSet<String>>,
}

/// An element, and what it stands in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// It.
    pub element: Arc<Element>,
    /// Where it runs.
    pub host: Arc<Host>,
    /// Whose it is.
    pub tenant: Arc<Tenant>,
}

/// Why an element gets nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bar {
    /// A kill switch.
    Kill,
    /// Its host is drained.
    Drain,
    /// It is only observed.
    Observe,
}

impl Placed {
    /// Why it gets nothing, if so.
    pub fn bar(&self) -> Option<Bar> {
        if self.is_killed() {
            return Some(Bar::Kill);
        }
        let switches = [
            self.element.switches,
            self.host.switches,
            self.tenant.switches,
        ];
        if self.host.drain {
            Some(Bar::Drain)
        } else if switches.iter().any(|switches| switches.observe_only) {
            Some(Bar::Observe)
        } else {
            None
        }
    }

    /// Whether its sessions are to be handed back.
    pub fn is_killed(&self) -> bool {
        [
            self.element.switches,
            self.host.switches,
            self.tenant.switches,
        ]
        .iter()
        .any(|switches| switches.kill)
    }
}

/// What follows from a change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Due {
    /// Sessions are handed back.
    HandBack(HandBack),
    /// A backend is new here: what it has is compared with what it should have.
    Compare(Address),
}

/// An element whose sessions a backend is to hand back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct HandBack {
    /// The backend.
    pub backend: Address,
    /// The element.
    pub element: String,
}

impl Registry {
    /// The element on `port` of a host whose relay may use the certificate `relay`.
    pub fn on_port(&self, relay: &str, port: &str) -> Option<Placed> {
        let books = self.books.read().unwrap_or_else(PoisonError::into_inner);
        let mut hosts = books.relays.get(relay)?.iter();
        hosts.find_map(|host| {
            let name = books.ports.get(&(host.clone(), port.to_owned()))?;
            books.placed(name)
        })
    }

    /// The element `name`.
    pub fn placed(&self, name: &str) -> Option<Placed> {
        let books = self.books.read().unwrap_or_else(PoisonError::into_inner);
        books.placed(name)
    }

    /// Told of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether an element still is where it was, on the same port.
    pub fn is_still(&self, was: &Placed) -> bool {
        self.placed(&was.element.name).is_some_and(|is| {
            is.host.name == was.host.name
                && is.host.backend == was.host.backend
                && is.element.port == was.element.port
        })
    }

    /// The names of all elements, in order.
    pub fn names(&self) -> BTreeSet<String> {
        let books = self.books.read().unwrap_or_else(PoisonError::into_inner);
        books.elements.keys().cloned().collect()
    }

    /// The name of the only element, where there is one only.
    pub fn only_name(&self) -> Option<String> {
        let books = self.books.read().unwrap_or_else(PoisonError::into_inner);
        let only = books.elements.keys().next();
        only.filter(|_| books.elements.len() == 1).cloned()
    }

    /// Whether a host has its backend at `address`.
    pub fn has_backend(&self, address: &Address) -> bool {
        let books = self.books.read().unwrap_or_else(PoisonError::into_inner);
        books.hosts.values().any(|host| host.backend == *address)
    }

    /// Whether `one` still is to be handed back.
    pub fn is_due(&self, one: &HandBack) -> bool {
        match self.placed(&one.element) {
            Some(placed) => placed.host.backend != one.backend || placed.is_killed(),
            None => true,
        }
    }

    /// Takes an event; gives what follows from it.
    pub fn apply(&self, event: Event) -> BTreeSet<Due> {
        let mut books = self.books.write().unwrap_or_else(PoisonError::into_inner);
        let due = Self::take_in(&mut books, event);
        drop(books);
        self.changed.send_modify(|count| *count += 1);
        due
    }

    fn take_in(books: &mut Books, event: Event) -> BTreeSet<Due> {
        match event {
            Event::Everything(listing) => {
                let (before, backends) = (books.standing(None), books.backends());
                books.forget(&listing.prefix);
                for document in listing.documents {
                    let key = document.key.clone();
                    let document = Some(document);
                    books.take(&Change { key, document });
                }
                books.due(&before, None, &backends)
            }
            Event::Changed(changes) => {
                let lists = || {
                    changes
                        .iter()
                        .filter_map(|one| inventory::list_of(&one.key))
                };
                let names = changes
                    .iter()
                    .filter(|one| inventory::list_of(&one.key) == Some(ELEMENT))
                    .map(|one| inventory::last_part(&one.key).to_owned());
                // A tenant or host may concern any element.
                let names: Option<BTreeSet<String>> =
                    lists().all(|list| list == ELEMENT).then(|| names.collect());
                let before = books.standing(names.as_ref());
                let backends = books.backends();
                // What is gone first: an element that moves is gone and there in one commit.
                let (gone, there): (Vec<_>, Vec<_>) =
                    changes.iter().partition(|one| one.document.is_none());
                gone.into_iter()
                    .chain(there)
                    .for_each(|one| books.take(one));
                books.due(&before, names.as_ref(), &backends)
            }
        }
    }
}

impl Books {
    fn placed(&self, name: &str) -> Option<Placed> {
        let element = self.elements.get(name)?.clone();
        Some(Placed {
            host: self.hosts.get(&element.host)?.clone(),
            tenant: self.tenants.get(&element.tenant)?.clone(),
            element,
        })
    }

    /// Where elements may have sessions, and whether they are killed.
    fn standing(&self, names: Option<&BTreeSet<String>>) -> BTreeMap<HandBack, bool> {
        let of = |name: &String| {
            let placed = self.placed(name)?;
            let one = HandBack {
                backend: placed.host.backend.clone(),
                element: name.clone(),
            };
            Some((one, placed.is_killed()))
        };
        match names {
            Some(names) => names.iter().filter_map(of).collect(),
            None => self.elements.keys().filter_map(of).collect(),
        }
    }

    /// Where the backends of all hosts are.
    fn backends(&self) -> BTreeSet<Address> {
        let hosts = self.hosts.values();
        hosts.map(|host| host.backend.clone()).collect()
    }

    /// What is to be handed back, of what stood as `before`, and of what is killed now and
    /// was not known to be; and which backends are new.
    fn due(
        &self,
        before: &BTreeMap<HandBack, bool>,
        names: Option<&BTreeSet<String>>,
        backends: &BTreeSet<Address>,
    ) -> BTreeSet<Due> {
        let now = self.standing(names);
        let gone = before.keys().filter(|one| !now.contains_key(one));
        let killed = now
            .iter()
            .filter(|(one, is_killed)| **is_killed && before.get(one) != Some(&true))
            .map(|(one, _)| one);
        let handed_back = gone.chain(killed).cloned().map(Due::HandBack);
        let now = match names {
            // Hosts are as they were.
            Some(_) => BTreeSet::new(),
            None => self.backends(),
        };
        let new = now.difference(backends).cloned().map(Due::Compare);
        handed_back.chain(new).collect()
    }

    /// Forgets what lies under `prefix`.
    fn forget(&mut self, prefix: &str) {
        if prefix.is_empty() {
            *self = Self::default();
            return;
        }
        let tenants = self.tenants.keys().map(|name| format!("{TENANT}/{name}"));
        let hosts = self.hosts.keys().map(|name| format!("{HOST}/{name}"));
        let elements = self.elements.values();
        let elements = elements.map(|one| inventory::element_key(&one.host, &one.name));
        let keys: Vec<String> = tenants
            .chain(hosts)
            .chain(elements)
            .filter(|key| key.starts_with(prefix))
            .collect();
        for key in keys {
            let document = None;
            self.take(&Change { key, document });
        }
    }

    fn take(&mut self, change: &Change) {
        let name = inventory::last_part(&change.key);
        let content = change.document.as_ref().and_then(inventory::read);
        match inventory::list_of(&change.key) {
            Some(TENANT) => put(&mut self.tenants, name, content),
            Some(HOST) => {
                for relay in self.hosts.get(name).iter().flat_map(|host| &host.relay) {
                    if let Some(hosts) = self.relays.get_mut(relay) {
                        hosts.remove(name);
                        if hosts.is_empty() {
                            self.relays.remove(relay);
                        }
                    }
                }
                put(&mut self.hosts, name, content);
                for relay in self.hosts.get(name).iter().flat_map(|host| &host.relay) {
                    let hosts = self.relays.entry(relay.clone()).or_default();
                    hosts.insert(name.to_owned());
                }
            }
            Some(ELEMENT) => {
                if let Some(old) = self.elements.get(name) {
                    // Gone from a host that it has left before: another watch was quicker.
                    if content.is_none() && old.host != inventory::host_part(&change.key) {
                        return;
                    }
                    let port = old.port.clone().unwrap_or_default();
                    let place = (old.host.clone(), port);
                    if self.ports.get(&place).is_some_and(|owner| owner == name) {
                        self.ports.remove(&place);
                    }
                }
                put(&mut self.elements, name, content);
                if let Some(new) = self.elements.get(name)
                    && let Some(port) = &new.port
                {
                    let place = (new.host.clone(), port.clone());
                    self.ports.insert(place, name.to_owned());
                }
            }
            _ => {}
        }
    }
}

fn put<T: DeserializeOwned>(
    books: &mut HashMap<String, Arc<T>>,
    name: &str,
    content: Option<(&'static str, Value)>,
) {
    let read = content.map(|(list, content)| {
        serde_json::from_value(content)
            .map_err(|error| log::error!("{list} `{name}` in the store is not understood: {error}"))
    });
    match read {
        Some(Ok(value)) => drop(books.insert(name.to_owned(), Arc::new(value))),
        Some(Err(())) | None => drop(books.remove(name)),
    }
}

#[cfg(test)]
mod tests;
