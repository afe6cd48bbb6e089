//! A burst of frames in one arena that its worker owns.
//!
//! *Promises*: a frame's bytes are a private copy (a guest cannot change what was
//! checked), lie together in memory, and have [`HEADROOM`] bytes before them for
//! a VLAN tag. Nothing is allocated after [`Burst::new`].
//! *Refuses*: more than [`Burst::FRAMES_MAX`] frames, or a frame that no longer
//! fits the arena: [`Burst::reserve`] answers `None` and the port leaves the frame
//! where it is until the next burst.
//! *Caller's duty*: [`Burst::commit`] only what was written after `reserve`.

use super::Offload;

/// Bytes in front of every frame of a burst.
pub const HEADROOM: usize = 64;

/// The longest frame: Ethernet header, two VLAN tags and the largest IP packet
/// (an IPv6 header and a full payload length).
pub const FRAME_MAX: usize = 14 + 8 + 40 + 65_535;

/// Frames that lie together: four of the largest, or sixty-four of 1500 bytes with room to
/// spare.
const PACKED: usize = 4 * (FRAME_MAX + HEADROOM + 64);

/// From one frame to the next where they are spread: room for the largest, and an odd number
/// of cache lines, so that the beginnings of frames do not contend for the same ones.
const STRIDE: usize = (FRAME_MAX + HEADROOM).next_multiple_of(128) + 64;

/// All of it; the system gives memory only for what is used.
const ARENA: usize = Burst::FRAMES_MAX * STRIDE;

/// Frames begin on a cache line of their own.
const ALIGN: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Slot {
    start: u32,
    len: u32,
    /// Bytes before `start` that are this frame's own.
    headroom: u32,
    offload: Offload,
}

/// Up to [`Burst::FRAMES_MAX`] frames.
#[derive(Debug)]
pub struct Burst {
    arena: Box<[u8]>,
    used: usize,
    slots: Vec<Slot>,
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Burst {
    /// Frames in a burst at most (DESIGN section 4).
    pub const FRAMES_MAX: usize = 64;

    /// An empty burst; the only place that allocates.
    pub fn new() -> Self {
        Self {
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            slots: Vec::with_capacity(Self::FRAMES_MAX),
        }
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.used = 0;
        self.slots.clear();
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many frames may still be added.
    pub fn room(&self) -> usize {
        Self::FRAMES_MAX - self.slots.len()
    }

    /// Space for a frame of `len` bytes, or `None` if this burst is full.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.room() == 0 || len > FRAME_MAX {
            return None;
        }
        let start = self.used + HEADROOM;
        self.arena[..PACKED].get_mut(start..start + len)
    }

    /// The same space with the `header` bytes of headroom right before it, for a device that
    /// hands over a header and a frame in one piece. At most [`HEADROOM`]; `len` is the frame's.
    #[inline]
    pub fn reserve_behind(&mut self, header: usize, len: usize) -> Option<&mut [u8]> {
        if self.room() == 0 || len > FRAME_MAX || header > HEADROOM {
            return None;
        }
        let start = self.used + HEADROOM;
        self.arena[..PACKED].get_mut(start - header..start + len)
    }

    /// Spaces for [`Burst::FRAMES_MAX`] frames of any length at once, each with the `header`
    /// bytes of headroom right before it, for a device that fills several together. For an
    /// empty burst, or one whose frames came by [`Burst::commit_spread`].
    pub fn spread(&mut self, header: usize) -> impl Iterator<Item = &mut [u8]> {
        let first = HEADROOM.saturating_sub(header);
        let frames = self.arena.chunks_exact_mut(STRIDE);
        frames.map(move |space| &mut space[first..HEADROOM + FRAME_MAX])
    }

    /// Makes the first `len` bytes, after the header, of space `place` of [`Burst::spread`]
    /// the next frame. Places grow from frame to frame.
    #[inline]
    pub fn commit_spread(&mut self, place: usize, len: usize, offload: Offload) {
        debug_assert!(self.used <= place * STRIDE && place < Self::FRAMES_MAX);
        self.used = place * STRIDE;
        self.commit(len, offload);
    }

    /// Makes the first `len` bytes of the last [`Burst::reserve`] a frame.
    #[inline]
    pub fn commit(&mut self, len: usize, offload: Offload) {
        let start = self.used + HEADROOM;
        debug_assert!(start + len <= self.arena.len() && self.room() > 0);
        self.slots.push(Slot {
            start: start as u32,
            len: len as u32,
            headroom: HEADROOM as u32,
            offload,
        });
        self.used = (start + len).next_multiple_of(ALIGN);
    }

    /// Copies a frame in; false if it does not fit.
    pub fn push(&mut self, data: &[u8], offload: Offload) -> bool {
        match self.reserve(data.len()) {
            Some(space) => {
                space.copy_from_slice(data);
                self.commit(data.len(), offload);
                true
            }
            None => false,
        }
    }

