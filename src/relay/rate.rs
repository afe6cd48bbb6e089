//! How many requests a second a port may make.
//!
//! *Promises*: in the long run the configured rate, after a pause the burst; whoever is
//! refused is told how long to wait, and has used nothing up. *Refuses*: nothing.
//! *Caller's duty*: times that do not run backwards.
//! *Standard*: the generic cell rate algorithm (ITU-T I.371 annex A).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A limit on a rate.
#[derive(Debug)]
pub struct Rate {
    start: Instant,
    /// Nanoseconds that a request uses up, and that may be used in advance.
    cost: u64,
    tolerance: u64,
    /// Until when, in nanoseconds from the start, the rate is used up.
    used: AtomicU64,
}

impl Rate {
    /// `per_second` requests in the long run, `burst` at once; both at least 1.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let cost = 1_000_000_000 / u64::from(per_second.max(1));
        Self {
            start: now,
            cost,
            tolerance: cost * u64::from(burst.max(1) - 1),
            used: AtomicU64::new(0),
        }
    }

    /// Whether a request may be made now.
    ///
    /// # Errors
    /// How long to wait.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        let now = u64::try_from(now.saturating_duration_since(self.start).as_nanos())
            .unwrap_or(u64::MAX / 2);
        let spend = |used: u64| {
            let from = used.max(now);
            (from - now <= self.tolerance).then_some(from + self.cost)
        };
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .map(|_| ())
            .map_err(|used| Duration::from_nanos(used.saturating_sub(now + self.tolerance)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a first moment")]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let rate = Rate::new(100, 5, start);
        let admitted = |ms: u64, tries: usize| {
            let now = start + Duration::from_millis(ms);
            (0..tries).filter(|_| rate.admit(now).is_ok()).count()
        };
        assert_eq!(admitted(0, 50), 5);
        assert_eq!(admitted(9, 50), 0);
        assert_eq!(admitted(10, 50), 1);
        assert_eq!(
            rate.admit(start + Duration::from_millis(10)),
            Err(Duration::from_millis(10))
        );
        assert_eq!(
            (1..=100).map(|i| admitted(10 + i * 10, 9)).sum::<usize>(),
            100
        );
        assert_eq!(admitted(60_000, 50), 5);
    }
}
