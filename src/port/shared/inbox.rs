//! Frames that wait for a member's worker.
//!
//! *Promises*: first in, first out; nothing is allocated after [`Inbox::new`].
//! *Refuses*: frames for which there is no room: the caller counts them.
//! *Caller's duty*: none. *Standard*: none.

use std::collections::VecDeque;

use crate::packet::{Burst, Offload};

/// Bytes kept at most: three of the largest frames, or 170 of 1500 bytes.
const BYTES: usize = 256 << 10;
/// Frames kept at most: what a ring of a card holds.
const FRAMES: usize = 512;

#[derive(Clone, Copy, Debug)]
struct Entry {
    start: usize,
    len: usize,
    offload: Offload,
}

/// A bounded queue of frames in a ring of bytes; no frame wraps around its end.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Box<[u8]>,
    entries: VecDeque<Entry>,
    /// Where the next frame would begin.
    tail: usize,
}

impl Inbox {
    /// An empty queue. Its memory is used only once frames come.
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BYTES].into_boxed_slice(),
            entries: VecDeque::with_capacity(FRAMES),
            tail: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Appends a frame given in two parts; false if there is no room.
    pub(super) fn push(&mut self, (front, rest): (&[u8], &[u8]), offload: Offload) -> bool {
        let len = front.len() + rest.len();
        let Some(start) = self.room_for(len) else {
            return false;
        };
        let Some(space) = self.bytes.get_mut(start..start + len) else {
            return false;
        };
        space[..front.len()].copy_from_slice(front);
        space[front.len()..].copy_from_slice(rest);
        self.entries.push_back(Entry {
            start,
            len,
            offload,
        });
        self.tail = start + len;
        true
    }

    /// Where `len` bytes in one piece fit.
    fn room_for(&self, len: usize) -> Option<usize> {
        if self.entries.len() == FRAMES {
            return None;
        }
        let end = self.bytes.len();
        let Some(oldest) = self.entries.front() else {
            return (len <= end).then_some(0);
        };
        let head = oldest.start;
        if self.tail <= head {
            // Frames stand before and behind the gap.
            return (head - self.tail >= len).then_some(self.tail);
        }
        if end - self.tail >= len {
            return Some(self.tail);
        }
        (head >= len).then_some(0)
    }

    /// Moves frames to `burst` until that is full or no more are here; says how many.
    pub(super) fn move_to(&mut self, burst: &mut Burst) -> usize {
        let mut moved = 0;
        while let Some(entry) = self.entries.front() {
            let data = self.bytes.get(entry.start..entry.start + entry.len);
            if !burst.push(data.unwrap_or_default(), entry.offload) {
                break;
            }
            self.entries.pop_front();
            moved += 1;
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::FRAME_MAX;

    #[test]
    fn the_largest_frames_fit_and_what_does_not_is_refused() {
        let mut inbox = Inbox::new();
        let frame = vec![7; FRAME_MAX];
        let mut kept = 0;
        while inbox.push((&frame[..14], &frame[14..]), Offload::default()) {
            kept += 1;
        }
        assert_eq!(kept, 3);
        let mut burst = Burst::new();
        assert_eq!(inbox.move_to(&mut burst), 3);
        assert!(inbox.is_empty());
        assert_eq!(burst.frame(2).data, frame);
    }

    #[test]
    fn at_most_so_many_frames_wait() {
        let mut inbox = Inbox::new();
        let kept = (0..2 * FRAMES).take_while(|_| inbox.push((&[1], &[2]), Offload::default()));
        assert_eq!(kept.count(), FRAMES);
    }

    proptest! {
        /// Whatever is pushed and moved, in whatever turn, comes out as a plain queue has it.
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec(prop::option::of(1usize..70_000), 1..200)) {
            let (mut inbox, mut plain) = (Inbox::new(), VecDeque::new());
            let mut burst = Burst::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Some(len) => {
                        let frame = vec![number as u8; len.min(FRAME_MAX)];
                        let cut = frame.len() / 3;
                        if inbox.push((&frame[..cut], &frame[cut..]), Offload::default()) {
                            plain.push_back(frame);
                        }
                    }
                    None => {
                        burst.clear();
                        let moved = inbox.move_to(&mut burst);
                        for index in 0..moved {
                            prop_assert_eq!(burst.frame(index).data, plain.pop_front().unwrap());
                        }
                        prop_assert!(moved > 0 || plain.is_empty());
                    }
                }
            }
        }
    }
}
