//! An element whose guest is one testpmd and whose two uplinks are another's:
//!
//! ```text
//!  a ── af_packet ┐        ┌ uplink a ┐       ┌ vNIC a ┐
//!  (test)         │ testpmd│          │ shunt │        │ testpmd
//!  b ── af_packet ┘  "io"  └ uplink b ┘       └ vNIC b ┘  "io"
//! ```

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::SOON;
use crate::support::netns::Netns;
use crate::support::shunt::Shunt;
use crate::support::testpmd::{Testpmd, TestpmdBuilder};
use crate::support::{Dir, eventually};
use crate::traffic::{Datagram, Mac, Wire};

pub const MAC_A: Mac = [0x52, 0x54, 0, 0, 0, 0x0a];
pub const MAC_B: Mac = [0x52, 0x54, 0, 0, 0, 0x0b];
/// Hosts behind the uplinks.
pub const HOST_A: Mac = [0x02, 0, 0, 0, 0, 0x0a];
pub const HOST_B: Mac = [0x02, 0, 0, 0, 0, 0x0b];
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// The source port of what has no session; those that have one begin above.
const NO_SESSION: u16 = 30_000;
pub const SESSIONS: u16 = 16;
const VLAN: u16 = 7;
const DSCP: u8 = 10;

/// Who listens on the vhost-user sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listener {
    Shunt,
    Testpmd,
}

pub struct Rig {
    pub shunt: Shunt,
    pub dir: Dir,
    listener: Listener,
    /// Where the test's ends `net-a` and `net-b` are.
    pub far: Netns,
    near: Netns,
    pub a: Wire,
    pub b: Wire,
}

impl Rig {
    pub fn start(listener: Listener) -> Self {
        Self::with_workers(1, listener)
    }

    /// The same on so many workers.
    pub fn with_workers(workers: usize, listener: Listener) -> Self {
        let (near, far) = (quiet("near"), quiet("far"));
        for name in ["net-a", "net-b"] {
            near.veth(name, &far, name);
        }
        let dir = Dir::new();
        let shunt = Shunt::start(&dir, &config(workers, listener));
        Self {
            shunt,
            dir,
            listener,
            a: Wire::open(&far, "net-a"),
            b: Wire::open(&far, "net-b"),
            far,
            near,
        }
    }

    /// The testpmd that is the guest; `properties` are virtio-user's.
    pub fn guest(&self, queues: u16, properties: &str) -> TestpmdBuilder {
        let properties = self.properties(queues, properties);
        pinned_nowhere("io")
            .virtio_user(&self.dir.file("vnic-a"), &properties)
            .virtio_user(&self.dir.file("vnic-b"), &properties)
            .argument(&format!("--rxq={queues}"))
            .argument(&format!("--txq={queues}"))
    }

    /// The testpmd that is the physical side.
    pub fn uplinks(&self, queues: u16, properties: &str) -> TestpmdBuilder {
        let properties = self.properties(queues, properties);
        let host = format!("qpairs={queues}");
        pinned_nowhere("io")
            .within(&self.near)
            .virtio_user(&self.dir.file("uplink-a"), &properties)
            .af_packet("net-a", &host)
            .virtio_user(&self.dir.file("uplink-b"), &properties)
            .af_packet("net-b", &host)
            .argument(&format!("--rxq={queues}"))
            .argument(&format!("--txq={queues}"))
    }

    fn properties(&self, queues: u16, properties: &str) -> String {
        let server = u8::from(self.listener == Listener::Testpmd);
        format!("queues={queues},server={server},packed_vq=0,{properties}")
    }

    /// Starts a described testpmd and its forwarding.
    pub fn forward(&self, testpmd: TestpmdBuilder) -> Testpmd {
        let mut testpmd = testpmd.start(&self.dir);
        testpmd.forward();
        testpmd
    }

    /// Waits until `queues` queue pairs of all four devices run.
    pub fn wait_running(&self, queues: usize) {
        eventually(SOON, "all rings run", || {
            let ports = self.ports();
            let devices = ["a", "b"]
                .into_iter()
                .flat_map(|vnic| ["guest", "uplink"].map(|side| device(&ports, vnic, side)));
            devices.into_iter().all(|device| {
                let queue = device["queue"].as_array().unwrap();
                queue
                    .iter()
                    .filter(|queue| queue["running"] == true)
                    .count()
                    == queues
            })
        });
    }

    /// `shunt show ports --json`.
    pub fn ports(&self) -> Value {
        show(&self.shunt, &self.dir, &["show", "ports"])
    }

    /// `shunt show stats --json`.
    pub fn statistics(&self) -> Value {
        show(&self.shunt, &self.dir, &["show", "stats"])
    }

    /// How many wire packets went around the guest.
    pub fn forwarded(&self) -> u64 {
        number(&self.statistics()["forwarded"]["packets"])
    }

    /// Frames handed to the guest on both vNICs.
    pub fn to_guest(&self) -> u64 {
        let ports = self.ports();
        ["a", "b"]
            .map(|vnic| total(&device(&ports, vnic, "guest"), "tx-frames"))
            .iter()
            .sum()
    }

    /// Offloads sessions number 0 to [`SESSIONS`], vouched, and waits until all are active.
    pub fn offload(&self) {
        let sessions: Vec<Value> = (0..SESSIONS).map(session).collect();
        let input = json!({"shunt-offload:input": {"session": sessions}});
        let path = "/restconf/operations/shunt-offload:offload";
        let output = self.shunt.control().post(path, &input);
        let results = output["shunt-offload:output"]["result"].as_array().unwrap();
        for result in results {
            assert_eq!(result["result"], "offloaded", "{result}");
        }
        eventually(SOON, "all sessions are active", || {
            let shown = show(&self.shunt, &self.dir, &["show", "sessions"]);
            let shown = shown["session"].as_array().unwrap();
            shown.len() == usize::from(SESSIONS)
                && shown.iter().all(|session| {
                    let status = &session["status"];
                    status["original"]["state"] == "active" && status["reply"]["state"] == "active"
                })
        });
    }
}

