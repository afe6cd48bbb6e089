//! A worker's epoll set.
//!
//! Every descriptor is edge-triggered: an eventfd's next write is a new edge, so the
//! packet path never reads it. *Standard*: epoll(7).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use epoll::{ControlOptions, Event, Events};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::port::PollRegistry;

/// The token of a set's own bell ([`PollRegistry::wake`]); lanes have small numbers.
pub const BELL: u64 = u64::MAX;

/// An epoll set with a bell in it.
#[derive(Debug)]
pub struct EpollSet {
    epoll: RawFd,
    bell: EventFd,
}

impl EpollSet {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        let set = Self {
            epoll: epoll::create(true)?,
            bell: EventFd::new(EFD_NONBLOCK)?,
        };
        set.add(set.bell.as_raw_fd(), BELL)?;
        Ok(set)
    }

    /// Waits for events, at most `timeout` (`None`: for ever; rounded up to milliseconds), and
    /// calls `awake` with each token. An interrupted wait is an empty one.
    pub fn wait(&self, timeout: Option<Duration>, mut awake: impl FnMut(u64)) -> io::Result<()> {
        let millis = match timeout {
            None => -1,
            Some(span) => i32::try_from(span.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
        };
        let mut events = [Event { events: 0, data: 0 }; 64];
        let count = match epoll::wait(self.epoll, millis, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            awake(event.data);
        }
        Ok(())
    }
}

impl PollRegistry for EpollSet {
    fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let event = Event::new(Events::EPOLLIN | Events::EPOLLET, token);
        epoll::ctl(self.epoll, ControlOptions::EPOLL_CTL_ADD, fd, event)
    }

    fn remove(&self, fd: RawFd) -> io::Result<()> {
        let nothing = Event::new(Events::empty(), 0);
        epoll::ctl(self.epoll, ControlOptions::EPOLL_CTL_DEL, fd, nothing)
    }

    fn wake(&self) {
        // A count that is full is already ringing, so a failure says nothing new.
        let _already_ringing = self.bell.write(1);
    }
}

impl Drop for EpollSet {
    fn drop(&mut self) {
        let _already_closed = epoll::close(self.epoll);
    }
}
