//! The test support keeps its own promises: what the other tests stand on.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may be as blunt as tests"
)]

mod support;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use support::frames::{Capture, RawSocket};
use support::guest::Guest;
use support::netns::Netns;
use support::tcp::{Direction, TcpPlan, TcpTransfer};
use support::testpmd::Testpmd;
use support::udp::{Reply, UdpReceiver, UdpSender};
use support::{Dir, at, eventually, eventually_some, unique};

const SOON: Duration = Duration::from_secs(20);

/// Two namespaces joined by a veth: `eth0` in each, 10.9.0.1 and 10.9.0.2.
fn joined() -> (Netns, Netns) {
    let (near, far) = (Netns::new("near"), Netns::new("far"));
    near.veth("eth0", &far, "eth0");
    near.address("eth0", "10.9.0.1/24");
    far.address("eth0", "10.9.0.2/24");
    (near, far)
}

#[test]
fn names_are_unique_and_short_enough_for_interfaces() {
    let names: std::collections::HashSet<String> = (0..1_000).map(|_| unique("abcde")).collect();
    assert_eq!(names.len(), 1_000);
    assert!(names.iter().all(|name| name.len() <= 15));
}

#[test]
fn a_dropped_namespace_is_gone() {
    let netns = Netns::new("ns");
    let path = format!("/run/netns/{}", netns.name());
    assert!(std::path::Path::new(&path).exists());
    assert!(netns.ip("link show lo").contains("UP"));
    drop(netns);
    assert!(!std::path::Path::new(&path).exists());
}

#[test]
fn a_dropped_process_is_dead() {
    let (netns, dir) = (Netns::new("ns"), Dir::new());
    let process = netns.spawn(&["sleep", "1000"], &dir.file("log"));
    let path = format!("/proc/{}", process.id());
    assert!(std::path::Path::new(&path).exists());
    drop(process);
    assert!(!std::path::Path::new(&path).exists());
}

#[test]
fn a_udp_stream_and_its_echo_are_counted_without_loss() {
    let (near, far) = joined();
    let receiver = UdpReceiver::start(&far, at("10.9.0.2:0"), Reply::Echo);
    let gap = Duration::from_micros(500);
    let mut sender = UdpSender::start(&near, at("10.9.0.1:0"), receiver.address(), 200, gap);
    eventually(SOON, "200 datagrams are sent", || sender.sent() >= 200);
    let sent = sender.stop();
    eventually(SOON, "all echoes come", || sender.replies().lost(sent) == 0);
    let tally = receiver.tally();
    assert_eq!((tally.received(), tally.lost(sent)), (sent, 0));
    assert_eq!(
        (tally.duplicated, tally.reordered, tally.corrupted),
        (0, 0, 0)
    );
    assert_eq!(
        tally.sources.iter().next().unwrap().ip(),
        at("10.9.0.1:0").ip()
    );
}

#[test]
fn a_tcp_transfer_moves_every_byte_both_ways() {
    let (near, far) = joined();
    for direction in [Direction::Upload, Direction::Download] {
        let (listen, connect) = (at("10.9.0.2:0"), at("10.9.0.2:0"));
        let plan = TcpPlan {
            listen,
            connect,
            direction,
            bytes: 3_000_001,
            rate: None,
        };
        let mut transfer = TcpTransfer::start(&near, &far, plan);
        transfer.wait_moved(100_000, SOON);
        let report = transfer.wait(SOON);
        assert_eq!(report.client, report.seen_by_server);
    }
}

#[test]
fn a_raw_frame_is_captured_as_it_was_sent_with_its_vlan_tag() {
    let (near, far) = joined();
    let capture = Capture::start(&far, "eth0");
    let socket = RawSocket::open(&near, "eth0");
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0, 1, 0x81, 0x00, 0x00, 0x2a, 0x88, 0xb5]);
    frame.extend([0x5a; 50]);
    socket.send(&frame);
    let seen = capture.wait_for(SOON, "the frame arrives", |seen| seen.bytes == frame);
    assert!(!seen.outgoing && !seen.partial_checksum);
}

