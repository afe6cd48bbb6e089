//! Shields before the flow table: what they match reaches neither guest nor egress.

use std::time::Duration;

use super::world::*;
use crate::flow::shield::{Action, Asked, Count, Flags, Matches, Rate, Shield, ShieldBook, Unit};
use crate::flow::{Outcome, slots_of};
use crate::packet::{DropReason, Offload, PuntReason, VnicId};

fn none() -> Offload {
    Offload::default()
}

/// A shield over what comes from the client's address.
fn from_client(name: &str, action: Action) -> Shield {
    let matches = Matches {
        source: Some((CLIENT.0.into(), 32)),
        ..Matches::default()
    };
    Shield {
        name: name.to_owned(),
        priority: 0,
        vnic: None,
        matches,
        action,
    }
}

fn number_of(vnic: &str) -> Option<VnicId> {
    match vnic {
        "lan" => Some(LAN),
        "wan" => Some(WAN),
        _ => None,
    }
}

/// A world whose element has these shields.
fn shielded(shields: impl IntoIterator<Item = Shield>) -> (World, ShieldBook) {
    let mut world = World::new();
    let mut book = ShieldBook::new(1, slots_of(64) as usize, 100);
    for shield in shields {
        let ttl = Duration::from_secs(60);
        book.install(Asked { shield, ttl }, world.now);
    }
    world.lane.set_shields(book.compile(number_of));
    (world, book)
}

fn count(world: &World, book: &ShieldBook) -> Count {
    book.iter(world.now).next().unwrap().count
}

#[test]
fn what_a_shield_drops_reaches_neither_guest_nor_egress() {
    for has_session in [false, true] {
        let (mut world, book) = shielded([from_client("bad", Action::Drop)]);
        if has_session {
            let outcome = world.offload(vouched("s", UDP));
            assert!(matches!(outcome, Outcome::Offloaded(_)));
        }
        for number in 0..10 {
            world.lan.uplink.send(&datagram(number), none());
        }
        // Of another address: goes on.
        let other = udp((CLIENT_MAC, LAN_MAC), SERVER, SERVER, 64, b"other");
        world.lan.uplink.send(&other, none());
        world.run();
        assert!(world.wan.uplink.take().is_empty());
        let guest = world.lan.guest.take();
        assert_eq!(guest.len(), 1);
        assert_eq!(guest[0].data, other);
        assert_eq!(world.counters().dropped_for(DropReason::ShieldDrop), 10);
        let count = count(&world, &book);
        assert_eq!((count.packets, count.dropped), (10, 10));
        assert_eq!(count.octets, 10 * 32);
        world.assert_conserved();
    }
}

#[test]
fn a_punting_shield_goes_past_the_flow_table_and_the_session_stays() {
    let (mut world, _book) = shielded([from_client("look", Action::Punt)]);
    world.offload(vouched("s", TCP));
    for frame in [
        segment(1, |b| b.ack(5), b"data"),
        segment(5, |b| b.fin().ack(5), b""),
    ] {
        world.lan.uplink.send(&frame, none());
    }
    world.run();
    assert_eq!(world.lan.guest.take().len(), 2);
    assert_eq!(world.counters().punted_for(PuntReason::Shield), 2);
    assert_eq!(world.counters().punted_for(PuntReason::TcpFin), 0);
    assert!(world.book.take_closed().is_none());
    // Without it the session is there as before.
    world.lane.set_shields(None);
    world
        .lan
        .uplink
        .send(&segment(6, |b| b.ack(5), b"data"), none());
    world.run();
    assert_eq!(world.wan.uplink.take().len(), 1);
    world.assert_conserved();
}

