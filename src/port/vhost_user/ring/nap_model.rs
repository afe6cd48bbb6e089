//! A worker's way to rest, against every interleaving with a driver: notifications off,
//! a look, and only then arming (`make loom`).

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, Ordering, fence};

use super::notify::{Notify, Shared, USED_NO_NOTIFY, passed};

#[derive(Default)]
struct Words {
    avail_idx: AtomicU16,
    used_flags: AtomicU16,
    avail_event: AtomicU16,
}

impl Shared for Words {
    fn avail_idx(&self) -> u16 {
        self.avail_idx.load(Ordering::Acquire)
    }
    fn avail_flags(&self) -> u16 {
        0
    }
    fn used_event(&self) -> u16 {
        0
    }
    fn set_used_flags(&self, flags: u16) {
        self.used_flags.store(flags, Ordering::Relaxed);
    }
    fn set_avail_event(&self, index: u16) {
        self.avail_event.store(index, Ordering::Relaxed);
    }
}

/// The driver publishes buffer `index` and says whether it kicks (virtio 1.2, 2.7.13.4.1).
fn publish(words: &Words, index: u16, event_idx: bool) -> bool {
    words.avail_idx.store(index + 1, Ordering::Release);
    fence(Ordering::SeqCst);
    if event_idx {
        passed(words.avail_event.load(Ordering::Relaxed), index + 1, index)
    } else {
        words.used_flags.load(Ordering::Relaxed) & USED_NO_NOTIFY == 0
    }
}

/// Frames come before, during and after a nap; the worker naps once, looks, and arms. When it
/// sleeps, either it has taken all frames or it has been kicked.
#[test]
fn model_frames_of_a_nap_are_taken_at_its_end_or_kicked_for() {
    for event_idx in [true, false] {
        loom::model(move || {
            let words = Arc::new(Words::default());
            let mut notify = Notify::new(event_idx);
            notify.disarm(&*words, 0);
            let driver = words.clone();
            let driver =
                loom::thread::spawn(move || [0, 1].map(|index| publish(&driver, index, event_idx)));
            // The look at the nap's end takes all that is there.
            let mut next = words.avail_idx();
            // Each time something waits already: off again, look, arm again.
            while notify.arm(&*words, next) {
                next = words.avail_idx();
            }
            let kicks = driver.join().unwrap();
            // A kick for an earlier frame may be late, never missing for what is left.
            let kicked = (next..2).any(|index| kicks[usize::from(index)]);
            assert!(
                next == 2 || kicked,
                "lost wake-up at {next}, event_idx {event_idx}"
            );
        });
    }
}
