//! One element's sessions: the writer's side of its flow table.
//!
//! *Promises*: offering the same request again changes nothing; a request that changes
//! only what becomes of the packets replaces the flows in place; any other request with
//! the same key, the same match or the same egress key supersedes the session in its way.
//! Ending has two steps, so that a worker hands the guest what it parked before it sees
//! later packets miss: the flows are set to closing and workers are told to look
//! ([`ElementSignals::revisit`]), and only when each of them has looked are the flows
//! removed. A session whose place is still held so is *entering*. `waiting` is exact
//! as far as the workers' events have come in. A clock that goes backwards stands still.
//! Timers cost the sessions that are due, never the table's size.
//!
//! *Refuses*: requests that contradict themselves ([`Outcome::Invalid`]) and those beyond
//! the table's quota ([`Outcome::TableFull`]); nothing is evicted. A queue of ended
//! sessions that nobody takes loses its oldest, counted.
//!
//! *Caller's duty*: [`Sessions::advance`] by [`Sessions::next_deadline`], every event of
//! the workers to [`Sessions::event`], and a pin of each worker that ends now and then.
//!
//! *Standard*: RFC 9293 and RFC 9260 name what ends a session; DESIGN section 6 the rules
//! for offering again.
//!
//! A replaced flow starts pending again unless the request is vouched: the proof was of
//! the old rewrite, and the guest must have sent exactly the new one. Directions that do
//! not change stay active, unless another one still waits: then workers may have parked
//! frames, and both are taken out and put in anew once every worker has looked.

mod activity;
mod book;
mod reprove;
mod settle;
mod sync;
mod view;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use self::activity::{HandedOver, Moved};
use self::book::Book;
pub use self::reprove::Reproof;
pub use self::sync::Swept;
use self::sync::Syncing;
pub use self::view::{DirectionView, SessionView};
use super::claim::Standing;
use super::request::{ElementShape, RequestError, SessionRequest, VnicShape};
use super::table::{Grace, TableWriter};
use super::wheel::Wheel;
use super::{
    CloseCode, Direction, FlowEvent, FlowId, FlowRef, FlowSpec, FlowState, Moment, SessionId, Toll,
};
use crate::packet::VnicId;

/// What an element's workers read without asking.
#[derive(Debug, Default)]
pub struct ElementSignals {
    /// Flows that wait for proof or drain. While it is 0, frames of the guest are looked
    /// up for SYNs only.
    pub waiting: AtomicU32,
    /// Changes when workers are to look again at the flows they have parked frames of.
    pub revisit: AtomicU32,
    /// Sessions in the book. While it is 0, frames of the guest are not looked at at all.
    pub sessions: AtomicU32,
}

/// What a book of sessions may keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionsLimits {
    /// Ended sessions that wait to be taken, and hand-overs.
    pub closed: usize,
}

impl Default for SessionsLimits {
    fn default() -> Self {
        Self { closed: 16_384 }
    }
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is a new session.
    Offloaded(SessionId),
    /// It is there already.
    Unchanged(SessionId),
    /// The session's flows or timeouts are changed in place.
    Replaced(SessionId),
    /// It is a new session, and others ended for it.
    Superseded(SessionId),
    /// The element's quota is used up.
    TableFull,
    /// It cannot be done.
    Invalid(RequestError),
}

/// Where a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionPhase {
    /// Accepted; its place in the table is not free yet.
    Entering,
    /// In the table.
    Live,
    /// Its flows punt until they are replaced.
    Replacing,
    /// In the table until every worker has looked.
    Closing(CloseCode),
}

/// Packets and bytes of one direction, and where TCP stood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Wire packets forwarded.
    pub packets: u64,
    /// Their L3 bytes.
    pub bytes: u64,
    /// TCP sequence number, acknowledgement number and window seen last.
    pub tcp: Option<(u32, u32, u16)>,
}

/// A session that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosedSession {
    /// Which.
    pub session: SessionId,
    /// Why.
    pub code: CloseCode,
    /// What was asked for; its client key is in there.
    pub request: SessionRequest,
    /// Original and reply.
    pub totals: [Totals; 2],
    /// From the request to the end.
    pub age: Duration,
}

