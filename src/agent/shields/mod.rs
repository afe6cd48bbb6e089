//! The shields that the agent keeps: those that commands have added, and the elements of sets
//! of nftables.
//!
//! | module | what |
//! |---|---|
//! | `book` | which are wanted, and which the host has been asked for |
//! | `set` | reads a set |
//! | `range` | ranges of addresses as prefixes |
//!
//! *Promises*: a shield is kept until it is deleted, its element leaves the set, or its time is
//! over; over reconnections, epochs and restarts of the host. With the agent it ends, after the
//! time for which it was asked. What the host does not take, and what is beyond the maximum, is
//! told.
//! *Refuses*: what has no place in the model.
//! *Caller's duty*: CAP_NET_ADMIN where sets are mirrored.
//! *Standard*: `docs/shields.md`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until};

use super::channel::{Channel, ChannelError};
use super::config::{SetConfig, ShieldsConfig, Side};
use crate::api::SessionKey;
use crate::api::session::Seconds;
use crate::api::shield::{PortMatch, Shield};

mod book;
mod range;
mod set;

use book::{Book, Entry, Standing};
use set::{Element, SetError};

/// Shields in a call: a small one, so that others find room beside it.
const TOGETHER: usize = 256;
/// From one look at what is due to the next.
const LOOK: Duration = Duration::from_secs(1);
/// After a call failed.
const RETRY: Duration = Duration::from_secs(2);
/// The shortest time from one look at the sets to the next, and how much of the time they may
/// take: one part of so many.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const SHARE: u32 = 30;
/// Prefixes of one range at most.
const PREFIXES_MAX: usize = 256;
/// Whose shields are that commands have added.
const COMMAND: &str = "command";
/// Orders that wait.
const QUEUE: usize = 16;

/// A shield, and how it stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kept {
    /// It; its time is what is left of it.
    pub shield: Shield,
    /// `command`, or the set: `inet filter blocklist`; of others `operator` and `element`.
    pub by: String,
    /// `held`, `waiting`, `refused`, `left-out`.
    pub standing: String,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Packets that it has matched, where the host says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub octets: Option<u64>,
    /// Of the packets, those that are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
}

/// How shields stand as a whole.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// The host has them.
    pub held: usize,
    /// The host is still to be asked.
    pub waiting: usize,
    /// The host does not take them.
    pub refused: usize,
    /// They are beyond the maximum.
    pub left_out: usize,
    /// The sets that are mirrored.
    #[serde(default)]
    pub sets: Vec<SetSummary>,
}

/// How a set stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SetSummary {
    /// `inet filter blocklist`.
    pub set: String,
    /// Shields of its elements.
    pub shields: usize,
    /// Why it is not mirrored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

enum Order {
    Add(Box<Shield>, oneshot::Sender<Kept>),
    Remove(Option<Vec<SessionKey>>, oneshot::Sender<Vec<SessionKey>>),
    List(oneshot::Sender<Vec<Kept>>),
    Summary(oneshot::Sender<Summary>),
}

/// What gives orders. Answers are `None` once nobody keeps shields any more.
#[derive(Clone, Debug)]
pub struct Shields(mpsc::Sender<Order>);

impl Shields {
    /// Keeps a shield for its time, or until it is deleted if it has none.
    pub async fn add(&self, shield: Shield) -> Option<Kept> {
        self.order(|answer| Order::Add(Box::new(shield), answer))
            .await
    }

    /// Keeps these no more that commands have added, or none of them; those that were there.
    pub async fn remove(&self, names: Option<Vec<SessionKey>>) -> Option<Vec<SessionKey>> {
        self.order(|answer| Order::Remove(names, answer)).await
    }

    /// All that are kept, and what else the host has.
    pub async fn list(&self) -> Option<Vec<Kept>> {
        self.order(Order::List).await
    }

    /// How they stand.
    pub async fn summary(&self) -> Option<Summary> {
        self.order(Order::Summary).await
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        self.0.send(order(sender)).await.ok()?;
        answer.await.ok()
    }
}

/// Begins to keep shields: what gives orders, and what carries them out.
pub fn shields(config: ShieldsConfig, channel: Channel) -> (Shields, Keeper) {
    let (sender, orders) = mpsc::channel(QUEUE);
    let maximum = usize::try_from(config.maximum).unwrap_or(usize::MAX);
    let keeper = Keeper {
        book: Book::new(config.ttl, maximum, config.set.len()),
        troubles: vec![None; config.set.len()],
        orders,
        channel,
        config,
        is_crowded: false,
    };
    (Shields(sender), keeper)
}

