//! A real router: Linux under QEMU, its two vNICs served by `shunt backend`, a client and
//! a server in namespaces of their own on either side of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may be as blunt as tests"
)]

mod exceptions;
mod network;
mod serial;
mod streams;
#[path = "../support/mod.rs"]
mod support;

use network::{CLIENT_6, GUEST_WAN, Network, SERVER, SERVER_6};
use support::eventually_some;
use support::frames::Capture;
use support::tcp::Direction;

/// One boot serves all steps; each says what is promised.
#[test]
fn a_linux_router_keeps_working_while_its_connections_go_around_it() {
    let mut network = Network::start(|guest| guest);
    assert_eq!(network.guest_offloads(), (true, true));
    step("ping goes through the guest's NAT", || {
        pings_are_translated(&network);
    });
    step("UDP is handed over without loss or reordering", || {
        streams::udp_goes_around_the_guest(&mut network);
    });
    step("an uploaded file goes around the guest, TSO on", || {
        streams::a_file_goes_around_the_guest(&mut network, SERVER, Direction::Upload);
    });
    step("a downloaded file goes around the guest, TSO on", || {
        streams::a_file_goes_around_the_guest(&mut network, SERVER, Direction::Download);
    });
    step("IPv6 without NAT goes around the guest", || {
        streams::a_file_goes_around_the_guest(&mut network, SERVER_6, Direction::Upload);
    });
    step("withdraw in mid-transfer loses no connection", || {
        streams::a_withdrawn_connection_goes_on(&mut network, Direction::Upload);
        streams::a_withdrawn_connection_goes_on(&mut network, Direction::Download);
    });
    step("what the guest must see, it sees", || {
        exceptions::the_guest_answers_for_an_offloaded_session(&mut network);
    });
    step("the guest reboots in mid-traffic", || {
        streams::vnics_come_back_after_a_reboot(&mut network);
    });
}

/// The same guest without TSO, USO and GRO.
#[test]
fn files_arrive_intact_around_a_guest_without_segmentation_offload() {
    let mut network = Network::start(|guest| guest.flag("--no-tso"));
    assert_eq!(network.guest_offloads(), (true, false));
    for direction in [Direction::Upload, Direction::Download] {
        streams::a_file_goes_around_the_guest(&mut network, SERVER, direction);
    }
}

/// A guest of two processors, each vNIC with a queue pair for each, on two workers.
#[test]
fn no_flow_feels_that_two_workers_serve_a_vnic_s_two_queue_pairs() {
    let mut network = Network::with_queue_pairs(2, |guest| guest);
    step("every queue pair moves frames, each flow in order", || {
        streams::each_queue_pair_moves_frames(&mut network, 2);
    });
    step("UDP is handed over without loss or reordering", || {
        streams::udp_goes_around_the_guest(&mut network);
    });
    for direction in [Direction::Upload, Direction::Download] {
        step("a file goes around the guest", || {
            streams::a_file_goes_around_the_guest(&mut network, SERVER, direction);
        });
    }
}

/// Names what a failure belongs to, and how long it took.
fn step(promise: &str, body: impl FnOnce()) {
    eprintln!("step: {promise}");
    let started = support::now();
    body();
    eprintln!("  ok, {:.1} s", started.elapsed().as_secs_f32());
}

/// The echo requests that reach the server come from the guest's address.
fn pings_are_translated(network: &Network) {
    let capture = Capture::start(&network.server, "wan");
    assert!(network.client.pings(SERVER), "no answer");
    // Addresses may still be tentative (RFC 4862 section 5.4).
    let ping = ["ping", "-n", "-c", "1", "-W", "1", "-I", CLIENT_6, SERVER_6];
    support::eventually(network::SOON, "an answer over IPv6", || {
        network.client.exec(&ping).status.success()
    });
    let source = eventually_some(network::SOON, "an echo request arrives", || {
        capture.frames().iter().find_map(|frame| {
            let echo = exceptions::Icmp::of(frame)?;
            (!frame.outgoing && echo.kind == 8).then_some(echo.source)
        })
    });
    assert_eq!(source.to_string(), GUEST_WAN);
}
