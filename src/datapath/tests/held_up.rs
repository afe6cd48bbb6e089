//! An uplink that keeps frames for want of room: the guest waits.

use super::world::*;
use crate::packet::{DropReason, Offload};

#[test]
fn a_guest_waits_for_a_full_uplink_with_its_frames_in_its_ring_and_loses_none() {
    let mut world = World::new();
    world.wan.uplink.set_keeps();
    world.wan.uplink.set_room(10);
    let data: Vec<_> = (0..200).map(datagram).collect();
    for data in &data {
        world.wan.guest.send(data, Offload::default());
    }
    world.run();
    assert_eq!(world.wan.uplink.take_some(usize::MAX).len(), 10);
    assert_eq!(world.wan.guest.unreceived(), 200 - 64);
    // The other vNIC and the other queue do not wait.
    world.lan.guest.send(&data[0], Offload::default());
    world.wan.second.1.send(&data[0], Offload::default());
    world.run();
    assert_eq!(world.lan.uplink.take().len(), 1);
    assert_eq!(world.wan.second.0.take().len(), 1);
    assert_eq!(world.wan.guest.unreceived(), 200 - 64);
    world.wan.uplink.set_room(usize::MAX);
    world.run();
    let rest = world.wan.uplink.take();
    assert!(rest.iter().map(|frame| &frame.data).eq(&data[10..]));
    assert_eq!(world.counters().passed.packets, 202);
    world.assert_conserved();
}

#[test]
fn what_goes_around_the_guest_is_dropped_and_never_let_past_what_waits() {
    let mut world = World::new();
    world.offload(vouched("v", UDP));
    world.wan.uplink.set_keeps();
    world.wan.uplink.set_room(0);
    world.wan.guest.send(&datagram(0), Offload::default());
    world.run();
    world.lan.uplink.send(&datagram(1), Offload::default());
    world.run();
    let dropped = |world: &World| world.counters().dropped_for(DropReason::EgressFull);
    assert_eq!(dropped(&world), 1);
    world.wan.uplink.set_room(2);
    world.lan.uplink.send(&datagram(2), Offload::default());
    world.run();
    let numbers = world.wan.uplink.take().into_iter();
    let numbers: Vec<_> = numbers.map(|frame| seen(&frame.data).3).collect();
    assert_eq!(numbers, [0u32.to_be_bytes(), 2u32.to_be_bytes()]);
    assert_eq!(dropped(&world), 1);
    world.assert_conserved();
}

#[test]
fn a_full_uplink_that_keeps_nothing_costs_the_guest_its_frames() {
    let mut world = World::new();
    world.wan.uplink.set_room(10);
    for number in 0..100 {
        world.wan.guest.send(&datagram(number), Offload::default());
    }
    world.run();
    assert_eq!(world.wan.guest.unreceived(), 0);
    assert_eq!(world.wan.uplink.take().len(), 10);
    assert_eq!(world.counters().dropped_for(DropReason::EgressFull), 90);
    world.assert_conserved();
}
