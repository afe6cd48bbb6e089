//! AF_XDP uplinks on veths: real network stacks on both sides, nothing simulated.
//!
//! client ── veth ── xlan │ backend │ xwan ── veth ── server
//!
//! The client's and the server's own packets leave with partial checksums that nothing
//! marks: whatever arrives at their sockets shows that these were completed.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may be as blunt as tests"
)]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::frames::{Capture, RawSocket};
use support::guest::Guest;
use support::netns::Netns;
use support::process::output;
use support::router::{Flow, Sessions};
use support::shunt::Shunt;
use support::tcp::{Direction, TcpPlan, TcpTransfer};
use support::udp::{Reply, UdpReceiver, UdpSender};
use support::{Dir, always, at, eventually};

const SOON: Duration = Duration::from_secs(30);
/// Between two datagrams.
const GAP: Duration = Duration::from_millis(1);
const CLIENT: &str = "10.81.0.2";
const LAN: &str = "10.81.0.1";
const LAN_MAC: &str = "52:54:00:5a:00:01";
const SERVER: &str = "10.82.0.2";
const WAN: &str = "10.82.0.1";
const WAN_MAC: &str = "52:54:00:5a:00:02";

/// The namespaces; `middle` has `xlan` and `xwan`, the ends have `eth0`.
struct Wires {
    client: Netns,
    server: Netns,
    middle: Netns,
}

impl Wires {
    /// Veths of `queues` queues, with addresses, and neighbours that need not be asked.
    fn new(queues: u16) -> Self {
        let [client, middle, server] = ["xdpc", "xdpm", "xdps"].map(Netns::new);
        for netns in [&client, &middle, &server] {
            // The kernel's own solicitations would mix with the tests' frames.
            netns.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        }
        for (end, name) in [(&client, "xlan"), (&server, "xwan")] {
            let sizes = format!("numtxqueues {queues} numrxqueues {queues}");
            end.ip(&format!(
                "link add eth0 {sizes} type veth peer name {name} {sizes} netns {}",
                middle.name()
            ));
            end.ip("link set eth0 up");
            middle.ip(&format!("link set {name} up"));
        }
        for (end, own, gateway, mac) in [
            (&client, CLIENT, LAN, LAN_MAC),
            (&server, SERVER, WAN, WAN_MAC),
        ] {
            end.address("eth0", &format!("{own}/24"));
            end.gateway(gateway);
            end.ip(&format!("neigh add {gateway} lladdr {mac} dev eth0"));
        }
        Self {
            client,
            server,
            middle,
        }
    }

    /// A configuration; `more` goes into both uplinks, such as `, queues = 2`.
    fn config(&self, more: &str) -> String {
        let mut config =
            "[backend]\ncontrol = \"{dir}/control.sock\"\n[[element]]\nname = \"router\"\n"
                .to_owned();
        for (name, mac) in [("lan", LAN_MAC), ("wan", WAN_MAC)] {
            config += &format!(
                "[[element.vnic]]\nname = \"{name}\"\nmac = \"{mac}\"\n\
                 socket = \"{{dir}}/{name}.sock\"\nuplink = {{ type = \"xdp\", \
                 interface = \"x{name}\", netns = \"{}\"{more} }}\n",
                self.middle.name()
            );
        }
        config
    }

    /// An operator's session with source NAT to [`WAN`]; `match` has protocol and ports.
    fn session(&self, key: &str, protocol: &str, original: Value) -> Value {
        let mut whole = json!({
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": CLIENT, "destination-address": SERVER,
            "translation": {"source-address": WAN},
            "destination-mac": self.server.mac("eth0"), "source-mac": WAN_MAC,
        });
        for (name, value) in original.as_object().unwrap() {
            whole[name] = value.clone();
        }
        json!({
            "key": key, "protocol": protocol, "idle-timeout": 3600, "vouched": true,
            "original": whole,
            "reply": {"destination-mac": self.client.mac("eth0"), "source-mac": LAN_MAC},
        })
    }

    /// How often an interface in the middle is asked to hear everything: unicast, multicast;
    /// and whether it has a program.
    fn attached(&self, interface: &str) -> (u64, u64, bool) {
        let links = self.middle.ip(&format!("-d -json link show {interface}"));
        let link = &serde_json::from_str::<Value>(&links).unwrap()[0];
        let count = |name: &str| link[name].as_u64().unwrap();
        (
            count("promiscuity"),
            count("allmulti"),
            !link["xdp"].is_null(),
        )
    }
}

