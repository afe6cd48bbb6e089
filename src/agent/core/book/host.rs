//! Calls to the host: epochs, offers, withdrawals, proofs, syncs; and what becomes of them.
//!
//! There are three lanes, each with one call at a time: what adds (epoch, element, sync, offers),
//! withdrawals, and proofs. A key is never in two of them at once but for proofs, which change
//! nothing that the others decide.

use std::time::Duration;

use super::{Action, After, Core, Element, Id, Mode, Moment, Reason, Stage};
use crate::agent::core::action::{CallError, Offered, Outcome, Reprove};
use crate::agent::core::pace::Meter;
use crate::agent::core::request;
use crate::api::offload::ENTRIES_MAX;
use crate::api::{Session, SessionKey};

/// After a call that failed, the next one of its lane waits so long at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The call of the lane that adds.
#[derive(Debug)]
enum Call {
    Epoch,
    Element,
    Sync { finishes: Vec<(Moment, Id)> },
    Offload(Vec<Id>),
}

/// A lane's pauses after failures.
#[derive(Debug, Default)]
struct Retry {
    at: Moment,
    failures: u32,
}

impl Retry {
    fn failed(&mut self, now: Moment) {
        let pause = RETRY_FIRST * (1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.at = now + pause.min(RETRY_MAX);
    }

    fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// A call that returns sessions to the guest.
#[derive(Debug)]
struct Reproving {
    /// Since when an answer is waited for.
    since: Moment,
    /// Which; none: all.
    ids: Option<Vec<Id>>,
}

/// The connection to the host.
#[derive(Debug)]
pub(super) struct Line {
    is_up: bool,
    up_since: Moment,
    has_epoch: bool,
    wants_epoch: bool,
    wants_element: bool,
    wants_sync: bool,
    call: Option<Call>,
    retry: Retry,
    withdrawing: Option<Vec<(Moment, Id)>>,
    retry_withdraw: Retry,
    reproving: Option<Reproving>,
    retry_reprove: Retry,
    /// All are to be proved again, since then.
    pub(super) reprove_all: Option<Moment>,
    /// Single ones could not be told so, since then.
    reprove_late: Option<Moment>,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            is_up: false,
            up_since: Moment(0),
            has_epoch: false,
            wants_epoch: true,
            wants_element: true,
            wants_sync: false,
            call: None,
            retry: Retry::default(),
            withdrawing: None,
            retry_withdraw: Retry::default(),
            reproving: None,
            retry_reprove: Retry::default(),
            reprove_all: None,
            reprove_late: None,
        }
    }
}

impl Core {
    /// The host can be reached, or not any more.
    pub fn line(&mut self, is_up: bool, now: Moment) {
        let line = &mut self.line;
        if is_up && !line.is_up {
            line.up_since = now;
            line.wants_element = true;
            line.wants_sync = true;
            line.retry.succeeded();
            line.retry_withdraw.succeeded();
            line.retry_reprove.succeeded();
        }
        line.is_up = is_up;
    }

    /// Whether the host can be reached.
    pub const fn is_up(&self) -> bool {
        self.line.is_up
    }

    /// Notifications were lost.
    pub const fn events_lost(&mut self) {
        self.line.wants_sync = true;
    }

    pub(super) fn act_on_host(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while let Some(id) = self.tell.pop_front() {
            if let Ok(session) = self.session_of(id) {
                actions.push(Action::Tell(Box::new(session)));
            }
        }
        if !self.line.is_up {
            return;
        }
        if self.is_unanswered(now) {
            self.fall_silent(actions);
            return;
        }
        self.act_to_withdraw(now, actions);
        self.act_to_reprove(now, actions);
        if self.line.call.is_none() && self.line.retry.at <= now {
            self.act_to_add(now, actions);
        }
    }

