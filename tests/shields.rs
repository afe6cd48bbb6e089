//! Shields of a running backend: a flood on a tap, guests behind it, requests and the file.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt"
)]

mod support;

use std::time::Duration;

use etherparse::PacketBuilder;
use serde_json::{Value, json};
use support::frames::RawSocket;
use support::netns::Netns;
use support::shunt::Shunt;
use support::stream::Stream;
use support::tenant::Tenant;
use support::yang::{Kind, Model};
use support::{Dir, eventually};

const SOON: Duration = Duration::from_secs(20);
const RELOAD: &str = "/restconf/operations/shunt-offload:reload";
const SHIELD: &str = "/restconf/operations/shunt-offload:shield";
type Mac = [u8; 6];
const RED: Mac = [0x52, 0x54, 0, 0, 0, 1];
const BLUE: Mac = [0x52, 0x54, 0, 0, 0, 2];
const OUTSIDE: Mac = [0x02, 0, 0, 0, 0, 9];
const BAD: [u8; 4] = [198, 51, 100, 7];
const GOOD: [u8; 4] = [192, 0, 2, 7];

fn datagram(to: Mac, source: [u8; 4], number: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(OUTSIDE, to)
        .ipv4(source, [10, 0, 0, 1], 64)
        .udp(number, 53)
        .write(&mut frame, &[7; 20])
        .unwrap();
    frame
}

/// Two elements on two workers, each with a tap of its own.
struct World {
    shunt: Shunt,
    outside: Netns,
    dir: Dir,
}

impl World {
    fn start() -> Self {
        let dir = Dir::new();
        let outside = Netns::new("shields");
        outside.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        let shunt = Shunt::start(&dir, &file(&outside, ""));
        Self {
            shunt,
            outside,
            dir,
        }
    }

    fn send(&self, interface: &str, frame: &[u8]) {
        RawSocket::open(&self.outside, interface).send(frame);
    }

    fn guest(&self, name: &str) -> Tenant {
        Tenant::connect(&self.dir.file(&format!("{name}.sock")))
    }

    /// Asks for shields of red; what came of each.
    fn ask(&self, shields: Value) -> Vec<String> {
        let body = json!({ "shunt-offload:input": { "element": "red", "shield": shields } });
        let answer = self.shunt.control().post(SHIELD, &body);
        let results = answer["shunt-offload:output"]["result"].as_array().unwrap();
        let result = |result: &Value| result["result"].as_str().unwrap().to_owned();
        results.iter().map(result).collect()
    }

    /// Red's shields, by origin and name.
    fn shields(&self) -> Vec<(String, Value)> {
        let path = "/restconf/data/shunt-offload:state/element=red/shields";
        let shields = self.shunt.control().get(path)["shunt-offload:shields"]["shield"].take();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let named = |mut shield: Value| {
            let name = format!("{}/{}", text(&shield["origin"]), text(&shield["name"]));
            (name, shield["status"].take())
        };
        let Value::Array(all) = shields else {
            panic!("no list: {shields}")
        };
        all.into_iter().map(named).collect()
    }

    fn names(&self) -> Vec<String> {
        self.shields().into_iter().map(|(name, _)| name).collect()
    }

    fn dropped(&self, element: &str) -> u64 {
        let path = format!("/restconf/data/shunt-offload:state/element={element}/statistics");
        let counters = self.shunt.control().get(&path);
        let all = counters["shunt-offload:statistics"]["dropped"]
            .as_array()
            .unwrap()
            .clone();
        let own = all.iter().find(|one| one["name"] == "shield-drop").unwrap();
        own["count"].as_str().unwrap().parse().unwrap()
    }
}

fn file(outside: &Netns, of_red: &str) -> String {
    let element = |name: &str, last: u8, more: &str| {
        format!(
            "[[element]]\nname = '{name}'\nsessions = 64\nshield-quota = 8\n\
             [[element.vnic]]\nname = 'lan'\nsocket = '{{dir}}/{name}.sock'\n\
             mac = '52:54:00:00:00:{last:02x}'\n\
             uplink = {{ type = 'tap', name = '{name}0', netns = '{}' }}\n{more}",
            outside.name()
        )
    };
    format!(
        "[backend]\ncontrol = '{{dir}}/control.sock'\nworkers = 2\n{}{}",
        element("red", 1, of_red),
        element("blue", 2, "")
    )
}

