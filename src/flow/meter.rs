//! A token bucket.
//!
//! *Promises*: over any span, at most `rate` tokens a second and one `depth` besides are
//! taken, and one overdraft: whoever finds a token may take more than is there, once, and
//! the debt is paid before the next one is found.
//! *Refuses*: nothing. *Caller's duty*: a clock that does not go back (it is then ignored).
//! *Standard*: RFC 2697's single bucket, with a debt instead of colours.

use super::Moment;

/// Nanoseconds a second: levels are kept in tokens times this, so that no remainder is lost.
const SECOND: i64 = 1_000_000_000;
/// The largest depth whose level fits.
const DEPTH_MAX: u32 = 4_000_000_000;

/// A bucket of tokens that fills by itself.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    rate: u32,
    depth: i64,
    level: i64,
    filled: Moment,
}

impl TokenBucket {
    /// A full bucket that takes in `rate` tokens a second and holds `depth` (at most 4e9).
    pub fn new(rate: u32, depth: u32) -> Self {
        let depth = i64::from(depth.min(DEPTH_MAX)) * SECOND;
        Self {
            rate,
            depth,
            level: depth,
            filled: Moment::default(),
        }
    }

    /// Lets time pass.
    pub fn fill(&mut self, now: Moment) {
        let span = now.since(self.filled).as_nanos();
        self.filled = self.filled.max(now);
        let come = i64::try_from(span.saturating_mul(u128::from(self.rate))).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(come).min(self.depth);
    }

    /// Whether more than `keep` tokens are there.
    pub fn has_more_than(&self, keep: u32) -> bool {
        self.level > i64::from(keep) * SECOND
    }

    /// Takes `count` tokens, there or not; the debt is at most one depth, or `count` if that
    /// is more.
    pub fn take(&mut self, count: u32) {
        let taken = i64::from(count) * SECOND;
        let floor = -self.depth.max(taken);
        self.level = self.level.saturating_sub(taken).max(floor);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_starts_full_and_holds_no_more_than_its_depth() {
        let mut bucket = TokenBucket::new(10, 3);
        bucket.fill(Moment(1_000 * SECOND as u64));
        assert!(bucket.has_more_than(2) && !bucket.has_more_than(3));
    }

    #[test]
    fn tokens_come_at_the_rate_also_in_steps_too_small_for_one() {
        let mut bucket = TokenBucket::new(1_000, 10);
        bucket.take(10);
        for step in 1..=3_000_000 {
            bucket.fill(Moment(step));
        }
        assert!(bucket.has_more_than(2) && !bucket.has_more_than(3));
    }

    #[test]
    fn a_debt_is_paid_before_the_next_token() {
        let mut bucket = TokenBucket::new(1_000, 10);
        bucket.take(15);
        bucket.fill(Moment(5_000_000));
        assert!(!bucket.has_more_than(0));
        bucket.fill(Moment(6_000_000));
        assert!(bucket.has_more_than(0));
    }

    proptest! {
        #[test]
        fn no_more_is_taken_than_rate_depth_and_one_overdraft(
            rate in 1u32..2_000_000,
            depth in 1u32..10_000,
            steps in prop::collection::vec((0u64..10_000_000, 1u32..64), 1..400),
        ) {
            let mut bucket = TokenBucket::new(rate, depth);
            let (mut now, mut taken) = (Moment::default(), 0u64);
            for (span, count) in steps {
                now = now + Duration::from_nanos(span);
                bucket.fill(now);
                if bucket.has_more_than(0) {
                    bucket.take(count);
                    taken += u64::from(count);
                }
            }
            let come = u128::from(now.0) * u128::from(rate) / SECOND as u128;
            prop_assert!(u128::from(taken) <= come + u128::from(depth) + 64);
        }
    }
}
