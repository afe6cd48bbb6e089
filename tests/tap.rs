//! Taps as uplinks of a backend: trains that stay whole, and a guest that waits for room.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may be as blunt as tests"
)]

mod support;

use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use serde_json::{Value, json};
use support::frames::{Frame, RawSocket};
use support::frontend::{self, RING_SIZE, Vmm};
use support::netns::Netns;
use support::process::succeed;
use support::router::{Flow, Sessions};
use support::shunt::Shunt;
use support::{Dir, always, eventually, eventually_some};

const SOON: Duration = Duration::from_secs(30);
const CLIENT: &str = "10.83.0.2";
const SERVER: &str = "10.84.0.2";
const WAN: &str = "10.84.0.1";
const LAN_MAC: &str = "52:54:00:5b:00:01";
const WAN_MAC: &str = "52:54:00:5b:00:02";
const SERVER_MAC: &str = "02:00:00:00:00:0d";

fn quiet_netns(prefix: &str) -> Netns {
    let netns = Netns::new(prefix);
    // The kernel's own solicitations would mix with the tests' frames.
    netns.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
    netns
}

fn vnic(name: &str, mac: &str, netns: &Netns, more: &str) -> String {
    format!(
        "[[element.vnic]]\nname = \"{name}\"\nmac = \"{mac}\"\nsocket = \"{{dir}}/{name}.sock\"\n\
         uplink = {{ type = \"tap\", name = \"{name}\", netns = \"{}\"{more} }}\n",
        netns.name()
    )
}

fn config(vnics: &[String]) -> String {
    let element = "[backend]\ncontrol = \"{dir}/control.sock\"\n[[element]]\nname = \"router\"\n";
    element.to_owned() + &vnics.concat()
}

/// A queue's counter, of an uplink.
fn counted(shunt: &Shunt, uplink: usize, counter: &str) -> u64 {
    let path = "/restconf/data/shunt-offload:state/element=router/ports";
    let ports = shunt.control().get(path)["shunt-offload:ports"].take();
    let value = &ports["vnic"][uplink]["uplink"]["queue"][0][counter];
    // Numbers of 64 bits are text (RFC 7951).
    value.as_str().unwrap().parse().unwrap()
}

/// A train of TCP segments of 1000 bytes, 63,000 in all, as a stack leaves it to its device:
/// its virtio-net header, and the frame.
fn train() -> (Vec<u8>, Vec<u8>) {
    let payload: Vec<u8> = (0..63_000u32).map(|place| (place / 1000) as u8).collect();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xc], mac(LAN_MAC))
        .ipv4(address(CLIENT), address(SERVER), 64)
        .tcp(40_000, 5201, 1, 512)
        .ack(1);
    let mut frame = Vec::new();
    builder.write(&mut frame, &payload).unwrap();
    // The checksum is that of the pseudo-header, not complemented.
    let pseudo = [&frame[26..34], &[0, 6], &(20 + 63_000u16).to_be_bytes()].concat();
    let sum = pseudo.chunks(2).fold(0u32, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair[1]]))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
    // NEEDS_CSUM, TCPV4, hdr_len, gso_size, csum_start, csum_offset.
    let header = vec![1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0];
    (header, frame)
}

fn mac(text: &str) -> [u8; 6] {
    let octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16));
    let octets: Vec<u8> = octets.collect::<Result<_, _>>().unwrap();
    octets.try_into().unwrap()
}

fn address(text: &str) -> [u8; 4] {
    text.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

fn session() -> Value {
    json!({
        "key": "train", "protocol": "tcp", "idle-timeout": 3600, "vouched": true,
        "directions": "original",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": CLIENT, "source-port": 40_000,
            "destination-address": SERVER, "destination-port": 5201,
            "translation": {"source-address": WAN, "source-port": 40_001},
            "destination-mac": SERVER_MAC, "source-mac": WAN_MAC,
        },
    })
}

