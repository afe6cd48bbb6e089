//! A stateful firewall with the agent inside, between a client's and a server's namespace,
//! behind `shunt up`, as users run it.

#![allow(dead_code, reason = "tests and benches use a part each")]

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::guest::{Guest, GuestBuilder};
use crate::support::netns::Netns;
use crate::support::shunt::{Control, Shunt, agent_binary};
use crate::support::tagging::AccessPort;
use crate::support::{Dir, at, eventually, now, pause};

/// Room for anything that takes seconds on a quiet machine.
pub const SOON: Duration = Duration::from_secs(40);
/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long sessions outlive the agent.
pub const LEASE: Duration = Duration::from_secs(5);

/// The client, and the guest on the same link.
pub const CLIENT: &str = "10.81.1.2";
pub const LAN: &str = "10.81.1.1";
pub const CLIENT_6: &str = "fd81:1::2";
/// A client behind VLAN 7 of the same vNIC.
pub const TAGGED: &str = "10.81.7.2";
/// The server, and the guest on the same link: what clients look like there.
pub const SERVER: &str = "10.81.2.2";
pub const WAN: &str = "10.81.2.1";
/// An address of the server that both of its links lead to.
pub const SERVER_6: &str = "fd81:9::9";
/// The guest's port that it forwards to the client's port of the same number.
pub const FORWARDED: u16 = 8080;

/// The vNICs, each with the number of the interface inside and what is at its uplink.
const VNICS: [&str; 3] = ["lan", "wan", "alt"];

const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
[up]
controller = "{dir}/controller.sock"
presence = "{dir}/presence.sock"
audit = "{dir}/audit.jsonl"
[lease]
socket = "{dir}/presence.sock"
timeout-ms = 5000
[[element]]
name = "router"
sessions = 16384
source-prefixes = ["0.0.0.0/0", "::/0"]
translation-prefixes = ["10.81.2.1/32", "10.81.1.1/32"]
serial = { socket = "{dir}/guest/offload.sock", uid = 0 }
"#;

/// What the guest is: a firewall that lets established connections pass and drops what is
/// INVALID, without the setting that would hide a stale view of a connection's windows.
const RULES: &str = r#"
/usr/sbin/ip link add link eth0 name eth0.7 type vlan id 7
/usr/sbin/ip address add 10.81.7.1/24 dev eth0.7
/usr/sbin/ip link set eth0.7 up
/usr/sbin/ip -6 route add fd81:9::/64 via fd81:2::2
sysctl -q -w net.netfilter.nf_conntrack_tcp_be_liberal=0 \
    net.netfilter.nf_conntrack_tcp_timeout_time_wait=1 \
    net.netfilter.nf_conntrack_tcp_timeout_close=1 \
    net.ipv4.icmp_ratelimit=0
cat >/run/rules <<'RULES'
flush ruleset
table inet filter {
    counter not_valid { }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid counter name not_valid drop
        iifname { "eth0", "eth0.7" } accept
        ct status dnat accept
        meta l4proto { icmp, icmpv6 } accept
    }
}
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        iifname "eth1" meta l4proto { tcp, udp } th dport 8080 dnat to 10.81.1.2:8080
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "eth1" masquerade
    }
}
RULES
nft -f /run/rules
"#;

/// Starts the agent as a service manager would: again, when it ends.
const AGENT: &str = r#"
cat >/run/agent.toml <<'CONFIG'
{config}
CONFIG
cat >/run/agent <<'START'
while [ ! -e /run/agent.stopped ]; do
    shunt agent run --config /run/agent.toml >>/run/agent.log 2>&1
    usleep 500000
done
START
sh /run/agent >/dev/null 2>&1 </dev/null &
"#;

/// The firewall and what it stands between. Its vNICs `lan`, `wan` and `alt` are eth0, eth1
/// and eth2 inside; the uplink of each is a tap of the vNIC's name.
pub struct Rig {
    // Ends in this order.
    pub guest: Guest,
    pub shunt: Shunt,
    pub client: Netns,
    pub tagged: Netns,
    pub server: Netns,
    pub dir: Dir,
    _vlan: AccessPort,
}

/// What a rig is made with.
#[derive(Default)]
pub struct Plan {
    /// More of the agent's configuration.
    pub agent: &'static str,
    /// More for the guest's shell, before the agent starts.
    pub script: &'static str,
}