fn devices(shunt: &Shunt) -> Vec<Value> {
    let path = "/restconf/data/shunt-offload:state/element=router/ports";
    let answer = shunt.control().get(path);
    let vnics = answer["shunt-offload:ports"]["vnic"].as_array().unwrap();
    vnics.iter().map(|vnic| vnic["uplink"].clone()).collect()
}

/// A number that JSON of RFC 7951 has as text.
fn number(value: &Value) -> u64 {
    value.as_str().unwrap().parse().unwrap()
}

/// Echoes of small and large datagrams, all of which must come back unharmed.
fn assert_echoes(wires: &Wires, sessions: &Sessions, port: u16) {
    let receiver = UdpReceiver::start(&wires.server, at(&format!("{SERVER}:0")), Reply::Echo);
    let key = format!("udp-{port}");
    sessions.offload(&[wires.session(
        &key,
        "udp",
        json!({"source-port": port, "destination-port": receiver.address().port()}),
    )]);
    eventually(SOON, "the session is active", || {
        sessions.flows(&key) == [Flow::Active; 2]
    });
    for size in [8, 19, 1472] {
        let from = at(&format!("{CLIENT}:{port}"));
        let mut sender = UdpSender::start(&wires.client, from, receiver.address(), size, GAP);
        eventually(SOON, "echoes come back", || {
            sender.replies().received() > 20
        });
        let sent = sender.stop();
        eventually(SOON, "all echoes are back", || {
            sender.replies().received() == sent
        });
        assert_eq!(sender.replies().corrupted, 0);
    }
    let sources = receiver.tally().sources;
    assert!(sources.iter().all(|source| source.ip().to_string() == WAN));
    sessions.withdraw(&key);
}

#[test]
fn udp_and_ping_of_real_stacks_arrive_intact_with_nat_both_ways() {
    let wires = Wires::new(1);
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &wires.config(""));
    let sessions = Sessions::new(shunt.control());
    assert_echoes(&wires, &sessions, 4001);
    sessions.offload(&[wires.session(
        "ping",
        "icmp",
        json!({"identifier": 7, "translation": {"source-address": WAN, "identifier": 9}}),
    )]);
    let ping = ["ping", "-n", "-e", "7", "-c", "3", "-i", "0.05", SERVER];
    eventually(SOON, "pings are answered", || {
        wires.client.exec(&ping).status.success()
    });
    for device in devices(&shunt) {
        assert_eq!(device["kind"], "xdp");
        assert_eq!(device["feature"], json!(["native", "copy"]));
    }
}

#[test]
fn tcp_through_a_router_guest_and_then_around_it_arrives_intact() {
    let wires = Wires::new(1);
    for end in [&wires.client, &wires.server] {
        end.ip("neigh flush all nud permanent");
    }
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &wires.config(", mode = \"copy\""));
    let sessions = Sessions::new(shunt.control());
    let mut guest = Guest::build()
        .vnic(&dir.file("lan.sock"))
        .vnic(&dir.file("wan.sock"))
        .address("eth0", &format!("{LAN}/24"))
        .address("eth1", &format!("{WAN}/24"))
        .masquerade("eth1")
        .start(&dir.file("guest"));
    guest.wait_ready();
    eventually(SOON, "the guest forwards", || wires.client.pings(SERVER));
    for (key, direction) in [("up", Direction::Upload), ("down", Direction::Download)] {
        let plan = TcpPlan {
            listen: at(&format!("{SERVER}:0")),
            connect: at(&format!("{SERVER}:0")),
            direction,
            bytes: 64 << 20,
            rate: Some(4 << 20),
        };
        let mut transfer = TcpTransfer::start(&wires.client, &wires.server, plan);
        transfer.wait_moved(1 << 20, SOON);
        let mut session = wires.session(
            key,
            "tcp",
            json!({
                "source-port": transfer.client().port(),
                "destination-port": transfer.server().port(),
            }),
        );
        session["vouched"] = json!(false);
        sessions.offload(&[session]);
        eventually(SOON, "the connection is handed over", || {
            sessions.flows(key) == [Flow::Active; 2]
        });
        transfer.unpace();
        let report = transfer.wait(SOON);
        assert_eq!(report.seen_by_server.ip().to_string(), WAN);
    }
    let forwarded = number(&sessions.statistics()["forwarded"]["packets"]);
    assert!(forwarded > 2 * (32 << 20) / 1500, "{forwarded}");
}

#[test]
fn flows_over_several_queues_all_arrive() {
    let wires = Wires::new(2);
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &wires.config(", queues = 2"));
    let sessions = Sessions::new(shunt.control());
    let mut port = 5000;
    eventually(SOON, "both queues have received frames", || {
        port += 1;
        assert_echoes(&wires, &sessions, port);
        let queues = devices(&shunt)[0]["queue"].as_array().unwrap().clone();
        assert_eq!(queues.len(), 2);
        queues.iter().all(|queue| number(&queue["rx-frames"]) > 0)
    });
}

