//! Runs of guest memory: copies in and out, and hints about cache lines.
//!
//! *Promises*: nothing outside the span is touched. A guest may change its bytes at any moment;
//! a copy out is made once, and the compiler cannot turn a later use of it into a second read.
//! *Refuses*: nothing; a copy is as long as the shorter side.
//! *Caller's duty*: [`Span::new`]'s, which is [`super::raw`]'s. *Standard*: none.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use super::raw::{GuestMap, hook};

/// Copies `count` bytes. The shortest frames go without a call, which took longer than the
/// copy: in pieces of fixed sizes, the last of which may overlap the first.
///
/// # Safety
/// `count` bytes at `from` are readable, as many at `to` writable, and they do not overlap.
#[inline(always)]
unsafe fn copy(from: NonNull<u8>, to: NonNull<u8>, count: usize) {
    /// # Safety
    /// As of `copy`, for `N` bytes from `at` on.
    #[inline(always)]
    unsafe fn piece<const N: usize>(from: NonNull<u8>, to: NonNull<u8>, at: usize) {
        // SAFETY: the caller's.
        unsafe { from.add(at).copy_to_nonoverlapping(to.add(at), N) }
    }
    // SAFETY: each piece ends at or before `count`, which is at least 64 where there are pieces.
    unsafe {
        match count {
            64..=80 => {
                piece::<64>(from, to, 0);
                piece::<16>(from, to, count - 16);
            }
            81..=128 => {
                piece::<64>(from, to, 0);
                piece::<64>(from, to, count - 64);
            }
            _ => from.copy_to_nonoverlapping(to, count),
        }
    }
}

/// Bytes of one region.
#[derive(Clone, Copy)]
pub(super) struct Span<'m> {
    host: NonNull<u8>,
    len: usize,
    map: PhantomData<&'m GuestMap>,
}

impl Span<'_> {
    /// # Safety
    /// `len` bytes from `host` on lie inside one region of a map that is borrowed for as long
    /// as the span lives (I2).
    #[inline(always)]
    pub(super) unsafe fn new(host: NonNull<u8>, len: usize) -> Self {
        let map = PhantomData;
        Self { host, len, map }
    }

    /// Where its first byte is mapped.
    #[inline]
    pub(super) fn host(self) -> NonNull<u8> {
        self.host
    }

    #[inline]
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// Copies the first bytes out; no more than either side has.
    ///
    /// The guest may write meanwhile: the copy is then a mix of old and new bytes,
    /// as any content it could have sent, and only the copy is looked at.
    #[inline]
    pub(super) fn read(self, into: &mut [u8]) {
        hook::before_read();
        let count = into.len().min(self.len);
        // SAFETY: `count` bytes are inside the span (I2, `min` above) and inside `into`;
        // they do not overlap, as no reference points into guest memory (I1).
        unsafe { copy(self.host, NonNull::from(into).cast(), count) };
        compiler_fence(Ordering::SeqCst);
    }

    /// Copies `from` to the first bytes; no more than either side has.
    #[inline]
    pub(super) fn write(self, from: &[u8]) {
        let count = from.len().min(self.len);
        // SAFETY: as in `read`, the other way round.
        unsafe { copy(NonNull::from(from).cast(), self.host, count) };
    }

    /// Makes the first bytes equal to `from`, writing only if they are not; false, and nothing
    /// done, if there are fewer.
    #[inline(always)]
    pub(super) fn settle<const N: usize>(self, from: &[u8; N]) -> bool {
        if self.len < N {
            return false;
        }
        let mut there = [0; N];
        self.read(&mut there);
        if there != *from {
            self.write(from);
        }
        true
    }

    /// The bytes behind the first `count`; none if there are no more.
    #[inline]
    pub(super) fn skip(self, count: usize) -> Self {
        let count = count.min(self.len);
        Self {
            // SAFETY: at most one past the span's end (`min` above), so inside the mapping or
            // right behind it (I2).
            host: unsafe { self.host.add(count) },
            len: self.len - count,
            map: PhantomData,
        }
    }

    /// Asks the CPU for the first byte's cache line, to be read.
    #[inline]
    pub(super) fn prefetch_first(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `prefetch`.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.host.as_ptr().cast_const().cast());
        }
    }

    /// Asks the CPU for the first and the last byte's cache lines, to be read.
    #[inline]
    pub(super) fn prefetch(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing architecturally and cannot fault; SSE is
        // part of x86_64. Both bytes are in the span (I2; the last is the first of an
        // empty one).
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let last = self.host.add(self.len.saturating_sub(1));
            _mm_prefetch::<_MM_HINT_T0>(self.host.as_ptr().cast_const().cast());
            _mm_prefetch::<_MM_HINT_T0>(last.as_ptr().cast_const().cast());
        }
    }

    /// The same, to be written: the lines become this CPU's own at once.
    #[inline]
    pub(super) fn prefetch_to_write(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `prefetch`; a CPU without PREFETCHW takes it for a no-op, as all of
        // x86_64 must.
        unsafe {
            let last = self.host.add(self.len.saturating_sub(1));
            std::arch::asm!(
                "prefetchw [{first}]",
                "prefetchw [{last}]",
                first = in(reg) self.host.as_ptr(),
                last = in(reg) last.as_ptr(),
                options(nostack, preserves_flags, readonly),
            );
        }
    }
}
