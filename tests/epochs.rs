//! Whose sessions count: epochs, fences, leases, and making both sides agree again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_types,
    reason = "tests may be blunt, and wait for each other"
)]

mod support;

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use support::shunt::{Answer, Shunt, idle_router};
use support::stream::Stream;
use support::yang::{Kind, Model};
use support::{Dir, eventually, now, pause};

const SOON: Duration = Duration::from_secs(20);
const STATE: &str = "/restconf/data/shunt-offload:state";

fn session(number: usize) -> Value {
    json!({
        "key": format!("s{number}"), "protocol": "udp", "idle-timeout": 3600,
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": format!("10.{}.{}.2", number >> 12, number >> 4 & 0xff),
            "source-port": 1000 + (number & 0xf),
            "destination-address": "192.0.2.9", "destination-port": 53
        }
    })
}

/// A backend with one element, and the model that its bodies are held against.
struct World {
    shunt: Shunt,
    model: Model,
    dir: Dir,
}

impl World {
    fn start(more: &str) -> Self {
        let dir = Dir::new();
        let config = format!("{}{more}", idle_router(4096));
        Self {
            shunt: Shunt::start(&dir, &config),
            model: Model::offload(),
            dir,
        }
    }

    fn try_call(&self, rpc: &'static str, input: &Value) -> Answer {
        let body = json!({ "shunt-offload:input": input });
        self.model.assert(Kind::Input(rpc), &body);
        let path = format!("/restconf/operations/shunt-offload:{rpc}");
        self.shunt.control().request("POST", &path, Some(&body))
    }

    /// A call that succeeds; its output.
    fn call(&self, rpc: &'static str, input: &Value) -> Value {
        let answer = self.try_call(rpc, input);
        assert_eq!(answer.status, 200, "{rpc} {input}: {answer:?}");
        self.model.assert(Kind::Output(rpc), &answer.json());
        answer.json()["shunt-offload:output"].take()
    }

    /// A call that is refused as too late.
    fn refused(&self, rpc: &'static str, input: &Value, app_tag: &str) {
        let answer = self.try_call(rpc, input);
        assert_eq!(answer.status, 409, "{rpc} {input}: {answer:?}");
        let error = &answer.json()["ietf-restconf:errors"]["error"][0];
        assert_eq!(error["error-tag"], "operation-failed");
        assert_eq!(error["error-app-tag"], app_tag);
    }

    fn epoch(&self) -> String {
        let output = self.call("open-epoch", &json!({}));
        output["epoch"].as_str().unwrap().to_owned()
    }

    /// The keys of sessions that go on, sorted.
    fn keys(&self) -> Vec<String> {
        let path = format!("{STATE}/element=router1/sessions?fields=session(key;status/phase)");
        let told = self.shunt.control().get(&path);
        let sessions = told["shunt-offload:sessions"]["session"].as_array();
        let goes_on = |one: &&Value| one["status"]["phase"] != "closing";
        let sessions = sessions.unwrap().iter().filter(goes_on);
        let mut keys: Vec<_> = sessions
            .map(|one| one["key"].as_str().unwrap().to_owned())
            .collect();
        keys.sort();
        keys
    }

    fn closed(&self, code: &str) -> String {
        let path = format!("{STATE}/element=router1/statistics");
        let told = self.shunt.control().get(&path);
        let codes = told["shunt-offload:statistics"]["closed"].as_array();
        let mut codes = codes.unwrap().iter();
        let found = codes.find(|one| one["name"] == code).unwrap();
        found["count"].as_str().unwrap().to_owned()
    }
}

fn sessions(numbers: std::ops::Range<usize>) -> Vec<Value> {
    numbers.map(session).collect()
}