#[test]
fn a_shield_keeps_a_flood_from_its_own_guest_only_and_ends_with_its_time() {
    let world = World::start();
    let (mut red, mut blue) = (world.guest("red"), world.guest("blue"));
    let (bad, good) = (datagram(RED, BAD, 1), datagram(RED, GOOD, 2));
    // Guests are connected once they receive.
    world.send("red0", &bad);
    red.expect(&bad, "before the shield");
    let ask = |ttl: u32| {
        json!([{ "name": "bad", "ttl": ttl, "source-prefix": "198.51.100.0/24",
                 "ingress-vnic": "lan", "action": "drop" }])
    };
    assert_eq!(world.ask(ask(600)), ["installed"]);
    for _ in 0..5 {
        world.send("red0", &bad);
        world.send("red0", &good);
        red.expect(&good, "what the shield does not match");
    }
    let of_blue = datagram(BLUE, BAD, 3);
    world.send("blue0", &of_blue);
    blue.expect(&of_blue, "the neighbour's");
    assert_eq!((world.dropped("red"), world.dropped("blue")), (5, 0));
    let (name, status) = world.shields().remove(0);
    assert_eq!(name, "element/bad");
    assert_eq!(
        (&status["packets"], &status["dropped"]),
        (&json!("5"), &json!("5"))
    );
    assert_eq!(status["octets"], json!((5 * 48).to_string()));
    assert!(status["remaining"].as_u64().is_some_and(|left| left <= 600));

    assert_eq!(world.ask(ask(600)), ["unchanged"]);
    assert_eq!(world.shields()[0].1["packets"], "5", "it counts on");
    assert_eq!(world.ask(ask(1)), ["unchanged"]);
    eventually(SOON, "its time is over", || world.names().is_empty());
    world.send("red0", &bad);
    red.expect(&bad, "after the shield");
}

#[test]
fn what_a_shield_matched_is_told_and_late_calls_change_none() {
    let world = World::start();
    let mut red = world.guest("red");
    let (bad, good) = (datagram(RED, BAD, 1), datagram(RED, GOOD, 2));
    world.send("red0", &good);
    red.expect(&good, "before the shield");
    let stream = Stream::open(&world.dir, &world.dir.file("control.sock"), "red");
    let shield = json!([{ "name": "bad", "ttl": 600, "source-prefix": "198.51.100.0/24",
                          "action": "drop" }]);
    let status = |operation: &str, more: Value| {
        let mut leaves = json!({ "element": "red" });
        let more = more.as_object().unwrap().clone();
        leaves.as_object_mut().unwrap().extend(more);
        let path = format!("/restconf/operations/shunt-offload:{operation}");
        let body = json!({ "shunt-offload:input": leaves });
        let answer = world.shunt.control().request("POST", &path, Some(&body));
        let tag = if answer.status == 200 {
            Value::Null
        } else {
            answer.json()["ietf-restconf:errors"]["error"][0]["error-app-tag"].take()
        };
        (answer.status, tag)
    };
    let newer = json!({ "fence": "7", "shield": shield });
    assert_eq!(status("shield", newer), (200, Value::Null));
    // From an older connection, and of an epoch that is not the present one.
    let older = json!({ "fence": "6", "name": ["bad"] });
    assert_eq!(status("unshield", older), (409, json!("fenced")));
    let other = json!({ "epoch": "3", "shield": shield });
    assert_eq!(status("shield", other), (409, json!("stale-epoch")));
    assert_eq!(world.names(), ["element/bad"]);

    for _ in 0..3 {
        world.send("red0", &bad);
    }
    let hits = || -> Vec<Value> {
        let told = stream.of("shield-hit");
        let shields = told.iter().map(|one| one["shield"].as_array().unwrap());
        shields.flatten().cloned().collect()
    };
    let counted = |hits: &[Value], leaf: &str| -> u64 {
        let counts = hits.iter().map(|hit| hit[leaf].as_str().unwrap());
        counts.map(|count| count.parse::<u64>().unwrap()).sum()
    };
    eventually(SOON, "all hits are told", || {
        counted(&hits(), "packets") == 3
    });
    let hits = hits();
    assert!(hits.iter().all(|hit| hit["name"] == "bad"), "{hits:?}");
    assert!(hits.iter().all(|hit| hit["origin"] == "element"));
    assert_eq!(counted(&hits, "octets"), 3 * 48);
    assert_eq!(counted(&hits, "dropped"), 3);
    let model = Model::offload();
    for told in stream.all() {
        model.assert(Kind::Notification, &told);
    }
}

