//! A token bucket that several threads take from.
//!
//! *Promises*: over any span, at most `rate` tokens a second and one `depth` besides are
//! taken, and one overdraft of each taker: whoever finds a token may take more than is there,
//! once, and the debt is paid before the next one is found. Nobody waits.
//! *Refuses*: nothing. *Caller's duty*: a clock that does not go back (it is then ignored).
//! *Standard*: RFC 2697's single bucket, with a debt instead of colours, as the virtual
//! scheduling of ITU-T I.371: what is kept is the time at which the bucket was empty.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Moment;

/// Times are kept in these parts of a nanosecond, so that a fast bucket's tokens differ from 0
/// by more than rounding; they last for nine years.
const PARTS: u64 = 64;
const SECOND: u64 = 1_000_000_000 * PARTS;
/// The time of one token is kept with so many more binary places, so that rates of 10¹¹ are true
/// to a millionth.
const PLACES: u32 = 20;
/// Times start here, so that a bucket can have been empty before the clock's zero.
const ZERO: u64 = 1 << 62;

/// A bucket of tokens that fills by itself.
#[derive(Debug)]
pub struct TokenBucket {
    /// Time in which a token comes, with [`PLACES`].
    token: u64,
    /// Time in which it fills.
    depth: u64,
    /// When it was empty: it has as many tokens as came since; in the future: it has debts.
    empty_at: AtomicU64,
}

impl TokenBucket {
    /// A full bucket that takes in `rate` tokens a second and holds `depth`; together no more
    /// than a year's tokens, and at least one a second.
    pub fn new(rate: u64, depth: u64) -> Self {
        let token = (SECOND << PLACES) / rate.max(1);
        let depth = time_of(token, depth).min(ZERO / 8);
        Self {
            token,
            depth,
            empty_at: AtomicU64::new(ZERO - depth),
        }
    }

    /// Whether more than `keep` tokens are there.
    pub fn has_more_than(&self, keep: u64, now: Moment) -> bool {
        let level = at(now)
            .saturating_sub(self.empty_at.load(Relaxed))
            .min(self.depth);
        level > time_of(self.token, keep)
    }

    /// Takes `count` tokens, there or not; the debt is at most one depth, or `count` if that
    /// is more.
    pub fn take(&self, count: u64, now: Moment) {
        let (now, taken) = (at(now), time_of(self.token, count));
        let after = |empty_at: u64| {
            let empty_at = empty_at
                .max(now.saturating_sub(self.depth))
                .saturating_add(taken);
            // A clock that is behind another's must not give its debts back.
            let most = now.saturating_add(self.depth.max(taken));
            Some(empty_at.min(most.max(empty_at.saturating_sub(taken))))
        };
        // The closure always gives a value, so it is always stored.
        let _before = self.empty_at.fetch_update(Relaxed, Relaxed, after);
    }
}

/// The time in which `count` tokens come.
fn time_of(token: u64, count: u64) -> u64 {
    let time = (u128::from(token) * u128::from(count)) >> PLACES;
    u64::try_from(time).unwrap_or(u64::MAX)
}

fn at(now: Moment) -> u64 {
    ZERO.saturating_add(now.0.saturating_mul(PARTS))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_starts_full_and_holds_no_more_than_its_depth() {
        let bucket = TokenBucket::new(10, 3);
        let late = Moment(1_000_000_000_000);
        assert!(bucket.has_more_than(2, late) && !bucket.has_more_than(3, late));
        assert!(bucket.has_more_than(2, Moment(0)));
    }

    #[test]
    fn tokens_come_at_the_rate_also_in_steps_too_small_for_one() {
        let bucket = TokenBucket::new(1_000, 10);
        bucket.take(10, Moment(0));
        for step in 1..=3_000_000 {
            bucket.take(0, Moment(step));
        }
        let now = Moment(3_000_000);
        assert!(bucket.has_more_than(2, now) && !bucket.has_more_than(3, now));
    }

    #[test]
    fn a_debt_is_paid_before_the_next_token() {
        let bucket = TokenBucket::new(1_000, 10);
        bucket.take(15, Moment(0));
        assert!(!bucket.has_more_than(0, Moment(5_000_000)));
        assert!(bucket.has_more_than(0, Moment(5_000_001)));
    }

    proptest! {
        #[test]
        fn no_more_is_taken_than_rate_depth_and_one_overdraft(
            rate in prop_oneof![1u64..2_000_000, 1u64..100_000_000_000],
            depth in 1u64..10_000,
            steps in prop::collection::vec((0u64..10_000_000, 1u64..64), 1..400),
        ) {
            let bucket = TokenBucket::new(rate, depth);
            let (mut now, mut taken) = (Moment::default(), 0u64);
            for (span, count) in steps {
                now = now + Duration::from_nanos(span);
                if bucket.has_more_than(0, now) {
                    bucket.take(count, now);
                    taken += count;
                }
            }
            let come = u128::from(now.0) * u128::from(rate) / 1_000_000_000;
            // Rounding: a sixty-fourth of a nanosecond each time, and the rate's to a millionth.
            let rounding = come / 1_000_000 + u128::from(rate) * 400 / 64_000_000_000;
            prop_assert!(u128::from(taken) <= come + rounding + u128::from(depth) + 65);
        }
    }
}
