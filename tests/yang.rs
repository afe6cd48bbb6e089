//! The control API says and takes what its YANG module says, judged by libyang.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt"
)]

mod support;

use serde_json::{Value, json};
use support::shunt::{Shunt, idle_router};
use support::yang::{Kind, Model};
use support::{Dir, repository};

const OFFLOAD: &str = "/restconf/operations/shunt-offload:offload";
const RELOAD: &str = "/restconf/operations/shunt-offload:reload";
const SHIELD: &str = "/restconf/operations/shunt-offload:shield";
const UNSHIELD: &str = "/restconf/operations/shunt-offload:unshield";
const WITHDRAW: &str = "/restconf/operations/shunt-offload:withdraw";
const REPROVE: &str = "/restconf/operations/shunt-offload:reprove";
const STATE: &str = "/restconf/data/shunt-offload:state";

/// Every leaf that a session can have.
fn whole() -> Value {
    json!({
        "key": "whole/1", "protocol": "tcp", "idle-timeout": 30, "hard-timeout": 600,
        "hand-over": "prompt", "vouched": true, "directions": "both",
        "original": {
            "ingress-vnic": "lan", "ingress-vlan": 5, "ingress-mac": "00:00:5e:00:01:07",
            "source-address": "10.0.0.2", "source-port": 40000,
            "destination-address": "192.0.2.9", "destination-port": 443,
            "translation": {
                "source-address": "198.51.100.1", "source-port": 1024,
                "destination-address": "192.0.2.10", "destination-port": 8443
            },
            "egress-vnic": "wan", "egress-vlan": 7,
            "destination-mac": "02:00:00:00:00:01", "source-mac": "02:00:00:00:00:02",
            "l3-mtu": 1500, "decrement-ttl": false, "dscp": 10
        },
        "reply": {
            "ingress-vnic": "wan", "ingress-vlan": 7, "ingress-mac": "00:00:5e:00:01:08",
            "egress-vnic": "lan", "egress-vlan": 5,
            "destination-mac": "02:00:00:00:00:03", "source-mac": "02:00:00:00:00:04",
            "l3-mtu": 1400, "decrement-ttl": true, "dscp": 0
        }
    })
}

fn ping6() -> Value {
    json!({
        "key": "ping", "protocol": "icmpv6",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan", "identifier": 7,
            "source-address": "2001:db8::2", "destination-address": "2001:db8:1::9"
        }
    })
}

fn numbered(protocol: u8, key: &str) -> Value {
    json!({
        "key": key, "protocol": protocol, "directions": "original",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "lan",
            "source-address": "10.0.0.3", "destination-address": "192.0.2.9"
        }
    })
}

fn input(sessions: &[Value]) -> Value {
    json!({ "shunt-offload:input": { "element": "router1", "session": sessions } })
}

/// What was sent and what came back are of the model, and the call succeeded.
fn call(shunt: &Shunt, model: &Model, path: &str, rpc: &'static str, body: &Value) -> Value {
    model.assert(Kind::Input(rpc), body);
    let answer = shunt.control().post(path, body);
    model.assert(Kind::Output(rpc), &answer);
    answer
}

#[test]
fn what_a_running_backend_says_is_of_the_model() {
    let (dir, model) = (Dir::new(), Model::offload());
    let shunt = Shunt::start(&dir, &idle_router(4));
    let state = || model.assert(Kind::State, &shunt.control().get(STATE));
    state();

    let mut all = vec![whole(), ping6(), numbered(47, "gre"), numbered(4, "ipip")];
    all.push(numbered(5, "one-too-many"));
    all.push(json!({
        "key": "wrong", "protocol": "udp",
        "original": {
            "ingress-vnic": "lna", "egress-vnic": "wan", "source-address": "10.0.0.3",
            "source-port": 1, "destination-address": "192.0.2.9", "destination-port": 2
        }
    }));
    let answer = call(&shunt, &model, OFFLOAD, "offload", &input(&all));
    let results = answer["shunt-offload:output"]["result"].as_array().unwrap();
    let said: Vec<&str> = results
        .iter()
        .map(|result| result["result"].as_str().unwrap())
        .collect();
    assert_eq!(
        said,
        [
            "offloaded",
            "offloaded",
            "offloaded",
            "offloaded",
            "table-full",
            "invalid"
        ]
    );
    state();

    // What is reported can be offered again, and is the same.
    let sessions = shunt
        .control()
        .get(&format!("{STATE}/element=router1/sessions"));
    let again: Vec<Value> = sessions["shunt-offload:sessions"]["session"]
        .as_array()
        .unwrap()
        .iter()
        .cloned()
        .map(|mut session| {
            session.as_object_mut().unwrap().remove("status");
            session
        })
        .collect();
    let answer = call(&shunt, &model, OFFLOAD, "offload", &input(&again));
    for result in answer["shunt-offload:output"]["result"].as_array().unwrap() {
        assert_eq!(result["result"], "unchanged", "{result}");
    }

    let keys = json!({ "shunt-offload:input": { "key": ["ping", "nowhere"] } });
    call(&shunt, &model, REPROVE, "reprove", &keys);
    call(&shunt, &model, WITHDRAW, "withdraw", &keys);
    let all = json!({ "shunt-offload:input": { "all": true } });
    call(&shunt, &model, REPROVE, "reprove", &all);
    call(&shunt, &model, WITHDRAW, "withdraw", &all);
    state();

    // A vNIC goes, and one comes that cannot be.
    let other = idle_router(4).replace("name = 'wan'", "name = 'dmz'");
    shunt.write_config(&other.replace("{dir}/wan", "{dir}/absent/wan"));
    let answer = shunt.control().request("POST", RELOAD, None);
    assert_eq!(answer.status, 200, "{answer:?}");
    model.assert(Kind::Output("reload"), &answer.json());
    let changes = answer.json()["shunt-offload:output"]["change"].take();
    assert_eq!(changes[0]["action"], "remove", "{changes}");
    assert!(changes[1]["error"].is_object(), "{changes}");
    state();
}

