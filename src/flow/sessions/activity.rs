//! What is told of sessions that go on: hand-overs, and that they move.
//!
//! *Promises*: a direction's move to the fast path is told once, while somebody listens; a
//! session that forwarded packets since a moment is found, and costs only the reading of its
//! time stamps and counters.
//! *Refuses*: a queue of hand-overs that nobody takes loses its oldest, counted.
//! *Caller's duty*: looks at a few places at a time.
//! *Standard*: none.

use std::ops::Range;
use std::time::Duration;

use super::{Passage, Sessions, Totals};
use crate::flow::{Direction, FlowRef, Moment, SessionId, Toll};

/// How far a time stamp may be behind the moment at which it is stored.
const BEHIND: Duration = Duration::from_millis(100);

/// A direction of a session that moved to the fast path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandedOver {
    /// Which session.
    pub session: SessionId,
    /// Its client key.
    pub key: String,
    /// Which direction.
    pub direction: Direction,
    /// The guest's transit time, if it was measured.
    pub transit: Option<Duration>,
    /// At a bound.
    pub forced: bool,
    /// What it did to packets.
    pub toll: Toll,
}

/// A session that forwarded packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Which.
    pub session: SessionId,
    /// Its client key.
    pub key: String,
    /// Since it moved last.
    pub idle: Duration,
    /// Totals of original and reply, if they are in the table.
    pub totals: [Option<Totals>; 2],
}

impl Sessions {
    /// Whether hand-overs are told.
    pub fn listen(&mut self, is_listened: bool) {
        self.is_listened = is_listened;
        if !is_listened {
            self.handed_over.clear();
        }
    }

    /// The next direction that moved to the fast path and that nobody has taken yet.
    pub fn take_handed_over(&mut self) -> Option<HandedOver> {
        self.handed_over.pop_front()
    }

    /// Tells that a direction of the session at `slot` moved.
    pub(super) fn tell_handed_over(&mut self, slot: u32, direction: usize, passage: Passage) {
        if !self.is_listened {
            return;
        }
        let Some(entry) = self.entry(slot) else {
            return;
        };
        let told = HandedOver {
            session: entry.id,
            key: entry.request.key.clone(),
            direction: [Direction::Original, Direction::Reply][direction.min(1)],
            transit: passage.transit,
            forced: passage.forced,
            toll: passage.toll,
        };
        if self.handed_over.len() >= self.limits.closed {
            self.handed_over.pop_front();
            self.stats.handed_over_lost += 1;
        }
        self.handed_over.push_back(told);
    }

    /// Sessions have places below this.
    pub fn places(&self) -> u32 {
        self.book.end()
    }

    /// The sessions at these places that forwarded packets since a moment.
    pub fn moved(
        &mut self,
        places: Range<u32>,
        since: Moment,
        now: Moment,
    ) -> impl Iterator<Item = Moved> {
        let span = self.clock(now).since(since) + BEHIND;
        let book = &*self;
        places.filter_map(move |place| {
            let flows = book.flows(place)?;
            let is_moved =
                |flow: FlowRef<'_>| book.age(flow) <= span && flow.counters().packets > 0;
            if !flows.into_iter().any(is_moved) {
                return None;
            }
            let view = book.at(place)?;
            Some(Moved {
                session: view.session,
                key: view.request.key,
                idle: view.idle,
                totals: view.directions.map(|one| one.map(|one| one.totals)),
            })
        })
    }

    /// Both flows of the session at a place, if they are in the table.
    pub(super) fn flows(&self, place: u32) -> Option<[FlowRef<'_>; 2]> {
        if let Some(slot) = self.book.flow(place) {
            let original = self.writer.in_slot(slot)?;
            return Some([original, original.partner()?]);
        }
        let [original, reply] = self.book.opened(place)?.pair?;
        Some([self.writer.flow(original)?, self.writer.flow(reply)?])
    }
}
