//! Ctrl-C and its like: every wait ends, and what was started goes away by its drop.

use std::sync::atomic::{AtomicI32, Ordering};

use crate::support::{INTERRUPTED, is_interrupted};

const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

static WHICH: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    WHICH.store(signal, Ordering::Relaxed);
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on these signals interrupt the demo instead of killing it.
pub fn handle() {
    let handler = note as extern "C" fn(libc::c_int);
    for signal in SIGNALS {
        // SAFETY: the handler has the signature that signal(2) asks for and only stores to
        // atomics, which a handler may do at any point.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Peers that the same Ctrl-C ended are no failure.
        if !is_interrupted() {
            usual(panic);
        }
    }));
}

/// The signal that interrupted the demo.
pub fn caught() -> Option<i32> {
    is_interrupted().then(|| WHICH.load(Ordering::Relaxed))
}
