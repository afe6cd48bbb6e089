//! Namespaces, the kernel's side of a tap, and frames, for the tests.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::{FromRawFd, RawFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::super::{PollRegistry, Poller, Port, netns};
use super::super::{TapConfig, link};
use crate::packet::{Burst, Offload};

/// Tests here need the right to make namespaces and devices.
pub(super) fn is_root() -> bool {
    // SAFETY: no arguments, no memory.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: it needs root");
    }
    root
}

/// A network namespace of its own, removed with everything in it.
pub(super) struct Netns(pub(super) String);

impl Netns {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let netns = Self(format!("shunt-tap-{}-{number}", std::process::id()));
        assert!(run("ip", &["netns", "add", &netns.0]));
        // The kernel's own router solicitations would mix with the tests' frames.
        netns.run(|| {
            for device in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
                let _ = std::fs::write(path, "1");
            }
        });
        netns
    }

    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run(&self.0, work).unwrap()
    }

    pub(super) fn ip(&self, words: &str) {
        let mut all = vec!["-n", self.0.as_str()];
        all.extend(words.split_whitespace());
        assert!(run("ip", &all), "ip {words}");
    }

    pub(super) fn link(&self, name: &str) -> Option<link::Link> {
        self.run(|| link::lookup(name).unwrap())
    }

    pub(super) fn config(&self, queues: u16) -> TapConfig {
        TapConfig {
            name: "tap0".to_owned(),
            netns: Some(self.0.clone()),
            queues,
            mtu: None,
            send_buffer: None,
        }
    }

    /// A socket that sends and receives whole frames on `tap0`, as the host would.
    pub(super) fn host(&self) -> Host {
        self.run(|| Host::on(c"tap0"))
    }

    /// `tap0` with an address, and a UDP socket on it.
    pub(super) fn udp(&self) -> UdpSocket {
        self.ip("addr add 10.9.0.1/24 dev tap0");
        let socket = self.run(|| UdpSocket::bind("10.9.0.1:7000").unwrap());
        let wait = Some(std::time::Duration::from_secs(5));
        socket.set_read_timeout(wait).unwrap();
        socket
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        let text = self.run(|| {
            let out = Command::new("ip")
                .args(["-br", "link", "show", "tap0"])
                .output();
            String::from_utf8(out.unwrap().stdout).unwrap()
        });
        let mac: crate::packet::MacAddr = text.split_whitespace().nth(2).unwrap().parse().unwrap();
        mac.0
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).status().unwrap().success()
}

/// A packet socket bound to a device, with virtio-net headers.
pub(super) struct Host(File);

impl Host {
    const PACKET_VNET_HDR: libc::c_int = 15;

    pub(super) fn on(device: &CStr) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: integers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol)) };
        assert!(fd >= 0);
        // SAFETY: made above, owned by nobody else.
        let socket = unsafe { File::from_raw_fd(fd) };
        // SAFETY: the name ends in NUL.
        let index = unsafe { libc::if_nametoindex(device.as_ptr()) };
        assert!(index > 0);
        let on: libc::c_int = 1;
        let wait = libc::timeval {
            tv_sec: 5,
            tv_usec: 0,
        };
        // SAFETY: an all-zero sockaddr_ll is a valid one.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: each pointer is to a live value of the length given.
        unsafe {
            let set = |level, name, value: *const libc::c_void, len: usize| {
                libc::setsockopt(fd, level, name, value, len as u32)
            };
            let on_ptr = std::ptr::from_ref(&on).cast();
            assert_eq!(set(libc::SOL_PACKET, Self::PACKET_VNET_HDR, on_ptr, 4), 0);
            let wait_ptr = std::ptr::from_ref(&wait).cast();
            let len = size_of::<libc::timeval>();
            assert_eq!(set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, wait_ptr, len), 0);
            let len = size_of::<libc::sockaddr_ll>() as u32;
            assert_eq!(libc::bind(fd, std::ptr::from_ref(&address).cast(), len), 0);
        }
        Self(socket)
    }

    /// Sends a finished frame out of the device.
    pub(super) fn send(&self, frame: &[u8]) {
        self.send_with([0; 10], frame);
    }

    /// Sends a frame with a virtio-net header of 10 bytes.
    pub(super) fn send_with(&self, header: [u8; 10], frame: &[u8]) {
        let message = [&header, frame].concat();
        assert_eq!((&self.0).write(&message).unwrap(), message.len());
    }

    /// The next frame that came in over the device, or went out, that starts as `start` says.
    pub(super) fn recv_starting(&self, start: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 70_000];
        loop {
            let len = (&self.0).read(&mut message).unwrap();
            let frame = &message[10..len];
            if frame.starts_with(start) {
                return frame.to_vec();
            }
        }
    }
}

