//! Many reads or writes of a tap in one system call, through io_uring.
//!
//! *Promises*: a call returns when all of its reads or writes have ended, so buffers are
//! borrowed for the call only. They run in order, on this thread, and none waits: each says
//! so itself, since a ring waits for a descriptor that is merely non-blocking. One ring serves all taps of a worker; it is made when its
//! thread first asks, and is the only one to use it.
//! *Refuses*: nothing: a kernel without io_uring, or one that refuses it (seccomp,
//! `kernel.io_uring_disabled`), is told by `None`, logged once, and costs nothing later; one
//! whose taps know no RWF_NOWAIT likewise, after a first call that moved nothing.
//! *Caller's duty*: at most [`FRAMES_MAX`] buffers a call.
//! *Standard*: io_uring_setup(2), io_uring_enter(2); Linux 6.1.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

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

/// A thread's ring, and room for what its requests point to.
pub(super) struct Batch {
    ring: IoUring,
    results: Results,
    small: Box<[[u8; SMALL]; FRAMES_MAX]>,
    headers: [[u8; VNET_HEADER]; FRAMES_MAX],
    parts: [[libc::iovec; 2]; FRAMES_MAX],
    /// The kernel gave an error that is none of a single request.
    failed: bool,
}

impl Batch {
    fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .build(FRAMES_MAX as u32)?;
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
            failed: false,
        })
    }

    /// Reads `file` into each of `spaces`; says what each read gave, in order.
    pub(super) fn read<'a>(
        &mut self,
        file: &File,
        spaces: impl Iterator<Item = &'a mut [u8]>,
    ) -> &[i32] {
        let fd = Fd(file.as_raw_fd());
        let mut count = 0;
        for space in spaces.take(FRAMES_MAX) {
            let read = opcode::Read::new(fd, space.as_mut_ptr(), space.len() as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build();
            // SAFETY: `space` is borrowed exclusively until `finish` below has waited.
            count += usize::from(unsafe { self.push(count, &read) });
        }
        self.finish(count)
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
            count += usize::from(unsafe { self.push(count, &write) });
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

    /// Adds request `place` of a call; false if the ring has no room, which cannot be.
    ///
    /// # Safety
    /// What `entry` points to is valid for it until [`Batch::finish`] has returned.
    unsafe fn push(&mut self, place: usize, entry: &Entry) -> bool {
        let entry = entry.clone().user_data(place as u64);
        // SAFETY: the caller's promise is the one asked for here.
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    /// Has the kernel carry out `count` requests and waits for their ends.
    fn finish(&mut self, count: usize) -> &[i32] {
        let mut ended = 0;
        self.results[..count].fill(NOT_BEGUN);
        while ended < count {
            let entered = self.ring.submit_and_wait(count - ended);
            for end in self.ring.completion() {
                if let Some(result) = self.results.get_mut(end.user_data() as usize) {
                    *result = end.result();
                    if end.result() == -libc::EOPNOTSUPP {
                        *result = NOT_BEGUN;
                        self.failed = true;
                    }
                }
                ended += 1;
            }
            let Err(error) = entered else {
                continue;
            };
            let not_begun = self.ring.submission().len();
            if error.kind() != io::ErrorKind::Interrupted && ended + not_begun == count {
                // What was begun has ended, and the ring ends with the rest in it.
                self.failed = true;
                break;
            }
        }
        &self.results[..count]
    }
}