#[test]
fn a_vlan_tag_is_kept_and_changed_only_by_the_session() {
    let wires = Wires::new(1);
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &wires.config(""));
    let sessions = Sessions::new(shunt.control());
    for (key, port, vlan) in [("same", 6000, 100), ("other", 6001, 200)] {
        sessions.offload(&[wires.session(
            key,
            "udp",
            json!({"source-port": port, "destination-port": 53, "ingress-vlan": 100,
                "egress-vlan": vlan}),
        )]);
    }
    let capture = Capture::start(&wires.server, "eth0");
    let socket = RawSocket::open(&wires.client, "eth0");
    for (port, vlan) in [(6000u16, 100u16), (6001, 200)] {
        // 802.1Q with priority 5, IPv4, UDP without a checksum.
        let mut frame = mac(LAN_MAC).to_vec();
        frame.extend(mac(&wires.client.mac("eth0")));
        frame.extend([0x81, 0, 0xa0, 100, 8, 0]);
        let etherparse = etherparse::PacketBuilder::ipv4([10, 81, 0, 2], [10, 82, 0, 2], 9);
        let mut packet = Vec::new();
        etherparse
            .udp(port, 53)
            .write(&mut packet, b"tagged")
            .unwrap();
        frame.extend(packet);
        socket.send(&frame);
        let tag = [0x81, 0, 0xa0 | (vlan >> 8) as u8, vlan as u8, 8, 0];
        capture.wait_for(SOON, "the frame comes with its tag", |frame| {
            frame.bytes.len() > 40
                && frame.bytes[12..18] == tag
                && frame.bytes[38..40] == port.to_be_bytes()
        });
    }
}

fn mac(text: &str) -> [u8; 6] {
    let octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16));
    let octets: Vec<u8> = octets.map(Result::unwrap).collect();
    octets.try_into().unwrap()
}

#[test]
fn frames_to_the_interfaces_own_address_are_the_hosts_and_no_others() {
    let wires = Wires::new(1);
    wires.middle.address("xlan", "10.81.0.9/24");
    wires.client.ip(&format!(
        "neigh add 10.81.0.9 lladdr {} dev eth0",
        wires.middle.mac("xlan")
    ));
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &wires.config(""));
    eventually(SOON, "the host answers", || wires.client.pings("10.81.0.9"));
    assert_eq!(
        number(&devices(&shunt)[0]["queue"][0]["rx-frames"]),
        0,
        "the element saw none of it"
    );
    wires.client.ip(&format!(
        "neigh replace 10.81.0.9 lladdr {LAN_MAC} dev eth0"
    ));
    assert!(!wires.client.pings("10.81.0.9"), "that was the vNIC's");
    assert!(number(&devices(&shunt)[0]["queue"][0]["rx-frames"]) > 0);
}

#[test]
fn with_the_interfaces_own_address_the_element_gets_everything() {
    let wires = Wires::new(1);
    wires.middle.ip(&format!("link set xlan address {LAN_MAC}"));
    wires.middle.address("xlan", &format!("{LAN}/24"));
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &wires.config(""));
    assert!(!wires.client.pings(LAN), "the host has answered");
    assert!(number(&devices(&shunt)[0]["queue"][0]["rx-frames"]) > 0);
}

#[test]
fn the_interface_is_as_before_after_an_end_and_after_a_crash() {
    let wires = Wires::new(1);
    let dir = Dir::new();
    let before = wires.attached("xlan");
    assert_eq!(before, (0, 0, false));
    let mut shunt = Shunt::start(&dir, &wires.config(""));
    assert_eq!(wires.attached("xlan"), (1, 1, true));
    // At once again: what a killed process held may still be busy then.
    for _ in 0..3 {
        shunt.restart();
        assert_eq!(wires.attached("xlan"), (1, 1, true));
    }
    shunt.kill9();
    eventually(SOON, "a crash undoes it", || {
        wires.attached("xlan") == before
    });
    shunt.restart();
    shunt.process().terminate(SOON);
    assert_eq!(wires.attached("xlan"), before);
}