/// Session `number`: source NAT from a to b, with a DSCP; every other one into a VLAN.
fn session(number: u16) -> Value {
    let text = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    json!({
        "key": format!("s{number}"), "protocol": "udp", "idle-timeout": 3600,
        "hand-over": "prompt", "vouched": true,
        "original": {
            "ingress-vnic": "a", "egress-vnic": "b",
            "source-address": CLIENT, "source-port": NO_SESSION + 1 + number,
            "destination-address": SERVER, "destination-port": 53,
            "translation": {"source-address": PUBLIC, "source-port": 1024 + number},
            "egress-vlan": vlan(number).unwrap_or(0),
            "destination-mac": text(HOST_B), "source-mac": text(MAC_B), "dscp": DSCP},
        "reply": {"destination-mac": text(HOST_A), "source-mac": text(MAC_A)}})
}

fn vlan(session: u16) -> Option<u16> {
    (session % 2 == 1).then_some(VLAN)
}

/// From a to b without a session: what leaves is what came.
pub fn missed(number: u64, length: usize) -> Datagram {
    Datagram {
        destination: MAC_A,
        source: HOST_A,
        vlan: None,
        ttl: 64,
        dscp: 0,
        // Ports differ, so that they spread over queues.
        from: (CLIENT, NO_SESSION - 1 - (number % 64) as u16),
        to: (SERVER, 53),
        number,
        length,
    }
}

/// The same from b to a.
pub fn missed_back(number: u64, length: usize) -> Datagram {
    let there = missed(number, length);
    Datagram {
        destination: MAC_B,
        source: HOST_B,
        from: there.to,
        to: there.from,
        ..there
    }
}

/// From a, of session `session`, and what leaves at b.
pub fn hit(session: u16, number: u64, length: usize) -> (Datagram, Datagram) {
    let sent = Datagram {
        from: (CLIENT, NO_SESSION + 1 + session),
        ..missed(number, length)
    };
    let received = Datagram {
        destination: HOST_B,
        source: MAC_B,
        vlan: vlan(session),
        ttl: 63,
        dscp: DSCP,
        from: (PUBLIC, 1024 + session),
        ..sent.clone()
    };
    (sent, received)
}

/// From b, the answer of session `session`, and what leaves at a.
pub fn hit_back(session: u16, number: u64, length: usize) -> (Datagram, Datagram) {
    let sent = Datagram {
        destination: MAC_B,
        source: HOST_B,
        vlan: vlan(session),
        ttl: 64,
        dscp: 0,
        from: (SERVER, 53),
        to: (PUBLIC, 1024 + session),
        number,
        length,
    };
    let received = Datagram {
        destination: HOST_A,
        source: MAC_A,
        vlan: None,
        ttl: 63,
        to: (CLIENT, NO_SESSION + 1 + session),
        ..sent.clone()
    };
    (sent, received)
}

fn config(workers: usize, listener: Listener) -> String {
    let mode = match listener {
        Listener::Shunt => "server",
        Listener::Testpmd => "client",
    };
    let vnic = |name: &str, mac: &str| {
        format!(
            r#"
[[element.vnic]]
name = "{name}"
socket = "{{dir}}/vnic-{name}"
mode = "{mode}"
queue-pairs = 2
mac = "{mac}"
uplink = {{ type = "vhost-user", socket = "{{dir}}/uplink-{name}", mode = "{mode}" }}
"#
        )
    };
    format!(
        "[backend]\ncontrol = \"{{dir}}/control.sock\"\nworkers = {workers}\n\n\
         [[element]]\nname = \"e\"\n{}{}",
        vnic("a", "52:54:00:00:00:0a"),
        vnic("b", "52:54:00:00:00:0b"),
    )
}

/// A namespace in which nobody speaks unasked.
pub fn quiet(prefix: &str) -> Netns {
    let netns = Netns::new(prefix);
    netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
    netns
}

/// A testpmd whose threads the scheduler places: it polls, and this is a small machine.
pub fn pinned_nowhere(forward: &str) -> TestpmdBuilder {
    Testpmd::build(forward).lcores("0@(0-1),1@(0-1)")
}

/// What `shunt ARGUMENTS --json` prints; it must succeed.
pub fn show(shunt: &Shunt, dir: &Dir, arguments: &[&str]) -> Value {
    let socket = dir.file("control.sock");
    let mut argv = arguments.to_vec();
    argv.extend(["--json", "--socket", socket.to_str().unwrap()]);
    let output = shunt.cli(&argv);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The device `side` (`guest` or `uplink`) of a vNIC in `shunt show ports`.
pub fn device(ports: &Value, vnic: &str, side: &str) -> Value {
    let vnics = ports["vnic"].as_array().unwrap();
    let entry = vnics.iter().find(|entry| entry["name"] == vnic);
    entry.unwrap_or_else(|| panic!("no {vnic} in {ports}"))[side].clone()
}

/// The sum of a counter over a device's queues.
pub fn total(device: &Value, counter: &str) -> u64 {
    let queues = device["queue"].as_array().unwrap();
    queues.iter().map(|queue| number(&queue[counter])).sum()
}

/// A 64-bit number, which is a string in RFC 7951's JSON.
pub fn number(value: &Value) -> u64 {
    let text = value.as_str();
    text.and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{value} is no number"))
}
