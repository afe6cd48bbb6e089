//! `shunt controller` as a real process, to curl: the inventory, roles, and what elements ask
//! for through their relays.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt"
)]

mod clients;
mod etcd;
mod events;
#[allow(dead_code, reason = "a part is for the relay's tests")]
#[path = "../relay/guest.rs"]
mod guest;
mod host_file;
mod lab;
mod links;
mod offload;
mod operators;
mod partition;
mod skew;
#[path = "../support/mod.rs"]
mod support;
mod tenancy;
mod world;

use serde_json::{Value, json};

use lab::{Controller, INVENTORY, command};
use support::Dir;
use support::yang::{Kind, Model};

const LOCAL: &str = r#"
[controller]
socket = "{dir}/controller.sock"
[store]
file = "{dir}/store.redb"
[audit]
file = "{dir}/audit.jsonl"
"#;

fn at(rest: &str) -> String {
    format!("{INVENTORY}{rest}")
}

/// A tenant, a host and an element with all leaves.
fn whole() -> Value {
    json!({ "shunt-inventory:inventory": {
        "tenant": [{ "name": "acme", "description": "Acme, Inc." }],
        "host": [{
            "name": "h1", "backend": "/run/shunt/backend.sock", "relay": ["relay.h1.example"],
            "drain": false
        }],
        "element": [{
            "name": "router1", "description": "edge", "tenant": "acme", "host": "h1", "port": "p1",
            "kill": false, "observe-only": true,
            "vnic": [{
                "name": "lan", "mac": "52:54:00:00:00:01", "vlan": 7, "uplink": "eth0",
                "source-prefix": ["0.0.0.0/0", "::/0"]
            }],
            "policy": {
                "source-prefix": ["203.0.113.0/28"], "translation-prefix": ["2001:db8::/32"],
                "sessions": 100, "requests-per-second": 50, "minimum-rate": 10, "minimum-age": 2
            }
        }]
    }})
}

#[test]
fn the_inventory_is_written_and_read_with_curl_as_restconf_says() {
    let dir = Dir::new();
    let mut controller = Controller::start(&dir, LOCAL);
    // Create.
    let tenant = json!({ "shunt-inventory:tenant": [{ "name": "acme" }] });
    let made = controller.ask("POST", INVENTORY, &tenant);
    assert_eq!((made.status, made.location), (201, at("/tenant=acme")));
    assert_eq!(controller.ask("POST", INVENTORY, &tenant).status, 409);
    assert_eq!(controller.ask("PATCH", INVENTORY, &whole()).status, 204);
    // Read; missing.
    let read = controller.get(&at("/element=router1"));
    assert_eq!(
        read.json()["shunt-inventory:element"][0],
        whole()["shunt-inventory:inventory"]["element"][0]
    );
    assert_eq!(controller.get(&at("/element=router2")).status, 404);
    let default = controller.get(&at("/host=h1/kill"));
    assert_eq!(default.json(), json!({ "shunt-inventory:kill": false }));
    // Replace; patch; stale.
    let path = at("/element=router1/policy");
    let policy = json!({ "shunt-inventory:policy": { "sessions": 5 } });
    let stale = format!("if-match: {}", read.etag);
    let put = || controller.ask_with(&["--header", &stale], "PUT", &path, Some(&policy));
    assert_eq!(put().status, 204);
    assert_eq!(
        put().error(),
        (412, "operation-failed".to_owned(), String::new())
    );
    let patch = json!({ "shunt-inventory:policy": { "minimum-age": 3 } });
    assert_eq!(controller.ask("PATCH", &path, &patch).status, 204);
    let merged = json!({ "shunt-inventory:policy": { "sessions": 5, "minimum-age": 3 } });
    assert_eq!(controller.get(&path).json(), merged);
    // Wrong type; conflict with what else there is.
    let wrong = json!({ "shunt-inventory:policy": { "sessions": "5" } });
    let leaf = "/shunt-inventory:inventory/element[name='router1']/policy/sessions";
    let expected = (400, "bad-element".to_owned(), leaf.to_owned());
    assert_eq!(controller.ask("PUT", &path, &wrong).error(), expected);
    let leaf = "/shunt-inventory:inventory/element[name='router1']/tenant";
    let expected = (409, "data-missing".to_owned(), leaf.to_owned());
    assert_eq!(
        controller
            .ask("DELETE", &at("/tenant=acme"), &Value::Null)
            .error(),
        expected
    );
    // Not served.
    assert_eq!(
        controller
            .ask("PUT", &format!("{path}?insert=first"), &policy)
            .status,
        400
    );
    assert_eq!(
        controller
            .ask("DELETE", "/restconf/data", &Value::Null)
            .status,
        405
    );
    // What was answered is there after a crash.
    controller.restart();
    assert_eq!(controller.get(&path).json(), merged);
    assert_eq!(
        controller
            .ask("DELETE", &at("/element=router1"), &Value::Null)
            .status,
        204
    );
    assert_eq!(
        controller
            .ask("DELETE", &at("/element=router1"), &Value::Null)
            .status,
        404
    );
    controller.logs("the refused edit is logged", |lines| {
        let refused = |line: &Value| line["status"] == 412 && line["path"] == *path;
        lines.iter().any(refused)
    });
    controller.end();
}

