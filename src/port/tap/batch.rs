//! Many reads or writes of a tap in one system call, through io_uring.
//!
//! *Promises*: a call returns when all of its reads or writes have ended, so buffers are
//! borrowed for the call only. They run in order, on this thread, and none waits: each says
//! so itself, since a ring waits for a descriptor that is merely non-blocking. One ring serves
//! all taps of a worker; it is made when its thread first asks, and is the only one to use it.
//! A tap found empty is watched: until something comes, [`is_quiet`] says so without a system call.
//! *Refuses*: nothing: a kernel without io_uring, or one that refuses it (seccomp,
//! `kernel.io_uring_disabled`), is told by `None`, logged once, and costs nothing later; one
//! whose taps know no RWF_NOWAIT likewise, after a first call that moved nothing.
//! *Caller's duty*: at most [`FRAMES_MAX`] buffers a call. A watched tap stays open until
//! [`unwatch`], by the thread that read it, or until that thread ends.
//! *Standard*: io_uring_setup(2), io_uring_enter(2); Linux 6.1.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use io_uring::{IoUring, opcode, squeue::Entry, types::Fd};

use super::VNET_HEADER;
use crate::packet::{Burst, TxFrame, vnet_hdr};

/// Buffers of one call at most.
pub(super) const FRAMES_MAX: usize = Burst::FRAMES_MAX;

/// Header and frame up to this size are copied together: the kernel then has one part to
/// fetch and check instead of two.
const SMALL: usize = 256;

/// What each read or write gave: bytes, or a negated error number.
pub(super) type Results = [i32; FRAMES_MAX];

/// What a request gives that was never begun.
const NOT_BEGUN: i32 = -libc::EINTR;

/// Marks the completions of watches, behind it their place; reads and writes have small numbers.
const WATCH: u64 = 1 << 32;
/// And those of ended ones, which say nothing.
const UNWATCHED: u64 = u64::MAX;

const WITHOUT: &str = "taps are served without io_uring, one frame a system call";

enum State {
    /// Nobody has asked yet.
    Untried,
    /// The kernel has none for us.
    Refused,
    Open(Box<Batch>),
}

thread_local! {
    static STATE: RefCell<State> = const { RefCell::new(State::Untried) };
}

/// A tap's place among those that a ring watches; none at first.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The ring's number, from 1; 0: of none yet.
    ring: u64,
    place: usize,
}

/// Whether the ring knows that a tap is empty. A system call only when something came on one.
pub(super) fn is_quiet(watch: &Watch) -> bool {
    with_open(|batch| batch.is_quiet(watch)).unwrap_or(false)
}

/// Ends a watch: the ring lets go of the tap.
pub(super) fn unwatch(watch: &Watch) {
    with_open(|batch| batch.unwatch(watch));
}

/// Calls `work` with the thread's ring if there is one already.
fn with_open<T>(work: impl FnOnce(&mut Batch) -> T) -> Option<T> {
    STATE
        .try_with(|state| match &mut *state.borrow_mut() {
            State::Open(batch) => Some(work(batch)),
            State::Untried | State::Refused => None,
        })
        .ok()?
}

/// Calls `work` with the thread's ring; `None` when it has none.
pub(super) fn with<T>(work: impl FnOnce(&mut Batch) -> T) -> Option<T> {
    STATE.with_borrow_mut(|state| {
        if matches!(state, State::Untried) {
            *state = open();
        }
        let State::Open(batch) = state else {
            return None;
        };
        let result = work(batch);
        if batch.failed {
            log::info!("{WITHOUT}: it failed");
            *state = State::Refused;
        }
        Some(result)
    })
}

fn open() -> State {
    match Batch::new() {
        Ok(batch) => State::Open(Box::new(batch)),
        Err(error) => {
            log::info!("{WITHOUT}: {error}");
            State::Refused
        }
    }
}

/// What a ring knows of a tap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// It is nobody's.
    Free,
    /// The tap may have something to read.
    Idle,
    /// The tap was empty, and nothing has come since.
    Set,
}

/// A thread's ring, and room for what its requests point to.
pub(super) struct Batch {
    ring: IoUring,
    results: Results,
    small: Box<[[u8; SMALL]; FRAMES_MAX]>,
    headers: [[u8; VNET_HEADER]; FRAMES_MAX],
    parts: [[libc::iovec; 2]; FRAMES_MAX],
    /// No two rings have the same.
    number: u64,
    watched: Vec<Place>,
    /// The kernel gave an error that is none of a single request.
    failed: bool,
}

impl Batch {
    fn new() -> io::Result<Self> {
        static RINGS: AtomicU64 = AtomicU64::new(0);
        let ring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            // A watch goes along with the reads.
            .build(2 * FRAMES_MAX as u32)?;
        let nowhere = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Ok(Self {
            ring,
            results: [NOT_BEGUN; FRAMES_MAX],
            small: Box::new([[0; SMALL]; FRAMES_MAX]),
            headers: [[0; VNET_HEADER]; FRAMES_MAX],
            parts: [[nowhere; 2]; FRAMES_MAX],
            number: RINGS.fetch_add(1, Ordering::Relaxed) + 1,
            watched: Vec::new(),
            failed: false,
        })
    }

