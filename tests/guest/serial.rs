//! A real guest behind `shunt up`: what it asks for over its serial port is judged, offloaded
//! and withdrawn, also after reboots and kills.

use serde_json::{Value, json};

use crate::support::guest::Guest;
use crate::support::shunt::{Shunt, binary};
use crate::support::{Dir, eventually};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
const SESSIONS: &str = "/restconf/data/shunt-offload:state/element=router1/sessions";

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
serial = { socket = "{dir}/guest/offload.sock", uid = 0 }
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
uplink = { type = "vhost-user", socket = "{dir}/wan-uplink.sock" }
"#;

/// An rpc called from inside; the exit code, and what was printed.
fn call(guest: &mut Guest, rpc: &str, input: &Value) -> (i32, String) {
    let path = format!("/restconf/operations/shunt-offload:{rpc}");
    let input = json!({ "shunt-offload:input": input });
    let (said, code) = guest.run(&format!("shunt call --timeout 20 POST {path} '{input}'"));
    (code, said)
}

/// What becomes of an offload of `key` with the new source `address`.
fn offload(guest: &mut Guest, key: &str, address: &str) -> String {
    let session = json!({
        "key": key, "protocol": "udp",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": "10.0.0.2", "source-port": 40000,
            "destination-address": "192.0.2.9", "destination-port": 53,
            "translation": { "source-address": address },
        },
    });
    let (code, said) = call(guest, "offload", &json!({ "session": [session] }));
    assert_eq!(code, 0, "{said}");
    let answer: Value = serde_json::from_str(&said).unwrap();
    let result = &answer["shunt-offload:output"]["result"][0]["result"];
    result.as_str().unwrap().to_owned()
}

fn keys(up: &Shunt) -> Vec<Value> {
    let answer = up.control().get(SESSIONS);
    let sessions = answer["shunt-offload:sessions"]["session"].as_array();
    let keys = sessions.into_iter().flatten();
    keys.map(|session| session["key"].clone()).collect()
}

#[test]
fn a_guest_behind_up_asks_for_offloads_also_after_reboots_and_kills() {
    let dir = Dir::new();
    std::fs::create_dir(dir.file("guest")).unwrap();
    let mut up = Shunt::up(&dir, CONFIG);
    let mut guest = Guest::build().program(&binary()).start(&dir.file("guest"));
    guest.wait_ready();

    // Judged as any element's: by whose it is, and by what it may.
    assert_eq!(offload(&mut guest, "one/1", "198.51.100.1"), "offloaded");
    assert_eq!(offload(&mut guest, "one/1", "198.51.100.1"), "unchanged");
    assert_eq!(offload(&mut guest, "two", "203.0.113.1"), "access-denied");
    assert_eq!(keys(&up), ["one/1"]);
    let (code, said) = call(&mut guest, "reload", &json!({}));
    assert!(code == 1 && said.contains("404 Not Found"), "{said}");
    let own = guest.succeed("shunt call GET /restconf/data/shunt-offload:state/summary");
    assert!(own.contains("\"router1\""), "{own}");

    // A reboot amid requests: the line comes back with the guest.
    let path = "/restconf/data/shunt-offload:state";
    guest.succeed(&format!(
        "(while :; do shunt call GET {path}; done) >/dev/null 2>&1 &"
    ));
    guest.reboot();
    assert_eq!(offload(&mut guest, "three", "198.51.100.3"), "superseded");

    // SIGKILL: a new process starts empty, and is asked again.
    up.restart();
    assert_eq!(keys(&up), [""; 0]);
    assert_eq!(offload(&mut guest, "four", "198.51.100.4"), "offloaded");
    let (code, said) = call(&mut guest, "withdraw", &json!({ "key": ["four"] }));
    assert!(code == 0 && said.contains("\"withdrawn\":\"1\""), "{said}");
    eventually(SOON, "the session is gone", || keys(&up).is_empty());

    // SIGTERM: all parts end, and leave no socket.
    assert!(up.process().terminate(SOON).success());
    for socket in [
        "control.sock",
        "controller.sock",
        "presence.sock",
        "lan.sock",
    ] {
        assert!(!dir.file(socket).exists(), "{socket} is left");
    }
    assert!(!dir.file("guest/offload.sock").exists());
}
