//! What the device's tests stand on: a frontend, and a worker's poller that only notes.
#![expect(
    clippy::disallowed_types,
    reason = "a test's poller is on nobody's packet path"
)]

#[path = "../../../../tests/support/frontend.rs"]
mod frontend;

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub use frontend::*;

use crate::port::{PollRegistry, Poller};

/// Spins until `condition` holds; panics after ten seconds.
#[expect(
    clippy::disallowed_methods,
    reason = "a test's deadline is wall-clock time"
)]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// A worker's poller that only notes what happens.
#[derive(Default)]
pub struct Registry {
    pub watched: Mutex<Vec<RawFd>>,
    pub wakes: AtomicUsize,
}

impl PollRegistry for Registry {
    fn add(&self, fd: RawFd, _token: u64) -> std::io::Result<()> {
        self.watched.lock().unwrap().push(fd);
        Ok(())
    }
    fn remove(&self, fd: RawFd) -> std::io::Result<()> {
        let mut watched = self.watched.lock().unwrap();
        let at = watched.iter().position(|&known| known == fd);
        watched.remove(at.expect("removed a descriptor that was not watched"));
        // A closed one would have been removed too late.
        // SAFETY: F_GETFD only reads.
        assert!(unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0);
        Ok(())
    }
    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn poller() -> (Arc<Registry>, Poller) {
    let registry = Arc::new(Registry::default());
    (Arc::clone(&registry), Poller::new(registry, 7))
}

/// Descriptors this process has open.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

pub fn raw(file: &File) -> RawFd {
    file.as_raw_fd()
}
