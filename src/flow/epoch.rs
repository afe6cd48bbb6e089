//! Epochs: when nobody can still see what was taken away.
//!
//! *Promises*: a reader pins with one store and one fence and never waits; once
//! [`Epochs::has_passed`] says yes for an epoch, every reader that was pinned when
//! that epoch ended has unpinned, and its reads happened before the answer.
//! *Refuses*: nothing. A reader that stays pinned holds reclaiming up, no more.
//! *Caller's duty*: one thread pins a given reader and one thread calls
//! [`Epochs::advance`]; what is to be reclaimed is unlinked before the advance.
//! *Standard*: K. Fraser, "Practical lock-freedom", 2004, section 5.2.3, with epochs
//! counted on instead of modulo three.
//!
//! Why it holds. Something is unlinked, then epoch E ends. A reader pinned past E
//! read the new epoch number with Acquire and so sees the unlinking. Of any other
//! reader the writer sees the pin, or it does not; if not, the writer's fence comes
//! before that reader's fence, and again the reader sees the unlinking.

use crate::sync::{AtomicU64, CachePadded, Ordering, fence};

/// In a reader's place: not pinned.
const UNPINNED: u64 = 0;

/// The current epoch and where each reader stands.
pub(super) struct Epochs {
    current: CachePadded<AtomicU64>,
    readers: Box<[CachePadded<AtomicU64>]>,
}

impl Epochs {
    pub(super) fn new(readers_max: usize) -> Self {
        Self {
            current: CachePadded(AtomicU64::new(UNPINNED + 1)),
            readers: (0..readers_max)
                .map(|_| CachePadded(AtomicU64::new(UNPINNED)))
                .collect(),
        }
    }

    /// Heap bytes for so many readers.
    pub(super) const fn memory_bytes(readers_max: usize) -> usize {
        readers_max * size_of::<CachePadded<AtomicU64>>()
    }

    /// From here until [`Epochs::unpin`] the reader may look at the table.
    #[inline]
    pub(super) fn pin(&self, reader: usize) {
        let epoch = self.current.0.load(Ordering::Acquire);
        // Release: who reads this newer epoch knows that the earlier pin is over.
        self.readers[reader].0.store(epoch, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The reader holds nothing of the table any more.
    #[inline]
    pub(super) fn unpin(&self, reader: usize) {
        self.readers[reader].0.store(UNPINNED, Ordering::Release);
    }

    /// Ends the current epoch and names it. Only the writer calls this.
    pub(super) fn advance(&self) -> u64 {
        let ended = self.current.0.load(Ordering::Relaxed);
        self.current.0.store(ended + 1, Ordering::Release);
        ended
    }

    /// Whether no reader is pinned in `epoch` or an earlier one.
    pub(super) fn has_passed(&self, epoch: u64) -> bool {
        fence(Ordering::SeqCst);
        self.readers.iter().all(|reader| {
            let pinned = reader.0.load(Ordering::Acquire);
            pinned == UNPINNED || pinned > epoch
        })
    }
}

#[cfg(all(test, not(shunt_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_passes_when_the_readers_pinned_in_it_have_left() {
        let epochs = Epochs::new(2);
        epochs.pin(0);
        let first = epochs.advance();
        epochs.pin(1);
        assert!(!epochs.has_passed(first));
        epochs.unpin(0);
        assert!(epochs.has_passed(first), "reader 1 came later");
        let second = epochs.advance();
        assert!(!epochs.has_passed(second));
        epochs.unpin(1);
        assert!(epochs.has_passed(second));
    }

    #[test]
    fn pinning_anew_leaves_the_old_epoch() {
        let epochs = Epochs::new(1);
        epochs.pin(0);
        let first = epochs.advance();
        epochs.unpin(0);
        epochs.pin(0);
        assert!(epochs.has_passed(first));
    }
}
