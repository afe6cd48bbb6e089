//! The one place where the data plane reads a clock.

use std::time::Instant;

use crate::flow::Moment;

/// Something that tells the time: a [`Clock`], or a test's own.
pub trait Time {
    /// The time now.
    fn now(&self) -> Moment;
}

/// A monotonic clock whose zero is its own creation; copies share that zero.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts a clock.
    #[expect(
        clippy::disallowed_methods,
        reason = "the clock that lower floors are handed"
    )]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// The time now.
    #[inline]
    pub fn now(&self) -> Moment {
        // 584 years of nanoseconds fit.
        Moment(self.start.elapsed().as_nanos() as u64)
    }
}

impl Time for Clock {
    #[inline]
    fn now(&self) -> Moment {
        Clock::now(self)
    }
}