/// Carries orders out, and looks at the sets.
pub struct Keeper {
    config: ShieldsConfig,
    channel: Channel,
    orders: mpsc::Receiver<Order>,
    book: Book,
    /// Of each set.
    troubles: Vec<Option<String>>,
    /// Some are beyond the maximum.
    is_crowded: bool,
}

/// The clock of the book.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Keeper {
    /// Keeps shields, for ever.
    pub async fn keep(mut self) -> Infallible {
        let mut upheavals = self.channel.upheavals();
        let mut look_at_sets = tokio::time::Instant::now();
        let has_sets = !self.config.set.is_empty();
        loop {
            let pause = match self.carry_out().await {
                Ok(()) => LOOK,
                Err(error) => {
                    log::debug!("shields: {error}");
                    RETRY
                }
            };
            tokio::select! {
                Some(order) = self.orders.recv() => self.obey(order).await,
                Ok(()) = upheavals.changed() => self.book.upheaval(),
                () = sleep_until(look_at_sets), if has_sets => {
                    let took = self.look_at_sets().await;
                    let pause = self.config.interval.max(INTERVAL_MIN).max(took * SHARE);
                    look_at_sets = tokio::time::Instant::now() + pause;
                }
                () = sleep(pause), if !self.book.is_empty() => {}
            }
        }
    }

    /// Has the host hold what is wanted.
    async fn carry_out(&mut self) -> Result<(), ChannelError> {
        let plan = self.book.plan(now());
        for names in plan.end.chunks(TOGETHER) {
            self.channel.unshield(names.to_vec()).await?;
            self.book.ended(names);
        }
        for shields in plan.ask.chunks(TOGETHER) {
            self.book.asking(shields, now());
            let results = self.channel.shield(shields.to_vec()).await?;
            for refused in results.iter().filter(|result| result.result.is_refused()) {
                let error = refused.error.as_ref();
                let why = error.map_or(refused.result.name(), |error| &error.error_message);
                log::warn!("shield {} is refused: {why}", refused.name);
            }
            self.book.answered(&results, now());
        }
        Ok(())
    }

    async fn obey(&mut self, order: Order) {
        // Who has gone needs no answer.
        match order {
            Order::Add(shield, answer) => {
                let _gone = answer.send(self.add(*shield).await);
            }
            Order::Remove(names, answer) => {
                let names = names.unwrap_or_else(|| self.book.names());
                let were = names
                    .into_iter()
                    .filter(|name| self.book.remove(name))
                    .collect();
                let _later = self.carry_out().await;
                let _gone = answer.send(were);
            }
            Order::List(answer) => {
                let list = self.list().await;
                let _gone = answer.send(list);
            }
            Order::Summary(answer) => {
                let _gone = answer.send(self.summary());
            }
        }
    }

    async fn add(&mut self, mut shield: Shield) -> Kept {
        let name = shield.name.clone();
        let asked = kept(shield.clone(), COMMAND.to_owned(), &Standing::Waiting);
        let ttl = shield.ttl.take();
        let until = ttl.map(|ttl| now() + Duration::from_secs(ttl.get().into()));
        self.book.add(name.clone(), Entry { shield, until });
        // While the host is not there it is kept, and waits.
        let _later = self.carry_out().await;
        let mut kept = self.kept().into_iter();
        let found = kept.find(|kept| kept.by == COMMAND && kept.shield.name == name);
        // Its time may be over already.
        let kept = found.unwrap_or(asked);
        // Whoever asked for it is told, and does better.
        if kept.standing == "refused" {
            self.book.remove(&name);
        }
        kept
    }

    /// All that is wanted.
    fn kept(&self) -> Vec<Kept> {
        let now = now();
        let one = |(set, entry, standing): (Option<usize>, &Entry, Standing)| {
            let left = entry
                .until
                .map(|until| until.saturating_duration_since(now));
            let shield = Shield {
                ttl: left.and_then(|left| Seconds::try_from(left.as_secs().max(1)).ok()),
                ..entry.shield.clone()
            };
            let set = set.and_then(|set| self.config.set.get(set));
            kept(shield, set.map_or(COMMAND.to_owned(), title), &standing)
        };
        self.book.standings(now).map(one).collect()
    }

    /// All that is wanted, and what the host has.
    async fn list(&self) -> Vec<Kept> {
        let mut list = self.kept();
        let there = self.channel.shields().await;
        let there = there.map(|shields| shields.shield).unwrap_or_default();
        for report in there {
            let is_operators = report.origin.name() == "operator";
            let own = list
                .iter_mut()
                .find(|kept| kept.shield.name == report.shield.name && !is_operators);
            let kept = match own {
                Some(own) => own,
                None => {
                    let mut shield = report.shield;
                    shield.ttl = report
                        .status
                        .remaining
                        .and_then(|left| Seconds::try_from(u64::from(left)).ok());
                    list.push(kept(
                        shield,
                        report.origin.name().to_owned(),
                        &Standing::Held,
                    ));
                    match list.last_mut() {
                        Some(kept) => kept,
                        None => continue,
                    }
                }
            };
            kept.packets = Some(report.status.packets);
            kept.octets = Some(report.status.octets);
            kept.dropped = Some(report.status.dropped);
        }
        list
    }

    fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        let mut shields = vec![0; self.config.set.len()];
        for (set, _, standing) in self.book.standings(now()) {
            let count = match standing {
                Standing::Held => &mut summary.held,
                Standing::Waiting => &mut summary.waiting,
                Standing::Refused(_) => &mut summary.refused,
                Standing::LeftOut => &mut summary.left_out,
            };
            *count += 1;
            if let Some(count) = set.and_then(|set| shields.get_mut(set)) {
                *count += 1;
            }
        }
        let sets = self.config.set.iter().zip(shields).zip(&self.troubles);
        summary.sets = sets
            .map(|((set, shields), trouble)| SetSummary {
                set: title(set),
                shields,
                trouble: trouble.clone(),
            })
            .collect();
        summary
    }

    /// Reads all sets; how long that took.
    async fn look_at_sets(&mut self) -> Duration {
        let began = now();
        let sets = self.config.set.clone();
        let read = move || sets.iter().map(set::read).collect::<Vec<_>>();
        let Ok(found) = tokio::task::spawn_blocking(read).await else {
            return now() - began;
        };
        for (place, elements) in found.into_iter().enumerate() {
            self.mirror(place, elements);
        }
        let left_out = self.summary().left_out;
        if left_out > 0 && !self.is_crowded {
            let most = self.config.maximum;
            log::warn!("{left_out} shields are left out: {most} are the most ([shields] maximum)");
        }
        self.is_crowded = left_out > 0;
        now() - began
    }

    fn mirror(&mut self, place: usize, elements: Result<Vec<Element>, SetError>) {
        let (Some(set), Some(known)) = (self.config.set.get(place), self.troubles.get_mut(place))
        else {
            return;
        };
        let trouble = elements.as_ref().err().map(ToString::to_string);
        if let Some(trouble) = &trouble
            && known.as_ref() != Some(trouble)
        {
            log::warn!("set {} is not mirrored: {trouble}", title(set));
        }
        *known = trouble;
        let elements = match elements {
            Ok(elements) => elements,
            // It has no elements any more, or never had.
            Err(SetError::Missing) => Vec::new(),
            Err(_) => return,
        };
        self.book.mirror(place, entries(set, &elements, now()));
    }
}