    /// Frame `index`. Panics when there is none: indices come from the worker.
    #[inline]
    pub fn frame(&self, index: usize) -> Frame<'_> {
        let slot = self.slots[index];
        let start = slot.start as usize;
        Frame {
            data: &self.arena[start..start + slot.len as usize],
            offload: slot.offload,
        }
    }

    /// Frame `index`, to be rewritten. Panics when there is none.
    #[inline]
    pub fn frame_mut(&mut self, index: usize) -> FrameMut<'_> {
        FrameMut {
            arena: &mut self.arena,
            slot: &mut self.slots[index],
        }
    }
}

/// A received frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame<'a> {
    /// From the destination MAC to the last payload byte.
    pub data: &'a [u8],
    /// What its sender left undone.
    pub offload: Offload,
}

/// A frame as a port's transmit takes it.
pub type TxFrame<'a> = Frame<'a>;

/// A frame of a burst, to be rewritten in place.
#[derive(Debug)]
pub struct FrameMut<'a> {
    arena: &'a mut [u8],
    slot: &'a mut Slot,
}

impl FrameMut<'_> {
    /// The bytes.
    #[inline]
    pub fn data(&mut self) -> &mut [u8] {
        let start = self.slot.start as usize;
        &mut self.arena[start..start + self.slot.len as usize]
    }

    /// What is left undone.
    #[inline]
    pub fn offload(&mut self) -> &mut Offload {
        &mut self.slot.offload
    }

    /// Grows the frame at its front by `count` bytes of the headroom (their content is
    /// what lay there). False, and no change, when the headroom is used up.
    #[inline]
    pub fn grow_front(&mut self, count: usize) -> bool {
        if count > self.slot.headroom as usize {
            return false;
        }
        self.slot.headroom -= count as u32;
        self.slot.start -= count as u32;
        self.slot.len += count as u32;
        true
    }

    /// Cuts `count` bytes off the front; false, and no change, if there are fewer.
    #[inline]
    pub fn shrink_front(&mut self, count: usize) -> bool {
        if count > self.slot.len as usize {
            return false;
        }
        self.slot.start += count as u32;
        self.slot.len -= count as u32;
        self.slot.headroom += count as u32;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_takes_64_frames_and_refuses_the_next() {
        let mut burst = Burst::new();
        for n in 0..Burst::FRAMES_MAX {
            assert!(burst.push(&[n as u8; 60], Offload::default()));
        }
        assert!(!burst.push(&[0; 60], Offload::default()));
        for n in 0..Burst::FRAMES_MAX {
            assert_eq!(burst.frame(n).data, &[n as u8; 60]);
        }
        burst.clear();
        assert!(burst.is_empty() && burst.push(&[1], Offload::default()));
    }

    #[test]
    fn frames_of_the_largest_size_fit_until_the_arena_is_full() {
        let mut burst = Burst::new();
        let frame = vec![7u8; FRAME_MAX];
        let mut taken = 0;
        while burst.push(&frame, Offload::default()) {
            taken += 1;
        }
        assert_eq!(taken, 4);
        assert!(burst.reserve(FRAME_MAX + 1).is_none());
    }

    #[test]
    fn spread_frames_are_apart_and_grow_into_their_own_headroom() {
        let mut burst = Burst::new();
        for (place, space) in burst.spread(12).enumerate() {
            assert_eq!(space.len(), 12 + FRAME_MAX);
            space.fill(place as u8);
        }
        let places: Vec<usize> = (0..Burst::FRAMES_MAX).filter(|n| n % 3 != 1).collect();
        for place in &places {
            burst.commit_spread(*place, FRAME_MAX, Offload::default());
        }
        assert_eq!(burst.len(), places.len());
        assert!(
            burst.reserve(60).is_none(),
            "nothing is laid over spread frames"
        );
        for (index, place) in places.iter().enumerate() {
            assert!(burst.frame_mut(index).grow_front(4));
            assert_eq!(burst.frame(index).data, vec![*place as u8; 4 + FRAME_MAX]);
        }
    }

    #[test]
    fn growing_a_frame_never_reaches_its_neighbour() {
        let mut burst = Burst::new();
        assert!(burst.push(&[1; 128], Offload::default()));
        assert!(burst.push(&[2; 64], Offload::default()));
        let mut grown = 0;
        while burst.frame_mut(1).grow_front(4) {
            grown += 4;
            let mut frame = burst.frame_mut(1);
            frame.data()[..4].fill(9);
            assert!(grown <= HEADROOM);
        }
        assert_eq!(burst.frame(0).data, &[1; 128]);
        assert_eq!(burst.frame(1).data[grown..], [2; 64]);
    }
}
