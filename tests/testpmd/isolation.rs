//! Two elements that have everything in common but the backend's knowledge of them.

use std::net::Ipv4Addr;

use serde_json::Value;

use crate::SOON;
use crate::rig::{hit, missed, missed_back, number, pinned_nowhere};
use crate::support::eventually;
use crate::taps::{Taps, Vnic};
use crate::traffic::{Datagram, Wire, number_of};

const LAN: Vnic = ("lan", "52:54:00:00:00:0a");
const WAN: Vnic = ("wan", "52:54:00:00:00:0b");
const DMZ: Vnic = ("dmz", "52:54:00:00:00:0c");
/// The translations of the two elements.
const PUBLIC: [(Ipv4Addr, u16); 2] = [
    (Ipv4Addr::new(198, 51, 100, 1), 1024),
    (Ipv4Addr::new(198, 51, 100, 77), 2024),
];
const KEY: &str = "same-key";
/// Numbers of the second element's datagrams begin here.
const SECOND: u64 = 1 << 32;
const FRAMES: u64 = 8;

struct World {
    taps: Taps,
    lan: [Wire; 2],
    wan: [Wire; 2],
    next: u64,
}

impl World {
    /// Sends the same datagrams into both elements' LANs and says what leaves each WAN: of
    /// `rewritten` elements the session's rewrite, of others what came.
    fn both_ways(&mut self, rewritten: [bool; 2], what: &str) {
        let numbers = self.next..self.next + FRAMES;
        self.next += FRAMES;
        for element in 0..2 {
            let mut expected = Vec::new();
            for n in numbers.clone() {
                let (sent, received) = hit(0, n + element as u64 * SECOND, 100);
                self.lan[element].send(&sent);
                expected.push(if rewritten[element] {
                    Datagram {
                        from: PUBLIC[element],
                        ..received
                    }
                } else {
                    sent
                });
            }
            self.wan[element].expect(&expected, &format!("{what}: element {element}"));
            let back: Vec<Datagram> = numbers
                .clone()
                .map(|n| missed_back(n + element as u64 * SECOND + (1 << 16), 100))
                .collect();
            back.iter().for_each(|sent| self.wan[element].send(sent));
            self.lan[element].expect(&back, &format!("{what}: back in element {element}"));
        }
        self.nothing_crossed(what);
    }

    fn nothing_crossed(&self, what: &str) {
        for element in 0..2 {
            for wire in [&self.lan[element], &self.wan[element]] {
                for bytes in wire.arrived() {
                    let second = number_of(&bytes).unwrap() >= SECOND;
                    assert_eq!(second, element == 1, "{what}: {bytes:02x?} crossed");
                }
            }
        }
    }

    fn add(&self, element: usize, egress: &str) -> (i32, Value) {
        let (address, port) = PUBLIC[element];
        let snat = format!("{address}:{port}");
        let words = "session add --protocol udp --from 10.0.0.2:30001 --to 192.0.2.9:53 \
                     --ingress lan --vouched --hand-over prompt --dscp 10 \
                     --destination-mac 02:00:00:00:00:0b --source-mac 52:54:00:00:00:0b \
                     --reply-destination-mac 02:00:00:00:00:0a \
                     --reply-source-mac 52:54:00:00:00:0a";
        let mut argv: Vec<&str> = words.split_whitespace().collect();
        argv.extend(["--key", KEY, "--snat", &snat, "--egress", egress]);
        self.taps.cli(element, &argv)
    }

    fn offload(&self, element: usize) {
        let (code, output) = self.add(element, "wan");
        assert_eq!(code, 0, "{output}");
        // New there, whatever the other element has.
        assert_eq!(output["result"][0]["result"], "offloaded", "{output}");
        eventually(SOON, "the session is active", || {
            let shown = self.sessions(element);
            shown[0]["status"]["original"]["state"] == "active"
        });
    }

    fn sessions(&self, element: usize) -> Vec<Value> {
        let (code, output) = self.taps.cli(element, &["show", "sessions"]);
        assert_eq!(code, 0, "{output}");
        output["session"].as_array().unwrap().clone()
    }

    fn forwarded(&self, element: usize) -> u64 {
        let (code, output) = self.taps.cli(element, &["show", "stats"]);
        assert_eq!(code, 0, "{output}");
        number(&output["forwarded"]["packets"])
    }
}

#[test]
fn elements_with_identical_addresses_never_see_each_others_packets_or_sessions() {
    apart(1);
}

/// Their guests use one queue pair, the taps two.
#[test]
fn elements_that_share_two_workers_never_see_each_others_packets_or_sessions() {
    apart(2);
}

fn apart(workers: usize) {
    let taps = Taps::with_workers(workers, &[&[LAN, WAN], &[LAN, WAN, DMZ]]);
    // In io mode ports are paired in order: the guests of both elements.
    let mut guests = pinned_nowhere("io")
        .virtio_user(&taps.socket(0, "lan"), "packed_vq=0")
        .virtio_user(&taps.socket(0, "wan"), "packed_vq=0")
        .virtio_user(&taps.socket(1, "lan"), "packed_vq=0")
        .virtio_user(&taps.socket(1, "wan"), "packed_vq=0")
        .start(&taps.dir);
    guests.forward();
    let mut world = World {
        lan: [0, 1].map(|element| taps.wire(element, "lan")),
        wan: [0, 1].map(|element| taps.wire(element, "wan")),
        taps,
        next: 1,
    };
    eventually(SOON, "both guests forward", || {
        let probe = |element: usize| {
            let sent = missed(element as u64 * SECOND, 100);
            world.lan[element].send(&sent);
            let arrived = world.wan[element].arrived();
            arrived.contains(&sent.bytes())
        };
        [probe(0), probe(1)] == [true, true]
    });
    world.both_ways([false, false], "without sessions");

    world.offload(0);
    assert_eq!(world.sessions(1), Vec::<Value>::new());
    assert_eq!(world.taps.cli(1, &["session", "show", KEY]).0, 1);
    world.both_ways([true, false], "a session of the first");

    // One element can neither withdraw nor reach what is the other's.
    let (_, output) = world.taps.cli(1, &["session", "del", KEY]);
    assert_eq!(output["result"][0]["result"], "absent", "{output}");
    assert_eq!(world.sessions(0).len(), 1);
    let (code, output) = world.add(0, "dmz");
    assert_eq!(code, 1, "{output}");
    let error = &output["result"][0]["error"];
    assert_eq!(error["error-app-tag"], "unknown-vnic", "{output}");
    world.both_ways([true, false], "a withdraw through the second");

    // The same key and the same match in both, each with a translation of its own.
    world.offload(1);
    world.both_ways([true, true], "a session of each");
    let forwarded = world.forwarded(0);
    assert_eq!((forwarded, world.forwarded(1)), (3 * FRAMES, FRAMES));

    let (code, output) = world.taps.cli(1, &["session", "del", "--all"]);
    assert_eq!(code, 0, "{output}");
    assert_eq!(world.sessions(1), Vec::<Value>::new());
    world.both_ways([true, false], "all of the second withdrawn");
}
