//! Making a book what its client wants: epochs, and mark and sweep.
//!
//! *Promises*: at the end of a sync the sessions are those that were marked (named, or asked
//! for, since it began) and have not ended; nothing is withdrawn before. A sync that was begun
//! later, or an epoch, ends it without a sweep.
//! *Refuses*: pages and ends of a sync that has ended.
//! *Caller's duty*: [`Sessions::judge`] each call before it is carried out.
//! *Standard*: DESIGN section 6.
//!
//! Marks go by place: a session keeps its place as long as it lives, and whoever takes a place
//! while a sync runs was asked for meanwhile, which marks it anyway.

use super::{Outcome, Sessions};
use crate::flow::claim::{Claim, Late};
use crate::flow::{CloseCode, Moment, SessionId};

/// A sync that runs.
#[derive(Debug)]
pub(super) struct Syncing {
    number: u64,
    /// A bit for each place.
    marks: Vec<u64>,
}

impl Syncing {
    fn mark(&mut self, place: u32) {
        if let Some(word) = self.marks.get_mut(place as usize / 64) {
            *word |= 1 << (place % 64);
        }
    }

    fn is_marked(&self, place: u32) -> bool {
        let word = self.marks.get(place as usize / 64);
        word.is_some_and(|word| word & 1 << (place % 64) != 0)
    }
}

/// What the end of a sync came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Swept {
    /// Sessions that were withdrawn.
    pub withdrawn: u64,
    /// Sessions that there are.
    pub left: u32,
}

impl Sessions {
    /// Whether a call is in time.
    ///
    /// # Errors
    /// It is not; nothing of it may be done.
    pub fn judge(&mut self, claim: Claim) -> Result<(), Late> {
        self.standing.judge(claim)
    }

    /// The element has a connection of that number: older ones' calls come too late from now on.
    pub fn see_fence(&mut self, fence: u64) {
        self.standing.see(fence);
    }

    /// Ends every session with `code`, and begins an epoch; gives its number.
    pub fn open_epoch(&mut self, code: CloseCode, clock: u64, now: Moment) -> u64 {
        self.close_all(code, now);
        self.sync = None;
        self.standing.begin(clock)
    }

    /// Begins a sync; gives its number, which rises as epochs do.
    pub fn begin_sync(&mut self, clock: u64) -> u64 {
        self.last_sync = clock.max(self.last_sync.saturating_add(1));
        let places = super::book::entries_max(super::sessions_max(&self.writer));
        self.sync = Some(Syncing {
            number: self.last_sync,
            marks: vec![0; (places as usize).div_ceil(64)],
        });
        self.last_sync
    }

    /// Whether the sync of that number runs.
    pub fn is_syncing(&self, number: u64) -> bool {
        let runs = self.sync.as_ref();
        runs.is_some_and(|sync| sync.number == number)
    }

    /// The session of that client key, if there is one, is wanted: marks it.
    pub fn keep(&mut self, key: &str) -> bool {
        let place = self.book.by_key(key);
        if let (Some(place), Some(sync)) = (place, &mut self.sync) {
            sync.mark(place);
        }
        place.is_some()
    }

    /// What was asked for is wanted.
    pub(super) fn mark(&mut self, outcome: &Outcome) {
        let Some(sync) = &mut self.sync else {
            return;
        };
        if let Some(place) = outcome
            .session()
            .and_then(|id| self.book.slot_of(id, &self.writer))
        {
            sync.mark(place);
        }
    }

    /// Ends the sync of that number: withdraws what is not marked. `None` if it does not run.
    pub fn end_sync(&mut self, number: u64, now: Moment) -> Option<Swept> {
        let sync = self.sync.take_if(|sync| sync.number == number)?;
        self.clock(now);
        let mut swept = Swept {
            withdrawn: 0,
            left: 0,
        };
        for place in 0..self.book.end() {
            if !self.book.is_wanted(place) {
                continue;
            }
            if sync.is_marked(place) {
                swept.left += 1;
            } else {
                swept.withdrawn += u64::from(self.close(place, CloseCode::Withdrawn));
            }
        }
        self.fold();
        Some(swept)
    }
}

impl Outcome {
    /// The session that there is now.
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Self::Offloaded(id)
            | Self::Unchanged(id)
            | Self::Replaced(id)
            | Self::Superseded(id) => Some(*id),
            Self::TableFull | Self::Invalid(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
