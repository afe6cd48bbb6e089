//! What elements ask for, through the relays of their hosts, of real backends.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Authority, Controller, INVENTORY, Identity, Reply, command, curl, mutual};
use crate::support::shunt::Shunt;
use crate::support::{Dir, eventually};
use crate::{LOCAL, at};

const CONFIG: &str = r#"
[relays]
listen = "127.0.0.1:0"
certificate = "{dir}/server.crt"
key = "{dir}/server.key"
client-ca = "{dir}/relays.pem"
"#;

const BACKEND: &str = r#"
[backend]
control = "{dir}/control.sock"
[[element]]
name = "NAME"
[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:00:00:01"
uplink = { type = "vhost-user", socket = "{dir}/lan-uplink.sock" }
[[element.vnic]]
name = "NAME-wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:00:00:02"
uplink = { type = "vhost-user", socket = "{dir}/wan-uplink.sock" }
"#;

const OFFLOAD: &str = "/restconf/operations/shunt-offload:offload";
const WITHDRAW: &str = "/restconf/operations/shunt-offload:withdraw";
const STATE: &str = "/restconf/data/shunt-offload:state";

/// Two hosts with an element each: `a` on `h1`, `b` on `h2`, of two tenants.
struct Lab {
    controller: Controller,
    servers: Authority,
    server: Identity,
    /// The relays of `h1` and `h2`.
    relay: [Identity; 2],
    /// Their backends.
    backend: [Shunt; 2],
    dirs: [Dir; 3],
}

fn element(name: &str, number: usize) -> Value {
    json!({
        "name": name, "tenant": format!("t-{name}"), "host": format!("h{number}"), "port": "port1",
        "vnic": [
            { "name": "lan", "mac": "52:54:00:00:00:01", "source-prefix": ["0.0.0.0/0"] },
            { "name": format!("{name}-wan"), "mac": "52:54:00:00:00:02" }
        ],
        "policy": { "translation-prefix": [format!("198.51.100.{number}/32")] }
    })
}

impl Lab {
    fn new() -> Self {
        let dirs = [Dir::new(), Dir::new(), Dir::new()];
        let backend = [("a", &dirs[1]), ("b", &dirs[2])]
            .map(|(name, dir)| Shunt::start(dir, &BACKEND.replace("NAME", name)));
        let (servers, relays) = (
            Authority::new(&dirs[0], "servers"),
            Authority::new(&dirs[0], "relays"),
        );
        let server = servers.issue("server", "localhost");
        let relay = [1, 2]
            .map(|number| relays.issue(&format!("r{number}"), &format!("relay.h{number}.example")));
        let controller = Controller::start(&dirs[0], &format!("{LOCAL}{CONFIG}"));
        let host = |number: usize| {
            json!({
                "name": format!("h{number}"), "relay": [format!("relay.h{number}.example")],
                "backend": dirs[number].file("control.sock")
            })
        };
        controller.set(
            "PUT",
            INVENTORY,
            &json!({ "shunt-inventory:inventory": {
                "tenant": [{ "name": "t-a" }, { "name": "t-b" }],
                "host": [host(1), host(2)],
                "element": [element("a", 1), element("b", 2)]
            }}),
        );
        let lab = Self {
            controller,
            servers,
            server,
            relay,
            backend,
            dirs,
        };
        for number in [0, 1] {
            eventually(Duration::from_secs(10), "the inventory is known", || {
                lab.of(number, "GET", STATE, None).status == 200
            });
        }
        lab
    }

    /// Asks with a token through the connection of `relay`.
    fn with_token(
        &self,
        relay: &Identity,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Reply {
        let port = self.controller.port(&self.server.certificate);
        let mut argv = mutual(relay, &self.servers, port);
        if !token.is_empty() {
            argv.extend([
                "--header".to_owned(),
                format!("authorization: Bearer {token}"),
            ]);
        }
        argv.extend(["--http2".to_owned(), format!("https://localhost{path}")]);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        curl(&argv, method, body).unwrap()
    }

    /// As the element of host `number` asks.
    fn of(&self, number: usize, method: &str, path: &str, body: Option<&Value>) -> Reply {
        let relay = &self.relay[number];
        self.with_token(relay, &relay.token("port1", 1), method, path, body)
    }

    /// The results of offering sessions as `a`: result, app-tag, leaf.
    fn offer(&self, sessions: &[Value]) -> Vec<(String, String, String)> {
        let body = json!({ "shunt-offload:input": { "session": sessions } });
        let reply = self.of(0, "POST", OFFLOAD, Some(&body));
        assert_eq!(reply.status, 200, "{reply:?}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let reply = reply.json();
        let results = reply["shunt-offload:output"]["result"].as_array().unwrap();
        for (session, result) in sessions.iter().zip(results) {
            assert_eq!(session["key"], result["key"]);
        }
        results
            .iter()
            .map(|one| {
                let error = &one["error"];
                let path = text(&error["error-path"]);
                let leaf = path
                    .split_once("']")
                    .map_or("", |(_, leaf)| leaf.trim_start_matches('/'));
                (
                    text(&one["result"]),
                    text(&error["error-app-tag"]),
                    leaf.to_owned(),
                )
            })
            .collect()
    }

    /// How many sessions each backend has.
    fn sessions(&self) -> [u64; 2] {
        [0, 1].map(|number| {
            let summary = self.backend[number]
                .control()
                .get(&format!("{STATE}/summary"));
            summary["shunt-offload:summary"]["element"][0]["sessions"]
                .as_u64()
                .unwrap()
        })
    }
}

/// A session of `a`, from its LAN, translated to its address.
fn session(key: &str, port: u16) -> Value {
    json!({
        "key": key, "protocol": "udp",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "a-wan",
            "source-address": "10.0.0.2", "source-port": port,
            "destination-address": "192.0.2.9", "destination-port": 53,
            "translation": { "source-address": "198.51.100.1" }
        }
    })
}

fn changed(pointer: &str, value: Value) -> Value {
    let mut session = session("x", 9);
    let (parent, leaf) = pointer.rsplit_once('/').unwrap();
    let parent = session
        .pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap();
    parent.insert(leaf.to_owned(), value);
    session
}

#[test]
fn an_element_s_sessions_reach_the_backend_of_its_host_and_results_keep_their_order() {
    let lab = Lab::new();
    let mut denied = changed("/original/egress-vnic", json!("b-wan"));
    denied["key"] = json!("denied");
    let mut invalid = session("invalid", 3);
    invalid["original"]
        .as_object_mut()
        .unwrap()
        .remove("source-port");
    let results = lab.offer(&[
        session("one", 1),
        denied,
        session("two", 2),
        invalid,
        session("one", 1),
    ]);
    let names: Vec<&str> = results.iter().map(|(name, _, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "offloaded",
            "access-denied",
            "offloaded",
            "invalid",
            "unchanged"
        ]
    );
    assert_eq!(lab.sessions(), [2, 0]);

    // Its own state and policy, and nothing more.
    let own = lab
        .of(
            0,
            "GET",
            &format!("{STATE}/element=a/sessions?fields=session/key"),
            None,
        )
        .json();
    assert_eq!(
        own["shunt-offload:sessions"]["session"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let policy = lab.of(0, "GET", &at("/element=a/policy"), None);
    assert_eq!(
        policy.json()["shunt-inventory:policy"]["translation-prefix"],
        json!(["198.51.100.1/32"])
    );

    let gone = json!({ "shunt-offload:input": { "key": ["one", "nothing"] } });
    let reply = lab.of(0, "POST", WITHDRAW, Some(&gone)).json();
    assert_eq!(reply["shunt-offload:output"]["withdrawn"], "1");
    eventually(Duration::from_secs(10), "it is gone", || {
        lab.sessions() == [1, 0]
    });
    lab.controller.logs("the batch is logged", |lines| {
        let is_batch = |line: &&Value| line["action"] == "offload";
        lines.iter().find(is_batch).is_some_and(|line| {
            line["element"] == "a"
                && line["peer"] == "relay.h1.example"
                && line["results"]["offloaded"] == 2
                && line["refused"][0]["key"] == "denied"
        })
    });
}

#[test]
fn quotas_and_switches_hold_and_a_kill_switch_hands_back_at_once() {
    let lab = Lab::new();
    let set = |path: &str, leaf: &str, value: Value| {
        let body = json!({ format!("shunt-inventory:{leaf}"): value });
        lab.controller
            .set("PUT", &at(&format!("{path}/{leaf}")), &body);
    };
    let soon = |expected: &str, tag: &str, what: &str| {
        eventually(Duration::from_secs(10), what, || {
            let results = lab.offer(&[session("s1", 1)]);
            (results[0].0.as_str(), results[0].1.as_str()) == (expected, tag)
        });
    };
    soon("offloaded", "", "it is allowed");
    // Changes take effect in their order: once the host is not drained any more, the quota
    // holds.
    set("/host=h1", "drain", json!(true));
    soon("access-denied", "draining", "the host is drained");
    set("/element=a/policy", "sessions", json!(3));
    set("/host=h1", "drain", json!(false));
    soon("unchanged", "", "what is there may be offered again");
    let many: Vec<Value> = (1..=5).map(|n| session(&format!("s{n}"), n)).collect();
    for _ in 0..2 {
        let results = lab.offer(&many);
        let names: Vec<&str> = results.iter().map(|one| one.0.as_str()).collect();
        assert_eq!(names[3..], ["quota", "quota"], "{names:?}");
        assert_eq!(results[4].1, "sessions");
    }
    assert_eq!(lab.sessions(), [3, 0]);
    set("/element=a/policy", "sessions", json!(4096));
    set("/host=h1", "drain", json!(true));
    soon("access-denied", "draining", "a host is drained");
    assert_eq!(lab.sessions(), [3, 0]);
    set("/host=h1", "drain", json!(false));
    set("/tenant=t-a", "observe-only", json!(true));
    soon("access-denied", "observe-only", "a tenant is observed");
    set("/tenant=t-a", "kill", json!(true));
    eventually(Duration::from_secs(10), "sessions are handed back", || {
        lab.sessions() == [0, 0]
    });
    soon("access-denied", "killed", "nothing is offloaded");
    set("/tenant=t-a", "kill", json!(false));
    set("/tenant=t-a", "observe-only", json!(false));
    soon("offloaded", "", "it is allowed again");
    // Without its place in the inventory nothing is left of it.
    lab.controller
        .set("DELETE", &at("/element=a"), &Value::Null);
    eventually(Duration::from_secs(10), "sessions are handed back", || {
        lab.sessions() == [0, 0]
    });
}

#[test]
fn a_controller_that_is_killed_ends_no_session_and_goes_on_when_it_is_back() {
    let mut lab = Lab::new();
    assert_eq!(lab.offer(&[session("s1", 1)])[0].0, "offloaded");
    lab.controller.restart();
    assert_eq!(lab.sessions(), [1, 0]);
    assert_eq!(
        lab.offer(&[session("s1", 1), session("s2", 2)])[0].0,
        "unchanged"
    );
    assert_eq!(lab.sessions(), [2, 0]);
    // A backend that is away is said, and costs nobody else anything.
    lab.backend[0].kill9();
    let body = json!({ "shunt-offload:input": { "session": [session("s1", 1)] } });
    assert_eq!(lab.of(0, "POST", OFFLOAD, Some(&body)).status, 503);
    assert_eq!(lab.of(1, "GET", STATE, None).status, 200);
}

/// Takes what concerns an element out of a store that nobody has open.
fn remove_from_store(dir: &Dir, config: &std::path::Path, element: &str) {
    let (backup, store) = (dir.file("backup.jsonl"), dir.file("store.redb"));
    let run = |what: &str| {
        let said = command(config, &[what, backup.to_str().unwrap()]);
        assert!(said.status.success(), "{said:?}");
    };
    run("--backup");
    let text = std::fs::read_to_string(&backup).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let before = lines.len();
    let of_it = |line: &&str| line.contains(&format!("/{element}\",\"value\""));
    lines.retain(|line| !of_it(line));
    assert_eq!(lines.len(), before - 2, "{text}");
    let end = format!(r#"{{"end":{{"documents":{}}}}}"#, lines.len() - 2);
    *lines.last_mut().unwrap() = &end;
    std::fs::write(&backup, lines.join("\n") + "\n").unwrap();
    std::fs::remove_file(&store).unwrap();
    run("--restore");
}

#[test]
fn what_went_while_no_controller_ran_is_handed_back_when_one_starts() {
    let mut lab = Lab::new();
    assert_eq!(lab.offer(&[session("s1", 1)])[0].0, "offloaded");
    let of_b = json!({ "shunt-offload:input": { "session": [{
        "key": "of-b", "protocol": "udp", "original": {
            "ingress-vnic": "lan", "egress-vnic": "b-wan", "source-address": "10.0.0.2",
            "source-port": 1, "destination-address": "192.0.2.9", "destination-port": 53,
            "translation": { "source-address": "198.51.100.2" }
        }
    }]}});
    assert_eq!(lab.of(1, "POST", OFFLOAD, Some(&of_b)).status, 200);
    let (dir, config) = (&lab.dirs[0], lab.controller.config().to_owned());
    lab.controller
        .restart_after(|| remove_from_store(dir, &config, "a"));
    eventually(
        Duration::from_secs(10),
        "a's sessions are handed back",
        || lab.sessions() == [0, 1],
    );
    lab.controller.logs("it is logged", |lines| {
        let is_one = |line: &Value| line["action"] == "hand-back" && line["element"] == "a";
        lines.iter().any(is_one)
    });
}
