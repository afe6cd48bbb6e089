//! Ways from a client's namespace to a server's, with equal ends.
//!
//! The client has the interface `lan` and [`CLIENT`], the server `wan` and [`SERVER`]; small
//! packets leave the client one by one. Whatever a path is made of goes away with it.

mod copy;

use std::rc::Rc;

use serde_json::{Value, json};

use crate::support::netns::Netns;
use crate::support::process::Process;
use crate::support::refuse;
use crate::support::shunt::Shunt;
use crate::support::{Dir, eventually};
use copy::TapCopy;

/// The client's address.
pub const CLIENT: &str = "10.77.1.2";
/// The server's address.
pub const SERVER: &str = "10.77.2.2";
/// What address translation makes of the client's.
pub const OUTSIDE: &str = "10.77.2.1";
/// The client's ports: few, so that there is a session for each.
pub const PORTS: std::ops::Range<u16> = 40_000..40_128;
/// The vNICs' MAC addresses.
const LAN_MAC: &str = "52:54:00:5a:00:01";
pub const WAN_MAC: &str = "52:54:00:5a:00:02";
/// Frames that a tap keeps for its reader: a few milliseconds of waiting for a CPU must not
/// count as loss, on any path.
const TAP_FRAMES: u32 = 8_192;

/// A way from the client to the server. Fields are dropped in order: programs before the
/// namespaces that hold their devices.
pub struct Path {
    pub name: &'static str,
    /// The source address that the server sees.
    pub seen: &'static str,
    _server_program: Process,
    _middle: Middle,
    pub client: Netns,
    pub server: Rc<Netns>,
    pub dir: Dir,
}

/// What stands between.
#[allow(dead_code, reason = "held for what their end does")]
enum Middle {
    Shunt(Box<Shunt>),
    Kernel(Netns),
    Copy(TapCopy),
    Nothing,
}

impl Path {
    fn new(name: &'static str, seen: &'static str, middle: Middle, ends: Ends) -> Self {
        let Ends {
            client,
            server,
            dir,
        } = ends;
        for (netns, interface) in [(&client, "lan"), (&server, "wan")] {
            // A packet is a packet on every path, and trains are TCP's.
            netns.succeed(&["ethtool", "-K", interface, "tx-udp-segmentation", "off"]);
        }
        let range = format!("{} {}", PORTS.start + 1, PORTS.end - 1);
        let setting = format!("net.ipv4.ip_local_port_range={range}");
        client.succeed(&["sysctl", "-qw", &setting]);
        let program = server.spawn(&["iperf3", "--server"], &dir.file("iperf3.log"));
        let path = Self {
            name,
            seen,
            _server_program: program,
            _middle: middle,
            client,
            server: Rc::new(server),
            dir,
        };
        eventually(std::time::Duration::from_secs(10), "iperf3 listens", || {
            let listening = path.server.succeed(&["ss", "-Htln"]);
            listening.contains(":5201")
        });
        path
    }
}

/// Two namespaces and a directory.
struct Ends {
    client: Netns,
    server: Netns,
    dir: Dir,
}

impl Ends {
    fn new() -> Self {
        let namespace = |prefix| {
            let netns = Netns::new(prefix);
            netns.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
            netns
        };
        Self {
            client: namespace("bencc"),
            server: namespace("bencs"),
            dir: Dir::new(),
        }
    }

    /// Addresses and routes; each end reaches the other by the MAC address given.
    fn address(&self, toward_server: &str, toward_client: &str) {
        let ends = [
            (&self.client, "lan", "10.77.1", toward_server),
            (&self.server, "wan", "10.77.2", toward_client),
        ];
        for (netns, interface, network, gateway) in ends {
            netns.address(interface, &format!("{network}.2/24"));
            netns.ip(&format!("link set {interface} up"));
            netns.ip(&format!(
                "neigh replace {network}.1 lladdr {gateway} dev {interface}"
            ));
            netns.gateway(&format!("{network}.1"));
        }
    }

    fn lengthen_queues(&self) {
        for (netns, tap) in [(&self.client, "lan"), (&self.server, "wan")] {
            netns.ip(&format!("link set {tap} txqueuelen {TAP_FRAMES}"));
        }
    }

    fn mac(&self, interface: &str) -> String {
        match interface {
            "lan" => self.client.mac("lan"),
            _ => self.server.mac("wan"),
        }
    }
}

/// The kernel's forwarding with masquerade, over veth devices.
pub fn kernel_nat() -> Path {
    let (router, ends) = router();
    router.succeed(&[
        "nft",
        "table ip nat { chain out { type nat hook postrouting priority 100; \
         oifname wan masquerade; }; }",
    ]);
    Path::new("kernel-nat", OUTSIDE, Middle::Kernel(router), ends)
}

/// The kernel's forwarding and nothing else.
pub fn kernel_forwarding() -> Path {
    let (router, ends) = router();
    Path::new("kernel-forwarding", CLIENT, Middle::Kernel(router), ends)
}