impl Rig {
    /// Boots it, and waits until it forwards and the agent is connected.
    pub fn start(plan: &Plan, describe: impl FnOnce(GuestBuilder) -> GuestBuilder) -> Self {
        let dir = Dir::new();
        std::fs::create_dir(dir.file("guest")).unwrap();
        let (client, tagged, server) = (Netns::new("acl"), Netns::new("atg"), Netns::new("asv"));
        let mut config = CONFIG.to_owned();
        let mut guest = Guest::build();
        for (index, vnic) in VNICS.iter().enumerate() {
            let netns = if *vnic == "lan" { &client } else { &server };
            config.push_str(&format!(
                "[[element.vnic]]\nname = '{vnic}'\nsocket = '{{dir}}/{vnic}.sock'\n\
                 mac = '52:54:00:5a:00:0{}'\n\
                 uplink = {{ type = 'tap', name = '{vnic}', netns = '{}' }}\n",
                index + 1,
                netns.name(),
            ));
            let socket = dir.file(&format!("{vnic}.sock"));
            let link = index + 1;
            guest = guest
                // Room for the windows of several bulk transfers: the slow path drops none.
                .vnic_with(&format!("socket={},rx_queue_size=1024", socket.display()))
                .address(&format!("eth{index}"), &format!("10.81.{link}.1/24"))
                .address(&format!("eth{index}"), &format!("fd81:{link}::1/64"));
        }
        let shunt = Shunt::up(&dir, &config);
        let vlan = outside(&client, &tagged, &server);
        let mut script = RULES.to_owned() + plan.script;
        script += &agent_script(plan.agent);
        let script = dir.write("script", &script);
        guest = guest
            .program(&agent_binary())
            .argument("--script", script.to_str().unwrap());
        let mut guest = describe(guest).start(&dir.file("guest"));
        guest.wait_ready();
        let mut rig = Self {
            guest,
            shunt,
            client,
            tagged,
            server,
            dir,
            _vlan: vlan,
        };
        rig.wait_forwarding();
        rig.wait_agent();
        rig
    }

    /// Waits until pings cross the guest, from both clients and in both families.
    pub fn wait_forwarding(&self) {
        eventually(SOON, "the guest forwards", || {
            self.client.pings(SERVER) && self.tagged.pings(SERVER) && self.client.pings(SERVER_6)
        });
    }

    /// Waits until the agent inside is connected to this host.
    pub fn wait_agent(&mut self) {
        let started = now();
        loop {
            let status = self.agent_status();
            let channel = &status["channel"];
            if channel["connected"] == true && !channel["epoch"].is_null() {
                return;
            }
            if started.elapsed() > SOON {
                panic!("not connected: the agent {status}\n{}", self.agent_log());
            }
            pause(LOOK_EVERY);
        }
    }

    /// What `shunt agent status --json` says; `Null` while there is no agent.
    pub fn agent_status(&mut self) -> Value {
        let (said, code) = self.guest.run("shunt agent status --json");
        match code {
            0 => serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}")),
            _ => Value::Null,
        }
    }

    /// SIGKILL to the agent, which is not started again.
    pub fn stop_agent(&mut self) {
        self.guest
            .succeed("touch /run/agent.stopped; kill -9 $(pidof shunt)");
    }

    /// Starts it after [`Rig::stop_agent`], and waits until it is connected.
    pub fn start_agent(&mut self) {
        self.guest
            .succeed("rm -f /run/agent.stopped; sh /run/agent >/dev/null 2>&1 </dev/null &");
        self.wait_agent();
    }

    /// What the agent inside has logged.
    pub fn agent_log(&mut self) -> String {
        self.guest.run("cat /run/agent.log").0
    }

    /// All sessions, with their status.
    pub fn sessions(&self) -> Vec<Value> {
        sessions(&self.shunt.control(), "router")
    }

    /// Those sessions whose original direction goes to `to`.
    pub fn sessions_to(&self, to: SocketAddr) -> Vec<Value> {
        let goes_to = |session: &Value| {
            let original = &session["original"];
            let address = original["destination-address"].as_str().unwrap_or_default();
            address.parse() == Ok(to.ip()) && original["destination-port"] == to.port()
        };
        self.sessions().into_iter().filter(goes_to).collect()
    }

    /// Waits until exactly one session goes to `to`, and both its directions go around the
    /// guest; gives it.
    pub fn wait_offloaded(&mut self, to: SocketAddr) -> Value {
        let started = now();
        loop {
            let sessions = self.sessions_to(to);
            if let [session] = sessions.as_slice()
                && is_active(session)
            {
                return session.clone();
            }
            if started.elapsed() > SOON {
                let (status, log) = (self.agent_status(), self.agent_log());
                panic!("not offloaded: {to}; sessions {sessions:?}; agent {status}\n{log}");
            }
            pause(LOOK_EVERY);
        }
    }

    /// Withdraws a session, as an operator may.
    pub fn withdraw(&self, session: &Value) {
        let input = json!({ "shunt-offload:input": { "key": [session["key"]] } });
        let path = "/restconf/operations/shunt-offload:withdraw";
        let output = self.shunt.control().post(path, &input);
        let result = &output["shunt-offload:output"]["result"][0]["result"];
        assert_eq!(result, "withdrawn", "{session}: {output}");
    }

    /// Waits until no session goes to `to`.
    pub fn wait_handed_back(&self, to: SocketAddr, deadline: Duration) {
        eventually(deadline, &format!("no session to {to}"), || {
            self.sessions_to(to).is_empty()
        });
    }

    /// Wire packets so far: from uplinks, and of these around the guest.
    pub fn packets(&self) -> Packets {
        let statistics = self.statistics();
        let count = |name: &str| number(&statistics[name]["packets"]);
        Packets {
            from_uplinks: count("from-uplink"),
            forwarded: count("forwarded"),
        }
    }

    /// The element's statistics.
    pub fn statistics(&self) -> Value {
        state(&self.shunt.control(), "router", "statistics")
    }

    /// What the guest has called INVALID and dropped.
    pub fn invalid(&mut self) -> u64 {
        let text = self
            .guest
            .succeed("nft --json list counter inet filter not_valid");
        let listing: Value = serde_json::from_str(&text).unwrap();
        let objects = listing["nftables"].as_array().unwrap();
        let counter = objects.iter().find_map(|object| object.get("counter"));
        counter.unwrap()["packets"].as_u64().unwrap()
    }

    /// The line of the guest's conntrack about a connection to `to`, if it has one.
    pub fn tracked(&mut self, protocol: &str, to: SocketAddr) -> Option<String> {
        let family = if to.is_ipv6() { "ipv6" } else { "ipv4" };
        let (ip, port) = (to.ip(), to.port());
        let (listing, _) = self.guest.run(&format!(
            "conntrack -L -f {family} -p {protocol} -d {ip} --dport {port} 2>/dev/null"
        ));
        listing
            .lines()
            .find(|line| line.contains("src="))
            .map(str::to_owned)
    }

    /// Waits until the guest's conntrack has no connection to `to` any more.
    pub fn wait_forgotten(&mut self, protocol: &str, to: SocketAddr) {
        let started = now();
        while let Some(line) = self.tracked(protocol, to) {
            if started.elapsed() > SOON {
                panic!(
                    "the guest still tracks {line}; the agent\n{}",
                    self.agent_status()
                );
            }
            pause(LOOK_EVERY);
        }
    }

    /// Bytes of a connection, both ways, that the guest has seen.
    pub fn seen_by_guest(&mut self, protocol: &str, to: SocketAddr) -> u64 {
        let line = self.tracked(protocol, to).unwrap_or_default();
        let counts = line
            .split(' ')
            .filter_map(|word| word.strip_prefix("bytes="));
        counts.map(|count| count.parse::<u64>().unwrap()).sum()
    }

    /// An address of `netns`' own with a port that nobody has there.
    pub fn free(&self, netns: &Netns, address: &str) -> SocketAddr {
        netns.run(|| {
            let socket = std::net::TcpListener::bind(at(&endpoint(address, 0))).unwrap();
            socket.local_addr().unwrap()
        })
    }
}

