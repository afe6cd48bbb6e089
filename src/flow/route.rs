//! Which lane of its element a flow belongs to, and the egress queue pair its packets leave by.
//!
//! An element that several workers serve has a lane on each. All frames of a flow are dealt with
//! by one of them, its *home*: the one that its first frame came to. Frames that come to another
//! (a tap moves flows between its queues) are handed on there.
//!
//! *Promises*: home and egress queue change together, at most once for each idle span
//! (100 ms); whoever asks last is told the same as all others.
//! *Refuses*: to move a flow that waits for proof or drains: its home knows things about it.
//! *Caller's duty*: lanes and queue pairs below [`QUEUES_MAX`]; higher ones count as the last.
//! *Standard*: none.

use crate::sync::{AtomicU8, Ordering};

/// Queue pairs of a device at most, and so lanes of an element.
pub const QUEUES_MAX: usize = 8;
/// A flow that has not moved for so long has no frame on its way any more.
const IDLE_MS: i32 = 100;

/// The flow's own: see [`RouteCell::flag`].
const FLAG: u8 = 1 << 7;
const SETTLED: u8 = 1 << 6;
const HOME_SHIFT: u32 = 3;
const PLACE: u8 = QUEUES_MAX as u8 - 1;

/// A home and an egress queue pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route(u8);

impl Route {
    /// The route of a flow at home on lane `home` whose packets leave by `queue`.
    #[inline]
    pub fn new(home: usize, queue: usize) -> Self {
        let place = |number: usize| number.min(QUEUES_MAX - 1) as u8;
        Self(SETTLED | place(home) << HOME_SHIFT | place(queue))
    }

    /// The lane.
    #[inline]
    pub fn home(self) -> usize {
        usize::from(self.0 >> HOME_SHIFT & PLACE)
    }

    /// The egress queue pair.
    #[inline]
    pub fn queue(self) -> usize {
        usize::from(self.0 & PLACE)
    }
}

/// A flow's route, none before its first frame; and a flag of the flow's, in one byte.
#[derive(Debug)]
pub(super) struct RouteCell(AtomicU8);

impl RouteCell {
    #[cfg(any(test, shunt_loom))]
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// Whether the flag is up.
    #[inline(always)]
    pub(super) fn flag(&self) -> bool {
        self.0.load(Ordering::Relaxed) & FLAG != 0
    }

    /// Puts the flag up.
    #[inline]
    pub(super) fn raise_flag(&self) {
        if !self.flag() {
            self.0.fetch_or(FLAG, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    pub(super) fn get(&self) -> Option<Route> {
        let bits = self.0.load(Ordering::Relaxed);
        (bits & SETTLED != 0).then_some(Route(bits & !FLAG))
    }

    /// Before anybody else can look.
    pub(super) fn reset(&self, route: Option<Route>, flag: bool) {
        let flag = if flag { FLAG } else { 0 };
        let bits = route.map_or(0, |route| route.0) | flag;
        self.0.store(bits, Ordering::Relaxed);
    }

    /// Takes `own` where there is no route yet, or where the flow may move (`active`) and has
    /// not for `idle_ms`; says what the route is then.
    #[cold]
    pub(super) fn claim(&self, own: Route, active: bool, idle_ms: i32) -> Route {
        let free = |bits: u8| bits & SETTLED == 0 || (active && idle_ms >= IDLE_MS);
        let claimed = self.change(|bits| free(bits).then_some(own));
        claimed.map_or_else(|bits| Route(bits & !FLAG), |_| own)
    }

    /// Its packets leave by `queue` from now on.
    pub(super) fn set_queue(&self, queue: usize) {
        // Whatever the route is, there is a new one, so it is always stored.
        let _before = self.change(|bits| Some(Route::new(Route(bits).home(), queue)));
    }

    fn change(&self, new: impl Fn(u8) -> Option<Route>) -> Result<u8, u8> {
        let with_flag = |bits: u8| Some(new(bits)?.0 | bits & FLAG);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_flag)
    }
}

#[cfg(test)]
#[cfg(not(shunt_loom))]
mod tests {
    use super::*;

    #[test]
    fn the_first_claim_holds_until_the_flow_is_idle() {
        let cell = RouteCell::new();
        assert_eq!(cell.get(), None);
        let (one, two) = (Route::new(1, 5), Route::new(2, 7));
        assert_eq!(cell.claim(one, false, 0), one);
        assert_eq!(cell.claim(two, true, IDLE_MS - 1), one);
        assert_eq!(cell.claim(two, false, i32::MAX), one, "it waits or drains");
        assert_eq!(cell.claim(two, true, IDLE_MS), two);
        assert_eq!(cell.get(), Some(two));
    }

    #[test]
    fn a_settled_queue_leaves_the_home_as_it_is() {
        for home in 0..QUEUES_MAX {
            for queue in 0..QUEUES_MAX {
                let cell = RouteCell::new();
                cell.reset(None, queue % 2 == 0);
                cell.claim(Route::new(home, 0), false, 0);
                cell.set_queue(queue);
                let route = cell.get().unwrap();
                assert_eq!((route.home(), route.queue()), (home, queue));
                assert_eq!(cell.flag(), queue % 2 == 0);
            }
        }
    }
}
