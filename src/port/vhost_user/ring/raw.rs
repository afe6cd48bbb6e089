//! The only `unsafe` of the rings: one-line accessors over host pointers.
//!
//! *Promises*: safe functions that touch nothing but bytes of a [`GuestMap`]'s
//! regions. A guest may change these bytes at any moment; each accessor reads a
//! place once and returns a copy, and the compiler cannot turn a later use of the
//! copy into a second read (volatile reads, or a compiler fence behind a copy).
//! *Refuses*: addresses outside the regions ([`None`]), areas that are not aligned.
//! *Caller's duty*: that of [`GuestMap::new`].
//! *Standard*: virtio 1.2 section 2.7 (areas, alignment).
//!
//! Invariants, made in one place each:
//! - **I1** (`GuestMap::new`): every region's `host..host + len` is mapped, readable
//!   and writable while the map lives, and no Rust reference points into it.
//! - **I2** (`GuestMap::span`): a [`Span`] lies inside one region of the map it borrows.
//! - **I3** (`Areas::new`): the three areas lie inside regions of the map that `Areas`
//!   owns; each has the size that [`RingConfig`] says for `mask + 1` entries, and
//!   its host address has the area's alignment.

use std::any::Any;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, compiler_fence};

use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::fault::{Area, MapError, RingFault};
use super::layout::{
    AVAIL_ALIGN, DESC_ALIGN, DESCRIPTOR_SIZE, Descriptor, ENTRIES_OFFSET, INDEX_OFFSET, RingConfig,
    USED_ALIGN, USED_ENTRY_SIZE,
};
use super::memory::DirtyLog;
use super::notify::Shared;

/// Called before every read of guest memory, so that a test can change it there.
#[cfg(test)]
pub(super) mod hook {
    use std::cell::{Cell, RefCell};

    type Hook = Box<dyn FnMut()>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
        /// Cheap to ask, so that the benchmark is not about this.
        static IS_SET: Cell<bool> = const { Cell::new(false) };
    }

    pub(in super::super) fn set(hook: Option<Hook>) {
        IS_SET.set(hook.is_some());
        HOOK.with(|slot| *slot.borrow_mut() = hook);
    }

    #[inline]
    pub(super) fn before_read() {
        if !IS_SET.get() {
            return;
        }
        HOOK.with(|slot| {
            if let Some(hook) = slot.borrow_mut().as_mut() {
                hook();
            }
        });
    }
}

#[cfg(not(test))]
mod hook {
    #[inline(always)]
    pub(super) fn before_read() {}
}

/// One mapped region of a guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct GuestRegion {
    /// Guest address of its first byte.
    pub guest_base: u64,
    /// Bytes.
    pub len: u64,
    /// Where its first byte is mapped.
    pub host: NonNull<u8>,
}

/// A guest's memory as rings use it: sorted regions, what keeps them mapped, and
/// where writes are logged during a migration.
pub struct GuestMap {
    regions: Box<[GuestRegion]>,
    dirty: Option<Arc<dyn DirtyLog>>,
    _keep_alive: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointers are used only through the accessors below, none of which
// depends on the thread; `new` demands that the mapping does not either (I1).
unsafe impl Send for GuestMap {}
// SAFETY: as for `Send`; two threads that access the same guest bytes race as the
// guest itself does, which the accessors are made for.
unsafe impl Sync for GuestMap {}

impl std::fmt::Debug for GuestMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMap")
            .field("regions", &self.regions)
            .field("logs_writes", &self.dirty.is_some())
            .finish_non_exhaustive()
    }
}

impl GuestMap {
    /// A map of `regions`, in any order.
    ///
    /// # Safety
    /// While `keep_alive` lives, every byte of every region must be mapped for reading
    /// and writing, from any thread, and no Rust reference may point into it.
    ///
    /// # Errors
    /// A region that is empty or ends beyond 64 bits; two that overlap.
    pub unsafe fn new(
        mut regions: Vec<GuestRegion>,
        keep_alive: Arc<dyn Any + Send + Sync>,
        dirty: Option<Arc<dyn DirtyLog>>,
    ) -> Result<Self, MapError> {
        regions.sort_unstable_by_key(|region| region.guest_base);
        for region in &regions {
            let (guest_base, len) = (region.guest_base, region.len);
            let host = region.host.as_ptr() as u64;
            if len == 0
                || len > isize::MAX as u64
                || guest_base.checked_add(len).is_none()
                || host.checked_add(len).is_none()
            {
                return Err(MapError::Extent { guest_base, len });
            }
        }
        for pair in regions.windows(2) {
            let (first, second) = (pair[0].guest_base, pair[1].guest_base);
            if second - first < pair[0].len {
                return Err(MapError::Overlap { first, second });
            }
        }
        Ok(Self {
            regions: regions.into_boxed_slice(),
            dirty,
            _keep_alive: keep_alive,
        })
    }