/// A namespace that forwards.
fn router() -> (Netns, Ends) {
    let ends = Ends::new();
    let router = Netns::new("bencr");
    ends.client.veth("lan", &router, "lan");
    ends.server.veth("wan", &router, "wan");
    router.address("lan", "10.77.1.1/24");
    router.address("wan", &format!("{OUTSIDE}/24"));
    router.succeed(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    ends.address(&router.mac("lan"), &router.mac("wan"));
    (router, ends)
}

/// The two ends of one pair of veth devices.
pub fn wire() -> Path {
    let ends = Ends::new();
    ends.client.veth("lan", &ends.server, "wan");
    ends.address(&ends.mac("wan"), &ends.mac("lan"));
    Path::new("wire", CLIENT, Middle::Nothing, ends)
}

/// A loop that copies frames between two taps.
pub fn tap_copy() -> Path {
    let ends = Ends::new();
    let copy = TapCopy::start((&ends.client, "lan"), (&ends.server, "wan"));
    ends.lengthen_queues();
    ends.address(&ends.mac("wan"), &ends.mac("lan"));
    Path::new("tap-copy", CLIENT, Middle::Copy(copy), ends)
}

/// Shunt with a session for each of [`PORTS`] to each of `tcp`, and one to `udp`; without a
/// guest. `io_uring` says whether the kernel lets it have that.
pub fn shunt(io_uring: bool, tcp: &[u16], udp: u16) -> Path {
    let ends = Ends::new();
    let vnic = |name: &str, mac: &str, netns: &Netns| {
        format!(
            "[[element.vnic]]\nname = \"{name}\"\nsocket = \"{{dir}}/{name}.sock\"\n\
             mac = \"{mac}\"\n\
             uplink = {{ type = \"tap\", name = \"{name}\", netns = \"{}\" }}\n",
            netns.name()
        )
    };
    let config = format!(
        "[backend]\ncontrol = \"{{dir}}/control.sock\"\n\
         [[element]]\nname = \"router\"\nsessions = 4096\n{}{}",
        vnic("lan", LAN_MAC, &ends.client),
        vnic("wan", WAN_MAC, &ends.server),
    );
    let shunt = if io_uring {
        Shunt::start(&ends.dir, &config)
    } else {
        refuse::without(&[libc::SYS_io_uring_setup], libc::ENOSYS, || {
            Shunt::start(&ends.dir, &config)
        })
    };
    ends.lengthen_queues();
    ends.address(LAN_MAC, WAN_MAC);
    open_beside(&ends);
    let (client_mac, server_mac) = (ends.mac("lan"), ends.mac("wan"));
    let macs = (client_mac.as_str(), server_mac.as_str());
    let tcp = tcp
        .iter()
        .flat_map(|to| PORTS.map(move |from| ("tcp", from, *to)));
    let sessions: Vec<Value> = tcp
        .chain([("udp", PORTS.start, udp)])
        .map(|(protocol, from, to)| session(protocol, from, to, macs))
        .collect();
    offload(&shunt, &sessions);
    let name = if io_uring { "shunt" } else { "read-write" };
    Path::new(name, OUTSIDE, Middle::Shunt(Box::new(shunt)), ends)
}

/// What begins and ends a connection is for the guest to see, and there is none: it goes
/// beside, translated by a rule that knows no connections.
fn open_beside(ends: &Ends) {
    ends.client.veth("beside", &ends.server, "beside");
    let both = [
        (&ends.client, "beside", "10.77.3.1", "10.77.3.2", "saddr"),
        (&ends.server, "beside", "10.77.3.2", "10.77.3.1", "daddr"),
    ];
    for (netns, interface, own, peer, field) in both {
        netns.address(interface, &format!("{own}/24"));
        netns.ip(&format!("route add default via {peer} table 7"));
        netns.ip("rule add fwmark 7 lookup 7");
        let translated = if field == "saddr" { OUTSIDE } else { CLIENT };
        netns.succeed(&[
            "nft",
            &format!(
                "table ip beside {{ \
                 chain ends {{ type route hook output priority -150; \
                 tcp flags & (syn | fin | rst) != 0 meta mark set 7; }}; \
                 chain leave {{ type filter hook postrouting priority 200; \
                 oifname {interface} ip {field} set {translated}; }}; }}"
            ),
        ]);
    }
}

fn session(protocol: &str, from: u16, to: u16, (client, server): (&str, &str)) -> Value {
    json!({
        "key": format!("{protocol}-{from}-{to}"), "protocol": protocol,
        "idle-timeout": 3600, "vouched": true,
        "original": {
            "ingress-vnic": "lan", "ingress-mac": LAN_MAC,
            "source-address": CLIENT, "source-port": from,
            "destination-address": SERVER, "destination-port": to,
            "translation": { "source-address": OUTSIDE, "source-port": from },
            "egress-vnic": "wan", "destination-mac": server, "source-mac": WAN_MAC,
        },
        "reply": {
            "ingress-vnic": "wan", "ingress-mac": WAN_MAC,
            "egress-vnic": "lan", "destination-mac": client, "source-mac": LAN_MAC,
        },
    })
}

fn offload(shunt: &Shunt, sessions: &[Value]) {
    // One argument of curl takes 128 KiB.
    for page in sessions.chunks(64) {
        let input = json!({ "shunt-offload:input": { "element": "router", "session": page } });
        let answer = shunt
            .control()
            .post("/restconf/operations/shunt-offload:offload", &input);
        let results = answer["shunt-offload:output"]["result"]
            .as_array()
            .expect("results")
            .clone();
        assert!(
            results.iter().all(|result| result["result"] == "offloaded"),
            "{answer}"
        );
    }
}
