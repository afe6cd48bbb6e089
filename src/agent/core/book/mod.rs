//! The book of connections: what is asked for, what the host has, what is to be taken back.
//!
//! Everything that happens comes in by a method, with the time; everything to be done goes out of
//! [`Core::act`]. A connection is either watched or held: held from when its ways are asked of
//! the routing tables until the host has given it back.
//!
//! *Promises*: never asks for what is not eligible; never holds two connections of one tuple; takes
//! back what conntrack has destroyed; orders calls so that none undoes a later one of the same
//! session. Constant time, amortised, for each event; a change of the network costs time once for
//! each session. Memory is bounded by [`Settings::watched_max`] and [`Settings::sessions_max`].
//! *Refuses*: nothing; what it is told about connections it does not hold changes nothing.
//! *Caller's duty*: calls [`Core::act`] after everything it tells, and when
//! [`Core::next_deadline`] has come; answers every action.
//! *Standard*: `docs/agent.md`.

mod conntrack;
mod host;
mod kernel;
mod network;
mod told;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::action::{Action, KernelRequest};
use super::eligible::Rules;
use super::held::{After, Held, Stage};
use super::identity::Id;
use super::moment::Moment;
use super::pace::{AskPace, Meter, News, ScanPace};
use super::paths::Search;
use super::ports::{Element, Ports};
use super::reason::{Reason, Reasons};
use super::settings::{Mode, Settings};
use super::snapshot::Snapshot;
use super::statistics::Statistics;
use super::watch::{Known, Thresholds, Watches};
use crate::agent::connection::{Connection, Tuple};
use crate::agent::network::{Hazard, IfIndex, Links};
use host::Line;
use kernel::Settling;

/// The lease of a host that does not say: what `docs/config.md` has as its default.
const LEASE_UNTOLD: Duration = Duration::from_secs(10);

/// The deciding part of the agent.
#[derive(Debug)]
pub struct Core {
    settings: Settings,
    // The world.
    links: Links,
    element: Element,
    ports: Ports,
    hazards: Vec<Hazard>,
    rules: Rules,
    /// Counts changes of interfaces and routes.
    world: u32,
    links_read: Reading,
    hazards_read: Reading,
    // Connections.
    watches: Watches,
    held: HashMap<Id, Held>,
    by_tuple: HashMap<(u16, Tuple), Id>,
    hops: HashMap<(IfIndex, IpAddr), Hop>,
    deadlines: BinaryHeap<Reverse<(Moment, Id)>>,
    // Looking at the table.
    pace: ScanPace,
    news: News,
    /// The number of the look at the table that runs, or ran last.
    scan: u32,
    scans_whole: u32,
    gone_meanwhile: HashSet<Id>,
    has_moved: bool,
    reasons: Reasons,
    reasons_last: Reasons,
    // The kernel.
    searching: VecDeque<Id>,
    requests: VecDeque<KernelRequest>,
    is_kernel_busy: bool,
    settling: HashMap<Id, Settling>,
    // The host.
    line: Line,
    ready: VecDeque<Id>,
    leaving: VecDeque<(Moment, Id)>,
    reprove_keys: Vec<Id>,
    staged: VecDeque<Id>,
    staged_meter: Meter,
    ask: AskPace,
    /// What the element's policy lets through.
    ask_meter: Option<Meter>,
    is_pressed: bool,
    lease: Duration,
    tell: VecDeque<Id>,
    statistics: Statistics,
}

/// Something of the kernel's that is read as a whole, one time after the other: what was read
/// last is what counts.
#[derive(Debug)]
struct Reading {
    is_due: bool,
    is_under_way: bool,
    is_known: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            is_due: true,
            is_under_way: false,
            is_known: false,
        }
    }
}

impl Reading {
    /// Whether it is to be read now.
    const fn begin(&mut self) -> bool {
        let begins = self.is_due && !self.is_under_way;
        if begins {
            self.is_due = false;
            self.is_under_way = true;
        }
        begins
    }

