//! Packets of an offloaded session that only the guest can answer or carry.

use std::io::Error;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::network::{CLIENT, Connection, GUEST_LAN, Network, SERVER, SOON, endpoint};
use crate::streams::guest_stands_still;
use crate::support::frames::{Capture, Frame};
use crate::support::udp::{Reply, UdpReceiver};
use crate::support::{at, eventually, eventually_some};

/// The guest's MTU towards the server.
const MTU: u16 = 1_400;
const HEADERS: usize = 28;
const TIME_EXCEEDED: u8 = 11;
const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;

/// An ICMP message inside a frame.
pub struct Icmp {
    pub source: Ipv4Addr,
    pub kind: u8,
    code: u8,
    /// The next hop's MTU, of "fragmentation needed".
    mtu: u16,
    /// What it is about, from the IP header on.
    about: Vec<u8>,
}

impl Icmp {
    /// The ICMP message of an untagged IPv4 frame without options.
    pub fn of(frame: &Frame) -> Option<Self> {
        let packet = frame.bytes.get(14..)?;
        if frame.bytes.get(12..15)? != [8, 0, 0x45] || packet.get(9)? != &1 {
            return None;
        }
        let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
        let message = packet.get(20..)?;
        Some(Self {
            source: source.into(),
            kind: *message.first()?,
            code: *message.get(1)?,
            mtu: u16::from_be_bytes(message.get(6..8)?.try_into().ok()?),
            about: message.get(8..)?.to_vec(),
        })
    }

    /// Whether it answers a UDP datagram of `connection` as the client sent it.
    fn is_about(&self, connection: &Connection) -> bool {
        let from: [u8; 4] = CLIENT.parse::<Ipv4Addr>().unwrap().octets();
        self.about.get(9) == Some(&17)
            && self.about.get(12..16) == Some(&from)
            && self.about.get(20..22) == Some(&connection.from.port().to_be_bytes())
            && self.about.get(22..24) == Some(&connection.to.port().to_be_bytes())
    }
}

/// One session, offloaded, and all that must not take its fast path.
pub fn the_guest_answers_for_an_offloaded_session(network: &mut Network) {
    network
        .guest
        .succeed(&format!("ip link set eth1 mtu {MTU}"));
    let to = at(&endpoint(SERVER, 5_500));
    let _echo = UdpReceiver::start(&network.server, to, Reply::Echo);
    let socket = network.client.run(|| {
        let socket = UdpSocket::bind(at(&endpoint(CLIENT, 42_000))).unwrap();
        socket.connect(to).unwrap();
        socket
    });
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    discover_mtu(&socket, libc::IP_PMTUDISC_PROBE);
    eventually(SOON, "the guest carries the session", || {
        echoes(&socket, 100)
    });
    let connection = network.tracked("udp", to);
    network.offer("odd", &connection, &["--mtu", &MTU.to_string()]);
    eventually(SOON, "the session is active", || {
        echoes(&socket, 100);
        network.is_active("odd")
    });
    // The largest packet that the egress takes goes around the guest, like small ones.
    stays_fast(network, &connection, &socket, usize::from(MTU) - HEADERS);

    expired(network, &connection, &socket);
    too_big(network, &connection, &socket);
    stays_fast(network, &connection, &socket, 100);
    fragments(network, &connection, &socket);
    stays_fast(network, &connection, &socket, 100);

    network.cli(&["session", "del", "odd"]);
    network.guest.succeed("ip link set eth1 mtu 1500");
}

fn stays_fast(network: &mut Network, connection: &Connection, socket: &UdpSocket, size: usize) {
    guest_stands_still(network, connection, |_| {
        for _ in 0..50 {
            assert!(echoes(socket, size), "{size} bytes are not echoed");
        }
    });
}

/// A TTL that ends at the guest ends there, with the guest's answer.
fn expired(network: &Network, connection: &Connection, socket: &UdpSocket) {
    let (client, server) = (
        Capture::start(&network.client, "lan"),
        Capture::start(&network.server, "wan"),
    );
    let punted = network.count("punted", "ttl-expiring");
    socket.set_ttl(1).unwrap();
    let answer = icmp_answer(&client, connection, socket, 333, |icmp| {
        icmp.kind == TIME_EXCEEDED
    });
    assert_eq!(
        (answer.source.to_string().as_str(), answer.code),
        (GUEST_LAN, 0)
    );
    assert!(network.count("punted", "ttl-expiring") > punted);
    socket.set_ttl(64).unwrap();
    // A later packet has come: the expired one would have come before.
    eventually(SOON, "a later packet is echoed", || echoes(socket, 100));
    let arrived = |frame: &Frame| frame.bytes.len() == 14 + HEADERS + 333;
    assert!(!server.frames().iter().any(arrived));
}

/// A packet that must not be fragmented and is larger than the egress takes.
fn too_big(network: &Network, connection: &Connection, socket: &UdpSocket) {
    let capture = Capture::start(&network.client, "lan");
    let punted = network.count("punted", "too-big");
    let size = usize::from(MTU) - HEADERS + 1;
    let answer = icmp_answer(&capture, connection, socket, size, |icmp| {
        icmp.kind == UNREACHABLE && icmp.code == FRAGMENTATION_NEEDED
    });
    assert_eq!(
        (answer.source.to_string().as_str(), answer.mtu),
        (GUEST_LAN, MTU)
    );
    assert!(network.count("punted", "too-big") > punted);
}

/// Fragments are put together, translated and sent on by the guest, both ways.
fn fragments(network: &mut Network, connection: &Connection, socket: &UdpSocket) {
    discover_mtu(socket, libc::IP_PMTUDISC_DONT);
    let punted = network.count("punted", "fragment");
    let seen = network.seen_by_guest(connection).unwrap();
    eventually(SOON, "a datagram in fragments is echoed", || {
        echoes(socket, 4_000)
    });
    assert!(network.count("punted", "fragment") >= punted + 6);
    let later = network.seen_by_guest(connection).unwrap();
    assert!(
        later[0] > seen[0] && later[2] > seen[2],
        "{seen:?} {later:?}"
    );
}

/// Sends until the guest answers.
fn icmp_answer(
    capture: &Capture,
    connection: &Connection,
    socket: &UdpSocket,
    size: usize,
    wanted: impl Fn(&Icmp) -> bool,
) -> Icmp {
    eventually_some(SOON, "the guest answers with ICMP", || {
        assert!(!echoes(socket, size), "it reached the server");
        capture.frames().iter().find_map(|frame| {
            let icmp = Icmp::of(frame)?;
            (!frame.outgoing && wanted(&icmp) && icmp.is_about(connection)).then_some(icmp)
        })
    })
}

/// Whether a datagram of `size` bytes comes back as it was.
fn echoes(socket: &UdpSocket, size: usize) -> bool {
    let sent: Vec<u8> = (0..size).map(|place| (place * 7) as u8).collect();
    // An ICMP error about an earlier one is reported here once.
    if socket.send(&sent).is_err() {
        return false;
    }
    let mut got = vec![0; 65_536];
    loop {
        match socket.recv(&mut got) {
            Ok(length) if got[..length] == sent => return true,
            // An earlier one that was late.
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// Whether the kernel sets "don't fragment", and what it does about the path's MTU.
fn discover_mtu(socket: &UdpSocket, how: libc::c_int) {
    let length = libc::socklen_t::try_from(size_of_val(&how)).unwrap();
    // SAFETY: the pointer and the length are those of `how`, only read.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const how).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "{}", Error::last_os_error());
}
