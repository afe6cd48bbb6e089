//! A bounded queue from one thread to another: commands to workers, events from them.
//!
//! *Promises*: items come out once each and in order; neither side waits, and nothing is
//! allocated once the queue is made.
//! *Refuses*: an item for a full queue; the sender gets it back in [`Full`].
//! *Caller's duty*: to count what was refused, and to wake the other side if it sleeps.
//! *Standard*: none.

use std::fmt;
use std::mem::MaybeUninit;

use crate::sync::{Arc, AtomicUsize, CachePadded, Ordering, UnsafeCell};

/// The queue was full; here is the item.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is full; try again after the other side has taken something")
    }
}

impl<T> std::error::Error for Full<T> {}

/// Both indices count on and wrap with `usize`; a place is an index masked.
struct Ring<T> {
    places: Box<[UnsafeCell<MaybeUninit<T>>]>,
    capacity: usize,
    /// The next item to take; the receiver's to store.
    head: CachePadded<AtomicUsize>,
    /// The next place to fill; the sender's to store.
    tail: CachePadded<AtomicUsize>,
}

// SAFETY: an item is reached by the one `Sender` until `tail` is stored past it, then by the
// one `Receiver` until `head` is; so only `T` itself must be fit to change threads.
unsafe impl<T: Send> Sync for Ring<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    fn place(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        // The number of places is a power of two.
        &self.places[index & (self.places.len() - 1)]
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let tail = self.tail.0.load(Ordering::Relaxed);
        let mut head = self.head.0.load(Ordering::Relaxed);
        while head != tail {
            // SAFETY: both ends are gone, and places from head to tail hold items that
            // `try_send` wrote and `try_recv` did not take.
            self.place(head)
                .with_mut(|place| unsafe { (*place).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// A queue for at most `capacity` items; 0 is taken as 1.
pub fn channel<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let capacity = capacity.max(1);
    let ring = Arc::new(Ring {
        places: (0..capacity.next_power_of_two())
            .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
            .collect(),
        capacity,
        head: CachePadded(AtomicUsize::new(0)),
        tail: CachePadded(AtomicUsize::new(0)),
    });
    let sender = Sender {
        ring: Arc::clone(&ring),
        tail: 0,
        head_seen: 0,
    };
    let receiver = Receiver {
        ring,
        head: 0,
        tail_seen: 0,
    };
    (sender, receiver)
}

/// The end that puts items in.
pub struct Sender<T> {
    ring: Arc<Ring<T>>,
    tail: usize,
    /// The receiver's index when last read.
    head_seen: usize,
}

impl<T: Send> Sender<T> {
    /// Puts an item in.
    ///
    /// # Errors
    /// The queue is full; the error holds the item.
    pub fn try_send(&mut self, item: T) -> Result<(), Full<T>> {
        if self.tail.wrapping_sub(self.head_seen) == self.ring.capacity {
            self.head_seen = self.ring.head.0.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head_seen) == self.ring.capacity {
                return Err(Full(item));
            }
        }
        // SAFETY: fewer than `capacity` items lie between the receiver's index and ours
        // (checked above, and the receiver only moves on), so this place is empty; the
        // receiver does not look at it before `tail` is stored.
        self.ring
            .place(self.tail)
            .with_mut(|place| unsafe { (*place).write(item) });
        self.tail = self.tail.wrapping_add(1);
        self.ring.tail.0.store(self.tail, Ordering::Release);
        Ok(())
    }
}

/// The end that takes items out.
pub struct Receiver<T> {
    ring: Arc<Ring<T>>,
    head: usize,
    /// The sender's index when last read.
    tail_seen: usize,
}

impl<T: Send> Receiver<T> {
    /// Takes the oldest item.
    pub fn try_recv(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            self.tail_seen = self.ring.tail.0.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        // SAFETY: our index is short of the sender's (checked above), so `try_send` has
        // written this place, and it will not write it again before `head` is stored.
        let item = self
            .ring
            .place(self.head)
            .with_mut(|place| unsafe { (*place).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        self.ring.head.0.store(self.head, Ordering::Release);
        Some(item)
    }
}

#[cfg(all(test, not(shunt_loom)))]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_queue_gives_the_item_back_and_goes_on() {
        let (mut sender, mut receiver) = channel(3);
        for item in 0..3 {
            sender.try_send(item).unwrap();
        }
        assert_eq!(sender.try_send(3), Err(Full(3)));
        assert_eq!(receiver.try_recv(), Some(0));
        sender.try_send(3).unwrap();
        let rest: Vec<_> = std::iter::from_fn(|| receiver.try_recv()).collect();
        assert_eq!(rest, [1, 2, 3]);
    }

    #[test]
    fn items_left_in_the_queue_are_dropped_with_it() {
        let witness = Arc::new(());
        let (mut sender, mut receiver) = channel(8);
        for _ in 0..5 {
            sender.try_send(Arc::clone(&witness)).unwrap();
        }
        drop(receiver.try_recv());
        drop(sender);
        assert_eq!(Arc::strong_count(&witness), 5);
        drop(receiver);
        assert_eq!(Arc::strong_count(&witness), 1);
    }

    #[test]
    fn between_two_threads_nothing_is_lost_doubled_or_reordered() {
        const ITEMS: u64 = 200_000;
        let (mut sender, mut receiver) = channel(64);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for item in 0..ITEMS {
                    while sender.try_send(item).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut expected = 0;
            while expected < ITEMS {
                match receiver.try_recv() {
                    Some(item) => {
                        assert_eq!(item, expected);
                        expected += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
            assert_eq!(receiver.try_recv(), None);
        });
    }

    proptest! {
        #[test]
        fn it_does_what_a_bounded_vecdeque_does(
            capacity in 1usize..9, sends: Vec<bool>,
        ) {
            let (mut sender, mut receiver) = channel(capacity);
            let mut oracle = VecDeque::new();
            for (item, send) in sends.into_iter().enumerate() {
                if send {
                    let fits = oracle.len() < capacity;
                    prop_assert_eq!(sender.try_send(item).is_ok(), fits);
                    if fits {
                        oracle.push_back(item);
                    }
                } else {
                    prop_assert_eq!(receiver.try_recv(), oracle.pop_front());
                }
            }
        }
    }
}
