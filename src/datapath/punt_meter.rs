//! The punt meter: what of an element's punts its guest is handed (DESIGN section 4, step 7).
//!
//! *Promises*: without a configured rate, and while no other element of the worker is kept
//! waiting, everything passes. Otherwise control traffic (ARP, neighbour discovery, group,
//! routing protocols, ICMP errors) finds a reserved share, packets of known sessions go before
//! misses, and a quarter of the configured rate's depth is kept from misses, so that a flood
//! of them leaves room for the others. The rate is that of all workers that serve the element.
//! *Refuses*: the rest, which is dropped and counted.
//! *Caller's duty*: at most 64 frames a call. *Standard*: none.

use std::sync::Arc;

use crate::flow::{Moment, TokenBucket};
use crate::packet::ShareClass;

/// A bucket holds what comes in this part of a second, but not less than a burst.
const DEPTHS_A_SECOND: u64 = 20;
const DEPTH_MIN: u64 = 64;
/// The part of the rate that control traffic may take before all others.
const RESERVED: u64 = 4;

/// An element's punt meter on its worker.
#[derive(Debug, Default)]
pub(super) struct PuntMeter {
    rate: PuntRate,
    squeezed: bool,
}

/// An element's configured rate; copies are of the same one.
#[derive(Clone, Debug, Default)]
pub struct PuntRate(Option<Arc<Rate>>);

impl PuntRate {
    /// So many wire packets a second; `None`: unlimited.
    pub fn new(rate: Option<u32>) -> Self {
        Self(rate.map(|rate| Arc::new(Rate::new(rate))))
    }
}

#[derive(Debug)]
struct Rate {
    all: TokenBucket,
    reserve: TokenBucket,
    depth: u64,
}

impl PuntMeter {
    /// A worker's meter of an element's rate.
    pub(super) fn new(rate: PuntRate) -> Self {
        Self {
            rate,
            squeezed: false,
        }
    }

    /// Says whether the element has used up what punts may take while others are kept waiting.
    pub(super) fn squeeze(&mut self, squeezed: bool) {
        self.squeezed = squeezed;
    }

    /// Whether everything passes.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        !self.squeezed && self.rate.0.is_none()
    }

    /// Which of `count` frames pass, bit n being frame n; `asked` gives a frame's share and
    /// wire packets.
    pub(super) fn admit(
        &mut self,
        count: usize,
        asked: impl Fn(usize) -> (ShareClass, u32),
        now: Moment,
    ) -> u64 {
        let mut admitted = match self.squeezed {
            true => squeeze(count, &asked),
            false => u64::MAX >> (64 - count.clamp(1, 64)),
        };
        if let Some(rate) = &self.rate.0 {
            for class in [ShareClass::Control, ShareClass::Session, ShareClass::Miss] {
                for place in 0..count {
                    let (own, packets) = asked(place);
                    if own == class && admitted >> place & 1 != 0 && !rate.take(class, packets, now)
                    {
                        admitted &= !(1 << place);
                    }
                }
            }
        }
        admitted
    }
}

/// Half of the frames: control first, up to half of these, then sessions, then the others.
fn squeeze(count: usize, asked: &impl Fn(usize) -> (ShareClass, u32)) -> u64 {
    let room = count.div_ceil(2);
    let mut admitted = 0u64;
    let mut admit = |class: ShareClass, upto: usize| {
        for place in 0..count {
            if admitted.count_ones() as usize >= upto {
                return;
            }
            if asked(place).0 == class {
                admitted |= 1 << place;
            }
        }
    };
    admit(ShareClass::Control, room.div_ceil(2));
    admit(ShareClass::Session, room);
    admit(ShareClass::Control, room);
    admit(ShareClass::Miss, room);
    admitted
}

impl Rate {
    fn new(rate: u32) -> Self {
        let rate = u64::from(rate);
        let depth = (rate / DEPTHS_A_SECOND).max(DEPTH_MIN);
        Self {
            all: TokenBucket::new(rate, depth),
            reserve: TokenBucket::new(rate.div_ceil(RESERVED), depth / RESERVED),
            depth,
        }
    }

