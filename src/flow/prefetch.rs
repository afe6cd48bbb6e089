//! A hint to the processor that a cache line is needed soon.
//!
//! *Promises*: no effect but on time; the address is never read by the program.
//! *Refuses*: nothing; where the processor has no such hint it does nothing.
//! *Caller's duty*: enough other work between the hint and the use.
//! *Standard*: none.

/// Fetches the line that holds `address` into the first-level cache.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 neither faults nor changes memory, whatever the address;
    // SSE, which has it, is part of x86_64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: PRFM neither faults nor changes memory, flags or the stack.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address,
            options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