    /// A map of the memory that the vhost-user crates hold.
    ///
    /// # Errors
    /// As [`GuestMap::new`]; also a region not mapped for reading and writing.
    pub fn from_memory<B: Bitmap + Send + Sync + 'static>(
        memory: Arc<GuestMemoryMmap<B>>,
        dirty: Option<Arc<dyn DirtyLog>>,
    ) -> Result<Self, MapError> {
        let mut regions = Vec::with_capacity(GuestMemoryBackend::num_regions(&*memory));
        for region in GuestMemoryBackend::iter(&*memory) {
            let guest_base = region.start_addr().raw_value();
            let both = libc::PROT_READ | libc::PROT_WRITE;
            let Some(host) = NonNull::new(region.as_ptr()).filter(|_| region.prot() & both == both)
            else {
                return Err(MapError::Protection { guest_base });
            };
            regions.push(GuestRegion {
                guest_base,
                len: region.len(),
                host,
            });
        }
        // SAFETY: each region is a live `MmapRegion` with both protections (checked
        // above), which `memory`, kept alive, unmaps only when dropped; vm-memory
        // gives out volatile slices, never references, into it.
        unsafe { Self::new(regions, memory, dirty) }
    }

    /// The part of `addr..addr + len` that lies in the region of `addr`; `None` if
    /// there is no such region. `hint` is the region found last.
    #[inline]
    pub(super) fn span(&self, hint: &mut usize, addr: u64, len: usize) -> Option<Span<'_>> {
        let region = match self.regions.get(*hint) {
            Some(region) if addr.wrapping_sub(region.guest_base) < region.len => region,
            _ => self.search(hint, addr)?,
        };
        let offset = addr - region.guest_base;
        let len = len.min((region.len - offset) as usize);
        Some(Span {
            // SAFETY: `offset < region.len` was checked by this function or `search`,
            // so the sum stays inside the mapping (I1).
            host: unsafe { region.host.add(offset as usize) },
            len,
            map: PhantomData,
        })
    }

    #[cold]
    fn search(&self, hint: &mut usize, addr: u64) -> Option<&GuestRegion> {
        let above = self.regions.partition_point(|r| r.guest_base <= addr);
        let index = above.checked_sub(1)?;
        let region = self.regions.get(index)?;
        *hint = index;
        (addr - region.guest_base < region.len).then_some(region)
    }

    /// Tells the migration log, if there is one, that these bytes were written.
    #[inline]
    pub(super) fn mark(&self, addr: u64, len: usize) {
        if let Some(log) = &self.dirty {
            log.mark(addr, len as u64);
        }
    }
}

/// Bytes of one region (I2).
#[derive(Clone, Copy)]
pub(super) struct Span<'m> {
    host: NonNull<u8>,
    len: usize,
    map: PhantomData<&'m GuestMap>,
}

