//! A pile of things that any thread adds to and one takes away, oldest first.
//!
//! *Promises*: nobody waits for anybody. A post is there as soon as [`Mailbox::post`] returns,
//! also while other posts are being made: whoever learns of it, by whatever way, finds it. Posts
//! come out in the order in which they were completed. Nothing is allocated: who posts brings the
//! [`Node`]. An owner that sleeps is told to be woken by the first post, and only by that.
//! *Refuses*: nothing: whoever makes the nodes bounds their number.
//! *Caller's duty*: an owner that has said it sleeps looks once more before it does.
//! *Standard*: R. K. Treiber, "Systems programming: coping with parallelism", 1986. Everything is
//! taken at once, so that no pointer is compared that could have come back.

use std::ptr;

use crate::sync::{AtomicBool, AtomicPtr, Ordering, fence};

/// A thing on its way.
#[derive(Debug)]
pub(super) struct Node<T> {
    pub(super) item: T,
    next: *mut Node<T>,
}

// SAFETY: `next` is used only by whoever has the whole pile to itself: `Mailbox::post` before the
// node is shared, `Posts` after it was taken.
unsafe impl<T: Send> Send for Node<T> {}

impl<T> Node<T> {
    pub(super) fn new(item: T) -> Box<Self> {
        Box::new(Self {
            item,
            next: ptr::null_mut(),
        })
    }
}

/// Where one lane finds what others left for it.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    /// Newest first.
    head: AtomicPtr<Node<T>>,
    asleep: AtomicBool,
    items: std::marker::PhantomData<Box<Node<T>>>,
}

// SAFETY: a node is reached by whoever posts it until the exchange, then by whoever takes it; so
// only `T` itself must be fit to change threads.
unsafe impl<T: Send> Sync for Mailbox<T> {}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Self {
        Self {
            head: AtomicPtr::new(ptr::null_mut()),
            asleep: AtomicBool::new(false),
            items: std::marker::PhantomData,
        }
    }

    /// Adds something; true if the owner sleeps and is to be woken.
    #[must_use]
    pub(super) fn post(&self, node: Box<Node<T>>) -> bool {
        let node = Box::into_raw(node);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: the node came out of a box just now and nobody else has its address until
            // the exchange succeeds.
            unsafe { (*node).next = head };
            match self
                .head
                .compare_exchange_weak(head, node, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => break,
                Err(newer) => head = newer,
            }
        }
        self.rouse()
    }

    /// Whether the owner sleeps, which it is told of once.
    pub(super) fn rouse(&self) -> bool {
        // With the fence in `sleep`: either the owner's second look finds the post, or we see
        // that it sleeps.
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }

    /// Whether there is nothing.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Acquire).is_null()
    }

    /// Takes everything away.
    pub(super) fn take(&self) -> Posts<T> {
        let mut newest = self.head.swap(ptr::null_mut(), Ordering::Acquire);
        let mut oldest = ptr::null_mut();
        while !newest.is_null() {
            // SAFETY: the swap made this pile ours alone; each node in it came from a box in
            // `post`, which had set `next` before its Release exchange.
            let next = unsafe { std::mem::replace(&mut (*newest).next, oldest) };
            oldest = newest;
            newest = next;
        }
        Posts(oldest)
    }

    /// The owner is about to sleep: from now on the first post says so. False if something is
    /// there already.
    pub(super) fn sleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.is_empty()
    }

    /// The owner does not sleep.
    pub(super) fn wake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// What was in a mailbox, oldest first.
pub(super) struct Posts<T>(*mut Node<T>);

impl<T> Iterator for Posts<T> {
    type Item = Box<Node<T>>;

    fn next(&mut self) -> Option<Box<Node<T>>> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: a node that `Mailbox::take` handed to us alone, once a box.
        let mut node = unsafe { Box::from_raw(self.0) };
        self.0 = std::mem::replace(&mut node.next, ptr::null_mut());
        Some(node)
    }
}