/// Counters of one element's book.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SessionsStats {
    /// Sessions that ended, by [`CloseCode::index`].
    pub closed: [u64; CloseCode::COUNT],
    /// Ended sessions whose report was lost because nobody took it.
    pub closed_lost: u64,
    /// Hand-overs whose report was lost for the same reason.
    pub handed_over_lost: u64,
    /// Flows that moved to the fast path.
    pub hand_overs: u64,
    /// Of these, at a bound.
    pub forced: u64,
    /// Drains that met a bound.
    pub drain_bounds: u64,
    /// Requests refused for want of room.
    pub table_full: u64,
}

/// What a session's hand-overs came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// How often a direction was handed over.
    pub hand_overs: u32,
    /// Of these, at a bound.
    pub forced: u32,
    /// What they, and failed attempts, did to packets.
    pub toll: Toll,
}

/// A direction's way to the fast path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Passage {
    transit: Option<Duration>,
    forced: bool,
    toll: Toll,
}

#[derive(Clone, Debug)]
struct Entry {
    id: SessionId,
    request: SessionRequest,
    phase: SessionPhase,
    /// When it was asked for last, as a number that grows; the newer request wins.
    asked: u64,
    /// Both flows once it is in the table; of an absent direction only a place.
    pair: Option<[FlowId; 2]>,
    /// What is to be put into the table, while it is not there yet.
    wanted: [Option<FlowSpec>; 2],
    /// Which directions of a session in the table `wanted` changes.
    changed: [bool; 2],
    /// Which flows the book counts as waiting.
    waiting: [bool; 2],
    /// What flows have counted that were taken out for others of this session.
    carried: [Totals; 2],
    born: Moment,
    /// It counts as not idle at this time, whatever the flows say.
    touched: Moment,
    transit: Option<Duration>,
    drain_bounds: u32,
    tally: Tally,
    /// It was to be proved again while it was not in the table.
    again: bool,
}

/// The sessions of one element.
pub struct Sessions {
    shape: ElementShape,
    limits: SessionsLimits,
    writer: TableWriter,
    signals: Arc<ElementSignals>,
    book: Book,
    /// Places of sessions that were opened since the last folding.
    opened: Vec<u32>,
    wheel: Wheel,
    /// Closed or to be replaced, since the last grace period began.
    leaving: Vec<SessionId>,
    /// Those that the running grace period is for.
    in_grace: Option<(Grace, Vec<SessionId>)>,
    /// Sessions that wait for a place, oldest request first.
    entering: VecDeque<SessionId>,
    closed: VecDeque<ClosedSession>,
    handed_over: VecDeque<HandedOver>,
    /// Whether hand-overs are told.
    is_listened: bool,
    standing: Standing,
    sync: Option<Syncing>,
    /// Number of the last sync.
    last_sync: u64,
    stats: SessionsStats,
    next_asked: u64,
    now: Moment,
}

impl Sessions {
    /// An empty book over an empty table. Half the table's flows is the quota of sessions.
    pub fn new(shape: ElementShape, writer: TableWriter, limits: SessionsLimits) -> Self {
        let sessions_max = sessions_max(&writer);
        Self {
            shape,
            limits,
            writer,
            signals: Arc::default(),
            book: Book::new(sessions_max),
            opened: Vec::new(),
            wheel: Wheel::new(book::entries_max(sessions_max), Moment(0)),
            leaving: Vec::new(),
            in_grace: None,
            entering: VecDeque::new(),
            closed: VecDeque::new(),
            handed_over: VecDeque::new(),
            is_listened: false,
            standing: Standing::default(),
            sync: None,
            last_sync: 0,
            stats: SessionsStats::default(),
            next_asked: 1,
            now: Moment(0),
        }
    }

    /// What the element's workers share with this book.
    pub fn signals(&self) -> Arc<ElementSignals> {
        Arc::clone(&self.signals)
    }

    /// Takes a request.
    pub fn offload(&mut self, request: SessionRequest, now: Moment) -> Outcome {
        self.clock(now);
        let outcome = self.take_request(request);
        self.mark(&outcome);
        self.fold();
        outcome
    }

