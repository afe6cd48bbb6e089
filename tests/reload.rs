//! vNICs, elements and shared uplinks come and go while others run, as the configuration file
//! says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::PacketBuilder;
use serde_json::{Value, json};
use support::frames::{Capture, RawSocket};
use support::netns::Netns;
use support::shunt::Shunt;
use support::tenant::Tenant;
use support::{Dir, eventually};

const SOON: Duration = Duration::from_secs(20);
const RELOAD: &str = "/restconf/operations/shunt-offload:reload";
type Mac = [u8; 6];
const RED: Mac = [0x52, 0x54, 0, 0, 0, 1];
const BLUE_LAN: Mac = [0x52, 0x54, 0, 0, 0, 2];
const BLUE_WAN: Mac = [0x52, 0x54, 0, 0, 0, 3];
const GREEN: Mac = [0x52, 0x54, 0, 0, 0, 4];
const OUTSIDE: Mac = [0x02, 0, 0, 0, 0, 9];

/// The part of a file that makes an element.
fn element(name: &str, vnics: &[String]) -> String {
    format!(
        "[[element]]\nname = '{name}'\nsessions = 64\n{}",
        vnics.concat()
    )
}

/// A vNIC whose address ends with `last`.
fn vnic(name: &str, socket: &str, last: u8, uplink: &str) -> String {
    format!(
        "[[element.vnic]]\nname = '{name}'\nsocket = '{{dir}}/{socket}.sock'\n\
         mac = '52:54:00:00:00:{last:02x}'\nuplink = {{ {uplink} }}\n"
    )
}

fn tap(name: &str, netns: &Netns) -> String {
    format!("type = 'tap', name = '{name}', netns = '{}'", netns.name())
}

fn red(netns: &Netns) -> String {
    element("red", &[vnic("lan", "red", 1, &tap("red0", netns))])
}

fn blue_lan(netns: &Netns) -> String {
    vnic("lan", "blue", 2, &tap("blue0", netns))
}

fn blue_wan(netns: &Netns) -> String {
    vnic("wan", "blue-wan", 3, &tap("blue1", netns))
}

fn datagram(dst: Mac, src: Mac, number: u16, ttl: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src, dst)
        .ipv4([10, 0, 0, 2], [192, 0, 2, 9], ttl)
        .udp(number, 53)
        .write(&mut frame, &[7; 20])
        .unwrap();
    frame
}

fn vlan(mut frame: Vec<u8>, id: u8) -> Vec<u8> {
    frame.splice(12..12, [0x81, 0x00, 0, id]);
    frame
}

struct World {
    shunt: Shunt,
    outside: Netns,
    dir: Dir,
}

impl World {
    /// A backend that serves red.
    fn start() -> Self {
        let dir = Dir::new();
        let outside = Netns::new("reload");
        outside.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        let shunt = Shunt::start(&dir, &Self::file(&red(&outside)));
        Self {
            shunt,
            outside,
            dir,
        }
    }

    fn file(rest: &str) -> String {
        format!("[backend]\ncontrol = '{{dir}}/control.sock'\n{rest}")
    }

    fn write(&self, rest: &[String]) {
        self.shunt.write_config(&Self::file(&rest.concat()));
    }

    /// Reads the file anew; the changes, each as kind, name, action and why it failed.
    fn reload(&self) -> Vec<(String, String, String, Option<String>)> {
        let answer = self.shunt.control().request("POST", RELOAD, None);
        assert_eq!(answer.status, 200, "{answer:?}");
        let output = answer.json();
        let changes = output["shunt-offload:output"]["change"].as_array();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let told = |change: &Value| {
            let error = &change["error"]["error-message"];
            (
                text(&change["kind"]),
                text(&change["name"]),
                text(&change["action"]),
                error.as_str().map(str::to_owned),
            )
        };
        changes.into_iter().flatten().map(told).collect()
    }

    /// The same, where nothing fails.
    fn reload_well(&self) -> Vec<String> {
        let told = |(_, name, action, error): (_, String, String, Option<String>)| {
            assert_eq!(error, None, "{action} {name}");
            format!("{action} {name}")
        };
        self.reload().into_iter().map(told).collect()
    }

    fn connect(&self, socket: &str) -> Tenant {
        Tenant::connect(&self.dir.file(socket))
    }

    fn send(&self, interface: &str, frame: &[u8]) {
        RawSocket::open(&self.outside, interface).send(frame);
    }

