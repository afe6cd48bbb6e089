//! Memory for a fixed number of equal things, taken from the system when it is first touched.
//!
//! *Promises*: every element starts as [`Vacant`]; the size never changes; what is never touched
//! costs address space only. From two megabytes on, huge pages are asked for: random access to
//! gigabytes is otherwise a walk of page tables.
//! *Refuses*: nothing. Without address space the program ends, as with any allocation.
//! *Caller's duty*: room for all of it, if all of it will be used (`table_memory_bytes`).
//! *Standard*: mmap(2), madvise(2).

/// A type whose vacant value has all bytes zero.
///
/// # Safety
/// All-zero bytes are a valid value, and the type has no drop glue.
pub(super) unsafe trait Vacant {
    /// That value, for the models: they need each atomic made by a call.
    #[cfg(shunt_loom)]
    fn vacant() -> Self;
}

#[cfg(shunt_loom)]
pub(super) type Arena<T> = Box<[T]>;

/// `len` elements.
#[cfg(shunt_loom)]
pub(super) fn arena<T: Vacant>(len: usize) -> Arena<T> {
    (0..len).map(|_| T::vacant()).collect()
}

#[cfg(not(shunt_loom))]
pub(super) use mapped::{Arena, arena};

#[cfg(not(shunt_loom))]
mod mapped {
    use std::alloc::{Layout, handle_alloc_error};
    use std::ops::{Deref, DerefMut};
    use std::ptr::NonNull;

    use super::Vacant;

    /// What huge pages are asked for: several of them at least.
    const HUGE_FROM: usize = 2 << 20;

    /// A slice of vacant elements in a mapping of its own.
    pub(in crate::flow) struct Arena<T> {
        start: NonNull<T>,
        len: usize,
        bytes: usize,
    }

    // SAFETY: the arena owns its elements like a `Box<[T]>`.
    unsafe impl<T: Send> Send for Arena<T> {}
    // SAFETY: as above; a shared arena gives shared elements only.
    unsafe impl<T: Sync> Sync for Arena<T> {}

    /// `len` elements.
    pub(in crate::flow) fn arena<T: Vacant>(len: usize) -> Arena<T> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096) };
        let Ok(layout) = Layout::array::<T>(len.max(1)) else {
            handle_alloc_error(Layout::new::<T>());
        };
        let bytes = layout.size();
        // SAFETY: a new private mapping touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let Some(start) = NonNull::new(start).filter(|_| start != libc::MAP_FAILED) else {
            handle_alloc_error(layout);
        };
        if bytes >= HUGE_FROM {
            // SAFETY: the range is the mapping just made. An advice that fails changes nothing.
            unsafe { libc::madvise(start.as_ptr(), bytes, libc::MADV_HUGEPAGE) };
        }
        Arena {
            start: start.cast(),
            len,
            bytes,
        }
    }

    impl<T> Deref for Arena<T> {
        type Target = [T];

        #[inline(always)]
        fn deref(&self) -> &[T] {
            // SAFETY: the mapping holds `len` elements, page-aligned, zero at first, which
            // `Vacant` says is a value; it lives as long as `self`.
            unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
        }
    }

    impl<T> DerefMut for Arena<T> {
        #[inline(always)]
        fn deref_mut(&mut self) -> &mut [T] {
            // SAFETY: as above, and `&mut self` is the only way in.
            unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
        }
    }

    impl<T> Drop for Arena<T> {
        fn drop(&mut self) {
            // SAFETY: the mapping is this arena's own and nothing borrows from it any more.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        // SAFETY: zero is a number.
        unsafe impl Vacant for u64 {}

        #[test]
        fn an_arena_starts_vacant_and_keeps_what_is_written() {
            let mut numbers = arena::<u64>(1 << 20);
            assert_eq!(numbers.len(), 1 << 20);
            assert!(numbers.iter().all(|number| *number == 0));
            numbers[(1 << 20) - 1] = 7;
            assert_eq!(numbers[(1 << 20) - 1], 7);
            assert!(arena::<u64>(0).is_empty());
        }
    }
}
