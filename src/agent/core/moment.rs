//! Time as the core knows it: a number that somebody else read off a clock.
//!
//! *Promises*: plain arithmetic that neither overflows nor goes below zero.
//! *Refuses*: nothing.
//! *Caller's duty*: one start for all moments of a core.
//! *Standard*: none.

use std::ops::Add;
use std::time::Duration;

/// Milliseconds since the agent started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Moment(pub u64);

impl Moment {
    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        // Rounded up: what waits for a moment must not find itself a little before it.
        let millis = u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}
