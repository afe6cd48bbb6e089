//! SIGBUS: memory that a frontend takes away costs its device, not the process.
//!
//! A frontend shares files; it can shorten one, or let its huge pages run out, at any
//! moment, and the next access here raises SIGBUS.
//!
//! *Promises*: a fault inside a [`Guard`]ed range puts private zero pages under the rest
//! of that range, marks its [`Owner`] lost, and the access goes on. The handler takes no
//! lock and allocates nothing; its tables have a fixed size.
//! *Refuses*: faults anywhere else: they go to the handler that was there before, and so
//! kill the process as they should.
//! *Caller's duty*: a range stays guarded while any thread may touch it, and stays mapped
//! while guarded; whoever touches it asks [`Owner::is_lost`] afterwards.
//! *Standard*: POSIX.1-2017 `mmap` (references beyond the end of an object), vhost-user
//! "Memory region".

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

/// Devices that can be watched at once.
const OWNERS: usize = 1024;

/// Ranges that can be watched at once: sixteen for each device.
const RANGES: usize = OWNERS * 16;

struct OwnerSlot {
    taken: AtomicBool,
    lost: AtomicBool,
}

/// A range, written under a sequence lock: the handler must never pair the start of one
/// range with the end of another, for it maps zero pages up to that end.
struct RangeSlot {
    taken: AtomicBool,
    sequence: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    owner: AtomicU32,
}

static OWNER_SLOTS: [OwnerSlot; OWNERS] = [const {
    OwnerSlot {
        taken: AtomicBool::new(false),
        lost: AtomicBool::new(false),
    }
}; OWNERS];

static RANGE_SLOTS: [RangeSlot; RANGES] = [const {
    RangeSlot {
        taken: AtomicBool::new(false),
        sequence: AtomicU32::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        owner: AtomicU32::new(0),
    }
}; RANGES];

/// How many range slots were ever used: what the handler has to look at.
static RANGES_USED: AtomicUsize = AtomicUsize::new(0);

/// A device whose memory is watched.
#[derive(Debug)]
pub(super) struct Owner {
    index: usize,
}

impl Owner {
    /// A new owner, not lost; `None` when 1024 devices are open.
    pub(super) fn new() -> Option<Self> {
        let index = OWNER_SLOTS.iter().position(|slot| take(&slot.taken))?;
        OWNER_SLOTS[index].lost.store(false, Ordering::Relaxed);
        Some(Self { index })
    }

    /// Whether one of this owner's ranges has faulted since [`Owner::renew`].
    #[inline]
    pub(super) fn is_lost(&self) -> bool {
        OWNER_SLOTS[self.index].lost.load(Ordering::Relaxed)
    }

    /// Forgets an earlier loss: the memory that had it is gone.
    pub(super) fn renew(&self) {
        OWNER_SLOTS[self.index].lost.store(false, Ordering::Relaxed);
    }

    /// Watches `len` bytes from `start`; `None` when the table is full.
    pub(super) fn guard(&self, start: usize, len: usize) -> Option<Guard> {
        let end = start.checked_add(len)?;
        let index = RANGE_SLOTS.iter().position(|slot| take(&slot.taken))?;
        RANGE_SLOTS[index].write(start, end, self.index as u32);
        RANGES_USED.fetch_max(index + 1, Ordering::SeqCst);
        Some(Guard { index })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        OWNER_SLOTS[self.index]
            .taken
            .store(false, Ordering::Release);
    }
}

/// A watched range, until dropped.
#[derive(Debug)]
pub(super) struct Guard {
    index: usize,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = &RANGE_SLOTS[self.index];
        slot.write(0, 0, 0);
        slot.taken.store(false, Ordering::Release);
    }
}

fn take(taken: &AtomicBool) -> bool {
    taken
        .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_ok()
}

impl RangeSlot {
    /// Only whoever took the slot writes it.
    fn write(&self, start: usize, end: usize, owner: u32) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.owner.store(owner, Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The range's end and owner if it holds `address`. A slot being written is passed
    /// over: a range that somebody touches right now is guarded, hence not being written.
    fn find(&self, address: usize) -> Option<(usize, usize)> {
        let before = self.sequence.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        let owner = self.owner.load(Ordering::Relaxed) as usize;
        fence(Ordering::Acquire);
        let stable = before & 1 == 0 && before == self.sequence.load(Ordering::Relaxed);
        (stable && start <= address && address < end).then_some((end, owner))
    }
}

/// Installs the handler, once per process.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| install_now().map_err(|error| error.raw_os_error().unwrap_or(0)))
        .map_err(io::Error::from_raw_os_error)
}

/// The action that was there before; set before the handler can run.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

