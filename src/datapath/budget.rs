//! How long a lane may poll without finding anything (DESIGN section 5).
//!
//! *Promises*: over time, polling without result takes no more time than useful work
//! took; an idle lane polls not at all. The window follows KVM's halt polling: a wake-up
//! that came soon after falling asleep would have been met by polling a little longer, so
//! the window grows; a long sleep shows that polling would have been in vain, so it shrinks.
//! *Caller's duty*: report every round. *Standard*: none.

use std::time::Duration;

use crate::flow::Moment;

/// The window a lane starts growing from.
const WINDOW_FIRST: Duration = Duration::from_micros(10);
/// The longest window: a wake-up costs a few microseconds, so polling longer never pays.
const WINDOW_MAX: Duration = Duration::from_micros(200);
/// Unused credit is kept up to this much, so that yesterday's load does not pay for today's polling.
const CREDIT_MAX: Duration = Duration::from_millis(1);

/// One lane's budget.
#[derive(Debug, Default)]
pub struct Budget {
    window: Duration,
    credit: Duration,
    idle_since: Option<Moment>,
    last_round: Moment,
    asleep_since: Option<Moment>,
}

impl Budget {
    /// A round ended at `now` that found something.
    #[inline]
    pub fn worked(&mut self, now: Moment, took: Duration) {
        self.credit = (self.credit + took).min(CREDIT_MAX);
        self.idle_since = None;
        self.last_round = now;
    }

    /// A round ended at `now` that found nothing: whether to poll on.
    #[inline]
    pub fn may_poll(&mut self, now: Moment) -> bool {
        let spent = match self.idle_since {
            None => Duration::ZERO,
            Some(_) => now.since(self.last_round),
        };
        self.last_round = now;
        self.credit = self.credit.saturating_sub(spent);
        let idle_since = *self.idle_since.get_or_insert(now);
        !self.credit.is_zero() && now.since(idle_since) < self.window
    }

    /// The lane falls asleep.
    pub fn slept(&mut self, now: Moment) {
        self.idle_since = None;
        self.asleep_since = Some(now);
    }

    /// The lane woke up because something came.
    pub fn woke(&mut self, now: Moment) {
        let Some(asleep_since) = self.asleep_since.take() else {
            return;
        };
        if now.since(asleep_since) <= WINDOW_MAX {
            self.window = (self.window * 2).clamp(WINDOW_FIRST, WINDOW_MAX);
        } else {
            self.window /= 2;
            if self.window < WINDOW_FIRST {
                self.window = Duration::ZERO;
            }
        }
        self.last_round = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;

    #[test]
    fn a_fresh_lane_does_not_poll_without_result() {
        let mut budget = Budget::default();
        assert!(!budget.may_poll(Moment(5 * US)));
    }

    #[test]
    fn quick_wake_ups_grow_the_window_and_long_sleeps_end_it() {
        let mut budget = Budget::default();
        let mut now = Moment(0);
        for _ in 0..10 {
            budget.slept(now);
            now = now + Duration::from_micros(50);
            budget.woke(now);
            budget.worked(now, Duration::from_micros(100));
        }
        assert!(budget.may_poll(now));
        for _ in 0..10 {
            budget.slept(now);
            now = now + Duration::from_millis(50);
            budget.woke(now);
            budget.worked(now, Duration::from_micros(100));
        }
        assert!(!budget.may_poll(now));
    }

    #[test]
    fn empty_polling_never_exceeds_useful_work() {
        let mut budget = Budget::default();
        let mut now = Moment(0);
        let (mut useful, mut empty) = (Duration::ZERO, Duration::ZERO);
        for round in 0..10_000u64 {
            budget.slept(now);
            now = now + Duration::from_micros(20 + round % 7);
            budget.woke(now);
            let took = Duration::from_micros(round % 13);
            now = now + took;
            budget.worked(now, took);
            useful += took;
            while budget.may_poll(now) {
                now = now + Duration::from_micros(1);
                empty += Duration::from_micros(1);
            }
        }
        assert!(
            empty <= useful + Duration::from_micros(10_000),
            "{empty:?} {useful:?}"
        );
        assert!(empty > Duration::from_millis(1));
    }
}
