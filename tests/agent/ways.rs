//! Ways through a router that are more than from one interface to another.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::rig::{CLIENT, LAN, Rig, SERVER, SOON, TAGGED, WAN, endpoint};
use crate::support::netns::Netns;
use crate::support::tcp::{Direction, TcpPlan, TcpTransfer};
use crate::support::{at, eventually};

/// Fast enough to be worth an offload, slow enough that little passes until then.
const SLOW: u64 = 1_000_000;
/// How much each transfer moves at least.
const BYTES: u64 = 400_000_000;
const TRANSFER: Duration = Duration::from_secs(90);
/// Within this the backstop brings no packets to the guest.
const UNPROVED: Duration = Duration::from_secs(25);
/// What the guest may see of a transfer.
const SHARE_MAX: f64 = 0.01;

/// A host on the client's link, and an address that both of the server's links lead to.
const BESIDE: &str = "10.81.1.3";
const BOTH: &str = "10.81.9.9";
/// A port of the guest's that it forwards to the client's, also from inside.
const REFLECTED: u16 = 8081;
/// Of so many connections some take one of two equal ways, and some the other.
const EQUALS_MAX: u16 = 24;

/// Addresses leave an interface that moves to another table.
const IPV6_BACK: &str = "
    for link in 1 2; do
        /usr/sbin/ip -6 address replace fd81:$link::1/64 dev eth$((link - 1)) nodad
    done
    /usr/sbin/ip -6 route replace fd81:9::/64 via fd81:2::2";

fn start(from: &Netns, to: &Netns, listen: SocketAddr, connect: SocketAddr) -> TcpTransfer {
    let plan = TcpPlan {
        listen,
        connect,
        direction: Direction::Upload,
        // Until it is ended.
        bytes: u64::MAX,
        rate: Some(SLOW),
    };
    TcpTransfer::start(from, to, plan)
}

/// Moves the rest of an offloaded transfer: it is intact, and the guest sees under 1 % of it.
fn moves(rig: &mut Rig, mut transfer: TcpTransfer) {
    let to = transfer.server();
    transfer.unpace();
    transfer.wait_moved(BYTES, TRANSFER);
    let seen = rig.seen_by_guest("tcp", to);
    let share = seen as f64 / transfer.moved() as f64;
    assert!(seen > 0 && share < SHARE_MAX, "{to}: the guest saw {share}");
    transfer.finish(TRANSFER);
    rig.wait_handed_back(to, SOON);
}

/// The LAN is a bridge that filters VLANs: untagged, and tagged with 7. What the bridge knows of
/// its hosts stays young, though they say nothing that it hears.
pub fn through_a_bridge_that_filters_vlans(rig: &mut Rig) {
    let macs = [(CLIENT, &rig.client, "lan"), (TAGGED, &rig.tagged, "lan7")];
    let macs = macs.map(|(address, netns, on)| (address, netns.mac(on)));
    let own = rig.guest.succeed("cat /sys/class/net/eth0/address");
    let [client, tagged] = macs.map(|(address, mac)| {
        // Nobody asks for it, which the bridge would hear.
        let device = if address == CLIENT { "br0" } else { "br0.7" };
        let neighbour = format!("neighbour replace {address} dev {device} lladdr {mac}");
        (mac, format!("/usr/sbin/ip {neighbour} nud permanent\n"))
    });
    for (netns, gateway, on) in [
        (&rig.client, LAN, "lan"),
        (&rig.tagged, "10.81.7.1", "lan7"),
    ] {
        let own = own.trim();
        netns.ip(&format!(
            "neighbour replace {gateway} dev {on} lladdr {own} nud permanent"
        ));
    }
    rig.guest.succeed(&format!(
        "/usr/sbin/ip link del eth0.7
        /usr/sbin/ip address del {LAN}/24 dev eth0
        /usr/sbin/ip link add br0 type bridge vlan_filtering 1
        /usr/sbin/ip link set eth0 master br0
        /usr/sbin/bridge vlan add dev eth0 vid 7
        /usr/sbin/bridge vlan add dev br0 vid 7 self
        /usr/sbin/ip link add link br0 name br0.7 type vlan id 7
        /usr/sbin/ip link set br0 up
        /usr/sbin/ip link set br0.7 up
        /usr/sbin/ip address add {LAN}/24 dev br0
        /usr/sbin/ip address add 10.81.7.1/24 dev br0.7
        nft 'insert rule inet filter forward iifname {{ \"br0\", \"br0.7\" }} accept'
        {}{}",
        client.1, tagged.1
    ));
    let pair = [(&rig.client, 8_300), (&rig.tagged, 8_301)].map(|(from, port)| {
        let to = at(&endpoint(SERVER, port));
        start(from, &rig.server, to, to)
    });
    for transfer in &pair {
        rig.wait_offloaded(transfer.server());
    }
    let entries = [(client.0, 1), (tagged.0, 7)];
    for (ages, state) in [(2..u64::MAX, "age"), (0..2, "are young again")] {
        eventually(UNPROVED, &format!("the bridge's entries {state}"), || {
            let mut found = entries.iter().map(|(mac, vlan)| fdb_age(rig, mac, *vlan));
            found.all(|age| age.is_some_and(|age| ages.contains(&age)))
        });
    }
    for transfer in pair {
        moves(rig, transfer);
    }
    rules_of_ebtables_keep_it_away(rig);
    rig.guest
        .succeed("/usr/sbin/bridge vlan del dev eth0 vid 7");
    wait_interface(rig, "br0.7", "bridge");
    rig.guest.succeed(&format!(
        "/usr/sbin/ip link del br0
        /usr/sbin/ip link add link eth0 name eth0.7 type vlan id 7
        /usr/sbin/ip address add 10.81.7.1/24 dev eth0.7
        /usr/sbin/ip link set eth0.7 up
        /usr/sbin/ip address add {LAN}/24 dev eth0
        nft -f /run/rules"
    ));
    for (netns, gateway, on) in [
        (&rig.client, LAN, "lan"),
        (&rig.tagged, "10.81.7.1", "lan7"),
    ] {
        netns.ip(&format!("neighbour del {gateway} dev {on}"));
    }
    rig.wait_forwarding();
}

