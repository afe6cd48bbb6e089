//! The guest's receive queue: frames go into it.
//!
//! *Promises*: frames are delivered in order, each with its virtio-net header, over
//! as many mergeable buffers as it needs (their number is known before the first
//! byte is written). A buffer too small for one frame waits for the next.
//! *Refuses*: broken chains (the ring stops, see [`RingFault`]); a frame that no buffer
//! can hold (consumed and counted); to wait: without room a frame is not consumed.
//! *Caller's duty*: after [`TxRing::push`] ask [`TxRing::needs_call`] once; frames ask
//! for no more than the guest negotiated.
//! *Standard*: virtio 1.2 sections 2.7, 5.1.6.3 and 5.1.6.4.

use std::sync::Arc;

use super::burst::Core;
use super::chain::Direction;
use super::fault::RingFault;
use super::layout::{HEADER_MAX, HEADER_SHORT, RingConfig};
use super::memory::Header;
use super::raw::GuestMap;
use crate::packet::{Burst, TxFrame, vnet_hdr};

/// Mergeable buffers one frame may use: the largest frame in buffers of 257 bytes.
const BUFFERS_MAX: usize = 256;

/// What a [`TxRing::push`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pushed {
    /// Frames taken, from the front; the guest has no room for the rest now.
    pub consumed: usize,
    /// Of those taken, which no buffer could hold: bit n is frame n.
    pub too_large: u64,
    /// Bytes of the frames delivered, without virtio-net headers.
    pub bytes: u64,
}

/// A chain that takes part of a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Buffer {
    head: u16,
    written: u32,
}

/// A running receive queue of a guest. Kicks (the guest added buffers) are never asked
/// for: a frame without a buffer is not waited with.
#[derive(Debug)]
pub struct TxRing {
    core: Core,
    /// The chains of the frame at hand.
    chosen: Box<[Buffer; BUFFERS_MAX]>,
}

enum Put {
    Delivered,
    TooLarge,
    NoRoom,
}

enum Chosen {
    Buffers(u16),
    TooLarge,
    NoRoom,
}

impl TxRing {
    /// Starts a ring, with notifications off.
    ///
    /// # Errors
    /// A size or header length that cannot be, areas misaligned or outside the memory.
    pub fn start(map: Arc<GuestMap>, config: RingConfig) -> Result<Self, RingFault> {
        let core = Core::start(map, config, Direction::ToGuest)?;
        let chosen = Box::new([Buffer::default(); BUFFERS_MAX]);
        Ok(Self { core, chosen })
    }

    /// Delivers at most 64 `frames` in order until one finds no room. Nothing after a fault.
    pub fn push(&mut self, frames: &[TxFrame<'_>]) -> Pushed {
        let mut pushed = Pushed::default();
        let config = self.core.config();
        // A frame may need many mergeable buffers, so the newest index counts then.
        let want = match config.mrg_rxbuf {
            true => config.size,
            false => frames.len().min(usize::from(config.size)) as u16,
        };
        if frames.is_empty() || self.core.available(want) == 0 {
            return pushed;
        }
        for (place, frame) in frames.iter().enumerate().take(Burst::FRAMES_MAX) {
            match self.put(frame) {
                Ok(Put::Delivered) => pushed.bytes += frame.data.len() as u64,
                Ok(Put::TooLarge) => pushed.too_large |= 1 << place,
                Ok(Put::NoRoom) => break,
                Err(fault) => {
                    self.core.latch(fault);
                    break;
                }
            }
            pushed.consumed += 1;
        }
        self.core.publish();
        self.core.look_ahead();
        pushed
    }

    #[inline]
    fn put(&mut self, frame: &TxFrame<'_>) -> Result<Put, RingFault> {
        let mut header = vnet_hdr::encode(&frame.offload, frame.data);
        let header_len = usize::from(self.core.config().header_len).min(HEADER_MAX);
        if let Some(put) = self.put_alone(&header, header_len, frame.data)? {
            return Ok(put);
        }
        let count = match self.choose((header_len + frame.data.len()) as u64)? {
            Chosen::Buffers(count) => count,
            Chosen::TooLarge => return Ok(Put::TooLarge),
            Chosen::NoRoom => return Ok(Put::NoRoom),
        };
        // Without MRG_RXBUF this is 1, too (5.1.6.4.1).
        header[HEADER_SHORT..].copy_from_slice(&count.to_le_bytes());
        self.core.write(&header[..header_len], frame.data)?;
        for buffer in &self.chosen[..usize::from(count).min(BUFFERS_MAX)] {
            self.core.complete(buffer.head, buffer.written);
        }
        Ok(Put::Delivered)
    }

    /// The usual kind of buffer: a chain of one that holds header and frame, in one piece.
    /// `None`, and nothing done: it is of another kind, or there is none.
    #[inline]
    fn put_alone(
        &mut self,
        header: &[u8; HEADER_MAX],
        header_len: usize,
        data: &[u8],
    ) -> Result<Option<Put>, RingFault> {
        let Some(entry) = self.core.entry(0)? else {
            return Ok(Some(Put::NoRoom));
        };
        let need = header_len + data.len();
        let buffer = self.core.alone(&entry);
        let Some(buffer) = buffer.filter(|buffer| buffer.len as usize >= need) else {
            return Ok(None);
        };
        // `encode` says one buffer.
        let header = match header.first_chunk::<HEADER_SHORT>() {
            Some(short) if header_len == HEADER_SHORT => Header::Short(short),
            _ => Header::Long(header),
        };
        if !self.core.write_whole(buffer, header, data) {
            return Ok(None);
        }
        self.core.complete(entry.head, need as u32);
        Ok(Some(Put::Delivered))
    }

    /// Gathers buffers for `need` bytes. Takes none: that is up to `complete`.
    #[inline]
    fn choose(&mut self, need: u64) -> Result<Chosen, RingFault> {
        self.core.clear_buffers();
        let mut had = 0;
        for (buffer, place) in self.chosen.iter_mut().zip(0..) {
            let Some(entry) = self.core.entry(place)? else {
                // All the buffers a ring can have, and still not enough?
                let never = place == self.core.config().size;
                return Ok(if never {
                    Chosen::TooLarge
                } else {
                    Chosen::NoRoom
                });
            };
            self.core.gather(&entry, need)?;
            let have = self.core.buffers().bytes().min(need);
            *buffer = Buffer {
                head: entry.head,
                written: (have - had) as u32,
            };
            had = have;
            if have == need {
                return Ok(Chosen::Buffers(place + 1));
            }
            if !self.core.config().mrg_rxbuf || self.core.buffers().is_full() {
                break;
            }
        }
        Ok(Chosen::TooLarge)
    }

    /// Whether the guest must be called for the frames delivered since the last answer.
    #[inline]
    pub fn needs_call(&mut self) -> bool {
        self.core.needs_call()
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
