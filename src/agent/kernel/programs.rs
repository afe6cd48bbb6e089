//! Programs of eBPF on the `tcx` hooks of interfaces (Linux 6.6), which see every packet, and which
//! netlink does not tell of.
//!
//! *Promises*: two system calls an interface; nothing is changed.
//! *Refuses*: nothing. Where it may not be asked (no CAP_NET_ADMIN in the first user namespace, a
//! filter of system calls), and on older kernels, there are none.
//! *Caller's duty*: to look again.
//! *Standard*: bpf(2); include/uapi/linux/bpf.h (`BPF_PROG_QUERY`).

use std::collections::BTreeSet;
use std::io;

use libc::c_long;

use crate::agent::network::IfIndex;

const PROG_QUERY: c_long = 16;
/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`
const HOOKS: [u32; 2] = [46, 47];

/// What `union bpf_attr` is for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Those of the interfaces that have a program. They may be gone by now.
pub(super) fn on_any_of(interfaces: impl Iterator<Item = IfIndex>) -> BTreeSet<IfIndex> {
    let mut found = BTreeSet::new();
    for on in interfaces {
        for hook in HOOKS {
            match count(on, hook) {
                Ok(0) => {}
                Ok(_) => {
                    found.insert(on);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                // It cannot be asked here at all.
                Err(_) => return found,
            }
        }
    }
    found
}

/// How many programs a hook of an interface of this thread's namespace has.
fn count(on: IfIndex, hook: u32) -> io::Result<u32> {
    let mut query = Query {
        target_ifindex: on.0,
        attach_type: hook,
        ..Query::default()
    };
    // SAFETY: the query is initialised, without padding of the compiler's, and lives through the
    // call; its length goes with it, and the kernel writes inside it only: room for programs'
    // numbers, which it would write elsewhere, is not given (`prog_ids` and `count` are 0).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(query.count)
}
