//! The flows a [`HandOver`](super::HandOver) knows something about: a fixed number of
//! records, found by flow, in two queues.
//!
//! *Promises*: no memory is taken after [`Records::new`]; every call takes constant time.
//! *Refuses*: nothing: a new record takes the place of the one longest watched. What is
//! lost with that is only knowledge, and a flow without it waits for a later marker.
//! *Caller's duty*: fewer flows park at a time than there are records.
//! *Standard*: none.

use std::collections::HashMap;
use std::time::Duration;

use super::seen::Seen;
use crate::flow::{FlowId, Moment};
use crate::packet::Marker;

const NIL: u32 = u32::MAX;

/// What is known about a flow that waits or drains.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub flow: FlowId,
    /// The flow's round ([`Stand::round`](crate::flow::Stand)) that this is about.
    pub round: u8,
    pub seen: Seen,
    /// The packet that went to the guest last.
    pub last: Option<Marker>,
    pub last_at: Moment,
    /// Whether `last` can tell that the guest is empty (see [`Seen::enters`]).
    pub distinct: bool,
    /// The packet parked last, and whether it is distinct.
    pub tail: Option<(Marker, bool)>,
    pub parked_frames: u32,
    pub parked_bytes: usize,
    /// Packets that the guest has got since this began, and was not seen to send.
    pub inside: u32,
    /// When the oldest parked frame was parked.
    pub parked_since: Moment,
    /// No drain begins before this.
    pub retry_at: Moment,
    pub backoff: Duration,
    /// A packet whose way through the guest is being timed.
    pub probe: Option<(Marker, Moment)>,
    prev: u32,
    next: u32,
}

/// The queues a record may be in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Queue {
    /// Has parked frames; oldest first.
    Parked = 0,
    /// Has none; least recently begun first.
    Watched = 1,
}

/// All records of one hand-over machine.
#[derive(Debug)]
pub(super) struct Records {
    records: Vec<Record>,
    free: Vec<u32>,
    by_flow: HashMap<FlowId, u32>,
    heads: [u32; 2],
    tails: [u32; 2],
}

