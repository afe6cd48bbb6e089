//! What a lane does when it has found nothing: look again, nap, or sleep until notified.
//!
//! *Promises*: [`Polling::Adaptive`] looks again only within its [`Budget`] and only while
//! frames come too fast for a nap, naps while they come steadily, and sleeps otherwise.
//! *Refuses*: nothing. *Caller's duty*: report every look and every pause. *Standard*: none.

use std::time::Duration;

use serde::Deserialize;

use super::budget::Budget;
use super::rhythm::Rhythm;
use crate::flow::Moment;

/// How workers wait for frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Polling {
    /// By notification at low load, by naps at a steady rate, by polling at high load.
    #[default]
    Adaptive,
    /// Never: each worker keeps a core busy.
    Busy,
    /// Always by notification.
    Interrupt,
}

/// What to do after a look that found nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rest {
    /// Look again at once.
    Look,
    /// Look again after this long, without notifications.
    Nap(Duration),
    /// Ask for notifications.
    Sleep,
}

/// A lane's manner of waiting.
#[derive(Debug, Default)]
pub(super) struct Pace {
    budget: Budget,
    rhythm: Rhythm,
    paused: bool,
}

impl Pace {
    /// A turn that began at `began` and ended at `now` found `frames`.
    #[inline]
    pub(super) fn looked(&mut self, began: Moment, now: Moment, frames: usize) {
        if std::mem::take(&mut self.paused) {
            self.rhythm.resumes(began, frames > 0);
        }
        self.rhythm.looked(now, frames);
        if frames > 0 {
            self.budget.worked(now, now.since(began));
        }
    }

    /// Nothing is left at `now`.
    pub(super) fn rest(&mut self, polling: Polling, now: Moment) -> Rest {
        match polling {
            Polling::Busy => return Rest::Look,
            Polling::Interrupt => return Rest::Sleep,
            Polling::Adaptive => {}
        }
        if self.rhythm.is_dense() && self.budget.may_poll(now) {
            return Rest::Look;
        }
        self.rhythm.pauses(now);
        self.paused = true;
        self.budget.slept(now);
        self.rhythm.nap().map_or(Rest::Sleep, Rest::Nap)
    }

    /// A nap or sleep ended.
    pub(super) fn woke(&mut self, now: Moment) {
        self.budget.woke(now);
    }
}
