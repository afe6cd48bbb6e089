//! Hits, misses, and what the guest must see.

use super::world::*;
use crate::flow::{CloseCode, Outcome};
use crate::packet::{Checksum, DropReason, MacAddr, Offload, PeerOffloads, PuntReason};

fn none() -> Offload {
    Offload::default()
}

#[test]
fn a_miss_reaches_the_guest_unchanged_and_the_guests_frame_its_uplink() {
    let mut world = World::new();
    let frame = datagram(1);
    world.lan.uplink.send(&frame, none());
    world.run();
    assert_eq!(world.lan.guest.take()[0].data, frame);
    let arp = [&[0xff; 6][..], &SERVER_MAC.0, &[8, 6], &[0; 28]].concat();
    world.wan.guest.send(&arp, none());
    world.run();
    assert_eq!(world.wan.uplink.take()[0].data, arp);
    assert_eq!(world.counters().punted_for(PuntReason::Miss), 1);
    world.assert_conserved();
}

#[test]
fn a_vouched_session_goes_around_the_guest_both_ways_translated() {
    let mut world = World::new();
    assert!(matches!(
        world.offload(vouched("s", UDP)),
        Outcome::Offloaded(_)
    ));
    world.lan.uplink.send(&datagram(7), none());
    let answer = udp((SERVER_MAC, WAN_MAC), SERVER, OUTSIDE, 60, b"back");
    world.wan.uplink.send(&answer, none());
    world.run();
    let out = world.wan.uplink.take();
    assert_eq!(
        seen(&out[0].data),
        (OUTSIDE, SERVER, 63, 7u32.to_be_bytes().to_vec())
    );
    assert_eq!(macs(&out[0].data), (SERVER_MAC, WAN_MAC));
    let back = world.lan.uplink.take();
    assert_eq!(seen(&back[0].data), (SERVER, CLIENT, 59, b"back".to_vec()));
    assert_eq!(macs(&back[0].data), (CLIENT_MAC, LAN_MAC));
    assert!(world.lan.guest.take().is_empty() && world.wan.guest.take().is_empty());
    assert_eq!(world.counters().forwarded.packets, 2);
    world.assert_conserved();
}

#[test]
fn a_frame_to_another_mac_is_never_forwarded() {
    let mut world = World::new();
    world.offload(vouched("s", UDP));
    let mut frame = datagram(1);
    frame[5] ^= 0x40;
    world.lan.uplink.send(&frame, none());
    world.run();
    assert_eq!(world.lan.guest.take().len(), 1);
    assert_eq!(world.counters().punted_for(PuntReason::OtherMac), 1);
    world.assert_conserved();
}

#[test]
fn a_declared_mac_matches_and_the_vnics_own_then_does_not() {
    let vrrp = MacAddr([0, 0, 0x5e, 0, 1, 9]);
    let mut world = World::new();
    let mut request = vouched("s", UDP);
    request.original.as_mut().unwrap().ingress_mac = Some(vrrp);
    assert!(matches!(world.offload(request), Outcome::Offloaded(_)));
    let frame = udp((CLIENT_MAC, vrrp), CLIENT, SERVER, 64, b"to the VRRP MAC");
    world.lan.uplink.send(&frame, none());
    world.lan.uplink.send(&datagram(1), none());
    world.run();
    assert_eq!(world.wan.uplink.take().len(), 1);
    assert_eq!(world.lan.guest.take().len(), 1);
    world.assert_conserved();
}

#[test]
fn an_expiring_ttl_and_a_packet_over_the_mtu_go_to_the_guest_and_the_session_stays() {
    let mut world = World::new();
    world.offload(vouched("s", UDP));
    let expiring = udp((CLIENT_MAC, LAN_MAC), CLIENT, SERVER, 1, b"x");
    let big = udp((CLIENT_MAC, LAN_MAC), CLIENT, SERVER, 64, &[0; 1473]);
    let fits = udp((CLIENT_MAC, LAN_MAC), CLIENT, SERVER, 64, &[0; 1472]);
    for frame in [&expiring, &big, &fits] {
        world.lan.uplink.send(frame, none());
    }
    world.run();
    let counters = world.counters();
    assert_eq!(counters.punted_for(PuntReason::TtlExpiring), 1);
    assert_eq!(counters.punted_for(PuntReason::TooBig), 1);
    assert_eq!(world.wan.uplink.take().len(), 1);
    world.assert_conserved();
}

#[test]
fn fin_rst_and_syn_close_the_session_and_both_directions_punt_from_then_on() {
    let cases = [
        (PuntReason::TcpFin, CloseCode::Fin),
        (PuntReason::TcpRst, CloseCode::Rst),
        (PuntReason::TcpSyn, CloseCode::Reopened),
    ];
    for (reason, code) in cases {
        let mut world = World::new();
        world.offload(vouched("s", TCP));
        world
            .lan
            .uplink
            .send(&segment(1, |b| b.ack(5), b"data"), none());
        world.run();
        assert_eq!(world.wan.uplink.take().len(), 1);
        let last = match reason {
            PuntReason::TcpFin => segment(5, |b| b.fin().ack(5), b""),
            PuntReason::TcpRst => segment(5, |b| b.rst(), b""),
            _ => segment(5, |b| b.syn(), b""),
        };
        world.lan.uplink.send(&last, none());
        world
            .lan
            .uplink
            .send(&segment(6, |b| b.ack(6), b"after"), none());
        world.run();
        assert_eq!(world.lan.guest.take().len(), 2, "{reason:?}");
        assert_eq!(world.counters().punted_for(reason), 1);
        let closed: Vec<_> = std::iter::from_fn(|| world.book.take_closed()).collect();
        assert_eq!(closed.len(), 1);
        assert_eq!(closed[0].code, code);
        assert!(world.wan.uplink.take().is_empty());
        world.assert_conserved();
    }
}