#[test]
fn an_operators_shields_follow_the_file_and_no_request_changes_them() {
    let world = World::start();
    let mut red = world.guest("red");
    let good = datagram(RED, GOOD, 1);
    world.send("red0", &good);
    red.expect(&good, "before any shield");
    let ours = |action: &str| {
        format!(
            "[[element.shield]]\nname = 'ours'\nsource-prefix = '192.0.2.0/24'\n\
             action = '{action}'\n"
        )
    };
    let reload = |more: &str| -> Vec<String> {
        world.shunt.write_config(&file(&world.outside, more));
        let answer = world.shunt.control().request("POST", RELOAD, None);
        assert_eq!(answer.status, 200, "{answer:?}");
        let changes = answer.json()["shunt-offload:output"]["change"].take();
        let told = |change: &Value| {
            assert!(change["error"].is_null(), "{change}");
            format!("{} {} {}", change["action"], change["kind"], change["name"])
        };
        changes.as_array().into_iter().flatten().map(told).collect()
    };
    assert_eq!(reload(&ours("drop")), [r#""change" "element" "red""#]);
    let other = datagram(RED, [203, 0, 113, 1], 2);
    world.send("red0", &good);
    world.send("red0", &other);
    red.expect(&other, "the guest is still there, without what is shielded");
    assert_eq!(world.shields()[0].1["dropped"], "1");

    // A request under its name is another shield, and does not rule at the same priority.
    let ask = json!([{ "name": "ours", "ttl": 60, "action": "punt" }]);
    assert_eq!(world.ask(ask), ["installed"]);
    world.send("red0", &good);
    world.send("red0", &other);
    red.expect(&other, "the operator's rules over its own");
    assert_eq!(world.names(), ["operator/ours", "element/ours"]);
    assert_eq!(reload(&ours("drop")), [""; 0], "nothing has changed");
    assert_eq!(world.shields()[0].1["dropped"], "2", "and it counts on");

    assert_eq!(reload(""), [r#""change" "element" "red""#]);
    assert_eq!(world.names(), ["element/ours"]);
    world.send("red0", &good);
    red.expect(&good, "without the operator's shield");
}

#[test]
fn a_shield_comes_back_with_its_vnic() {
    let world = World::start();
    let bad = datagram(RED, BAD, 1);
    let ask = json!([{ "name": "bad", "ttl": 600, "source-prefix": "198.51.100.0/24",
                       "ingress-vnic": "lan", "action": "drop" }]);
    assert_eq!(world.ask(ask), ["installed"]);
    let reload = |from: &str, to: &str| {
        let text = file(&world.outside, "").replacen(from, to, 1);
        world.shunt.write_config(&text);
        let answer = world.shunt.control().request("POST", RELOAD, None);
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    reload("name = 'lan'", "name = 'dmz'");
    assert_eq!(world.shields()[0].1["active"], false);
    let mut red = world.guest("red");
    world.send("red0", &bad);
    red.expect(&bad, "by another vNIC");
    drop(red);
    reload("", "");
    assert_eq!(world.shields()[0].1["active"], true);
    let mut red = world.guest("red");
    let good = datagram(RED, GOOD, 2);
    world.send("red0", &bad);
    world.send("red0", &good);
    red.expect(&good, "the shield is in force again");
}