#[test]
fn an_interface_that_is_down_or_gone_costs_its_frames_and_nothing_else() {
    let wires = Wires::new(1);
    let dir = Dir::new();
    let mut shunt = Shunt::start(&dir, &wires.config(""));
    let sessions = Sessions::new(shunt.control());
    assert_echoes(&wires, &sessions, 4001);
    let running = |shunt: &Shunt| -> Vec<bool> {
        let queue = |device: &Value| device["queue"][0]["running"].as_bool().unwrap();
        devices(shunt).iter().map(queue).collect()
    };

    // Frames towards it while it is down are dropped, and counted.
    wires.middle.ip("link set xwan down");
    assert_eq!(running(&shunt), [true, false]);
    sessions.offload(&[wires.session(
        "down",
        "udp",
        json!({"source-port": 4002, "destination-port": 7}),
    )]);
    let from = at(&format!("{CLIENT}:4002"));
    let to = at(&format!("{SERVER}:7"));
    let mut sender = UdpSender::start(&wires.client, from, to, 64, GAP);
    let dropped = |name: &str| -> u64 {
        let statistics = sessions.statistics();
        let reasons = statistics["dropped"].as_array().unwrap();
        let named = reasons.iter().find(|reason| reason["name"] == name);
        named.map_or(0, |reason| number(&reason["count"]))
    };
    eventually(SOON, "what is sent to it is dropped or punted", || {
        dropped("uplink-absent") + dropped("guest-absent") > 10
    });
    wires.middle.ip("link set xwan up");
    wires
        .server
        .ip(&format!("neigh replace {WAN} lladdr {WAN_MAC} dev eth0"));
    assert_eq!(running(&shunt), [true, true]);
    assert_echoes(&wires, &sessions, 4003);

    wires.middle.ip("link delete xwan");
    let before = dropped("uplink-absent") + dropped("guest-absent");
    eventually(SOON, "what is sent to it is dropped", || {
        dropped("uplink-absent") + dropped("guest-absent") > before + 100
    });
    sender.stop();
    assert_eq!(running(&shunt), [true, false]);
    always(
        Duration::from_millis(200),
        "the other uplink receives",
        || {
            let count = || number(&devices(&shunt)[0]["queue"][0]["rx-frames"]);
            let before = count();
            wires.client.pings("10.81.0.77");
            let _ = wires.client.pings(SERVER);
            count() > before
        },
    );
    shunt.process().terminate(SOON);
}

/// What a backend that does not start says.
fn refusal(dir: &Dir, config: &str) -> String {
    let text = config.replace("{dir}", dir.path().to_str().unwrap());
    let file = dir.write("refused.toml", &text);
    let program = env!("CARGO_BIN_EXE_shunt");
    let file = file.to_str().unwrap();
    let output = output(&["timeout", "20", program, "backend", "--config", file]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn what_cannot_work_is_refused_with_what_to_do() {
    let wires = Wires::new(2);
    let dir = Dir::new();
    let good = wires.config(", queues = 2");
    let cases = [
        (
            good.replace("\"xwan\"", "\"nowhere\""),
            "`nowhere` does not exist in netns",
        ),
        (wires.config(""), "`queues = 2`, or `ip netns exec"),
        (wires.config(", queues = 3"), "ethtool -L xlan rx 3 tx 3"),
        (
            wires.config(", queues = 2, mode = \"zero-copy\""),
            "no zero-copy AF_XDP: set `mode",
        ),
        (good.replace("\"xwan\"", "\"lo\""), "is no Ethernet"),
        (good.replace("\"xwan\"", "\"xlan\""), "`xlan` in netns `"),
    ];
    for (config, says) in cases {
        let said = refusal(&dir, &config);
        assert!(said.contains(says), "{says}: {said}");
    }
    wires.middle.ip("link set xlan mtu 9000");
    let said = refusal(&dir, &good);
    assert!(said.contains("ip link set xlan mtu 3818"), "{said}");
    wires.middle.ip("link set xlan mtu 1500");
    let _holder = Shunt::start(&Dir::new(), &good);
    let said = refusal(&dir, &good);
    assert!(said.contains("has an XDP program already"), "{said}");
    assert_eq!(wires.attached("xlan"), (1, 1, true), "the holder's is left");
}

#[test]
fn frames_too_long_for_the_interface_are_dropped_and_counted() {
    let wires = Wires::new(1);
    wires.middle.ip("link set xwan mtu 1000");
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &wires.config(""));
    let sessions = Sessions::new(shunt.control());
    sessions.offload(&[wires.session(
        "long",
        "udp",
        json!({"source-port": 4001, "destination-port": 7}),
    )]);
    let from = at(&format!("{CLIENT}:4001"));
    let to = at(&format!("{SERVER}:7"));
    let mut sender = UdpSender::start_bounded(&wires.client, from, to, 1200, GAP, 10);
    eventually(SOON, "all are counted", || {
        number(&devices(&shunt)[1]["queue"][0]["tx-discarded"]) == 10
    });
    sender.stop();
}