fn kept(shield: Shield, by: String, standing: &Standing) -> Kept {
    let (standing, why) = match standing {
        Standing::Held => ("held", None),
        Standing::Waiting => ("waiting", None),
        Standing::Refused(why) => ("refused", Some(why.clone())),
        Standing::LeftOut => ("left-out", None),
    };
    Kept {
        shield,
        by,
        standing: standing.to_owned(),
        why,
        packets: None,
        octets: None,
        dropped: None,
    }
}

/// A set, as people call it.
fn title(set: &SetConfig) -> String {
    format!("{} {} {}", set.family.name(), set.table, set.set)
}

/// The shields of a set's elements.
fn entries(set: &SetConfig, elements: &[Element], now: Instant) -> BTreeMap<SessionKey, Entry> {
    // Stable, so that an agent that starts again finds its own.
    let mut hasher = DefaultHasher::new();
    title(set).hash(&mut hasher);
    let number = hasher.finish() as u32;
    let mut entries = BTreeMap::new();
    for element in elements {
        let until = element.expires.map(|left| now + left);
        for prefix in range::prefixes(element.first, element.last, PREFIXES_MAX) {
            let Ok(name) = SessionKey::try_from(format!("nft-{number:08x}-{prefix}")) else {
                continue;
            };
            let (source_prefix, destination_prefix) = match set.side {
                Side::Source => (Some(prefix), None),
                Side::Destination => (None, Some(prefix)),
            };
            let shield = Shield {
                name: name.clone(),
                priority: set.priority,
                ingress_vnic: set.ingress_vnic.clone(),
                source_prefix,
                destination_prefix,
                action: set.action,
                police: set.police,
                ttl: None,
                protocol: None,
                source_port: PortMatch::default(),
                destination_port: PortMatch::default(),
                tcp_flags: None,
                tcp_flags_mask: None,
            };
            entries.insert(name, Entry { shield, until });
        }
    }
    entries
}
