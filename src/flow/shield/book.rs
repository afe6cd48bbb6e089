//! The shields of an element by name: those that an operator has configured, and those that were
//! asked for, which end by themselves.
//!
//! *Promises*: what was asked for ends when its time to live is over, unless it is asked for
//! again, and whatever else becomes of the element's agent or its lease; asking again for the
//! same prolongs it and leaves count and bucket alone. Configured shields are changed by
//! [`ShieldBook::configure`] only, and each origin has its own names.
//! *Refuses*: more than the quota, and masks beyond [`MASKS_MAX`], of shields that are asked for.
//! *Caller's duty*: after any change, [`ShieldBook::compile`] and the set to all lanes;
//! [`ShieldBook::expire`] once [`ShieldBook::next_end`] has come. *Standard*: none.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::set::{Memory, RULES_MAX, Rule, ShieldSet};
use super::{Count, Shield, Tally};
use crate::flow::Moment;
use crate::flow::request::RequestError;
use crate::packet::VnicId;

/// Different masks of an element's shields that were asked for: each lengthens the search for
/// what no shield matches.
pub const MASKS_MAX: usize = 64;

/// Who has set a shield.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// The host's configuration. Of equal priority it goes before the other.
    Operator,
    /// A request.
    Element,
}

/// A shield that is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The shield.
    pub shield: Shield,
    /// How long it lives.
    pub ttl: Duration,
}

/// What became of a shield that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Installed {
    /// It is new.
    Installed,
    /// It took the place of another of its name, and counts from 0.
    Replaced,
    /// The same was there already, and lives on for the new time.
    Unchanged,
    /// Refused: the element has as many as its quota.
    Quota,
    /// Refused: the element's shields have as many different masks as they may.
    Masks,
    /// Refused: it contradicts itself.
    Invalid(RequestError),
}

/// A shield as it is now.
#[derive(Clone, Copy, Debug)]
pub struct ShieldView<'a> {
    /// Who has set it.
    pub origin: Origin,
    /// The shield.
    pub shield: &'a Shield,
    /// How long it was asked for, and how long it still lives; absent if it was configured.
    pub life: Option<(Duration, Duration)>,
    /// What it has matched.
    pub count: Count,
}

/// What a shield has matched since it was asked last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hits {
    /// Who has set it.
    pub origin: Origin,
    /// Its name.
    pub name: String,
    /// What it has matched.
    pub count: Count,
}

#[derive(Debug)]
struct Entry {
    shield: Shield,
    tally: Arc<Tally>,
    /// When it was asked for last and when it ends.
    life: Option<(Moment, Moment)>,
    told: Count,
}

/// An element's shields.
#[derive(Debug)]
pub struct ShieldBook {
    lanes: usize,
    quota: usize,
    configured: BTreeMap<String, Entry>,
    asked: BTreeMap<String, Entry>,
    generation: u16,
    /// Of the flow table.
    slots: usize,
    /// The cells that flows' outcomes are kept in; none before the first set.
    memory: Option<Memory>,
    is_changed: bool,
}

impl ShieldBook {
    /// An empty book of an element with so many lanes, whose flow table has so many slots.
    /// `quota`: the most shields that can be asked for.
    pub fn new(lanes: usize, slots: usize, quota: usize) -> Self {
        Self {
            lanes,
            quota,
            configured: BTreeMap::new(),
            asked: BTreeMap::new(),
            generation: 0,
            slots,
            memory: None,
            is_changed: false,
        }
    }

    /// From now on these are configured, and the quota is this one.
    pub fn configure(&mut self, shields: impl IntoIterator<Item = Shield>, quota: usize) {
        self.quota = quota;
        let mut old = std::mem::take(&mut self.configured);
        for shield in shields {
            let kept = old.remove(&shield.name).filter(|old| old.shield == shield);
            let entry = kept.unwrap_or_else(|| Entry::new(shield, self.lanes, None));
            self.configured.insert(entry.shield.name.clone(), entry);
        }
        self.is_changed = true;
    }

    /// Takes in a shield that is asked for, or prolongs it.
    pub fn install(&mut self, Asked { shield, ttl }: Asked, now: Moment) -> Installed {
        if let Err(error) = shield.check() {
            return Installed::Invalid(error);
        }
        let life = Some((now, now + ttl));
        let old = self.asked.get_mut(&shield.name);
        let is_new = old.is_none();
        if let Some(old) = old.filter(|old| old.shield == shield) {
            old.life = life;
            return Installed::Unchanged;
        }
        if is_new && self.asked.len() >= self.quota {
            return Installed::Quota;
        }
        if !self.has_room_for(&shield) {
            return Installed::Masks;
        }
        let name = shield.name.clone();
        let entry = Entry::new(shield, self.lanes, life);
        self.asked.insert(name, entry);
        self.is_changed = true;
        match is_new {
            true => Installed::Installed,
            false => Installed::Replaced,
        }
    }

