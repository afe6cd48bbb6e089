//! The rounds of a worker: every lane that is awake gets its turn.
//!
//! *Promises*: turns are those of [`super::schedule`]; a lane falls asleep only after all its
//! queues were found empty, its notifications asked for, and all queues looked at once more.
//! *Refuses*: to wait: the worker does, as [`Outlook`] tells it.
//! *Caller's duty*: one thread. *Standard*: none.

use std::time::Duration;

use super::clock::Time;
use super::cpu::Ledger;
use super::lane::{Bench, Lane};
use super::lanes::Lanes;
use super::pace::{Polling, Rest};
use super::schedule::Crowd;
use crate::flow::Moment;

/// What a round leaves to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outlook {
    /// Another round at once.
    Work,
    /// Nothing for so long, unless a sleeping lane is woken.
    Nap(Duration),
    /// Nothing until a lane is woken.
    Sleep,
}

/// A worker's lanes and what it lends them.
pub(super) struct Rounds<T> {
    pub(super) lanes: Lanes,
    pub(super) time: T,
    bench: Bench,
    polling: Polling,
    /// When the last round ended.
    pub(super) now: Moment,
}

impl<T: Time> Rounds<T> {
    /// Lanes that have not run yet.
    pub(super) fn new(lanes: Lanes, bench: Bench, time: T, polling: Polling) -> Self {
        let now = time.now();
        Self {
            lanes,
            time,
            bench,
            polling,
            now,
        }
    }

    /// Gives every lane that is awake, or has something due, its turn.
    pub(super) fn round(&mut self) -> Outlook {
        let mut crowd = Crowd::default();
        for lane in self.lanes.iter() {
            lane.account.join(&mut crowd);
        }
        let mut outlook = Outlook::Sleep;
        self.now = self.time.now();
        for lane in self.lanes.iter_mut() {
            let due = lane.next_deadline().is_some_and(|due| due <= self.now);
            if !lane.awake && !due {
                continue;
            }
            let began = self.now;
            let turn = lane.turn(&mut self.bench, began, crowd, &self.time);
            self.now = turn.end;
            if turn.frames > 0 {
                let took = turn.end.since(began).as_nanos() as u64;
                lane.pipe.counters.busy_ns.add(took);
            }
            lane.pace.looked(began, turn.end, turn.frames);
            let own = match (turn.drained, lane.awake) {
                (false, _) => Outlook::Work,
                (true, false) => Outlook::Sleep,
                (true, true) => {
                    let own = rest(lane, self.polling, turn.end);
                    self.now = self.time.now();
                    own
                }
            };
            lane.claim.turn(self.now.since(began));
            outlook = outlook.and(own);
        }
        outlook
    }

    /// Wakes the lane with that number, or all if there is none with it.
    pub(super) fn wake(&mut self, number: u64) {
        let now = self.time.now();
        let own = usize::try_from(number).ok();
        match own.and_then(|place| self.lanes.at(place)) {
            Some(lane) => lane.rouse(now),
            // The bell says nothing about which lane: a ring may have started anywhere.
            None => self.lanes.iter_mut().for_each(|lane| lane.rouse(now)),
        }
    }

    /// A nap ended.
    pub(super) fn nap_ended(&mut self) {
        let now = self.time.now();
        for lane in self.lanes.iter_mut().filter(|lane| lane.awake) {
            lane.pace.woke(now);
            lane.claim.wake_up();
        }
    }

    /// Whether a lane is asleep, waiting for its notification.
    pub(super) fn any_asleep(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.awake)
    }

    /// Whether CPU time is still to be dealt out.
    pub(super) fn any_claim(&self) -> bool {
        self.lanes.iter().any(|lane| lane.claim.is_open())
    }

    /// Deals out the CPU time used up to `cpu`.
    pub(super) fn settle(&mut self, ledger: &mut Ledger, cpu: Duration) {
        let claims = self.lanes.iter().map(|lane| lane.claim.nanos()).sum();
        let settlement = ledger.settle(self.now, cpu, claims);
        for lane in self.lanes.iter_mut() {
            let paid = settlement.pay(&mut lane.claim);
            lane.pipe.counters.cpu_ns.add(paid);
        }
    }
}

/// What a lane does that has found all its queues empty.
fn rest(lane: &mut Lane, polling: Polling, now: Moment) -> Outlook {
    match lane.pace.rest(polling, now) {
        Rest::Look => Outlook::Work,
        Rest::Nap(span) => Outlook::Nap(span),
        Rest::Sleep if lane.arm() => {
            lane.awake = false;
            lane.account.rest();
            Outlook::Sleep
        }
        Rest::Sleep => Outlook::Work,
    }
}

impl Outlook {
    /// The more urgent of two.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Work, _) | (_, Self::Work) => Self::Work,
            (Self::Nap(one), Self::Nap(two)) => Self::Nap(one.min(two)),
            (Self::Nap(one), Self::Sleep) | (Self::Sleep, Self::Nap(one)) => Self::Nap(one),
            (Self::Sleep, Self::Sleep) => Self::Sleep,
        }
    }
}
