//! A kernel that refuses system calls, for one thread and what it starts.

use std::io::Error;

use libc::{c_int, c_long};

/// Runs `start` where no thread or program begun by it gets any of `calls`: they fail with `errno`.
pub fn without<T: Send>(calls: &[c_long], errno: c_int, start: impl FnOnce() -> T + Send) -> T {
    // A filter is for ever, so on a thread of its own.
    let thread = || {
        answer(calls, libc::SECCOMP_RET_ERRNO | errno as u32);
        start()
    };
    std::thread::scope(|scope| scope.spawn(thread).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// From now on the process ends if this thread makes one of `calls`.
pub fn forbid(calls: &[c_long]) {
    answer(calls, libc::SECCOMP_RET_KILL_PROCESS);
}

fn answer(calls: &[c_long], action: u32) {
    let statement = |code: u32, k: u32, jump: (u8, u8)| libc::sock_filter {
        code: code as u16,
        jt: jump.0,
        jf: jump.1,
        k,
    };
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let if_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut filter = vec![statement(load, number, (0, 0))];
    for call in calls {
        filter.push(statement(if_equal, *call as u32, (0, 1)));
        filter.push(statement(answer, action, (0, 0)));
    }
    filter.push(statement(answer, libc::SECCOMP_RET_ALLOW, (0, 0)));
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the first call takes numbers, the second a program that lives through it.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ),
        ]
    };
    assert_eq!(results, [0, 0], "seccomp: {}", Error::last_os_error());
}
