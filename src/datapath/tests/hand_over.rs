//! A session on its way from the guest to the fast path, and back.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::world::*;
use crate::flow::hand_over::HandOverLimits;
use crate::flow::{CloseCode, HandOverMode};
use crate::packet::{Offload, PuntReason};

fn send(world: &World, numbers: std::ops::Range<u32>) {
    for number in numbers {
        world.lan.uplink.send(&datagram(number), Offload::default());
    }
}

fn arrived(world: &World) -> Vec<u32> {
    let frames = world.wan.uplink.take();
    let payloads = frames.iter().map(|frame| seen(&frame.data).3);
    payloads
        .map(|p| u32::from_be_bytes(p[..4].try_into().unwrap()))
        .collect()
}

/// Sends paced datagrams through a guest that holds each for `rounds` rounds, until the
/// session is active; everything must arrive in order.
#[test]
fn ordered_hand_over_of_a_paced_flow_loses_and_reorders_nothing() {
    for delay in 0..5 {
        let mut world = World::new();
        let mut held = std::collections::VecDeque::from(vec![0; delay]);
        let mut got = Vec::new();
        let mut number = 0;
        for round in 0..200 {
            if round == 20 {
                world.offload(session("s", UDP));
            }
            send(&world, number..number + 1);
            number += 1;
            world.pass(Duration::from_millis(1));
            // The guest forwards in order, `delay` rounds late.
            held.push_back(1);
            if held.pop_front() == Some(1) {
                world.guest_forwards_some(LAN, 1);
            }
            world.run();
            got.extend(arrived(&world));
        }
        for _ in 0..delay + 1 {
            world.guest_forwards(LAN);
            world.pass(Duration::from_millis(1));
        }
        got.extend(arrived(&world));
        assert_eq!(
            got,
            (0..number).collect::<Vec<_>>(),
            "guest holds {delay} rounds"
        );
        assert!(
            world.counters().forwarded.packets > 50,
            "never active at {delay}"
        );
        world.assert_conserved();
    }
}

#[test]
fn a_session_that_the_guest_drops_is_never_active_not_even_prompt() {
    for mode in [HandOverMode::Ordered, HandOverMode::Prompt] {
        let mut world = World::new();
        let mut request = session("s", UDP);
        request.mode = mode;
        world.offload(request);
        for round in 0..50 {
            send(&world, round..round + 1);
            world.pass(Duration::from_millis(100));
            world.lan.guest.take();
        }
        assert_eq!(world.counters().forwarded.packets, 0);
        assert_eq!(world.counters().punted_for(PuntReason::NotActive), 50);
        world.assert_conserved();
    }
}

#[test]
fn macs_left_out_are_learned_from_the_proving_frame() {
    let mut world = World::new();
    let mut request = session("s", UDP);
    request.mode = HandOverMode::Prompt;
    world.offload(request);
    send(&world, 0..1);
    world.run();
    world.guest_forwards(LAN);
    world.run();
    arrived(&world);
    send(&world, 1..2);
    world.run();
    let out = world.wan.uplink.take();
    assert_eq!(macs(&out[0].data), (SERVER_MAC, WAN_MAC));
    assert_eq!(world.counters().forwarded.packets, 1);
    world.assert_conserved();
}

/// A guest that took a burst and is slow with it: later packets are parked.
fn draining(limits: HandOverLimits) -> World {
    let mut world = World::with(ALL_OFFLOADS, limits);
    world.offload(session("s", UDP));
    for number in 0..4 {
        send(&world, number..number + 1);
        world.pass(Duration::from_millis(1));
    }
    world.guest_forwards_some(LAN, 1);
    world.run();
    assert_eq!(arrived(&world), [0]);
    send(&world, 4..8);
    world.run();
    assert_eq!(world.counters().parked, 4, "the flow does not drain");
    world
}

