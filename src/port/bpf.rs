//! bpf(2) for ports: instructions, assembled here, and their way into the kernel.
//!
//! *Promises*: each command is one call; what it points to is borrowed over the call. A
//! program ends with the last that holds it: its descriptor, or what it was attached to.
//! *Refuses*: nothing; errors are the kernel's, its verifier's among them.
//! *Caller's duty*: pointers in an [`Attr`] are to what the command takes them for.
//! *Standard*: bpf(2), RFC 9669 (the instruction set), include/uapi/linux/bpf.h.
//!
//! Programs of a few dozen instructions and four commands need neither a compiler nor a
//! loader for object files (`aya`), still less a C library (`xsk-rs` builds libxdp).

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_ulong};

/// What our programs need of the kernel: none of its functions asks for the GPL.
const LICENSE: &CStr = c"Apache-2.0";

/// One instruction in the kernel's layout (RFC 9669 section 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) opcode: u8,
    /// Destination in the low four bits, source in the high four.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// An instruction, by its parts.
pub(super) const fn instruction(
    opcode: u8,
    dst: u8,
    src: u8,
    offset: i16,
    immediate: i32,
) -> Instruction {
    Instruction {
        opcode,
        registers: src << 4 | dst,
        offset,
        immediate,
    }
}

/// `dst = src`
pub(super) const fn copy(dst: u8, src: u8) -> Instruction {
    instruction(0xbf, dst, src, 0, 0)
}

/// `dst = value`
pub(super) const fn set(dst: u8, value: i32) -> Instruction {
    instruction(0xb7, dst, 0, 0, value)
}

/// `dst += value`
pub(super) const fn add(dst: u8, value: i32) -> Instruction {
    instruction(0x07, dst, 0, 0, value)
}

/// Ends the program with what is in register 0.
pub(super) const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

/// Bytes of `union bpf_attr` that any command here fills.
const ATTR: usize = 64;

/// A command's argument: zero but for the fields that are set. The kernel takes the rest
/// of its own, longer union as zero.
#[repr(C, align(8))]
pub(super) struct Attr([u8; ATTR]);

impl Attr {
    pub(super) fn new() -> Self {
        Self([0; ATTR])
    }

    pub(super) fn with_u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn with_fd(self, at: usize, fd: RawFd) -> Self {
        self.with_u32(at, fd as u32)
    }

    /// The address of something that the caller keeps alive over the call.
    pub(super) fn with_pointer<T>(mut self, at: usize, pointer: *const T) -> Self {
        let address = pointer.addr() as u64;
        // The kernel only reads behind it; whoever reads this sees the exposure.
        let _ = pointer.expose_provenance();
        self.0[at..at + 8].copy_from_slice(&address.to_ne_bytes());
        self
    }
}

const BPF_PROG_LOAD: c_int = 5;

/// One command.
pub(super) fn bpf(command: c_int, attr: &Attr) -> io::Result<c_int> {
    // SAFETY: the attribute is initialised, lives through the call, and its length goes
    // with it; every pointer in it is to memory that the callers borrow until the call is
    // over, as long as the command takes it to be.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            c_ulong::from(command as u32),
            std::ptr::from_ref(attr),
            ATTR as c_ulong,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as c_int)
    }
}

/// A command that answers with a descriptor.
pub(super) fn bpf_fd(command: c_int, attr: &Attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the commands this is used for answer with a descriptor, made for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where a program may be attached (`enum bpf_prog_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Kind {
    /// A socket's filter, and the choice of a tap's queue.
    SocketFilter = 1,
    /// A network device's first look at a frame.
    Xdp = 6,
}

/// Has the kernel verify and compile a program.
pub(super) fn load(kind: Kind, program: &[Instruction]) -> io::Result<OwnedFd> {
    let attr = Attr::new()
        .with_u32(0, kind as u32)
        .with_u32(4, program.len() as u32)
        .with_pointer(8, program.as_ptr())
        .with_pointer(16, LICENSE.as_ptr());
    bpf_fd(BPF_PROG_LOAD, &attr)
}
