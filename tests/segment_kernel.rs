//! Segmentation and checksum completion equal what Linux makes of the same frames.
//!
//! A frame goes with its virtio-net header through a packet socket into one end of a
//! veth pair that has every offload switched off, so the kernel completes and cuts it;
//! what arrives at the other end is compared byte by byte with Shunt's own work.
//!
//! Needs root (a network namespace); says so and passes without it. The namespace
//! belongs to the test's thread and goes with it, also when the test fails.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the lints spare test functions, not their helpers"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};
use shunt::packet::segment::Segments;
use shunt::packet::vnet_hdr::{self, LEN_LEGACY};
use shunt::packet::{Burst, Checksum, Frame, Gso, GsoKind, Offload, checksum};

const DST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xd];
const SRC_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];
const SRC4: [u8; 4] = [192, 0, 2, 1];
const DST4: [u8; 4] = [198, 51, 100, 2];
const SRC6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const DST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// An EtherType for local experiments (IEEE 802): the frame that says "that was all".
const LAST: [u8; 2] = [0x88, 0xb5];

#[test]
fn segments_equal_those_of_the_kernel() {
    // A thread of its own, since a network namespace belongs to a thread.
    std::thread::spawn(|| {
        // SAFETY: no pointers; it changes this thread's namespace only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("skipped: a network namespace needs root");
            return;
        }
        let wire = Wire::new();
        for (name, data, offload) in cases() {
            let ours = segments(&data, offload);
            let kernels = wire.carry(&data, offload);
            assert_eq!(ours.len(), kernels.len(), "{name}: number of packets");
            for (index, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
                assert_eq!(ours, kernels, "{name}: packet {index}");
            }
            let cut = offload.gso.kind != GsoKind::None;
            assert_eq!(cut, kernels.len() > 1, "{name}: the kernel has cut it");
        }
    })
    .join()
    .unwrap();
}

/// Frames as a guest sends them.
fn cases() -> Vec<(String, Vec<u8>, Offload)> {
    let mut cases = Vec::new();
    for ipv4 in [true, false] {
        for (len, size) in [
            (3000, 1000),
            (3001, 1000),
            (64_000, 1448),
            (5555, 1337),
            (1001, 1000),
        ] {
            for (flags, options) in [(0x10, 0), (0x99, 12), (0x18, 40), (0xf1, 4)] {
                let segment = tcp(flags, options, len);
                let name = format!("TCP v4={ipv4} {len}/{size} flags {flags:#x}");
                cases.push(case(name, ipv4, 6, segment, 16, size));
            }
            let name = format!("UDP v4={ipv4} {len}/{size}");
            cases.push(case(name, ipv4, 17, udp(len), 6, size));
        }
        for len in [0, 1, 99, 1400] {
            let name = |what: &str| format!("{what} v4={ipv4} {len} whole");
            cases.push(case(name("TCP"), ipv4, 6, tcp(0x18, 12, len), 16, 0));
            cases.push(case(name("UDP"), ipv4, 17, udp(len), 6, 0));
        }
    }
    cases
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 / 7) as u8).collect()
}

fn tcp(flags: u8, options: usize, len: usize) -> Vec<u8> {
    // The sequence number wraps within the frame.
    let mut header = TcpHeader::new(40_000, 443, u32::MAX - 1500, 0x2000);
    header.acknowledgment_number = 77;
    header.set_options_raw(&vec![1; options]).unwrap();
    let mut segment = [&header.to_bytes()[..], &payload(len)].concat();
    segment[13] = flags;
    segment
}

fn udp(len: usize) -> Vec<u8> {
    let header = UdpHeader {
        source_port: 40_000,
        destination_port: 443,
        length: (8 + len) as u16,
        checksum: 0,
    };
    [&header.to_bytes()[..], &payload(len)].concat()
}

