//! What do AF_XDP uplinks on veths carry?
//!
//! client ── veth ── middle ── veth ── server, once with each of: Shunt with a `vouched`
//! session that rewrites source address, both MACs and TTL; the kernel's own forwarding
//! with an nftables masquerade (`kernel-nat`); `dpdk-testpmd` in `io` mode over `net_af_xdp`, which
//! looks at no packet (`testpmd-afxdp`). All three stand at once, and are measured in turn.
//!
//! *Held constant*: 64-byte frames of one flow, cut by the client's kernel out of large
//! datagrams and counted where they enter the server's stack, so that the ends cost little;
//! the sender on core 0 (with it the kernel's receive work for the middle, which runs where
//! a veth's sender does), Shunt's worker or testpmd's on core 1. TCP: one iperf3 connection.
//! *Expected before measuring*: the kernel's work for a copied frame is some 700 ns in and
//! some 700 ns out, so parse, look-up and rewrite of 60 ns hardly show against `io`; the
//! kernel's forwarding allocates one buffer a packet instead of two, and wins. TCP loses by far,
//! since no super-frame fits AF_XDP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod report;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../qemu/demo/udp.rs"]
mod udp;

use std::rc::Rc;
use std::time::Duration;

use report::{Peer, Report, cpu_seconds, median};
use serde_json::{Value, json};
use support::guest::Guest;
use support::netns::Netns;
use support::process::pin;
use support::router::{Flow, Sessions};
use support::shunt::Shunt;
use support::testpmd::Testpmd;
use support::{Dir, at, eventually};
use udp::{Blaster, Effort};

const ROUNDS: usize = 5;
const EFFORT: Effort = Effort {
    trial: Duration::from_millis(400),
    halvings: 5,
};
const SOON: Duration = Duration::from_secs(60);

const CLIENT: &str = "10.91.0.2";
const LAN: &str = "10.91.0.1";
const LAN_MAC: &str = "52:54:00:5a:00:01";
const SERVER: &str = "10.92.0.2";
const WAN: &str = "10.92.0.1";
const WAN_MAC: &str = "52:54:00:5a:00:02";
const UDP_FROM: u16 = 4000;
const UDP_TO: u16 = 5000;
const TCP_FROM: u16 = 4001;
const TCP_TO: u16 = 5201;

