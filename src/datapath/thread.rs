//! What a worker asks of its thread.
//!
//! *Promises*: never fails: where the system refuses, CPU time reads zero and naps are longer.
//! *Refuses*: nothing. *Caller's duty*: on the worker's own thread.
//! *Standard*: clock_gettime(2), PR_SET_TIMERSLACK(2const).

use std::time::Duration;

/// CPU time that this thread has used.
pub(super) fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to write.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    if answer != 0 {
        return Duration::ZERO;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Has this thread's sleeps end on time: by default the kernel adds up to 50 us.
pub(super) fn wake_on_time() {
    // SAFETY: takes numbers only.
    let answer = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    if answer != 0 {
        log::debug!("the kernel keeps its timer slack: short sleeps take longer");
    }
}

/// Sleeps for `span`.
#[expect(
    clippy::disallowed_methods,
    reason = "the worker's one way to sleep with notifications off"
)]
pub(super) fn nap(span: Duration) {
    std::thread::sleep(span);
}