    /// Whether the shields asked for, with this one, have no more masks than they may.
    fn has_room_for(&self, shield: &Shield) -> bool {
        let own = shield.mask();
        let others = self.asked.values().map(|entry| &entry.shield);
        let others = others.filter(|other| other.name != shield.name);
        if others.clone().any(|other| other.mask() == own) {
            return true;
        }
        let masks: HashSet<_> = others.map(Shield::mask).collect();
        masks.len() < MASKS_MAX
    }

    /// Ends a shield that was asked for; false if there is none of that name.
    pub fn remove(&mut self, name: &str) -> bool {
        let is_there = self.asked.remove(name).is_some();
        self.is_changed |= is_there;
        is_there
    }

    /// Ends all that were asked for. Says how many.
    pub fn remove_all(&mut self) -> usize {
        let count = self.asked.len();
        self.asked.clear();
        self.is_changed |= count > 0;
        count
    }

    /// Ends those whose time to live is over.
    pub fn expire(&mut self, now: Moment) {
        let before = self.asked.len();
        self.asked
            .retain(|_, entry| entry.life.is_none_or(|(_, end)| now < end));
        self.is_changed |= self.asked.len() < before;
    }

    /// When the next one ends.
    pub fn next_end(&self) -> Option<Moment> {
        let lives = self.asked.values().filter_map(|entry| entry.life);
        lives.map(|(_, end)| end).min()
    }

    /// Whether the lanes have another set than this book says; what follows from vNICs that come
    /// and go is told by [`ShieldBook::revise`].
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// The names of vNICs mean something else now.
    pub fn revise(&mut self) {
        self.is_changed |= !(self.asked.is_empty() && self.configured.is_empty());
    }

    /// All lanes have the set that was compiled last.
    pub fn note_delivered(&mut self) {
        self.is_changed = false;
    }

    /// The set of all shields whose vNIC is there; none if that is empty.
    pub fn compile(&mut self, vnic: impl Fn(&str) -> Option<VnicId>) -> Option<Arc<ShieldSet>> {
        let place = |origin| move |entry| (origin, entry);
        let configured = self.configured.values().map(place(Origin::Operator));
        let asked = self.asked.values().map(place(Origin::Element));
        let mut all: Vec<(Origin, &Entry)> = configured.chain(asked).collect();
        all.sort_by_key(|(origin, entry)| {
            let shield = &entry.shield;
            (Reverse(shield.priority), *origin, shield.name.as_str())
        });
        let rules = all.into_iter().filter_map(|(_, entry)| {
            let own = entry.shield.vnic.as_deref();
            Some(Rule {
                vnic: match own {
                    Some(name) => Some(vnic(name)?),
                    None => None,
                },
                matches: entry.shield.matches,
                action: entry.shield.action,
                tally: entry.tally.clone(),
            })
        });
        let rules: Vec<Rule> = rules.take(RULES_MAX).collect();
        if rules.is_empty() {
            return None;
        }
        let memory = self.memory_of_next();
        Some(Arc::new(ShieldSet::new(rules, self.generation, memory)))
    }

    /// Cells that no other set of the new generation has written.
    fn memory_of_next(&mut self) -> Memory {
        self.generation = self.generation.wrapping_add(1);
        let slots = self.slots;
        let fresh = || (0..slots).map(|_| AtomicU64::new(0)).collect();
        let memory = match self.memory.take() {
            Some(memory) if self.generation != 0 => memory,
            _ => fresh(),
        };
        self.memory.insert(memory).clone()
    }

    /// All shields: configured ones, then those that were asked for, by name.
    pub fn iter(&self, now: Moment) -> impl Iterator<Item = ShieldView<'_>> {
        let configured = self.configured.values();
        let asked = self.asked.values();
        configured
            .map(move |entry| entry.view(Origin::Operator, now))
            .chain(asked.map(move |entry| entry.view(Origin::Element, now)))
    }

    /// What has been matched since the last call, of the shields that have matched anything.
    pub fn new_hits(&mut self) -> Vec<Hits> {
        let mut hits = Vec::new();
        let configured = self.configured.iter_mut();
        let asked = self.asked.iter_mut();
        let all = configured
            .map(|(name, entry)| (Origin::Operator, name, entry))
            .chain(asked.map(|(name, entry)| (Origin::Element, name, entry)));
        for (origin, name, entry) in all {
            let total = entry.tally.total();
            let told = std::mem::replace(&mut entry.told, total);
            if total != told {
                hits.push(Hits {
                    origin,
                    name: name.clone(),
                    count: total.since(told),
                });
            }
        }
        hits
    }
}

impl Entry {
    fn new(shield: Shield, lanes: usize, life: Option<(Moment, Moment)>) -> Self {
        Self {
            tally: Arc::new(Tally::new(shield.action, lanes)),
            shield,
            life,
            told: Count::default(),
        }
    }

    fn view(&self, origin: Origin, now: Moment) -> ShieldView<'_> {
        let life = self.life;
        ShieldView {
            origin,
            shield: &self.shield,
            life: life.map(|(since, end)| (end.since(since), end.since(now))),
            count: self.tally.total(),
        }
    }
}
