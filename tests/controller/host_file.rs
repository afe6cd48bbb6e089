//! The backend bounds its elements by its own file, whoever asks.

use serde_json::{Value, json};

use crate::support::Dir;
use crate::support::shunt::Shunt;

const OFFLOAD: &str = "/restconf/operations/shunt-offload:offload";
const RELOAD: &str = "/restconf/operations/shunt-offload:reload";
const SUMMARY: &str = "/restconf/data/shunt-offload:state/summary";

/// Two elements of which only `a` is bounded, to its own address outside.
const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
[[element]]
name = "a"
translation-prefixes = ["198.51.100.1/32"]
[[element.vnic]]
name = "lan"
socket = "{dir}/a-lan.sock"
mac = "52:54:00:00:00:01"
source-prefixes = ["0.0.0.0/0"]
uplink = { type = "vhost-user", socket = "{dir}/a-lan-uplink.sock" }
[[element.vnic]]
name = "a-wan"
socket = "{dir}/a-wan.sock"
mac = "52:54:00:00:00:02"
uplink = { type = "vhost-user", socket = "{dir}/a-wan-uplink.sock" }
[[element]]
name = "b"
[[element.vnic]]
name = "lan"
socket = "{dir}/b-lan.sock"
mac = "52:54:00:00:00:01"
uplink = { type = "vhost-user", socket = "{dir}/b-lan-uplink.sock" }
[[element.vnic]]
name = "b-wan"
socket = "{dir}/b-wan.sock"
mac = "52:54:00:00:00:03"
uplink = { type = "vhost-user", socket = "{dir}/b-wan-uplink.sock" }
"#;

/// A session of `element` with the new source `source`; none: it leaves as it came.
fn session(element: &str, key: &str, source: Option<&str>) -> Value {
    let mut session = json!({
        "key": key, "protocol": "udp",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": format!("{element}-wan"),
            "source-address": "10.0.0.2", "source-port": key.len(),
            "destination-address": "192.0.2.9", "destination-port": 53
        }
    });
    if let Some(source) = source {
        session["original"]["translation"] = json!({ "source-address": source });
    }
    session
}

/// Result, app-tag and leaf for each session that a controller sends for `element`.
fn send(backend: &Shunt, element: &str, sessions: &[Value]) -> Vec<[String; 3]> {
    let input = json!({ "shunt-offload:input": { "element": element, "session": sessions } });
    let reply = backend.control().post(OFFLOAD, &input);
    let results = reply["shunt-offload:output"]["result"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |one: &Value| {
        let error = &one["error"];
        let path = text(&error["error-path"]);
        let leaf = path.split_once("']/").map_or("", |(_, leaf)| leaf);
        [
            text(&one["result"]),
            text(&error["error-app-tag"]),
            leaf.to_owned(),
        ]
    };
    results.iter().map(of).collect()
}

fn sessions(backend: &Shunt) -> Vec<u64> {
    let summary = backend.control().get(SUMMARY);
    let elements = summary["shunt-offload:summary"]["element"].clone();
    let of = |one: &Value| one["sessions"].as_u64().unwrap();
    elements.as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_lying_controller_is_refused_entry_by_entry_by_the_host_s_file() {
    let dir = Dir::new();
    let backend = Shunt::start(&dir, CONFIG);
    let mut mac = session("a", "mac", Some("198.51.100.1"));
    mac["original"]["source-mac"] = json!("52:54:00:00:00:03");
    let results = send(
        &backend,
        "a",
        &[
            session("a", "own", Some("198.51.100.1")),
            session("a", "address-of-b", Some("198.51.100.2")),
            session("a", "none", None),
            session("b", "uplink-of-b", Some("198.51.100.1")),
            mac,
        ],
    );
    let source = "original/source-address";
    let expected = [
        ["offloaded", "", ""],
        [
            "access-denied",
            "address",
            "original/translation/source-address",
        ],
        ["access-denied", "address", source],
        ["access-denied", "unknown-vnic", "original/egress-vnic"],
        ["access-denied", "address", "original/source-mac"],
    ];
    assert_eq!(results, expected);
    assert_eq!(sessions(&backend), [1, 0]);
    // Where the file says nothing, nothing is bounded.
    let any = send(&backend, "b", &[session("b", "any", Some("203.0.113.77"))]);
    assert_eq!(any[0][0], "offloaded");
}

#[test]
fn other_prefixes_apply_at_a_reload_and_hand_back_what_is_outside() {
    let dir = Dir::new();
    let backend = Shunt::start(&dir, CONFIG);
    let both = [
        session("a", "one", Some("198.51.100.1")),
        session("b", "any", Some("203.0.113.77")),
    ];
    assert_eq!(send(&backend, "a", &both[..1])[0][0], "offloaded");
    assert_eq!(send(&backend, "b", &both[1..])[0][0], "offloaded");
    backend.write_config(&CONFIG.replace("198.51.100.1/32", "198.51.100.8/29"));
    let changed = backend
        .control()
        .post(RELOAD, &json!({ "shunt-offload:input": {} }));
    assert_eq!(
        changed["shunt-offload:output"]["change"],
        json!([{ "kind": "element", "name": "a", "action": "change" }])
    );
    // Its devices were not touched, or the reload had said so.
    assert_eq!(sessions(&backend), [0, 1]);
    assert_eq!(send(&backend, "a", &both[..1])[0][1], "address");
    let inside = session("a", "two", Some("198.51.100.9"));
    assert_eq!(send(&backend, "a", &[inside])[0][0], "offloaded");
}