    /// Reads `file` into each of `spaces`; says what each read gave, in order. With a `watch`
    /// the file is looked after from behind the last read on.
    pub(super) fn read<'a>(
        &mut self,
        file: &File,
        spaces: impl Iterator<Item = &'a mut [u8]>,
        watch: Option<&mut Watch>,
    ) -> &[i32] {
        let fd = Fd(file.as_raw_fd());
        let mut count = 0;
        for space in spaces.take(FRAMES_MAX) {
            let read = opcode::Read::new(fd, space.as_mut_ptr(), space.len() as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build();
            // SAFETY: `space` is borrowed exclusively until `finish` below has waited.
            count += usize::from(unsafe { self.push(count as u64, &read) });
        }
        if let Some(watch) = watch {
            self.watch(fd, watch);
        }
        self.finish(count)
    }

    fn watch(&mut self, fd: Fd, watch: &mut Watch) {
        // One that several threads read by turns is watched by one of them.
        if watch.ring != 0 && watch.ring != self.number {
            return;
        }
        if watch.ring == 0 {
            let free = self.watched.iter().position(|place| *place == Place::Free);
            let place = free.unwrap_or(self.watched.len());
            if place == self.watched.len() {
                self.watched.push(Place::Idle);
            }
            self.watched[place] = Place::Idle;
            *watch = Watch {
                ring: self.number,
                place,
            };
        }
        if self.watched[watch.place] == Place::Idle {
            let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
            // SAFETY: the request points to nothing.
            let begun = unsafe { self.push(WATCH | watch.place as u64, &poll) };
            if begun {
                self.watched[watch.place] = Place::Set;
            }
        }
    }

    /// Whether a tap was empty at the last look and is so far as is known.
    pub(super) fn is_set(&self, watch: &Watch) -> bool {
        watch.ring == self.number && self.watched[watch.place] == Place::Set
    }

    fn is_quiet(&mut self, watch: &Watch) -> bool {
        if !self.is_set(watch) {
            return false;
        }
        let queue = self.ring.submission();
        let news = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if news {
            // An error is for the next read to meet again.
            let entered = self.ring.submit();
            self.collect();
            return entered.is_ok() && self.is_set(watch);
        }
        true
    }

    fn unwatch(&mut self, watch: &Watch) {
        if self.is_set(watch) {
            let end = opcode::PollRemove::new(WATCH | watch.place as u64).build();
            // SAFETY: the request points to nothing.
            let mut begun = unsafe { self.push(UNWATCHED, &end) };
            while begun && self.is_set(watch) {
                let entered = self.ring.submit_and_wait(1);
                self.collect();
                let interrupted = |error: &io::Error| error.kind() == io::ErrorKind::Interrupted;
                begun = entered.as_ref().err().is_none_or(interrupted);
            }
        }
        if watch.ring == self.number {
            self.watched[watch.place] = Place::Free;
        }
    }

    /// Writes each of `frames` with its virtio-net header to `file`; says what each write
    /// gave, in order.
    pub(super) fn write(&mut self, file: &File, frames: &[TxFrame<'_>]) -> &[i32] {
        let fd = file.as_raw_fd();
        let mut count = 0;
        for frame in frames.iter().take(FRAMES_MAX) {
            let write = self.prepare_write(fd, count, frame);
            // SAFETY: the request points into `self`, which stays where it is, and `frame`,
            // borrowed, until `finish` below has waited; nothing writes there meanwhile.
            count += usize::from(unsafe { self.push(count as u64, &write) });
        }
        self.finish(count)
    }

    fn prepare_write(&mut self, fd: RawFd, place: usize, frame: &TxFrame<'_>) -> Entry {
        let header = vnet_hdr::encode(&frame.offload, frame.data);
        let whole = VNET_HEADER + frame.data.len();
        if let Some(small) = self.small[place].get_mut(..whole) {
            small[..VNET_HEADER].copy_from_slice(&header);
            small[VNET_HEADER..].copy_from_slice(frame.data);
            return opcode::Write::new(Fd(fd), small.as_ptr(), whole as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build();
        }
        self.headers[place] = header;
        // The kernel only reads what an output's iovec points to.
        self.parts[place] = [&self.headers[place], frame.data].map(|part: &[u8]| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        });
        opcode::Writev::new(Fd(fd), self.parts[place].as_ptr(), 2)
            .rw_flags(libc::RWF_NOWAIT)
            .build()
    }

    /// Adds a request that will end as `number`; false if the ring has no room, which cannot be.
    ///
    /// # Safety
    /// What `entry` points to is valid for it until [`Batch::finish`] has returned.
    unsafe fn push(&mut self, number: u64, entry: &Entry) -> bool {
        let entry = entry.clone().user_data(number);
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    /// Has the kernel carry out `count` requests and waits for their ends.
    fn finish(&mut self, count: usize) -> &[i32] {
        let mut ended = 0;
        self.results[..count].fill(NOT_BEGUN);
        // Behind the reads, a watch.
        let others = self.ring.submission().len() - count;
        while ended < count {
            let entered = self.ring.submit_and_wait(count - ended);
            ended += self.collect();
            let Err(error) = entered else {
                continue;
            };
            let not_begun = self.ring.submission().len().saturating_sub(others);
            if error.kind() != io::ErrorKind::Interrupted && ended + not_begun == count {
                // What was begun has ended, and the ring ends with the rest in it.
                self.failed = true;
                break;
            }
        }
        &self.results[..count]
    }

    /// Takes in what has ended. Says how many reads or writes.
    fn collect(&mut self) -> usize {
        let mut ended = 0;
        for end in self.ring.completion() {
            let number = end.user_data();
            if let Some(result) = self.results.get_mut(number as usize) {
                *result = end.result();
                if end.result() == -libc::EOPNOTSUPP {
                    *result = NOT_BEGUN;
                    self.failed = true;
                }
                ended += 1;
            } else if let Some(place) = self.watched.get_mut((number ^ WATCH) as usize) {
                *place = Place::Idle;
            }
        }
        ended
    }
}
