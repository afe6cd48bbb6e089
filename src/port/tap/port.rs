//! One queue of a tap, as its worker sees it.
//!
//! *Promises*: with io_uring, a look at a queue that was empty and still is costs no system
//! call, without it one read; frames leave in order, those of a sender that waits before any
//! newer; a failed frame is counted and the next one tried, at most [`Burst::FRAMES_MAX`] calls
//! to the kernel in either direction.
//! *Refuses*: nothing is sent to a removed device (frames stay unconsumed); to one that
//! is set down frames are discarded after one failed write a burst.
//! *Caller's duty*: as the parent module says.
//! *Standard*: virtio 1.2 section 5.1.6.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::counters::Tally;
use super::super::{Armed, Poller, Port, TxReport};
use super::batch::{self, Batch, Watch};
use super::held::Held;
use super::{Queue, Shared, State, VNET_HEADER};
use crate::packet::vnet_hdr::{self, Sender};
use crate::packet::{Burst, FRAME_MAX, Offload, PeerOffloads, TxFrame};

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
    appetite: Appetite,
    watch: Watch,
    held: Held,
}

/// How many reads are tried at once. A read in vain costs a little, a further system call
/// more; and long frames are best written while they are still in the cache.
#[derive(Debug, Default)]
struct Appetite {
    had: usize,
    longest: usize,
}

impl Appetite {
    /// Bytes of one burst that stay in the cache.
    const BYTES_MAX: usize = 4 * FRAME_MAX;

    /// How many, at most `room`, and whether they will probably leave none.
    fn tries(&self, room: usize) -> (usize, bool) {
        let likely = 2 * self.had + 2;
        let fitting = Self::BYTES_MAX / self.longest.max(1);
        let most = fitting.clamp(1, room);
        (likely.min(most), likely <= most)
    }

    fn had(&mut self, frames: usize, longest: usize) {
        self.had = frames;
        // One long frame says that more may come, also between short ones.
        self.longest = longest.max(self.longest - self.longest / 8);
    }
}

/// A frame as it was read, behind its virtio-net header.
struct Received {
    len: usize,
    offload: Offload,
}

