//! Connections that are not offloaded, but may be: how old they are and how fast.
//!
//! *Promises*: a connection is due when it is old enough and was fast enough between two looks at
//! it; some tens of bytes for each, and no more of them than the given number.
//! *Refuses*: what does not fit: it is counted.
//! *Caller's duty*: marks what each look at the table sees, and sweeps after a whole one.
//! *Standard*: none.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use super::identity::Id;
use super::moment::Moment;
use super::reason::Reason;
use crate::agent::connection::{Connection, Counters};

/// Pauses after a refusal or failure: the first, doubled with each, and the longest.
const PAUSE_FIRST: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Not to be asked for again so soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pause {
    /// Until then …
    pub until: Moment,
    /// … because of this …
    pub reason: Reason,
    /// … or until interfaces or routes are others than these, if that may help.
    pub world: Option<u32>,
}

/// What is remembered of a connection that was asked for, or could not be.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct History {
    /// What went around the guest in sessions that have ended: original, reply.
    pub past: [Counters; 2],
    /// How often a direction was handed over …
    pub hand_overs: u32,
    /// … of these, at a bound.
    pub forced: u32,
    /// How often asking came to nothing, since it last came to something.
    pub failures: u8,
    /// Which of its ways is to be tried next.
    pub way: u8,
    /// Not now.
    pub pause: Option<Pause>,
}

impl History {
    /// Puts asking off; longer each time.
    pub fn put_off(&mut self, reason: Reason, world: Option<u32>, now: Moment) {
        let pause = PAUSE_FIRST * (1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.pause = Some(Pause {
            until: now + pause.min(PAUSE_MAX),
            reason,
            world,
        });
    }

    /// Why it is put off, now and in this world, if it is.
    fn put_off_by(&self, now: Moment, world: u32) -> Option<Reason> {
        let holds =
            |pause: &Pause| now < pause.until && pause.world.is_none_or(|then| then == world);
        self.pause.filter(holds).map(|pause| pause.reason)
    }
}

/// What is known of a connection beyond what conntrack shows now.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Known {
    /// The longest timeout that was seen.
    pub full: Duration,
    /// The longest timeout that it was given here: what is no longer says nothing of `full`.
    pub given: Duration,
    /// News of it have come, so its end will be told, too. With `nf_conntrack_events` at 2 that
    /// is not so for connections that began while nobody listened.
    pub is_heard: bool,
    /// What is remembered.
    pub history: History,
}

/// A connection that is watched.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Watch {
    since: Moment,
    looked: Moment,
    /// Packets of both directions at that look, if the kernel counts.
    packets: Option<u64>,
    /// The longest timeout that was seen, …
    full: Duration,
    /// … of those longer than this, which it was given here.
    given: Duration,
    /// The look at the table that saw it last.
    scan: u32,
    /// News of it have come, so its end will be told, too.
    is_heard: bool,
    history: Option<Box<History>>,
}

/// What makes a connection worth asking for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Thresholds {
    /// How old.
    pub age_min: Duration,
    /// Packets a second.
    pub rate_min: u32,
}

/// What to do about a connection that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// Nothing, yet.
    Wait {
        /// It moved since the look before.
        has_moved: bool,
        /// Why it is not asked for, although it is worth it.
        put_off: Option<Reason>,
    },
    /// Ask for it; it is not watched any more.
    Due(Known),
}

/// Two looks at a connection that are closer together tell nothing of its rate.
const APART_MIN: Duration = Duration::from_millis(500);

/// All that are watched.
#[derive(Debug)]
pub struct Watches {
    by_id: HashMap<Id, Watch>,
    max: usize,
    unwatched: u64,
}

impl Watches {
    /// Nothing is watched; at most `max` will be.
    pub fn new(max: usize) -> Self {
        Self {
            by_id: HashMap::new(),
            max,
            unwatched: 0,
        }
    }

    /// How many are watched.
    pub fn count(&self) -> usize {
        self.by_id.len()
    }

