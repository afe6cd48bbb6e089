//! Several tenants on one device: a tap that carries VLANs, with frontends of the test's own
//! as guests.

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
use support::frames::{Capture, RawSocket};
use support::netns::Netns;
use support::shunt::Shunt;
use support::tenant::Tenant;
use support::{Dir, eventually};

const SOON: Duration = Duration::from_secs(20);
type Mac = [u8; 6];
/// The vNICs: `red`'s in two VLANs, `blue`'s in the first of them, `green`'s in the second
/// with an address that `red` has in the first.
const RED_LAN: Mac = [0x52, 0x54, 0, 0, 0, 1];
const RED_WAN: Mac = [0x52, 0x54, 0, 0, 0, 2];
const BLUE: Mac = [0x52, 0x54, 0, 0, 0, 3];
const OUTSIDE: Mac = [0x02, 0, 0, 0, 0, 9];
const BROADCAST: Mac = [0xff; 6];

const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
workers = 2
[[shared-uplink]]
name = "phys0"
device = { type = "tap", name = "trunk", netns = "{netns}" }
[[element]]
name = "red"
[[element.vnic]]
name = "lan"
socket = "{dir}/red-lan.sock"
mac = "52:54:00:00:00:01"
uplink = { type = "shared", device = "phys0", vlan = 20 }
[[element.vnic]]
name = "wan"
socket = "{dir}/red-wan.sock"
mac = "52:54:00:00:00:02"
uplink = { type = "shared", device = "phys0", vlan = 30 }
[[element]]
name = "blue"
[[element.vnic]]
name = "lan"
socket = "{dir}/blue.sock"
mac = "52:54:00:00:00:03"
uplink = { type = "shared", device = "phys0", vlan = 20, extra-macs = ["00:00:5e:00:01:07"] }
[[element]]
name = "green"
[[element.vnic]]
name = "lan"
socket = "{dir}/green.sock"
mac = "52:54:00:00:00:01"
uplink = { type = "shared", device = "phys0", vlan = 30 }
"#;

struct World {
    red_lan: Tenant,
    red_wan: Tenant,
    blue: Tenant,
    green: Tenant,
    capture: Capture,
    socket: RawSocket,
    shunt: Shunt,
    _outside: Netns,
    _dir: Dir,
}