    fn take_request(&mut self, request: SessionRequest) -> Outcome {
        let holder = self.book.by_key(&request.key);
        if let Some(entry) = holder.and_then(|slot| self.entry(slot))
            && entry.request == request
        {
            return Outcome::Unchanged(entry.id);
        }
        let replaces = holder.filter(|&slot| {
            self.entry(slot).is_some_and(|entry| {
                entry.phase != SessionPhase::Entering && entry.request.matches_same(&request)
            })
        });
        let id = match replaces.and_then(|slot| self.entry(slot)) {
            Some(entry) => entry.id,
            None => self.book.next_id(self.next_asked + 1),
        };
        let flows = match request.check(&self.shape, id) {
            Ok(checked) => checked.flows,
            Err(error) => return Outcome::Invalid(error),
        };
        match replaces {
            Some(slot) => self.replace(slot, request, flows),
            None => self.enter(request, flows, holder),
        }
    }

    /// Ends the session of that client key. `false` if there is none.
    pub fn withdraw(&mut self, key: &str, now: Moment) -> bool {
        self.clock(now);
        let slot = self.book.by_key(key);
        slot.is_some_and(|slot| self.close(slot, CloseCode::Withdrawn))
    }

    /// Ends every session.
    pub fn close_all(&mut self, code: CloseCode, now: Moment) {
        self.close_where(code, now, |_| true);
    }

    /// Lets requests refer to a vNIC of that number from now on.
    pub fn plug(&mut self, vnic: VnicId, shape: VnicShape) {
        self.shape.set(vnic, Some(shape));
    }

    /// Ends the sessions that come in or leave by a vNIC, and lets no request refer to it.
    pub fn unplug(&mut self, vnic: VnicId, now: Moment) {
        self.shape.set(vnic, None);
        self.close_where(CloseCode::EgressLost, now, |request| request.uses(vnic));
    }

    /// Whether sessions come in or leave by a vNIC, closing ones included. It looks at all.
    pub fn uses(&self, vnic: VnicId) -> bool {
        self.iter().any(|session| session.request.uses(vnic))
    }

    /// Ends the sessions whose request `matches`. It looks at all of them.
    pub fn close_where(
        &mut self,
        code: CloseCode,
        now: Moment,
        matches: impl Fn(&SessionRequest) -> bool,
    ) {
        self.clock(now);
        for slot in 0..self.book.end() {
            if self
                .entry(slot)
                .is_some_and(|entry| matches(&entry.request))
            {
                self.close(slot, code);
            }
        }
        self.fold();
    }

    /// Takes what a worker reports. Reports of flows that are gone are ignored.
    pub fn event(&mut self, event: FlowEvent, now: Moment) {
        self.clock(now);
        let owner = match event {
            FlowEvent::Activated { flow, .. } | FlowEvent::DrainBound { flow, .. } => {
                self.owner(flow)
            }
            FlowEvent::Closed { session, .. } => self
                .book
                .slot_of(session, &self.writer)
                .map(|slot| (slot, 0)),
        };
        let Some((slot, direction)) = owner else {
            return;
        };
        match event {
            FlowEvent::Activated {
                flow,
                transit,
                forced,
                toll,
            } => {
                if let Some(entry) = self.entry_mut(slot) {
                    entry.transit = transit.or(entry.transit);
                    let forced = u32::from(forced);
                    entry.tally.forced = entry.tally.forced.saturating_add(forced);
                    entry.tally.toll = entry.tally.toll.and(toll);
                }
                // It may have been sent back to be proved again since.
                let state = self.writer.flow(flow).map(FlowRef::state);
                if !matches!(state, Some(FlowState::Pending | FlowState::Draining)) {
                    let passage = Passage {
                        transit,
                        forced,
                        toll,
                    };
                    self.activated(slot, direction, Some(passage));
                }
                self.stats.forced += u64::from(forced);
                self.stats.drain_bounds += u64::from(forced);
            }
            FlowEvent::DrainBound { toll, .. } => {
                self.stats.drain_bounds += 1;
                if let Some(entry) = self.entry_mut(slot) {
                    entry.drain_bounds = entry.drain_bounds.saturating_add(1);
                    entry.tally.toll = entry.tally.toll.and(toll);
                }
            }
            FlowEvent::Closed { code, .. } => {
                self.close(slot, code);
            }
        }
        self.fold();
    }

