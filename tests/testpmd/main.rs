//! Frontends that are not ours (DPDK's testpmd), and frontends that mean no good, against
//! a real `shunt backend`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may be as blunt as tests"
)]

#[path = "../support/mod.rs"]
mod support;

mod crossing;
mod driver;
mod hostile;
mod idle;
mod isolation;
mod restart;
mod rig;
mod taps;
mod traffic;

use std::time::Duration;

/// What takes a moment on an idle machine; this one may be busy.
const SOON: Duration = Duration::from_secs(30);
