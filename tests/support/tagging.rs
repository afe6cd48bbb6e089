//! A VLAN's frames on one interface, untagged on another: two programs of the kernel's
//! classifier, for kernels without VLAN devices.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::netns::Netns;

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_PROG_TYPE_SCHED_CLS`
const CLASSIFIER: u32 = 3;
const TCX_INGRESS: u32 = 46;
/// 802.1Q's type as it lies in a frame.
const TPID: i32 = 0x8100_u16.to_be() as i32;

// Functions of the kernel's.
const VLAN_PUSH: i32 = 18;
const VLAN_POP: i32 = 19;
const REDIRECT: i32 = 23;
/// `vlan_present` and `vlan_tci` in `struct __sk_buff`.
const IS_TAGGED: i16 = 20;
const TAG: i16 = 24;

/// An access port to a VLAN of a trunk, for as long as it lives.
#[derive(Debug)]
pub struct AccessPort {
    _links: [OwnedFd; 2],
}

impl AccessPort {
    /// What comes in `netns` by `trunk` with the tag `vlan` leaves by `access` without it, and
    /// the other way round. Nothing else is touched.
    pub fn new(netns: &Netns, trunk: &str, access: &str, vlan: u16) -> Self {
        let [from, to] = [trunk, access].map(|name| index(netns, name));
        let links = netns.run(|| {
            [
                attach(&untagging(i32::from(vlan), to), from),
                attach(&tagging(i32::from(vlan), from), to),
            ]
        });
        Self {
            _links: links.map(|link| link.unwrap_or_else(|error| panic!("bpf(2): {error}"))),
        }
    }
}

fn index(netns: &Netns, interface: &str) -> i32 {
    let line = netns.ip(&format!("-oneline link show dev {interface}"));
    line.split(':').next().unwrap().parse().unwrap()
}

/// An instruction (RFC 9669 section 3).
const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let registers = ((src << 4) | dst) as u64;
    code as u64 | registers << 8 | (offset as u16 as u64) << 16 | (immediate as u32 as u64) << 32
}

const fn copy(dst: u8, src: u8) -> u64 {
    op(0xbf, dst, src, 0, 0)
}

const fn set(dst: u8, value: i32) -> u64 {
    op(0xb7, dst, 0, 0, value)
}

const fn load(dst: u8, src: u8, offset: i16) -> u64 {
    op(0x61, dst, src, offset, 0)
}

const fn call(function: i32) -> u64 {
    op(0x85, 0, 0, 0, function)
}

const EXIT: u64 = op(0x95, 0, 0, 0, 0);

/// Redirects to an interface and ends.
const fn redirect(interface: i32) -> [u64; 4] {
    [set(1, interface), set(2, 0), call(REDIRECT), EXIT]
}

fn tagging(vlan: i32, to: i32) -> Vec<u64> {
    let push = [set(2, TPID), set(3, vlan), call(VLAN_PUSH)];
    [&push[..], &redirect(to)].concat()
}

fn untagging(vlan: i32, to: i32) -> Vec<u64> {
    let rest = [&[copy(1, 6), call(VLAN_POP)][..], &redirect(to)].concat();
    let skip = |past: usize| i16::try_from(past).unwrap();
    let mut program = vec![
        copy(6, 1),
        load(7, 6, IS_TAGGED),
        // Not tagged: past the next three and the rest.
        op(0x15, 7, 0, skip(3 + rest.len()), 0),
        load(7, 6, TAG),
        op(0x57, 7, 0, 0, 0xfff),
        op(0x55, 7, 0, skip(rest.len()), vlan),
    ];
    program.extend(rest);
    // It goes on as if this were not here (TCX_NEXT).
    program.extend([set(0, -1), EXIT]);
    program
}

/// Loads a program and attaches it to what comes in by an interface of this namespace.
fn attach(program: &[u64], interface: i32) -> io::Result<OwnedFd> {
    let mut load = [0_u64; 16];
    load[0] = u64::from(CLASSIFIER) | (program.len() as u64) << 32;
    load[1] = program.as_ptr().expose_provenance() as u64;
    load[2] = c"Apache-2.0".as_ptr().expose_provenance() as u64;
    let program = bpf(PROG_LOAD, &load)?;
    let mut link = [0_u64; 16];
    link[0] = program.as_raw_fd() as u64 | (interface as u64) << 32;
    link[1] = u64::from(TCX_INGRESS);
    bpf(LINK_CREATE, &link)
}

fn bpf(command: libc::c_int, attribute: &[u64; 16]) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is initialised and lives through the call, and its length goes with
    // it; what it points to (a program, a license) is borrowed by `attach` until then.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_ulong::from(command as u32),
            attribute.as_ptr(),
            size_of_val(attribute),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands answer with a descriptor, made for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}
