//! One queue of a tap, as its worker sees it.
//!
//! *Promises*: a receive without a frame costs one read; a failed frame is counted and
//! the next one tried, at most [`Burst::FRAMES_MAX`] calls to the kernel in either direction.
//! *Refuses*: nothing is sent to a removed device (frames stay unconsumed); to one that
//! is set down frames are discarded after one failed write a burst.
//! *Caller's duty*: as the parent module says.
//! *Standard*: virtio 1.2 section 5.1.6.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::{Armed, Poller, Port, TxReport};
use super::{Queue, Shared, State, VNET_HEADER};
use crate::packet::vnet_hdr::{self, Sender};
use crate::packet::{Burst, FRAME_MAX, PeerOffloads, TxFrame};

/// Header and frame up to this size are copied together: the kernel then has one part to
/// fetch and check instead of two.
const SMALL: usize = 256;

/// A queue pair of a tap.
#[derive(Debug)]
pub(super) struct TapPort {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    poller: Option<Poller>,
    /// The last read found nothing. The poller is edge-triggered and the next frame is a
    /// new edge, so sleeping needs no further look.
    drained: bool,
}

/// What came of one read or write.
enum Outcome {
    /// It moved a frame.
    Done,
    /// Nothing to read, or no room to write.
    WouldBlock,
    /// A signal came first; nothing moved.
    Interrupted,
    /// This frame is lost, the next may do.
    Frame,
    /// The interface is set down.
    Down,
    /// The device is no more.
    Gone,
}

impl Outcome {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::WouldBlock,
            Some(libc::EINTR) => Self::Interrupted,
            Some(libc::EIO) => Self::Down,
            // EBADFD: the device was removed; EFAULT: the queue is shut down just before.
            Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::EFAULT) => Self::Gone,
            _ => Self::Frame,
        }
    }
}

/// Frames of one call, added to the shared counters at its end.
#[derive(Default)]
struct Tally {
    frames: u64,
    bytes: u64,
    discarded: u64,
}

impl Tally {
    fn add_to(&self, frames: &AtomicU64, bytes: &AtomicU64, discarded: &AtomicU64) {
        for (counter, by) in [
            (frames, self.frames),
            (bytes, self.bytes),
            (discarded, self.discarded),
        ] {
            if by > 0 {
                counter.fetch_add(by, Ordering::Relaxed);
            }
        }
    }
}

impl TapPort {
    pub(super) fn new(shared: Arc<Shared>, queue: Arc<Queue>) -> Self {
        Self {
            shared,
            queue,
            poller: None,
            drained: false,
        }
    }

    /// Whether frames may be tried: the device is there and not dropped.
    fn is_open(&self) -> bool {
        self.queue.state() != State::Gone && !self.shared.closed.load(Ordering::Relaxed)
    }

    fn note_state(&self, state: State) {
        if self.queue.state() != state {
            self.queue.set_state(state);
        }
    }

    /// Reads one frame into `burst`; `None` when that is full.
    fn read_one(&self, burst: &mut Burst, tally: &mut Tally) -> Option<Outcome> {
        let space = burst.reserve_behind(VNET_HEADER, FRAME_MAX)?;
        let len = match (&self.queue.file).read(space) {
            Ok(read) => read.checked_sub(VNET_HEADER),
            Err(error) => return Some(Outcome::of(&error)),
        };
        let header = space.first_chunk::<VNET_HEADER>().copied()?;
        // A read that fills the space may have been cut: the kernel does not say.
        let Some(len) = len.filter(|len| *len < FRAME_MAX) else {
            return Some(Outcome::Frame);
        };
        match vnet_hdr::decode(&header, len, Sender::Host) {
            Ok(offload) => {
                burst.commit(len, offload);
                tally.frames += 1;
                tally.bytes += len as u64;
                Some(Outcome::Done)
            }
            Err(_) => Some(Outcome::Frame),
        }
    }

