//! The atomics, cells and shared pointers of the modules whose memory ordering is
//! model-checked.
//!
//! *Promises*: the same names from `std` in every build and from `loom` under
//! `--cfg shunt_loom`, so that what is checked is what ships.
//! *Refuses*: nothing; it holds no logic.
//! *Caller's duty*: a module with a model takes these types from here only.
//! *Standard*: the C++20 memory model, as Rust adopts it.

#[cfg(shunt_loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::Arc,
    sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
        fence,
    },
};

#[cfg(not(shunt_loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
// The data path's alone.
#[cfg(all(not(shunt_loom), feature = "host"))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr};

/// `std`'s cell with the access methods that loom can follow.
#[cfg(not(shunt_loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(shunt_loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Calls `access` with the pointer for reading.
    #[inline(always)]
    pub(crate) fn with<R>(&self, access: impl FnOnce(*const T) -> R) -> R {
        access(self.0.get())
    }

    /// Calls `access` with the pointer for writing.
    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

/// Alone on its cache line (two lines: processors fetch them in pairs).
#[repr(align(128))]
pub(crate) struct CachePadded<T>(pub(crate) T);
