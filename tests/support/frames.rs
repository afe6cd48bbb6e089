//! Whole frames in and out of an interface (AF_PACKET).

use std::io::{Error, Result};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::eventually_some;
use super::netns::Netns;

const FRAME_MAX: usize = 65_536 + 64;

/// A frame that was seen on an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// From the destination MAC on, a VLAN tag where it was on the wire.
    pub bytes: Vec<u8>,
    /// Whether this host sent it (false: it arrived).
    pub outgoing: bool,
    /// Whether its checksum is still to be completed by a device.
    pub partial_checksum: bool,
}

/// A raw socket on an interface.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens `interface` of `netns`.
    pub fn open(netns: &Netns, interface: &str) -> Self {
        netns
            .run(|| open(interface))
            .unwrap_or_else(|error| panic!("raw socket on {interface}: {error}"))
    }

    /// From now on every frame has a virtio-net header of 10 bytes in front, both ways: so
    /// it may be unfinished.
    pub fn with_headers(self) -> Self {
        let on: libc::c_int = 1;
        set(&self.0, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &on).unwrap();
        self
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the pointer and the length are those of one slice, only read.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(
            usize::try_from(sent).ok(),
            Some(frame.len()),
            "{}",
            Error::last_os_error()
        );
    }

    /// The next frame, `None` after 20 ms without one.
    pub fn receive(&self) -> Option<Frame> {
        self.receive_start(FRAME_MAX)
    }

    /// The same, of a frame's first `keep` bytes.
    fn receive_start(&self, keep: usize) -> Option<Frame> {
        receive(&self.0, keep).unwrap_or_else(|error| panic!("receive: {error}"))
    }

    /// How many frames did not fit into the socket since this was asked last.
    fn missed(&self) -> u32 {
        // SAFETY: all zeroes is a tpacket_stats.
        let mut stats: libc::tpacket_stats = unsafe { zeroed() };
        let mut length = u32::try_from(size_of::<libc::tpacket_stats>()).unwrap();
        // SAFETY: the pointer and the length are those of `stats`.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        assert_eq!(result, 0, "{}", Error::last_os_error());
        stats.tp_drops
    }
}

fn open(interface: &str) -> Result<RawSocket> {
    let protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
    let name = std::ffi::CString::new(interface).unwrap();
    // SAFETY: the name ends in a zero byte and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(Error::last_os_error());
    }
    // Protocol 0: nothing is received before the socket is bound to its interface.
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new (checked above) and nobody else's.
    let socket = RawSocket(unsafe { OwnedFd::from_raw_fd(fd) });
    let on: libc::c_int = 1;
    set(&socket.0, libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
    let space: libc::c_int = 64 << 20;
    set(&socket.0, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &space)?;
    let tick = libc::timeval {
        tv_sec: 0,
        tv_usec: 20_000,
    };
    set(&socket.0, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &tick)?;

    // SAFETY: all zeroes is a sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index).unwrap();
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    // SAFETY: the pointer and the length are those of `address`.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if bound < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(socket)
    }
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> Result<()> {
    let length = u32::try_from(size_of::<T>()).unwrap();
    let value: *const T = value;
    // SAFETY: the pointer and the length are those of one value, only read.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), length) };
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(())
    }
}

fn receive(socket: &OwnedFd, keep: usize) -> Result<Option<Frame>> {
    let mut bytes = vec![0; keep];
    let mut control = [0_u64; 16];
    // SAFETY: all zeroes is a sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut piece = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeroes is a msghdr without any buffers.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every buffer named in `message` is a local with the length given there.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    if length < 0 {
        let error = Error::last_os_error();
        return match error.raw_os_error() {
            // A tick without a frame; an interface that went down or away.
            Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(None),
            _ => Err(error),
        };
    }
    bytes.truncate(usize::try_from(length).unwrap());
    let mut frame = Frame {
        bytes,
        outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
        partial_checksum: false,
    };
    if let Some(extra) = auxiliary(&message) {
        frame.partial_checksum = extra.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
        // The kernel keeps the outer tag beside the frame.
        if extra.tp_status & libc::TP_STATUS_VLAN_VALID != 0 && frame.bytes.len() >= 12 {
            let mut tag = extra.tp_vlan_tpid.to_be_bytes().to_vec();
            tag.extend(extra.tp_vlan_tci.to_be_bytes());
            frame.bytes.splice(12..12, tag);
        }
    }
    Ok(Some(frame))
}

fn auxiliary(message: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: recvmsg filled the header and its control buffer, which still lives.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    if header.is_null() {
        return None;
    }
    // SAFETY: not null (checked above), inside the control buffer by CMSG_FIRSTHDR.
    let (level, kind, length) = unsafe {
        (
            (*header).cmsg_level,
            (*header).cmsg_type,
            (*header).cmsg_len,
        )
    };
    let payload = u32::try_from(size_of::<libc::tpacket_auxdata>()).unwrap();
    // SAFETY: computes a length, reads nothing.
    let wanted = unsafe { libc::CMSG_LEN(payload) } as usize;
    if level != libc::SOL_PACKET || kind != libc::PACKET_AUXDATA || length < wanted {
        return None;
    }
    // SAFETY: the message holds a whole tpacket_auxdata (kind and length checked above).
    Some(unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    })
}

/// Records all frames of an interface on a thread of its own.
#[derive(Debug)]
pub struct Capture {
    socket: Arc<RawSocket>,
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins; what passes after this returned is recorded.
    pub fn start(netns: &Netns, interface: &str) -> Self {
        Self::start_short(netns, interface, FRAME_MAX)
    }

    /// The same with the first `keep` bytes of each frame only.
    pub fn start_short(netns: &Netns, interface: &str, keep: usize) -> Self {
        let socket = Arc::new(RawSocket::open(netns, interface));
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (socket, frames, stop) = (socket.clone(), frames.clone(), stop.clone());
            move || {
                loop {
                    match socket.receive_start(keep) {
                        Some(frame) => frames.lock().unwrap().push(frame),
                        None if stop.load(Ordering::Acquire) => return,
                        None => {}
                    }
                }
            }
        });
        Self {
            socket,
            frames,
            stop,
            thread: Some(thread),
        }
    }

    /// How many frames it missed since this was asked last.
    pub fn missed(&self) -> u32 {
        self.socket.missed()
    }

    /// What was seen so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.frames.lock().unwrap().clone()
    }

    /// Waits for a frame that `wanted` accepts.
    pub fn wait_for(
        &self,
        deadline: Duration,
        what: &str,
        mut wanted: impl FnMut(&Frame) -> bool,
    ) -> Frame {
        eventually_some(deadline, what, || {
            self.frames
                .lock()
                .unwrap()
                .iter()
                .find(|frame| wanted(frame))
                .cloned()
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed where it happened.
            let _ = thread.join();
        }
    }
}
