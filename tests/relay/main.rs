//! `shunt relay` as a process, between guests on the unix sockets of their serial ports and
//! a server behind mTLS. Every test has a deadline: nothing may hang.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "helpers of tests may be as blunt as tests, and real peers run on real time"
)]

mod faults;
mod guest;
mod pki;
mod qemu;
mod requests;
mod rig;
mod skew;
#[path = "../support/mod.rs"]
mod support;
mod upstream;

use std::time::Duration;

/// Longest a test may take: real peers, a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test, which must end in time.
fn run(test: impl Future<Output = ()>) {
    run_for(DEADLINE, test);
}

/// The same with a time of its own.
fn run_for(deadline: Duration, test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        tokio::time::timeout(deadline, test)
            .await
            .expect("it hangs");
    });
}
