//! What is told of an element, and a bounded way to one who listens.
//!
//! *Promises*: telling never waits and what waits to be heard is bounded ([`ENTRIES_MAX`],
//! [`MESSAGES_MAX`]); what does not fit in is counted, and the count is heard where it is
//! missing: after what was told before, before what is told later. A slow listener costs
//! nobody else anything.
//! *Refuses*: nothing.
//! *Caller's duty*: [`Listener::hear`] until `Nothing` each time that `wake` was called.
//! *Standard*: none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::flow::queue::{Receiver, Sender, channel};
use crate::flow::shield::Hits;
use crate::flow::{CloseCode, ClosedSession, HandedOver, Moment, Moved, SessionId, Totals};

/// Entries that may wait to be heard.
pub const ENTRIES_MAX: usize = 65_536;
/// Messages that may.
pub const MESSAGES_MAX: usize = 4096;

/// Something that happened to an element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// Directions of sessions moved to the fast path.
    HandedOver(Vec<HandedOver>),
    /// Sessions ended.
    Ended(Vec<Ended>),
    /// Sessions forwarded packets.
    Activity(Vec<Moved>),
    /// Shields matched packets.
    Hit(Vec<Hits>),
    /// The table is nearly full, or not any more.
    Pressure(Pressure),
    /// The element's agent is there, by the connection of that number.
    Connected(u64),
    /// It is not there any more.
    Disconnected(u64),
}

/// A session that has ended: what is told of it, in a third of a [`ClosedSession`]'s memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Which.
    pub session: SessionId,
    /// Its client key.
    pub key: Box<str>,
    /// Why.
    pub code: CloseCode,
    /// From the request to the end.
    pub age: Duration,
    /// Of original and reply, as far as they were asked for.
    pub totals: [Option<Totals>; 2],
}

impl From<ClosedSession> for Ended {
    fn from(closed: ClosedSession) -> Self {
        let [original, reply] = closed.request.directions().map(|one| one.is_some());
        Self {
            session: closed.session,
            code: closed.code,
            age: closed.age,
            totals: [
                original.then_some(closed.totals[0]),
                reply.then_some(closed.totals[1]),
            ],
            key: closed.request.key.into(),
        }
    }
}

/// How full a table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pressure {
    /// Whether it is nearly full.
    pub is_high: bool,
    /// Sessions in it.
    pub sessions: u32,
    /// Room.
    pub sessions_max: u32,
}

impl Told {
    /// How many things that are.
    pub fn entries(&self) -> usize {
        match self {
            Self::HandedOver(all) => all.len(),
            Self::Ended(all) => all.len(),
            Self::Activity(all) => all.len(),
            Self::Hit(all) => all.len(),
            Self::Pressure(_) | Self::Connected(_) | Self::Disconnected(_) => 1,
        }
    }
}

struct Shared {
    /// Entries that wait.
    entries: AtomicUsize,
    /// Entries that did not fit in, since the listener was last told so.
    lost: AtomicU64,
    /// One side has ended.
    ended: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// The end that tells.
pub struct Teller {
    shared: Arc<Shared>,
    queue: Sender<(Moment, Arc<Told>)>,
}

/// The end that hears.
pub struct Listener {
    shared: Arc<Shared>,
    queue: Receiver<(Moment, Arc<Told>)>,
}

/// What a listener hears.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// This happened then.
    Told(Moment, Arc<Told>),
    /// So many entries are missing here.
    Lost(u64),
    /// Nothing yet.
    Nothing,
    /// There will be no more.
    End,
}

/// A way to one listener; `wake` is called whenever there may be something to hear.
pub fn listening(wake: impl Fn() + Send + Sync + 'static) -> (Teller, Listener) {
    let (sender, receiver) = channel(MESSAGES_MAX);
    let shared = Arc::new(Shared {
        entries: AtomicUsize::new(0),
        lost: AtomicU64::new(0),
        ended: AtomicBool::new(false),
        wake: Box::new(wake),
    });
    let teller = Teller {
        shared: Arc::clone(&shared),
        queue: sender,
    };
    let listener = Listener {
        shared,
        queue: receiver,
    };
    (teller, listener)
}