#[test]
fn a_train_of_63_segments_crosses_from_tap_to_tap_as_one_frame_rewritten_once() {
    let [client, server] = ["tapc", "taps"].map(quiet_netns);
    let dir = Dir::new();
    let vnics = [
        vnic("lan", LAN_MAC, &client, ""),
        vnic("wan", WAN_MAC, &server, ""),
    ];
    let shunt = Shunt::start(&dir, &config(&vnics));
    let sessions = Sessions::new(shunt.control());
    sessions.offload(&[session()]);
    eventually(SOON, "the session is active", || {
        sessions.flows("train")[0] == Flow::Active
    });
    let out = RawSocket::open(&server, "wan").with_headers();
    let (header, sent) = train();
    let packets = || sessions.status("train")["original"]["packets"].clone();
    RawSocket::open(&client, "lan")
        .with_headers()
        .send(&[&header[..], &sent].concat());
    let Frame { bytes, .. } = eventually_some(SOON, "the train arrives", || out.receive());
    let (got_header, got) = bytes.split_at(10);
    // Flags may say more; type, segment size and place of the checksum are as they were.
    assert_eq!((got_header[1], &got_header[4..]), (1, &header[4..]));
    let sliced = SlicedPacket::from_ethernet(got).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
        panic!("no IPv4");
    };
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        panic!("no TCP");
    };
    assert_eq!(ip.header().source(), address(WAN));
    assert_eq!((ip.header().ttl(), tcp.source_port()), (63, 40_001));
    assert_eq!(got[..12], [mac(SERVER_MAC), mac(WAN_MAC)].concat());
    assert_eq!(tcp.payload(), &sent[54..]);
    assert_eq!(counted(&shunt, 0, "rx-frames"), 1);
    assert_eq!(counted(&shunt, 1, "tx-frames"), 1);
    eventually(SOON, "each segment is counted", || packets() == "63");
}

#[test]
fn a_guest_waits_for_a_full_tap_with_its_frames_in_its_ring_and_loses_none() {
    let netns = quiet_netns("tapf");
    let dir = Dir::new();
    let room = ", send-buffer = 65536";
    let _shunt = Shunt::start(&dir, &config(&[vnic("lan", LAN_MAC, &netns, room)]));
    // What the guest sends goes by a bridge to a device that hardly lets anything out.
    netns.ip("link add held type veth peer name out");
    netns.ip("link add br0 type bridge");
    for port in ["lan", "held"] {
        netns.ip(&format!("link set {port} master br0"));
    }
    for device in ["held", "out", "br0"] {
        netns.ip(&format!("link set {device} up"));
    }
    let shape = |verb: &str, rate: &str| {
        let shaper = format!("{verb} dev held root tbf rate {rate} burst 4000 limit 10000000");
        let mut words = vec!["tc", "-n", netns.name(), "qdisc"];
        words.extend(shaper.split_whitespace());
        succeed(&words);
    };
    shape("add", "8kbit");
    let out = RawSocket::open(&netns, "out");
    let mut guest = frontend::Guest::new(1);
    let _vmm = Vmm::bring_up(&dir.file("lan.sock"), &guest);
    let frame = |number: u8| {
        let mut frame = [mac(SERVER_MAC), mac(LAN_MAC)].concat();
        frame.extend([0x88, 0xb5, number]);
        frame.resize(1000, 0);
        frame
    };
    let ring = u8::try_from(RING_SIZE).unwrap();
    let send = |guest: &mut frontend::Guest, numbers: std::ops::Range<u8>| {
        for number in numbers {
            guest.send(1, &frame(number));
        }
        guest.rings[1].kick.write(1).unwrap();
    };
    send(&mut guest, 0..ring);
    eventually(SOON, "a burst is taken", || {
        guest.used_index(1) == RING_SIZE
    });
    send(&mut guest, ring..2 * ring);
    always(
        Duration::from_millis(300),
        "the rest stays in the ring",
        || guest.used_index(1) == RING_SIZE,
    );
    shape("change", "1gbit");
    for number in 0..2 * ring {
        let came = eventually_some(SOON, "every frame arrives", || {
            let came = out.receive()?.bytes;
            (came.get(12..14) == Some(&[0x88, 0xb5])).then_some(came)
        });
        assert_eq!(came, frame(number));
    }
    assert_eq!(guest.used_index(1), 2 * RING_SIZE);
    // It is not asleep for ever after.
    send(&mut guest, 200..201);
    let came = eventually_some(SOON, "another frame arrives", || out.receive());
    assert_eq!(came.bytes, frame(200));
}