impl<T> Drop for Posts<T> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

#[cfg(test)]
#[cfg(not(shunt_loom))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn posts_of_several_threads_come_out_once_each_and_in_the_order_of_each() {
        const THREADS: usize = 3;
        const POSTS: usize = 50_000;
        let mailbox = Mailbox::new();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let mailbox = &mailbox;
                scope.spawn(move || {
                    for number in 0..POSTS {
                        let _awake = mailbox.post(Node::new((thread, number)));
                    }
                });
            }
            let mut expected = [0; THREADS];
            while expected != [POSTS; THREADS] {
                for node in mailbox.take() {
                    let (thread, number) = node.item;
                    assert_eq!(number, expected[thread]);
                    expected[thread] += 1;
                }
            }
        });
        assert!(mailbox.is_empty());
    }

    #[test]
    fn what_nobody_takes_is_dropped_with_the_mailbox_or_with_the_posts() {
        let witness = Arc::new(());
        let mailbox = Mailbox::new();
        for _ in 0..6 {
            let _awake = mailbox.post(Node::new(witness.clone()));
        }
        let mut posts = mailbox.take();
        drop(posts.next());
        drop(posts);
        assert_eq!(Arc::strong_count(&witness), 1);
        let _awake = mailbox.post(Node::new(witness.clone()));
        drop(mailbox);
        assert_eq!(Arc::strong_count(&witness), 1);
    }

    #[test]
    fn only_the_first_post_to_a_sleeper_wakes_it() {
        let mailbox = Mailbox::new();
        assert!(!mailbox.post(Node::new(0)), "awake");
        assert!(!mailbox.sleep(), "it has mail");
        mailbox.wake();
        drop(mailbox.take());
        assert!(mailbox.sleep());
        assert!(mailbox.post(Node::new(1)));
        assert!(!mailbox.post(Node::new(2)));
    }
}

#[cfg(test)]
#[cfg(shunt_loom)]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn model(body: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.max_branches = 10_000;
        builder.check(body);
    }

    fn items(mailbox: &Mailbox<u32>) -> Vec<u32> {
        mailbox.take().map(|node| node.item).collect()
    }

    #[test]
    fn model_what_was_posted_after_another_post_comes_out_after_it() {
        model(|| {
            let mailbox = Arc::new(Mailbox::new());
            let told = Arc::new(crate::sync::AtomicU32::new(0));
            let (theirs, tell) = (mailbox.clone(), told.clone());
            let first = thread::spawn(move || {
                let _awake = theirs.post(Node::new(1));
                tell.store(1, Ordering::Release);
            });
            let theirs = mailbox.clone();
            let second = thread::spawn(move || {
                let knows = told.load(Ordering::Acquire) == 1;
                let _awake = theirs.post(Node::new(2));
                // Who knows of a post finds it, or it was taken.
                knows
            });
            let mut came = items(&mailbox);
            first.join().unwrap();
            let knew = second.join().unwrap();
            came.extend(items(&mailbox));
            assert!(came == [1, 2] || (came == [2, 1] && !knew), "{came:?}");
        });
    }

    #[test]
    fn model_no_post_is_left_to_a_sleeper_that_nobody_wakes() {
        model(|| {
            let mailbox = Arc::new(Mailbox::new());
            let posts = [1, 2].map(|item| {
                let mailbox = mailbox.clone();
                thread::spawn(move || mailbox.post(Node::new(item)))
            });
            let sleeps = mailbox.sleep();
            let seen = if sleeps {
                0
            } else {
                mailbox.wake();
                items(&mailbox).len()
            };
            let rung = posts.map(|post| post.join().unwrap());
            let rings = rung.iter().filter(|rung| **rung).count();
            // An owner that saw its mail looks again before it sleeps.
            if sleeps {
                assert_eq!(rings, 1, "woken, and once");
                assert_eq!(items(&mailbox).len(), 2);
            } else {
                assert_eq!(seen + items(&mailbox).len(), 2);
            }
        });
    }
}