#[test]
fn what_a_policing_shield_lets_through_goes_on_as_without_it() {
    let rate = Rate {
        unit: Unit::Packets,
        rate: 1_000,
        burst: 20,
    };
    let (mut world, book) = shielded([from_client("some", Action::Police(rate))]);
    world.offload(vouched("s", UDP));
    for number in 0..60 {
        world.lan.uplink.send(&datagram(number), none());
    }
    world.run();
    let first = world.wan.uplink.take().len();
    assert!((20..=21).contains(&first), "{first}");
    let lost = world.counters().dropped_for(DropReason::ShieldPolice);
    assert_eq!(lost, 60 - first as u64);
    world.pass(Duration::from_millis(10));
    for number in 0..60 {
        world.lan.uplink.send(&datagram(number), none());
    }
    world.run();
    assert!((10..=11).contains(&world.wan.uplink.take().len()));
    assert_eq!(count(&world, &book).packets, 120);
    assert!(world.lan.guest.take().is_empty());
    world.assert_conserved();
}

#[test]
fn tcp_flags_are_looked_at_in_each_packet_of_a_session() {
    let mut shield = from_client("syn", Action::Drop);
    shield.matches.protocol = Some(TCP);
    shield.matches.flags = Some(Flags::of(Some(0x02), Some(0x12)));
    let (mut world, _book) = shielded([shield]);
    world.offload(vouched("s", TCP));
    for _ in 0..3 {
        world
            .lan
            .uplink
            .send(&segment(1, |b| b.ack(5), b"data"), none());
        world.lan.uplink.send(&segment(1, |b| b.syn(), b""), none());
    }
    world.run();
    assert_eq!(world.wan.uplink.take().len(), 3, "the session goes on");
    assert!(world.lan.guest.take().is_empty());
    assert_eq!(world.counters().dropped_for(DropReason::ShieldDrop), 3);
    world.assert_conserved();
}

#[test]
fn segments_that_alternate_in_flags_each_meet_their_own_shield() {
    let with_flags = |name: &str, value, action| {
        let mut shield = from_client(name, action);
        shield.matches.protocol = Some(TCP);
        shield.matches.flags = Some(Flags::of(Some(value), Some(0x3f)));
        shield
    };
    let rate = Rate {
        unit: Unit::Packets,
        rate: 1_000,
        burst: 10,
    };
    let (mut world, mut book) = shielded([
        with_flags("a-push", 0x18, Action::Police(rate)),
        with_flags("b-syn", 0x02, Action::Drop),
        with_flags("c-urgent", 0x30, Action::Punt),
    ]);
    world.offload(vouched("s", TCP));
    let send = |world: &mut World| {
        for _ in 0..30 {
            for frame in [
                segment(1, |b| b.ack(5), b"ack"),
                segment(1, |b| b.ack(5).psh(), b"push"),
                segment(1, |b| b.syn(), b""),
                segment(1, |b| b.ack(5).urg(1), b"urgent"),
            ] {
                world.lan.uplink.send(&frame, none());
            }
        }
        world.run();
    };
    let lost = |world: &World, reason| world.counters().dropped_for(reason);
    send(&mut world);
    let passed = world.wan.uplink.take().len() as u64 - 30;
    assert!((10..=11).contains(&passed), "{passed}");
    assert_eq!(world.lan.guest.take().len(), 30);
    assert_eq!(lost(&world, DropReason::ShieldDrop), 30);
    assert_eq!(lost(&world, DropReason::ShieldPolice), 30 - passed);
    let counts: Vec<_> = book.iter(world.now).map(|view| view.count).collect();
    assert!(counts.iter().all(|count| count.packets == 30));
    let dropped: Vec<_> = counts.iter().map(|count| count.dropped).collect();
    assert_eq!(dropped, [30 - passed, 30, 0]);

    // Another set: what is remembered of the flow is of no account.
    book.remove("c-urgent");
    book.remove("a-push");
    world.lane.set_shields(book.compile(number_of));
    send(&mut world);
    assert_eq!(world.wan.uplink.take().len(), 90);
    assert!(world.lan.guest.take().is_empty());
    assert_eq!(lost(&world, DropReason::ShieldDrop), 60);
    assert_eq!(count(&world, &book).packets, 60);
    world.assert_conserved();
}