#[test]
fn a_new_epoch_withdraws_the_sessions_of_the_old_one_and_refuses_its_calls() {
    let world = World::start("");
    let first = world.call("open-epoch", &json!({ "element": "router1" }));
    assert_eq!(first.get("lease"), None, "no lease without [lease]");
    let old = first["epoch"].as_str().unwrap();
    world.call(
        "offload",
        &json!({ "epoch": old, "session": sessions(0..3) }),
    );
    assert_eq!(world.keys(), ["s0", "s1", "s2"]);

    let new = world.epoch();
    assert!(new.parse::<u64>().unwrap() > old.parse().unwrap());
    assert!(world.keys().is_empty());
    let late = json!({ "epoch": old, "session": sessions(0..1) });
    world.refused("offload", &late, "stale-epoch");
    world.refused(
        "withdraw",
        &json!({ "epoch": old, "all": true }),
        "stale-epoch",
    );
    world.refused(
        "reprove",
        &json!({ "epoch": old, "all": true }),
        "stale-epoch",
    );
    world.refused(
        "sync",
        &json!({ "epoch": old, "begin": [null] }),
        "stale-epoch",
    );
    assert!(world.keys().is_empty());
    eventually(SOON, "they have ended", || world.closed("withdrawn") == "3");

    // The client of the previous model names no epoch.
    world.call("offload", &json!({ "session": sessions(0..1) }));
    world.call(
        "offload",
        &json!({ "epoch": new, "session": sessions(1..2) }),
    );
    assert_eq!(world.keys(), ["s0", "s1"]);
}

#[test]
fn a_delayed_offload_of_an_older_connection_changes_nothing_after_a_newer_withdraw() {
    let world = World::start("");
    let epoch = world.epoch();
    let of = |fence: &str, mut rest: Value| {
        rest["epoch"] = json!(epoch);
        rest["fence"] = json!(fence);
        rest
    };
    let offer = || json!({ "session": sessions(0..2) });
    world.call("offload", &of("17", offer()));
    world.call("withdraw", &of("18", json!({ "key": ["s0"] })));
    world.refused("offload", &of("17", offer()), "fenced");
    world.refused("withdraw", &of("17", json!({ "all": true })), "fenced");
    world.refused("reprove", &of("17", json!({ "all": true })), "fenced");
    world.refused("sync", &of("17", json!({ "begin": [null] })), "fenced");
    let known = json!({ "key": ["s1", "s0"] });
    let reproved = world.call("reprove", &of("18", known));
    let results = json!([{"key": "s1", "result": "pending"}, {"key": "s0", "result": "absent"}]);
    assert_eq!(reproved, json!({ "reproved": "0", "result": results }));
    world.refused("open-epoch", &json!({ "fence": "17" }), "fenced");
    assert_eq!(world.keys(), ["s1"]);
    // Whoever says nothing of connections is an operator, or of the previous model.
    world.call("offload", &offer());
    assert_eq!(world.keys(), ["s0", "s1"]);
}

#[test]
fn after_a_restart_the_backend_is_empty_and_says_so() {
    let mut world = World::start("");
    let old = world.epoch();
    world.call(
        "offload",
        &json!({ "epoch": old, "session": sessions(0..3) }),
    );
    world.shunt.restart();
    assert!(world.keys().is_empty());
    let again = json!({ "epoch": old, "session": sessions(0..3) });
    world.refused("offload", &again, "stale-epoch");
    let new = world.epoch();
    assert!(new.parse::<u64>().unwrap() > old.parse().unwrap());
    let sync = world.call("sync", &json!({ "epoch": new, "begin": [null] }))["sync"].take();
    let page = json!({ "sync": sync, "session": sessions(0..3) });
    world.call("sync", &json!({ "epoch": new, "page": page }));
    world.call("sync", &json!({ "epoch": new, "end": { "sync": sync } }));
    assert_eq!(world.keys(), ["s0", "s1", "s2"]);
}

