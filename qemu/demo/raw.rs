//! Small UDP packets sent as finished frames: a generator that costs the machine little, so
//! that on two cores the path under test is what is measured.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use etherparse::PacketBuilder;

use crate::support::netns::Netns;

/// Frames sent by one system call at most.
pub const BATCH: usize = 64;
/// Bytes of a frame before its payload: Ethernet, IPv4, UDP.
const HEADERS: usize = 42;
/// Where the UDP checksum stands.
const CHECKSUM: usize = 40;
/// Frames that wait in the tap are charged to the socket.
const SEND_BUFFER: libc::c_int = 64 << 20;

/// A packet socket on one interface, and the frame that it sends.
#[derive(Debug)]
pub struct Sender {
    socket: OwnedFd,
    template: Vec<u8>,
}

/// The ends of the datagrams as the sender's network sees them.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// The next hop.
    pub gateway_mac: [u8; 6],
}

impl Sender {
    /// Sends on `interface` of `netns` datagrams of `payload` bytes.
    pub fn open(netns: &Netns, interface: &str, ends: Ends, payload: usize) -> Self {
        let own: Vec<u8> = netns
            .mac(interface)
            .split(':')
            .map(|octet| u8::from_str_radix(octet, 16).unwrap())
            .collect();
        let socket = netns
            .run(|| open(interface))
            .unwrap_or_else(|error| panic!("packet socket on {interface}: {error}"));
        let template = template(own.try_into().unwrap(), ends, payload);
        Self { socket, template }
    }

    /// Sends a frame for each of `payloads`, at most [`BATCH`]; says how many went.
    pub fn send<const N: usize>(&self, payloads: &[[u8; N]]) -> u64 {
        assert_eq!(self.template.len(), HEADERS + N);
        let mut frames = [[0; 128]; BATCH];
        let mut parts = [NO_PART; BATCH];
        for ((frame, part), payload) in frames.iter_mut().zip(&mut parts).zip(payloads) {
            let frame = &mut frame[..HEADERS + N];
            frame.copy_from_slice(&self.template);
            frame[HEADERS..].copy_from_slice(payload);
            let sum = checksum(&frame[CHECKSUM..CHECKSUM + 2], payload);
            frame[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum);
            part.iov_base = frame.as_mut_ptr().cast();
            part.iov_len = frame.len();
        }
        let first = parts.as_mut_ptr();
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|index| {
            // SAFETY: mmsghdr is integers and pointers, for which zero is a value.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = first.wrapping_add(index);
            header.msg_hdr.msg_iovlen = 1;
            header
        });
        let count = payloads.len().min(BATCH);
        // SAFETY: each of the first `count` headers names one part, that one frame; all live
        // through the call.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                0,
            )
        };
        // Refused, interrupted: they are due again at the next look.
        u64::try_from(sent).unwrap_or(0)
    }
}

const NO_PART: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// The frame with a payload of zeroes.
fn template(own_mac: [u8; 6], ends: Ends, payload: usize) -> Vec<u8> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (ends.from, ends.to) else {
        panic!("the demo's addresses are IPv4");
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(own_mac, ends.gateway_mac)
        .ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port())
        .write(&mut frame, &vec![0; payload])
        .unwrap();
    frame
}

/// The checksum that `of_zeroes` becomes with `payload` (RFC 1071).
fn checksum(of_zeroes: &[u8], payload: &[u8]) -> [u8; 2] {
    let word =
        |bytes: &[u8]| u32::from(bytes[0]) << 8 | bytes.get(1).map_or(0, |low| u32::from(*low));
    let mut sum = u32::from(!(word(of_zeroes) as u16));
    sum += payload.chunks(2).map(word).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => [0xff, 0xff],
        sum => sum.to_be_bytes(),
    }
}

fn open(interface: &str) -> Result<OwnedFd> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the name ends in a zero byte and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: takes no pointers. Protocol 0: it receives nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if index == 0 || fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new (checked above) and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)?;
    // SAFETY: sockaddr_ll is integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `address`.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if bound < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(socket)
    }
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `value`, only read during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(())
    }
}