#[test]
fn a_syn_from_the_guest_on_a_sessions_tuple_closes_the_old_session() {
    let mut world = World::new();
    world.offload(vouched("s", TCP));
    world
        .lan
        .uplink
        .send(&segment(1, |b| b.ack(5), b"data"), none());
    world.run();
    world.wan.uplink.take();
    // A client that reuses the port: its SYN went to the guest by another way.
    let mut syn = world_syn();
    syn[..6].copy_from_slice(&SERVER_MAC.0);
    world.wan.guest.send(&syn, none());
    world.run();
    assert_eq!(world.wan.uplink.take().len(), 1);
    let closed: Vec<_> = std::iter::from_fn(|| world.book.take_closed()).collect();
    assert_eq!(closed[0].code, CloseCode::Reopened);
    world.assert_conserved();
}

fn world_syn() -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(WAN_MAC.0, SERVER_MAC.0)
        .ipv4(OUTSIDE.0.octets(), SERVER.0.octets(), 63)
        .tcp(OUTSIDE.1, SERVER.1, 9, 512)
        .syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, b"").unwrap();
    frame
}

#[test]
fn order_within_a_flow_survives_a_miss_in_the_middle_of_a_burst() {
    let mut world = World::new();
    world.offload(vouched("s", UDP));
    for number in 0..60 {
        let frame = if number % 7 == 3 {
            udp(
                (CLIENT_MAC, LAN_MAC),
                (CLIENT.0, 1),
                SERVER,
                64,
                &[number as u8],
            )
        } else {
            datagram(number)
        };
        world.lan.uplink.send(&frame, none());
    }
    world.run();
    let payloads = |frames: Vec<crate::port::testing::Loose>| -> Vec<u8> {
        frames
            .iter()
            .map(|f| *seen(&f.data).3.last().unwrap())
            .collect()
    };
    let hits = payloads(world.wan.uplink.take());
    let misses = payloads(world.lan.guest.take());
    assert!(hits.is_sorted() && misses.is_sorted());
    assert_eq!((hits.len(), misses.len()), (51, 9));
    world.assert_conserved();
}

#[test]
fn a_full_or_absent_guest_costs_punts_only_and_hits_go_on() {
    let mut world = World::new();
    world.offload(vouched("s", UDP));
    let miss = udp((CLIENT_MAC, LAN_MAC), (CLIENT.0, 1), SERVER, 64, b"miss");
    world.lan.guest.set_room(1);
    for _ in 0..3 {
        world.lan.uplink.send(&miss, none());
        world.lan.uplink.send(&datagram(1), none());
    }
    world.run();
    world.lan.guest.set_running(false);
    world.lan.second.1.set_running(false);
    world.lan.uplink.send(&miss, none());
    world.lan.uplink.send(&datagram(1), none());
    world.run();
    assert_eq!(world.wan.uplink.take().len(), 4);
    let counters = world.counters();
    assert_eq!(counters.dropped_for(DropReason::GuestRingFull), 2);
    assert_eq!(counters.dropped_for(DropReason::GuestAbsent), 1);
    world.assert_conserved();
}

#[test]
fn a_full_egress_drops_and_an_absent_one_punts() {
    let mut world = World::new();
    world.offload(vouched("s", UDP));
    world.wan.uplink.set_room(1);
    world.lan.uplink.send(&datagram(1), none());
    world.lan.uplink.send(&datagram(2), none());
    world.run();
    assert_eq!(world.counters().dropped_for(DropReason::EgressFull), 1);
    world.wan.uplink.set_running(false);
    world.wan.second.0.set_running(false);
    world.lan.uplink.send(&datagram(3), none());
    world.run();
    assert_eq!(world.counters().punted_for(PuntReason::EgressGone), 1);
    assert_eq!(world.lan.guest.take().len(), 1);
    world.assert_conserved();
}

#[test]
fn a_frame_that_fits_no_buffer_is_dropped_alone() {
    let mut world = World::new();
    world.lan.guest.set_frame_max(100);
    let long = udp((CLIENT_MAC, LAN_MAC), CLIENT, SERVER, 64, &[0; 200]);
    for frame in [&datagram(1), &long, &datagram(2)] {
        world.lan.uplink.send(frame, none());
    }
    world.run();
    assert_eq!(world.lan.guest.take().len(), 2);
    assert_eq!(
        world
            .counters()
            .dropped_for(DropReason::GuestBufferTooSmall),
        1
    );
    world.assert_conserved();
}

#[test]
fn a_receiver_without_checksum_offload_gets_complete_checksums_in_order() {
    let mut world = World::with(PeerOffloads::default(), Default::default());
    world.offload(vouched("s", UDP));
    for number in 0..6u32 {
        let mut frame = datagram(number);
        let mut offload = none();
        if number % 2 == 0 {
            // As a sender with checksum offload leaves it: the pseudo-header's sum alone.
            let sum: u32 = frame[26..34]
                .chunks(2)
                .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
                .sum::<u32>()
                + 17
                + 12;
            let folded = (sum & 0xffff) + (sum >> 16);
            let folded = (folded & 0xffff) + (folded >> 16);
            frame[40..42].copy_from_slice(&(folded as u16).to_be_bytes());
            offload.checksum = Checksum::Partial {
                start: 34,
                offset: 6,
            };
        }
        world.lan.uplink.send(&frame, offload);
    }
    world.run();
    let out = world.wan.uplink.take();
    assert_eq!(out.len(), 6);
    for (number, frame) in out.iter().enumerate() {
        assert_eq!(frame.offload, none());
        assert_eq!(seen(&frame.data).3, (number as u32).to_be_bytes());
    }
    world.assert_conserved();
}
