//! How sessions get into the table, change there and leave it.

use std::mem;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{ClosedSession, Entry, Outcome, Passage, SessionPhase, Sessions, Tally, Totals};
use crate::flow::request::SessionRequest;
use crate::flow::{CloseCode, FlowId, FlowSpec, FlowState, InsertError, Moment, SessionId};

/// How soon a grace period is looked at again.
const GRACE_POLL: Duration = Duration::from_millis(1);

/// What became of an attempt to put a session's flows into the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Settled {
    /// They are in.
    In,
    /// Others have to leave first.
    Waits,
    /// The table is full.
    Full,
    /// A newer request holds the place; the session has ended.
    Superseded,
}

impl Sessions {
    /// Does what is due at `now`: timers, grace periods, sessions that wait for a place.
    pub fn advance(&mut self, now: Moment) {
        let now = self.clock(now);
        while let Some(slot) = self.wheel.pop(now) {
            self.fire(slot);
        }
        self.settle_what_leaves();
        self.fold();
    }

    fn settle_what_leaves(&mut self) {
        self.writer.reclaim();
        loop {
            if self.in_grace.is_none() && !self.leaving.is_empty() {
                let grace = self.writer.grace();
                self.in_grace = Some((grace, mem::take(&mut self.leaving)));
            }
            match self.in_grace.take() {
                Some((grace, sessions)) if self.writer.has_passed(&grace) => {
                    self.after_grace(&sessions);
                    self.retry();
                }
                running => {
                    self.in_grace = running;
                    self.retry();
                    if self.in_grace.is_some() || self.leaving.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// When [`Sessions::advance`] is to be called next. May be early.
    pub fn next_deadline(&self) -> Option<Moment> {
        let timers = self.wheel.next_deadline();
        let busy = self.in_grace.is_some() || !self.leaving.is_empty() || !self.entering.is_empty();
        let soon = busy.then(|| self.now + GRACE_POLL);
        match (timers, soon) {
            (Some(timers), Some(soon)) => Some(timers.min(soon)),
            (timers, soon) => timers.or(soon),
        }
    }

    /// A new session, superseding `holder` of its client key and whoever is in its way.
    pub(super) fn enter(
        &mut self,
        request: SessionRequest,
        wanted: [Option<FlowSpec>; 2],
        holder: Option<u32>,
    ) -> Outcome {
        let in_the_way = self.in_the_way(&wanted, None);
        let supersedes = holder.is_some() || !in_the_way.is_empty();
        let promised = 2 * self.entering.len() + 2;
        let crowded =
            !self.entering.is_empty() && self.writer.len() + promised > self.writer.capacity();
        if self.book.is_full() || (crowded && !supersedes) {
            self.stats.table_full += 1;
            return Outcome::TableFull;
        }
        if let Some(holder) = holder {
            self.close(holder, CloseCode::Superseded);
        }
        let (slot, id) = self.allot(request, wanted);
        match self.settle(slot) {
            Settled::In => {}
            Settled::Full if !supersedes => {
                self.forget(slot);
                self.stats.table_full += 1;
                return Outcome::TableFull;
            }
            Settled::Waits | Settled::Full | Settled::Superseded => self.entering.push_back(id),
        }
        if supersedes {
            Outcome::Superseded(id)
        } else {
            Outcome::Offloaded(id)
        }
    }

    /// Changes a session in place.
    pub(super) fn replace(
        &mut self,
        slot: u32,
        request: SessionRequest,
        wanted: [Option<FlowSpec>; 2],
    ) -> Outcome {
        let asked = self.ask();
        let now = self.now;
        self.open(slot);
        let Some(entry) = self.book.opened_mut(slot) else {
            return Outcome::TableFull;
        };
        let id = entry.id;
        let old = mem::replace(&mut entry.request, request);
        entry.asked = asked;
        if !old.flows_same(&entry.request) {
            let (was, is) = (old.directions(), entry.request.directions());
            let all = old.mode != entry.request.mode || old.vouched != entry.request.vouched;
            entry.changed =
                [0, 1].map(|place| is[place].is_some() && (all || was[place] != is[place]));
            entry.wanted = wanted;
            entry.touched = now;
            let settled = self.changes_at_once(slot) && self.settle(slot) == Settled::In;
            if !settled {
                self.begin_replacing(slot);
            }
        }
        self.arm(slot);
        Outcome::Replaced(id)
    }

    /// Whether no worker can have parked frames of a flow that is to change.
    fn changes_at_once(&self, slot: u32) -> bool {
        let Some(entry) = self.entry(slot) else {
            return false;
        };
        let active = |place: usize| {
            let flow = entry.pair.and_then(|pair| self.writer.flow(pair[place]));
            flow.is_some_and(|flow| flow.state() == FlowState::Active)
        };
        entry.phase == SessionPhase::Live
            && (0..2).all(|place| !entry.changed[place] || active(place))
    }

    /// The flows punt until each worker has looked; then they are put in anew.
    fn begin_replacing(&mut self, slot: u32) {
        self.open(slot);
        let Some(entry) = self.book.opened_mut(slot) else {
            return;
        };
        if entry.phase != SessionPhase::Live {
            return;
        }
        entry.phase = SessionPhase::Replacing;
        let (id, pair) = (entry.id, entry.pair);
        let ended = count(mem::take(&mut entry.waiting));
        for flow in pair.into_iter().flatten() {
            if let Some(flow) = self.writer.flow(flow) {
                flow.close();
            }
        }
        self.signals.waiting.fetch_sub(ended, Ordering::Relaxed);
        self.look_again();
        self.leaving.push(id);
    }

    /// Ends a session; `false` if it is ending already.
    pub(super) fn close(&mut self, slot: u32, code: CloseCode) -> bool {
        self.open(slot);
        let Some(entry) = self.book.opened_mut(slot) else {
            return false;
        };
        if matches!(entry.phase, SessionPhase::Closing(_)) {
            return false;
        }
        entry.phase = SessionPhase::Closing(code);
        let ended = count(mem::take(&mut entry.waiting));
        let (id, pair, carried) = (entry.id, entry.pair, entry.carried);
        self.book.forget_key(slot);
        self.wheel.clear(slot);
        let Some(pair) = pair else {
            self.report(slot, code, carried);
            return true;
        };
        for flow in pair.into_iter().filter_map(|flow| self.writer.flow(flow)) {
            flow.close();
        }
        self.signals.waiting.fetch_sub(ended, Ordering::Relaxed);
        self.look_again();
        self.leaving.push(id);
        true
    }

    /// The sessions that have to leave before `wanted` can be in the table.
    fn in_the_way(&self, wanted: &[Option<FlowSpec>; 2], own: Option<u32>) -> Vec<u32> {
        let mut owners = Vec::new();
        for spec in wanted.iter().flatten() {
            let found = [
                self.writer.find(&spec.key),
                self.writer.find_egress(&spec.egress_key),
            ];
            for flow in found.into_iter().flatten() {
                if let Some((owner, _)) = self.owner(flow)
                    && Some(owner) != own
                    && !owners.contains(&owner)
                {
                    owners.push(owner);
                }
            }
        }
        owners
    }

    /// Puts what a session wants into the table, or asks others to leave for it.
    fn settle(&mut self, slot: u32) -> Settled {
        let Some(entry) = self.entry(slot) else {
            return Settled::Superseded;
        };
        let asked = entry.asked;
        let owners = self.in_the_way(&entry.wanted, Some(slot));
        for &owner in &owners {
            let newer = self.entry(owner).is_some_and(|owner| {
                owner.asked > asked && !matches!(owner.phase, SessionPhase::Closing(_))
            });
            if newer {
                self.close(slot, CloseCode::Superseded);
                return Settled::Superseded;
            }
        }
        if !owners.is_empty() {
            for owner in owners {
                self.close(owner, CloseCode::Superseded);
            }
            return Settled::Waits;
        }
        match self.entry(slot).and_then(|entry| entry.pair) {
            Some(pair) => self.put_in_place(slot, pair),
            None => self.put_in(slot),
        }
    }

    /// Both flows of a session that is not in the table.
    fn put_in(&mut self, slot: u32) -> Settled {
        self.open(slot);
        let Some(entry) = self.book.opened_mut(slot) else {
            return Settled::Superseded;
        };
        let presence = [entry.wanted[0].is_some(), entry.wanted[1].is_some()];
        let Some((original, reply)) = both(entry.wanted.clone()) else {
            return Settled::Full;
        };
        let state = first_state(entry.request.vouched);
        let waiting = presence.map(|present| present && state == FlowState::Pending);
        // Before the flows can be seen: a worker that looks too early looks in vain.
        let waits = count(waiting);
        self.signals.waiting.fetch_add(waits, Ordering::Relaxed);
        match self.writer.insert_pair(original, reply, presence, state) {
            Ok((original, reply)) => {
                entry.pair = Some([original, reply]);
                entry.wanted = [None, None];
                entry.changed = [false; 2];
                entry.waiting = waiting;
                entry.phase = SessionPhase::Live;
                entry.touched = self.now;
                if mem::take(&mut entry.again) && state == FlowState::Pending {
                    // Whoever proved them just now had not got a packet since.
                    let flows = [original, reply].map(|flow| self.writer.flow(flow));
                    for flow in flows.into_iter().flatten() {
                        flow.reprove();
                    }
                }
                self.arm(slot);
                if state == FlowState::Active {
                    for place in (0..2).filter(|place| presence[*place]) {
                        self.tell_handed_over(slot, place, Passage::default());
                    }
                }
                Settled::In
            }
            Err(error) => {
                self.signals.waiting.fetch_sub(waits, Ordering::Relaxed);
                match error {
                    InsertError::Reclaiming => Settled::Waits,
                    _ => Settled::Full,
                }
            }
        }
    }

    /// The changed flows of a session whose changed flows are active.
    fn put_in_place(&mut self, slot: u32, mut pair: [FlowId; 2]) -> Settled {
        self.open(slot);
        let Some(entry) = self.book.opened_mut(slot) else {
            return Settled::Superseded;
        };
        let proof = !entry.request.vouched;
        for (place, flow) in pair.iter_mut().enumerate() {
            let changed = mem::take(&mut entry.changed[place]);
            let Some(spec) = entry.wanted[place].clone().filter(|_| changed) else {
                continue;
            };
            if proof && !entry.waiting[place] {
                entry.waiting[place] = true;
                self.signals.waiting.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing of the new flow may be forwarded unproved.
            let replaced = if proof {
                self.writer.replace_unproved(*flow, spec)
            } else {
                self.writer.replace(*flow, spec)
            };
            let Ok(fresh) = replaced else {
                return Settled::Waits;
            };
            *flow = fresh;
            if let Some(known) = &mut entry.pair {
                known[place] = fresh;
            }
        }
        entry.wanted = [None, None];
        entry.touched = self.now;
        if proof {
            // A worker that saw the old flow pending for a moment may have parked its frames,
            // which nothing else would give back before their time is up.
            self.look_again();
        }
        Settled::In
    }

    /// Every worker has looked at these sessions since their flows were set to closing.
    fn after_grace(&mut self, sessions: &[SessionId]) {
        // What replaced flows counted last is with their heirs now.
        self.writer.reclaim();
        for id in sessions {
            let Some(slot) = self.book.slot_of(*id, &self.writer) else {
                continue;
            };
            match self.entry(slot).map(|entry| entry.phase) {
                Some(SessionPhase::Closing(code)) => {
                    self.take_out(slot);
                    let totals = self.entry(slot).map(|entry| entry.carried);
                    self.report(slot, code, totals.unwrap_or_default());
                }
                Some(SessionPhase::Replacing) => {
                    self.take_out(slot);
                    self.entering.push_back(*id);
                }
                _ => {}
            }
        }
    }

    /// Tries again to put in what waits for a place.
    fn retry(&mut self) {
        for _ in 0..self.entering.len() {
            let Some(id) = self.entering.pop_front() else {
                return;
            };
            let Some(slot) = self.book.slot_of(id, &self.writer) else {
                continue;
            };
            let waits = self.entry(slot).is_some_and(|entry| {
                matches!(
                    entry.phase,
                    SessionPhase::Entering | SessionPhase::Replacing
                )
            });
            if waits && matches!(self.settle(slot), Settled::Waits | Settled::Full) {
                self.entering.push_back(id);
            }
        }
    }

    /// Takes a session's flows out of the table and keeps what they counted.
    fn take_out(&mut self, slot: u32) {
        self.open(slot);
        let Some(entry) = self.book.opened_mut(slot) else {
            return;
        };
        let Some([original, reply]) = entry.pair.take() else {
            return;
        };
        for (total, flow) in entry.carried.iter_mut().zip([original, reply]) {
            if let Some(counters) = self.writer.counters(flow) {
                total.add(&counters);
            }
        }
        self.writer.remove_pair(original, reply);
    }

    /// Takes the entry out of the book and queues what is to be told of it.
    fn report(&mut self, slot: u32, code: CloseCode, totals: [Totals; 2]) {
        let Some(entry) = self.forget(slot) else {
            return;
        };
        self.stats.closed[code.index()] += 1;
        if self.closed.len() >= self.limits.closed {
            self.closed.pop_front();
            self.stats.closed_lost += 1;
        }
        self.closed.push_back(ClosedSession {
            session: entry.id,
            code,
            request: entry.request,
            totals,
            age: self.now.since(entry.born),
        });
    }

    /// A timer fired: ends the session, or waits for what is left of its time.
    fn fire(&mut self, slot: u32) {
        if let Some(deadline) = self.still_moves(slot) {
            self.wheel.set(slot, deadline);
            return;
        }
        let Some(entry) = self.entry(slot) else {
            return;
        };
        // An event of a worker that got lost is made good here.
        let states = entry
            .pair
            .map(|pair| pair.map(|flow| self.writer.flow(flow).map(|flow| flow.state())));
        let hard = entry.request.hard_timeout;
        let too_old = hard.is_some_and(|hard| self.now >= entry.born + hard);
        let idle = self.idle(&entry) >= entry.request.idle_timeout;
        for (place, state) in states.into_iter().flatten().enumerate() {
            if state == Some(FlowState::Active) {
                self.activated(slot, place, None);
            }
        }
        if too_old {
            self.close(slot, CloseCode::HardTimeout);
        } else if idle {
            self.close(slot, CloseCode::IdleTimeout);
        } else {
            self.arm(slot);
        }
    }

    /// When a folded session that is in order may be due next; `None` if it is not in order, or due.
    fn still_moves(&self, slot: u32) -> Option<Moment> {
        let terms = self.book.terms(slot)?;
        let original = self.writer.in_slot(self.book.flow(slot)?)?;
        let ages = [original, original.partner()?].map(|flow| self.age(flow));
        let left = terms.idle.checked_sub(ages[0].min(ages[1]))?;
        let idle_at = self.now + left;
        let deadline = terms.hard.map_or(idle_at, |hard| hard.min(idle_at));
        (!terms.waiting && !left.is_zero() && deadline > self.now).then_some(deadline)
    }

    /// Sets the timer to when the session may be due.
    fn arm(&mut self, slot: u32) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        if !matches!(entry.phase, SessionPhase::Live | SessionPhase::Replacing) {
            return;
        }
        let left = entry.request.idle_timeout.saturating_sub(self.idle(&entry));
        let mut deadline = self.now + left;
        if let Some(hard) = entry.request.hard_timeout {
            deadline = deadline.min(entry.born + hard);
        }
        self.wheel.set(slot, deadline);
    }

    fn allot(
        &mut self,
        request: SessionRequest,
        wanted: [Option<FlowSpec>; 2],
    ) -> (u32, SessionId) {
        let asked = self.ask();
        let id = self.book.next_id(asked);
        let mut wanted = wanted;
        for spec in wanted.iter_mut().flatten() {
            // A place may have become free since the request was checked.
            spec.session = id;
        }
        let slot = self.book.add(Box::new(Entry {
            id,
            request,
            phase: SessionPhase::Entering,
            asked,
            pair: None,
            wanted,
            changed: [false; 2],
            waiting: [false; 2],
            carried: [Totals::default(); 2],
            born: self.now,
            touched: self.now,
            transit: None,
            drain_bounds: 0,
            tally: Tally::default(),
            again: false,
        }));
        self.opened.push(slot);
        self.tell_sessions();
        (slot, id)
    }

    fn forget(&mut self, slot: u32) -> Option<Box<Entry>> {
        self.wheel.clear(slot);
        let entry = self.book.take(slot)?;
        self.tell_sessions();
        Some(entry)
    }

    fn tell_sessions(&self) {
        let sessions = self.book.len() as u32;
        self.signals.sessions.store(sessions, Ordering::Relaxed);
    }

    fn ask(&mut self) -> u64 {
        self.next_asked += 1;
        self.next_asked
    }

    /// Release: whoever sees the new number sees the closed flows.
    pub(super) fn look_again(&self) {
        self.signals.revisit.fetch_add(1, Ordering::Release);
    }
}

fn count(waiting: [bool; 2]) -> u32 {
    waiting.into_iter().map(u32::from).sum()
}

fn first_state(vouched: bool) -> FlowState {
    if vouched {
        FlowState::Active
    } else {
        FlowState::Pending
    }
}

/// An absent direction takes its place with the other's data; it is in no index.
fn both(flows: [Option<FlowSpec>; 2]) -> Option<(FlowSpec, FlowSpec)> {
    match flows {
        [Some(original), Some(reply)] => Some((original, reply)),
        [Some(only), None] | [None, Some(only)] => Some((only.clone(), only)),
        [None, None] => None,
    }
}