#[test]
fn a_sync_leaves_what_it_named_and_what_was_offloaded_meanwhile() {
    let world = World::start("");
    world.call("offload", &json!({ "session": sessions(0..6) }));
    let begin = || world.call("sync", &json!({ "begin": [null] }))["sync"].take();
    let first = begin();
    // One that was begun and broken off has done no harm, and cannot end another.
    let sync = begin();
    let end = |sync: &Value| json!({ "end": { "sync": sync } });
    world.refused("sync", &end(&first), "stale-sync");
    assert_eq!(world.keys().len(), 6);

    let page = json!({ "sync": sync, "key": ["s1", "s9", "s3"], "session": [session(7)] });
    let output = world.call("sync", &json!({ "page": page }));
    assert_eq!(
        output,
        json!({ "result": [
            { "key": "s1", "result": "kept" },
            { "key": "s9", "result": "absent" },
            { "key": "s3", "result": "kept" },
            { "key": "s7", "result": "offloaded" }
        ]})
    );
    world.call("offload", &json!({ "session": [session(4), session(8)] }));
    world.call("withdraw", &json!({ "key": ["s3"] }));
    let output = world.call("sync", &end(&sync));
    assert_eq!(output, json!({ "swept": "3", "sessions": 4 }));
    assert_eq!(world.keys(), ["s1", "s4", "s7", "s8"]);
    world.refused("sync", &end(&sync), "stale-sync");
}

#[test]
fn a_call_of_sync_that_is_not_of_the_model_is_refused_whole() {
    let world = World::start("");
    let keys: Vec<_> = (0..4097).map(|number| format!("k{number}")).collect();
    let page = |keys: &[String]| json!({ "page": { "sync": "1", "key": keys } });
    for (input, status) in [
        (json!({}), 400),
        (json!({ "begin": [null], "end": { "sync": "1" } }), 400),
        (json!({ "begin": true }), 400),
        (json!({ "page": { "key": ["a"] } }), 400),
        (json!({ "end": { "sync": 1 } }), 400),
        (json!({ "epoch": 7, "begin": [null] }), 400),
        (page(&keys), 413),
    ] {
        let body = json!({ "shunt-offload:input": input });
        let judged = world.model.check(Kind::Input("sync"), &body);
        assert!(judged.is_err(), "libyang takes {input}");
        let path = "/restconf/operations/shunt-offload:sync";
        let answer = world.shunt.control().request("POST", path, Some(&body));
        assert_eq!(answer.status, status, "{input}: {answer:?}");
    }
    world.refused("sync", &page(&keys[..4096]), "stale-sync");
}

/// A relay's presence socket, with one port.
struct Relay {
    readers: Arc<Mutex<Vec<UnixStream>>>,
    beats: Arc<Mutex<bool>>,
    port: Arc<Mutex<Value>>,
}

const BEAT: Duration = Duration::from_millis(100);