#[test]
fn what_the_controller_takes_and_tells_is_of_its_module() {
    let (dir, model) = (Dir::new(), Model::inventory());
    let controller = Controller::start(&dir, LOCAL);
    model.assert(Kind::Config, &whole());
    controller.set("PUT", INVENTORY, &whole());
    let all = controller.get("/restconf/data").json()["ietf-restconf:data"].clone();
    model.assert(Kind::State, &all);
    for path in [
        "/restconf",
        "/restconf/operations",
        "/restconf/yang-library-version",
        "/.well-known/host-meta",
    ] {
        assert_eq!(controller.get(path).status, 200, "{path}");
    }
    let library = &all["ietf-yang-library:yang-library"]["module-set"][0]["module"][0];
    let text = controller.get(library["location"][0].as_str().unwrap());
    let file = support::repository().join("docs/yang/shunt-inventory.yang");
    assert_eq!(text.body, std::fs::read_to_string(file).unwrap());

    let long = "n".repeat(65);
    let cases = [
        ("/element/0/name", json!("")),
        ("/element/0/name", json!(&long[..33])),
        ("/element/0/name", json!(&long[..32])),
        ("/element/0/name", json!("a b")),
        ("/element/0/name", json!("a.b_c-D9")),
        ("/element/0/name", json!(1)),
        ("/element/0/tenant", json!("nobody")),
        ("/element/0/tenant", Value::Null),
        ("/element/0/host", json!("h2")),
        ("/element/0/port", json!(&long[..64])),
        ("/element/0/port", json!(&long)),
        ("/element/0/colour", json!("red")),
        ("/element/0/kill", json!("true")),
        ("/element/0/kill", json!(true)),
        ("/element/0/description", json!("x".repeat(256))),
        ("/element/0/description", json!("x".repeat(257))),
        ("/element/0/description", json!("caf\u{e9}\n\u{1f600}")),
        ("/element/0/vnic/0/mac", json!("52:54:00:AB:cd:01")),
        ("/element/0/vnic/0/mac", json!("52-54-00-00-00-01")),
        ("/element/0/vnic/0/mac", json!("52:54:00:00:00:01:02")),
        ("/element/0/vnic/0/mac", Value::Null),
        ("/element/0/vnic/0/bus-path", json!("0000:00:04.0")),
        ("/element/0/vnic/0/bus-path", json!("a003e00.virtio_mmio")),
        ("/element/0/vnic/0/bus-path", json!("")),
        ("/element/0/vnic/0/bus-path", json!("../net")),
        ("/element/0/vnic/0/bus-path", json!(&long[..64])),
        ("/element/0/vnic/0/bus-path", json!(&long)),
        ("/element/0/vnic/0/vlan", json!(0)),
        ("/element/0/vnic/0/vlan", json!(4094)),
        ("/element/0/vnic/0/vlan", json!(4095)),
        ("/element/0/vnic/0/vlan", json!(1.5)),
        ("/element/0/vnic/0/source-prefix", json!(["10.0.0.0"])),
        ("/element/0/vnic/0/source-prefix", json!(["10.0.0.0/33"])),
        ("/element/0/vnic/0/source-prefix", json!(["2001:db8::/129"])),
        (
            "/element/0/vnic/0/source-prefix",
            json!(["2001:db8::/64", "10.0.0.0/8"]),
        ),
        (
            "/element/0/vnic/0/source-prefix",
            json!(["10.0.0.0/8", "10.0.0.0/8"]),
        ),
        ("/element/0/vnic/0/source-prefix", json!("10.0.0.0/8")),
        ("/element/0/policy/sessions", json!(4_194_304)),
        ("/element/0/policy/sessions", json!(4_194_305)),
        ("/element/0/policy/sessions", json!(-1)),
        ("/element/0/policy/requests-per-second", json!(0)),
        ("/element/0/policy/minimum-rate", json!(4_294_967_295_u64)),
        ("/element/0/policy/minimum-rate", json!(4_294_967_296_u64)),
        ("/element/0/policy", json!([])),
        ("/host/0/backend", json!("run/b")),
        ("/host/0/backend", json!("/")),
        ("/host/0/backend", json!("/b")),
        ("/host/0/backend", json!(format!("/{}", "b".repeat(107)))),
        ("/host/0/backend", json!("https://h-1.example.net:8443")),
        ("/host/0/backend", json!("https://192.0.2.1:1")),
        ("/host/0/backend", json!("https://h1:65535")),
        ("/host/0/backend", json!("https://h1:65536")),
        ("/host/0/backend", json!("https://h1:0")),
        ("/host/0/backend", json!("https://h1")),
        ("/host/0/backend", json!("https://-h1:1")),
        ("/host/0/backend", json!("https://a..b:1")),
        ("/host/0/backend", json!("https://h1:1/")),
        ("/host/0/backend", json!("http://h1:1")),
        ("/host/0/relay", json!(["a", "b", "a"])),
        ("/host/0/relay", json!(["*"])),
        ("/tenant/0/name", json!("other")),
    ];
    let mut refused = 0;
    for (pointer, value) in cases {
        let mut body = whole();
        let (parent, leaf) = pointer.rsplit_once('/').unwrap();
        let parent = format!("/shunt-inventory:inventory{parent}");
        let object = body.pointer_mut(&parent).unwrap().as_object_mut().unwrap();
        match &value {
            Value::Null => object.remove(leaf),
            value => object.insert(leaf.to_owned(), value.clone()),
        };
        let judged = model.check(Kind::Config, &body);
        let reply = controller.ask("PUT", INVENTORY, &body);
        let agreed = match &judged {
            Ok(()) => reply.status == 204,
            Err(_) => [400, 409].contains(&reply.status),
        };
        assert!(
            agreed,
            "{pointer} = {value}: libyang {judged:?}, the controller {reply:?}"
        );
        refused += usize::from(judged.is_err());
    }
    assert!(refused > 20, "only {refused} were refused at all");
}

#[test]
fn a_backup_restores_to_the_same_inventory() {
    let (dir, other) = (Dir::new(), Dir::new());
    let controller = Controller::start(&dir, LOCAL);
    controller.set("PUT", INVENTORY, &whole());
    let before = controller.get(INVENTORY).json();
    let config = dir.file("controller.toml");
    let file = dir.file("backup.jsonl");
    let file = file.to_str().unwrap();
    let in_use = command(&config, &["--backup", file]);
    assert!(!in_use.status.success());
    let said = String::from_utf8_lossy(&in_use.stderr).into_owned();
    assert!(said.contains("another controller has it open"), "{said}");
    assert!(command(&config, &["--check"]).status.success());
    controller.end();
    assert!(command(&config, &["--backup", file]).status.success());
    // Neither over a file nor over documents.
    assert!(!command(&config, &["--backup", file]).status.success());
    assert!(!command(&config, &["--restore", file]).status.success());

    let text = LOCAL.replace("{dir}", other.path().to_str().unwrap());
    let config = other.write("controller.toml", &text);
    assert!(command(&config, &["--restore", file]).status.success());
    let controller = Controller::start(&other, LOCAL);
    assert_eq!(controller.get(INVENTORY).json(), before);
    controller.end();
}
