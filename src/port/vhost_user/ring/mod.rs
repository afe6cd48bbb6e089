//! The burst engine over split virtqueues of a guest nobody trusts.
//!
//! A ring is started on a [`GuestMap`] (the guest's mapped memory) with a
//! [`RingConfig`]; [`RxRing`] takes frames out of the guest's transmit queue,
//! [`TxRing`] puts frames into its receive queue. A ring belongs to one worker.
//!
//! *Promises*: whatever the guest writes, when ever it writes it, nothing outside
//! its own memory is read, nothing outside buffers it made writable is written
//! (but for the used ring), no call loops or panics. The first broken chain stops
//! its ring: said once, no more work, other rings unaffected. No call locks,
//! allocates, logs or makes a system call.
//! *Refuses*: packed rings, and what [`RingFault`] lists. Frames that are merely bad
//! are counted.
//! *Caller's duty*: eventfds are the caller's: this module says when. Memory whose
//! file was truncated must read as zeros (SIGBUS is handled elsewhere).
//! *Standard*: virtio 1.2 sections 2.7 and 5.1.6.

mod burst;
mod chain;
mod fault;
mod layout;
mod memory;
#[cfg(all(test, shunt_loom))]
mod nap_model;
mod notify;
mod raw;
mod rx;
mod tx;

#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use fault::{Area, MapError, RingFault};
pub use layout::{RING_SIZE_MAX, RingConfig};
pub use memory::DirtyLog;
pub use raw::{GuestMap, GuestRegion};
pub use rx::{Popped, RxRing};
pub use tx::{Pushed, TxRing};

/// The used index that stands in the ring's memory: where a ring is resumed after the
/// backend was away (everything before it was completed, nothing behind it was).
///
/// # Errors
/// The same as of starting the ring.
pub fn published(map: Arc<GuestMap>, config: &RingConfig) -> Result<u16, RingFault> {
    Ok(raw::Areas::new(map, config)?.used_idx())
}