impl Teller {
    /// Whether nobody listens any more.
    pub fn is_over(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    /// Tells something.
    pub fn tell(&mut self, now: Moment, told: &Arc<Told>) {
        let entries = told.entries();
        // Once something is lost, all is until the listener knows: so it knows where.
        let fits = self.shared.lost.load(Ordering::Acquire) == 0
            && self.shared.entries.load(Ordering::Relaxed) + entries <= ENTRIES_MAX;
        if fits {
            self.shared.entries.fetch_add(entries, Ordering::Relaxed);
            if self.queue.try_send((now, Arc::clone(told))).is_ok() {
                (self.shared.wake)();
                return;
            }
            self.shared.entries.fetch_sub(entries, Ordering::Relaxed);
        }
        self.lose(entries as u64);
    }

    /// Tells that something cannot be told.
    pub fn lose(&self, entries: u64) {
        self.shared.lost.fetch_add(entries, Ordering::AcqRel);
        (self.shared.wake)();
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        (self.shared.wake)();
    }
}

impl Listener {
    /// What is heard next.
    pub fn hear(&mut self) -> Heard {
        // Before the queue: what was told before the end is in it then.
        let is_over = self.shared.ended.load(Ordering::Acquire);
        if let Some((then, told)) = self.queue.try_recv() {
            self.shared
                .entries
                .fetch_sub(told.entries(), Ordering::Relaxed);
            return Heard::Told(then, told);
        }
        match self.shared.lost.swap(0, Ordering::AcqRel) {
            0 if is_over => Heard::End,
            0 => Heard::Nothing,
            lost => Heard::Lost(lost),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn number(number: u64) -> Arc<Told> {
        Arc::new(Told::Connected(number))
    }

    fn many(count: usize) -> Arc<Told> {
        let one = Moved {
            session: SessionId(1),
            key: String::new(),
            idle: Duration::ZERO,
            totals: [None, None],
        };
        Arc::new(Told::Activity(vec![one; count]))
    }

    #[test]
    fn what_does_not_fit_in_is_counted_where_it_is_missing_and_then_it_goes_on() {
        let (mut teller, mut listener) = listening(|| {});
        teller.tell(Moment(1), &many(ENTRIES_MAX - 1));
        teller.tell(Moment(2), &many(5));
        // It would fit in, but would be heard before the gap.
        teller.tell(Moment(3), &number(7));
        assert!(matches!(listener.hear(), Heard::Told(Moment(1), _)));
        assert_eq!(listener.hear(), Heard::Lost(6));
        assert_eq!(listener.hear(), Heard::Nothing);
        teller.tell(Moment(4), &number(8));
        assert_eq!(listener.hear(), Heard::Told(Moment(4), number(8)));
        drop(teller);
        assert_eq!(listener.hear(), Heard::End);
    }

    #[test]
    fn messages_are_bounded_as_entries_are() {
        let (mut teller, mut listener) = listening(|| {});
        for place in 0..MESSAGES_MAX as u64 + 3 {
            teller.tell(Moment(0), &number(place));
        }
        for place in 0..MESSAGES_MAX as u64 {
            assert_eq!(listener.hear(), Heard::Told(Moment(0), number(place)));
        }
        assert_eq!(listener.hear(), Heard::Lost(3));
    }

    #[test]
    fn each_side_learns_that_the_other_has_gone() {
        let (teller, listener) = listening(|| {});
        assert!(!teller.is_over());
        drop(listener);
        assert!(teller.is_over());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// The oracle: a plain list of what is to be heard.
        #[test]
        fn nothing_is_missing_that_is_not_told_to_be(
            steps in proptest::collection::vec((0usize..30_000, any::<bool>()), 1..60),
        ) {
            let (mut teller, mut listener) = listening(|| {});
            let mut expected: VecDeque<Heard> = VecDeque::new();
            let mut waiting = 0;
            for (place, (entries, hears)) in steps.into_iter().enumerate() {
                if hears {
                    let next = expected.pop_front().unwrap_or(Heard::Nothing);
                    if let Heard::Told(_, told) = &next {
                        waiting -= told.entries();
                    }
                    prop_assert_eq!(listener.hear(), next);
                    continue;
                }
                let (then, told) = (Moment(place as u64), many(entries));
                teller.tell(then, &told);
                match expected.back_mut() {
                    Some(Heard::Lost(lost)) => *lost += entries as u64,
                    _ if waiting + entries <= ENTRIES_MAX => {
                        waiting += entries;
                        expected.push_back(Heard::Told(then, told));
                    }
                    _ => expected.push_back(Heard::Lost(entries as u64)),
                }
            }
        }
    }
}