fn install_now() -> io::Result<()> {
    // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask, SIG_DFL.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only reads; `action` is a valid place for the old one.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut action) } != 0 {
        return Err(io::Error::last_os_error());
    }
    PREVIOUS.get_or_init(|| action);
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = handle;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` names a handler of the SA_SIGINFO form that is async-signal-safe
    // (atomics, mmap and sigaction only) and a mask read from the kernel.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler of the SA_SIGINFO form, and
    // errno's place belongs to this thread.
    let (code, address, errno) = unsafe {
        (
            (*info).si_code,
            (*info).si_addr() as usize,
            *libc::__errno_location(),
        )
    };
    // A positive code says that the kernel raised it for an access.
    let ours = code > 0 && zero_fill(address);
    // SAFETY: as above; the interrupted code may be between a call and its errno.
    unsafe { *libc::__errno_location() = errno };
    if !ours {
        pass_on(signal, info, context);
    }
}

/// Puts zero pages under every guarded range's rest from `address` on; whether there was one.
fn zero_fill(address: usize) -> bool {
    let mut filled = false;
    let used = RANGES_USED.load(Ordering::SeqCst).min(RANGES);
    for slot in &RANGE_SLOTS[..used] {
        if let Some((end, owner)) = slot.find(address) {
            filled |= map_zero(address, end);
            if let Some(owner) = OWNER_SLOTS.get(owner) {
                owner.lost.store(true, Ordering::Relaxed);
            }
        }
    }
    filled
}

fn map_zero(address: usize, end: usize) -> bool {
    // EINVAL says that the mapping's pages are larger: it is a hugetlbfs file, whose
    // mapping begins and ends at multiples of its page, so rounding stays inside it.
    for page in [1usize << 12, 1 << 21, 1 << 30] {
        let start = address & !(page - 1);
        let Some(stop) = end.checked_next_multiple_of(page) else {
            return false;
        };
        // SAFETY: `start..stop` lies within the mapping of a guarded range (guards are
        // taken on whole mappings, `RangeSlot::find` checked the address, and a larger
        // page is only tried after EINVAL); the faulting thread keeps that mapping alive.
        // Others see zeros where there was no page at all.
        let mapped = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                stop - start,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped != libc::MAP_FAILED {
            return true;
        }
        // SAFETY: errno's place belongs to this thread.
        if unsafe { *libc::__errno_location() } != libc::EINVAL {
            return false;
        }
    }
    false
}

/// Does what would have happened without this module.
fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else {
        return;
    };
    let handler = previous.sa_sigaction;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // An access cannot be ignored: back to the default, and it faults again. A
        // signal sent by somebody is raised again for the same end.
        // SAFETY: all-zero is a valid `sigaction` (SIG_DFL, no flags); `info` is the kernel's.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &default, std::ptr::null_mut());
            if (*info).si_code <= 0 && handler == libc::SIG_DFL {
                libc::raise(signal);
            }
        }
    } else if previous.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: the kernel held this address as a handler of the SA_SIGINFO form.
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            unsafe { std::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: the kernel held this address as a handler of the plain form.
        let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
        handler(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::FromRawFd;

    fn shared_file(len: u64) -> std::fs::File {
        // SAFETY: the name is a C string; the descriptor is new and ours.
        let file = unsafe {
            std::fs::File::from_raw_fd(libc::memfd_create(c"sigbus".as_ptr(), libc::MFD_CLOEXEC))
        };
        file.set_len(len).unwrap();
        file
    }

    fn map(file: &std::fs::File, len: usize) -> *mut u8 {
        use std::os::fd::AsRawFd;
        // SAFETY: a new shared mapping of a file of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(address, libc::MAP_FAILED);
        address.cast()
    }

    #[test]
    fn a_shortened_file_reads_as_zero_and_marks_only_its_owner() {
        install().unwrap();
        let (hit, other) = (Owner::new().unwrap(), Owner::new().unwrap());
        let file = shared_file(0x4000);
        let address = map(&file, 0x4000);
        let _guard = hit.guard(address as usize, 0x4000).unwrap();
        let _other = other.guard(0x1000, 0x1000).unwrap();
        // SAFETY: inside the mapping made above.
        unsafe { address.add(0x100).write_volatile(7) };
        file.set_len(0x1000).unwrap();
        // SAFETY: inside the mapping; the handler makes it readable again.
        assert_eq!(unsafe { address.add(0x2345).read_volatile() }, 0);
        assert!(hit.is_lost() && !other.is_lost());
        // SAFETY: as above; what was still there is kept.
        assert_eq!(unsafe { address.add(0x100).read_volatile() }, 7);
        hit.renew();
        assert!(!hit.is_lost());
    }

    #[test]
    fn a_freed_range_is_no_longer_found() {
        let owner = Owner::new().unwrap();
        let guard = owner.guard(0x7000, 0x1000).unwrap();
        let index = guard.index;
        assert_eq!(RANGE_SLOTS[index].find(0x7fff), Some((0x8000, owner.index)));
        assert_eq!(RANGE_SLOTS[index].find(0x8000), None);
        drop(guard);
        assert_ne!(RANGE_SLOTS[index].find(0x7fff), Some((0x8000, owner.index)));
    }
}
