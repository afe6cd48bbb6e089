//! What the demo runs on: client ─ tap ─ backend ─ guest ─ backend ─ tap ─ server; and the
//! guest's serial port, by which it asks.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::report::Share;
use crate::support::guest::Guest;
use crate::support::netns::Netns;
use crate::support::shunt::{Shunt, binary};
use crate::support::{Dir, eventually};

/// The client's address, behind the guest's masquerade.
pub const CLIENT: &str = "10.77.1.2";
/// The server's address.
pub const SERVER: &str = "10.77.2.2";
/// What the masquerade makes of the client's.
pub const OUTSIDE: &str = "10.77.2.1";

const SOON: Duration = Duration::from_secs(20);
/// Frames that a tap keeps for the backend: a few milliseconds of waiting for a CPU
/// must not count as loss, on either path.
const TAP_FRAMES: u32 = 8_192;

const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"

[up]
controller = "{dir}/controller.sock"
presence = "{dir}/presence.sock"
audit = "{dir}/audit.jsonl"

[[element]]
name = "router"
translation-prefixes = ["{outside}/32"]
serial = { socket = "{dir}/guest/offload.sock", uid = 0 }

[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:5a:00:01"
source-prefixes = ["0.0.0.0/0"]
uplink = { type = "tap", name = "lan", netns = "{client}" }

[[element.vnic]]
name = "wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:5a:00:02"
uplink = { type = "tap", name = "wan", netns = "{server}" }
"#;

/// Everything that runs. Fields are dropped in order: the guest before its backend, that
/// before the namespaces with its taps.
#[derive(Debug)]
pub struct World {
    pub guest: Guest,
    pub shunt: Shunt,
    pub client: Netns,
    pub server: Rc<Netns>,
    _dir: Dir,
}

/// A connection: protocol and the client's and server's ports.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub key: &'static str,
    pub protocol: &'static str,
    pub from: u16,
    pub to: u16,
}

impl World {
    /// Two namespaces, their taps on a backend, and a guest that begins to boot.
    pub fn start() -> Self {
        let dir = Dir::new();
        let (client, server) = (namespace("democ"), namespace("demos"));
        let config = CONFIG
            .replace("{outside}", OUTSIDE)
            .replace("{client}", client.name())
            .replace("{server}", server.name());
        std::fs::create_dir(dir.file("guest")).unwrap();
        let shunt = Shunt::up(&dir, &config);
        for (netns, tap, address) in [(&client, "lan", CLIENT), (&server, "wan", SERVER)] {
            netns.address(tap, &format!("{address}/24"));
            netns.ip(&format!("link set {tap} txqueuelen {TAP_FRAMES}"));
        }
        // Small packets are what is measured, also where the guest would take trains of them.
        client.succeed(&["ethtool", "-K", "lan", "tx-udp-segmentation", "off"]);
        client.gateway("10.77.1.1");
        let guest = Guest::build()
            .vnic(&dir.file("lan.sock"))
            .vnic(&dir.file("wan.sock"))
            .address("eth0", "10.77.1.1/24")
            .address("eth1", &format!("{OUTSIDE}/24"))
            .masquerade("eth1")
            .program(&binary())
            .start(&dir.file("guest"));
        Self {
            guest,
            shunt,
            client,
            server: Rc::new(server),
            _dir: dir,
        }
    }

    /// Waits until the client reaches the server through the guest.
    pub fn wait_ready(&mut self) {
        self.guest.wait_ready();
        eventually(SOON, "the client reaches the server", || {
            self.client.pings(SERVER)
        });
    }

    /// The guest asks for `session` to be offloaded.
    pub fn offload(&mut self, session: Session) {
        let Session {
            key,
            protocol,
            from,
            to,
        } = session;
        let wanted = json!({ "session": [{
            "key": key, "protocol": protocol,
            "original": {
                "ingress-vnic": "lan", "egress-vnic": "wan",
                "source-address": CLIENT, "source-port": from,
                "destination-address": SERVER, "destination-port": to,
                "translation": { "source-address": OUTSIDE, "source-port": from },
            },
        }]});
        let answer = self.call("offload", wanted);
        let result = &answer["result"][0]["result"];
        assert_eq!(result, "offloaded", "{answer}");
    }

