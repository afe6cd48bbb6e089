//! Connections that move to the fast path, back from it, and survive.

use std::time::Duration;

use serde_json::Value;

use crate::network::{CLIENT, Connection, GUEST_WAN, Network, SERVER, SOON, endpoint, number};
use crate::support::guest::Counters;
use crate::support::tcp::Direction;
use crate::support::udp::{Reply, UdpReceiver, UdpSender};
use crate::support::{at, eventually};

/// How long a transfer may take on a busy machine.
const TRANSFER: Duration = Duration::from_secs(90);
/// Paced slowly enough for the guest, fast enough that thousands of packets pass while
/// the test looks.
const RATE: u64 = 6_000_000;
/// What passes around the guest while its counters are watched.
const WATCHED: u64 = 6_000_000;
/// Frames that a vNIC of the guest may see meanwhile: ARP and neighbour discovery.
const OTHER_FRAMES: u64 = 20;

/// Both vNICs' counters inside the guest.
fn counters(network: &mut Network) -> [Counters; 2] {
    ["eth0", "eth1"].map(|interface| network.guest.counters(interface))
}

/// Says that the guest has seen nothing of `connection` while `pass` let packets pass.
pub fn guest_stands_still(
    network: &mut Network,
    connection: &Connection,
    mut pass: impl FnMut(&mut Network),
) {
    let seen = network.seen_by_guest(connection);
    let before = counters(network);
    assert!(seen.is_some(), "the guest has forgotten {connection:?}");
    pass(network);
    let after = counters(network);
    assert_eq!(network.seen_by_guest(connection), seen);
    for (before, after) in before.iter().zip(&after) {
        let frames = after.rx_packets - before.rx_packets + after.tx_packets - before.tx_packets;
        assert!(frames <= OTHER_FRAMES, "{before:?} {after:?}");
    }
}

/// A transfer through the guest is offloaded; the guest's counters stand still while it
/// goes on; its bytes are right; its FIN reaches the guest, whose entry ends.
pub fn a_file_goes_around_the_guest(network: &mut Network, server: &str, direction: Direction) {
    let (bytes, fins) = (160_000_000, network.count("closed", "fin"));
    let sender = match direction {
        Direction::Upload => "lan",
        Direction::Download => "wan",
    };
    let [packets, frames] = network.packets_and_frames(sender);
    let mut transfer = network.transfer(server, direction, bytes, RATE);
    let connection = network.tracked("tcp", transfer.to);
    network.offer("file", &connection, &[]);
    network.wait_active("file");

    guest_stands_still(network, &connection, |_| {
        let wanted = transfer.running.moved() + WATCHED;
        transfer.running.wait_moved(wanted, TRANSFER);
    });
    transfer.running.unpace();
    let report = transfer.running.wait(TRANSFER);

    assert_eq!(report.client, connection.from);
    assert_eq!(report.seen_by_server, connection.source_after_nat);
    if report.client.is_ipv4() {
        assert_eq!(report.seen_by_server.ip().to_string(), GUEST_WAN);
    } else {
        assert_eq!(report.seen_by_server, report.client);
    }
    let [later_packets, later_frames] = network.packets_and_frames(sender);
    let (packets, frames) = (later_packets - packets, later_frames - frames);
    assert!(
        packets > bytes / 2 / 1_500,
        "{packets} went around the guest"
    );
    // Around the guest trains stay whole, whatever the guest itself could take.
    assert!(frames < packets / 2, "{frames} frames, {packets} packets");
    eventually(SOON, "the FIN ends the session", || {
        network.count("closed", "fin") == fins + 1
    });
    eventually(SOON, "the FIN ends the guest's conntrack entry", || {
        network.seen_by_guest(&connection).is_none()
    });
}

/// A session is withdrawn in the middle of a transfer: the guest carries it on to its end.
pub fn a_withdrawn_connection_goes_on(network: &mut Network, direction: Direction) {
    let mut transfer = network.transfer(SERVER, direction, 100_000_000, RATE);
    let connection = network.tracked("tcp", transfer.to);
    network.offer("back", &connection, &[]);
    network.wait_active("back");
    let moved = transfer.running.moved();
    transfer.running.wait_moved(moved + WATCHED, TRANSFER);

    let seen = network.seen_by_guest(&connection).unwrap();
    let answer = network.cli(&["session", "del", "back"]);
    assert_eq!(answer["result"][0]["result"], "withdrawn", "{answer}");
    let moved = transfer.running.moved();
    transfer.running.wait_moved(moved + WATCHED, TRANSFER);
    let later = network.seen_by_guest(&connection).unwrap();
    assert!(
        later[1] + later[3] > seen[1] + seen[3] + WATCHED / 2,
        "{seen:?} {later:?}"
    );

    transfer.running.unpace();
    transfer.running.wait(TRANSFER);
    eventually(SOON, "the guest's conntrack entry ends", || {
        network.seen_by_guest(&connection).is_none()
    });
}

