//! A hierarchical timer wheel: one timer per id, all memory taken at the start.
//!
//! *Promises*: [`Wheel::set`] and [`Wheel::clear`] take constant time, [`Wheel::pop`]
//! constant time amortised over a timer's life (a timer moves down at most six
//! levels). A timer never fires before its deadline, and fires at most one
//! [`TICK`] after it if `pop` is asked then. Nothing is ever searched.
//! *Refuses*: ids it was not made for: setting one does nothing and says `false`.
//! *Caller's duty*: ask [`Wheel::pop`] until it answers `None`, no later than
//! [`Wheel::next_deadline`]; that answer may be early (it is where a level's slot
//! begins), never late by more than a tick.
//! *Standard*: none. The scheme is scheme 6 of Varghese and Lauck (SOSP 1987) with
//! hierarchy; levels are chosen by the highest differing digit, so that no timer
//! ever lies beyond the horizon.

use std::time::Duration;

use super::Moment;
use super::arena::{Arena, Vacant, arena};

/// Nanoseconds in a tick, as a shift: 2²⁶ ns.
const TICK_SHIFT: u32 = 26;

/// The wheel's precision, about 67 ms.
pub const TICK: Duration = Duration::from_nanos(1 << TICK_SHIFT);

const DIGIT: u32 = 6;
const SLOTS: usize = 1 << DIGIT;
/// Enough digits for every tick of a 64-bit nanosecond clock (38 bits).
const LEVELS: usize = 7;

/// Where a timer is that has come due.
const DUE: u16 = (LEVELS * SLOTS) as u16;

/// In place of a link: none. Links are ids plus one, so that a fresh timer is all zero.
const NIL: u32 = 0;
/// In the link to the one before: it is the first, and of which place.
const FIRST: u32 = 1 << 31;
/// How far ahead a deadline may lie, in ticks: four years. A later one fires then.
const AHEAD_MAX: u64 = 1 << 31;

#[derive(Clone, Copy, Debug)]
struct Timer {
    /// The lower half of its tick, which is near the wheel's.
    tick: u32,
    /// [`NIL`] while it is not set.
    prev: u32,
    next: u32,
}

// SAFETY: numbers; nothing to drop.
unsafe impl Vacant for Timer {
    #[cfg(shunt_loom)]
    fn vacant() -> Self {
        Self {
            tick: 0,
            prev: NIL,
            next: NIL,
        }
    }
}

/// Timers for the ids `0..capacity`, twelve bytes each.
pub struct Wheel {
    timers: Arena<Timer>,
    /// First timer of each slot, level by level; the last one is the due list.
    heads: [u32; LEVELS * SLOTS + 1],
    /// Which slots of a level are not empty.
    filled: [u64; LEVELS],
    /// Every tick up to this one has been dealt with.
    tick: u64,
}

impl Wheel {
    /// A wheel for `capacity` ids.
    pub fn new(capacity: u32, now: Moment) -> Self {
        Self {
            timers: arena(capacity.min(FIRST - 1) as usize),
            heads: [NIL; LEVELS * SLOTS + 1],
            filled: [0; LEVELS],
            tick: now.0 >> TICK_SHIFT,
        }
    }

    /// Bytes of a wheel's timers.
    pub const fn memory_bytes(capacity: u32) -> u64 {
        capacity as u64 * size_of::<Timer>() as u64
    }

    /// Sets the timer of `id`, in place of an earlier one. `false` if there is no such id.
    pub fn set(&mut self, id: u32, deadline: Moment) -> bool {
        self.clear(id);
        let tick = deadline.0.div_ceil(1 << TICK_SHIFT);
        let tick = tick.min(self.tick + AHEAD_MAX - 1);
        let Some(timer) = self.timers.get_mut(id as usize) else {
            return false;
        };
        timer.tick = tick as u32;
        let place = self.place_of(tick);
        self.link(id, place);
        true
    }

    /// Forgets the timer of `id`.
    pub fn clear(&mut self, id: u32) {
        let Some(timer) = self.timers.get_mut(id as usize) else {
            return;
        };
        let Timer { prev, next, .. } = *timer;
        timer.prev = NIL;
        if prev == NIL {
            return;
        }
        if next != NIL {
            self.timers[next as usize - 1].prev = prev;
        }
        if prev & FIRST == 0 {
            self.timers[prev as usize - 1].next = next;
            return;
        }
        let place = (prev & !FIRST) as usize;
        self.heads[place] = next;
        if place != usize::from(DUE) && next == NIL {
            self.filled[place / SLOTS] &= !(1 << (place % SLOTS));
        }
    }

    /// Whether the timer of `id` is set.
    pub fn is_set(&self, id: u32) -> bool {
        self.timers
            .get(id as usize)
            .is_some_and(|timer| timer.prev != NIL)
    }

    /// Takes one timer that is due at `now`. Time that went backwards changes nothing.
    pub fn pop(&mut self, now: Moment) -> Option<u32> {
        let target = now.0 >> TICK_SHIFT;
        loop {
            let due = self.heads[usize::from(DUE)];
            if due != NIL {
                self.clear(due - 1);
                return Some(due - 1);
            }
            match self.earliest() {
                Some((place, start)) if start <= target => {
                    self.tick = start;
                    self.cascade(place);
                }
                _ => {
                    self.tick = self.tick.max(target);
                    return None;
                }
            }
        }
    }