impl Relay {
    fn start(world: &Dir) -> Self {
        let listener = UnixListener::bind(world.file("presence.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let relay = Self {
            readers: Arc::default(),
            beats: Arc::new(Mutex::new(true)),
            port: Arc::new(Mutex::new(port(true, 7))),
        };
        let readers = Arc::downgrade(&relay.readers);
        let (beats, port) = (relay.beats.clone(), relay.port.clone());
        std::thread::spawn(move || {
            while let Some(readers) = readers.upgrade() {
                let mut readers = readers.lock().unwrap();
                if let Ok((mut reader, _)) = listener.accept() {
                    let ports = [port.lock().unwrap().clone()];
                    let snapshot = json!({ "type": "snapshot", "host": "h", "ports": ports });
                    say(&mut reader, &snapshot);
                    readers.push(reader);
                }
                if *beats.lock().unwrap() {
                    readers
                        .iter_mut()
                        .for_each(|reader| say(reader, &json!({ "type": "beat" })));
                }
                drop(readers);
                pause(BEAT);
            }
        });
        relay
    }

    fn change(&self, present: bool, fence: u64) {
        *self.port.lock().unwrap() = port(present, fence);
        let change = json!({ "type": "change", "port": port(present, fence) });
        let mut readers = self.readers.lock().unwrap();
        readers.iter_mut().for_each(|reader| say(reader, &change));
    }

    fn set_beats(&self, beats: bool) {
        *self.beats.lock().unwrap() = beats;
    }

    /// Hangs up; a reader that comes again finds things as they are then.
    fn hang_up(&self) {
        self.readers.lock().unwrap().clear();
    }
}

fn port(present: bool, fence: u64) -> Value {
    json!({ "name": "router1", "present": present, "epoch": 1, "fence": fence, "since": 1 })
}

fn say(reader: &mut UnixStream, line: &Value) {
    // A reader that has gone is no concern here.
    let _gone = writeln!(reader, "{line}");
}

const LEASE: &str = "[lease]\nsocket = '{dir}/presence.sock'\ntimeout-ms = 1500\n";
const TIMEOUT: Duration = Duration::from_millis(1500);

#[test]
fn sessions_outlive_their_element_s_presence_by_the_lease_however_it_is_lost() {
    let world = World::start(LEASE);
    let relay = Relay::start(&world.dir);
    let stream = Stream::open(&world.dir, &world.dir.file("control.sock"), "router1");
    let losses: [(&str, &dyn Fn()); 3] = [
        ("absent", &|| relay.change(false, 7)),
        ("silent", &|| relay.set_beats(false)),
        ("gone", &|| {
            relay.set_beats(false);
            *relay.port.lock().unwrap() = port(false, 7);
            relay.hang_up();
        }),
    ];
    for (round, (how, lose)) in losses.into_iter().enumerate() {
        relay.set_beats(true);
        relay.change(true, 7 + round as u64);
        let opened = world.call("open-epoch", &json!({}));
        assert_eq!(opened["lease"], 1);
        let epoch = &opened["epoch"];
        world.call(
            "offload",
            &json!({ "epoch": epoch, "session": sessions(0..4) }),
        );
        // As long as it is seen, nothing ends.
        pause(TIMEOUT * 2);
        assert_eq!(world.keys().len(), 4, "{how}");

        let lost = now();
        lose();
        eventually(SOON, how, || world.keys().is_empty());
        let after = lost.elapsed();
        assert!(after >= TIMEOUT - 3 * BEAT, "{how}: after {after:?}");
        assert!(after < TIMEOUT + SOON / 5, "{how}: after {after:?}");
        let ended = (4 * (round + 1)).to_string();
        eventually(SOON, "they have ended", || {
            world.closed("lease-expired") == ended
        });
        let late = json!({ "epoch": epoch, "session": sessions(0..1) });
        world.refused("offload", &late, "stale-epoch");
    }
    eventually(SOON, "all ends are told", || {
        stream.entries("session-closed").len() == 12
    });
    let codes = stream.entries("session-closed");
    assert!(codes.iter().all(|one| one["close-code"] == "lease-expired"));
}

#[test]
fn a_newer_connection_fences_before_the_first_call_that_comes_by_it() {
    let world = World::start(LEASE);
    let relay = Relay::start(&world.dir);
    let stream = Stream::open(&world.dir, &world.dir.file("control.sock"), "router1");
    let of = |fence: &str| json!({ "fence": fence, "session": sessions(0..1) });
    let connected = |fence: &str| {
        eventually(SOON, "the connection is told", || {
            let connected = stream.of("element-connected");
            connected.iter().any(|one| one["fence"] == fence)
        });
    };
    relay.change(true, 7);
    connected("7");
    world.call("offload", &of("7"));
    relay.change(true, 8);
    connected("8");
    world.refused("offload", &of("7"), "fenced");
    world.call("offload", &of("8"));
    for told in stream.all() {
        world.model.assert(Kind::Notification, &told);
    }
    let gone = stream.of("element-disconnected");
    assert!(gone.iter().any(|one| one["fence"] == "7"), "{gone:?}");
}

#[test]
fn an_element_without_an_agent_keeps_what_operators_offload() {
    let world = World::start(LEASE);
    world.call("offload", &json!({ "session": sessions(0..2) }));
    pause(TIMEOUT * 2);
    assert_eq!(world.keys().len(), 2);
}