    /// It was read, or could not be.
    const fn end(&mut self, is_read: bool) {
        self.is_under_way = false;
        self.is_known |= is_read;
        self.is_due |= !is_read;
    }
}

/// A neighbour that sessions go to.
#[derive(Debug, Default)]
struct Hop {
    sessions: HashSet<Id>,
    /// When the kernel was told last that it is in use.
    used: Option<Moment>,
}

impl Core {
    /// A core that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            links: Links::default(),
            element: Element::default(),
            ports: Ports::default(),
            hazards: Vec::new(),
            rules: Rules::default(),
            world: 0,
            links_read: Reading::default(),
            hazards_read: Reading::default(),
            watches: Watches::new(settings.watched_max),
            held: HashMap::new(),
            by_tuple: HashMap::new(),
            hops: HashMap::new(),
            deadlines: BinaryHeap::new(),
            pace: ScanPace::new(settings.scan_share_permille),
            news: News::new(settings.news_rate_max),
            scan: 0,
            scans_whole: 0,
            gone_meanwhile: HashSet::new(),
            has_moved: false,
            reasons: Reasons::default(),
            reasons_last: Reasons::default(),
            searching: VecDeque::new(),
            requests: VecDeque::new(),
            is_kernel_busy: false,
            settling: HashMap::new(),
            line: Line::default(),
            ready: VecDeque::new(),
            leaving: VecDeque::new(),
            reprove_keys: Vec::new(),
            staged: VecDeque::new(),
            staged_meter: Meter::new(settings.staged_rate),
            ask: AskPace::default(),
            ask_meter: None,
            is_pressed: false,
            lease: LEASE_UNTOLD,
            tell: VecDeque::new(),
            statistics: Statistics::default(),
            settings,
        }
    }

    /// What is to be done now.
    pub fn act(&mut self, now: Moment) -> Vec<Action> {
        self.fire(now);
        let mut actions = Vec::new();
        self.act_on_table(now, &mut actions);
        if self.links_read.begin() {
            actions.push(Action::ReadLinks);
        }
        if self.hazards_read.begin() {
            actions.push(Action::ReadHazards);
        }
        self.act_on_kernel(&mut actions);
        self.act_on_host(now, &mut actions);
        actions
    }

    /// When to call [`Core::act`] again, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Moment> {
        let timer = self.deadlines.peek().map(|Reverse((at, _))| *at);
        [timer, self.table_deadline(), self.host_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The mode that is in force.
    pub const fn mode(&self) -> Mode {
        self.settings.mode
    }

    /// Changes what the agent does at all.
    pub fn set_mode(&mut self, mode: Mode, now: Moment) {
        if std::mem::replace(&mut self.settings.mode, mode) == mode {
            return;
        }
        let ends = |held: &Held| match (&held.stage, mode) {
            (Stage::Leaving(_), _) | (Stage::Searching(_), Mode::On | Mode::Observe) => false,
            (Stage::Observed, _) => mode != Mode::Observe,
            (_, Mode::Off | Mode::Observe) => true,
            (Stage::Searching(_) | Stage::Ready, Mode::Pause) => true,
            _ => false,
        };
        self.leave_all(ends, After::Watch, now);
        self.pace.hurry();
    }

    /// Takes back all that are so.
    fn leave_all(&mut self, which: impl Fn(&Held) -> bool, after: After, now: Moment) {
        let ids: Vec<Id> = (self.held.iter())
            .filter(|(_, held)| which(held))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.leave(id, after, now);
        }
    }

    /// Begins to hold a connection, unless another one of its tuple is held.
    fn hold(&mut self, id: Id, connection: Connection, known: Known, now: Moment) {
        let tuple = (connection.zone, connection.original);
        let older = self.by_tuple.get(&tuple).copied();
        if older.is_some() || self.held.len() >= self.sessions_max() {
            // The table cannot have two of one tuple: the older one is gone, and comes back only
            // as this one.
            if let Some(older) = older.filter(|older| *older != id) {
                self.leave(older, After::Forget, now);
            }
            self.statistics.crowded += 1;
            let scan = self.scan;
            self.watches.put_back(id, &connection, known, scan, now);
            return;
        }
        let search = Search::new(&connection, &self.ports);
        let mut held = Held::new(connection, known, search, now);
        held.scan = self.scan;
        self.by_tuple.insert(tuple, id);
        self.held.insert(id, held);
        self.searching.push_back(id);
    }

    /// How many connections may be held, by the owner's settings and the element's policy.
    fn sessions_max(&self) -> usize {
        let own = self.settings.sessions_max;
        let policy = self.element.sessions_max.map(usize::try_from);
        policy
            .and_then(Result::ok)
            .map_or(own, |policy| own.min(policy))
    }

    /// Takes a connection back from the host, or lets it go if the host does not have it.
    fn leave(&mut self, id: Id, after: After, now: Moment) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        match &held.stage {
            Stage::Asked => held.doom = Some(worse(held.doom, after)),
            Stage::Leaving(before) => {
                let after = worse(Some(*before), after);
                held.stage = Stage::Leaving(after);
            }
            Stage::Live | Stage::Ready if held.is_offered => {
                held.turn(Stage::Leaving(after), now);
                self.leaving.push_back((now, id));
            }
            _ => self.finish(id, after, now),
        }
    }

    /// Holds a connection no more. The host does not have it.
    fn finish(&mut self, id: Id, after: After, now: Moment) {
        let Some(mut held) = self.held.remove(&id) else {
            return;
        };
        let tuple = (held.connection.zone, held.connection.original);
        if self.by_tuple.get(&tuple) == Some(&id) {
            self.by_tuple.remove(&tuple);
        }
        self.unhop(id, &held);
        held.settle_counts();
        let history = &mut held.history;
        match after {
            After::Forget => return,
            After::Watch => history.pause = None,
            After::PutOff(reason) => {
                history.put_off(
                    reason,
                    Some(self.world).filter(|_| is_of_world(reason)),
                    now,
                );
            }
            After::NextWay(reason) => {
                history.way = history.way.saturating_add(1);
                if history.way >= held.ways {
                    history.way = 0;
                    history.put_off(reason, None, now);
                }
            }
        }
        let known = Known {
            full: held.full,
            given: match held.history.hand_overs {
                0 => Duration::ZERO,
                _ => held.full.max(self.lease * 2),
            },
            is_heard: held.is_heard,
            history: held.history,
        };
        let scan = self.scan;
        self.watches
            .put_back(id, &held.connection, known, scan, now);
    }

    fn unhop(&mut self, id: Id, held: &Held) {
        for key in held.path.iter().flat_map(|path| path.next_hops()) {
            if let Some(hop) = self.hops.get_mut(&key) {
                hop.sessions.remove(&id);
                if hop.sessions.is_empty() {
                    self.hops.remove(&key);
                }
            }
        }
    }

    /// Whether the host may have something.
    pub fn holds_any(&self) -> bool {
        self.held.values().any(|held| held.is_offered)
    }

    /// All that are held.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (&Id, &Held)> {
        self.held.iter()
    }

    /// One of them.
    pub(super) fn session(&self, id: Id) -> Option<&Held> {
        self.held.get(&id)
    }

    /// The name of an interface.
    pub(super) fn interface_name(&self, index: IfIndex) -> &str {
        self.links.0.get(&index).map_or("?", |link| &link.name)
    }

    /// What a snapshot has that takes no time.
    pub(super) fn summary(&self) -> Snapshot {
        let interface = |index: &IfIndex| match self.ports.get(*index) {
            Ok(port) if port.vlan == 0 => port.vnic.to_string(),
            Ok(port) => format!("{} vlan {}", port.vnic, port.vlan),
            Err(reason) => match self.links.0.get(index).and_then(|of| of.obstacle.as_ref()) {
                Some(obstacle) => format!("{}: {obstacle}", reason.word()),
                None => reason.word().to_owned(),
            },
        };
        Snapshot {
            element: self.element.name.clone(),
            watched: self.watches.count() as u64,
            unwatched: self.watches.unwatched(),
            hazards: (self.rules.hazards().iter())
                .map(|hazard| format!("{} ({})", hazard.what, hazard.chain))
                .collect(),
            interfaces: (self.links.0.iter())
                .map(|(index, link)| (link.name.clone(), interface(index)))
                .collect(),
            follows_news: self.news.are_followed(),
            statistics: self.statistics.clone(),
            ..Snapshot::default()
        }
    }

    /// What makes a connection worth asking for.
    fn thresholds(&self) -> Thresholds {
        let element = &self.element;
        let rate = self.settings.rate_min.max(element.rate_min.unwrap_or(0));
        Thresholds {
            age_min: (self.settings.age_min).max(element.age_min.unwrap_or_default()),
            // A table that is nearly full is for those who gain most.
            rate_min: if self.is_pressed {
                rate.max(1).saturating_mul(10)
            } else {
                rate
            },
        }
    }

    /// Sets when a connection is to be looked at, however it was set before.
    fn set_deadline(&mut self, id: Id, at: Moment) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        held.deadline = at;
        // A timer that is set earlier will find that it is not time yet.
        if held.timer.is_none_or(|timer| at < timer) {
            held.timer = Some(at);
            self.deadlines.push(Reverse((at, id)));
        }
    }

    fn fire(&mut self, now: Moment) {
        while let Some(Reverse((at, id))) = self.deadlines.peek().copied() {
            if at > now {
                return;
            }
            self.deadlines.pop();
            let Some(held) = self.held.get_mut(&id) else {
                continue;
            };
            if held.timer != Some(at) {
                continue;
            }
            held.timer = None;
            let deadline = held.deadline;
            if deadline > now {
                self.set_deadline(id, deadline);
            } else {
                self.come_due(id, now);
            }
        }
    }

    /// A live session's time has come: its proof is overdue, or it is to be proved again.
    fn come_due(&mut self, id: Id, now: Moment) {
        let every = self.settings.reprove_every;
        let proof_timeout = self.settings.proof_timeout;
        // A tenth of what makes a connection worth asking for is more than some stray packets.
        let rate = u64::from(self.settings.rate_min.max(10));
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        if held.stage != Stage::Live {
            return;
        }
        let is_waiting = held.is_over != [true; 2];
        if is_waiting && now.since(held.asked) >= proof_timeout {
            let packets_min = rate * proof_timeout.as_secs().max(1) / 10;
            let is_blind = held.connection.counters.is_none();
            let was_never = held.history.hand_overs == 0 && held.is_over == [false; 2];
            if held.is_unproved(packets_min) || (is_blind && was_never) {
                self.statistics.unproved += 1;
                return self.leave(id, After::NextWay(Reason::Unproved), now);
            }
        }
        if held.trailing.is_some_and(|at| at <= now) {
            held.trailing = None;
            let idle = held.idle(now);
            let timeout = self.timeout_of(id, idle);
            self.refresh(id, timeout, now);
        }
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        let mut next = if is_waiting {
            now + proof_timeout
        } else {
            Moment(u64::MAX)
        };
        if held.is_active() && !every.is_zero() {
            if held.reprove <= now {
                held.reprove = now + every;
                // One that waits for the call already is in it.
                if !std::mem::replace(&mut held.is_reproving, true) {
                    self.reprove_keys.push(id);
                }
            }
            next = next.min(held.reprove);
        }
        next = held.trailing.map_or(next, |at| next.min(at));
        if next < Moment(u64::MAX) {
            self.set_deadline(id, next);
        }
    }
}

/// Of two things that are to become of a connection, the one that leaves less of it.
const fn worse(before: Option<After>, after: After) -> After {
    match before {
        Some(After::Forget) => After::Forget,
        _ => after,
    }
}

/// Whether a reason may be none once interfaces or routes are others.
const fn is_of_world(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Interface
            | Reason::Local
            | Reason::Unrouted
            | Reason::ForeignInterface
            | Reason::Tunnel
            | Reason::Bridge
            | Reason::ServiceTag
            | Reason::Shaped
            | Reason::Obstacle
            | Reason::Down
            | Reason::Mtu
    )
}

#[cfg(test)]
mod tests;
