//! What is asked of the kernel about single connections, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use super::{Action, After, Core, Id, KernelRequest, Mode, Moment, Stage};
use crate::agent::connection::{Connection, TcpState};
use crate::agent::core::action::KernelAnswer;
use crate::agent::core::held::{Held, SLACK};
use crate::agent::network::Route;
use crate::packet::key::protocol;

/// Requests of one action: so many that handing them over costs little, so few that another
/// action need not wait.
const BATCH: usize = 64;
/// The shortest timeout that is set: zero would destroy the entry at once.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// A session that ended, and whose connection's timeout is to be what it would have been.
#[derive(Clone, Debug)]
pub(super) struct Settling {
    connection: Arc<Connection>,
    full: Duration,
    /// When a packet went around the guest last.
    moved: Moment,
    /// What the timeout was set to last, and when.
    refreshed: (Moment, Duration),
}

impl Core {
    pub(super) fn act_on_kernel(&mut self, actions: &mut Vec<Action>) {
        if self.is_kernel_busy {
            return;
        }
        let orders = self.requests.len().min(BATCH);
        let mut batch: Vec<KernelRequest> = self.requests.drain(..orders).collect();
        while batch.len() < 2 * BATCH {
            let Some(id) = self.searching.pop_front() else {
                break;
            };
            if let Some(Stage::Searching(search)) = self.held.get(&id).map(|held| &held.stage)
                && let Some(query) = search.question()
            {
                batch.push(KernelRequest::Route(id, query));
            }
        }
        if !batch.is_empty() {
            self.is_kernel_busy = true;
            actions.push(Action::Kernel(batch));
        }
    }

    /// Takes the answers to [`Action::Kernel`].
    pub fn kernel_answered(&mut self, answers: Vec<KernelAnswer>, now: Moment) {
        self.is_kernel_busy = false;
        for answer in answers {
            match answer {
                KernelAnswer::Route(id, route) => self.routed(id, route, now),
                KernelAnswer::Look(id, found) => self.looked(id, found.as_deref(), now),
                KernelAnswer::IsThere(_, true) => {}
                KernelAnswer::IsLiberal(id, true) => self.may_be_asked_for(id),
                KernelAnswer::IsThere(id, false) | KernelAnswer::IsLiberal(id, false) => {
                    self.leave(id, After::Forget, now);
                }
            }
        }
    }

    fn routed(&mut self, id: Id, route: Route, now: Moment) {
        let ports = &self.ports;
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        let Stage::Searching(search) = &mut held.stage else {
            return;
        };
        search.answer(route, ports);
        if search.question().is_some() {
            self.searching.push_back(id);
            return;
        }
        match search.clone().finish(ports) {
            Err(reason) => self.finish(id, After::PutOff(reason), now),
            Ok(paths) => {
                held.ways = u8::try_from(paths.len()).unwrap_or(u8::MAX);
                let way = usize::from(held.history.way) % paths.len().max(1);
                held.path = paths.get(way).copied();
                self.found(id, now);
            }
        }
    }

    /// A way was found: it can be asked for.
    fn found(&mut self, id: Id, now: Moment) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        for key in held.path.iter().flat_map(|path| path.next_hops()) {
            self.hops.entry(key).or_default().sessions.insert(id);
        }
        if self.settings.mode == Mode::Observe {
            held.turn(Stage::Observed, now);
            self.tell.push_back(id);
        } else {
            held.turn(Stage::Ready, now);
            match is_tcp(held) {
                true => self.be_liberal(id),
                false => self.ready.push_back(id),
            }
        }
    }

    /// TCP's windows are seen no more: a segment that comes back to the guest is to be valid, and
    /// so is one of the direction that is not handed over yet, which acknowledges what goes
    /// around. So it is asked for before any does, and once all does: what the guest saw until
    /// then it has remembered again.
    pub(super) fn be_liberal(&mut self, id: Id) {
        let Some(held) = self.held.get(&id).filter(|held| is_tcp(held)) else {
            return;
        };
        self.statistics.made_liberal += 1;
        let connection = Arc::clone(&held.connection);
        self.requests
            .push_back(KernelRequest::BeLiberal(id, connection));
    }

    /// Its windows are checked no more: it can be asked for.
    fn may_be_asked_for(&mut self, id: Id) {
        let is_ready = |held: &&Held| held.stage == Stage::Ready && !held.is_offered;
        if self.held.get(&id).filter(is_ready).is_some() {
            self.ready.push_back(id);
        }
    }

    /// Sets a timeout, unless one that was set stands there unread.
    pub(super) fn refresh(&mut self, id: Id, timeout: Duration, now: Moment) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        held.refreshed = (now, timeout);
        held.trailing = None;
        self.statistics.refreshed += 1;
        let connection = Arc::clone(&held.connection);
        let request = KernelRequest::Refresh(id, connection, timeout);
        self.requests.push_back(request);
    }

    /// The session ended while its packets went around the guest: its timeout is to be what it
    /// would be had the guest seen them.
    pub(super) fn settle(&mut self, id: Id, held: &Held, moved: Moment) {
        let settling = Settling {
            connection: Arc::clone(&held.connection),
            full: held.full,
            moved,
            refreshed: held.refreshed,
        };
        let connection = Arc::clone(&held.connection);
        self.requests.push_back(KernelRequest::Look(id, connection));
        self.settling.insert(id, settling);
    }

    /// A packet that has come to the guest since has set the timeout itself: then it stays.
    fn looked(&mut self, id: Id, found: Option<&Connection>, now: Moment) {
        let Some(settling) = self.settling.remove(&id) else {
            return;
        };
        let Some(connection) = found else {
            return;
        };
        // Its end has times of its own: the guest has seen it, and set them.
        if connection
            .tcp
            .is_some_and(|state| state != TcpState::ESTABLISHED)
        {
            return;
        }
        let Some(left) = connection.timeout else {
            return;
        };
        let (at, given) = settling.refreshed;
        let undisturbed = given.saturating_sub(now.since(at));
        if left > undisturbed + SLACK {
            return;
        }
        let idle = now.since(settling.moved);
        let target = settling.full.saturating_sub(idle).max(TIMEOUT_MIN);
        if target.abs_diff(left) < SLACK / 2 {
            return;
        }
        self.statistics.settled += 1;
        let request = KernelRequest::Refresh(id, settling.connection, target);
        self.requests.push_back(request);
    }
}

pub(super) fn is_tcp(held: &Held) -> bool {
    held.connection.original.protocol == protocol::TCP
}
