//! What elements' listeners are told, by real streams.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use etherparse::PacketBuilder;
use serde_json::{Value, json};
use support::frames::{Capture, RawSocket};
use support::netns::Netns;
use support::shunt::{Shunt, idle_router};
use support::stream::Stream;
use support::yang::{Kind, Model};
use support::{Dir, eventually};

const SOON: Duration = Duration::from_secs(30);
const OFFLOAD: &str = "/restconf/operations/shunt-offload:offload";
const WITHDRAW: &str = "/restconf/operations/shunt-offload:withdraw";
const MONITORING: &str = "/restconf/data/ietf-restconf-monitoring:restconf-state";

/// A session that needs no proof: it is on the fast path at once.
fn vouched(number: usize) -> Value {
    let macs = |last| {
        json!({
            "destination-mac": format!("02:00:00:00:00:0{last}"),
            "source-mac": format!("52:54:00:00:00:0{last}")
        })
    };
    let mut original = json!({
        "ingress-vnic": "lan", "egress-vnic": "wan",
        "source-address": "10.0.0.2", "source-port": 1000 + number,
        "destination-address": "192.0.2.9", "destination-port": 443
    });
    let leaves = original.as_object_mut().unwrap();
    leaves.extend(macs(2).as_object().unwrap().clone());
    json!({
        "key": format!("s{number}"), "protocol": "tcp", "idle-timeout": 3600, "vouched": true,
        "original": original, "reply": macs(1)
    })
}

fn offload(shunt: &Shunt, element: &str, sessions: &[Value]) {
    let input = json!({ "shunt-offload:input": { "element": element, "session": sessions } });
    let answer = shunt.control().post(OFFLOAD, &input);
    let results = answer["shunt-offload:output"]["result"].as_array().unwrap();
    let is_there = |one: &Value| one["result"] == "offloaded" || one["result"] == "superseded";
    assert!(results.iter().all(is_there), "{answer}");
}

fn withdraw(shunt: &Shunt, element: &str, keys: &[String]) {
    let input = json!({ "shunt-offload:input": { "element": element, "key": keys } });
    shunt.control().post(WITHDRAW, &input);
}

fn keys(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("s{number}")).collect()
}

fn socket(dir: &Dir) -> PathBuf {
    dir.file("control.sock")
}

fn assert_of_model(stream: &Stream) {
    let model = Model::offload();
    for told in stream.all() {
        model.assert(Kind::Notification, &told);
    }
}

#[test]
fn a_stream_tells_what_happens_to_its_element_and_to_no_other() {
    let dir = Dir::new();
    let one = idle_router(64);
    let (_, element) = one.split_once("[[element]]").unwrap();
    let other = element
        .replace("router1", "router2")
        .replace("{dir}/", "{dir}/2-");
    let shunt = Shunt::start(&dir, &format!("{one}[[element]]{other}"));
    let mine = Stream::open(&dir, &socket(&dir), "router1");
    let theirs = Stream::open(&dir, &socket(&dir), "router2");

    offload(&shunt, "router1", &[vouched(1), vouched(2)]);
    offload(&shunt, "router2", &[vouched(3)]);
    withdraw(&shunt, "router1", &keys(1..3));
    eventually(SOON, "the ends are told", || {
        mine.entries("session-closed").len() == 2
    });
    eventually(SOON, "theirs is told", || {
        theirs.entries("session-handed-over").len() == 2
    });
    let moved: Vec<_> = mine
        .entries("session-handed-over")
        .iter()
        .map(|one| format!("{} {}", one["key"], one["direction"]))
        .collect();
    assert_eq!(
        moved,
        [
            r#""s1" "original""#,
            r#""s1" "reply""#,
            r#""s2" "original""#,
            r#""s2" "reply""#
        ]
    );
    for closed in mine.entries("session-closed") {
        assert_eq!(closed["close-code"], "withdrawn");
        assert_eq!(closed["original"]["packets"], "0");
        assert_eq!(closed["reply"].get("tcp"), None);
    }
    assert_eq!(theirs.all().len(), 1);
    assert_eq!(theirs.of("session-handed-over")[0]["element"], "router2");
    assert_of_model(&mine);
}

