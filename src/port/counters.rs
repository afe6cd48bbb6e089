//! What every port counts of a queue.
//!
//! *Promises*: counters never go back; a reader may see one a moment before another.
//! *Refuses*: nothing. *Caller's duty*: each counter has one writer at a time.
//! *Standard*: none.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::QueueStatus;

/// Frames of one call in one direction.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tally {
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) discarded: u64,
}

impl Tally {
    /// A frame of so many bytes went through.
    #[inline]
    pub(super) fn took(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len as u64;
    }
}

/// One direction of a queue.
#[derive(Debug, Default)]
pub(super) struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    discarded: AtomicU64,
}

impl Direction {
    /// Adds; a counter to which nothing is added is not written.
    #[inline]
    pub(super) fn add(&self, tally: Tally) {
        let each = [
            (&self.frames, tally.frames),
            (&self.bytes, tally.bytes),
            (&self.discarded, tally.discarded),
        ];
        for (counter, count) in each {
            if count > 0 {
                // Cheaper than an atomic addition, since nobody else writes.
                counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
            }
        }
    }
}

/// Both directions of a queue, as the backend sees them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rx: Direction,
    pub(super) tx: Direction,
}

impl Counters {
    /// `status` with these counters.
    pub(super) fn fill(&self, status: QueueStatus) -> QueueStatus {
        let Self { rx, tx } = self;
        QueueStatus {
            rx_frames: rx.frames.load(Relaxed),
            rx_bytes: rx.bytes.load(Relaxed),
            tx_frames: tx.frames.load(Relaxed),
            tx_bytes: tx.bytes.load(Relaxed),
            rx_discarded: rx.discarded.load(Relaxed),
            tx_discarded: tx.discarded.load(Relaxed),
            ..status
        }
    }
}