const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
[[element]]
name = "router"
[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:5a:00:01"
uplink = { type = "xdp", interface = "lan" }
[[element.vnic]]
name = "wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:5a:00:02"
uplink = { type = "xdp", interface = "wan" }
"#;

/// Three namespaces in a row; the middle's interfaces have the vNICs' addresses.
struct Wires {
    client: Netns,
    middle: Netns,
    server: Rc<Netns>,
}

impl Wires {
    fn new() -> Self {
        let [client, middle, server] = ["xdpc", "xdpm", "xdps"].map(Netns::new);
        for netns in [&client, &middle, &server] {
            netns.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        }
        for (end, own, name, gateway, mac) in [
            (&client, CLIENT, "lan", LAN, LAN_MAC),
            (&server, SERVER, "wan", WAN, WAN_MAC),
        ] {
            end.veth("eth0", &middle, name);
            middle.ip(&format!("link set {name} address {mac}"));
            middle.address(name, &format!("{gateway}/24"));
            end.address("eth0", &format!("{own}/24"));
            end.gateway(gateway);
            end.ip(&format!("neigh add {gateway} lladdr {mac} dev eth0"));
            // Small packets are what is measured, also where trains of them would get through.
            end.succeed(&["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"]);
        }
        Self {
            client,
            middle,
            server: Rc::new(server),
        }
    }

    /// The highest rate with little loss; the sender has core 0. `seen` is where the server
    /// sees the packets come from.
    fn udp64(&self, seen: &str, start: f64) -> f64 {
        let mut blaster = Blaster::new(
            (&self.client, at(&format!("{CLIENT}:{UDP_FROM}"))),
            (&self.server, "eth0"),
            (
                at(&format!("{seen}:{UDP_FROM}")),
                at(&format!("{SERVER}:{UDP_TO}")),
            ),
        );
        pin(std::process::id(), "0");
        let rate = blaster.highest_rate(start, EFFORT);
        pin(std::process::id(), "0,1");
        rate
    }

    /// Bits a second of one connection; `under_way` is called once it stands.
    fn tcp(&self, dir: &Dir, under_way: impl FnOnce()) -> f64 {
        let (port, from) = (TCP_TO.to_string(), TCP_FROM.to_string());
        let name = support::unique("tcp");
        let server = ["iperf3", "--server", "--one-off", "--port", &port];
        let mut server = self.server.spawn(&server, &dir.file(&format!("{name}s")));
        eventually(SOON, "iperf3 listens", || {
            let listening = self
                .server
                .succeed(&["ss", "-Hltn", &format!("sport = {port}")]);
            !listening.is_empty()
        });
        let log = dir.file(&name);
        let argv = [
            "iperf3", "--client", SERVER, "--port", &port, "--cport", &from, "--time", "3",
            "--omit", "1", "--json",
        ];
        let mut client = self.client.spawn(&argv, &log);
        let local = format!("sport = {from}");
        let argv = ["ss", "-Htn", "state", "established", &local];
        eventually(SOON, "iperf3 is connected", || {
            client.assert_running();
            !self.client.succeed(&argv).is_empty()
        });
        under_way();
        client.wait(SOON);
        server.wait(SOON);
        let result: Value = serde_json::from_str(&client.log()).expect("iperf3 prints JSON");
        result["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .expect("iperf3 has a result")
    }

    fn session(&self, key: &str, protocol: &str, from: u16, to: u16) -> Value {
        json!({
            "key": key, "protocol": protocol, "idle-timeout": 3600, "vouched": true,
            "original": {
                "ingress-vnic": "lan", "egress-vnic": "wan",
                "source-address": CLIENT, "source-port": from,
                "destination-address": SERVER, "destination-port": to,
                "translation": {"source-address": WAN},
                "destination-mac": self.server.mac("eth0"), "source-mac": WAN_MAC,
            },
            "reply": {"destination-mac": self.client.mac("eth0"), "source-mac": LAN_MAC},
        })
    }
}

/// The kernel forwards, with NAT.
fn kernel() -> Wires {
    let wires = Wires::new();
    let middle = &wires.middle;
    middle.succeed(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    let rules = "table ip nat { chain out { type nat hook postrouting priority 100; \
                 oifname \"wan\" masquerade; }; }";
    middle.succeed(&["nft", rules]);
    for (name, address, end) in [
        ("lan", CLIENT, &wires.client),
        ("wan", SERVER, &wires.server),
    ] {
        let mac = end.mac("eth0");
        middle.ip(&format!("neigh add {address} lladdr {mac} dev {name}"));
    }
    wires
}

/// testpmd forwards, without a look.
fn testpmd(dir: &Dir) -> (Wires, Testpmd) {
    let wires = Wires::new();
    let mut testpmd = Testpmd::build("io")
        .af_xdp("lan", "start_queue=0,queue_count=1")
        .af_xdp("wan", "start_queue=0,queue_count=1")
        .lcores("0@0,1@1")
        .within(&wires.middle)
        .start(dir);
    testpmd.forward();
    testpmd.stop();
    (wires, testpmd)
}

/// Shunt forwards; a guest is there for what precedes a TCP session.
struct Ours {
    wires: Wires,
    shunt: Shunt,
    sessions: Sessions,
    _guest: Guest,
}

impl Ours {
    fn start(dir: &Dir) -> Self {
        let wires = Wires::new();
        let mut shunt = Shunt::start_in(&wires.middle, dir, CONFIG);
        // `ip netns exec` has become the program: the id is its own.
        pin(shunt.process().id(), "1");
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
        sessions.offload(&[wires.session("udp", "udp", UDP_FROM, UDP_TO)]);
        Self {
            wires,
            shunt,
            sessions,
            _guest: guest,
        }
    }

    /// CPU time of the backend, with the kernel's work for what it sends.
    fn cpu_seconds(&mut self) -> f64 {
        cpu_seconds(self.shunt.process().id())
    }

    fn forwarded(&self) -> f64 {
        let packets = &self.sessions.statistics()["forwarded"]["packets"];
        packets
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("a counter")
    }

    fn tcp(&self, dir: &Dir) -> f64 {
        let rate = self.wires.tcp(dir, || {
            let session = self.wires.session("tcp", "tcp", TCP_FROM, TCP_TO);
            self.sessions.offload(&[session]);
        });
        eventually(SOON, "the TCP session is gone", || {
            self.sessions.flows("tcp") == [Flow::Absent; 2]
        });
        rate
    }
}

fn main() {
    let dir = Dir::new();
    let mut ours = Ours::start(&dir);
    let kernel = kernel();
    let (forwarder, mut testpmd) = testpmd(&dir);
    let mut figures = [Vec::new(), Vec::new(), Vec::new()];
    let (mut cost, mut tcp) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        let before = (ours.cpu_seconds(), ours.forwarded());
        figures[0].push(ours.wires.udp64(WAN, start_of(&figures[0])));
        let millions = (ours.forwarded() - before.1) / 1e6;
        cost.push((ours.cpu_seconds() - before.0) / millions);
        testpmd.forward();
        figures[1].push(forwarder.udp64(CLIENT, start_of(&figures[1])));
        testpmd.stop();
        figures[2].push(kernel.udp64(WAN, start_of(&figures[2])));
        tcp[0].push(ours.tcp(&dir));
        tcp[1].push(kernel.tcp(&dir, || ()));
        let last = |figures: &Vec<f64>| figures.last().copied().unwrap_or_default();
        eprintln!(
            "shunt, testpmd, kernel: {:.0?} pps; shunt, kernel: {:.2?} bit/s",
            figures.each_ref().map(last),
            tcp.each_ref().map(last)
        );
    }
    let mut report = Report::new("xdp");
    let [shunt, testpmd, kernel] = figures.map(median);
    for (name, theirs) in [("testpmd-afxdp", testpmd), ("kernel-nat", kernel)] {
        report.line("udp64", shunt, "pps", Some(Peer { name, theirs }));
    }
    report.line("udp64 cpu", median(cost), "s/Mpkt", None);
    let [shunt, theirs] = tcp.map(median);
    let name = "kernel-nat";
    report.line("tcp", shunt, "bit/s", Some(Peer { name, theirs }));
}

/// Where the search begins: below what was found before.
fn start_of(earlier: &[f64]) -> f64 {
    earlier.last().map_or(300_000.0, |rate| rate * 0.8)
}