/// A shield with every leaf.
fn whole_shield() -> Value {
    json!({
        "name": "whole/1", "priority": 9, "ttl": 60, "ingress-vnic": "wan",
        "source-prefix": "10.0.0.0/8", "destination-prefix": "192.0.2.0/24", "protocol": "tcp",
        "source-port": {"lower-port": 1024, "upper-port": 2047},
        "destination-port": {"operator": "neq", "port": 443},
        "tcp-flags": "syn", "tcp-flags-mask": "ack syn",
        "action": "police", "police": {"bit-rate": "8000000", "burst": 65_536}
    })
}

fn shields(all: &[Value]) -> Value {
    json!({ "shunt-offload:input": { "element": "router1", "shield": all } })
}

#[test]
fn what_is_said_of_shields_is_of_the_model() {
    let (dir, model) = (Dir::new(), Model::offload());
    let config = idle_router(4).replace("sessions = 4\n", "sessions = 4\nshield-quota = 3\n");
    let shunt = Shunt::start(
        &dir,
        &format!(
            "{config}[[element.shield]]\nname = 'ours'\ningress-vnic = 'lan'\n\
             protocol = 'udp'\nsource-port = 19\naction = 'drop'\n"
        ),
    );
    let state = || model.assert(Kind::State, &shunt.control().get(STATE));
    state();
    let all = [
        whole_shield(),
        json!({ "name": "v6", "ttl": 5, "destination-prefix": "2001:db8::/32", "action": "punt" }),
        json!({ "name": "wrong", "ttl": 5, "source-port": {"port": 1}, "action": "drop" }),
        json!({ "name": "nowhere", "ttl": 5, "ingress-vnic": "dmz", "action": "drop" }),
        json!({ "name": "ours", "ttl": 5, "action": "police", "police": {"packet-rate": 9} }),
        json!({ "name": "one-too-many", "ttl": 5, "action": "drop" }),
    ];
    let answer = call(&shunt, &model, SHIELD, "shield", &shields(&all));
    let said = |answer: &Value| -> Vec<String> {
        let results = answer["shunt-offload:output"]["result"].as_array().unwrap();
        let result = |result: &Value| result["result"].as_str().unwrap().to_owned();
        results.iter().map(result).collect()
    };
    let expected = [
        "installed",
        "installed",
        "invalid",
        "invalid",
        "installed",
        "table-full",
    ];
    assert_eq!(said(&answer), expected);
    state();

    // What is reported of requests can be asked for again, and is the same.
    let path = format!("{STATE}/element=router1/shields");
    let told = shunt.control().get(&path)["shunt-offload:shields"]["shield"].take();
    let told = told.as_array().unwrap();
    assert_eq!(told.len(), 4);
    assert_eq!(told[0]["origin"], "operator");
    let again: Vec<Value> = told[1..]
        .iter()
        .cloned()
        .map(|mut shield| {
            let leaves = shield.as_object_mut().unwrap();
            leaves.remove("origin");
            leaves.remove("status");
            shield
        })
        .collect();
    let answer = call(&shunt, &model, SHIELD, "shield", &shields(&again));
    assert_eq!(said(&answer), ["unchanged"; 3]);

    let names = json!({ "shunt-offload:input": { "name": ["v6", "nowhere"] } });
    let answer = call(&shunt, &model, UNSHIELD, "unshield", &names);
    assert_eq!(said(&answer), ["removed", "absent"]);
    let all = json!({ "shunt-offload:input": { "all": true } });
    let answer = call(&shunt, &model, UNSHIELD, "unshield", &all);
    assert_eq!(answer["shunt-offload:output"]["removed"], "2");
    state();
}