#[test]
fn a_stream_ends_with_its_backend_and_with_its_element() {
    let dir = Dir::new();
    let one = idle_router(64);
    let mut shunt = Shunt::start(&dir, &one);
    let mut stream = Stream::open(&dir, &socket(&dir), "router1");
    let mut second = Stream::open(&dir, &socket(&dir), "router1");
    // Another quota: the element goes and comes.
    shunt.write_config(&one.replace("sessions = 64", "sessions = 65"));
    let reload = "/restconf/operations/shunt-offload:reload";
    assert_eq!(shunt.control().request("POST", reload, None).status, 200);
    eventually(SOON, "both end", || {
        stream.has_ended() && second.has_ended()
    });
    let mut third = Stream::open(&dir, &socket(&dir), "router1");
    let status = shunt.process().terminate(SOON);
    assert!(status.success(), "{status:?}");
    eventually(SOON, "the third ends", || third.has_ended());
}

#[test]
fn a_table_that_gets_full_is_told_and_so_is_that_it_is_not_any_more() {
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &idle_router(10));
    let stream = Stream::open(&dir, &socket(&dir), "router1");
    let all: Vec<_> = (0..9).map(vouched).collect();
    offload(&shunt, "router1", &all);
    eventually(SOON, "it is nearly full", || {
        stream.of("table-pressure").len() == 1
    });
    let late = Stream::open(&dir, &socket(&dir), "router1");
    eventually(SOON, "who comes late is told", || {
        late.of("table-pressure").len() == 1
    });
    withdraw(&shunt, "router1", &keys(0..3));
    eventually(SOON, "it is not any more", || {
        stream.of("table-pressure").len() == 2
    });
    let told = stream.of("table-pressure");
    assert_eq!(told[0]["level"], "high");
    assert_eq!(
        (&told[0]["sessions"], &told[0]["sessions-max"]),
        (&json!(9), &json!(10))
    );
    assert_eq!(told[1]["level"], "normal");
    assert_of_model(&stream);
}

#[test]
fn streams_are_listed_and_only_these_are_there() {
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &idle_router(64));
    let told = shunt.control().get(MONITORING);
    let streams = &told["ietf-restconf-monitoring:restconf-state"]["streams"]["stream"];
    let access = &streams[0]["access"][0];
    assert_eq!(
        (streams.as_array().unwrap().len(), &access["encoding"]),
        (1, &json!("json"))
    );
    let location = access["location"].as_str().unwrap();
    let path = "/restconf/streams/shunt-offload/element=router1/json";
    assert_eq!(location, path);
    for (method, path, status) in [
        (
            "GET",
            format!("{path}?start-time=2026-11-24T00:00:00Z"),
            400,
        ),
        ("GET", path.replace("router1", "router2"), 404),
        ("GET", path.replace("json", "xml"), 404),
        ("GET", "/restconf/streams/NETCONF".to_owned(), 404),
        ("POST", path.to_owned(), 405),
        ("OPTIONS", path.to_owned(), 200),
    ] {
        let answer = shunt.control().request(method, &path, None);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
}

/// A reader of a stream that reads only when it is told to.
struct Lazy(BufReader<UnixStream>);

impl Lazy {
    fn open(dir: &Dir) -> Self {
        let mut stream = UnixStream::connect(socket(dir)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let path = "/restconf/streams/shunt-offload/element=router1/json";
        write!(stream, "GET {path} HTTP/1.1\r\nHost: s\r\n\r\n").unwrap();
        let mut lazy = Self(BufReader::new(stream));
        // The stream is open once its first comment has come.
        while !lazy.line().starts_with(": ") {}
        lazy
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
        line
    }

    /// The next notification, without its envelope.
    fn next(&mut self) -> Value {
        loop {
            if let Some(data) = self.line().strip_prefix("data: ") {
                let mut told: Value = serde_json::from_str(data).unwrap();
                return told["ietf-restconf:notification"].take();
            }
        }
    }
}

#[test]
fn a_reader_that_is_too_slow_is_told_how_much_it_lost_and_costs_nobody_else() {
    const BATCH: usize = 1024;
    const ROUNDS: usize = 40;
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &idle_router(8192));
    let mut slow = Lazy::open(&dir);
    let quick = Stream::open(&dir, &socket(&dir), "router1");
    let sessions: Vec<_> = (0..BATCH).map(vouched).collect();
    for round in 0..ROUNDS {
        offload(&shunt, "router1", &sessions);
        withdraw(&shunt, "router1", &keys(0..BATCH));
        // A part of what its queue holds.
        if round % 8 == 7 {
            eventually(SOON, "the quick reader hears all of it", || {
                quick.entries("session-closed").len() == (round + 1) * BATCH
            });
        }
    }
    assert!(quick.of("events-lost").is_empty());
    assert_eq!(
        quick.entries("session-handed-over").len(),
        2 * ROUNDS * BATCH
    );

