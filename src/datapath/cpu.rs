//! Whose CPU time it was: a worker's, dealt out to its elements.
//!
//! Reading the thread's CPU clock is a system call, and a monotonic clock also counts what the
//! thread was set aside for. So turns are measured with the monotonic clock, a wake-up counts
//! as a fixed span, and every few milliseconds the CPU time really used is dealt out in the
//! proportion of those claims: polling without result, system calls and wake-ups included.
//!
//! *Promises*: all CPU time up to a settlement is dealt out, in the proportion of the claims
//! made since the last one; without any claim it is nobody's.
//! *Refuses*: nothing. *Caller's duty*: settle before a long sleep. *Standard*: none.

use std::time::Duration;

use crate::flow::Moment;

/// How often the account is settled while there is work.
const SETTLE_EVERY: Duration = Duration::from_millis(10);
/// What a wake-up is taken for.
const WAKE_UP: Duration = Duration::from_micros(5);

/// What an element claims since the last settlement, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Claim(u64);

impl Claim {
    /// A turn, with or without result.
    #[inline]
    pub(super) fn turn(&mut self, took: Duration) {
        self.0 += took.as_nanos() as u64;
    }

    /// A wake-up.
    pub(super) fn wake_up(&mut self) {
        self.turn(WAKE_UP);
    }

    /// Whether there is anything to settle.
    pub(super) fn is_open(&self) -> bool {
        self.0 > 0
    }

    pub(super) fn nanos(&self) -> u64 {
        self.0
    }
}

/// A worker's account.
#[derive(Debug)]
pub(super) struct Ledger {
    settled: Moment,
    cpu: Duration,
}

/// What one settlement deals out.
#[derive(Debug)]
pub(super) struct Settlement {
    cpu: u64,
    claims: u64,
}

impl Ledger {
    /// An account that begins now.
    pub(super) fn new(now: Moment, cpu: Duration) -> Self {
        Self { settled: now, cpu }
    }

    /// Whether it is time to settle.
    #[inline]
    pub(super) fn is_due(&self, now: Moment) -> bool {
        now.since(self.settled) >= SETTLE_EVERY
    }

    /// Settles what the thread has used up to `cpu` among `claims` nanoseconds of claims.
    pub(super) fn settle(&mut self, now: Moment, cpu: Duration, claims: u64) -> Settlement {
        let used = cpu.saturating_sub(self.cpu);
        *self = Self { settled: now, cpu };
        Settlement {
            cpu: used.as_nanos() as u64,
            claims,
        }
    }
}

impl Settlement {
    /// The CPU nanoseconds for `claim`, which is void then.
    pub(super) fn pay(&self, claim: &mut Claim) -> u64 {
        let own = u128::from(std::mem::take(&mut claim.0)) * u128::from(self.cpu);
        // A part of `cpu`, so it fits.
        (own / u128::from(self.claims.max(1))) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_used_is_dealt_out_by_claims_and_each_claim_once() {
        let mut ledger = Ledger::new(Moment(0), Duration::from_secs(7));
        let (mut one, mut two) = (Claim::default(), Claim::default());
        one.turn(Duration::from_micros(30));
        two.turn(Duration::from_micros(5));
        two.wake_up();
        let claims = one.nanos() + two.nanos();
        // Half of the claimed time was somebody else's: another thread ran.
        let cpu = Duration::from_secs(7) + Duration::from_micros(20);
        let settlement = ledger.settle(Moment(50), cpu, claims);
        assert_eq!(settlement.pay(&mut one), 15_000);
        assert_eq!(settlement.pay(&mut two), 5_000);
        assert_eq!(settlement.pay(&mut two), 0);
        assert!(!one.is_open());
    }

    #[test]
    fn time_without_claims_is_nobodys() {
        let mut ledger = Ledger::new(Moment(0), Duration::ZERO);
        let mut claim = Claim::default();
        let nobody = ledger.settle(Moment(1), Duration::from_millis(5), 0);
        assert_eq!(nobody.pay(&mut claim), 0);
        claim.turn(Duration::from_nanos(1));
        let settlement = ledger.settle(Moment(2), Duration::from_millis(6), 1);
        assert_eq!(settlement.pay(&mut claim), 1_000_000);
    }
}