    pub(super) fn host_deadline(&self) -> Option<Moment> {
        let line = &self.line;
        if !line.is_up {
            return None;
        }
        let wants_more = line.wants_epoch || line.wants_element || line.wants_sync;
        let add = (line.call.is_none() && wants_more).then_some(line.retry.at);
        let may_offer = self.settings.mode == Mode::On && line.call.is_none();
        let offer =
            (may_offer && !self.ready.is_empty()).then(|| line.retry.at.max(self.ask.due()));
        // Nothing is there to be taken back until the new epoch is open.
        let may_revoke = !line.wants_epoch;
        let withdraw = may_revoke && line.withdrawing.is_none() && !self.leaving.is_empty();
        let may_reprove = may_revoke && line.reproving.is_none();
        let has_some = line.reprove_all.is_some() || !self.reprove_keys.is_empty();
        let reprove = may_reprove && has_some;
        let staged = may_reprove && !self.staged.is_empty();
        let answer = (self.revoked_since()).map(|since| since + self.settings.answer_timeout);
        [
            add,
            offer,
            withdraw.then_some(line.retry_withdraw.at),
            reprove.then_some(line.retry_reprove.at),
            staged.then(|| line.retry_reprove.at.max(self.staged_meter.due())),
            answer,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Since when a revocation waits for its answer.
    fn revoked_since(&self) -> Option<Moment> {
        let line = &self.line;
        if !line.has_epoch || line.wants_epoch {
            return None;
        }
        let under_way = (line.withdrawing.as_ref()).and_then(|batch| batch.first());
        let swept = match &line.call {
            Some(Call::Sync { finishes }) => finishes.first(),
            _ => None,
        };
        let oldest = [under_way, swept, self.leaving.front()]
            .into_iter()
            .flatten();
        let proofs = [
            line.reproving.as_ref().map(|call| call.since),
            line.reprove_all,
        ];
        let since = oldest
            .map(|(at, _)| *at)
            .chain(proofs.into_iter().flatten())
            .min();
        since.map(|since| since.max(line.up_since))
    }

    fn is_unanswered(&self, now: Moment) -> bool {
        let timeout = self.settings.answer_timeout;
        (self.revoked_since()).is_some_and(|since| now.since(since) >= timeout)
    }

    /// The lease ends what cannot be taken back otherwise.
    fn fall_silent(&mut self, actions: &mut Vec<Action>) {
        self.statistics.fell_silent += 1;
        self.line.is_up = false;
        self.line.has_epoch = false;
        self.line.wants_epoch = true;
        actions.push(Action::FallSilent);
    }

    fn act_to_withdraw(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let line = &mut self.line;
        let is_free = line.withdrawing.is_none() && line.retry_withdraw.at <= now;
        if !is_free || line.wants_epoch || self.leaving.is_empty() {
            return;
        }
        let count = self.leaving.len().min(ENTRIES_MAX);
        let batch: Vec<(Moment, Id)> = self.leaving.drain(..count).collect();
        let keys: Vec<SessionKey> = batch.iter().filter_map(|(_, id)| id.key()).collect();
        line.withdrawing = Some(batch);
        actions.push(Action::Withdraw(keys));
    }

    /// Takes the answer to [`Action::Withdraw`].
    pub fn withdrawn(&mut self, result: Result<(), CallError>, now: Moment) {
        let batch = self.line.withdrawing.take().unwrap_or_default();
        match result {
            Ok(()) => {
                self.line.retry_withdraw.succeeded();
                for (_, id) in batch {
                    self.statistics.withdrawn += 1;
                    self.left(id, now);
                }
            }
            Err(error) => {
                self.failed(error);
                self.line.retry_withdraw.failed(now);
                self.leave_again(batch);
            }
        }
    }

    /// The host does not have it any more.
    fn left(&mut self, id: Id, now: Moment) {
        let Some(held) = self.held.get(&id) else {
            return;
        };
        let Stage::Leaving(after) = held.stage else {
            return;
        };
        if after != After::Forget
            && held.is_over.contains(&true)
            && let Some(held) = self.held.remove(&id)
        {
            let moved = held.moved[0].max(held.moved[1]);
            self.settle(id, &held, moved);
            self.held.insert(id, held);
        }
        self.finish(id, after, now);
    }

    fn leave_again(&mut self, batch: Vec<(Moment, Id)>) {
        for (at, id) in batch.into_iter().rev() {
            let stage = self.held.get(&id).map(|held| &held.stage);
            if matches!(stage, Some(Stage::Leaving(_))) {
                self.leaving.push_front((at, id));
            }
        }
    }

    fn act_to_reprove(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let line = &mut self.line;
        let is_free = line.reproving.is_none() && line.retry_reprove.at <= now;
        if !is_free || line.wants_epoch {
            return;
        }
        if let Some(since) = line.reprove_all.take() {
            if !self.held.values().any(|held| held.is_offered) {
                return;
            }
            self.statistics.reproved_all += 1;
            self.line.reproving = Some(Reproving { since, ids: None });
            actions.push(Action::Reprove(Reprove::All));
            return self.all_await_proof(now);
        }
        let staged = self.staged_meter.take(self.staged.len(), now);
        self.reprove_keys.extend(self.staged.drain(..staged));
        let mut keys = std::mem::take(&mut self.reprove_keys);
        if keys.len() > ENTRIES_MAX {
            self.reprove_keys = keys.split_off(ENTRIES_MAX);
        }
        keys.retain(|id| {
            let held = self.held.get_mut(id);
            held.is_some_and(|held| {
                let is_live = held.stage == Stage::Live;
                if !is_live {
                    // Being asked for again: its turn comes when that is answered.
                    held.is_reproving = false;
                    held.reprove = now;
                }
                is_live
            })
        });
        if keys.is_empty() {
            self.line.reprove_late = None;
            return;
        }
        self.statistics.reproved += keys.len() as u64;
        keys.iter().for_each(|id| self.await_proof(*id, now));
        let named = keys.iter().filter_map(|id| id.key()).collect();
        self.line.reproving = Some(Reproving {
            since: self.line.reprove_late.unwrap_or(now),
            ids: Some(keys),
        });
        actions.push(Action::Reprove(Reprove::Keys(named)));
    }

    fn all_await_proof(&mut self, now: Moment) {
        self.reprove_keys.clear();
        self.staged.clear();
        let live = |held: &super::Held| held.stage == Stage::Live;
        let ids: Vec<Id> = (self.held.iter())
            .filter(|(_, held)| live(held))
            .map(|(id, _)| *id)
            .collect();
        self.held
            .values_mut()
            .for_each(|held| held.is_reproving = false);
        ids.into_iter().for_each(|id| self.await_proof(id, now));
    }

    fn await_proof(&mut self, id: Id, now: Moment) {
        if let Some(held) = self.held.get_mut(&id) {
            held.is_reproving = false;
            held.await_proof(now);
            self.set_deadline(id, now + self.settings.proof_timeout);
        }
    }

    /// Takes the answer to [`Action::Reprove`]: the keys that the host does not have.
    pub fn reproved(&mut self, result: Result<Vec<SessionKey>, CallError>, now: Moment) {
        let Some(call) = self.line.reproving.take() else {
            return;
        };
        match result {
            Ok(absent) => {
                self.line.retry_reprove.succeeded();
                self.line.reprove_late = None;
                for id in absent.iter().filter_map(Id::from_key) {
                    let is_live = (self.held.get(&id)).is_some_and(|of| of.stage == Stage::Live);
                    // It ended, and that was not heard.
                    if is_live {
                        self.finish(id, After::Watch, now);
                    }
                }
            }
            Err(CallError::NotOffered) => self.leave_instead(call.ids, now),
            Err(error) => {
                self.failed(error);
                self.line.retry_reprove.failed(now);
                match call.ids {
                    None => {
                        let since = self
                            .line
                            .reprove_all
                            .map_or(call.since, |at| at.min(call.since));
                        self.line.reprove_all = Some(since);
                    }
                    Some(ids) => {
                        self.line.reprove_late.get_or_insert(call.since);
                        ids.into_iter().for_each(|id| self.reprove_one(id));
                    }
                }
            }
        }
    }

    /// The lane that adds is free.
    fn act_to_add(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let line = &mut self.line;
        let (call, action) = if line.wants_epoch {
            (Call::Epoch, Action::OpenEpoch)
        } else if line.wants_element {
            (Call::Element, Action::ReadElement)
        } else if line.wants_sync {
            self.sync()
        } else {
            match self.offer(now) {
                Some(offer) => offer,
                None => return,
            }
        };
        self.line.call = Some(call);
        actions.push(action);
    }

    /// Names all that the host is to have. What leaves is not named, and so is withdrawn.
    fn sync(&mut self) -> (Call, Action) {
        self.line.wants_sync = false;
        self.statistics.syncs += 1;
        let finishes: Vec<(Moment, Id)> = self.leaving.drain(..).collect();
        let wanted = |stage: &Stage| matches!(stage, Stage::Live | Stage::Ready);
        let ids: Vec<Id> = (self.held.iter())
            .filter(|(_, held)| held.is_offered && wanted(&held.stage))
            .map(|(id, _)| *id)
            .collect();
        let mut sessions = Vec::with_capacity(ids.len());
        for id in ids {
            // One that has no session any more is not named either, and asked for anew.
            let session = self.session_of(id);
            if let Some(held) = self.held.get_mut(&id) {
                held.stage = Stage::Asked;
                held.doom = session.is_err().then_some(After::Watch);
            }
            sessions.extend(session);
        }
        (Call::Sync { finishes }, Action::Sync(sessions))
    }

    /// The next connections that are ready, as many as may be asked for.
    fn offer(&mut self, now: Moment) -> Option<(Call, Action)> {
        if self.settings.mode != Mode::On {
            return None;
        }
        let mut room = self.ask.room(now).min(self.ready.len());
        if let Some(meter) = &mut self.ask_meter {
            room = meter.take(room, now);
        }
        let mut ids = Vec::new();
        let mut sessions = Vec::new();
        while sessions.len() < room {
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            let stage = self.held.get(&id).map(|held| &held.stage);
            if !matches!(stage, Some(Stage::Ready)) {
                continue;
            }
            match self.session_of(id) {
                Ok(session) => {
                    self.asked(id, now);
                    ids.push(id);
                    sessions.push(session);
                }
                Err(reason) => self.leave(id, After::PutOff(reason), now),
            }
        }
        self.statistics.asked += ids.len() as u64;
        (!ids.is_empty()).then_some((Call::Offload(ids), Action::Offload(sessions)))
    }

    fn asked(&mut self, id: Id, now: Moment) {
        if let Some(held) = self.held.get_mut(&id) {
            if !held.is_offered {
                held.settle_counts();
                held.await_proof(now);
            }
            held.is_offered = true;
            held.turn(Stage::Asked, now);
        }
    }

    fn session_of(&self, id: Id) -> Result<Session, Reason> {
        let held = self.held.get(&id).ok_or(Reason::Unrouted)?;
        let path = held.path.as_ref().ok_or(Reason::Unrouted)?;
        let hand_over = self.settings.hand_over;
        request::session(&held.connection, path, &self.ports, held.full, hand_over)
    }

    /// Takes the answer to [`Action::OpenEpoch`]: the lease, if the host says one.
    pub fn epoch_opened(&mut self, result: Result<Option<Duration>, CallError>, now: Moment) {
        self.line.call = None;
        match result {
            Ok(lease) => {
                self.line.retry.succeeded();
                self.statistics.epochs += 1;
                self.lease = lease.unwrap_or(super::LEASE_UNTOLD);
                self.line.has_epoch = true;
                self.line.wants_epoch = false;
                self.line.wants_sync = false;
                self.line.reprove_all = None;
                self.line.reprove_late = None;
                self.begin_anew(now);
            }
            Err(_) => self.line.retry.failed(now),
        }
    }

    /// The host has no session of this element: what is wanted is asked for, and what was to be
    /// taken back is gone.
    fn begin_anew(&mut self, now: Moment) {
        self.leaving.clear();
        let ids: Vec<Id> = self.held.keys().copied().collect();
        for id in ids {
            let Some(held) = self.held.get_mut(&id) else {
                continue;
            };
            held.is_offered = false;
            held.is_reproving = false;
            held.is_over = [false; 2];
            match held.stage {
                Stage::Leaving(after) => self.finish(id, after, now),
                Stage::Live | Stage::Asked => {
                    held.turn(Stage::Ready, now);
                    self.ready.push_back(id);
                }
                Stage::Searching(_) | Stage::Ready | Stage::Observed => {}
            }
        }
    }

    /// Takes the answer to [`Action::ReadElement`].
    pub fn element_read(&mut self, result: Result<Element, CallError>, now: Moment) {
        self.line.call = None;
        match result {
            Ok(element) => {
                self.line.retry.succeeded();
                self.line.wants_element = false;
                let rate = element.asks_per_second.filter(|rate| *rate > 0);
                self.ask_meter = rate.map(Meter::new);
                self.element = element;
                self.map_ports(now);
            }
            Err(error) => {
                self.failed(error);
                self.line.retry.failed(now);
            }
        }
    }

    /// Takes the answer to [`Action::Offload`].
    pub fn offloaded(&mut self, result: Result<Vec<Offered>, CallError>, now: Moment) {
        let Some(Call::Offload(ids)) = self.line.call.take() else {
            return;
        };
        match result {
            Ok(results) => {
                self.line.retry.succeeded();
                self.judge_answers(&results, now);
            }
            Err(error) => {
                self.failed(error);
                self.line.retry.failed(now);
            }
        }
        for id in ids {
            self.unanswered(id, now);
        }
    }

    /// Takes the answer to [`Action::Sync`].
    pub fn synced(&mut self, result: Result<Vec<Offered>, CallError>, now: Moment) {
        let Some(Call::Sync { finishes }) = self.line.call.take() else {
            return;
        };
        match result {
            Ok(results) => {
                self.line.retry.succeeded();
                self.judge_answers(&results, now);
                finishes.into_iter().for_each(|(_, id)| self.left(id, now));
            }
            Err(error) => {
                self.failed(error);
                self.line.wants_sync = true;
                self.line.retry.failed(now);
                self.leave_again(finishes);
            }
        }
        let asked: Vec<Id> = (self.held.iter())
            .filter(|(_, held)| held.stage == Stage::Asked)
            .map(|(id, _)| *id)
            .collect();
        for id in asked {
            self.unanswered(id, now);
        }
    }

    fn judge_answers(&mut self, results: &[Offered], now: Moment) {
        let (mut taken, mut refused, mut no_room) = (0, 0, 0);
        for Offered { key, outcome } in results {
            let Some(id) = Id::from_key(key) else {
                continue;
            };
            match outcome {
                Outcome::Taken => {
                    taken += 1;
                    self.taken(id, now);
                }
                Outcome::Unchanged => {
                    taken += 1;
                    self.live(id, now);
                }
                Outcome::NoRoom => {
                    no_room += 1;
                    self.refused(id, now);
                }
                Outcome::Refused => {
                    refused += 1;
                    self.refused(id, now);
                }
            }
        }
        self.statistics.taken += taken as u64;
        self.statistics.refused += refused as u64;
        self.statistics.no_room += no_room as u64;
        self.ask.answered(taken, refused, no_room, now);
    }

    fn taken(&mut self, id: Id, now: Moment) {
        if let Some(held) = self.held.get_mut(&id) {
            // One that was live before is another session now.
            if held.fast.iter().any(|of| of.packets > 0) {
                held.settle_counts();
                held.await_proof(now);
            }
        }
        self.live(id, now);
    }

    fn live(&mut self, id: Id, now: Moment) {
        let proof_timeout = self.settings.proof_timeout;
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        if held.stage != Stage::Asked {
            return;
        }
        held.turn(Stage::Live, now);
        held.is_reproving = false;
        let due = held.asked + proof_timeout;
        if let Some(after) = held.doom.take() {
            return self.leave(id, after, now);
        }
        self.set_deadline(id, due.max(now));
    }

    fn refused(&mut self, id: Id, now: Moment) {
        let Some(held) = self.held.get_mut(&id).filter(|of| of.stage == Stage::Asked) else {
            return;
        };
        let after = worse_than_refused(held.doom);
        self.finish(id, after, now);
    }

    /// No answer told what became of it: it may be there.
    fn unanswered(&mut self, id: Id, now: Moment) {
        let Some(held) = self.held.get_mut(&id).filter(|of| of.stage == Stage::Asked) else {
            return;
        };
        held.turn(Stage::Ready, now);
        match held.doom.take() {
            Some(after) => self.leave(id, after, now),
            None => self.ready.push_back(id),
        }
    }

    fn failed(&mut self, error: CallError) {
        match error {
            CallError::StaleEpoch => self.line.wants_epoch = true,
            CallError::Lost => self.line.wants_sync = true,
            CallError::Refused | CallError::NotOffered => {}
        }
    }

    /// The host cannot have sessions proved again: they are taken back, and asked for anew.
    fn leave_instead(&mut self, ids: Option<Vec<Id>>, now: Moment) {
        self.line.retry_reprove.succeeded();
        self.line.reprove_late = None;
        let ids = ids.unwrap_or_else(|| self.held.keys().copied().collect());
        for id in ids {
            let is_live = (self.held.get(&id)).is_some_and(|of| of.stage == Stage::Live);
            if is_live {
                self.leave(id, After::Watch, now);
            }
        }
    }
}

/// A refused connection that is gone meanwhile is not watched again.
const fn worse_than_refused(doom: Option<After>) -> After {
    match doom {
        Some(After::Forget) => After::Forget,
        _ => After::PutOff(Reason::Refused),
    }
}
