//! The atomics of the modules whose memory ordering is model-checked.
//!
//! *Promises*: the same names from `std` in every build and from `loom` under
//! `--cfg shunt_loom`, so that what is checked is what ships.
//! *Refuses*: nothing; it holds no logic.
//! *Caller's duty*: a module with a model takes these types from here only.
//! *Standard*: the C++20 memory model, as Rust adopts it.

#[cfg(shunt_loom)]
pub(crate) use loom::sync::atomic::{Ordering, fence};

#[cfg(not(shunt_loom))]
pub(crate) use std::sync::atomic::{Ordering, fence};