/// Wire packets.
#[derive(Clone, Copy, Debug)]
pub struct Packets {
    pub from_uplinks: u64,
    pub forwarded: u64,
}

impl Packets {
    /// The share, from 0 to 1, of the packets between `earlier` and now that the guest saw.
    pub fn through_guest_since(self, earlier: Self) -> f64 {
        let all = self.from_uplinks - earlier.from_uplinks;
        let around = self.forwarded - earlier.forwarded;
        1.0 - around as f64 / all as f64
    }
}

/// What starts the agent inside, with `config` as its configuration.
pub fn agent_script(config: &str) -> String {
    AGENT.replace("{config}", config)
}

fn state(control: &Control, element: &str, what: &str) -> Value {
    let path = format!("/restconf/data/shunt-offload:state/element={element}/{what}");
    control.get(&path)[format!("shunt-offload:{what}")].take()
}

/// All sessions of an element, with their status.
pub fn sessions(control: &Control, element: &str) -> Vec<Value> {
    match state(control, element, "sessions")["session"].take() {
        Value::Array(sessions) => sessions,
        _ => Vec::new(),
    }
}

/// Addresses and routes of the namespaces.
fn outside(client: &Netns, tagged: &Netns, server: &Netns) -> AccessPort {
    client.address("lan", &format!("{CLIENT}/24"));
    client.address("lan", &format!("{CLIENT_6}/64"));
    client.gateway(LAN);
    client.ip("-6 route add default via fd81:1::1");
    client.veth("vlan7", tagged, "lan7");
    let vlan = AccessPort::new(client, "lan", "vlan7", 7);
    tagged.address("lan7", &format!("{TAGGED}/24"));
    tagged.gateway("10.81.7.1");
    for (link, vnic) in [(2, "wan"), (3, "alt")] {
        server.address(vnic, &format!("10.81.{link}.2/24"));
        server.address(vnic, &format!("fd81:{link}::2/64"));
    }
    server.address("lo", &format!("{SERVER_6}/128"));
    server.ip("-6 route add fd81:1::/64 via fd81:2::1");
    vlan
}

/// Whether both directions of a session go around the guest.
pub fn is_active(session: &Value) -> bool {
    let active = |way| session["status"][way]["state"] == "active";
    active("original") && active("reply")
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
