//! Who must wake whom: the notification decisions of a ring.
//!
//! *Promises*: no wake-up is lost in either direction, with EVENT_IDX and with flags
//! (`loom_tests` checks this file against every interleaving): after
//! [`Notify::arm`] answered that nothing waits, the driver's next publication
//! kicks; after [`Notify::needs_call`] answered no, the driver either saw the
//! buffers or asked not to be told.
//! *Refuses*: to wait or to write an eventfd; it only decides.
//! *Caller's duty*: publish the used index before `needs_call`; poll once more after an
//! `arm` that answered "something waits".
//! *Standard*: virtio 1.2 sections 2.7.7 and 2.7.10.

use crate::sync::{Ordering, fence};

/// In `used.flags`: the device needs no kicks (`VIRTQ_USED_F_NO_NOTIFY`).
pub(super) const USED_NO_NOTIFY: u16 = 1;
/// In `avail.flags`: the driver needs no calls (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
pub(super) const AVAIL_NO_INTERRUPT: u16 = 1;

/// The words of a ring that both sides watch.
pub(super) trait Shared {
    /// Where the driver will publish next; an acquire load.
    fn avail_idx(&self) -> u16;
    /// The driver's flags.
    fn avail_flags(&self) -> u16;
    /// Used index at which the driver wants a call. Read with EVENT_IDX only.
    fn used_event(&self) -> u16;
    /// Sets the device's flags.
    fn set_used_flags(&self, flags: u16);
    /// Sets the available index at which the device wants a kick. Used with
    /// EVENT_IDX only.
    fn set_avail_event(&self, index: u16);
}

/// Whether moving an index from `old` to `new` passed `event` (virtio 1.2 section
/// 2.7.10.1, `vring_need_event`).
#[inline]
pub(super) fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The notification state of one ring.
#[derive(Debug)]
pub(super) struct Notify {
    event_idx: bool,
    /// Used index at the last decision; `None` before the first, which then always
    /// calls: the driver may still wait for what a former backend published.
    decided: Option<u16>,
    /// Whether the driver was asked for kicks.
    armed: bool,
}

impl Notify {
    /// The state of a ring that starts; [`Notify::disarm`] is still to be called.
    pub(super) fn new(event_idx: bool) -> Self {
        Self {
            event_idx,
            decided: None,
            armed: true,
        }
    }

    /// Asks for a kick at the next publication. True: something was published before
    /// that took effect, and notifications are off again.
    pub(super) fn arm<S: Shared>(&mut self, shared: &S, next_avail: u16) -> bool {
        self.ask(shared, next_avail);
        // The request must be visible before the index is read: the driver publishes,
        // fences and then looks at the request, so one of the two sees the other.
        fence(Ordering::SeqCst);
        let waits = shared.avail_idx() != next_avail;
        if waits {
            self.disarm(shared, next_avail);
        }
        waits
    }

    /// Asks for kicks without looking whether one is due already.
    pub(super) fn ask<S: Shared>(&mut self, shared: &S, next_avail: u16) {
        if self.event_idx {
            shared.set_avail_event(next_avail);
        } else {
            shared.set_used_flags(0);
        }
        self.armed = true;
    }

    /// Asks for no kicks. With EVENT_IDX that is an event just passed; a driver that
    /// publishes 65,536 buffers meanwhile kicks once, which is harmless.
    #[inline]
    pub(super) fn disarm<S: Shared>(&mut self, shared: &S, next_avail: u16) {
        if !self.armed {
            return;
        }
        if self.event_idx {
            shared.set_avail_event(next_avail.wrapping_sub(1));
        } else {
            shared.set_used_flags(USED_NO_NOTIFY);
        }
        self.armed = false;
    }

    /// Whether the driver must be called, now that the used index stands at `used_idx`.
    /// Answers yes at most once per publication.
    #[inline]
    pub(super) fn needs_call<S: Shared>(&mut self, shared: &S, used_idx: u16) -> bool {
        if self.decided == Some(used_idx) {
            return false;
        }
        let decided = self.decided.replace(used_idx);
        // The used index must be visible before the driver's wish is read; the driver
        // writes its wish, fences and then looks at the index.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = shared.used_event();
            decided.is_none_or(|old| passed(event, used_idx, old))
        } else {
            shared.avail_flags() & AVAIL_NO_INTERRUPT == 0
        }
    }
}

/// `make loom`.
#[cfg(all(test, shunt_loom))]
mod model {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU16, Ordering, fence};

    use super::{AVAIL_NO_INTERRUPT, Notify, Shared, USED_NO_NOTIFY, passed};

    #[derive(Default)]
    struct Words {
        avail_idx: AtomicU16,
        avail_flags: AtomicU16,
        used_event: AtomicU16,
        used_idx: AtomicU16,
        used_flags: AtomicU16,
        avail_event: AtomicU16,
    }

    impl Shared for Words {
        fn avail_idx(&self) -> u16 {
            self.avail_idx.load(Ordering::Acquire)
        }
        fn avail_flags(&self) -> u16 {
            self.avail_flags.load(Ordering::Relaxed)
        }
        fn used_event(&self) -> u16 {
            self.used_event.load(Ordering::Relaxed)
        }
        fn set_used_flags(&self, flags: u16) {
            self.used_flags.store(flags, Ordering::Relaxed);
        }
        fn set_avail_event(&self, index: u16) {
            self.avail_event.store(index, Ordering::Relaxed);
        }
    }

    /// The driver publishes one buffer and says whether it kicks (virtio 1.2, 2.7.13.4.1).
    fn publish(words: &Words, event_idx: bool) -> bool {
        words.avail_idx.store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if event_idx {
            passed(words.avail_event.load(Ordering::Relaxed), 1, 0)
        } else {
            words.used_flags.load(Ordering::Relaxed) & USED_NO_NOTIFY == 0
        }
    }

    #[test]
    fn a_frame_published_while_the_ring_arms_is_seen_or_kicked_for() {
        for event_idx in [true, false] {
            loom::model(move || {
                let words = Arc::new(Words::default());
                let mut notify = Notify::new(event_idx);
                notify.disarm(&*words, 0);
                let driver = words.clone();
                let driver = loom::thread::spawn(move || publish(&driver, event_idx));
                let seen = notify.arm(&*words, 0);
                let kicked = driver.join().unwrap();
                assert!(seen || kicked, "lost wake-up, event_idx {event_idx}");
            });
        }
    }

    #[test]
    fn a_buffer_given_back_while_the_driver_arms_is_seen_or_called_for() {
        for event_idx in [true, false] {
            loom::model(move || {
                let words = Arc::new(Words::default());
                words.used_event.store(u16::MAX, Ordering::Relaxed);
                words
                    .avail_flags
                    .store(AVAIL_NO_INTERRUPT, Ordering::Relaxed);
                let mut notify = Notify::new(event_idx);
                notify.needs_call(&*words, 0);
                let driver = words.clone();
                let driver = loom::thread::spawn(move || {
                    driver.used_event.store(0, Ordering::Relaxed);
                    driver.avail_flags.store(0, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    driver.used_idx.load(Ordering::Acquire) == 1
                });
                words.used_idx.store(1, Ordering::Release);
                let called = notify.needs_call(&*words, 1);
                let seen = driver.join().unwrap();
                assert!(seen || called, "lost call, event_idx {event_idx}");
            });
        }
    }
}
