//! Which queue of a tap the kernel puts a frame into.
//!
//! Left to itself it remembers by which queue a flow's frames were last written and moves the
//! flow there, so that a flow's earlier frames may still wait in one queue while later ones
//! are read from another. A program of ours makes it a function of the frame's headers.
//!
//! *Promises*: once [`pin`] has returned, frames with equal addresses, protocol and ports (TCP,
//! UDP and SCTP over IPv4 and IPv6, at most one 802.1Q tag) go to the same queue for as long
//! as the device has the same queues; fragments by their addresses, other IP packets by these
//! and their protocol; all other frames to the first queue.
//! *Refuses*: nothing: a kernel that refuses the program is told by the error.
//! *Caller's duty*: none. *Standard*: TUNSETSTEERINGEBPF (Linux 4.16), RFC 9669.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::super::bpf::{self, EXIT, Instruction, Kind, add, copy, instruction, set};
use super::sys;

/// Has the kernel choose queues of `tun`'s device by the program; it stays with the device.
pub(super) fn pin(tun: &File) -> io::Result<()> {
    let program = bpf::load(Kind::SocketFilter, &assemble())?;
    sys::set_steering(tun, program.as_raw_fd())
}

/// What a load answers, in the host's byte order.
const VALUE: u8 = 0;
/// The frame; loads ask for it to be in this register.
const FRAME: u8 = 6;
/// Where the IP header begins, later what follows it.
const HEADER: u8 = 7;
/// The hash so far.
const HASH: u8 = 8;
const PROTOCOL: u8 = 9;

const ETHERNET: i32 = 14;
const TAG: i32 = 4;

/// Loads from `at` bytes after [`HEADER`]. A frame too short ends the program with 0.
const fn load8(at: i32) -> Instruction {
    instruction(0x50, 0, HEADER, 0, at)
}

const fn load16(at: i32) -> Instruction {
    instruction(0x48, 0, HEADER, 0, at)
}

const fn load32(at: i32) -> Instruction {
    instruction(0x40, 0, HEADER, 0, at)
}

/// Mixes `src` into the hash: FNV-1a's step, on words.
const fn mix(src: u8) -> [Instruction; 2] {
    const FNV_PRIME: i32 = 0x0100_0193;
    [
        instruction(0xac, HASH, src, 0, 0),
        instruction(0x24, HASH, 0, 0, FNV_PRIME),
    ]
}

/// `dst &= value`
const fn and(dst: u8, value: i32) -> Instruction {
    instruction(0x57, dst, 0, 0, value)
}

/// `if dst == value goto +offset`
const fn jump_if(dst: u8, value: i32, offset: usize) -> Instruction {
    instruction(0x15, dst, 0, offset as i16, value)
}

/// `if dst & value goto +offset`
const fn jump_if_set(dst: u8, value: i32, offset: usize) -> Instruction {
    instruction(0x45, dst, 0, offset as i16, value)
}

/// `if dst != value goto +offset`
const fn jump_if_not(dst: u8, value: i32, offset: usize) -> Instruction {
    instruction(0x55, dst, 0, offset as i16, value)
}

const fn jump(offset: usize) -> Instruction {
    instruction(0x05, 0, 0, offset as i16, 0)
}

/// From the bytes before [`HEADER`] to a queue.
fn assemble() -> Vec<Instruction> {
    let (ipv6, ports) = (ipv6(), ports());
    let ipv4 = ipv4(1 + ipv6.len() + ports.len());
    let mut program = vec![
        copy(FRAME, 1),
        set(HASH, 0),
        set(HEADER, ETHERNET),
        load16(-2),
        jump_if_not(VALUE, libc::ETH_P_8021Q, 2),
        add(HEADER, TAG),
        load16(-2),
        jump_if(VALUE, libc::ETH_P_IPV6, 3 + ipv4.len() + 1),
        jump_if(VALUE, libc::ETH_P_IP, 2),
        set(VALUE, 0),
        EXIT,
    ];
    program.extend(ipv4);
    program.push(jump(ipv6.len()));
    program.extend(ipv6);
    program.extend(ports);
    // The high half of a product depends on all bits of its factors.
    program.extend([copy(VALUE, HASH), instruction(0x74, VALUE, 0, 0, 16), EXIT]);
    program
}

/// Mixes the addresses; then [`HEADER`] is where ports are. A fragment jumps over `rest`
/// instructions to the end: only the first has ports.
fn ipv4(rest: usize) -> Vec<Instruction> {
    const MORE_OR_OFFSET: i32 = 0x3fff;
    let unfragmented = [
        load8(9),
        copy(PROTOCOL, VALUE),
        load8(0),
        and(VALUE, 15),
        // Words to bytes, and on to what follows.
        instruction(0x67, VALUE, 0, 0, 2),
        instruction(0x0f, HEADER, VALUE, 0, 0),
    ];
    let mut code = words(12, 2);
    code.push(load16(6));
    code.push(jump_if_set(
        VALUE,
        MORE_OR_OFFSET,
        unfragmented.len() + rest,
    ));
    code.extend(unfragmented);
    code
}

/// The same; extension headers hide ports, and count as a protocol of their own.
fn ipv6() -> Vec<Instruction> {
    let mut code = words(8, 8);
    code.extend([load8(6), copy(PROTOCOL, VALUE), add(HEADER, 40)]);
    code
}

/// Mixes the protocol, and the ports of one that has some.
fn ports() -> Vec<Instruction> {
    let [mix_protocol, mix_protocol_on] = mix(PROTOCOL);
    let [mix_ports, mix_ports_on] = mix(VALUE);
    vec![
        mix_protocol,
        mix_protocol_on,
        jump_if(PROTOCOL, libc::IPPROTO_TCP, 2),
        jump_if(PROTOCOL, libc::IPPROTO_UDP, 1),
        jump_if_not(PROTOCOL, libc::IPPROTO_SCTP, 3),
        load32(0),
        mix_ports,
        mix_ports_on,
    ]
}

/// Mixes `count` words from `at` on.
fn words(at: i32, count: i32) -> Vec<Instruction> {
    let places = (at..).step_by(4).take(count as usize);
    places
        .flat_map(|at| {
            let [mix, mix_on] = mix(VALUE);
            [load32(at), mix, mix_on]
        })
        .collect()
}