    /// When [`Wheel::pop`] is to be asked next; `None` while no timer is set.
    pub fn next_deadline(&self) -> Option<Moment> {
        if self.heads[usize::from(DUE)] != NIL {
            return Some(Moment(self.tick << TICK_SHIFT));
        }
        let (_, start) = self.earliest()?;
        Some(Moment(start.saturating_mul(1 << TICK_SHIFT)))
    }

    /// The slot that begins first, and its tick. A lower level's slots all begin before
    /// a higher level's, because a level holds what differs from now in its digit.
    fn earliest(&self) -> Option<(u16, u64)> {
        let level = self.filled.iter().position(|&filled| filled != 0)?;
        let slot = self.filled[level].trailing_zeros();
        let shift = DIGIT * level as u32;
        let above = self.tick >> (shift + DIGIT) << (shift + DIGIT);
        Some((
            (level * SLOTS) as u16 + slot as u16,
            above | u64::from(slot) << shift,
        ))
    }

    /// Hands the timers of a slot down to where they belong now that it has begun.
    fn cascade(&mut self, place: u16) {
        loop {
            let first = self.heads[usize::from(place)];
            if first == NIL {
                return;
            }
            let id = first - 1;
            self.clear(id);
            // What is set lies within `AHEAD_MAX` of now, on either side.
            let ahead = self.timers[id as usize].tick.wrapping_sub(self.tick as u32);
            let place = self.place_of(self.tick.saturating_add_signed(i64::from(ahead as i32)));
            self.link(id, place);
        }
    }

    fn place_of(&self, tick: u64) -> u16 {
        if tick <= self.tick {
            return DUE;
        }
        let level = (tick ^ self.tick).ilog2() / DIGIT;
        let slot = (tick >> (level * DIGIT)) as usize % SLOTS;
        (level as usize * SLOTS + slot) as u16
    }

    fn link(&mut self, id: u32, place: u16) {
        let head = std::mem::replace(&mut self.heads[usize::from(place)], id + 1);
        if head != NIL {
            self.timers[head as usize - 1].prev = id + 1;
        }
        let timer = &mut self.timers[id as usize];
        timer.prev = FIRST | u32::from(place);
        timer.next = head;
        if place != DUE {
            self.filled[usize::from(place) / SLOTS] |= 1 << (usize::from(place) % SLOTS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_timer_fires_within_one_tick_after_its_deadline_and_once() {
        let mut wheel = Wheel::new(4, Moment(5));
        assert!(wheel.set(2, Moment(90 * SECOND)));
        assert_eq!(wheel.pop(Moment(90 * SECOND - 1)), None);
        assert_eq!(wheel.pop(Moment(90 * SECOND) + TICK), Some(2));
        assert_eq!(wheel.pop(Moment(900 * SECOND)), None);
    }

    #[test]
    fn a_clock_that_goes_backwards_changes_nothing() {
        let mut wheel = Wheel::new(2, Moment(0));
        wheel.set(0, Moment(10 * SECOND));
        assert_eq!(wheel.pop(Moment(9 * SECOND)), None);
        assert_eq!(wheel.pop(Moment(SECOND)), None);
        let before = wheel.next_deadline();
        wheel.pop(Moment(0));
        assert_eq!(wheel.next_deadline(), before);
        assert_eq!(wheel.pop(Moment(11 * SECOND)), Some(0));
    }

    #[test]
    fn an_id_beyond_the_capacity_is_refused() {
        let mut wheel = Wheel::new(1, Moment(0));
        assert!(!wheel.set(1, Moment(1)));
        wheel.clear(1);
        assert!(!wheel.is_set(1));
        assert_eq!(wheel.next_deadline(), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Clear(u32),
        Advance(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Spans from within a tick to beyond the fourth level.
        let span = (0u32..56, any::<u64>()).prop_map(|(bits, raw)| raw & ((1 << bits) - 1));
        let step = prop_oneof![
            4 => (0u32..40, span.clone()).prop_map(|(id, span)| Step::Set(id, span)),
            1 => (0u32..40).prop_map(Step::Clear),
            3 => span.prop_map(Step::Advance),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn the_wheel_agrees_with_a_map_of_deadlines(start in 0u64..1 << 60, steps in steps()) {
            let mut now = start;
            let mut wheel = Wheel::new(40, Moment(now));
            let mut oracle: HashMap<u32, u64> = HashMap::new();
            for step in steps {
                match step {
                    Step::Set(id, span) => {
                        prop_assert!(wheel.set(id, Moment(now + span)));
                        oracle.insert(id, now + span);
                    }
                    Step::Clear(id) => {
                        wheel.clear(id);
                        oracle.remove(&id);
                    }
                    Step::Advance(span) => {
                        now += span;
                        while let Some(id) = wheel.pop(Moment(now)) {
                            let deadline = oracle.remove(&id);
                            prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                        }
                        // Whoever is left is not late by a tick, and is announced in time.
                        let tick = TICK.as_nanos() as u64;
                        for &deadline in oracle.values() {
                            prop_assert!(deadline + tick > now);
                        }
                        let announced = wheel.next_deadline();
                        prop_assert_eq!(announced.is_none(), oracle.is_empty());
                        if let (Some(announced), Some(first)) = (announced, oracle.values().min()) {
                            prop_assert!(announced.0 < first + tick);
                            prop_assert!(announced.0 > now);
                        }
                    }
                }
            }
        }
    }
}
