//! What is nobody's session passes through a served element as if Shunt were not there.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may be as blunt as tests"
)]

mod support;

use serde_json::json;
use support::frames::{Capture, RawSocket};
use support::netns::Netns;
use support::router::{CLIENT, Flow, SERVER, SOON, Sessions};
use support::shunt::Shunt;
use support::testpmd::Testpmd;
use support::{Dir, eventually};

const LAN_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x77];
const BROADCAST: [u8; 6] = [0xff; 6];
const VRRP_MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 10];
const BRIDGE_GROUP: [u8; 6] = [1, 0x80, 0xc2, 0, 0, 0];
const SLOW_PROTOCOLS: [u8; 6] = [1, 0x80, 0xc2, 0, 0, 2];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// The largest L3 packet of a jumbo frame.
const JUMBO: usize = 9000;

/// An element that bridges its two vNICs and changes nothing: testpmd.
const BRIDGE: &str = r#"
[backend]
control = "{dir}/control.sock"
[[element]]
name = "router"
[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:00:00:01"
mtu = 9000
uplink = { type = "tap", name = "lan", netns = "LAN" }
[[element.vnic]]
name = "wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:00:00:02"
mtu = 9000
uplink = { type = "tap", name = "wan", netns = "WAN" }
"#;

#[test]
fn frames_without_a_session_come_out_byte_for_byte_and_in_order() {
    let dir = Dir::new();
    let (lan, wan) = (silent("lan"), silent("wan"));
    let config = BRIDGE.replace("LAN", lan.name()).replace("WAN", wan.name());
    let shunt = Shunt::start(&dir, &config);
    let properties = "queues=1,mrg_rxbuf=1";
    let mut guest = Testpmd::build("io")
        .lcores("0@(0,1),1@(0,1)")
        .virtio_user(&dir.file("lan.sock"), properties)
        .virtio_user(&dir.file("wan.sock"), properties)
        .argument("--max-pkt-len=9022")
        .argument("--mbuf-size=10240")
        .argument("--total-num-mbufs=4096")
        .start(&dir);
    guest.forward();

    // Sessions, so that every frame is parsed and looked up: an active and a pending one.
    let sessions = Sessions::new(shunt.control());
    let macs = json!({"destination-mac": "52:54:00:00:00:99", "source-mac": "52:54:00:00:00:02"});
    let offer = |key, port, vouched| {
        let mut original = json!({
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": CLIENT, "source-port": 40_000,
            "destination-address": SERVER, "destination-port": port,
        });
        if vouched {
            let more = macs.as_object().unwrap().clone();
            original.as_object_mut().unwrap().extend(more);
        }
        json!({
            "key": key, "protocol": "udp", "directions": "original", "vouched": vouched,
            "idle-timeout": 3600, "original": original,
        })
    };
    sessions.offload(&[offer("active", 53, true), offer("pending", 54, false)]);
    eventually(SOON, "the vouched session is active", || {
        sessions.flows("active") == [Flow::Active, Flow::Absent]
    });

    let kinds = kinds();
    for (from, from_name, to, to_name) in [(&lan, "lan", &wan, "wan"), (&wan, "wan", &lan, "lan")] {
        let capture = Capture::start(to, to_name);
        let socket = RawSocket::open(from, from_name);
        for (what, frame) in &kinds {
            socket.send(frame);
            capture.wait_for(SOON, &format!("{what} from {from_name}"), |seen| {
                seen.bytes == *frame
            });
        }
        // And nothing else came, nothing twice, nothing in another order.
        for (_, frame) in &kinds {
            socket.send(frame);
        }
        let twice = kinds.iter().chain(&kinds);
        eventually(SOON, "all of them come once more", || {
            capture.frames().len() >= 2 * kinds.len()
        });
        let seen = capture.frames();
        assert_eq!(seen.len(), 2 * kinds.len());
        for (seen, (what, frame)) in seen.iter().zip(twice) {
            assert!(seen.bytes == *frame, "{what} was expected, {seen:x?} came");
        }
    }

    let statistics = sessions.statistics();
    assert_eq!(statistics["forwarded"]["packets"], "0", "{statistics}");
    for dropped in statistics["dropped"].as_array().unwrap() {
        assert_eq!(dropped["count"], "0", "{dropped}");
    }
    // The session was ready all the time.
    RawSocket::open(&lan, "lan").send(&datagram(LAN_MAC, 53, 100));
    eventually(
        SOON,
        "a packet of the session goes around the guest",
        || sessions.statistics()["forwarded"]["packets"] == "1",
    );
}

/// A namespace whose kernel sends nothing by itself.
fn silent(name: &str) -> Netns {
    let netns = Netns::new(name);
    netns.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
    netns
}

/// Every kind of frame that a session must leave alone, with its name.
fn kinds() -> Vec<(&'static str, Vec<u8>)> {
    let mut kinds = neighbours();
    kinds.extend(groups());
    kinds.extend(link_protocols());
    kinds.extend(tagged());
    kinds.extend(odd_packets());
    kinds
}

fn neighbours() -> Vec<(&'static str, Vec<u8>)> {
    let arp = |operation: u8| {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, operation];
        arp.extend(HOST_MAC);
        arp.extend([10, 71, 0, 2]);
        arp.extend([0; 6]);
        arp.extend([10, 71, 0, 1]);
        arp.resize(46, 0);
        arp
    };
    let solicited = [0x33, 0x33, 0xff, 0, 0, 1];
    vec![
        ("ARP request", ethernet(BROADCAST, 0x0806, &arp(1))),
        ("ARP reply", ethernet(LAN_MAC, 0x0806, &arp(2))),
        (
            "neighbour solicitation",
            ethernet(solicited, IPV6, &ndp(135)),
        ),
        (
            "neighbour advertisement",
            ethernet(LAN_MAC, IPV6, &ndp(136)),
        ),
        (
            "router solicitation",
            ethernet([0x33, 0x33, 0, 0, 0, 2], IPV6, &ndp(133)),
        ),
        (
            "router advertisement",
            ethernet([0x33, 0x33, 0, 0, 0, 1], IPV6, &ndp(134)),
        ),
    ]
}

