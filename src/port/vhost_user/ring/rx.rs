//! The guest's transmit queue: frames come from it.
//!
//! *Promises*: what reaches the [`Burst`] is a private copy whose virtio-net header
//! was checked against it; every chain taken goes back, in order.
//! *Refuses*: broken chains (the ring stops, see [`RingFault`]); frames too short,
//! too long or with a lying header (discarded and counted).
//! *Caller's duty*: after [`RxRing::pop`] ask [`RxRing::needs_call`] once; look at
//! [`RxRing::report_fault`]; poll a started ring once before arming it.
//! *Standard*: virtio 1.2 sections 2.7, 5.1.6.2 and 5.1.6.2.1.

use std::sync::Arc;

use super::burst::Core;
use super::chain::{Direction, Entry};
use super::fault::RingFault;

use super::layout::{HEADER_MAX, RingConfig};
use super::raw::GuestMap;
use crate::packet::vnet_hdr::{self, Sender};
use crate::packet::{Burst, FRAME_MAX};
use crate::port::Armed;

/// The shortest frame: an Ethernet header.
const FRAME_MIN: u64 = 14;

/// Descriptors walked per burst: a guest of one-byte buffers gets smaller bursts, not
/// more time.
const WALK_MAX: usize = 4096;

/// What a [`RxRing::pop`] took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Popped {
    /// Frames added to the burst.
    pub frames: usize,
    /// Frames given back unread: too short, too long, or with a header that lies.
    pub discarded: usize,
    /// Bytes of the frames added, without virtio-net headers.
    pub bytes: u64,
}

/// A running transmit queue of a guest.
#[derive(Debug)]
pub struct RxRing {
    core: Core,
}

enum Taken {
    Frame(usize),
    Discarded,
    /// The burst's arena is used up; the frame stays.
    Full,
}

impl RxRing {
    /// Starts a ring, with notifications off.
    ///
    /// # Errors
    /// A size or header length that cannot be, areas misaligned or outside the memory.
    pub fn start(map: Arc<GuestMap>, config: RingConfig) -> Result<Self, RingFault> {
        let core = Core::start(map, config, Direction::FromGuest)?;
        Ok(Self { core })
    }

    /// Moves waiting frames into `burst`, oldest first, at most [`Burst::FRAMES_MAX`]
    /// chains. Nothing after a fault.
    pub fn pop(&mut self, burst: &mut Burst) -> Popped {
        let mut popped = Popped::default();
        let room = burst.room().min(Burst::FRAMES_MAX);
        let chains = usize::from(self.core.available(room as u16)).min(room);
        let mut walked = 0;
        for _ in 0..chains {
            self.core.clear_buffers();
            match self.take(burst) {
                Ok(Taken::Frame(len)) => {
                    popped.frames += 1;
                    popped.bytes += len as u64;
                }
                Ok(Taken::Discarded) => popped.discarded += 1,
                Ok(Taken::Full) => break,
                Err(fault) => {
                    self.core.latch(fault);
                    break;
                }
            }
            // The usual kind gathers nothing.
            walked += self.core.buffers().list().len().max(1);
            if walked >= WALK_MAX {
                break;
            }
        }
        self.core.publish();
        self.core.look_ahead();
        popped
    }

    #[inline]
    fn take(&mut self, burst: &mut Burst) -> Result<Taken, RingFault> {
        let Some(entry) = self.core.entry(0)? else {
            return Ok(Taken::Full);
        };
        let header_len = usize::from(self.core.config().header_len).min(HEADER_MAX);
        match self.take_alone(&entry, header_len, burst) {
            Some(taken) => Ok(taken),
            None => self.take_chain(&entry, header_len, burst),
        }
    }

    /// A frame of the usual kind: header and data in one buffer, in one piece, copied once.
    /// `None`, and nothing done: it is of another kind.
    #[inline]
    fn take_alone(&mut self, entry: &Entry, header_len: usize, burst: &mut Burst) -> Option<Taken> {
        let buffer = self.core.alone(entry)?;
        let len = (buffer.len as usize).checked_sub(header_len)?;
        if !(FRAME_MIN as usize..=FRAME_MAX).contains(&len) {
            return None;
        }
        let Some(space) = burst.reserve_behind(header_len, len) else {
            return Some(Taken::Full);
        };
        if !self.core.read_whole(buffer, space) {
            return None;
        }
        // From here on the private copy counts.
        let decoded = vnet_hdr::decode(&space[..header_len], len, Sender::Guest);
        self.core.complete(entry.head, 0);
        let Ok(offload) = decoded else {
            return Some(Taken::Discarded);
        };
        burst.commit(len, offload);
        Some(Taken::Frame(len))
    }

    fn take_chain(
        &mut self,
        entry: &Entry,
        header_len: usize,
        burst: &mut Burst,
    ) -> Result<Taken, RingFault> {
        let head = entry.head;
        let longest = (header_len + FRAME_MAX) as u64;
        self.core.gather(entry, longest + 1)?;
        let bytes = self.core.buffers().bytes();
        if bytes < header_len as u64 {
            return Err(RingFault::HeaderMissing { head, len: bytes });
        }
        if bytes > longest || bytes < header_len as u64 + FRAME_MIN {
            self.core.complete(head, 0);
            return Ok(Taken::Discarded);
        }
        let len = bytes as usize - header_len;
        let Some(frame) = burst.reserve(len) else {
            return Ok(Taken::Full);
        };
        let mut header = [0; HEADER_MAX];
        let header = &mut header[..header_len];
        self.core.read(header, frame)?;
        self.core.complete(head, 0);
        let Ok(offload) = vnet_hdr::decode(header, len, Sender::Guest) else {
            return Ok(Taken::Discarded);
        };
        burst.commit(len, offload);
        Ok(Taken::Frame(len))
    }

    /// Whether the guest must be called for the buffers given back since the last answer.
    #[inline]
    pub fn needs_call(&mut self) -> bool {
        self.core.needs_call()
    }

    /// Asks the guest for a kick at its next frame. [`Armed::Ready`]: frames came
    /// meanwhile, and notifications are off again. A stopped ring is always asleep.
    pub fn arm(&mut self) -> Armed {
        if self.core.arm() {
            Armed::Ready
        } else {
            Armed::Asleep
        }
    }

    /// Asks the guest for no kicks.
    #[inline]
    pub fn disarm(&mut self) {
        self.core.disarm();
    }

    /// The next entry of the available ring; all before it were given back.
    pub fn next_avail(&self) -> u16 {
        self.core.next_avail()
    }

    /// Ends the ring and answers its next available index (`GET_VRING_BASE`). The guest
    /// is asked for kicks again.
    pub fn stop(self) -> u16 {
        self.core.stop()
    }

    /// Why the ring has stopped, if it has.
    #[inline]
    pub fn fault(&self) -> Option<&RingFault> {
        self.core.fault()
    }

    /// The fault, the first time only: for the log, the counter and the error eventfd.
    #[inline]
    pub fn report_fault(&mut self) -> Option<&RingFault> {
        self.core.report_fault()
    }

    /// Goes on in `map`, which replaces the guest's memory. Between bursts only.
    ///
    /// # Errors
    /// The ring is not inside the new memory. It has stopped then, and holds the old map
    /// until it is dropped.
    pub fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingFault> {
        self.core.remap(map)
    }
}
