//! The rhythm of a lane's arrivals: when it pays to sleep without asking to be woken.
//!
//! A wake-up by notification costs the peer a system call and the worker a trip through the
//! scheduler for every few frames. Where something comes at a steady rate, a *nap* of a fixed
//! length with notifications off costs one trip for all that came meanwhile, and the peer
//! nothing. Where little comes, naps would be wake-ups for nothing, and asking is cheaper.
//!
//! *Promises*: a nap is at most [`NAP_MAX`], and shorter when more than [`NAP_FRAMES`] would
//! come during it; naps go on only while about half of them find something
//! and notifications would be as many.
//! *Refuses*: nothing. *Caller's duty*: report every look. *Standard*: none.

use std::time::Duration;

use crate::flow::Moment;

/// The longest nap, the bound to what it delays a frame.
pub(super) const NAP_MAX: Duration = Duration::from_micros(75);
/// The shortest nap: falling asleep and waking takes that long.
const NAP_MIN: Duration = Duration::from_micros(5);
/// Frames that may come during a nap; the smallest usual ring has 256 places.
const NAP_FRAMES: u64 = 32;
/// How long the past counts.
const MEMORY: u64 = 400_000;
/// Samples shorter than this are put together.
const SAMPLE_MIN: Duration = Duration::from_micros(5);
/// One, in the parts that levels are kept in.
const ONE: u64 = 1_024;
/// Naps begin and end at these chances of finding something.
const CHANCE_BEGIN: u64 = ONE / 2;
const CHANCE_END: u64 = ONE * 3 / 8;
/// And at these frames a nap: below, as many notifications cost less.
const RATE_BEGIN: u64 = ONE * 9 / 8;
const RATE_END: u64 = ONE * 15 / 16;

/// What is known of a lane's arrivals.
#[derive(Debug, Default)]
pub(super) struct Rhythm {
    sampled: Moment,
    frames: u64,
    /// Frames in a nap of full length, times [`ONE`].
    rate: u64,
    /// The chance that a nap of full length finds something, times [`ONE`].
    chance: u64,
    gap_since: Option<Moment>,
    napping: bool,
}

impl Rhythm {
    /// A look at all queues ended at `now` and had found `frames`.
    #[inline]
    pub(super) fn looked(&mut self, now: Moment, frames: usize) {
        self.frames += frames as u64;
        let span = now.since(self.sampled);
        if span >= SAMPLE_MIN {
            let nap = NAP_MAX.as_nanos() as u64;
            let span = span.as_nanos() as u64;
            let sample = (self.frames * nap).saturating_mul(ONE) / span;
            self.rate = blend(self.rate, sample, span);
            (self.sampled, self.frames) = (now, 0);
        }
    }

    /// Nothing is left at `now`: the lane is about to nap or sleep.
    pub(super) fn pauses(&mut self, now: Moment) {
        self.gap_since = Some(now);
    }

    /// The pause ended at `now` and something was there, or not.
    pub(super) fn resumes(&mut self, now: Moment, found: bool) {
        let Some(since) = self.gap_since.take() else {
            return;
        };
        let span = (now.since(since).as_nanos() as u64).max(1);
        let nap = NAP_MAX.as_nanos() as u64;
        // A long sleep that ended with a frame is one nap in many that would have found one.
        let sample = match (found, self.napping) {
            (false, _) => 0,
            (true, true) => ONE,
            (true, false) => ONE * nap / span.max(nap),
        };
        self.chance = blend(self.chance, sample, span.max(nap));
    }

    /// How long to nap; `None`: rather ask for a notification.
    pub(super) fn nap(&mut self) -> Option<Duration> {
        let (chance, rate) = match self.napping {
            true => (CHANCE_END, RATE_END),
            false => (CHANCE_BEGIN, RATE_BEGIN),
        };
        self.napping = self.chance >= chance && self.rate >= rate;
        self.napping.then(|| {
            let longest = NAP_MAX.as_nanos() as u64;
            let length = longest * NAP_FRAMES * ONE / self.rate.max(NAP_FRAMES * ONE);
            Duration::from_nanos(length).max(NAP_MIN)
        })
    }