    // What the slow one hears and what it lost are all there was.
    let (mut heard, mut lost) = (0, 0);
    while lost == 0 {
        let told = slow.next();
        for (name, content) in told.as_object().unwrap() {
            match name.as_str() {
                "eventTime" => {}
                "shunt-offload:events-lost" => {
                    lost += content["count"].as_str().unwrap().parse::<usize>().unwrap();
                }
                _ => heard += content["session"].as_array().unwrap().len(),
            }
        }
    }
    assert_eq!(heard + lost, 3 * ROUNDS * BATCH);
    // And then it goes on.
    offload(&shunt, "router1", &[vouched(7)]);
    let told = slow.next();
    assert_eq!(
        told["shunt-offload:session-handed-over"]["session"][0]["key"],
        "s7"
    );
}

#[test]
fn streams_leave_room_for_requests() {
    let dir = Dir::new();
    let shunt = Shunt::start(&dir, &idle_router(64));
    // More than connections are served at a time.
    let streams: Vec<_> = (0..80).map(|_| Lazy::open(&dir)).collect();
    offload(&shunt, "router1", &[vouched(1)]);
    for mut stream in streams {
        assert!(stream.next()["shunt-offload:session-handed-over"].is_object());
    }
}

const LAN_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn segment(sequence: u32, window: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, LAN_MAC)
        .ipv4([10, 0, 0, 2], [192, 0, 2, 9], 64)
        .tcp(1001, 443, sequence, window)
        .ack(77)
        .write(&mut frame, &[0x5a; 100])
        .unwrap();
    frame
}

#[test]
fn a_session_s_packets_are_told_while_it_goes_on_and_where_tcp_stood_at_its_end() {
    let (dir, model) = (Dir::new(), Model::offload());
    let netns = [Netns::new("ev-lan"), Netns::new("ev-wan")];
    for one in &netns {
        one.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
    }
    let tap = |name: &str, netns: &Netns| {
        format!(
            "{{ type = 'tap', name = '{name}', netns = '{}' }}",
            netns.name()
        )
    };
    let vhost =
        |name: &str| format!("{{ type = 'vhost-user', socket = '{{dir}}/{name}-uplink.sock' }}");
    let config = idle_router(64)
        .replace(&vhost("lan"), &tap("lan", &netns[0]))
        .replace(&vhost("wan"), &tap("wan", &netns[1]));
    let shunt = Shunt::start(&dir, &config);
    let stream = Stream::open(&dir, &socket(&dir), "router1");
    let (sender, capture) = (
        RawSocket::open(&netns[0], "lan"),
        Capture::start(&netns[1], "wan"),
    );
    offload(&shunt, "router1", &[vouched(1), vouched(2)]);
    eventually(SOON, "it is on the fast path", || {
        stream.entries("session-handed-over").len() == 4
    });
    for (sequence, window) in [(5_000, 400), (5_100, 401), (4_294_967_295, 402)] {
        sender.send(&segment(sequence, window));
    }
    eventually(SOON, "they went around the guest", || {
        capture
            .frames()
            .iter()
            .filter(|frame| !frame.outgoing)
            .count()
            >= 3
    });
    eventually(SOON, "that it moved is told", || {
        !stream.entries("session-activity").is_empty()
    });
    let moved = stream.entries("session-activity");
    assert_eq!(moved.len(), 1, "the other one is idle: {moved:?}");
    assert_eq!(moved[0]["key"], "s1");
    assert_eq!(
        moved[0]["original"],
        json!({ "packets": "3", "octets": "420" })
    );
    assert_eq!(moved[0]["reply"]["packets"], "0");

    withdraw(&shunt, "router1", &keys(1..2));
    eventually(SOON, "its end is told", || {
        !stream.entries("session-closed").is_empty()
    });
    let closed = &stream.entries("session-closed")[0];
    assert_eq!(
        closed["original"],
        json!({ "packets": "3", "octets": "420", "tcp": {
            "sequence-number": 4_294_967_295_u32, "acknowledgement-number": 77, "window-size": 402
        }})
    );
    for told in stream.all() {
        model.assert(Kind::Notification, &told);
    }
}