    fn state(&self, path: &str) -> Value {
        let path = format!("/restconf/data/shunt-offload:state/element={path}");
        self.shunt.control().get(&path)
    }

    /// What `offload` says to a session of blue from its lan to its wan.
    fn offload(&self, key: &str, port: u16) -> Value {
        let session = json!({
            "key": key, "protocol": "udp", "directions": "original", "vouched": true,
            "original": {
                "ingress-vnic": "lan", "egress-vnic": "wan",
                "source-address": "10.0.0.2", "source-port": port,
                "destination-address": "192.0.2.9", "destination-port": 53,
                "destination-mac": "02:00:00:00:00:09", "source-mac": "52:54:00:00:00:03"
            }
        });
        let input = json!({ "shunt-offload:input": { "element": "blue", "session": [session] }});
        let path = "/restconf/operations/shunt-offload:offload";
        let mut output = self.shunt.control().post(path, &input);
        output["shunt-offload:output"]["result"][0].take()
    }

    /// A packet that goes around blue's guest.
    fn goes_around(&self, port: u16) {
        let capture = Capture::start(&self.outside, "blue1");
        self.send("blue0", &datagram(BLUE_LAN, OUTSIDE, port, 64));
        let moved = datagram(OUTSIDE, BLUE_WAN, port, 63);
        eventually(SOON, "the packet goes around the guest", || {
            let frames = capture.frames().into_iter();
            frames
                .filter(|frame| !frame.outgoing)
                .any(|frame| frame.bytes == moved)
        });
    }
}

/// Frames to red's guest, one after the other, each of which must arrive.
struct Stream {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    fn start(world: &World) -> Self {
        let mut guest = world.connect("red.sock");
        let socket = RawSocket::open(&world.outside, "red0");
        let (stop, arrived) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (stopped, count) = (stop.clone(), arrived.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(SeqCst) {
                let number = count.load(SeqCst) as u16;
                let frame = datagram(RED, OUTSIDE, number, 64);
                socket.send(&frame);
                guest.expect(&frame, "red's next frame");
                count.fetch_add(1, SeqCst);
            }
        });
        Self {
            stop,
            arrived,
            thread: Some(thread),
        }
    }

    /// It goes on, now.
    fn assert_goes_on(&self) {
        let before = self.arrived.load(SeqCst);
        eventually(SOON, "red's frames arrive", || {
            self.arrived.load(SeqCst) > before + 10
        });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("no frame of red was lost");
        }
    }
}

#[test]
fn elements_and_vnics_come_and_go_and_the_others_traffic_does_not_notice() {
    let world = World::start();
    let stream = Stream::start(&world);
    let (red, lan, wan) = (
        red(&world.outside),
        blue_lan(&world.outside),
        blue_wan(&world.outside),
    );
    assert_eq!(world.reload_well(), Vec::<String>::new());

    world.write(&[red.clone(), element("blue", std::slice::from_ref(&lan))]);
    assert_eq!(world.reload_well(), ["add blue"]);
    let mut blue = world.connect("blue.sock");
    let frame = datagram(BLUE_LAN, OUTSIDE, 1, 64);
    world.send("blue0", &frame);
    blue.expect(&frame, "blue's first frame");
    assert_eq!(world.offload("early", 7)["result"], "invalid");
    stream.assert_goes_on();

    let both = element("blue", &[lan.clone(), wan.clone()]);
    world.write(&[red.clone(), both.clone()]);
    assert_eq!(world.reload_well(), ["add blue/wan"]);
    assert_eq!(world.offload("around", 7)["result"], "offloaded");
    world.goes_around(7);

    world.write(&[red.clone(), element("blue", std::slice::from_ref(&lan))]);
    assert_eq!(world.reload_well(), ["remove blue/wan"]);
    let statistics = world.state("blue/statistics");
    let closed = &statistics["shunt-offload:statistics"]["closed"];
    let lost = closed.as_array().unwrap().iter();
    let lost = lost.clone().find(|code| code["name"] == "egress-lost");
    assert_eq!(lost.unwrap()["count"], "1", "{closed}");
    assert_eq!(world.offload("late", 7)["result"], "invalid");
    assert!(!world.dir.file("blue-wan.sock").exists());
    let links = world.outside.ip("-brief link");
    assert!(!links.contains("blue1"), "{links}");
    // Its guest has the packet again, by the vNIC that stayed.
    let frame = datagram(BLUE_LAN, OUTSIDE, 7, 64);
    world.send("blue0", &frame);
    blue.expect(&frame, "a packet without a session");
    stream.assert_goes_on();

    world.write(&[red.clone(), both]);
    assert_eq!(world.reload_well(), ["add blue/wan"]);
    assert_eq!(world.offload("again", 8)["result"], "offloaded");
    world.goes_around(8);

    world.write(std::slice::from_ref(&red));
    assert_eq!(world.reload_well(), ["remove blue"]);
    assert!(!world.dir.file("blue.sock").exists());
    let path = "/restconf/data/shunt-offload:state/element=blue";
    assert_eq!(world.shunt.control().request("GET", path, None).status, 404);
    stream.assert_goes_on();
    let ports = world.state("red/ports");
    let vnic = &ports["shunt-offload:ports"]["vnic"][0];
    assert_eq!(vnic["guest"]["connections"], "1", "{ports}");
}

