//! The XDP program of an uplink, assembled here: a dozen instructions need no compiler.
//!
//! *Promises*: a frame whose destination is `own`, if there is one, goes on to the host's kernel;
//! every other frame goes to the AF_XDP socket of the queue it came in by. Where no
//! socket is (between attaching and binding) it is dropped: what is meant for an element
//! never reaches the host's stack.
//! *Refuses*: nothing. Group addresses are not the host's: the element gets them, alone.
//! *Caller's duty*: the map is an XSKMAP with a place for each receive queue.
//! *Standard*: RFC 9669 (the instruction set), the kernel's
//! Documentation/bpf/map_xskmap.rst.

use std::os::fd::RawFd;

use super::super::bpf::{EXIT, Instruction, add, copy, instruction, set};
use crate::packet::MacAddr;

/// XDP actions (`enum xdp_action`).
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

/// Fields of `struct xdp_md`.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const RX_QUEUE_INDEX: i16 = 16;

/// `bpf_redirect_map(map, key, flags)`; the flags' low bits are the action for an empty place.
const REDIRECT_MAP: i32 = 51;

/// `dst = *(u32 *)(src + offset)`
const fn load32(dst: u8, src: u8, offset: i16) -> Instruction {
    instruction(0x61, dst, src, offset, 0)
}

/// `dst = *(u16 *)(src + offset)`
const fn load16(dst: u8, src: u8, offset: i16) -> Instruction {
    instruction(0x69, dst, src, offset, 0)
}

/// `if dst > src goto +offset`
const fn jump_if_above(dst: u8, src: u8, offset: i16) -> Instruction {
    instruction(0x2d, dst, src, offset, 0)
}

/// `if (u32)dst != value goto +offset`
const fn jump_if_other32(dst: u8, value: i32, offset: i16) -> Instruction {
    instruction(0x56, dst, 0, offset, value)
}

const fn call(function: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, function)
}

/// Ethernet header in bytes: no frame is shorter, but the kernel's verifier wants to be told.
const ETHERNET: i32 = 14;

/// The program for the XSKMAP `sockets`; frames to `own` go to the kernel.
pub(super) fn assemble(sockets: RawFd, own: Option<MacAddr>) -> Vec<Instruction> {
    let mut program = Vec::new();
    if let Some(MacAddr(own)) = own {
        // The packet's bytes are loaded in the machine's order, so they are compared in it.
        let high = i32::from_ne_bytes([own[0], own[1], own[2], own[3]]);
        let low = i32::from(u16::from_ne_bytes([own[4], own[5]]));
        program.extend([
            load32(2, 1, DATA),
            load32(3, 1, DATA_END),
            copy(4, 2),
            add(4, ETHERNET),
            jump_if_above(4, 3, 6),
            load32(4, 2, 0),
            jump_if_other32(4, high, 4),
            load16(4, 2, 4),
            jump_if_other32(4, low, 2),
            set(0, XDP_PASS),
            EXIT,
        ]);
    }
    program.extend([
        load32(2, 1, RX_QUEUE_INDEX),
        // A 64-bit immediate, two instructions long; source 1: it is a map's descriptor.
        instruction(0x18, 1, 1, 0, sockets),
        instruction(0, 0, 0, 0, 0),
        set(3, XDP_DROP),
        call(REDIRECT_MAP),
        EXIT,
    ]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine for just these instructions: the bytes are the frame's, the answer is the
    /// action, or the queue that the frame was redirected to.
    #[derive(PartialEq, Eq, Debug)]
    enum Verdict {
        Action(i64),
        Socket { map: i64, queue: i64, or_else: i64 },
    }

    fn run(program: &[Instruction], frame: &[u8], queue: u32) -> Verdict {
        const FRAME_AT: i64 = 0x1000;
        let mut registers = [0i64; 11];
        let (mut at, mut redirected) = (0, None);
        loop {
            let Instruction {
                opcode,
                registers: pair,
                offset,
                immediate,
            } = program[at];
            let (dst, src) = (usize::from(pair & 15), usize::from(pair >> 4));
            at += 1;
            let load = |size: usize| {
                let address = registers[src] + i64::from(offset);
                if registers[src] < FRAME_AT {
                    return match address {
                        0 => FRAME_AT,
                        4 => FRAME_AT + frame.len() as i64,
                        16 => i64::from(queue),
                        other => panic!("context read at {other}"),
                    };
                }
                let from = (address - FRAME_AT) as usize;
                let mut word = [0; 8];
                word[..size].copy_from_slice(&frame[from..from + size]);
                i64::from_le_bytes(word)
            };
            match opcode {
                0x61 => registers[dst] = load(4),
                0x69 => registers[dst] = load(2),
                0xbf => registers[dst] = registers[src],
                0xb7 => registers[dst] = i64::from(immediate),
                0x07 => registers[dst] += i64::from(immediate),
                0x2d if registers[dst] > registers[src] => at += offset as usize,
                0x56 if registers[dst] as u32 != immediate as u32 => at += offset as usize,
                0x2d | 0x56 => {}
                0x18 => {
                    registers[dst] = i64::from(immediate);
                    at += 1;
                }
                0x85 => {
                    assert_eq!(immediate, REDIRECT_MAP);
                    redirected = Some(Verdict::Socket {
                        map: registers[1],
                        queue: registers[2],
                        or_else: registers[3],
                    });
                }
                0x95 => return redirected.unwrap_or(Verdict::Action(registers[0])),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn frame_to(mac: [u8; 6]) -> Vec<u8> {
        let mut frame = mac.to_vec();
        frame.resize(60, 7);
        frame
    }

    const OWN: [u8; 6] = [0xfe, 0x54, 0x00, 0x12, 0x34, 0xff];

    #[test]
    fn only_frames_to_the_own_address_go_to_the_kernel() {
        let program = assemble(9, Some(MacAddr(OWN)));
        let to_socket = Verdict::Socket {
            map: 9,
            queue: 3,
            or_else: i64::from(XDP_DROP),
        };
        let kernel = Verdict::Action(i64::from(XDP_PASS));
        assert_eq!(run(&program, &frame_to(OWN), 3), kernel);
        for octet in 0..6 {
            let mut other = OWN;
            other[octet] ^= 1;
            assert_eq!(run(&program, &frame_to(other), 3), to_socket);
        }
        assert_eq!(run(&program, &frame_to([0xff; 6]), 3), to_socket);
        assert_eq!(run(&program, &OWN, 3), to_socket);
    }

    #[test]
    fn without_an_own_address_every_frame_goes_to_its_queue() {
        let program = assemble(5, None);
        let to_socket = Verdict::Socket {
            map: 5,
            queue: 0,
            or_else: i64::from(XDP_DROP),
        };
        assert_eq!(run(&program, &frame_to(OWN), 0), to_socket);
        assert_eq!(run(&program, &[], 0), to_socket);
    }
}
