//! Which shields are wanted, and which the host has been asked for.
//!
//! *Promises*: what [`Book::plan`] says, carried out, leaves the host with what is wanted: each
//! shield is asked for until its end, and no longer; one without an end again and again before
//! its time is over. What may not have arrived is asked for, or ended, again.
//! *Refuses*: more than `maximum` shields: what came by command goes first, then sets in the order
//! of the configuration.
//! *Caller's duty*: tells what became of a plan, and of upheavals after which nobody knows what
//! the host has. Times are of one clock. *Standard*: `docs/shields.md`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::api::SessionKey;
use crate::api::session::Seconds;
use crate::api::shield::{Shield, ShieldResult};

/// The longest time for which a shield can be asked.
const WEEK: Duration = Duration::from_secs(604_800);
/// Ends that differ by less are the same.
const SLACK: Duration = Duration::from_secs(2);
/// A refused shield is asked for again after so long.
const RETRY: Duration = Duration::from_secs(30);

/// A shield that is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// It, without a time.
    pub shield: Shield,
    /// When it ends; when it is taken out if `None`.
    pub until: Option<Instant>,
}

/// What the host was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Asked {
    /// Without a time.
    shield: Shield,
    until: Instant,
    span: Duration,
    /// The host has said that it has it, and nothing has happened since.
    is_sure: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Refused {
    shield: Shield,
    why: String,
    retry_at: Instant,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Plan {
    /// Shields to end.
    pub end: Vec<SessionKey>,
    /// Shields to ask for.
    pub ask: Vec<Shield>,
}

/// How a wanted shield stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The host has it.
    Held,
    /// The host is still to be asked.
    Waiting,
    /// The host does not take it.
    Refused(String),
    /// It is one too many.
    LeftOut,
}

/// See the module.
#[derive(Debug)]
pub struct Book {
    ttl: Duration,
    maximum: usize,
    own: BTreeMap<SessionKey, Entry>,
    sets: Vec<BTreeMap<SessionKey, Entry>>,
    asked: HashMap<SessionKey, Asked>,
    refused: HashMap<SessionKey, Refused>,
}

impl Book {
    /// An empty one: shields without an end are asked for `ttl`, again and again.
    pub fn new(ttl: Duration, maximum: usize, sets: usize) -> Self {
        Self {
            ttl,
            maximum,
            own: BTreeMap::new(),
            sets: vec![BTreeMap::new(); sets],
            asked: HashMap::new(),
            refused: HashMap::new(),
        }
    }

    /// Wants a shield, in the place of one of its name.
    pub fn add(&mut self, name: SessionKey, entry: Entry) {
        self.refused.remove(&name);
        self.own.insert(name, entry);
    }

    /// Wants a shield no more that came by command; whether there was one.
    pub fn remove(&mut self, name: &SessionKey) -> bool {
        self.own.remove(name).is_some()
    }

    /// Names of those that came by command.
    pub fn names(&self) -> Vec<SessionKey> {
        self.own.keys().cloned().collect()
    }

    /// Wants what a set has, and nothing else of it.
    pub fn mirror(&mut self, set: usize, elements: BTreeMap<SessionKey, Entry>) {
        if let Some(mirrored) = self.sets.get_mut(set) {
            *mirrored = elements;
        }
    }

