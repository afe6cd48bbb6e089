//! How many packets a second go around the guest, vhost-user to vhost-user?
//!
//! *Held constant*: 64-byte UDP frames of `dpdk-testpmd` flowgen on two `net_virtio_user`
//! ports, one worker on one core, testpmd on the other; every packet hits a `vouched` session
//! and gets its source address and port, both MACs and its TTL rewritten.
//! *Peers*: none yet. *Expected before measuring*: 25 ns for parse and rewrite, 70 ns for the
//! rings, 50 ns for look-up and the rest: some 6 Mpps if testpmd could send them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use report::{Report, cpu_seconds, median};
use serde_json::{Value, json};
use support::shunt::Shunt;
use support::testpmd::Testpmd;
use support::{Dir, now, pause};

/// flowgen's fixed destination MAC.
const FLOWGEN_MAC: &str = "00:01:02:03:04:01";
const SAMPLES: usize = 7;
const SAMPLE: Duration = Duration::from_secs(1);

const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
[[element]]
name = "router"
sessions = 65536
[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:00:00:01"
uplink = { type = "vhost-user", socket = "{dir}/lan-uplink.sock" }
[[element.vnic]]
name = "wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:00:00:02"
uplink = { type = "vhost-user", socket = "{dir}/wan-uplink.sock" }
"#;

fn main() {
    let mut report = Report::new("vnic");
    for sessions in [64, 4096] {
        let (pps, share) = forwarded(sessions);
        let case = format!("sessions={sessions}");
        report.line(&case, pps.round(), "pps", None);
        report.line(&format!("{case} cpu"), share, "cores", None);
    }
}

/// Packets a second forwarded in total, and the cores the backend used for it.
fn forwarded(sessions: u32) -> (f64, f64) {
    let dir = Dir::new();
    let mut shunt = Shunt::start(&dir, CONFIG);
    for side in ["lan", "wan"] {
        offload(&shunt, side, sessions);
    }
    let pid = shunt.process().id();
    support::process::succeed(&[
        "taskset",
        "--all-tasks",
        "--pid",
        "--cpu-list",
        "1",
        &pid.to_string(),
    ]);
    let mut testpmd = Testpmd::build("flowgen")
        .virtio_user(&dir.file("lan-uplink.sock"), "queues=1")
        .virtio_user(&dir.file("wan-uplink.sock"), "queues=1")
        .lcores("0@0,1@0")
        .argument(&format!("--flowgen-flows={sessions}"))
        .start(&dir);
    testpmd.forward();
    let control = shunt.control();
    let count = || {
        let path = "/restconf/data/shunt-offload:state/element=router/statistics";
        let packets = control.get(path)["shunt-offload:statistics"]["forwarded"]["packets"].clone();
        packets
            .as_str()
            .expect("a counter")
            .parse::<f64>()
            .expect("a number")
    };
    pause(SAMPLE);
    let (began, cpu) = (now(), cpu_seconds(pid));
    let rates = (0..SAMPLES)
        .map(|_| {
            let (start, before) = (now(), count());
            pause(SAMPLE);
            (count() - before) / start.elapsed().as_secs_f64()
        })
        .collect();
    let share = (cpu_seconds(pid) - cpu) / began.elapsed().as_secs_f64();
    (median(rates), share)
}

/// Offloads what flowgen sends into `side`: 10.254.0.0:1000 to 10.253.0.0+n:1001.
fn offload(shunt: &Shunt, side: &str, sessions: u32) {
    let other = if side == "lan" { "wan" } else { "lan" };
    let all: Vec<Value> = (0..sessions)
        .map(|number| {
            json!({
                "key": format!("{side}-{number}"), "protocol": "udp", "idle-timeout": 600,
                "vouched": true, "directions": "original",
                "original": {
                    "ingress-vnic": side, "ingress-mac": FLOWGEN_MAC,
                    "source-address": "10.254.0.0", "source-port": 1000,
                    "destination-address": format!("10.253.{}.{}", number / 256, number % 256),
                    "destination-port": 1001,
                    "translation": { "source-address": "198.51.100.1", "source-port": 1024 + number },
                    "egress-vnic": other, "destination-mac": "02:00:00:00:00:0d",
                    "source-mac": "02:00:00:00:00:0c",
                }
            })
        })
        .collect();
    // One argument of curl takes 128 KiB.
    for page in all.chunks(128) {
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
