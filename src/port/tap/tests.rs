//! Real taps in namespaces of their own; every test says what is promised.

mod world;

use std::sync::Arc;

use super::super::{Armed, Device, Port};
use super::{TapConfig, TapError, open};
use crate::packet::{Burst, Checksum, Frame, Gso, GsoKind, Offload, PeerOffloads};
use world::{Bell, Netns, frame, ipv4, is_root, ones_sum, receive, tcp, udp};

const ALL: PeerOffloads = PeerOffloads {
    checksum: true,
    tso4: true,
    tso6: true,
    ecn: true,
    uso: true,
};

/// A single-queue tap, created, and attached to a bell.
fn tap(netns: &Netns) -> (Arc<dyn Device>, Box<dyn Port>, Arc<Bell>) {
    let (device, mut ports) = open(&netns.config(1)).unwrap();
    let mut port = ports.remove(0);
    let bell = Bell::new();
    port.attach(bell.poller()).unwrap();
    (device, port, bell)
}

fn plain(data: &[u8]) -> Frame<'_> {
    Frame {
        data,
        offload: Offload::default(),
    }
}

fn refusal(config: &TapConfig) -> TapError {
    match open(config) {
        Err(error) => error,
        Ok(_) => panic!("{config:?} was opened"),
    }
}

#[test]
fn frames_from_the_host_arrive_whole_and_in_order() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, mut port, bell) = tap(&netns);
    let host = netns.host();
    let sent: Vec<_> = (1..=100).map(|n| frame(n, 60 + 14 * n as usize)).collect();
    sent.iter().for_each(|frame| host.send(frame));
    let got = receive(&mut *port, &bell, 100);
    assert_eq!(got.len(), 100);
    for (sent, (data, offload)) in sent.iter().zip(&got) {
        assert_eq!(sent, data);
        assert_eq!(*offload, Offload::default());
    }
    let queue = &device.status().queues[0];
    assert_eq!((queue.rx_frames, queue.rx_discarded), (100, 0));
    let bytes: usize = sent.iter().map(Vec::len).sum();
    assert_eq!(queue.rx_bytes, bytes as u64);
}

#[test]
fn frames_to_the_host_arrive_and_a_bad_one_costs_only_itself() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, mut port, _bell) = tap(&netns);
    let host = netns.host();
    let (first, second) = (frame(1, 60), frame(2, 1514));
    let bad = Offload {
        checksum: Checksum::Partial {
            start: 60_000,
            offset: 16,
        },
        ..Offload::default()
    };
    let lying = Frame {
        data: &first,
        offload: bad,
    };
    let report = port.transmit(&[plain(&first), plain(&[2; 10]), lying, plain(&second)]);
    assert_eq!((report.consumed, report.too_large), (4, 0));
    assert_eq!(host.recv_starting(&first[..14]), first);
    assert_eq!(host.recv_starting(&first[..14]), second);
    let queue = &device.status().queues[0];
    assert_eq!((queue.tx_frames, queue.tx_discarded), (2, 2));
    assert_eq!(queue.tx_bytes, 60 + 1514);
}

#[test]
fn the_host_takes_a_partial_checksum() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (_device, mut port, _bell) = tap(&netns);
    let socket = netns.udp();
    let data = ipv4(netns.mac(), 17, &udp(b"unfinished"), 6);
    let offload = Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 6,
        },
        ..Offload::default()
    };
    let wrong = plain(&data);
    let right = Frame {
        data: &data,
        offload,
    };
    assert_eq!(port.transmit(&[wrong, right]).consumed, 2);
    let mut buffer = [0; 100];
    let len = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"unfinished");
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut buffer).is_err());
}

#[test]
fn the_host_cuts_a_udp_train_where_it_knows_how() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (_device, mut port, _bell) = tap(&netns);
    let socket = netns.udp();
    if !port.peer().uso {
        eprintln!("skipped: this kernel has no USO");
        return;
    }
    let payload: Vec<u8> = (0..3000u32).map(|n| (n / 1000) as u8).collect();
    let data = ipv4(netns.mac(), 17, &udp(&payload), 6);
    let offload = Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 6,
        },
        gso: Gso {
            kind: GsoKind::UdpL4,
            size: 1000,
            ecn: false,
        },
    };
    let train = Frame {
        data: &data,
        offload,
    };
    assert_eq!(port.transmit(&[train]).consumed, 1);
    let mut buffer = [9; 4000];
    for datagram in 0..3u8 {
        assert_eq!(socket.recv(&mut buffer).unwrap(), 1000);
        assert_eq!(buffer[..1000], [datagram; 1000]);
    }
}

