//! Frames that found no room in a tap and whose sender waits.
//!
//! *Promises*: they come out in the order they went in; buffers are used again.
//! *Refuses*: more than [`Held::BYTES_MAX`]: at least two bursts of the longest frames.
//! *Caller's duty*: what is held goes before anything newer. *Standard*: none.

use std::collections::VecDeque;

use crate::packet::Offload;
use crate::packet::{Burst, FRAME_MAX, TxFrame};

/// Buffers kept for the next time, none above this size.
const SPARE_BUFFERS: usize = Burst::FRAMES_MAX;
const SPARE_BYTES: usize = 2048;

/// A queue's frames that wait for room.
#[derive(Debug, Default)]
pub(super) struct Held {
    frames: VecDeque<(Vec<u8>, Offload)>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

impl Held {
    /// Bytes held at most.
    const BYTES_MAX: usize = 2 * Burst::FRAMES_MAX * FRAME_MAX;

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Keeps a copy of `frame` behind the others; false if there are too many.
    pub(super) fn keep(&mut self, frame: &TxFrame<'_>) -> bool {
        if self.bytes + frame.data.len() > Self::BYTES_MAX {
            return false;
        }
        let mut data = self.spare.pop().unwrap_or_default();
        data.extend_from_slice(frame.data);
        self.bytes += data.len();
        self.frames.push_back((data, frame.offload));
        true
    }

    /// Hands the oldest, at most a burst, to `send`, which says how many it took, and says so
    /// in turn.
    pub(super) fn offer(&mut self, send: impl FnOnce(&[TxFrame<'_>]) -> usize) -> usize {
        let mut oldest = [TxFrame::default(); Burst::FRAMES_MAX];
        let mut count = 0;
        for (place, (data, offload)) in oldest.iter_mut().zip(&self.frames) {
            *place = TxFrame {
                data,
                offload: *offload,
            };
            count += 1;
        }
        let taken = send(&oldest[..count]);
        for (mut data, _) in self.frames.drain(..taken.min(count)) {
            self.bytes -= data.len();
            if self.spare.len() < SPARE_BUFFERS && data.capacity() <= SPARE_BYTES {
                data.clear();
                self.spare.push(data);
            }
        }
        taken
    }
}
