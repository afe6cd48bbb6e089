//! What an element's sessions tell those who listen.
//!
//! *Promises*: hand-overs, ends, activity and a table that gets full are told to every listener,
//! in batches of at most [`BATCH`]; where there is none, nothing is looked for. Activity is looked
//! for by reading [`BATCH`] places at a time, spread evenly over [`ROUND`]: the packet path has no
//! part in it.
//! *Refuses*: nothing; see [`super::told`] for listeners who do not keep up.
//! *Caller's duty*: [`Feed::pass`] after each change, and by [`Feed::next_deadline`].
//! *Standard*: none.

use std::sync::Arc;
use std::time::Duration;

use super::told::{Ended, Pressure, Teller, Told};
use crate::flow::{ClosedSession, Moment, Sessions};

/// Entries told at a time, and places looked at.
pub const BATCH: usize = 256;
/// How often each session is looked at.
pub const ROUND: Duration = Duration::from_secs(10);

/// The table is nearly full from nine tenths on, and not any more below eight.
const HIGH: u64 = 9;
const NORMAL: u64 = 8;

/// See the module.
#[derive(Default)]
pub struct Feed {
    listeners: Vec<Teller>,
    /// The table was last told to be nearly full.
    is_pressed: bool,
    sweep: Sweep,
    /// Reports that the book had lost when it was last looked at.
    lost: u64,
}

impl Feed {
    /// Tells one more listener, from now on.
    pub fn add(&mut self, mut listener: Teller, sessions: &mut Sessions, now: Moment) {
        if self.listeners.is_empty() {
            sessions.listen(true);
            self.is_pressed = false;
            self.sweep = Sweep::starting(now);
            self.lost = lost(sessions);
        }
        if self.is_pressed {
            listener.tell(now, &Arc::new(Told::Pressure(pressure(sessions, true))));
        }
        self.listeners.push(listener);
    }

    /// Tells what has happened since the last time; `ended` gets every session that has ended,
    /// whether or not somebody listens.
    pub fn pass(
        &mut self,
        sessions: &mut Sessions,
        now: Moment,
        mut ended: impl FnMut(&ClosedSession),
    ) {
        self.prune(sessions);
        if self.listeners.is_empty() {
            while let Some(closed) = sessions.take_closed() {
                ended(&closed);
            }
            return;
        }
        let mut moved = Vec::new();
        while let Some(one) = sessions.take_handed_over() {
            moved.push(one);
            if moved.len() == BATCH {
                self.tell(now, Told::HandedOver(std::mem::take(&mut moved)));
            }
        }
        if !moved.is_empty() {
            self.tell(now, Told::HandedOver(moved));
        }
        let mut gone = Vec::new();
        while let Some(closed) = sessions.take_closed() {
            ended(&closed);
            gone.push(Ended::from(closed));
            if gone.len() == BATCH {
                self.tell(now, Told::Ended(std::mem::take(&mut gone)));
            }
        }
        if !gone.is_empty() {
            self.tell(now, Told::Ended(gone));
        }
        let lost = lost(sessions);
        if lost != self.lost {
            let entries = lost - std::mem::replace(&mut self.lost, lost);
            self.listeners.iter().for_each(|one| one.lose(entries));
        }
        self.press(sessions, now);
        if let Some((places, since)) = self.sweep.take(sessions.places(), now) {
            let moved: Vec<_> = sessions.moved(places, since, now).collect();
            if !moved.is_empty() {
                self.tell(now, Told::Activity(moved));
            }
        }
    }

    /// Tells something that is not about sessions.
    pub fn tell(&mut self, now: Moment, told: Told) {
        let told = Arc::new(told);
        for listener in &mut self.listeners {
            listener.tell(now, &told);
        }
    }

    /// When [`Feed::pass`] is to be called at the latest.
    pub fn next_deadline(&self) -> Option<Moment> {
        (!self.listeners.is_empty()).then_some(self.sweep.next)
    }

    fn prune(&mut self, sessions: &mut Sessions) {
        if self.listeners.is_empty() {
            return;
        }
        self.listeners.retain(|listener| !listener.is_over());
        if self.listeners.is_empty() {
            sessions.listen(false);
        }
    }

    fn press(&mut self, sessions: &Sessions, now: Moment) {
        let tenths = 10 * sessions.len() as u64;
        let room = sessions.capacity() as u64;
        let is_high = match self.is_pressed {
            false => tenths >= HIGH * room,
            true => tenths >= NORMAL * room,
        };
        if is_high != self.is_pressed {
            self.is_pressed = is_high;
            self.tell(now, Told::Pressure(pressure(sessions, is_high)));
        }
    }
}

fn pressure(sessions: &Sessions, is_high: bool) -> Pressure {
    Pressure {
        is_high,
        sessions: sessions.len() as u32,
        sessions_max: sessions.capacity() as u32,
    }
}

fn lost(sessions: &Sessions) -> u64 {
    let stats = sessions.stats();
    stats.closed_lost + stats.handed_over_lost
}

/// Which places are looked at when.
#[derive(Debug, Default)]
struct Sweep {
    began: Moment,
    /// When the next places are due.
    next: Moment,
    /// Steps taken of this round.
    step: u32,
    /// Steps of this round.
    steps: u32,
    /// When each step's places were looked at last.
    looked: Vec<Moment>,
}

impl Sweep {
    /// Nothing that was before `now` is told.
    fn starting(now: Moment) -> Self {
        Self {
            began: now,
            next: now + ROUND,
            ..Self::default()
        }
    }

    /// The places that are due, and since when they were not looked at.
    fn take(&mut self, places: u32, now: Moment) -> Option<(std::ops::Range<u32>, Moment)> {
        if now < self.next {
            return None;
        }
        if self.step == self.steps {
            // A round begins. Places that were not looked at in the last one came in since.
            let since = std::mem::replace(&mut self.began, now);
            self.step = 0;
            self.steps = places.div_ceil(BATCH as u32);
            let known = self.looked.len().max(self.steps as usize);
            self.looked.resize(known, since);
        }
        if self.steps == 0 {
            self.next = now + ROUND;
            return None;
        }
        let (step, from) = (self.step as usize, self.step * BATCH as u32);
        self.step += 1;
        let span = ROUND * self.step / self.steps;
        self.next = self.began + span;
        let since = std::mem::replace(&mut self.looked[step], now);
        Some((from..from + BATCH as u32, since))
    }
}

#[cfg(test)]
mod tests;