impl Span<'_> {
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
        unsafe {
            self.host
                .copy_to_nonoverlapping(NonNull::from(into).cast(), count)
        };
        compiler_fence(Ordering::SeqCst);
    }

    /// Copies `from` to the first bytes; no more than either side has.
    #[inline]
    pub(super) fn write(self, from: &[u8]) {
        let count = from.len().min(self.len);
        // SAFETY: as in `read`, the other way round.
        unsafe {
            self.host
                .copy_from_nonoverlapping(NonNull::from(from).cast(), count)
        };
    }

    /// Copies all of `from` to the first bytes; false, and nothing done, if there are fewer.
    #[inline]
    pub(super) fn write_array<const N: usize>(self, from: &[u8; N]) -> bool {
        if self.len < N {
            return false;
        }
        // SAFETY: as in `read`, the other way round; `N` bytes are there (checked above).
        unsafe {
            self.host
                .copy_from_nonoverlapping(NonNull::from(from).cast(), N)
        };
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

/// The three areas of a running ring (I3), and the map that keeps them there.
#[derive(Debug)]
pub(super) struct Areas {
    desc: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    /// Entries less one; the number of entries is a power of two.
    mask: u16,
    /// Guest address of the used ring, for the migration log.
    used_addr: u64,
    map: Arc<GuestMap>,
}

// SAFETY: the pointers lead into `map`, which is `Send` and `Sync` and owned (I3).
unsafe impl Send for Areas {}

impl Areas {
    /// Finds the areas of `config` in `map`.
    pub(super) fn new(map: Arc<GuestMap>, config: &RingConfig) -> Result<Self, RingFault> {
        config.check()?;
        let place = |area, addr, len, align| place(&map, area, addr, len, align);
        let desc = place(
            Area::Descriptors,
            config.desc,
            config.desc_bytes(),
            DESC_ALIGN,
        )?;
        let avail = place(
            Area::Available,
            config.avail,
            config.avail_bytes(),
            AVAIL_ALIGN,
        )?;
        let used = place(Area::Used, config.used, config.used_bytes(), USED_ALIGN)?;
        Ok(Self {
            desc,
            avail,
            used,
            mask: config.size - 1,
            used_addr: config.used,
            map,
        })
    }

    #[inline]
    pub(super) fn map(&self) -> &GuestMap {
        &self.map
    }

    /// The available ring's entry for `index`.
    #[inline]
    pub(super) fn head(&self, index: u16) -> u16 {
        hook::before_read();
        let offset = ENTRIES_OFFSET + usize::from(index & self.mask) * 2;
        // SAFETY: the masked index is inside the available ring, 2-aligned (I3).
        u16::from_le(unsafe { self.avail.add(offset).cast::<u16>().read_volatile() })
    }

    /// A copy of descriptor `index`, masked to the table.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Descriptor {
        hook::before_read();
        let offset = usize::from(index & self.mask) * DESCRIPTOR_SIZE;
        // SAFETY: the masked index is inside the table, which is 16-aligned (I3); so is
        // the place 8 bytes on.
        let (first, second) = unsafe {
            let words = self.desc.add(offset).cast::<u64>();
            (words.read_volatile(), words.add(1).read_volatile())
        };
        Descriptor::from_words(first, second)
    }

    /// Writes `entries` from used entry `index` on, in at most two pieces.
    #[inline]
    pub(super) fn write_used(&self, index: u16, entries: &[u64]) {
        let slot = usize::from(index & self.mask);
        let to_end = usize::from(self.mask) + 1 - slot;
        let (first, second) = entries.split_at(entries.len().min(to_end));
        self.write_used_piece(slot, first);
        self.write_used_piece(0, second);
    }

    fn write_used_piece(&self, slot: usize, entries: &[u64]) {
        let entries = &entries[..entries.len().min(usize::from(self.mask) + 1 - slot)];
        if entries.is_empty() {
            return;
        }
        let offset = ENTRIES_OFFSET + slot * USED_ENTRY_SIZE;
        let bytes = size_of_val(entries);
        // SAFETY: `slot + entries.len()` is at most the ring's size (cut above), so the
        // bytes are inside the used ring (I3); they are copied as bytes, so
        // alignment does not matter.
        unsafe {
            let from = NonNull::from(entries).cast::<u8>();
            self.used.add(offset).copy_from_nonoverlapping(from, bytes);
        }
        self.map.mark(self.used_addr + offset as u64, bytes);
    }

    /// Publishes used entries up to `index`.
    #[inline]
    pub(super) fn publish_used(&self, index: u16) {
        self.used_word(INDEX_OFFSET, index, Ordering::Release);
    }

    /// The index of the used ring as it stands in memory.
    pub(super) fn used_idx(&self) -> u16 {
        hook::before_read();
        // SAFETY: the index lies inside the used ring, 2-aligned (I3).
        let word = unsafe { AtomicU16::from_ptr(self.used.add(INDEX_OFFSET).cast().as_ptr()) };
        u16::from_le(word.load(Ordering::Acquire))
    }

    #[inline]
    fn avail_word(&self, offset: usize, order: Ordering) -> u16 {
        hook::before_read();
        // SAFETY: callers pass even offsets inside the available ring, 2-aligned (I3).
        let word = unsafe { AtomicU16::from_ptr(self.avail.add(offset).cast().as_ptr()) };
        u16::from_le(word.load(order))
    }

    #[inline]
    fn used_word(&self, offset: usize, value: u16, order: Ordering) {
        // SAFETY: callers pass even offsets inside the used ring, 4-aligned (I3).
        let word = unsafe { AtomicU16::from_ptr(self.used.add(offset).cast().as_ptr()) };
        word.store(value.to_le(), order);
        self.map.mark(self.used_addr + offset as u64, 2);
    }
}

/// The words that both sides of a ring watch. The two event words exist only with
/// EVENT_IDX; `notify` uses them only then, and [`RingConfig`] sized the areas so.
impl Shared for Areas {
    #[inline]
    fn avail_idx(&self) -> u16 {
        self.avail_word(INDEX_OFFSET, Ordering::Acquire)
    }

    #[inline]
    fn avail_flags(&self) -> u16 {
        self.avail_word(0, Ordering::Relaxed)
    }

    #[inline]
    fn used_event(&self) -> u16 {
        let offset = ENTRIES_OFFSET + (usize::from(self.mask) + 1) * 2;
        self.avail_word(offset, Ordering::Relaxed)
    }

    #[inline]
    fn set_used_flags(&self, flags: u16) {
        self.used_word(0, flags, Ordering::Relaxed);
    }

    #[inline]
    fn set_avail_event(&self, index: u16) {
        let offset = ENTRIES_OFFSET + (usize::from(self.mask) + 1) * USED_ENTRY_SIZE;
        self.used_word(offset, index, Ordering::Relaxed);
    }
}

/// The host address of a whole area inside one region.
fn place(
    map: &GuestMap,
    area: Area,
    addr: u64,
    len: usize,
    align: u64,
) -> Result<NonNull<u8>, RingFault> {
    let span = map
        .span(&mut 0, addr, len)
        .filter(|span| span.len() == len)
        .ok_or(RingFault::AreaUnmapped {
            area,
            addr,
            len: len as u64,
        })?;
    // A frontend chooses the region's base too: what counts for us is the host address.
    let host = span.host.as_ptr() as u64;
    if !addr.is_multiple_of(align) || !host.is_multiple_of(align) {
        return Err(RingFault::Misaligned { area, addr, align });
    }
    Ok(span.host)
}