impl World {
    fn start() -> Self {
        let dir = Dir::new();
        let outside = Netns::new("share");
        outside.succeed(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        let shunt = Shunt::start(&dir, &CONFIG.replace("{netns}", outside.name()));
        let connect = |socket| Tenant::connect(&dir.file(socket));
        Self {
            red_lan: connect("red-lan.sock"),
            red_wan: connect("red-wan.sock"),
            blue: connect("blue.sock"),
            green: connect("green.sock"),
            capture: Capture::start(&outside, "trunk"),
            socket: RawSocket::open(&outside, "trunk"),
            shunt,
            _outside: outside,
            _dir: dir,
        }
    }

    fn statistics(&self, element: &str) -> Value {
        let path = format!("/restconf/data/shunt-offload:state/element={element}/statistics");
        self.shunt.control().get(&path)["shunt-offload:statistics"].take()
    }

    /// What left by the device, in order.
    fn left(&self) -> Vec<Vec<u8>> {
        let frames = self.capture.frames().into_iter();
        let arrived = frames.filter(|frame| !frame.outgoing);
        arrived.map(|frame| frame.bytes).collect()
    }
}

/// A UDP datagram; `number` tells it from others.
fn datagram(dst: Mac, src: Mac, vlan: Option<u16>, number: u16) -> Vec<u8> {
    udp(dst, src, vlan, ([10, 0, 0, 2], number), 64)
}

fn udp(dst: Mac, src: Mac, vlan: Option<u16>, from: ([u8; 4], u16), ttl: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(src, dst)
        .ipv4(from.0, [192, 0, 2, 9], ttl)
        .udp(from.1, 53)
        .write(&mut frame, &[7; 20])
        .unwrap();
    if let Some(vlan) = vlan {
        let [high, low] = vlan.to_be_bytes();
        frame.splice(12..12, [0x81, 0x00, high, low]);
    }
    frame
}

#[test]
fn tenants_on_one_device_see_their_own_vlan_and_address_and_nothing_else() {
    let mut world = World::start();
    let send = |dst, vlan, number| {
        let frame = datagram(dst, OUTSIDE, vlan, number);
        world.socket.send(&frame);
    };
    send(RED_LAN, Some(20), 1);
    send(RED_LAN, Some(30), 2);
    send(BLUE, Some(20), 3);
    // Nobody's: another VLAN, none, and an address that is not there.
    send(BLUE, Some(30), 4);
    send(RED_LAN, None, 5);
    send(OUTSIDE, Some(20), 6);
    send([0x00, 0x00, 0x5e, 0x00, 0x01, 0x07], Some(20), 7);
    send(BROADCAST, Some(20), 8);
    send(RED_WAN, Some(30), 9);
    send(RED_WAN, Some(20), 10);
    let seen = |dst, number| datagram(dst, OUTSIDE, None, number);
    world.red_lan.expect(&seen(RED_LAN, 1), "red's in VLAN 20");
    world
        .red_lan
        .expect(&seen(BROADCAST, 8), "the broadcast, to red");
    world
        .green
        .expect(&seen(RED_LAN, 2), "the same address in VLAN 30 is green's");
    world.blue.expect(&seen(BLUE, 3), "blue's");
    let vrrp = [0x00, 0x00, 0x5e, 0x00, 0x01, 0x07];
    world.blue.expect(&seen(vrrp, 7), "blue's other address");
    world
        .blue
        .expect(&seen(BROADCAST, 8), "the broadcast, to blue");
    world.red_wan.expect(&seen(RED_WAN, 9), "red's in VLAN 30");
    // A last one to each shows that nothing else came in between.
    for (dst, vlan) in [(RED_LAN, 20), (RED_LAN, 30), (BLUE, 20), (RED_WAN, 30)] {
        world.socket.send(&datagram(dst, OUTSIDE, Some(vlan), 99));
    }
    world.red_lan.expect(&seen(RED_LAN, 99), "red's last");
    world.green.expect(&seen(RED_LAN, 99), "green's last");
    world.blue.expect(&seen(BLUE, 99), "blue's last");
    world
        .red_wan
        .expect(&seen(RED_WAN, 99), "red's last in VLAN 30");
}

#[test]
fn a_guest_leaves_with_its_own_vlan_and_address_or_not_at_all() {
    let mut world = World::start();
    world.blue.send(&datagram(OUTSIDE, RED_LAN, None, 1));
    world.blue.send(&datagram(OUTSIDE, BLUE, Some(30), 2));
    world.blue.send(&datagram(OUTSIDE, BLUE, Some(0), 3));
    let own = datagram(OUTSIDE, BLUE, None, 4);
    world.blue.send(&own);
    let vrrp = [0x00, 0x00, 0x5e, 0x00, 0x01, 0x07];
    world.blue.send(&datagram(OUTSIDE, vrrp, None, 5));
    // A neighbour in the VLAN is reached here, not by way of the network.
    let neighbour = datagram(RED_LAN, BLUE, None, 6);
    world.blue.send(&neighbour);
    world.blue.send(&datagram(OUTSIDE, BLUE, None, 7));
    world.red_lan.expect(&neighbour, "the neighbour's frame");
    let expected = [
        datagram(OUTSIDE, BLUE, Some(20), 4),
        datagram(OUTSIDE, vrrp, Some(20), 5),
        datagram(OUTSIDE, BLUE, Some(20), 7),
    ];
    eventually(SOON, "what is blue's own leaves", || {
        world.left() == expected
    });
    let dropped = world.statistics("blue")["dropped"].clone();
    let not_own = dropped.as_array().unwrap().iter();
    let not_own = not_own
        .clone()
        .find(|reason| reason["name"] == "not-own")
        .unwrap();
    assert_eq!(not_own["count"], "3", "{dropped}");
}

#[test]
fn a_session_goes_from_one_vlan_of_the_device_to_another_around_the_guest() {
    let mut world = World::start();
    let session = |key: &str, port: u16, source: &str| {
        json!({
            "key": key, "protocol": "udp", "directions": "original", "vouched": true,
            "original": {
                "ingress-vnic": "lan", "egress-vnic": "wan",
                "source-address": "10.0.0.2", "source-port": port,
                "destination-address": "192.0.2.9", "destination-port": 53,
                "translation": { "source-address": "198.51.100.1", "source-port": 1024 + port },
                "destination-mac": "02:00:00:00:00:09", "source-mac": source
            }
        })
    };
    let input = json!({ "shunt-offload:input": { "element": "red", "session": [
        session("own", 1, "52:54:00:00:00:02"),
        session("borrowed", 2, "52:54:00:00:00:03")
    ]}});
    let path = "/restconf/operations/shunt-offload:offload";
    world.shunt.control().post(path, &input);
    eventually(SOON, "both sessions are active", || {
        let path = "/restconf/data/shunt-offload:state/element=red/sessions";
        let sessions = world.shunt.control().get(path);
        let sessions = sessions["shunt-offload:sessions"]["session"].clone();
        let all = sessions.as_array().unwrap();
        all.len() == 2
            && all
                .iter()
                .all(|one| one["status"]["original"]["state"] == "active")
    });
    // The second would leave with blue's address: what a guest may not, its session may not.
    world.socket.send(&datagram(RED_LAN, OUTSIDE, Some(20), 2));
    world.socket.send(&datagram(RED_LAN, OUTSIDE, Some(20), 1));
    let moved = udp(OUTSIDE, RED_WAN, Some(30), ([198, 51, 100, 1], 1025), 63);
    eventually(SOON, "the packet leaves in VLAN 30", || {
        world.left() == [moved.clone()]
    });
    let statistics = world.statistics("red");
    assert_eq!(statistics["forwarded"]["packets"], "1", "{statistics}");
    // Everything else is the guest's.
    let other = datagram(RED_LAN, OUTSIDE, Some(20), 3);
    world.socket.send(&other);
    let seen = datagram(RED_LAN, OUTSIDE, None, 3);
    world.red_lan.expect(&seen, "a packet without a session");
}