/// The backend answers 400 to exactly those messages that libyang refuses.
#[test]
fn the_backend_and_libyang_agree_on_what_a_shield_is() {
    let (dir, model) = (Dir::new(), Model::offload());
    let shunt = Shunt::start(&dir, &idle_router(4));
    let changes = [
        ("/name", Value::Null),
        ("/name", json!("two words")),
        ("/ttl", Value::Null),
        ("/ttl", json!(0)),
        ("/ttl", json!(604_801)),
        ("/priority", json!(65_535)),
        ("/priority", json!(65_536)),
        ("/priority", json!("5")),
        ("/source-prefix", json!("10.0.0.1/8")),
        ("/source-prefix", json!("10.0.0.0")),
        ("/source-prefix", json!("10.0.0.0/33")),
        ("/source-prefix", json!("2001:db8::/129")),
        ("/source-prefix", json!("2001:db8::/32")),
        ("/protocol", json!("tpc")),
        ("/protocol", json!(6)),
        ("/source-port", json!({})),
        ("/source-port", json!({"port": 5})),
        ("/source-port", json!({"operator": "lte", "port": 5})),
        ("/source-port", json!({"operator": "lt", "port": 5})),
        ("/source-port", json!({"operator": "eq"})),
        ("/source-port", json!({"lower-port": 5})),
        ("/source-port", json!({"lower-port": 5, "upper-port": 4})),
        (
            "/source-port",
            json!({"lower-port": 5, "upper-port": 9, "port": 5}),
        ),
        ("/source-port", json!({"port": 65_536})),
        ("/destination-port", json!({"name": "https"})),
        ("/tcp-flags", json!("")),
        ("/tcp-flags", json!("syn syn")),
        ("/tcp-flags", json!("SYN")),
        ("/tcp-flags", json!("fin ack")),
        ("/tcp-flags-mask", Value::Null),
        ("/action", Value::Null),
        ("/action", json!("drop")),
        ("/action", json!("divert")),
        ("/police", Value::Null),
        ("/police", json!({})),
        ("/police", json!({"packet-rate": 5})),
        ("/police", json!({"packet-rate": 0})),
        ("/police", json!({"packet-rate": 100_000_001})),
        ("/police", json!({"packet-rate": 5, "bit-rate": "5"})),
        ("/police", json!({"bit-rate": 5})),
        (
            "/police",
            json!({"bit-rate": "1000000000000", "burst": 4_294_967_295u32}),
        ),
        ("/police", json!({"bit-rate": "1000000000001"})),
        ("/police", json!({"packet-rate": 5, "burst": 0})),
        ("/colour", json!("red")),
    ];
    let mut refused = 0;
    for (pointer, value) in changes {
        let body = shields(&[changed_in(whole_shield(), pointer, &value)]);
        let judged = model.check(Kind::Input("shield"), &body);
        let answer = shunt.control().request("POST", SHIELD, Some(&body));
        let agreed = match &judged {
            Ok(()) => answer.status == 200,
            Err(_) => answer.status == 400,
        };
        assert!(
            agreed,
            "{pointer} = {value}: libyang {judged:?}, the backend {answer:?}"
        );
        refused += usize::from(judged.is_err());
    }
    assert!(refused > 25, "only {refused} were refused at all");
    let twice = shields(&[whole_shield(), whole_shield()]);
    assert!(model.check(Kind::Input("shield"), &twice).is_err());
    assert_eq!(
        shunt.control().request("POST", SHIELD, Some(&twice)).status,
        400
    );
}

/// A change of one leaf of [`whole`], by JSON pointer; `Null` takes the leaf away.
fn changed(pointer: &str, value: &Value) -> Value {
    changed_in(whole(), pointer, value)
}

fn changed_in(mut session: Value, pointer: &str, value: &Value) -> Value {
    let (parent, leaf) = pointer.rsplit_once('/').unwrap();
    let parent = session
        .pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap();
    match value {
        Value::Null => parent.remove(leaf),
        value => parent.insert(leaf.to_owned(), value.clone()),
    };
    session
}