/// A frame around `segment` with a partial checksum, to be cut unless `size` is 0.
fn case(
    name: String,
    ipv4: bool,
    protocol: u8,
    mut segment: Vec<u8>,
    offset: u16,
    size: u16,
) -> (String, Vec<u8>, Offload) {
    let len = segment.len();
    let pseudo = match ipv4 {
        true => checksum::pseudo_ipv4(SRC4, DST4, protocol, len as u16),
        false => checksum::pseudo_ipv6(&SRC6, &DST6, protocol, len as u32),
    };
    let field = usize::from(offset);
    segment[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    let ecn = protocol == 6 && segment[13] & 0x80 != 0;
    let mut data = [DST_MAC, SRC_MAC].concat();
    if ipv4 {
        let mut ip = Ipv4Header::new(len as u16, 64, IpNumber(protocol), SRC4, DST4).unwrap();
        // The id wraps too.
        ip.identification = 0xfffe;
        ip.header_checksum = ip.calc_header_checksum();
        data.extend([0x08, 0x00]);
        data.extend(&ip.to_bytes()[..]);
    } else {
        let ip = Ipv6Header {
            traffic_class: 0xb8,
            flow_label: Ipv6FlowLabel::try_new(0xabcde).unwrap(),
            payload_length: len as u16,
            next_header: IpNumber(protocol),
            hop_limit: 64,
            source: SRC6,
            destination: DST6,
        };
        data.extend([0x86, 0xdd]);
        data.extend(ip.to_bytes());
    }
    let start = data.len() as u16;
    data.extend(segment);
    let kind = match (size, protocol, ipv4) {
        (0, ..) => GsoKind::None,
        (_, 6, true) => GsoKind::Tcp4,
        (_, 6, false) => GsoKind::Tcp6,
        _ => GsoKind::UdpL4,
    };
    let ecn = ecn && kind != GsoKind::None;
    let offload = Offload {
        checksum: Checksum::Partial { start, offset },
        gso: Gso { kind, size, ecn },
    };
    (name, data, offload)
}

/// Shunt's segments of a frame.
fn segments(data: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(Frame { data, offload }).unwrap();
    let mut burst = Burst::new();
    let mut all = Vec::new();
    while segments.fill(&mut burst) > 0 {
        all.extend((0..burst.len()).map(|index| burst.frame(index).data.to_vec()));
        burst.clear();
    }
    all
}

/// A veth pair without offloads, with a packet socket at each end.
struct Wire {
    near: OwnedFd,
    far: OwnedFd,
}

impl Wire {
    fn new() -> Self {
        ip("link add near type veth peer name far");
        for device in ["near", "far"] {
            ip(&format!("link set {device} mtu 9000 up"));
        }
        let (near, far) = (packet_socket("near"), packet_socket("far"));
        const STXCSUM: u32 = 0x17;
        const STSO: u32 = 0x1f;
        ethtool(&near, "near", STXCSUM);
        ethtool(&near, "near", STSO);
        option(&near, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32);
        let patience = libc::timeval {
            tv_sec: 5,
            tv_usec: 0,
        };
        option(&far, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience);
        Self { near, far }
    }

    /// What the kernel makes of a frame.
    fn carry(&self, data: &[u8], offload: Offload) -> Vec<Vec<u8>> {
        self.send(data, &offload);
        let last = [&DST_MAC[..], &SRC_MAC, &LAST, &[0; 46]].concat();
        self.send(&last, &Offload::default());
        let mut packets = Vec::new();
        loop {
            let packet = self.receive();
            match packet.get(6..12) == Some(&SRC_MAC) {
                true if packet.get(12..14) == Some(&LAST) => return packets,
                true => packets.push(packet),
                // The kernel's own, such as neighbour discovery.
                false => {}
            }
        }
    }

    fn send(&self, data: &[u8], offload: &Offload) {
        let header = vnet_hdr::encode(offload, data);
        let bytes = [&header[..LEN_LEGACY], data].concat();
        // SAFETY: the pointer and length are of `bytes`, which lives through the call.
        let sent =
            unsafe { libc::send(self.near.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        let error = io::Error::last_os_error();
        assert_eq!(
            sent,
            bytes.len() as isize,
            "the kernel took the frame: {error}"
        );
    }

    fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        // SAFETY: the pointer and length are of `bytes`, which lives through the call.
        let len = unsafe {
            libc::recv(
                self.far.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        let error = io::Error::last_os_error();
        bytes.truncate(usize::try_from(len).unwrap_or_else(|_| panic!("nothing arrives: {error}")));
        bytes
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(
        status.expect("iproute2 is installed").success(),
        "ip {arguments}"
    );
}

fn packet_socket(device: &str) -> OwnedFd {
    let name = std::ffi::CString::new(device).unwrap();
    // SAFETY: the name is terminated and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{device} exists");
    let any = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(any)) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a sockaddr_ll is plain data, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = any;
    address.sll_ifindex = index as i32;
    let len = size_of_val(&address) as u32;
    // SAFETY: the pointer and length are of `address`, which lives through the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket
}

fn option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) {
    let len = size_of_val(value) as u32;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the pointer and length are of `value`, which lives through the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// Switches an offload of `device` off (`struct ethtool_value`, linux/ethtool.h).
fn ethtool(socket: &OwnedFd, device: &str, command: u32) {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let mut value = [command, 0u32];
    // SAFETY: an ifreq is plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: both the request and the value it points to live through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}
