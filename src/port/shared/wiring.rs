//! Who is woken when the shared device has something.
//!
//! *Promises*: the device's descriptors are in the epoll set of one member's worker at a
//! time, the driver's, whichever member that is at the moment.
//! *Refuses*: nothing. *Caller's duty*: none. *Standard*: none.

#![expect(
    clippy::disallowed_types,
    reason = "taken when descriptors or drivers change, by no worker that has frames in hand"
)]

use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::{PollRegistry, Poller};

/// What the device's port takes for its worker's epoll set.
#[derive(Debug, Default)]
pub(super) struct Wiring {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    driver: Option<Poller>,
    watched: Vec<RawFd>,
}

impl Wiring {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `driver`'s worker is woken; nobody's if there is none.
    pub(super) fn drive(&self, driver: Option<Poller>) -> io::Result<()> {
        let mut state = self.state();
        let State {
            driver: old,
            watched,
        } = &mut *state;
        for fd in watched.iter() {
            if let Some(old) = old {
                // Its worker may have ended, and its epoll set with it.
                let _gone = old.remove(*fd);
            }
            if let Some(new) = &driver {
                new.add(*fd)?;
            }
        }
        *old = driver;
        Ok(())
    }
}

impl PollRegistry for Wiring {
    fn add(&self, fd: RawFd, _token: u64) -> io::Result<()> {
        let mut state = self.state();
        if let Some(driver) = &state.driver {
            driver.add(fd)?;
        }
        state.watched.push(fd);
        Ok(())
    }

    fn remove(&self, fd: RawFd) -> io::Result<()> {
        let mut state = self.state();
        state.watched.retain(|watched| *watched != fd);
        match &state.driver {
            Some(driver) => driver.remove(fd),
            None => Ok(()),
        }
    }

    fn wake(&self) {
        if let Some(driver) = &self.state().driver {
            driver.wake();
        }
    }
}