fn groups() -> Vec<(&'static str, Vec<u8>)> {
    let mdns = [1, 0, 0x5e, 0, 0, 0xfb];
    let discover = udp([0; 4], [255; 4], (68, 67), 300);
    let mdns_query = udp([10, 71, 0, 2], [224, 0, 0, 251], (5353, 5353), 60);
    let mut vrrp = ethernet(
        [1, 0, 0x5e, 0, 0, 18],
        IPV4,
        &ipv4([10, 71, 0, 2], [224, 0, 0, 18], 112, &[0x31; 20]),
    );
    vrrp[6..12].copy_from_slice(&VRRP_MAC);
    vec![
        ("DHCP discover", ethernet(BROADCAST, IPV4, &discover)),
        ("a session's packet to all", datagram(BROADCAST, 53, 100)),
        ("a session's packet to a group", datagram(mdns, 53, 100)),
        ("multicast DNS", ethernet(mdns, IPV4, &mdns_query)),
        (
            "IPv6 multicast",
            ethernet([0x33, 0x33, 0, 0, 0, 0xfb], IPV6, &ipv6(17, &[7; 40])),
        ),
        ("VRRP advertisement", vrrp),
        (
            "a session's packet to the VRRP MAC",
            datagram(VRRP_MAC, 53, 100),
        ),
        (
            "a session's packet to another MAC",
            datagram(HOST_MAC, 53, 100),
        ),
        ("a pending session's packet", datagram(LAN_MAC, 54, 100)),
        ("a jumbo frame", datagram(LAN_MAC, 55, JUMBO - 28)),
        ("a jumbo frame to all", datagram(BROADCAST, 53, JUMBO - 28)),
    ]
}

fn link_protocols() -> Vec<(&'static str, Vec<u8>)> {
    // 802.3: a length and LLC.
    let mut bpdu = vec![0x42, 0x42, 0x03, 0, 0, 0, 0, 0];
    bpdu.resize(46, 0x11);
    let mut lacp = vec![1, 1, 1, 20];
    lacp.resize(110, 0x22);
    vec![
        ("STP", ethernet(BRIDGE_GROUP, 38, &bpdu)),
        ("LACP", ethernet(SLOW_PROTOCOLS, 0x8809, &lacp)),
        (
            "LLDP",
            ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[0x33; 46]),
        ),
        (
            "EAPOL",
            ethernet([1, 0x80, 0xc2, 0, 0, 3], 0x888e, &[0x44; 46]),
        ),
        ("MPLS", ethernet(LAN_MAC, 0x8847, &[0x55; 60])),
        ("PPPoE", ethernet(LAN_MAC, 0x8864, &[0x66; 60])),
        (
            "an unknown protocol",
            ethernet(LAN_MAC, 0x88b5, &[0x77; 60]),
        ),
        ("a frame without a payload", ethernet(LAN_MAC, 0x88b5, &[])),
    ]
}