/// What arrives of one TCP frame of 3000 bytes in segments of 1000.
fn receive_tcp_train(accepts: PeerOffloads, count: usize) -> Vec<(Vec<u8>, Offload)> {
    let netns = Netns::new();
    let (device, mut port, bell) = tap(&netns);
    device.set_far_side(accepts);
    let data = ipv4([2, 0, 0, 0, 0, 1], 6, &tcp(&[5; 3000]), 16);
    // NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 1000, csum_start 34, csum_offset 16.
    let header = [1, 1, 54, 0, 0xe8, 0x03, 34, 0, 16, 0];
    netns.host().send_with(header, &data);
    let got = receive(&mut *port, &bell, count);
    assert_eq!(
        got.iter().map(|(data, _)| data.len() - 54).sum::<usize>(),
        3000
    );
    got
}

#[test]
fn a_far_side_with_tso_gets_the_train_uncut() {
    if !is_root() {
        return;
    }
    let got = receive_tcp_train(ALL, 1);
    assert_eq!(got.len(), 1);
    let expected = Offload {
        checksum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        gso: Gso {
            kind: GsoKind::Tcp4,
            size: 1000,
            ecn: false,
        },
    };
    assert_eq!(got[0].1, expected);
}

#[test]
fn a_far_side_without_offloads_gets_finished_segments() {
    if !is_root() {
        return;
    }
    let got = receive_tcp_train(PeerOffloads::default(), 3);
    assert_eq!(got.len(), 3);
    for (data, offload) in got {
        assert_eq!(offload.gso.kind, GsoKind::None);
        assert!(!matches!(offload.checksum, Checksum::Partial { .. }));
        let pseudo = [&data[26..34], &[0, 6], &1020u16.to_be_bytes(), &data[34..]].concat();
        assert_eq!(ones_sum(&pseudo), 0xffff);
    }
}

#[test]
fn what_the_kernel_cannot_be_asked_for_alone_is_left_out() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, port, _bell) = tap(&netns);
    assert_eq!(device.status().features, [""; 0]);
    device.set_far_side(PeerOffloads {
        checksum: false,
        ..ALL
    });
    assert_eq!(device.status().features, [""; 0]);
    device.set_far_side(PeerOffloads {
        checksum: true,
        ecn: true,
        ..PeerOffloads::default()
    });
    assert_eq!(device.status().features, ["csum"]);
    device.set_far_side(ALL);
    let mut names = vec!["csum", "tso4", "tso6", "ecn"];
    names.extend(port.peer().uso.then_some("uso"));
    assert_eq!(device.status().features, names);
    device.set_far_side(PeerOffloads::default());
    assert_eq!(device.status().features, [""; 0]);
}

#[test]
fn a_drained_port_sleeps_and_the_next_frame_rings() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (_device, mut port, bell) = tap(&netns);
    let host = netns.host();
    let mut burst = Burst::new();
    assert_eq!(port.arm(), Armed::Ready, "nobody has looked yet");
    assert_eq!(port.receive(&mut burst), 0);
    while bell.rings(0) {}
    assert_eq!(port.arm(), Armed::Asleep);
    assert!(!bell.rings(0));
    for _ in 0..2 {
        host.send(&frame(1, 60));
        assert!(bell.rings(5000), "a new frame is a new edge");
    }
    port.disarm();
    assert_eq!(port.receive(&mut burst), 2);
}

#[test]
fn a_port_with_frames_left_does_not_sleep() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (_device, mut port, _bell) = tap(&netns);
    let host = netns.host();
    (0..65).for_each(|n| host.send(&frame(n, 60)));
    let mut burst = Burst::new();
    assert_eq!(port.receive(&mut burst), Burst::FRAMES_MAX);
    assert_eq!(port.arm(), Armed::Ready);
    burst.clear();
    assert_eq!(port.receive(&mut burst), 1);
    assert_eq!(port.arm(), Armed::Asleep);
}

