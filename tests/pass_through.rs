//! What is nobody's session passes through a served element as if Shunt were not there.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may be as blunt as tests"
)]

mod support;

use serde_json::json;
use support::frames::{Capture, RawSocket};
use support::netns::Netns;
use support::router::{CLIENT, Flow, LAN, Router, SERVER, SOON, Sessions, WAN};
use support::shunt::Shunt;
use support::testpmd::Testpmd;
use support::udp::{Reply, UdpReceiver, UdpSender};
use support::{Dir, at, eventually};

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

/// The router itself speaks: what it says and hears passes.
#[test]
fn a_router_keeps_its_neighbours_leases_spanning_tree_bond_and_virtual_mac() {
    let mut router = Router::start(|guest| {
        guest
            .address("eth0", "fd71::1/64")
            .address("eth1", "fd72::1/64")
    });
    router.lan.address("lan", "fd71::2/64");
    router.wan.address("wan", "fd72::2/64");
    router.lan.gateway("fd71::1");
    router.wan.gateway("fd72::1");
    serves_a_session_by_its_virtual_mac(&mut router);
    resolves_and_answers_groups(&mut router);
    leases_addresses(&mut router);
    runs_spanning_tree(&mut router);
    aggregates_links(&mut router);
}

/// The router's address on `lan` moves to a VRRP MAC; the session that says so is offloaded.
fn serves_a_session_by_its_virtual_mac(router: &mut Router) {
    const VIRTUAL: &str = "10.71.0.254";
    // Not busybox's own `ip`, which the guest's shell would take.
    router.guest.succeed(&format!(
        "modprobe macvlan; sysctl -qw net.ipv4.conf.all.arp_ignore=1
         /usr/sbin/ip link add vrrp0 link eth0 address 00:00:5e:00:01:0a type macvlan mode bridge &&
         /usr/sbin/ip address add {VIRTUAL}/32 dev vrrp0 && /usr/sbin/ip link set vrrp0 up"
    ));
    router
        .lan
        .ip(&format!("route replace default via {VIRTUAL}"));
    eventually(SOON, "the virtual router forwards", || {
        router.lan.pings(SERVER)
    });
    let neighbour = router.lan.ip(&format!("neighbour show {VIRTUAL}"));
    assert!(neighbour.contains("00:00:5e:00:01:0a"), "{neighbour}");

    let receiver = UdpReceiver::start(&router.wan, at(&format!("{SERVER}:0")), Reply::Echo);
    let (from, to) = (at(&format!("{CLIENT}:0")), receiver.address());
    let gap = std::time::Duration::from_millis(2);
    let mut sender = UdpSender::start(&router.lan, from, to, 100, gap);
    router.control.offload(&[json!({
        "key": "vrrp", "protocol": "udp",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan", "ingress-mac": "00:00:5e:00:01:0a",
            "source-address": CLIENT, "source-port": sender.address().port(),
            "destination-address": SERVER, "destination-port": to.port(),
            "translation": {"source-address": WAN},
        },
    })]);
    eventually(SOON, "both directions go around the guest", || {
        let status = router.control.status("vrrp");
        ["original", "reply"].iter().all(|direction| {
            let packets = status[direction]["packets"].as_str();
            packets.is_some_and(|packets| packets.parse::<u64>().unwrap() > 100)
        })
    });
    let sent = sender.stop();
    eventually(SOON, "all of it comes, and comes back", || {
        receiver.tally().lost(sent) + sender.replies().lost(sent) == 0
    });
}

/// ARP, neighbour discovery, multicast and broadcast.
fn resolves_and_answers_groups(router: &mut Router) {
    router
        .guest
        .succeed("sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0");
    for netns in [&router.lan, &router.wan] {
        netns.ip("neighbour flush all");
    }
    router.guest.succeed("/usr/sbin/ip neighbour flush all");
    eventually(SOON, "all addresses are resolved anew", || {
        router.lan.pings(SERVER) && router.lan.pings("fd72::2") && router.wan.pings("fd72::1")
    });
    for (group, option) in [
        ("ff02::1%lan", "-6"),
        ("ff02::2%lan", "-6"),
        ("10.71.0.255", "-b"),
    ] {
        eventually(SOON, &format!("the router answers {group}"), || {
            let ping = ["ping", option, "-n", "-c", "1", "-W", "1", "-L", group];
            router.lan.exec(&ping).status.success()
        });
    }
}