#[test]
fn a_new_set_applies_to_flows_that_remember_the_old_one() {
    let (mut world, mut book) = shielded([from_client("bad", Action::Drop)]);
    world.offload(vouched("s", UDP));
    let sent = |world: &mut World| {
        for number in 0..3 {
            world.lan.uplink.send(&datagram(number), none());
        }
        world.run();
        world.wan.uplink.take().len()
    };
    assert_eq!(sent(&mut world), 0);
    book.remove_all();
    let mut other = from_client("other", Action::Drop);
    other.vnic = Some("wan".to_owned());
    let ttl = Duration::from_secs(60);
    book.install(Asked { shield: other, ttl }, world.now);
    world.lane.set_shields(book.compile(number_of));
    assert_eq!(sent(&mut world), 3);
    book.install(
        Asked {
            shield: from_client("bad", Action::Drop),
            ttl,
        },
        world.now,
    );
    world.lane.set_shields(book.compile(number_of));
    assert_eq!(sent(&mut world), 0);
    world.assert_conserved();
}

#[test]
fn frames_without_a_key_are_matched_by_their_network_layer_and_arp_never() {
    let everything = Shield {
        matches: Matches::default(),
        ..from_client("all", Action::Drop)
    };
    let (mut world, _book) = shielded([everything]);
    let mut fragment = datagram(1);
    fragment[20] = 0x20;
    let mut broadcast = datagram(2);
    broadcast[..6].fill(0xff);
    let arp = [&[0xff; 6][..], &CLIENT_MAC.0, &[8, 6], &[0; 28]].concat();
    for frame in [&fragment, &broadcast, &arp] {
        world.lan.uplink.send(frame, none());
    }
    world.run();
    let guest = world.lan.guest.take();
    assert_eq!(guest.len(), 1);
    assert_eq!(guest[0].data, arp);
    assert_eq!(world.counters().dropped_for(DropReason::ShieldDrop), 2);

    // One that speaks of ports cannot know a fragment's.
    let mut of_ports = from_client("ports", Action::Drop);
    of_ports.matches.protocol = Some(UDP);
    of_ports.matches.destination_ports = crate::flow::shield::Ports::of(SERVER.1);
    let (mut world, _book) = shielded([of_ports]);
    world.lan.uplink.send(&fragment, none());
    world.lan.uplink.send(&datagram(3), none());
    world.run();
    let guest = world.lan.guest.take();
    assert_eq!(guest.len(), 1);
    assert_eq!(guest[0].data, fragment);
    world.assert_conserved();
}

#[test]
fn a_frame_to_another_mac_is_dropped_too_and_counted_once() {
    let (mut world, _book) = shielded([from_client("bad", Action::Drop)]);
    let mut frame = datagram(1);
    frame[5] ^= 0x40;
    world.lan.uplink.send(&frame, none());
    world.run();
    assert!(world.lan.guest.take().is_empty());
    assert_eq!(world.counters().dropped_for(DropReason::ShieldDrop), 1);
    world.assert_conserved();
}

#[test]
fn what_the_guest_sends_and_what_other_elements_get_is_untouched() {
    let everything = Shield {
        matches: Matches::default(),
        ..from_client("all", Action::Drop)
    };
    let (mut world, _book) = shielded([everything]);
    let mut neighbour = World::new();
    for world in [&mut world, &mut neighbour] {
        world.offload(vouched("s", UDP));
        world.lan.uplink.send(&datagram(1), none());
        world.wan.guest.send(&datagram(2), none());
        world.run();
    }
    assert_eq!(world.wan.uplink.take().len(), 1, "the guest's own");
    assert_eq!(neighbour.wan.uplink.take().len(), 2);
    world.assert_conserved();
    neighbour.assert_conserved();
}