    /// Whether nothing is wanted, and nothing is left to end.
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.sets.iter().all(BTreeMap::is_empty) && self.asked.is_empty()
    }

    /// All that is wanted now, in the order in which it has room; the set that it is of.
    fn wanted(&self, now: Instant) -> impl Iterator<Item = (Option<usize>, &SessionKey, &Entry)> {
        let own = self.own.iter().map(|(name, entry)| (None, name, entry));
        let sets = self.sets.iter().enumerate();
        let mirrored = sets.flat_map(|(set, all)| {
            all.iter()
                .map(move |(name, entry)| (Some(set), name, entry))
        });
        own.chain(mirrored).filter(move |(set, name, entry)| {
            let is_other = set.is_some() && self.own.contains_key(*name);
            entry.until.is_none_or(|until| until > now) && !is_other
        })
    }

    /// How all that is wanted stands, with the set that it is of.
    pub fn standings(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (Option<usize>, &Entry, Standing)> {
        let all = self.wanted(now).enumerate();
        all.map(move |(place, (set, name, entry))| {
            let standing = if place >= self.maximum {
                Standing::LeftOut
            } else if let Some(refused) = self.refused.get(name) {
                Standing::Refused(refused.why.clone())
            } else if self.asked.get(name).is_some_and(|asked| asked.is_sure) {
                Standing::Held
            } else {
                Standing::Waiting
            };
            (set, entry, standing)
        })
    }

    /// What is to be done now.
    pub fn plan(&mut self, now: Instant) -> Plan {
        self.own
            .retain(|_, entry| entry.until.is_none_or(|until| until > now));
        self.asked.retain(|_, asked| asked.until > now);
        let wanted: Vec<_> = self.wanted(now).take(self.maximum).collect();
        let names: HashSet<&SessionKey> = wanted.iter().map(|(_, name, _)| *name).collect();
        let asked = self.asked.keys();
        let end = asked
            .filter(|name| !names.contains(name))
            .cloned()
            .collect();
        let due = wanted
            .iter()
            .filter(|(_, name, entry)| self.is_due(name, entry, now));
        let ask = due.map(|(_, _, entry)| self.timed(entry, now)).collect();
        let refused = self.refused.keys();
        let unwanted: Vec<_> = refused
            .filter(|name| !names.contains(name))
            .cloned()
            .collect();
        for name in unwanted {
            self.refused.remove(&name);
        }
        Plan { end, ask }
    }

    fn is_due(&self, name: &SessionKey, entry: &Entry, now: Instant) -> bool {
        if let Some(refused) = self.refused.get(name)
            && refused.shield == entry.shield
            && now < refused.retry_at
        {
            return false;
        }
        let Some(asked) = self.asked.get(name) else {
            return true;
        };
        if asked.shield != entry.shield || !asked.is_sure {
            return true;
        }
        let left = asked.until.saturating_duration_since(now);
        let wanted = entry
            .until
            .map_or(Duration::MAX, |until| until.saturating_duration_since(now));
        let is_too_long = wanted.saturating_add(SLACK) < left;
        is_too_long || (left < asked.span / 2 && wanted > left + SLACK)
    }

    /// A shield as the host is asked for it.
    fn timed(&self, entry: &Entry, now: Instant) -> Shield {
        let span = entry.until.map_or(self.ttl, |until| {
            until.saturating_duration_since(now).min(WEEK)
        });
        let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
        Shield {
            ttl: Seconds::try_from(seconds.max(1)).ok(),
            ..entry.shield.clone()
        }
    }

    /// The host is about to be asked for these.
    pub fn asking(&mut self, shields: &[Shield], now: Instant) {
        for shield in shields {
            let span = shield
                .ttl
                .map_or(WEEK, |ttl| Duration::from_secs(ttl.get().into()));
            let asked = Asked {
                shield: without_time(shield),
                until: now + span,
                span,
                is_sure: false,
            };
            self.asked.insert(shield.name.clone(), asked);
        }
    }

    /// The host has answered.
    pub fn answered(&mut self, results: &[ShieldResult], now: Instant) {
        for result in results {
            if !result.result.is_refused() {
                self.refused.remove(&result.name);
                if let Some(asked) = self.asked.get_mut(&result.name) {
                    asked.is_sure = true;
                }
            } else if let Some(asked) = self.asked.remove(&result.name) {
                let error = result.error.as_ref();
                let why = error.map(|error| error.error_message.clone());
                let refused = Refused {
                    shield: asked.shield,
                    why: why.unwrap_or_else(|| result.result.name().to_owned()),
                    retry_at: now + RETRY,
                };
                self.refused.insert(result.name.clone(), refused);
            }
        }
    }

    /// The host has ended these.
    pub fn ended(&mut self, names: &[SessionKey]) {
        for name in names {
            self.asked.remove(name);
        }
    }

    /// Nobody knows any more what the host has.
    pub fn upheaval(&mut self) {
        for asked in self.asked.values_mut() {
            asked.is_sure = false;
        }
        self.refused.clear();
    }
}

fn without_time(shield: &Shield) -> Shield {
    Shield {
        ttl: None,
        ..shield.clone()
    }
}

#[cfg(test)]
mod tests;