#[test]
fn parked_frames_follow_the_guests_last_one() {
    let mut world = draining(HandOverLimits::default());
    world.guest_forwards(LAN);
    world.run();
    assert_eq!(arrived(&world), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(world.counters().parked, 0);
    world.assert_conserved();
}

#[test]
fn parked_frames_that_find_no_room_are_told_as_lost() {
    let mut world = draining(HandOverLimits::default());
    world.wan.uplink.set_room(5);
    world.guest_forwards(LAN);
    world.run();
    assert_eq!(arrived(&world), [1, 2, 3, 4, 5]);
    assert_eq!(world.counters().hand_over.released_lost, 2);
    let tally = world.book.get("s").unwrap().tally;
    assert_eq!((tally.hand_overs, tally.toll.lost), (1, 2));
    world.assert_conserved();
}

#[test]
fn at_the_bound_parked_frames_go_to_the_guest_in_order_and_nothing_is_lost() {
    let mut world = draining(HandOverLimits::default());
    world.pass(Duration::from_millis(25));
    assert_eq!(world.counters().parked, 0);
    send(&world, 8..9);
    world.run();
    world.guest_forwards(LAN);
    world.run();
    assert_eq!(arrived(&world), [1, 2, 3, 4, 5, 6, 7, 8]);
    world.assert_conserved();
}

#[test]
fn a_withdrawn_session_releases_its_parked_frames_before_later_ones_miss() {
    let mut world = draining(HandOverLimits::default());
    world.book.withdraw("s", world.now);
    send(&world, 8..9);
    world.pass(Duration::from_millis(5));
    send(&world, 9..10);
    world.pass(Duration::from_millis(5));
    world.guest_forwards(LAN);
    world.run();
    assert_eq!(arrived(&world), (1..10).collect::<Vec<_>>());
    let closed: Vec<_> = std::iter::from_fn(|| world.book.take_closed()).collect();
    assert_eq!(closed[0].code, CloseCode::Withdrawn);
    assert_eq!(world.counters().punted_for(PuntReason::Miss), 1);
    world.assert_conserved();
}

#[test]
fn a_flow_leaves_by_the_egress_queue_that_the_guest_used_last() {
    let mut world = World::new();
    world.offload(session("s", UDP));
    for number in 0..4 {
        send(&world, number..number + 1);
        world.pass(Duration::from_millis(1));
        world.guest_forwards_by_second_queue();
        world.run();
    }
    send(&world, 4..6);
    world.run();
    let second = world.wan.second.0.take();
    let numbers: Vec<u8> = second.iter().map(|frame| seen(&frame.data).3[3]).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
    assert!(world.wan.uplink.take().is_empty());
    assert!(world.counters().forwarded.packets >= 2);
    world.assert_conserved();
}

/// The guest has proved the flow's rewrite and holds nothing: the next packet is the marker.
fn about_to_drain() -> World {
    let mut world = World::new();
    world.offload(session("s", UDP));
    send(&world, 0..1);
    world.run();
    world.guest_forwards(LAN);
    world.run();
    assert_eq!(arrived(&world), [0]);
    world
}

fn guest_got(world: &World) -> Vec<u32> {
    let frames = world.lan.guest.take();
    let payloads = frames.iter().map(|frame| seen(&frame.data).3);
    payloads
        .map(|p| u32::from_be_bytes(p[..4].try_into().unwrap()))
        .collect()
}

#[test]
fn what_is_parked_and_given_back_within_a_burst_does_not_overtake_the_bursts_earlier_frames() {
    let mut world = about_to_drain();
    send(&world, 1..4);
    let expiring = udp(
        (CLIENT_MAC, LAN_MAC),
        CLIENT,
        SERVER,
        1,
        &4u32.to_be_bytes(),
    );
    world.lan.uplink.send(&expiring, Offload::default());
    world.run();
    assert_eq!(guest_got(&world), [1, 2, 3, 4]);
    assert_eq!(world.counters().parked, 0);
    world.assert_conserved();
}

#[test]
fn a_packet_of_a_closing_flow_does_not_overtake_what_is_parked() {
    let mut world = draining(HandOverLimits::default());
    world.lan.guest.take();
    // The session is withdrawn just after the worker looked.
    world.book.withdraw("s", world.now);
    world.lane.pipe.revisited = world.lane.pipe.signals.revisit.load(Relaxed);
    send(&world, 8..9);
    world.run();
    assert_eq!(guest_got(&world), [4, 5, 6, 7, 8]);
    world.assert_conserved();
}

/// The marker was lost in the guest, so a burst's first frame goes there and the next is
/// parked; the third, which the guest must see, sends the parked one after the first.
#[test]
fn what_is_released_within_a_burst_stays_behind_the_bursts_earlier_frames() {
    let last = udp(
        (CLIENT_MAC, LAN_MAC),
        CLIENT,
        SERVER,
        1,
        &6_u32.to_be_bytes(),
    );
    let mut world = World::new();
    world.offload(session("s", UDP));
    send(&world, 0..4);
    world.run();
    world.guest_forwards_some(LAN, 1);
    world.pass(HandOverLimits::default().time * 2);
    world.lan.guest.take();
    send(&world, 4..6);
    world.lan.uplink.send(&last, Offload::default());
    world.run();
    let frames = world.lan.guest.take();
    let numbers: Vec<u8> = frames.iter().map(|frame| seen(&frame.data).3[3]).collect();
    assert_eq!(numbers, [4, 5, 6]);
    assert_eq!(world.counters().punted_for(PuntReason::DrainBound), 1);
    world.assert_conserved();
}
