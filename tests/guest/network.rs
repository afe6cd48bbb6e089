//! A client and a server on either side of the router guest, and what the tests ask of
//! the guest and of Shunt.

use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::support::guest::{Guest, GuestBuilder};
use crate::support::netns::Netns;
use crate::support::shunt::Shunt;
use crate::support::tcp::{Direction, TcpPlan, TcpTransfer};
use crate::support::{Dir, at, eventually, eventually_some};

/// Room for anything that takes milliseconds on a quiet machine.
pub const SOON: Duration = Duration::from_secs(30);

pub const CLIENT: &str = "10.61.1.2";
pub const GUEST_LAN: &str = "10.61.1.1";
pub const GUEST_WAN: &str = "10.61.2.1";
pub const SERVER: &str = "10.61.2.2";
pub const CLIENT_6: &str = "fd61:1::2";
pub const SERVER_6: &str = "fd61:2::2";

const LAN_MAC: &str = "52:54:00:5a:00:01";
const WAN_MAC: &str = "52:54:00:5a:00:02";

const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
workers = PAIRS

[[element]]
name = "router"
sessions = 64

[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:5a:00:01"
queue-pairs = PAIRS
uplink = { type = "tap", name = "lan", netns = "CLIENT" }

[[element.vnic]]
name = "wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:5a:00:02"
queue-pairs = PAIRS
uplink = { type = "tap", name = "wan", netns = "SERVER" }
"#;

/// The guest keeps ended connections for a second only: those that it saw end. It
/// answers every packet that asks for an ICMP error.
const GUEST_SETTINGS: &str = "sysctl -q -w \
    net.netfilter.nf_conntrack_tcp_timeout_time_wait=1 \
    net.netfilter.nf_conntrack_tcp_timeout_close=1 \
    net.ipv4.icmp_ratelimit=0";

/// Client, router guest on Shunt, server. IPv4 is masquerade'd (the server has no way
/// back to the client's addresses), IPv6 is routed.
pub struct Network {
    // Ends in this order.
    pub guest: Guest,
    pub shunt: Shunt,
    pub client: Netns,
    pub server: Netns,
    dir: Dir,
}

impl Network {
    /// Boots the guest, further described by `more`, and waits until it forwards.
    pub fn start(more: impl FnOnce(GuestBuilder) -> GuestBuilder) -> Self {
        Self::with_queue_pairs(1, more)
    }

    /// The same with `pairs` queue pairs a vNIC, a processor of the guest and a worker for each.
    pub fn with_queue_pairs(pairs: usize, more: impl FnOnce(GuestBuilder) -> GuestBuilder) -> Self {
        let (dir, client, server) = (Dir::new(), Netns::new("gcl"), Netns::new("gsv"));
        let config = CONFIG
            .replace("CLIENT", client.name())
            .replace("SERVER", server.name())
            .replace("PAIRS", &pairs.to_string());
        let shunt = Shunt::start(&dir, &config);
        client.address("lan", &format!("{CLIENT}/24"));
        client.address("lan", &format!("{CLIENT_6}/64"));
        client.gateway(GUEST_LAN);
        client.ip("-6 route add default via fd61:1::1");
        server.address("wan", &format!("{SERVER}/24"));
        server.address("wan", &format!("{SERVER_6}/64"));
        server.ip("-6 route add default via fd61:2::1");
        let vnic = |name| format!("socket={},queues={pairs}", dir.file(name).display());
        let builder = Guest::build()
            .vnic_with(&vnic("lan.sock"))
            .vnic_with(&vnic("wan.sock"))
            .argument("--cpus", &pairs.to_string())
            .address("eth0", &format!("{GUEST_LAN}/24"))
            .address("eth0", "fd61:1::1/64")
            .address("eth1", &format!("{GUEST_WAN}/24"))
            .address("eth1", "fd61:2::1/64")
            .masquerade("eth1");
        let guest = more(builder).start(&dir.file("guest"));
        let mut network = Self {
            guest,
            shunt,
            client,
            server,
            dir,
        };
        network.guest.wait_ready();
        network.wait_forwarding();
        network
    }

    /// Waits until a ping crosses the guest, and sets the guest up.
    pub fn wait_forwarding(&mut self) {
        eventually(SOON, "a ping crosses the guest", || {
            self.client.pings(SERVER)
        });
        self.guest.succeed(GUEST_SETTINGS);
    }

    /// Writes the guest's MACs into both neighbours' tables, so that traffic around the
    /// guest needs no answer of the guest.
    pub fn pin_neighbours(&self) {
        self.client.ip(&format!(
            "neighbour replace {GUEST_LAN} lladdr {LAN_MAC} dev lan nud permanent"
        ));
        self.server.ip(&format!(
            "neighbour replace {GUEST_WAN} lladdr {WAN_MAC} dev wan nud permanent"
        ));
    }

    /// Runs `shunt …` against this backend; gives the JSON that it prints.
    pub fn cli(&self, arguments: &[&str]) -> Value {
        let output = self.cli_output(arguments);
        assert!(output.status.success(), "shunt {arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn cli_output(&self, arguments: &[&str]) -> Output {
        let socket = self.dir.file("control.sock");
        let mut argv = arguments.to_vec();
        argv.extend(["--json", "--socket", socket.to_str().unwrap()]);
        self.shunt.cli(&argv)
    }

    /// Offers `connection` for offload.
    pub fn offer(&self, key: &str, connection: &Connection, more: &[&str]) {
        let Connection {
            protocol,
            from,
            to,
            source_after_nat,
        } = connection;
        let (from, to) = (from.to_string(), to.to_string());
        let snat = source_after_nat.to_string();
        let mut argv = vec!["session", "add", "--key", key, "--protocol", protocol];
        argv.extend(["--ingress", "lan", "--egress", "wan"]);
        argv.extend(["--from", &from, "--to", &to]);
        if snat != from {
            argv.extend(["--snat", &snat]);
        }
        argv.extend(more);
        let answer = self.cli(&argv);
        assert_eq!(answer["result"][0]["result"], "offloaded", "{answer}");
    }

    /// Whether both directions of a session go around the guest.
    pub fn is_active(&self, key: &str) -> bool {
        let output = self.cli_output(&["session", "show", key]);
        let Ok(session) = serde_json::from_slice::<Value>(&output.stdout) else {
            return false;
        };
        let status = &session["status"];
        ["original", "reply"]
            .iter()
            .all(|way| status[way]["state"] == "active")
    }

    /// Waits until both directions of a session go around the guest.
    pub fn wait_active(&self, key: &str) {
        eventually(SOON, &format!("session {key} is active"), || {
            self.is_active(key)
        });
    }

    /// One of the counters that `shunt show stats` has by name.
    pub fn count(&self, group: &str, name: &str) -> u64 {
        let stats = self.cli(&["show", "stats"]);
        let entries = stats[group].as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["name"] == name);
        number(&entry.unwrap_or_else(|| panic!("no {group} {name} in {stats}"))["count"])
    }

    /// Whether all vNICs have negotiated checksum offload, and segmentation offload.
    pub fn guest_offloads(&self) -> (bool, bool) {
        let ports = self.cli(&["show", "ports"]);
        let vnics = ports["vnic"].as_array().unwrap();
        let all = |names: [&str; 2]| {
            vnics.iter().all(|vnic| {
                let features = vnic["guest"]["feature"].as_array().unwrap();
                names
                    .iter()
                    .all(|name| features.iter().any(|has| has == name))
            })
        };
        let checksums = all(["csum", "guest-csum"]);
        (checksums, all(["host-tso4", "guest-tso4"]))
    }

    /// Wire packets that went around the guest, and frames that came from a vNIC's uplink.
    pub fn packets_and_frames(&self, vnic: &str) -> [u64; 2] {
        let packets = number(&self.cli(&["show", "stats"])["forwarded"]["packets"]);
        let ports = self.cli(&["show", "ports"]);
        let mut vnics = ports["vnic"].as_array().unwrap().iter();
        let vnic = vnics.find(|entry| entry["name"] == vnic).unwrap();
        [packets, number(&vnic["uplink"]["queue"][0]["rx-frames"])]
    }

    /// Waits until the guest's conntrack has the connection to `to` with answers seen.
    pub fn tracked(&mut self, protocol: &'static str, to: SocketAddr) -> Connection {
        let what = format!("the guest tracks {protocol} to {to}");
        eventually_some(SOON, &what, || self.look_for(protocol, to)).connection
    }

    /// Packets and bytes, both ways, that the guest has seen of the connection.
    pub fn seen_by_guest(&mut self, connection: &Connection) -> Option<Seen> {
        let entry = self.look_for(connection.protocol, connection.to)?;
        Some(entry.seen)
    }

    fn look_for(&mut self, protocol: &'static str, to: SocketAddr) -> Option<Entry> {
        let family = if to.is_ipv6() { "ipv6" } else { "ipv4" };
        let (ip, port) = (to.ip(), to.port());
        let (listing, _) = self.guest.run(&format!(
            "conntrack -L -f {family} -p {protocol} -d {ip} --dport {port} 2>/dev/null"
        ));
        let line = listing
            .lines()
            .find(|line| !line.contains("UNREPLIED") && line.matches("src=").count() == 2)?;
        Some(Entry::parse(protocol, line))
    }

    /// Starts a transfer between client and server, paced.
    pub fn transfer(&self, server: &str, direction: Direction, bytes: u64, rate: u64) -> Transfer {
        // A port of its own, known before the connection is.
        let to = self.server.run(|| {
            let socket = std::net::TcpListener::bind(at(&endpoint(server, 0))).unwrap();
            socket.local_addr().unwrap()
        });
        let plan = TcpPlan {
            listen: to,
            connect: to,
            direction,
            bytes,
            rate: Some(rate),
        };
        Transfer {
            running: TcpTransfer::start(&self.client, &self.server, plan),
            to,
        }
    }
}

/// A transfer under way and where it goes.
pub struct Transfer {
    pub running: TcpTransfer,
    pub to: SocketAddr,
}

/// A connection as the guest tracks it.
#[derive(Clone, Debug)]
pub struct Connection {
    pub protocol: &'static str,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub source_after_nat: SocketAddr,
}

/// What the guest has seen of a connection: packets and bytes, both ways.
pub type Seen = [u64; 4];

/// A line of `conntrack -L`.
struct Entry {
    connection: Connection,
    seen: Seen,
}

impl Entry {
    fn parse(protocol: &'static str, line: &str) -> Self {
        let value = |name: &str, nth: usize| -> &str {
            let mut values = line.split(' ').filter_map(|word| word.strip_prefix(name));
            values
                .nth(nth)
                .unwrap_or_else(|| panic!("no {name} in {line}"))
        };
        let count = |name: &str, nth: usize| value(name, nth).parse().unwrap();
        let end = |address: &str, port: &str| at(&endpoint(address, port.parse().unwrap()));
        Self {
            connection: Connection {
                protocol,
                from: end(value("src=", 0), value("sport=", 0)),
                to: end(value("dst=", 0), value("dport=", 0)),
                source_after_nat: end(value("dst=", 1), value("dport=", 1)),
            },
            seen: [
                count("packets=", 0),
                count("bytes=", 0),
                count("packets=", 1),
                count("bytes=", 1),
            ],
        }
    }
}

/// `10.0.0.1:80`, `[fd00::1]:80`.
pub fn endpoint(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

/// A 64-bit number, which RFC 7951 writes as a string.
pub fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_else(|| panic!("{value}"));
    text.parse().unwrap()
}
