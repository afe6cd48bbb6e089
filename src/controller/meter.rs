//! How much an element may ask for.
//!
//! *Promises*: over any time `t` at most `2·rate + rate·t` sessions pass; counts of sessions
//! are at most [`COUNT_LIFE`] old, and what passed since is added.
//! *Refuses*: the rest.
//! *Caller's duty*: the backend's own quota is the hard one; this one spares it the asking.
//! *Standard*: none.

#![expect(
    clippy::disallowed_types,
    reason = "guards numbers for an instant, among control tasks; no worker takes it"
)]

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a count of sessions is believed.
pub const COUNT_LIFE: Duration = Duration::from_secs(1);

/// Seconds of the rate that may pass at once.
const BURST: f64 = 2.0;

/// The meters of all elements.
#[derive(Default)]
pub struct Meters {
    all: Mutex<HashMap<String, Meter>>,
}

struct Meter {
    tokens: f64,
    since: Instant,
    /// Sessions there are, and when that was asked.
    sessions: Option<(u64, Instant)>,
    /// The highest number of a connection.
    fence: u64,
}

impl Meters {
    fn meter<T>(&self, element: &str, now: Instant, use_it: impl FnOnce(&mut Meter) -> T) -> T {
        let mut all: MutexGuard<'_, HashMap<String, Meter>> =
            self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(element) {
            Some(meter) => use_it(meter),
            None => use_it(all.entry(element.to_owned()).or_insert_with(|| Meter {
                tokens: f64::INFINITY,
                since: now,
                sessions: None,
                fence: 0,
            })),
        }
    }

    /// Whether `fence` is of the newest connection of `element`.
    pub fn is_newest(&self, element: &str, fence: u64, now: Instant) -> bool {
        self.meter(element, now, |meter| {
            meter.fence = meter.fence.max(fence);
            meter.fence == fence
        })
    }

    /// Of `wanted` sessions so many pass now, at `rate` a second.
    pub fn pass(&self, element: &str, rate: u32, wanted: usize, now: Instant) -> usize {
        self.meter(element, now, |meter| {
            let gained = now.saturating_duration_since(meter.since).as_secs_f64() * f64::from(rate);
            meter.since = now;
            // Also where the rate was lowered meanwhile.
            meter.tokens = (meter.tokens + gained).min(f64::from(rate) * BURST);
            let passed = wanted.min(meter.tokens as usize);
            meter.tokens -= passed as f64;
            passed
        })
    }

    /// How many sessions there are, if that was asked lately.
    pub fn sessions(&self, element: &str, now: Instant) -> Option<u64> {
        self.meter(element, now, |meter| {
            let (count, when) = meter.sessions?;
            (now.saturating_duration_since(when) < COUNT_LIFE).then_some(count)
        })
    }

    /// There are `count` sessions.
    pub fn counted(&self, element: &str, count: u64, now: Instant) {
        self.meter(element, now, |meter| meter.sessions = Some((count, now)));
    }

    /// There are `count` sessions more than were counted.
    pub fn added(&self, element: &str, count: u64, now: Instant) {
        self.meter(element, now, |meter| {
            if let Some((sessions, _)) = &mut meter.sessions {
                *sessions += count;
            }
        });
    }

    /// Sessions were taken back: the count is asked anew.
    pub fn forget(&self, element: &str, now: Instant) {
        self.meter(element, now, |meter| meter.sessions = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_any_time_no_more_passes_than_burst_and_rate() {
        let (meters, start) = (Meters::default(), Instant::now());
        assert_eq!(meters.pass("a", 10, 100, start), 20);
        assert_eq!(meters.pass("a", 10, 100, start), 0);
        let later = start + Duration::from_millis(550);
        assert_eq!(meters.pass("a", 10, 3, later), 3);
        assert_eq!(meters.pass("a", 10, 100, later), 2);
        // Another element is not concerned.
        assert_eq!(meters.pass("b", 1, 100, later), 2);
        let later = later + Duration::from_secs(3_600);
        assert_eq!(meters.pass("a", 10, 100, later), 20);
    }

    #[test]
    fn a_count_is_believed_for_a_while_with_what_was_added() {
        let (meters, start) = (Meters::default(), Instant::now());
        assert_eq!(meters.sessions("a", start), None);
        meters.counted("a", 5, start);
        meters.added("a", 2, start);
        assert_eq!(meters.sessions("a", start), Some(7));
        assert_eq!(meters.sessions("a", start + COUNT_LIFE), None);
        meters.counted("a", 5, start);
        meters.forget("a", start);
        assert_eq!(meters.sessions("a", start), None);
    }

    #[test]
    fn an_older_connection_is_not_the_newest() {
        let (meters, now) = (Meters::default(), Instant::now());
        assert!(meters.is_newest("a", 7, now));
        assert!(meters.is_newest("a", 7, now));
        assert!(meters.is_newest("a", 8, now));
        assert!(!meters.is_newest("a", 7, now));
        assert!(meters.is_newest("b", 1, now));
    }
}