    /// Reads all flows again, after a worker's reports were lost: what is active counts as
    /// active, and a session whose flow is closing ends (as `fin`: the report had the code).
    pub fn reconcile(&mut self, now: Moment) {
        self.clock(now);
        for slot in 0..self.book.end() {
            let live = self
                .entry(slot)
                .filter(|entry| entry.phase == SessionPhase::Live);
            let Some(pair) = live.and_then(|entry| entry.pair) else {
                continue;
            };
            for (direction, id) in pair.into_iter().enumerate() {
                match self.writer.flow(id).map(|flow| flow.state()) {
                    Some(FlowState::Active) => self.activated(slot, direction, None),
                    Some(FlowState::Closing) => {
                        self.close(slot, CloseCode::Fin);
                    }
                    Some(FlowState::Pending | FlowState::Draining) | None => {}
                }
            }
        }
        self.fold();
    }

    /// The next ended session that nobody has taken yet.
    pub fn take_closed(&mut self) -> Option<ClosedSession> {
        self.closed.pop_front()
    }

    /// Counters since the start.
    pub fn stats(&self) -> &SessionsStats {
        &self.stats
    }

    /// How many sessions there are, entering and closing ones included.
    pub fn len(&self) -> usize {
        self.book.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.book.len() == 0
    }

    /// Most sessions there may be at a time.
    pub fn capacity(&self) -> usize {
        sessions_max(&self.writer) as usize
    }

    fn clock(&mut self, now: Moment) -> Moment {
        self.now = self.now.max(now);
        self.now
    }

    /// The session at `slot`, open or as it would be.
    fn entry(&self, slot: u32) -> Option<Cow<'_, Entry>> {
        match self.book.opened(slot) {
            Some(entry) => Some(Cow::Borrowed(entry)),
            None => self.book.unfolded(slot, &self.writer).map(Cow::Owned),
        }
    }

    /// Opens the session at `slot`, if it is not open.
    fn open(&mut self, slot: u32) {
        self.book.unfold(slot, &self.writer);
        if self.opened.last() != Some(&slot) {
            self.opened.push(slot);
        }
    }

    fn entry_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.open(slot);
        self.book.opened_mut(slot)
    }

    /// Folds what was opened and is plain again.
    fn fold(&mut self) {
        let older = self.entering.is_empty() && self.leaving.is_empty() && self.in_grace.is_none();
        while let Some(slot) = self.opened.pop() {
            self.book.fold(slot, &self.writer, older);
        }
    }

    /// Whose flow that is.
    fn owner(&self, flow: FlowId) -> Option<(u32, usize)> {
        let flow = self.writer.flow(flow)?;
        let slot = self.book.slot_of(flow.session(), &self.writer)?;
        let direction = match flow.direction() {
            Direction::Original => 0,
            Direction::Reply => 1,
        };
        Some((slot, direction))
    }

    /// The book learns that a flow is active; how it came to that, if that is known.
    fn activated(&mut self, slot: u32, direction: usize, passage: Option<Passage>) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        if std::mem::take(&mut entry.waiting[direction]) {
            entry.tally.hand_overs = entry.tally.hand_overs.saturating_add(1);
            self.signals.waiting.fetch_sub(1, Ordering::Relaxed);
            self.stats.hand_overs += 1;
            self.tell_handed_over(slot, direction, passage.unwrap_or_default());
        }
    }
}

fn sessions_max(writer: &TableWriter) -> u32 {
    u32::try_from(writer.capacity() / 2).unwrap_or(u32::MAX)
}

/// Bytes that the sessions of a full table take besides the table.
pub fn book_memory_bytes(sessions_max: u32) -> u64 {
    let timers = Wheel::memory_bytes(book::entries_max(sessions_max));
    Book::memory_bytes(sessions_max) + timers
}

#[cfg(test)]
mod tests;