impl Records {
    /// Room for `capacity` records.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            records: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            // Twice the room: at half load a hash map clears its tombstones in place.
            by_flow: HashMap::with_capacity(2 * capacity),
            heads: [NIL; 2],
            tails: [NIL; 2],
        }
    }

    pub(super) fn find(&self, flow: FlowId) -> Option<u32> {
        self.by_flow.get(&flow).copied()
    }

    pub(super) fn get(&mut self, place: u32) -> &mut Record {
        &mut self.records[place as usize]
    }

    pub(super) fn peek(&self, place: u32) -> &Record {
        &self.records[place as usize]
    }

    /// The record of `flow`, begun now if there is none.
    pub(super) fn obtain(&mut self, flow: FlowId) -> u32 {
        if let Some(place) = self.find(flow) {
            return place;
        }
        let fresh = Record {
            flow,
            round: 0,
            seen: Seen::default(),
            last: None,
            last_at: Moment(0),
            distinct: false,
            tail: None,
            parked_frames: 0,
            parked_bytes: 0,
            inside: 0,
            parked_since: Moment(0),
            retry_at: Moment(0),
            backoff: Duration::ZERO,
            probe: None,
            prev: NIL,
            next: NIL,
        };
        if self.free.is_empty() && self.records.len() == self.records.capacity() {
            let oldest = self.heads[Queue::Watched as usize];
            if oldest != NIL {
                self.forget(oldest);
            }
        }
        let place = match self.free.pop() {
            Some(place) => {
                self.records[place as usize] = fresh;
                place
            }
            None => {
                self.records.push(fresh);
                (self.records.len() - 1) as u32
            }
        };
        self.by_flow.insert(flow, place);
        self.link(place, Queue::Watched);
        place
    }

    /// Drops a record.
    pub(super) fn forget(&mut self, place: u32) {
        self.unlink(place);
        self.by_flow.remove(&self.records[place as usize].flow);
        self.free.push(place);
    }

    /// Counts a frame as parked.
    pub(super) fn park(&mut self, place: u32, bytes: usize, now: Moment) {
        if self.records[place as usize].parked_frames == 0 {
            self.unlink(place);
            self.records[place as usize].parked_since = now;
            self.records[place as usize].parked_frames = 1;
            self.link(place, Queue::Parked);
        } else {
            self.records[place as usize].parked_frames += 1;
        }
        self.records[place as usize].parked_bytes += bytes;
    }

    /// Counts all its frames as released; how many frames and bytes.
    pub(super) fn release(&mut self, place: u32) -> (u32, usize) {
        let record = self.records[place as usize];
        if record.parked_frames > 0 {
            self.unlink(place);
            let record = self.get(place);
            record.parked_frames = 0;
            record.parked_bytes = 0;
            self.link(place, Queue::Watched);
        }
        (record.parked_frames, record.parked_bytes)
    }

    /// The record whose parked frames are oldest.
    pub(super) fn oldest_parked(&self) -> Option<u32> {
        some(self.heads[Queue::Parked as usize])
    }

    /// The parked record after `place`.
    pub(super) fn next_parked(&self, place: u32) -> Option<u32> {
        some(self.records[place as usize].next)
    }

    /// The record longest watched, which then counts as begun now.
    pub(super) fn rotate_watched(&mut self) -> Option<u32> {
        let place = some(self.heads[Queue::Watched as usize])?;
        self.unlink(place);
        self.link(place, Queue::Watched);
        Some(place)
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.by_flow.len()
    }

    fn queue_of(&self, place: u32) -> usize {
        if self.records[place as usize].parked_frames > 0 {
            Queue::Parked as usize
        } else {
            Queue::Watched as usize
        }
    }

    fn unlink(&mut self, place: u32) {
        let queue = self.queue_of(place);
        let Record { prev, next, .. } = self.records[place as usize];
        match some(prev) {
            Some(prev) => self.records[prev as usize].next = next,
            None => self.heads[queue] = next,
        }
        match some(next) {
            Some(next) => self.records[next as usize].prev = prev,
            None => self.tails[queue] = prev,
        }
    }

    fn link(&mut self, place: u32, queue: Queue) {
        let queue = queue as usize;
        let tail = std::mem::replace(&mut self.tails[queue], place);
        let record = &mut self.records[place as usize];
        record.prev = tail;
        record.next = NIL;
        match some(tail) {
            Some(tail) => self.records[tail as usize].next = place,
            None => self.heads[queue] = place,
        }
    }
}

fn some(place: u32) -> Option<u32> {
    (place != NIL).then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(index: u32) -> FlowId {
        FlowId {
            index,
            generation: 1,
        }
    }

    #[test]
    fn a_full_book_forgets_what_it_watched_longest_and_never_what_is_parked() {
        let mut records = Records::new(3);
        let parked = records.obtain(flow(0));
        records.park(parked, 100, Moment(1));
        for index in 1..1000 {
            records.obtain(flow(index));
            assert!(records.len() <= 3);
            assert_eq!(records.find(flow(0)), Some(parked));
        }
        assert!(records.find(flow(999)).is_some() && records.find(flow(998)).is_some());
        assert!(records.find(flow(997)).is_none());
        assert_eq!(records.release(parked), (1, 100));
    }

    #[test]
    fn parked_records_come_oldest_first_whichever_leaves_between() {
        let mut records = Records::new(8);
        for index in 0..4 {
            let place = records.obtain(flow(index));
            records.park(place, 10, Moment(u64::from(index)));
            records.park(place, 10, Moment(99));
        }
        let second = records.find(flow(1)).unwrap();
        assert_eq!(records.release(second), (2, 20));
        let mut order = Vec::new();
        let mut at = records.oldest_parked();
        while let Some(place) = at {
            order.push(records.get(place).flow.index);
            at = records.next_parked(place);
        }
        assert_eq!(order, [0, 2, 3]);
    }
}