/// A poller with an epoll of its own.
pub(super) struct Bell(RawFd);

impl Bell {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(epoll::create(true).unwrap()))
    }

    pub(super) fn poller(self: &Arc<Self>) -> Poller {
        Poller::new(Arc::clone(self) as Arc<dyn PollRegistry>, 1)
    }

    /// Waits for an event, up to `ms` milliseconds.
    pub(super) fn rings(&self, ms: i32) -> bool {
        let mut events = [epoll::Event::new(epoll::Events::empty(), 0)];
        epoll::wait(self.0, ms, &mut events).unwrap() == 1
    }
}

impl PollRegistry for Bell {
    fn add(&self, fd: RawFd, token: u64) -> std::io::Result<()> {
        let event = epoll::Event::new(epoll::Events::EPOLLIN | epoll::Events::EPOLLET, token);
        epoll::ctl(self.0, epoll::ControlOptions::EPOLL_CTL_ADD, fd, event)
    }

    fn remove(&self, fd: RawFd) -> std::io::Result<()> {
        let event = epoll::Event::new(epoll::Events::empty(), 0);
        epoll::ctl(self.0, epoll::ControlOptions::EPOLL_CTL_DEL, fd, event)
    }

    fn wake(&self) {}
}

impl Drop for Bell {
    fn drop(&mut self) {
        let _ = epoll::close(self.0);
    }
}

/// Waits up to five seconds for `condition`, looking every millisecond. For what ends with a
/// descriptor: a test next door that starts a program holds a copy between fork and exec.
#[track_caller]
pub(super) fn eventually(condition: impl Fn() -> bool) {
    let never = Bell::new();
    assert!((0..5000).any(|_| condition() || never.rings(1)));
}

/// Receives on an attached port until `count` frames came, or none for five seconds.
pub(super) fn receive(port: &mut dyn Port, bell: &Bell, count: usize) -> Vec<(Vec<u8>, Offload)> {
    let mut frames = Vec::new();
    let mut burst = Burst::new();
    loop {
        burst.clear();
        let got = port.receive(&mut burst);
        assert_eq!(got, burst.len());
        for index in 0..got {
            let frame = burst.frame(index);
            frames.push((frame.data.to_vec(), frame.offload));
        }
        if frames.len() >= count || (got == 0 && !bell.rings(5000)) {
            return frames;
        }
    }
}

/// A frame that no protocol of the kernel takes, `len` bytes with the Ethernet header.
pub(super) fn frame(number: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![number; len];
    frame[..6].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// An IPv4 packet 10.9.0.2 → 10.9.0.1 in a frame for `to`, its L4 checksum partial: the
/// field at `offset` in `l4` holds the pseudo-header sum.
pub(super) fn ipv4(to: [u8; 6], protocol: u8, l4: &[u8], offset: usize) -> Vec<u8> {
    let total = (20 + l4.len()) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    ip.extend_from_slice(&[10, 9, 0, 2, 10, 9, 0, 1]);
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = !ones_sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend_from_slice(&[0, protocol]);
    pseudo.extend_from_slice(&(l4.len() as u16).to_be_bytes());
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, 9], &[8, 0], &ip, l4].concat();
    let field = 34 + offset;
    frame[field..field + 2].copy_from_slice(&ones_sum(&pseudo).to_be_bytes());
    frame
}

/// RFC 1071, one word after the other.
pub(super) fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A UDP header for `payload`, 5000 → 7000, checksum field empty.
pub(super) fn udp(payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let ports = [5000u16.to_be_bytes(), 7000u16.to_be_bytes()].concat();
    [&ports[..], &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// A TCP header with ACK for `payload`, 5000 → 7000, checksum field empty.
pub(super) fn tcp(payload: &[u8]) -> Vec<u8> {
    let ports = [5000u16.to_be_bytes(), 7000u16.to_be_bytes()].concat();
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    [&ports[..], &rest, payload].concat()
}
