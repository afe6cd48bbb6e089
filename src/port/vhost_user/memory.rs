//! A guest's memory: checked, watched, and logged while it migrates.
//!
//! *Promises*: a region is used only when its file is at least as long; while it is used,
//! a file shortened later costs the device only ([`super::sigbus`]). Regions added while
//! a migration runs are logged like those before.
//! *Refuses*: regions longer than their file, memory that is no regular file (its length
//! cannot be known), more than [`REGIONS_MAX`] regions; the frontend is then disconnected.
//! *Caller's duty*: [`Mapped`] is what a [`GuestMap`] keeps alive; nothing else may.
//! *Standard*: vhost-user "Memory regions description" and "Migration".

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};

use vhost_user_backend::bitmap::{AtomicBitmapMmap, BitmapReplace, MemRegionBitmap, MmapLogReg};
use vm_memory::bitmap::{Bitmap, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::device::Shared;
use super::ring::{DirtyLog, GuestMap, GuestRegion, MapError};
use super::sigbus::{Guard, Owner};

/// Regions of one device at most; QEMU hot-plugs up to 255.
pub(super) const REGIONS_MAX: usize = 256;

/// Bytes that one bit of the migration log stands for (`VHOST_LOG_PAGE`).
const LOG_PAGE: u64 = 4096;

/// A guest's memory as the protocol crate holds it.
pub(super) type GuestMemory = GuestMemoryMmap<RegionLog>;

/// Why a memory table is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error("{count} memory regions are more than {REGIONS_MAX}; use fewer or larger ones")]
    TooMany { count: usize },
    #[error("the file of the memory region at {guest_base:#x} cannot be examined")]
    Examine {
        guest_base: u64,
        #[source]
        source: io::Error,
    },
    #[error(
        "the memory region at {guest_base:#x} is no regular file; \
         share memory of the kind memory-backend-memfd or memory-backend-file"
    )]
    NotAFile { guest_base: u64 },
    #[error(
        "the memory region at {guest_base:#x} ends at byte {end} of its file, which has only \
         {file_len}; the VMM shares less memory than it announces"
    )]
    LongerThanFile {
        guest_base: u64,
        end: u64,
        file_len: u64,
    },
    #[error("too many memory regions in all devices together; use fewer or larger ones")]
    TableFull,
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Memory in use: guarded as long as it is mapped. The guards go first.
pub(super) struct Mapped {
    _guards: Vec<Guard>,
    memory: Arc<GuestMemory>,
}

impl Mapped {
    /// Checks every region of `memory` and watches it for `owner`.
    pub(super) fn new(memory: Arc<GuestMemory>, owner: &Owner) -> Result<Arc<Self>, MemoryError> {
        let count = memory.num_regions();
        if count > REGIONS_MAX {
            return Err(MemoryError::TooMany { count });
        }
        let mut guards = Vec::with_capacity(count);
        for region in GuestMemoryBackend::iter(&*memory) {
            check_file(region)?;
            let guard = owner.guard(region.as_ptr() as usize, region.len() as usize);
            guards.push(guard.ok_or(MemoryError::TableFull)?);
        }
        Ok(Arc::new(Self {
            _guards: guards,
            memory,
        }))
    }

    /// The memory itself.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// This memory as rings use it, with writes logged to `log`.
    pub(super) fn guest_map(
        self: &Arc<Self>,
        log: Option<Arc<MigrationLog>>,
    ) -> Result<Arc<GuestMap>, MemoryError> {
        let mut regions = Vec::with_capacity(self.memory.num_regions());
        for region in GuestMemoryBackend::iter(&*self.memory) {
            let guest_base = region.start_addr().raw_value();
            let host = NonNull::new(region.as_ptr()).ok_or(MapError::Protection { guest_base })?;
            regions.push(GuestRegion {
                guest_base,
                len: region.len(),
                host,
            });
        }
        let keep_alive: Arc<Self> = Arc::clone(self);
        let dirty = log.map(|log| log as Arc<dyn DirtyLog>);
        // SAFETY: every region is an `MmapRegion` that vhost's `mmap_region` mapped for
        // reading and writing; `self.memory`, which `keep_alive` owns, unmaps it only when
        // dropped, and vm-memory gives out volatile slices, never references, into it.
        let map = unsafe { GuestMap::new(regions, keep_alive, dirty) }?;
        Ok(Arc::new(map))
    }
}