#[test]
fn a_tap_is_made_in_the_namespace_and_the_caller_stays_in_its_own() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = own();
    let config = TapConfig {
        name: "shunt-placed".to_owned(),
        mtu: Some(1400),
        ..netns.config(1)
    };
    let opened = open(&config).unwrap();
    assert_eq!(own(), before);
    assert_eq!(super::link::lookup(&config.name).unwrap(), None);
    let link = netns.link(&config.name).unwrap();
    assert_eq!((link.up, link.mtu), (true, 1400));
    assert!(opened.0.status().connected);
    drop(opened);
    assert_eq!(netns.link(&config.name), None, "it ends with its ports");
}

#[test]
fn each_queue_is_a_port_and_all_reach_the_host() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, mut ports) = open(&netns.config(4)).unwrap();
    let tun = netns.link("tap0").unwrap().tun.unwrap();
    assert_eq!(
        (ports.len(), tun.queues_held, tun.multi_queue),
        (4, 4, true)
    );
    let host = netns.host();
    for (number, port) in (1..).zip(&mut ports) {
        let data = frame(number, 64);
        assert_eq!(port.transmit(&[plain(&data)]).consumed, 1);
        assert_eq!(host.recv_starting(&data), data);
    }
    let status = device.status();
    assert!(status.queues.iter().all(|queue| queue.tx_frames == 1));
    assert_eq!(status.queues[3].queue, 3);
}

#[test]
fn an_existing_tap_is_attached_and_keeps_its_state() {
    if !is_root() {
        return;
    }
    for (mode, queues) in [("", 1), ("multi_queue", 1), ("multi_queue", 2)] {
        let netns = Netns::new();
        netns.ip(&format!("tuntap add dev tap0 mode tap vnet_hdr {mode}"));
        netns.ip("link set tap0 mtu 1450");
        let config = TapConfig {
            mtu: Some(1300),
            ..netns.config(queues)
        };
        let opened = open(&config).unwrap();
        assert_eq!(opened.1.len(), usize::from(queues));
        assert!(!opened.1[0].is_running(), "it was down");
        let link = netns.link("tap0").unwrap();
        assert_eq!((link.up, link.mtu), (false, 1450));
        netns.ip("link set tap0 up");
        assert!(opened.1[0].is_running());
        drop(opened);
        assert!(netns.link("tap0").is_some(), "it is its maker's");
        assert!(open(&config).is_ok(), "and can be attached again");
    }
}

#[test]
fn a_single_queue_tap_refuses_two_queues_and_says_how_to_mend_it() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    netns.ip("tuntap add dev tap0 mode tap");
    let error = refusal(&netns.config(2));
    assert!(matches!(error, TapError::SingleQueue { queues: 2, .. }));
    let ns = &netns.0;
    let mend = format!(
        "`ip -n {ns} link del tap0 && ip -n {ns} tuntap add dev tap0 mode tap \
         user $(id -un) multi_queue vnet_hdr`"
    );
    assert!(error.to_string().contains(&mend), "{error}");
}

#[test]
fn a_device_of_another_kind_is_named() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    netns.ip("tuntap add dev tap0 mode tun");
    let error = refusal(&netns.config(1)).to_string();
    assert!(error.contains("a tun device"), "{error}");
    netns.ip("link del tap0");
    netns.ip("link add tap0 type veth peer name other");
    let error = refusal(&netns.config(1)).to_string();
    assert!(error.contains("a veth device"), "{error}");
    assert!(error.contains("link del tap0"), "{error}");
}

#[test]
fn a_tap_that_is_held_is_busy_with_one_queue_and_with_several() {
    if !is_root() {
        return;
    }
    for (first, second) in [(1, 1), (2, 2), (2, 1)] {
        let netns = Netns::new();
        let held = open(&netns.config(first)).unwrap();
        let error = refusal(&netns.config(second));
        assert!(matches!(error, TapError::Busy { .. }), "{error}");
        drop(held);
        assert!(open(&netns.config(second)).is_ok());
    }
}

#[test]
fn without_the_capability_the_error_names_the_mend() {
    if !is_root() {
        return;
    }
    let config = TapConfig {
        name: "shunt-denied".to_owned(),
        netns: None,
        queues: 2,
        mtu: None,
    };
    // Capabilities belong to the thread: the others keep theirs.
    let error = std::thread::spawn(move || {
        let header = [0x2008_0522u32, 0];
        let none = [0u32; 6];
        // SAFETY: header and data are of version 3's sizes, both alive.
        let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
        assert_eq!(done, 0);
        refusal(&config)
    })
    .join()
    .unwrap();
    let text = error.to_string();
    assert!(matches!(error, TapError::MayNotCreate { .. }), "{text}");
    assert!(text.contains("as root or with CAP_NET_ADMIN"), "{text}");
    let mend = "ip tuntap add dev shunt-denied mode tap user $(id -un) multi_queue vnet_hdr";
    assert!(text.contains(mend), "{text}");
}