/// A paced stream and its echoes, from the guest's path to the fast one.
pub fn udp_goes_around_the_guest(network: &mut Network) {
    let to = at(&endpoint(SERVER, 5_300));
    let receiver = UdpReceiver::start(&network.server, to, Reply::Echo);
    let from = at(&endpoint(CLIENT, 41_000));
    let gap = Duration::from_millis(2);
    let mut sender = UdpSender::start(&network.client, from, to, 300, gap);
    let connection = network.tracked("udp", to);
    network.offer("stream", &connection, &[]);
    network.wait_active("stream");
    guest_stands_still(network, &connection, |_| {
        let wanted = sender.sent() + 1_000;
        eventually(SOON, "1,000 more are sent", || sender.sent() >= wanted);
    });
    let sent = sender.stop();
    eventually(SOON, "every datagram is echoed", || {
        sender.replies().lost(sent) == 0
    });
    for tally in [receiver.tally(), sender.replies()] {
        let wrong = (tally.duplicated, tally.reordered, tally.corrupted);
        assert_eq!(wrong, (0, 0, 0), "duplicated, reordered, corrupted");
    }
    let sources = receiver.tally().sources;
    assert_eq!(Vec::from_iter(sources), [connection.source_after_nat]);
    assert_eq!(connection.source_after_nat.ip().to_string(), GUEST_WAN);
    network.cli(&["session", "del", "stream"]);
}

/// One stream goes around the guest, one through it, while the guest reboots.
pub fn vnics_come_back_after_a_reboot(network: &mut Network) {
    network.pin_neighbours();
    let gap = Duration::from_millis(5);
    let streams = [("around", 5_401, 41_001), ("through", 5_402, 41_002)];
    let [(echo_around, mut around), (_echo_through, mut through)] =
        streams.map(|(_, server, client)| {
            let to = at(&endpoint(SERVER, server));
            let receiver = UdpReceiver::start(&network.server, to, Reply::Echo);
            let from = at(&endpoint(CLIENT, client));
            let sender = UdpSender::start(&network.client, from, to, 200, gap);
            (receiver, sender)
        });
    let connection = network.tracked("udp", echo_around.address());
    network.offer("around", &connection, &[]);
    network.wait_active("around");
    let before = through.replies().received();
    eventually(SOON, "the guest carries the other stream", || {
        through.replies().received() > before + 20
    });

    network.guest.reboot();
    assert!(all_rings_run(&network.cli(&["show", "ports"])));
    let before = through.replies().received();
    eventually(SOON, "the guest carries the stream again", || {
        through.replies().received() > before + 200
    });
    network.wait_forwarding();

    // The rebooted guest's connections can be offloaded again.
    let again = network.tracked("udp", at(&endpoint(SERVER, 5_402)));
    network.offer("through", &again, &[]);
    network.wait_active("through");
    guest_stands_still(network, &again, |_| {
        let wanted = through.replies().received() + 200;
        eventually(SOON, "200 more are echoed", || {
            through.replies().received() >= wanted
        });
    });

    // What went around the guest has not felt any of it.
    let sent = around.stop();
    eventually(SOON, "every datagram around the guest is echoed", || {
        around.replies().lost(sent) == 0
    });
    through.stop();
    network.cli(&["session", "del", "--all"]);
}

/// Streams through the guest and around it use all queue pairs that it has, and arrive in order.
pub fn each_queue_pair_moves_frames(network: &mut Network, pairs: usize) {
    // A processor that came too late at boot had none set aside.
    for interface in ["eth0", "eth1"] {
        network
            .guest
            .run(&format!("ethtool -L {interface} combined {pairs}"));
        let said = network.guest.succeed(&format!("ethtool -l {interface}"));
        let now = said.rsplit("Combined:").next().unwrap_or_default();
        assert_eq!(now.trim(), pairs.to_string(), "{said}");
    }
    let to = at(&endpoint(SERVER, 5_500));
    let receiver = UdpReceiver::start(&network.server, to, Reply::Echo);
    let gap = Duration::from_millis(10);
    let senders: Vec<_> = (0..8 * pairs as u16)
        .map(|index| {
            let from = at(&endpoint(CLIENT, 42_000 + index));
            UdpSender::start(&network.client, from, to, 200, gap)
        })
        .collect();
    eventually(SOON, "every queue pair moves frames both ways", || {
        let ports = network.cli(&["show", "ports"]);
        ports["vnic"].as_array().unwrap().iter().all(|vnic| {
            let queues = vnic["guest"]["queue"].as_array().unwrap();
            let moved = |queue: &Value, way: &str| number(&queue[way]) > 0;
            let used = |queue| moved(queue, "rx-frames") && moved(queue, "tx-frames");
            queues.len() == pairs && queues.iter().all(used)
        })
    });
    for mut sender in senders {
        let sent = sender.stop();
        eventually(SOON, "every datagram is echoed", || {
            sender.replies().lost(sent) == 0
        });
        assert_eq!(sender.replies().reordered, 0);
    }
    drop(receiver);
}

fn all_rings_run(ports: &Value) -> bool {
    let vnics = ports["vnic"].as_array().unwrap();
    let running = |vnic: &Value| {
        let guest = &vnic["guest"];
        let queues = guest["queue"].as_array().unwrap();
        guest["connected"] == true && queues.iter().all(|queue| queue["running"] == true)
    };
    vnics.len() == 2 && vnics.iter().all(running)
}