#[test]
fn the_guest_boots_runs_commands_and_reboots() {
    let dir = Dir::new();
    let mut guest = Guest::build().start(&dir.file("guest"));
    guest.wait_ready();
    assert_eq!(
        guest.run("echo out; echo err >&2; exit 7"),
        ("out\nerr\n".to_owned(), 7)
    );
    assert_eq!(guest.run_for("sleep 60", Duration::from_secs(1)).1, 137);
    let rules = guest.succeed("nft list ruleset && sysctl -n net.ipv4.ip_forward");
    assert!(
        rules.contains("ct state") && rules.ends_with("1\n"),
        "{rules}"
    );
    reaches_the_agents_helper(&mut guest);
    let boot = guest.succeed("cat /proc/sys/kernel/random/boot_id");
    guest.reboot();
    assert_ne!(guest.succeed("cat /proc/sys/kernel/random/boot_id"), boot);
}

/// QEMU waits for whoever listens behind the offload port, before and after the boot.
fn reaches_the_agents_helper(guest: &mut Guest) {
    let listener = UnixListener::bind(guest.offload_socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (mut stream, _) = eventually_some(SOON, "QEMU connects", || listener.accept().ok());
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    guest.succeed("echo hello >/dev/virtio-ports/org.shunt.offload.0");
    let mut received = [0; 6];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"hello\n");
}

/// QEMU's vhost-user frontend with MSI-X and several queues, and a real backend: what
/// QEMU 7.2 could not do.
#[test]
fn two_vhost_user_vnics_of_the_guest_reach_each_other_through_testpmd() {
    let dir = Dir::new();
    let (lan, wan) = (dir.file("lan.sock"), dir.file("wan.sock"));
    let mut backend = Testpmd::build("io")
        .vhost(&lan, "queues=2")
        .vhost(&wan, "queues=2")
        .argument("--rxq=2")
        .argument("--txq=2")
        .start(&dir);
    let mut guest = Guest::build()
        .argument("--cpus", "2")
        .vnic_with(&format!("socket={},queues=2", lan.display()))
        .vnic_with(&format!("socket={},queues=2", wan.display()))
        .address("eth0", "10.8.1.1/24")
        .address("eth1", "10.8.2.1/24")
        .masquerade("eth1")
        .start(&dir.file("guest"));
    guest.wait_ready();
    // Not before: it polls, and the guest boots on the same two cores.
    backend.forward();
    // What leaves eth0 comes in at eth1: an unanswered ARP request is enough.
    let before = guest.counters("eth1");
    let interrupts = guest.succeed("grep -c virtio.*input /proc/interrupts");
    assert!(
        interrupts.trim().parse::<u32>().unwrap() >= 4,
        "no MSI-X: {interrupts}"
    );
    guest.run("ping -c 3 -W 1 10.8.1.77");
    let after = eventually_some(SOON, "eth1 receives what eth0 sent", || {
        let counters = guest.counters("eth1");
        (counters.rx_packets >= before.rx_packets + 3).then_some(counters)
    });
    assert!(after.rx_bytes > before.rx_bytes);
    let stats = backend.stats();
    assert_eq!(stats.len(), 2);
    assert!(
        stats[0].rx_packets >= 3 && stats[1].tx_packets >= 3,
        "{stats:?}"
    );
}

/// A frontend and a backend of the same kind: what flowgen sends comes back.
#[test]
fn testpmd_as_frontend_sends_and_gets_back_what_a_vhost_backend_loops() {
    let dir = Dir::new();
    let socket = dir.file("vhost.sock");
    let mut backend = Testpmd::build("io").vhost(&socket, "queues=1").start(&dir);
    backend.forward();
    let mut frontend = Testpmd::build("flowgen")
        .virtio_user(
            &socket,
            "queues=1,server=0,mrg_rxbuf=1,in_order=0,packed_vq=0",
        )
        .argument("--flowgen-flows=16")
        .start(&dir);
    frontend.forward();
    eventually(SOON, "1,000 packets come back", || {
        frontend.stats()[0].rx_packets >= 1_000
    });
    frontend.stop();
    let stats = frontend.stats()[0];
    assert!(stats.tx_packets >= stats.rx_packets && stats.rx_bytes >= 60 * stats.rx_packets);
    frontend.kill9();
    eventually(SOON, "the backend sees its frontend go", || {
        backend
            .command("show port info 0")
            .contains("Link status: down")
    });
}