type Region = <GuestMemory as GuestMemoryBackend>::R;

/// A region must lie inside its file: behind the end every access raises SIGBUS.
fn check_file(region: &Region) -> Result<(), MemoryError> {
    let guest_base = region.start_addr().raw_value();
    let Some(file) = region.file_offset() else {
        return Err(MemoryError::NotAFile { guest_base });
    };
    let meta = file
        .file()
        .metadata()
        .map_err(|source| MemoryError::Examine { guest_base, source })?;
    if !meta.is_file() {
        return Err(MemoryError::NotAFile { guest_base });
    }
    let end = file.start().saturating_add(region.len());
    if end > meta.len() {
        return Err(MemoryError::LongerThanFile {
            guest_base,
            end,
            file_len: meta.len(),
        });
    }
    if !is_sealed(file.file().as_raw_fd()) {
        log::debug!("memory region at {guest_base:#x}: its file can still be shortened");
    }
    Ok(())
}

/// Whether a file can never become shorter (only a memfd can say so).
fn is_sealed(fd: std::os::fd::RawFd) -> bool {
    // SAFETY: F_GET_SEALS takes no argument and only reads; a descriptor of another kind
    // of file answers EINVAL.
    let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_SHRINK != 0
}

/// The bitmap type of our regions: it only learns of a new migration log. Shunt writes
/// to guests through its rings alone, and these mark what they wrote themselves, so the
/// slices that vm-memory makes carry nothing (and cost nothing).
#[derive(Clone, Default)]
pub(super) struct RegionLog {
    /// Whom to tell; only the last region of a memory table has one, as the protocol crate
    /// replaces the logs of all regions in order.
    device: Arc<OnceLock<Weak<Shared>>>,
}

impl RegionLog {
    /// The device hears of a migration log given to this region.
    pub(super) fn tell(&self, device: &Arc<Shared>) {
        self.device.get_or_init(|| Arc::downgrade(device));
    }
}

impl Bitmap for RegionLog {
    fn mark_dirty(&self, _offset: usize, _len: usize) {}

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, _offset: usize) {}
}

impl WithBitmapSlice<'_> for RegionLog {
    type S = ();
}

impl NewBitmap for RegionLog {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl BitmapReplace for RegionLog {
    type InnerBitmap = RegionLogArea;

    fn replace(&self, area: RegionLogArea) {
        if let Some(device) = self.device.get().and_then(Weak::upgrade) {
            device.set_log(area.log);
        }
    }
}

/// A migration log that was found to cover one region.
pub(super) struct RegionLogArea {
    log: Arc<MmapLogReg>,
}

impl MemRegionBitmap for RegionLogArea {
    fn new<R: GuestMemoryRegion>(region: &R, log: Arc<MmapLogReg>) -> io::Result<Self> {
        // The crate's own bitmap makes the check (and gives no other access to the length).
        AtomicBitmapMmap::new(region, Arc::clone(&log))?;
        Ok(Self { log })
    }
}

/// Where rings mark the pages they wrote (vhost-user "Migration").
pub(super) struct MigrationLog {
    _guard: Guard,
    log: Arc<MmapLogReg>,
    /// Pages that the log is known to cover: the first `pages` of the guest.
    pages: u64,
}

impl MigrationLog {
    /// `log` for the regions of `memory`; those it does not cover go unlogged (a frontend
    /// enlarges the log before it adds memory). `None`: it covers none, or no guard is left.
    pub(super) fn new(log: Arc<MmapLogReg>, memory: &GuestMemory, owner: &Owner) -> Option<Self> {
        let pages = GuestMemoryBackend::iter(memory)
            .filter(|region| AtomicBitmapMmap::new(*region, Arc::clone(&log)).is_ok())
            .map(|region| region.last_addr().raw_value() / LOG_PAGE + 1)
            .max()?;
        let first = std::ptr::from_ref(&log[0]) as usize;
        let guard = owner.guard(first, pages.div_ceil(8) as usize)?;
        Some(Self {
            _guard: guard,
            log,
            pages,
        })
    }
}

impl DirtyLog for MigrationLog {
    fn mark(&self, guest_addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = guest_addr.saturating_add(len - 1) / LOG_PAGE;
        for page in guest_addr / LOG_PAGE..=last {
            if page >= self.pages {
                break;
            }
            self.log[(page / 8) as usize].fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }
}