    /// The guest takes `session` back.
    pub fn withdraw(&mut self, session: Session) {
        self.call("withdraw", json!({ "key": [session.key] }));
        eventually(SOON, "the session is gone", || {
            self.sessions().iter().all(|own| own["key"] != session.key)
        });
    }

    /// A program in the guest calls an rpc over the serial port.
    fn call(&mut self, rpc: &str, input: Value) -> Value {
        let path = format!("/restconf/operations/shunt-offload:{rpc}");
        let input = json!({ "shunt-offload:input": input });
        let script = format!("shunt call POST {path} '{input}'");
        let answer: Value = serde_json::from_str(&self.guest.succeed(&script)).unwrap();
        answer["shunt-offload:output"].clone()
    }

    /// Waits until both directions of `session` go around the guest.
    pub fn wait_active(&self, session: Session, within: Duration) {
        eventually(within, "both directions are active", || {
            self.sessions().iter().any(|own| {
                let is_active = |way: &str| own["status"][way]["state"] == "active";
                own["key"] == session.key && is_active("original") && is_active("reply")
            })
        });
    }

    /// Frames that both vNICs of the guest have received, as the guest's kernel counts.
    pub fn guest_received(&mut self) -> u64 {
        ["eth0", "eth1"]
            .map(|name| self.guest.counters(name).rx_packets)
            .iter()
            .sum()
    }

    /// Makes a measurement; says what the guest received meanwhile, and what went around it.
    pub fn share_of<T>(&mut self, measure: impl FnOnce() -> T) -> (T, Share) {
        let before = (self.guest_received(), self.forwarded());
        let measured = measure();
        let share = Share {
            guest: self.guest_received() - before.0,
            around: self.forwarded() - before.1,
        };
        (measured, share)
    }

    /// Packets that went around the guest so far.
    fn forwarded(&self) -> u64 {
        let path = "/restconf/data/shunt-offload:state/element=router/statistics";
        let answer = self.shunt.control().get(path);
        number(&answer["shunt-offload:statistics"]["forwarded"]["packets"])
    }

    /// Counters of packets dropped on the way, by who dropped them.
    pub fn drops(&mut self) -> BTreeMap<String, u64> {
        let path = "/restconf/data/shunt-offload:state/element=router/statistics";
        let answer = self.shunt.control().get(path);
        let reasons = answer["shunt-offload:statistics"]["dropped"].as_array();
        let mut drops: BTreeMap<String, u64> = reasons
            .into_iter()
            .flatten()
            .map(|reason| {
                (
                    format!("backend: {}", reason["name"]),
                    number(&reason["count"]),
                )
            })
            .collect();
        for (netns, tap) in [(&self.client, "lan"), (&self.server, "wan")] {
            for way in ["rx", "tx"] {
                let count = netns.counter(tap, way, "dropped");
                drops.insert(format!("tap {tap}: {way}"), count);
            }
            let sockets = netns.succeed(&["nstat", "-asz", "UdpRcvbufErrors"]);
            let count = sockets.split_whitespace().nth(2);
            let count = count.and_then(|word| word.parse().ok()).unwrap_or(0);
            drops.insert(format!("sockets behind {tap}"), count);
        }
        for interface in ["eth0", "eth1"] {
            let counters = self.guest.counters(interface);
            drops.insert(format!("guest {interface}: rx"), counters.rx_dropped);
            drops.insert(format!("guest {interface}: tx"), counters.tx_dropped);
        }
        drops
    }

    fn sessions(&self) -> Vec<Value> {
        let path = "/restconf/data/shunt-offload:state/element=router/sessions";
        let answer = self.shunt.control().get(path);
        let list = &answer["shunt-offload:sessions"]["session"];
        list.as_array().cloned().unwrap_or_default()
    }
}

/// A 64-bit number of RFC 7951: a string.
fn number(value: &Value) -> u64 {
    let number = value.as_str().and_then(|text| text.parse().ok());
    number.unwrap_or_else(|| panic!("{value} is not a 64-bit number"))
}

/// A namespace whose devices send nothing of their own accord but ARP.
fn namespace(prefix: &str) -> Netns {
    let netns = Netns::new(prefix);
    netns.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
    netns
}