fn tagged() -> Vec<(&'static str, Vec<u8>)> {
    let tag = |frame: Vec<u8>, protocol: u16, vlan: u16| {
        let mut tagged = frame;
        let tag = [protocol.to_be_bytes(), vlan.to_be_bytes()].concat();
        tagged.splice(12..12, tag);
        tagged
    };
    let inner = || datagram(LAN_MAC, 53, 100);
    // A socket allows one tag beyond the MTU, if it is 802.1Q.
    let jumbo = |tags: usize| datagram(LAN_MAC, 53, JUMBO - 28 + 4 - 4 * tags);
    let arp = || neighbours().remove(0).1;
    vec![
        ("802.1Q of no session", tag(inner(), 0x8100, 0x6007)),
        ("a priority tag before ARP", tag(arp(), 0x8100, 0xa000)),
        ("802.1ad", tag(inner(), 0x88a8, 100)),
        (
            "802.1ad around 802.1Q",
            tag(tag(inner(), 0x8100, 7), 0x88a8, 100),
        ),
        ("802.1Q twice", tag(tag(inner(), 0x8100, 7), 0x8100, 8)),
        ("a tagged jumbo frame", tag(jumbo(1), 0x8100, 7)),
        (
            "a jumbo frame with 802.1ad and 802.1Q",
            tag(tag(jumbo(3), 0x8100, 7), 0x88a8, 100),
        ),
    ]
}

/// To the session's own MAC and addresses, but not to be touched.
fn odd_packets() -> Vec<(&'static str, Vec<u8>)> {
    let plain = || datagram(LAN_MAC, 53, 100);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = plain();
        change(&mut frame);
        let sum = internet_checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    vec![
        (
            "a first fragment",
            with(&|frame| frame[20..22].copy_from_slice(&[0x20, 0])),
        ),
        (
            "a later fragment",
            with(&|frame| frame[20..22].copy_from_slice(&[0, 10])),
        ),
        ("an expiring TTL", with(&|frame| frame[22] = 1)),
        (
            "a length beyond the frame",
            with(&|frame| frame[16..18].copy_from_slice(&[9, 9])),
        ),
        ("IP version 7", with(&|frame| frame[14] = 0x75)),
        ("a header cut off", plain()[..30].to_vec()),
        ("GRE with a key", {
            let gre = [&[0x20, 0, 8, 0, 0, 0, 0, 9][..], &[1; 40]].concat();
            ethernet(
                LAN_MAC,
                IPV4,
                &ipv4([10, 71, 0, 2], [10, 72, 0, 2], 47, &gre),
            )
        }),
        (
            "an IPv6 extension header",
            ethernet(LAN_MAC, IPV6, &ipv6(0, &[17; 48])),
        ),
        ("an ICMP error", {
            let unreachable = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &plain()[14..42]].concat();
            ethernet(
                LAN_MAC,
                IPV4,
                &ipv4([10, 71, 0, 2], [10, 72, 0, 2], 1, &unreachable),
            )
        }),
    ]
}

fn ethernet(to: [u8; 6], protocol: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &HOST_MAC, &protocol.to_be_bytes(), payload].concat()
}

/// A packet with the sessions' addresses and source port.
fn datagram(to: [u8; 6], port: u16, payload: usize) -> Vec<u8> {
    let addresses = [CLIENT, SERVER].map(|text| text.parse::<std::net::Ipv4Addr>().unwrap());
    let [source, destination] = addresses.map(|address| address.octets());
    ethernet(to, IPV4, &udp(source, destination, (40_000, port), payload))
}

fn udp(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), payload: usize) -> Vec<u8> {
    let mut datagram = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    datagram.extend(((payload + 8) as u16).to_be_bytes());
    // Without a checksum, which IPv4 allows.
    datagram.extend([0, 0]);
    datagram.extend((0..payload).map(|position| position as u8));
    ipv4(source, destination, 17, &datagram)
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((payload.len() + 20) as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    let sum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// From fe80::2 to ff02::1, hop limit 255.
fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend("fe80::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend("ff02::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

fn ndp(kind: u8) -> Vec<u8> {
    let mut message = vec![kind, 0, 0xab, 0xcd, 0, 0, 0, 0];
    message.extend([0x2a; 24]);
    ipv6(58, &message)
}

/// RFC 1071; the field itself is taken as zero where a checksum is already.
fn internet_checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).enumerate();
    let words = words.filter(|(place, _)| *place != 5);
    let sum: u32 = words
        .map(|(_, word)| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
