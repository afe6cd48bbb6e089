//! A guest that breaks its rings: they stop and say why; everybody else goes on.

use crate::SOON;
use crate::driver::{Driver, RX, TX};
use crate::rig::{MAC_A, MAC_B, device, missed_back, number};
use crate::support::eventually;
use crate::support::frontend::{Guest, RING_SIZE};
use crate::taps::{Taps, Vnic};
use crate::traffic::Wire;

const BAD: Vnic = ("bad", "52:54:00:00:00:0a");
const GOOD: Vnic = ("good", "52:54:00:00:00:0b");

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Head of the bad chain: no good one has it.
const HEAD: u16 = 40;
const BUFFER: u64 = 0x20_0000;
const UNMAPPED: u64 = 0x4000_0000_0000;

/// A way to break a ring, and a part of the reason that is given.
struct Malice {
    name: &'static str,
    commit: fn(&mut Guest, usize),
    reason: &'static str,
}

const MALICES: [Malice; 8] = [
    Malice {
        name: "next out of range",
        commit: |guest, ring| {
            let next = RING_SIZE + 5;
            guest.describe(ring, HEAD, BUFFER, 1, NEXT | write(ring), next);
            guest.offer(ring, HEAD);
        },
        reason: "chain 40 goes on at 69, outside a table of 64",
    },
    Malice {
        name: "loop",
        commit: |guest, ring| {
            guest.describe(ring, HEAD, BUFFER, 1, NEXT | write(ring), HEAD + 1);
            guest.describe(ring, HEAD + 1, BUFFER, 1, NEXT | write(ring), HEAD);
            guest.offer(ring, HEAD);
        },
        reason: "chain 40 loops",
    },
    Malice {
        name: "zero length",
        commit: |guest, ring| {
            guest.describe(ring, HEAD, BUFFER, 0, write(ring), 0);
            guest.offer(ring, HEAD);
        },
        reason: "chain 40 has a buffer of 0 bytes",
    },
    Malice {
        name: "unmapped address",
        commit: |guest, ring| {
            guest.describe(ring, HEAD, UNMAPPED, 2048, write(ring), 0);
            guest.offer(ring, HEAD);
        },
        reason: "at guest address 0x400000000000 are not in the guest's memory",
    },
    Malice {
        name: "indirect table of odd size",
        commit: |guest, ring| {
            guest.describe(ring, HEAD, BUFFER, 17, INDIRECT, 0);
            guest.offer(ring, HEAD);
        },
        reason: "chain 40 has an indirect table of 17 bytes",
    },
    Malice {
        name: "head out of range",
        commit: |guest, ring| guest.offer(ring, RING_SIZE),
        reason: "chain head 64 is outside a ring of 64",
    },
    Malice {
        name: "available index too far ahead",
        commit: |guest, ring| {
            guest.rings[ring].avail += 2 * RING_SIZE;
            guest.offer(ring, HEAD);
        },
        reason: "available index went from 1 to 130 on a ring of 64",
    },
    Malice {
        name: "buffer of the other direction",
        commit: |guest, ring| {
            guest.describe(ring, HEAD, BUFFER, 2048, write(ring) ^ WRITE, 0);
            guest.offer(ring, HEAD);
        },
        reason: "buffer in a ring of the other direction",
    },
];

/// The flag of a buffer in `ring`.
fn write(ring: usize) -> u16 {
    if ring == RX { WRITE } else { 0 }
}

#[test]
fn a_malformed_descriptor_stops_its_ring_with_a_reason_and_nothing_else() {
    let mut taps = Taps::start(&[&[BAD, GOOD]]);
    let (bad_wire, good_wire) = (taps.wire(0, "bad"), taps.wire(0, "good"));
    let mut good = Driver::connect(&taps.socket(0, "good"), MAC_B);
    let mut next = 0;
    good.exchange(&good_wire, &mut next, "at first");
    let mut faults = 0;
    for malice in &MALICES {
        for ring in [TX, RX] {
            faults += 1;
            let what = format!("{} in vring {ring}", malice.name);
            let mut bad = Driver::connect(&taps.socket(0, "bad"), MAC_A);
            bad.exchange(&bad_wire, &mut next, &what);
            (malice.commit)(&mut bad.guest, ring);
            bad.kick(ring);
            if ring == RX {
                // It is looked at when there is something to put in.
                bad_wire.send(&bad.incoming(next));
            }
            bad.expect_error(ring, &what);
            reported(&mut taps, ring, malice.reason, faults, &what);
            good.exchange(&good_wire, &mut next, &format!("{what}: the other device"));
            if ring == RX {
                transmits_still(&mut bad, &bad_wire, &mut next, &what);
            } else {
                next += 2;
                bad.receive(&bad_wire, next, &format!("{what}: the other ring"));
            }
        }
    }
    let mut bad = Driver::connect(&taps.socket(0, "bad"), MAC_A);
    bad.exchange(&bad_wire, &mut next, "a better guest in its place");
    let ports = taps.cli(0, &["show", "ports"]).1;
    let device = device(&ports, "good", "guest");
    assert_eq!(number(&device["faults"]), 0, "{device}");
    assert_eq!(number(&device["connections"]), 1, "{device}");
}

/// Once in the log, and in `shunt show ports` for as long as the ring is stopped.
fn reported(taps: &mut Taps, ring: usize, reason: &str, faults: u64, what: &str) {
    let socket = taps.socket(0, "bad");
    let begins = format!("{}: vring {ring} stopped: ", socket.display());
    let mut lines = 0;
    eventually(SOON, &format!("{what}: a line in the log"), || {
        let log = taps.shunt.process().log();
        let stops = || log.lines().filter(|line| line.contains(" stopped: "));
        lines = stops().count() as u64;
        stops()
            .next_back()
            .is_some_and(|line| line.contains(&begins) && line.contains(reason))
    });
    assert_eq!(lines, faults, "{what}: one line for one fault");
    let ports = taps.cli(0, &["show", "ports"]).1;
    let device = device(&ports, "bad", "guest");
    assert_eq!(number(&device["faults"]), faults, "{what}: {device}");
    let queue = &device["queue"][0];
    assert_eq!(queue["running"], false, "{what}: {queue}");
    let fault = queue["fault"].as_str().unwrap_or_default();
    assert!(fault.contains(reason), "{what}: {queue}");
}

/// A guest whose receive ring broke still transmits.
fn transmits_still(bad: &mut Driver, wire: &Wire, next: &mut u64, what: &str) {
    *next += 2;
    let sent = missed_back(*next, 100);
    bad.guest.send(TX, &sent.bytes());
    bad.kick(TX);
    wire.expect(&[sent], &format!("{what}: the other ring"));
}
