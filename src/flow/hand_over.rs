//! Stand-in for branch `sessions`: the types that `api` reads. Its file replaces this one.
/// Counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "stand-in")]
pub struct HandOverStats {
    pub proved: u64,
    pub activated: u64,
    pub disproved: u64,
    pub drain_bounds: u64,
    pub forced: u64,
    pub parked_frames: u64,
    pub released_to_egress: u64,
    pub released_to_guest: u64,
    pub transit_us_last: u64,
    pub transit_us_ewma: u64,
    pub transit_us_max: u64,
}
