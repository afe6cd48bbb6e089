//! Who of a worker's elements is served next, and for how long: deficit round robin, paid in
//! time.
//!
//! *Promises*: while several elements have work, each gets the same share of the worker's
//! time, whatever its packets cost and over however many queues they come; one that used more
//! than its turn pays it back in the next. While an element's offloaded traffic is kept
//! waiting, all punts of the others together take at most one part in [`PUNTS_PART`] of the
//! worker's time. Nobody waits for an element that has no work.
//! *Refuses*: nothing. *Caller's duty*: [`Account::begin`], charges, [`Account::end`], every
//! turn. *Standard*: Shreedhar and Varghese, "Efficient fair queuing using deficit round
//! robin", with nanoseconds for bytes.

use std::time::Duration;

use crate::flow::Moment;

/// A turn: one or two full bursts, so that turning costs little and nobody waits for long.
const QUANTUM: i64 = 20_000;
/// The part of the worker that punts get while offloaded traffic waits.
pub(super) const PUNTS_PART: i64 = 25;
/// Punting time saved, at most.
const PUNTS_DEPTH: i64 = 40_000;
/// What may be owed: a thread that was set aside for a while is no element's fault.
const DEBT_MAX: i64 = 1_000_000;

/// Frames in a burst that show a backlog: what is polled in time comes in smaller ones.
const BACKLOG: i64 = 16;

/// What a burst turned out to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mix {
    /// Frames for the guest, whether it took them or not.
    pub(super) punts: usize,
    /// Frames around the guest.
    pub(super) hits: usize,
}

/// Who else wants the worker, as seen in the last round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Crowd {
    /// Elements whose turn ended before their backlog, much of it offloaded traffic.
    pub(super) pressing: usize,
    /// Elements that punted while others pressed.
    pub(super) held: usize,
}

/// One element's account with its worker, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// What is left of the turn; below zero: used in advance.
    deficit: i64,
    /// This turn: its bursts, their frames, the time all of it took, punts, and hits.
    bursts: i64,
    frames: i64,
    used: i64,
    punting: i64,
    hitting: i64,
    /// Punting time saved for when others press.
    credit: i64,
    filled: Moment,
    contended: bool,
    pressing: bool,
    held: bool,
}

impl Account {
    /// A turn begins.
    pub(super) fn begin(&mut self, now: Moment, crowd: Crowd) {
        self.deficit = (self.deficit + QUANTUM).min(QUANTUM);
        (self.bursts, self.frames) = (0, 0);
        (self.used, self.punting, self.hitting) = (0, 0, 0);
        self.contended = crowd.pressing > usize::from(self.pressing);
        let among = crowd.held.max(1) as i64;
        let come = nanos(now.since(self.filled)) / (PUNTS_PART * among);
        self.credit = self.credit.saturating_add(come).min(PUNTS_DEPTH);
        self.filled = now;
    }

    /// Whether some of the turn is left.
    #[inline]
    pub(super) fn goes_on(&self) -> bool {
        self.deficit > 0
    }

    /// Whether frames of uplinks may be taken in: they may turn out to be punts.
    #[inline]
    pub(super) fn takes_in(&self) -> bool {
        !self.contended || self.credit > 0
    }

    /// Whether punts have used up most of what they may.
    #[inline]
    pub(super) fn is_squeezed(&self) -> bool {
        self.contended && self.credit < PUNTS_DEPTH / 2
    }

    /// A burst of `frames` took so long.
    #[inline]
    pub(super) fn charge(&mut self, took: Duration, frames: usize, mix: Mix) {
        let took = nanos(took);
        let part = |count: usize| took * count as i64 / frames.max(1) as i64;
        let punting = part(mix.punts);
        self.deficit = (self.deficit - took).max(-DEBT_MAX);
        self.bursts += 1;
        self.frames += frames as i64;
        self.used += took;
        self.punting += punting;
        self.hitting += part(mix.hits);
        if self.contended {
            self.credit = (self.credit - punting).max(-DEBT_MAX);
        }
    }

    /// The turn ends; `drained`: all queues were found empty.
    pub(super) fn end(&mut self, drained: bool) {
        self.held = self.contended && (self.punting > 0 || !self.takes_in());
        if drained {
            self.pressing = false;
            // What was not needed is not saved; what was used in advance stays owed.
            self.deficit = self.deficit.min(0);
        } else if self.used > 0 {
            self.pressing = !self.goes_on()
                && self.frames >= BACKLOG * self.bursts
                && self.hitting * 4 > self.used;
        }
    }

    /// The element sleeps: nobody waits for it, and it waits for nobody.
    pub(super) fn rest(&mut self) {
        self.deficit = 0;
        self.pressing = false;
        self.held = false;
    }

    /// Adds this element to what the others see.
    pub(super) fn join(&self, crowd: &mut Crowd) {
        crowd.pressing += usize::from(self.pressing);
        crowd.held += usize::from(self.held);
    }
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}