/// A DHCP server inside hears a client that has no address, and is heard.
fn leases_addresses(router: &mut Router) {
    router.guest.succeed(&format!(
        "printf 'start 10.71.0.100\\nend 10.71.0.110\\ninterface eth0\\nlease_file /tmp/leases\\n\
         pidfile /tmp/dhcp.pid\\noption router {LAN}\\n' >/tmp/dhcp && : >/tmp/leases &&
         udhcpd -S /tmp/dhcp"
    ));
    let capture = Capture::start(&router.lan, "lan");
    let socket = RawSocket::open(&router.lan, "lan");
    // RFC 2131: a request of Ethernet with its id, flagged to be answered by broadcast.
    let mut message = vec![1, 1, 6, 0, 0xca, 0xfe, 0xba, 0xbe, 0, 0, 0x80, 0];
    message.resize(28, 0);
    message.extend(HOST_MAC);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    message.resize(300, 0);
    let mut discover = udp([0; 4], [255; 4], (68, 67), message.len());
    discover[28..].copy_from_slice(&message);
    let discover = ethernet(BROADCAST, IPV4, &discover);
    eventually(SOON, "the server offers an address", || {
        socket.send(&discover);
        capture.frames().iter().any(|frame| {
            let offer = frame.bytes.get(42..).unwrap_or_default();
            !frame.outgoing
                && frame.bytes[..6] == BROADCAST
                && offer.starts_with(&[2, 1, 6, 0, 0xca, 0xfe, 0xba, 0xbe])
                && offer[16..19] == [10, 71, 0]
        })
    });
}

/// The router's bridge is heard, and accepts a better root.
fn runs_spanning_tree(router: &mut Router) {
    router.guest.succeed(
        "/usr/sbin/ip address flush dev eth2 && modprobe bridge &&
         /usr/sbin/ip link add br0 type bridge stp_state 1 hello_time 100 &&
         /usr/sbin/ip link set eth2 master br0 && /usr/sbin/ip link set br0 up",
    );
    let capture = Capture::start(&router.dmz, "dmz");
    capture.wait_for(SOON, "the bridge says that it is root", |frame| {
        !frame.outgoing
            && frame.bytes[..6] == BRIDGE_GROUP
            && frame.bytes[14..17] == [0x42, 0x42, 3]
    });
    // IEEE 802.1D 9.3.1: a configuration BPDU of a root with priority 0.
    let root = [&[0, 0][..], &HOST_MAC].concat();
    let bpdu = [
        &[0x42, 0x42, 3, 0, 0, 0, 0, 0][..],
        &root,
        &[0; 4],
        &root,
        &[0x80, 1, 0, 0, 20, 0, 2, 0, 15, 0],
        &[0; 8],
    ]
    .concat();
    let socket = RawSocket::open(&router.dmz, "dmz");
    eventually(SOON, "the bridge takes this host as its root", || {
        socket.send(&ethernet(BRIDGE_GROUP, 38, &bpdu));
        router
            .guest
            .succeed("cat /sys/class/net/br0/bridge/root_id")
            == "0000.525400000077\n"
    });
    router.guest.succeed("/usr/sbin/ip link del br0");
}

/// The router's bond is heard, and learns its partner.
fn aggregates_links(router: &mut Router) {
    router.guest.succeed(
        "modprobe bonding max_bonds=0; /usr/sbin/ip link set eth2 down &&
         ethtool -s eth2 speed 10000 duplex full &&
         /usr/sbin/ip link add bond0 type bond mode 802.3ad lacp_rate fast miimon 100 &&
         /usr/sbin/ip link set eth2 master bond0 && /usr/sbin/ip link set bond0 up",
    );
    let capture = Capture::start(&router.dmz, "dmz");
    let heard = capture.wait_for(SOON, "the bond sends LACP", |frame| {
        !frame.outgoing
            && frame.bytes[..6] == SLOW_PROTOCOLS
            && frame.bytes[12..16] == [0x88, 9, 1, 1]
    });
    // IEEE 802.1AX 6.4.2.3: what the bond said of itself is said of its partner.
    let actor = [
        &[1, 20, 0xff, 0xff][..],
        &HOST_MAC,
        &[0, 9, 0, 0xff, 0, 1, 0x3d, 0, 0, 0],
    ]
    .concat();
    let partner = [&[2, 20][..], &heard.bytes[18..33], &[0; 3]].concat();
    let mut lacp = [&[1, 1][..], &actor, &partner, &[3, 16, 0, 0]].concat();
    lacp.resize(110, 0);
    let socket = RawSocket::open(&router.dmz, "dmz");
    eventually(SOON, "the bond names this host as its partner", || {
        socket.send(&ethernet(SLOW_PROTOCOLS, 0x8809, &lacp));
        let partner = "cat /sys/class/net/bond0/bonding/ad_partner_mac";
        router.guest.succeed(partner) == "52:54:00:00:00:77\n"
    });
}