#[test]
fn a_tap_set_down_discards_until_it_is_up_again() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, mut port, _bell) = tap(&netns);
    let data = frame(1, 60);
    let three = [plain(&data), plain(&data), plain(&data)];
    netns.ip("link set tap0 down");
    assert_eq!(port.transmit(&three).consumed, 3);
    assert!(!port.is_running());
    let status = device.status();
    assert!(!status.connected && !status.queues[0].running);
    assert_eq!(status.queues[0].tx_discarded, 3);
    netns.ip("link set tap0 up");
    assert!(port.is_running());
    assert_eq!(port.transmit(&three).consumed, 3);
    let queue = &device.status().queues[0];
    assert_eq!((queue.tx_frames, queue.tx_discarded), (3, 3));
    assert!(queue.running && queue.fault.is_none());
}

#[test]
fn a_removed_tap_stops_its_ports_for_good_and_says_so() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, mut port, bell) = tap(&netns);
    let mut burst = Burst::new();
    assert_eq!(port.receive(&mut burst), 0);
    while bell.rings(0) {}
    netns.ip("link del tap0");
    assert!(bell.rings(5000), "the poller tells of the end");
    assert_eq!(port.receive(&mut burst), 0);
    assert!(!port.is_running());
    assert_eq!(port.arm(), Armed::Asleep);
    assert_eq!(port.transmit(&[plain(&frame(1, 60))]).consumed, 0);
    let status = device.status();
    assert_eq!((status.connected, status.faults), (false, 1));
    assert!(
        status.queues[0]
            .fault
            .as_deref()
            .unwrap()
            .contains("removed")
    );
}

#[test]
fn a_dropped_device_stills_its_ports() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, mut port, _bell) = tap(&netns);
    netns.host().send(&frame(1, 60));
    drop(device);
    assert!(!port.is_running());
    assert_eq!(port.receive(&mut Burst::new()), 0);
    assert_eq!(port.transmit(&[plain(&frame(1, 60))]).consumed, 0);
    assert_eq!(port.arm(), Armed::Asleep);
}

#[test]
fn the_longest_frame_of_a_tap_arrives() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let config = TapConfig {
        mtu: Some(super::MTU_MAX),
        ..netns.config(1)
    };
    let (_device, mut ports) = open(&config).unwrap();
    let bell = Bell::new();
    ports[0].attach(bell.poller()).unwrap();
    let longest = frame(7, 14 + usize::from(super::MTU_MAX));
    netns.host().send(&longest);
    assert_eq!(receive(&mut *ports[0], &bell, 1)[0].0, longest);
    let host = netns.host();
    assert_eq!(ports[0].transmit(&[plain(&longest)]).consumed, 1);
    assert_eq!(host.recv_starting(&longest[..14]), longest);
}

#[test]
fn settings_out_of_range_are_refused_before_anything_is_made() {
    let good = TapConfig {
        name: "shunt-range".to_owned(),
        netns: Some("shunt-no-such-netns".to_owned()),
        queues: 1,
        mtu: None,
    };
    for name in [
        "",
        ".",
        "sixteen-letters-",
        "a b",
        "a/b",
        "tap%d",
        "a:1",
        "ä",
    ] {
        let config = TapConfig {
            name: name.to_owned(),
            ..good.clone()
        };
        assert!(
            matches!(refusal(&config), TapError::InvalidName(_)),
            "{name}"
        );
    }
    for queues in [0, 257] {
        let config = TapConfig {
            queues,
            ..good.clone()
        };
        assert!(matches!(refusal(&config), TapError::InvalidQueues { .. }));
    }
    for mtu in [Some(67), Some(65_522)] {
        let config = TapConfig {
            mtu,
            ..good.clone()
        };
        assert!(matches!(refusal(&config), TapError::InvalidMtu { .. }));
    }
    assert!(matches!(refusal(&good), TapError::Netns { .. }));
}
