//! What integration tests share: waiting, names, namespaces, peers, traffic.
//!
//! *Promises*: whatever a helper starts or creates goes away when it is dropped;
//! nothing else on the machine is touched. A helper that cannot do its work panics
//! with what it tried and what the other side said.
//! *Refuses*: to run without root, and to skip: a missing peer fails the test.
//! *Caller's duty*: `make setup` was run.
//! *Standard*: none.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_types,
    reason = "each test crate uses a part, tests may be blunt, and none of this is on a packet path"
)]

pub mod etcd;
pub mod frames;
pub mod frontend;
pub mod guest;
pub mod hugepages;
pub mod netns;
pub mod ovs;
pub mod process;
pub mod refuse;
pub mod router;
pub mod shunt;
pub mod stream;
pub mod tagging;
pub mod tcp;
pub mod tenant;
pub mod testpmd;
pub mod udp;
pub mod yang;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long one look at a condition is from the next.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Now, for measuring how long real peers take.
#[expect(clippy::disallowed_methods, reason = "real peers run on real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Lets real time pass. For pacing traffic; a test that waits uses [`eventually`].
#[expect(
    clippy::disallowed_methods,
    reason = "paced traffic and the one waiting loop"
)]
pub fn pause(time: Duration) {
    stop_if_interrupted();
    std::thread::sleep(time);
    stop_if_interrupted();
}

/// Set, from a signal's handler, to end every wait: the waiting thread unwinds without a
/// word, and what it started goes away with it.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether [`INTERRUPTED`] was set.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Unwinds if [`INTERRUPTED`] was set, unless the thread unwinds already.
pub fn stop_if_interrupted() {
    if is_interrupted() && !std::thread::panicking() {
        std::panic::resume_unwind(Box::new("interrupted"));
    }
}

/// Waits until `look` finds something, at most `deadline`; panics with `what` then.
pub fn eventually_some<T>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let started = now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            started.elapsed() < deadline,
            "not within {deadline:?}: {what}"
        );
        pause(LOOK_EVERY);
    }
}

/// Waits until `condition` holds, at most `deadline`; panics with `what` then.
pub fn eventually(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(deadline, what, || condition().then_some(()));
}

/// Says that `condition` holds at every look during `time`.
pub fn always(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = now();
    while started.elapsed() < time {
        assert!(condition(), "stopped being true: {what}");
        pause(LOOK_EVERY);
    }
}

/// A name nobody else on the machine uses, at most 15 bytes long (an interface's
/// limit) for prefixes of at most 5: prefix, process id and a counter in base 36.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "{prefix}{}x{}",
        base36(std::process::id()),
        base36(NEXT.fetch_add(1, Ordering::Relaxed))
    );
    assert!(name.len() <= 15, "{name}: the prefix is too long");
    name
}

/// A number as [`unique`] writes it.
pub fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).unwrap());
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

/// A directory of the test's own, with a path short enough for Unix sockets.
#[derive(Debug)]
pub struct Dir(tempfile::TempDir);

impl Dir {
    /// A new empty directory, removed on drop.
    pub fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("shunt-")
                .tempdir_in("/tmp")
                .unwrap(),
        )
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of `name` inside; nothing is created.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes `text` to `name` and gives its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// A socket address from its text: `at("10.0.0.1:0")`, `at("[fd00::1]:53")`.
pub fn at(text: &str) -> std::net::SocketAddr {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