    /// Whether the next frame is due sooner than one could fall asleep and wake.
    pub(super) fn is_dense(&self) -> bool {
        self.rate >= ONE * (NAP_MAX.as_nanos() / NAP_MIN.as_nanos()) as u64
    }
}

/// Mixes a sample over `span` nanoseconds into a level.
fn blend(level: u64, sample: u64, span: u64) -> u64 {
    if span >= MEMORY {
        return sample;
    }
    // Rounded up, so that a level reaches the sample from below as from above.
    let mixed =
        u128::from(level) * u128::from(MEMORY - span) + u128::from(sample) * u128::from(span);
    u64::try_from(mixed / u128::from(MEMORY)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a lane does with arrivals at `times` (nanoseconds, ascending): naps, and sleeps
    /// that a notification ends `wake` later than the arrival.
    fn live(times: &[u64], wake: u64) -> (usize, usize) {
        let mut rhythm = Rhythm::default();
        let (mut now, mut next) = (0u64, 0);
        let (mut naps, mut sleeps) = (0, 0);
        let end = *times.last().unwrap();
        while now < end && next < times.len() {
            rhythm.pauses(Moment(now));
            now = match rhythm.nap() {
                Some(length) => {
                    naps += 1;
                    now + length.as_nanos() as u64 + wake
                }
                None => {
                    sleeps += 1;
                    now.max(times[next]) + wake
                }
            };
            let found = times[next..]
                .iter()
                .take_while(|time| **time <= now)
                .count();
            next += found;
            rhythm.resumes(Moment(now), found > 0);
            rhythm.looked(Moment(now), found);
        }
        (naps, sleeps)
    }

    fn every(gap: u64, count: u64) -> Vec<u64> {
        (1..=count).map(|number| number * gap).collect()
    }

    #[test]
    fn a_steady_stream_is_napped_through() {
        for wake in [2_000, 35_000] {
            let (naps, sleeps) = live(&every(10_000, 100_000), wake);
            assert!(sleeps < 20, "{sleeps} sleeps, {naps} naps");
            assert!(naps < 22_000, "{naps} naps for a second");
        }
    }

    #[test]
    fn seldom_frames_wake_by_notification() {
        for gap in [1_000_000, 300_000, 100_000] {
            let (naps, sleeps) = live(&every(gap, 1_000), 5_000);
            assert!(
                naps < 20 && sleeps > 950,
                "{gap}: {naps} naps, {sleeps} sleeps"
            );
        }
    }

    #[test]
    fn bursts_far_apart_wake_by_notification() {
        let times: Vec<u64> = (1..1_000u64)
            .flat_map(|ms| vec![ms * 1_000_000; 64])
            .collect();
        let (naps, _) = live(&times, 5_000);
        assert!(naps < 20, "{naps} naps");
    }

    #[test]
    fn naps_end_when_the_stream_does() {
        let mut times = every(10_000, 1_000);
        times.push(5_000_000_000);
        let (naps, _) = live(&times, 5_000);
        assert!(naps < 300, "{naps} naps");
    }

    #[test]
    fn a_fast_stream_is_never_left_for_more_than_some_frames() {
        let mut rhythm = Rhythm::default();
        let mut now = 0;
        for _ in 0..1_000 {
            rhythm.pauses(Moment(now));
            now += 5_000;
            rhythm.resumes(Moment(now), true);
            rhythm.looked(Moment(now), 10);
        }
        let nap = rhythm.nap().unwrap();
        // Two frames a microsecond.
        assert!(nap <= Duration::from_micros(17), "{nap:?}");
        assert!(rhythm.is_dense());
    }
}