#[test]
fn a_shared_uplink_comes_with_its_members_and_goes_with_them() {
    let world = World::start();
    let stream = Stream::start(&world);
    let shared = |mtu: u16| {
        let device = tap("trunk", &world.outside);
        format!("[[shared-uplink]]\nname = 'phys0'\nmtu = {mtu}\ndevice = {{ {device} }}\n")
    };
    let member = "type = 'shared', device = 'phys0', vlan = 20";
    let green = element("green", &[vnic("lan", "green", 4, member)]);
    let red = red(&world.outside);
    let arrives = |number| {
        let mut guest = world.connect("green.sock");
        let frame = datagram(GREEN, OUTSIDE, number, 64);
        world.send("trunk", &vlan(frame.clone(), 20));
        guest.expect(&frame, "green's frame");
    };
    world.write(&[shared(1500), red.clone(), green.clone()]);
    assert_eq!(world.reload_well(), ["add phys0", "add green"]);
    arrives(1);
    // The device is opened anew, and with it who is on it.
    world.write(&[shared(3000), red.clone(), green]);
    let anew = [
        "remove green/lan",
        "remove phys0",
        "add phys0",
        "add green/lan",
    ];
    assert_eq!(world.reload_well(), anew);
    arrives(2);
    world.write(&[red]);
    assert_eq!(world.reload_well(), ["remove green", "remove phys0"]);
    let links = world.outside.ip("-brief link");
    assert!(!links.contains("trunk"), "{links}");
    stream.assert_goes_on();
}

#[test]
fn what_cannot_be_done_says_why_and_takes_nothing_else_with_it() {
    let mut world = World::start();
    let stream = Stream::start(&world);
    let red = red(&world.outside);
    let refused = |text: &str| {
        world.shunt.write_config(text);
        let answer = world.shunt.control().request("POST", RELOAD, None);
        assert_eq!(answer.status, 500, "{answer:?}");
        answer.body
    };
    let broken = refused(&World::file(&format!("{red}colour = 'red'\n")));
    assert!(broken.contains("colour"), "{broken}");
    let restart = refused(&format!(
        "[backend]\ncontrol = '{{dir}}/control.sock'\nworkers = 2\n{red}"
    ));
    assert!(
        restart.contains("`backend.workers` has changed"),
        "{restart}"
    );

    // One element cannot be; the other comes all the same.
    let absent = "type = 'tap', name = 'late0', netns = 'shunt-no-such-netns'";
    let late = |uplink: &str| element("late", &[vnic("lan", "late", 5, uplink)]);
    let blue = element("blue", &[blue_lan(&world.outside)]);
    world.write(&[red.clone(), late(absent), blue.clone()]);
    let changes = world.reload();
    assert_eq!(changes.len(), 2, "{changes:?}");
    let why = changes[0].3.as_deref().expect("no such namespace");
    assert!(why.contains("shunt-no-such-netns"), "{why}");
    assert_eq!((changes[1].1.as_str(), &changes[1].3), ("blue", &None));
    assert!(!world.dir.file("late.sock").exists());

    // SIGHUP reads the file as well, and what failed is tried again.
    world.write(&[red, late(&tap("late0", &world.outside)), blue]);
    world.shunt.process().signal(libc::SIGHUP);
    eventually(SOON, "the late element comes", || {
        world.dir.file("late.sock").exists()
    });
    let mut guest = world.connect("late.sock");
    let frame = datagram([0x52, 0x54, 0, 0, 0, 5], OUTSIDE, 1, 64);
    world.send("late0", &frame);
    guest.expect(&frame, "the late element's frame");
    stream.assert_goes_on();
}