    /// How many looks were at connections that found no place.
    pub const fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// Whether it is watched.
    pub fn has(&self, id: Id) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Takes note of a connection that was not there before, or became eligible only now, so that
    /// it had no packets worth counting.
    pub fn begin(&mut self, id: Id, connection: &Connection, scan: u32, now: Moment) {
        let Some(watch) = self.place(id, now) else {
            return;
        };
        watch.is_heard = true;
        if watch.packets.is_none() {
            watch.packets = connection.counters.is_some().then(|| packets(connection));
            watch.packets.get_or_insert(0);
            watch.scan = scan;
            watch.saw(connection);
        }
    }

    /// Takes note of a connection of which nobody knows how many packets it has had.
    pub fn notice(&mut self, id: Id, scan: u32, now: Moment) {
        if let Some(watch) = self.place(id, now) {
            watch.is_heard = true;
            watch.scan = scan;
        }
    }

    /// Looks at a connection, the `scan`th time that the table is looked at.
    pub fn look(
        &mut self,
        id: Id,
        connection: &Connection,
        scan: u32,
        least: Thresholds,
        world: u32,
        now: Moment,
    ) -> Look {
        let Some(watch) = self.place(id, now) else {
            return Look::Wait {
                has_moved: false,
                put_off: None,
            };
        };
        watch.scan = scan;
        watch.saw(connection);
        let span = now.since(watch.looked);
        let is_first = watch.packets.is_none();
        let mut has_moved = false;
        let is_fast = match (connection.counters, watch.packets) {
            (None, _) => true,
            (Some(_), None) => {
                watch.packets = Some(packets(connection));
                watch.looked = now;
                least.rate_min == 0
            }
            (Some(_), Some(_)) if span < APART_MIN => false,
            (Some(_), Some(before)) => {
                let count = packets(connection);
                let moved = count.saturating_sub(before);
                watch.packets = Some(count);
                watch.looked = now;
                has_moved = moved > 0;
                u128::from(moved) * 1000 >= u128::from(least.rate_min) * span.as_millis()
            }
        };
        let is_old = now.since(watch.since) >= least.age_min;
        let put_off = (watch.history.as_ref()).and_then(|history| history.put_off_by(now, world));
        if !(is_fast && is_old) || put_off.is_some() {
            return Look::Wait {
                has_moved: has_moved || is_first,
                put_off,
            };
        }
        let (full, given, is_heard) = (watch.full, watch.given, watch.is_heard);
        let watch = self.by_id.remove(&id).and_then(|watch| watch.history);
        Look::Due(Known {
            full,
            given,
            is_heard,
            history: watch.map_or_else(History::default, |of| *of),
        })
    }

    /// Takes a connection back that was asked for.
    pub fn put_back(
        &mut self,
        id: Id,
        connection: &Connection,
        known: Known,
        scan: u32,
        now: Moment,
    ) {
        if let Some(watch) = self.place(id, now) {
            watch.packets = connection.counters.map(|_| packets(connection));
            watch.full = known.full;
            watch.given = known.given;
            watch.scan = scan;
            watch.is_heard = known.is_heard;
            let history = known.history;
            watch.history = (history != History::default()).then(|| Box::new(history));
        }
    }

    /// It is gone, or not eligible any more.
    pub fn forget(&mut self, id: Id) {
        self.by_id.remove(&id);
    }

    /// Forgets those that the `scan`th look at the table did not see.
    pub fn sweep(&mut self, scan: u32) {
        self.by_id.retain(|_, watch| watch.scan == scan);
        // A flood that has gone leaves no memory behind.
        if self.by_id.capacity() > 1024 && self.by_id.len() < self.by_id.capacity() / 4 {
            self.by_id.shrink_to_fit();
        }
    }

    fn place(&mut self, id: Id, now: Moment) -> Option<&mut Watch> {
        let is_full = self.by_id.len() >= self.max;
        match self.by_id.entry(id) {
            Entry::Occupied(place) => Some(place.into_mut()),
            Entry::Vacant(_) if is_full => {
                self.unwatched += 1;
                None
            }
            Entry::Vacant(place) => Some(place.insert(Watch {
                since: now,
                looked: now,
                packets: None,
                full: Duration::ZERO,
                given: Duration::ZERO,
                scan: 0,
                is_heard: false,
                history: None,
            })),
        }
    }
}

impl Watch {
    fn saw(&mut self, connection: &Connection) {
        let timeout = connection.timeout.unwrap_or_default();
        if timeout > self.given {
            self.full = self.full.max(timeout);
        }
    }
}

