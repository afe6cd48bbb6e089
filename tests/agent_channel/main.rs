//! The agent's side of the serial line against the real host side: `shunt up` and `shunt relay` on
//! a unix socket in the place of a guest's port, curl, and nftables.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "tests may be blunt, and real peers run on real time"
)]

mod channel;
mod faults;
mod host;
#[allow(dead_code, reason = "the relay's own tests use more of it")]
#[path = "../relay/pki.rs"]
mod pki;
mod program;
mod sets;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use serde_json::{Value, json};
use shunt::agent::channel::{Channel, FromHost, Options, PortChoice};
use shunt::api::Session;
use support::Dir;
use support::shunt::Shunt;
use tokio::sync::mpsc::Receiver;

/// Longest wait for anything.
const SOON: Duration = Duration::from_secs(40);

/// `shunt up` with the element `router1`, whose port is `{dir}/port`.
const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
[up]
controller = "{dir}/controller.sock"
presence = "{dir}/presence.sock"
audit = "{dir}/audit.jsonl"
[[element]]
name = "router1"
translation-prefixes = ["198.51.100.0/24"]
serial = { socket = "{dir}/port", uid = 0, requests-per-second = 1000000 }
[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:00:00:01"
source-prefixes = ["0.0.0.0/0"]
uplink = { type = "vhost-user", socket = "{dir}/lan-uplink.sock" }
[[element.vnic]]
name = "wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:00:00:02"
source-prefixes = ["0.0.0.0/0"]
uplink = { type = "vhost-user", socket = "{dir}/wan-uplink.sock" }
"#;

/// A session of its own.
fn session(number: u16) -> Session {
    let session = json!({
        "key": format!("ct-{number}"), "protocol": "udp", "idle-timeout": 3600,
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": "10.0.0.2", "source-port": number,
            "destination-address": "192.0.2.9", "destination-port": 53
        }
    });
    serde_json::from_value(session).unwrap()
}

fn sessions(numbers: impl IntoIterator<Item = u16>) -> Vec<Session> {
    numbers.into_iter().map(session).collect()
}

/// Keys of the sessions that the backend has, sorted by number.
fn keys(up: &Shunt) -> Vec<u16> {
    let path = "/restconf/data/shunt-offload:state/element=router1/sessions";
    let answer = up.control().get(path);
    let sessions = answer["shunt-offload:sessions"]["session"].as_array();
    let number = |session: &Value| session["key"].as_str()?.strip_prefix("ct-")?.parse().ok();
    let mut keys: Vec<u16> = sessions.into_iter().flatten().filter_map(number).collect();
    keys.sort_unstable();
    keys
}

/// A channel over the port `name` of `dir`.
async fn channel(dir: &Dir, name: &str) -> (Channel, Receiver<FromHost>) {
    let options = Options {
        port: PortChoice::At(dir.file(name)),
        ..Options::default()
    };
    Channel::start(options).await.unwrap()
}

/// The next of what comes from the host that `is_it`.
async fn told(from: &mut Receiver<FromHost>, is_it: impl Fn(&FromHost) -> bool) -> FromHost {
    let next = async {
        loop {
            let what = from.recv().await.expect("the channel has ended");
            if is_it(&what) {
                return what;
            }
        }
    };
    tokio::time::timeout(SOON, next).await.expect("not told")
}

/// Waits until there is a connection.
async fn connected(from: &mut Receiver<FromHost>) {
    told(from, |what| *what == FromHost::Connected).await;
}