    /// Takes a frame's tokens if its class finds any.
    fn take(&self, class: ShareClass, packets: u32, now: Moment) -> bool {
        let reserved = class == ShareClass::Control && self.reserve.has_more_than(0, now);
        let keep = match class {
            ShareClass::Miss | ShareClass::Control => self.depth / RESERVED,
            ShareClass::Session => 0,
        };
        if !reserved && !self.all.has_more_than(keep, now) {
            return false;
        }
        if reserved {
            self.reserve.take(packets.into(), now);
        }
        self.all.take(packets.into(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Offers `burst` every `gap` for ten seconds, after one that empties what was saved;
    /// says how many of each class pass a second.
    fn pass(meter: &mut PuntMeter, burst: &[ShareClass], gap: Duration) -> [usize; 3] {
        let mut passed = [0; 3];
        let mut now = Moment::default();
        while now < Moment::default() + 11 * SECOND {
            let admitted = meter.admit(burst.len(), |place| (burst[place], 1), now);
            for (place, class) in burst.iter().enumerate() {
                if now >= Moment::default() + SECOND {
                    passed[*class as usize] += (admitted >> place & 1) as usize;
                }
            }
            now = now + gap;
        }
        passed.map(|count| count / 10)
    }

    fn mix(control: usize, session: usize, miss: usize) -> Vec<ShareClass> {
        // Misses first: the order in a burst must not decide.
        let mut burst = vec![ShareClass::Miss; miss];
        burst.extend(vec![ShareClass::Session; session]);
        burst.extend(vec![ShareClass::Control; control]);
        burst
    }

    fn about(found: usize, expected: usize) {
        assert!(
            found.abs_diff(expected) <= expected / 50 + 2,
            "{found} instead of {expected}"
        );
    }

    #[test]
    fn unlimited_lets_everything_pass() {
        let mut meter = PuntMeter::default();
        assert!(meter.is_open());
        for count in 0..=64 {
            let all = meter.admit(count, |_| (ShareClass::Miss, 45), Moment::default());
            assert!((0..count).all(|place| all >> place & 1 != 0));
        }
    }

    #[test]
    fn a_flood_of_misses_gets_the_whole_rate_when_nothing_else_comes() {
        let mut meter = PuntMeter::new(PuntRate::new(Some(10_000)));
        let [_, _, misses] = pass(&mut meter, &mix(0, 0, 64), Duration::from_micros(64));
        about(misses, 10_000);
    }

    #[test]
    fn control_and_sessions_pass_in_a_flood_of_misses() {
        let mut meter = PuntMeter::new(PuntRate::new(Some(10_000)));
        // 2,000 control and 4,000 session packets a second among 58,000 misses.
        let [control, sessions, misses] =
            pass(&mut meter, &mix(2, 4, 58), Duration::from_millis(1));
        about(control, 2_000);
        about(sessions, 4_000);
        about(misses, 4_000);
    }

    #[test]
    fn the_workers_of_an_element_share_its_rate() {
        let rate = PuntRate::new(Some(10_000));
        let mut meters = [(); 3].map(|()| PuntMeter::new(rate.clone()));
        let (mut now, mut passed) = (Moment::default(), 0);
        for step in 0..30_000 {
            let meter = &mut meters[step % 3];
            let admitted = meter.admit(16, |_| (ShareClass::Session, 1), now);
            passed += (admitted & 0xffff).count_ones() as usize;
            now = now + Duration::from_micros(100);
        }
        about(passed, 3 * 10_000 + 500);
    }

    #[test]
    fn a_flood_of_control_leaves_three_quarters_to_sessions() {
        let mut meter = PuntMeter::new(PuntRate::new(Some(10_000)));
        let [control, sessions, _] = pass(&mut meter, &mix(32, 32, 0), Duration::from_millis(1));
        about(control, 2_500);
        about(sessions, 7_500);
    }

    #[test]
    fn a_frame_of_many_packets_passes_a_small_rate_in_time() {
        let mut meter = PuntMeter::new(PuntRate::new(Some(10)));
        let mut passed = 0;
        for second in 0..100 {
            let now = Moment::default() + second * SECOND;
            passed += meter.admit(1, |_| (ShareClass::Session, 45), now) & 1;
        }
        assert!((20..=26).contains(&passed), "{passed}");
    }

    #[test]
    fn squeezed_half_of_a_burst_passes_sessions_before_misses() {
        let mut meter = PuntMeter::default();
        meter.squeeze(true);
        let burst = mix(20, 10, 34);
        let admitted = meter.admit(64, |place| (burst[place], 1), Moment::default());
        let of = |class| {
            let places = burst.iter().enumerate();
            let own = places.filter(|(place, own)| **own == class && admitted >> place & 1 != 0);
            own.count()
        };
        let passed = [ShareClass::Control, ShareClass::Session, ShareClass::Miss].map(of);
        assert_eq!(passed, [20, 10, 2]);
        assert_eq!(
            meter.admit(1, |_| (ShareClass::Miss, 1), Moment::default()),
            1
        );
    }

    #[test]
    fn squeezed_a_flood_of_control_leaves_half_of_the_room_to_sessions() {
        let mut meter = PuntMeter::default();
        meter.squeeze(true);
        let burst = mix(32, 32, 0);
        let admitted = meter.admit(64, |place| (burst[place], 1), Moment::default());
        assert_eq!(admitted.count_ones(), 32);
        assert_eq!((admitted & 0xffff_ffff).count_ones(), 16, "sessions");
    }
}
