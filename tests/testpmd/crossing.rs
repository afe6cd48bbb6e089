//! Packets cross in both directions, through miss, hit and rewrite, whatever the rings are.

use std::collections::HashMap;

use crate::rig::{Listener, Rig, SESSIONS, device, hit, hit_back, missed, missed_back, number};
use crate::traffic::{Datagram, Wire, number_of};

/// Frames of each kind, size and direction.
const FRAMES: u64 = 32;
const SIZES: [usize; 3] = [64, 1_500, 1_514];

/// How both testpmds make their rings.
struct Rings {
    queues: u16,
    mergeable: bool,
    in_order: bool,
}

impl Rings {
    fn properties(&self) -> String {
        format!(
            "mrg_rxbuf={},in_order={}",
            u8::from(self.mergeable),
            u8::from(self.in_order)
        )
    }
}

/// Each option is seen on and off, alone and together.
const COMBINATIONS: [Rings; 4] = [
    Rings {
        queues: 1,
        mergeable: true,
        in_order: false,
    },
    Rings {
        queues: 2,
        mergeable: false,
        in_order: true,
    },
    Rings {
        queues: 2,
        mergeable: true,
        in_order: true,
    },
    Rings {
        queues: 1,
        mergeable: false,
        in_order: false,
    },
];

#[test]
fn testpmd_frames_cross_by_miss_and_hit_with_every_kind_of_rings() {
    cross(&Rig::start(Listener::Shunt));
}

/// With one queue pair of two in use, the first worker has it; with two, each has one.
#[test]
fn testpmd_frames_cross_two_workers_by_miss_and_hit_with_every_kind_of_rings() {
    cross(&Rig::with_workers(2, Listener::Shunt));
}

fn cross(rig: &Rig) {
    rig.offload();
    let mut next = 1;
    for rings in &COMBINATIONS {
        let properties = rings.properties();
        let _guest = rig.forward(rig.guest(rings.queues, &properties));
        let _uplinks = rig.forward(rig.uplinks(rings.queues, &properties));
        rig.wait_running(rings.queues.into());
        negotiated(rig, rings);
        for length in SIZES {
            let what = format!("{} pairs, {properties}, {length} bytes", rings.queues);
            through_the_guest(rig, &mut next, length, &what);
            around_the_guest(rig, &mut next, length, &what);
        }
        every_queue_was_used(rig, rings.queues);
    }
}

fn negotiated(rig: &Rig, rings: &Rings) {
    let ports = rig.ports();
    for (vnic, side) in [
        ("a", "guest"),
        ("a", "uplink"),
        ("b", "guest"),
        ("b", "uplink"),
    ] {
        let device = device(&ports, vnic, side);
        let features = device["feature"].as_array().unwrap();
        let has = |name: &str| features.iter().any(|feature| feature == name);
        assert_eq!(has("mrg-rxbuf"), rings.mergeable, "{device}");
        assert_eq!(has("in-order"), rings.in_order, "{device}");
        assert_eq!(has("mq"), rings.queues > 1, "{device}");
        assert_eq!(number(&device["faults"]), 0, "{device}");
    }
}

/// Without a session both testpmds pass frames on as they are.
fn through_the_guest(rig: &Rig, next: &mut u64, length: usize, what: &str) {
    let (around, through) = (rig.forwarded(), rig.to_guest());
    let there: Vec<Datagram> = numbers(next).map(|n| missed(n, length)).collect();
    there.iter().for_each(|datagram| rig.a.send(datagram));
    rig.b.expect(&there, &format!("{what}: miss from a to b"));
    in_order(&rig.b, &there, what);
    let back: Vec<Datagram> = numbers(next).map(|n| missed_back(n, length)).collect();
    back.iter().for_each(|datagram| rig.b.send(datagram));
    rig.a.expect(&back, &format!("{what}: miss from b to a"));
    assert_eq!(rig.forwarded(), around, "{what}: a miss goes to the guest");
    assert_eq!(rig.to_guest(), through + 2 * FRAMES, "{what}");
}

/// With a session they leave rewritten, and the guest never sees them.
fn around_the_guest(rig: &Rig, next: &mut u64, length: usize, what: &str) {
    let (around, through) = (rig.forwarded(), rig.to_guest());
    let session = |n: u64| (n % u64::from(SESSIONS)) as u16;
    let there: Vec<_> = numbers(next).map(|n| hit(session(n), n, length)).collect();
    there.iter().for_each(|(sent, _)| rig.a.send(sent));
    let expected: Vec<Datagram> = there.into_iter().map(|(_, received)| received).collect();
    rig.b.expect(&expected, &format!("{what}: hit from a to b"));
    in_order(&rig.b, &expected, what);
    let back: Vec<_> = numbers(next)
        .map(|n| hit_back(session(n), n, length))
        .collect();
    back.iter().for_each(|(sent, _)| rig.b.send(sent));
    let expected: Vec<Datagram> = back.into_iter().map(|(_, received)| received).collect();
    rig.a.expect(&expected, &format!("{what}: hit from b to a"));
    in_order(&rig.a, &expected, what);
    assert_eq!(rig.forwarded(), around + 2 * FRAMES, "{what}");
    assert_eq!(rig.to_guest(), through, "{what}: the guest saw a hit");
}

/// Each flow's datagrams arrived as they were sent.
fn in_order(wire: &Wire, sent: &[Datagram], what: &str) {
    let arrived = wire.arrived();
    let numbers: Vec<_> = arrived.iter().map(|bytes| number_of(bytes)).collect();
    let place = |number| numbers.iter().position(|other| *other == Some(number));
    let mut last = HashMap::new();
    for datagram in sent {
        let place = place(datagram.number);
        let before = last.insert((datagram.from, datagram.to), place);
        assert!(
            before.is_none_or(|before| before < place),
            "{what}: {datagram:?}"
        );
    }
}

fn every_queue_was_used(rig: &Rig, queues: u16) {
    let ports = rig.ports();
    for (vnic, side) in [
        ("a", "uplink"),
        ("b", "uplink"),
        ("a", "guest"),
        ("b", "guest"),
    ] {
        let device = device(&ports, vnic, side);
        for queue in &device["queue"].as_array().unwrap()[..queues.into()] {
            assert!(number(&queue["rx-frames"]) > 0, "{vnic} {side}: {queue}");
            assert!(number(&queue["tx-frames"]) > 0, "{vnic} {side}: {queue}");
        }
    }
}

fn numbers(next: &mut u64) -> std::ops::Range<u64> {
    let first = *next;
    *next += FRAMES;
    first..*next
}