impl Received {
    /// What the first `read` bytes of `space` are; `None` if that is no whole frame.
    fn new(space: &[u8], read: usize) -> Option<Self> {
        let header = space.first_chunk::<VNET_HEADER>()?;
        // A read that fills the space may have been cut: the kernel does not say.
        let len = read
            .checked_sub(VNET_HEADER)
            .filter(|len| *len < FRAME_MAX)?;
        let offload = vnet_hdr::decode(header, len, Sender::Host).ok()?;
        Some(Self { len, offload })
    }
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

impl TapPort {
    pub(super) fn new(shared: Arc<Shared>, queue: Arc<Queue>) -> Self {
        Self {
            shared,
            queue,
            poller: None,
            drained: false,
            appetite: Appetite::default(),
            watch: Watch::default(),
            held: Held::default(),
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

    /// Reads frames one by one until `burst` is full or nothing waits.
    fn read_each(&mut self, burst: &mut Burst, tally: &mut Tally) {
        for _ in 0..burst.room() {
            let Some(space) = burst.reserve_behind(VNET_HEADER, FRAME_MAX) else {
                return;
            };
            let outcome = match (&self.queue.file).read(space) {
                Ok(read) => match Received::new(space, read) {
                    Some(Received { len, offload }) => {
                        burst.commit(len, offload);
                        tally.took(len);
                        continue;
                    }
                    None => Outcome::Frame,
                },
                Err(error) => Outcome::of(&error),
            };
            if self.read_ends(&outcome, tally) {
                return;
            }
        }
    }

    /// Reads frames, in each system call as many as are likely to wait, until `burst` is full,
    /// has enough bytes, or nothing waits.
    fn read_many(&mut self, batch: &mut Batch, burst: &mut Burst, tally: &mut Tally) {
        let mut first = 0;
        let mut more = true;
        while more && first < batch::FRAMES_MAX && tally.bytes < Appetite::BYTES_MAX as u64 {
            let (tries, all) = self.appetite.tries(batch::FRAMES_MAX - first);
            let before = tally.frames;
            let spaces = burst.spread(VNET_HEADER).skip(first).take(tries);
            let watch = all.then_some(&mut self.watch);
            let results = batch.read(&self.queue.file, spaces, watch);
            let mut longest = 0;
            for (place, result) in (first..).zip(results) {
                // Frames behind an empty read came meanwhile: what the last one found counts.
                self.drained = false;
                let outcome = match usize::try_from(*result) {
                    Ok(read) => {
                        let space = burst.spread(VNET_HEADER).nth(place).unwrap_or_default();
                        match Received::new(space, read) {
                            Some(Received { len, offload }) => {
                                burst.commit_spread(place, len, offload);
                                tally.took(len);
                                longest = longest.max(len);
                                continue;
                            }
                            None => Outcome::Frame,
                        }
                    }
                    Err(_) => Outcome::of(&io::Error::from_raw_os_error(-result)),
                };
                more &= !self.read_ends(&outcome, tally);
            }
            if batch.is_set(&self.watch) {
                self.drained = true;
                more = false;
            }
            self.appetite.had((tally.frames - before) as usize, longest);
            first += tries;
        }
    }

    /// Notes what a read without a frame means; whether more reads are in vain.
    fn read_ends(&mut self, outcome: &Outcome, tally: &mut Tally) -> bool {
        match outcome {
            Outcome::Done => return false,
            Outcome::Frame => {
                tally.discarded += 1;
                return false;
            }
            Outcome::WouldBlock => self.drained = true,
            // A read does not ask whether the interface is up; such an error would be
            // a driver's own, and the queue cannot be trusted after it.
            Outcome::Gone | Outcome::Down => {
                self.note_state(State::Gone);
                self.drained = true;
            }
            Outcome::Interrupted => {}
        }
        true
    }

    /// Sends what is held; whether nothing is any more.
    fn catch_up(&mut self) -> bool {
        if self.held.is_empty() {
            return true;
        }
        let mut held = std::mem::take(&mut self.held);
        while !held.is_empty() && held.offer(|frames| self.send(frames).consumed) > 0 {}
        self.held = held;
        self.held.is_empty()
    }

    /// Sends frames until one finds no room.
    fn send(&self, frames: &[TxFrame<'_>]) -> TxReport {
        let mut tally = Tally::default();
        let many = |batch: &mut Batch| self.write_many(batch, frames, &mut tally);
        let report = match frames {
            // One by itself gains nothing by a ring; and of several begun at once the second
            // may find room that the first did not.
            [_] => None,
            _ if self.shared.fills_up => None,
            _ => batch::with(many),
        };
        let report = report.unwrap_or_else(|| self.write_each(frames, &mut tally));
        let queue = &self.queue;
        queue.counters.tx.add(tally);
        report
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

    /// Writes `frames` one by one until one finds no room; says what became of them.
    fn write_each(&self, frames: &[TxFrame<'_>], tally: &mut Tally) -> TxReport {
        let mut report = TxReport::default();
        for frame in frames {
            let outcome = self.write_one(frame);
            if matches!(outcome, Outcome::Down) {
                self.note_state(State::Down);
                tally.discarded += (frames.len() - report.consumed) as u64;
                report.consumed = frames.len();
                break;
            }
            if !self.written(&outcome, frame, tally) {
                break;
            }
            report.consumed += 1;
        }
        report
    }

    /// Writes all of `frames` in one system call; says what became of them.
    fn write_many(&self, batch: &mut Batch, frames: &[TxFrame<'_>], tally: &mut Tally) -> TxReport {
        let results = batch.write(&self.queue.file, frames);
        let mut report = TxReport::default();
        for (place, (frame, result)) in frames.iter().zip(results).enumerate() {
            let outcome = match usize::try_from(*result) {
                // The driver takes a frame whole or not at all.
                Ok(written) if written == VNET_HEADER + frame.data.len() => Outcome::Done,
                Ok(_) => Outcome::Frame,
                Err(_) => Outcome::of(&io::Error::from_raw_os_error(-result)),
            };
            if self.written(&outcome, frame, tally) {
                // What found no room before this one is lost: it may not follow it.
                report.too_large |= ones_between(report.consumed, place);
                report.consumed = place + 1;
            }
        }
        report
    }

    /// Notes what a write gave; whether the frame was taken.
    fn written(&self, outcome: &Outcome, frame: &TxFrame<'_>, tally: &mut Tally) -> bool {
        match outcome {
            Outcome::Done => {
                self.note_state(State::Running);
                tally.took(frame.data.len());
            }
            Outcome::Frame => tally.discarded += 1,
            Outcome::Down => {
                self.note_state(State::Down);
                tally.discarded += 1;
            }
            Outcome::WouldBlock | Outcome::Interrupted => return false,
            Outcome::Gone => {
                self.note_state(State::Gone);
                return false;
            }
        }
        true
    }
}

/// Bits `from` to before `to`.
fn ones_between(from: usize, to: usize) -> u64 {
    (from..to).fold(0, |all, place| all | 1 << place)
}

impl Port for TapPort {
    fn attach(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(self.queue.file.as_raw_fd())?;
        self.poller = Some(poller);
        Ok(())
    }

    /// While the interface is known to be down each call asks the kernel whether it is
    /// up again; otherwise it costs nothing.
    fn detach(&mut self) {
        batch::unwatch(&self.watch);
        self.watch = Watch::default();
    }

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
        self.shared.offloads
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        self.drained = !self.is_open() || batch::is_quiet(&self.watch);
        if self.drained {
            return 0;
        }
        let mut tally = Tally::default();
        // Spaces for many are those of an empty burst.
        let read = if burst.is_empty() {
            batch::with(|batch| self.read_many(batch, burst, &mut tally))
        } else {
            None
        };
        if read.is_none() {
            self.read_each(burst, &mut tally);
        }
        let queue = &self.queue;
        queue.counters.rx.add(tally);
        tally.frames as usize
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        if !self.is_open() || frames.is_empty() || !self.catch_up() {
            return TxReport::default();
        }
        self.send(frames)
    }

    fn transmit_or_keep(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        let mut report = self.transmit(frames);
        if self.is_open() {
            let rest = frames[report.consumed..].iter();
            report.consumed += rest.take_while(|frame| self.held.keep(frame)).count();
        }
        report
    }

    fn is_held_up(&mut self) -> bool {
        self.is_open() && !self.catch_up()
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
        self.detach();
        if let Some(poller) = &self.poller {
            // The worker may be ending too, its epoll with it: then there is nothing to undo.
            let _ = poller.remove(self.queue.file.as_raw_fd());
        }
    }
}