/// What no event tells of: rules of the older ebtables, which see every frame of a bridge.
fn rules_of_ebtables_keep_it_away(rig: &mut Rig) {
    let to = at(&endpoint(SERVER, 8_302));
    let transfer = start(&rig.client, &rig.server, to, to);
    rig.wait_offloaded(to);
    rig.guest.succeed("ebtables-legacy -A INPUT -j ACCEPT");
    wait_interface(rig, "br0", "obstacle: rules of ebtables-legacy");
    rig.wait_handed_back(to, SOON);
    rig.guest.succeed("ebtables-legacy -D INPUT -j ACCEPT");
    rig.wait_offloaded(to);
    transfer.finish(TRANSFER);
}

/// Waits until the agent says of an interface what begins so.
fn wait_interface(rig: &mut Rig, interface: &str, word: &str) {
    eventually(SOON, &format!("{interface} is said to be: {word}"), || {
        let said = rig.agent_status()["interfaces"][interface].take();
        said.as_str().is_some_and(|said| said.starts_with(word))
    });
}

/// Seconds since the guest's bridge was told of that MAC in that VLAN.
fn fdb_age(rig: &mut Rig, mac: &str, vlan: u64) -> Option<u64> {
    let said = rig
        .guest
        .succeed("bridge -statistics -json fdb show br br0");
    let entries: Vec<Value> = serde_json::from_str(&said).unwrap();
    let entry = entries
        .iter()
        .find(|entry| entry["mac"] == mac && entry["vlan"] == vlan)?;
    entry["updated"].as_u64()
}

/// Both links in a VRF.
pub fn through_a_vrf(rig: &mut Rig) {
    rig.guest.succeed(
        "/usr/sbin/ip link add red type vrf table 100
        /usr/sbin/ip link set red up
        /usr/sbin/ip link set eth0 master red
        /usr/sbin/ip link set eth1 master red
        nft 'insert rule inet filter forward iifname red accept'",
    );
    let to = at(&endpoint(SERVER, 8_310));
    let transfer = start(&rig.client, &rig.server, to, to);
    rig.wait_offloaded(to);
    moves(rig, transfer);
    rig.guest.succeed(&format!(
        "/usr/sbin/ip link del red
        nft -f /run/rules
        {IPV6_BACK}"
    ));
    rig.wait_forwarding();
}

/// Two equal routes, one with masquerade and one without: connections take either.
pub fn by_equal_routes(rig: &mut Rig) {
    rig.server.ip(&format!("address add {BOTH}/32 dev lo"));
    rig.server.ip("route add 10.81.1.0/24 via 10.81.3.1");
    rig.guest.succeed(&format!(
        "sysctl -q -w net.ipv4.fib_multipath_hash_policy=1
        /usr/sbin/ip route add {BOTH}/32 nexthop via {SERVER} dev eth1 nexthop via 10.81.3.2 dev eth2"
    ));
    let (mut transfers, mut ways) = (Vec::new(), BTreeSet::new());
    for number in 0..EQUALS_MAX {
        let to = at(&endpoint(BOTH, 8_320 + number));
        transfers.push(start(&rig.client, &rig.server, to, to));
        let session = rig.wait_offloaded(to);
        ways.insert(session["original"]["egress-vnic"].to_string());
        if ways.len() == 2 {
            break;
        }
    }
    assert_eq!(ways.len(), 2, "{ways:?}");
    for transfer in transfers.into_iter().rev() {
        moves(rig, transfer);
    }
    rig.guest
        .succeed(&format!("/usr/sbin/ip route del {BOTH}/32"));
    rig.server.ip("route del 10.81.1.0/24");
    rig.server.ip(&format!("address del {BOTH}/32 dev lo"));
}

/// Out by the vNIC that it came in by: a host beside the client reaches it by the address that the
/// router has outside.
pub fn back_where_it_came_from(rig: &mut Rig) {
    let beside = Netns::new("abs");
    rig.client.ip(&format!(
        "link add beside link lan netns {} type macvlan mode bridge",
        beside.name()
    ));
    beside.ip("link set beside up");
    beside.address("beside", &format!("{BESIDE}/24"));
    beside.gateway(LAN);
    rig.guest.succeed(&format!(
        "nft insert rule ip nat prerouting ip daddr {WAN} tcp dport {REFLECTED} dnat to {CLIENT}
        nft insert rule ip nat postrouting iifname eth0 oifname eth0 masquerade"
    ));
    let to = at(&endpoint(WAN, REFLECTED));
    let transfer = start(&beside, &rig.client, at(&endpoint(CLIENT, REFLECTED)), to);
    let session = rig.wait_offloaded(to);
    let original = &session["original"];
    assert_eq!(
        original["ingress-vnic"], original["egress-vnic"],
        "{session}"
    );
    moves(rig, transfer);
    rig.guest.succeed("nft -f /run/rules");
}