/// Packets of both directions.
fn packets(connection: &Connection) -> u64 {
    let counters = connection.counters.unwrap_or_default();
    counters[0].packets.saturating_add(counters[1].packets)
}

#[cfg(test)]
mod tests {
    use super::super::testing::tcp;
    use super::*;

    const LEAST: Thresholds = Thresholds {
        age_min: Duration::from_secs(1),
        rate_min: 20,
    };

    fn with(packets: u64) -> Connection {
        let mut connection = tcp(1);
        let counters = Counters {
            packets,
            octets: packets * 100,
        };
        connection.counters = Some([counters, Counters::default()]);
        connection
    }

    fn look(watches: &mut Watches, connection: &Connection, millis: u64) -> bool {
        let now = Moment(millis);
        let look = watches.look(Id::of(connection), connection, 1, LEAST, 0, now);
        matches!(look, Look::Due(_))
    }

    #[test]
    fn a_connection_is_due_when_it_was_fast_between_two_looks_and_is_old_enough() {
        let mut watches = Watches::new(9);
        assert!(
            !look(&mut watches, &with(1_000_000), 0),
            "what was before counts for nothing"
        );
        assert!(!look(&mut watches, &with(1_000_019), 1000));
        assert!(look(&mut watches, &with(1_000_039), 2000));
        assert!(!watches.has(Id::of(&with(0))));
    }

    #[test]
    fn a_fast_one_waits_for_its_age() {
        let mut watches = Watches::new(9);
        watches.begin(Id::of(&with(0)), &with(0), 1, Moment(0));
        assert!(!look(&mut watches, &with(1000), 900));
        assert!(look(&mut watches, &with(2000), 1900));
    }

    #[test]
    fn a_timeout_that_was_given_here_is_not_taken_for_its_own() {
        let mut watches = Watches::new(9);
        let known = Known {
            full: Duration::from_secs(5),
            given: Duration::from_secs(20),
            ..Known::default()
        };
        let mut seen = with(0);
        let mut full = |seconds, millis| {
            let (id, known) = (Id::of(&seen), known.clone());
            watches.put_back(id, &with(0), known, 1, Moment(0));
            seen.timeout = Some(Duration::from_secs(seconds));
            seen.counters = None;
            match watches.look(id, &seen, 1, LEAST, 0, Moment(millis)) {
                Look::Due(known) => known.full.as_secs(),
                Look::Wait { .. } => panic!("it is old enough"),
            }
        };
        assert_eq!([full(20, 2000), full(21, 4000)], [5, 21]);
    }

    #[test]
    fn two_looks_at_once_are_one() {
        let mut watches = Watches::new(9);
        look(&mut watches, &with(0), 0);
        look(&mut watches, &with(10), 2000);
        assert!(
            !look(&mut watches, &with(11), 2001),
            "11 in 1 ms is no rate"
        );
    }

    #[test]
    fn without_counters_age_decides() {
        let mut watches = Watches::new(9);
        let mut silent = with(0);
        silent.counters = None;
        assert!(!look(&mut watches, &silent, 0));
        assert!(look(&mut watches, &silent, 1000));
    }

    #[test]
    fn who_is_put_off_waits_longer_each_time_but_not_in_another_world() {
        let mut history = History::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            history.put_off(Reason::Refused, None, Moment(0));
            pauses.push(history.pause.unwrap().until.0 / 1000);
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);

        let mut here = History::default();
        here.put_off(Reason::Down, Some(7), Moment(0));
        assert_eq!(here.put_off_by(Moment(29_999), 7), Some(Reason::Down));
        assert_eq!(here.put_off_by(Moment(30_000), 7), None);
        assert_eq!(here.put_off_by(Moment(1), 8), None);
    }

    #[test]
    fn no_more_are_watched_than_allowed_and_sweeping_makes_room() {
        let mut watches = Watches::new(2);
        for number in 0..5 {
            let connection = tcp(number);
            watches.look(Id::of(&connection), &connection, 1, LEAST, 0, Moment(0));
        }
        assert_eq!((watches.count(), watches.unwatched()), (2, 3));
        let seen = tcp(1);
        watches.look(Id::of(&seen), &seen, 2, LEAST, 0, Moment(1));
        watches.sweep(2);
        assert_eq!(watches.count(), 1);
    }
}