    fn write_one(&self, frame: &TxFrame<'_>) -> Outcome {
        let header = vnet_hdr::encode(&frame.offload, frame.data);
        let whole = VNET_HEADER + frame.data.len();
        let mut piece = [0; SMALL];
        let written = if let Some(piece) = piece.get_mut(..whole) {
            piece[..VNET_HEADER].copy_from_slice(&header);
            piece[VNET_HEADER..].copy_from_slice(frame.data);
            (&self.queue.file).write(piece)
        } else {
            let parts = [IoSlice::new(&header), IoSlice::new(frame.data)];
            (&self.queue.file).write_vectored(&parts)
        };
        match written {
            // The driver takes a frame whole or not at all.
            Ok(written) if written == whole => Outcome::Done,
            Ok(_) => Outcome::Frame,
            Err(error) => Outcome::of(&error),
        }
    }

    /// Writes `frames` until one finds no room; says how many were taken.
    fn write_all(&self, frames: &[TxFrame<'_>], tally: &mut Tally) -> usize {
        for (index, frame) in frames.iter().enumerate() {
            match self.write_one(frame) {
                Outcome::Done => {
                    self.note_state(State::Running);
                    tally.frames += 1;
                    tally.bytes += frame.data.len() as u64;
                }
                Outcome::Frame => tally.discarded += 1,
                Outcome::WouldBlock | Outcome::Interrupted => return index,
                Outcome::Down => {
                    self.note_state(State::Down);
                    tally.discarded += (frames.len() - index) as u64;
                    return frames.len();
                }
                Outcome::Gone => {
                    self.note_state(State::Gone);
                    return index;
                }
            }
        }
        frames.len()
    }
}

impl Port for TapPort {
    fn attach(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(self.queue.file.as_raw_fd())?;
        self.poller = Some(poller);
        Ok(())
    }

    /// While the interface is known to be down each call asks the kernel whether it is
    /// up again; otherwise it costs nothing.
    fn is_running(&self) -> bool {
        if !self.is_open() {
            return false;
        }
        if self.queue.state() == State::Down {
            if !self.shared.is_up() {
                return false;
            }
            self.queue.set_state(State::Running);
        }
        true
    }

    fn peer(&self) -> PeerOffloads {
        PeerOffloads {
            checksum: true,
            tso4: true,
            tso6: true,
            ecn: true,
            uso: self.shared.uso,
        }
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        self.drained = !self.is_open();
        if self.drained {
            return 0;
        }
        let mut tally = Tally::default();
        for _ in 0..burst.room() {
            match self.read_one(burst, &mut tally) {
                Some(Outcome::Done) => {}
                Some(Outcome::Frame) => tally.discarded += 1,
                Some(Outcome::WouldBlock) => {
                    self.drained = true;
                    break;
                }
                // A read does not ask whether the interface is up; such an error would be
                // a driver's own, and the queue cannot be trusted after it.
                Some(Outcome::Gone | Outcome::Down) => {
                    self.note_state(State::Gone);
                    self.drained = true;
                    break;
                }
                Some(Outcome::Interrupted) | None => break,
            }
        }
        let queue = &self.queue;
        tally.add_to(&queue.rx_frames, &queue.rx_bytes, &queue.rx_discarded);
        tally.frames as usize
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        if !self.is_open() || frames.is_empty() {
            return TxReport::default();
        }
        let mut tally = Tally::default();
        let consumed = self.write_all(frames, &mut tally);
        let queue = &self.queue;
        tally.add_to(&queue.tx_frames, &queue.tx_bytes, &queue.tx_discarded);
        TxReport {
            consumed,
            ..TxReport::default()
        }
    }

    fn arm(&mut self) -> Armed {
        if self.drained {
            Armed::Asleep
        } else {
            Armed::Ready
        }
    }

    fn disarm(&mut self) {}
}

impl Drop for TapPort {
    fn drop(&mut self) {
        if let Some(poller) = &self.poller {
            // The worker may be ending too, its epoll with it: then there is nothing to undo.
            let _ = poller.remove(self.queue.file.as_raw_fd());
        }
    }
}