/// The backend answers 400 to exactly those messages that libyang refuses.
#[test]
fn the_backend_and_libyang_agree_on_what_a_session_is() {
    let (dir, model) = (Dir::new(), Model::offload());
    let shunt = Shunt::start(&dir, &idle_router(4));
    let long = "k".repeat(65);
    let changes = [
        ("/key", json!(long)),
        ("/key", json!(&long[1..])),
        ("/key", json!("")),
        ("/key", json!("two words")),
        ("/key", json!("it's")),
        ("/key", json!("sch\u{f6}n")),
        ("/key", json!(7)),
        ("/key", Value::Null),
        ("/protocol", Value::Null),
        ("/protocol", json!("tpc")),
        ("/protocol", json!(256)),
        ("/protocol", json!(-1)),
        ("/protocol", json!(6)),
        ("/idle-timeout", json!(0)),
        ("/idle-timeout", json!(604_800)),
        ("/idle-timeout", json!(604_801)),
        ("/idle-timeout", json!("60")),
        ("/idle-timeout", json!(1.5)),
        ("/hard-timeout", Value::Null),
        ("/hand-over", json!("Ordered")),
        ("/vouched", json!("true")),
        ("/directions", json!("none")),
        ("/colour", json!("red")),
        ("/original/ingress-vnic", Value::Null),
        ("/original/ingress-vlan", json!(4094)),
        ("/original/ingress-vlan", json!(4095)),
        ("/original/ingress-mac", json!("00:00:5e:00:01")),
        ("/original/ingress-mac", json!("00-00-5e-00-01-07")),
        ("/original/source-address", json!("10.0.0.256")),
        ("/original/source-address", json!("10.0.0.2%eth0")),
        ("/original/source-address", Value::Null),
        ("/original/destination-address", json!("2001:db8::g")),
        ("/original/source-port", json!(65_536)),
        ("/original/translation/source-port", json!(0)),
        ("/original/translation/port", json!(1)),
        ("/original/egress-vnic", Value::Null),
        ("/original/l3-mtu", json!(67)),
        ("/original/l3-mtu", json!(68)),
        ("/original/dscp", json!(63)),
        ("/original/dscp", json!(64)),
        ("/original/decrement-ttl", json!(1)),
        ("/reply/ingress-vlan", json!(4095)),
        ("/reply/source-address", json!("10.0.0.1")),
        ("/reply/dscp", json!(64)),
    ];
    let mut refused = 0;
    for (pointer, value) in changes {
        let body = input(&[changed(pointer, &value)]);
        let judged = model.check(Kind::Input("offload"), &body);
        let answer = shunt.control().request("POST", OFFLOAD, Some(&body));
        let agreed = match &judged {
            Ok(()) => answer.status == 200,
            Err(_) => answer.status == 400,
        };
        assert!(
            agreed,
            "{pointer} = {value}: libyang {judged:?}, the backend {answer:?}"
        );
        refused += usize::from(judged.is_err());
    }
    assert!(refused > 25, "only {refused} were refused at all");
}

/// The bodies shown in docs/control.md, each with what it is.
fn examples() -> Vec<(Kind, Value)> {
    let text = std::fs::read_to_string(repository().join("docs/control.md")).unwrap();
    text.split("```json\n")
        .skip(1)
        .filter_map(|rest| {
            let block = rest.split("```").next().unwrap();
            let body: Value = serde_json::from_str(block).unwrap();
            Some((kind_of(&body)?, body))
        })
        .collect()
}

/// What a body is, by what it has; none of those that are no message of the module.
fn kind_of(body: &Value) -> Option<Kind> {
    let is = |part: &Value, leaf: &str| part.get(leaf).is_some();
    let input = &body["shunt-offload:input"];
    if is(input, "session") {
        return Some(Kind::Input("offload"));
    }
    if ["begin", "page", "end"].iter().any(|step| is(input, step)) {
        return Some(Kind::Input("sync"));
    }
    if is(input, "shield") {
        return Some(Kind::Input("shield"));
    }
    if is(input, "name") {
        return Some(Kind::Input("unshield"));
    }
    if is(input, "key") || is(input, "all") {
        // Or `reprove`, which takes the same.
        return Some(Kind::Input("withdraw"));
    }
    if is(input, "fence") {
        return Some(Kind::Input("open-epoch"));
    }
    let output = &body["shunt-offload:output"];
    if is(output, "change") {
        return Some(Kind::Output("reload"));
    }
    if is(output, "epoch") {
        return Some(Kind::Output("open-epoch"));
    }
    if output["result"][0]["name"].is_string() {
        return Some(Kind::Output("shield"));
    }
    if is(output, "reproved") {
        return Some(Kind::Output("reprove"));
    }
    if is(output, "result") {
        // All words of `offload` are words of `sync`.
        return Some(Kind::Output("sync"));
    }
    if is(output, "sync") || is(output, "swept") {
        return Some(Kind::Output("sync"));
    }
    body.get("ietf-restconf:notification")
        .map(|_| Kind::Notification)
}

#[test]
fn the_examples_of_the_documentation_are_of_the_model() {
    let model = Model::offload();
    let examples = examples();
    assert!(examples.len() >= 13, "{examples:?}");
    for (kind, body) in examples {
        model.assert(kind, &body);
    }
}
