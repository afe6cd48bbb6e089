//! Frames cross whole, with what was left undone in them.

use super::*;

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
    // Shorter than an Ethernet header: the kernel refuses them.
    let report = port.transmit(&[plain(&first), plain(&[2; 13]), plain(&[]), plain(&second)]);
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

#[test]
fn a_tcp_train_of_the_host_arrives_uncut() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (_device, mut port, bell) = tap(&netns);
    let data = ipv4([2, 0, 0, 0, 0, 1], 6, &tcp(&[5; 3000]), 16);
    // NEEDS_CSUM, TCPV4, hdr_len 54, gso_size 1000, csum_start 34, csum_offset 16.
    let header = [1, 1, 54, 0, 0xe8, 0x03, 34, 0, 16, 0];
    netns.host().send_with(header, &data);
    let got = receive(&mut *port, &bell, 1);
    assert_eq!(got[0].0.len(), 54 + 3000);
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
fn the_kernel_is_asked_for_all_that_it_knows() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (device, port, _bell) = tap(&netns);
    let mut names = vec!["csum", "tso4", "tso6", "ecn"];
    names.extend(port.peer().uso.then_some("uso"));
    assert_eq!(device.status().features, names);
}

#[test]
fn the_longest_frame_of_a_tap_arrives() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let config = TapConfig {
        mtu: Some(super::super::MTU_MAX),
        ..netns.config(1)
    };
    let (_device, mut ports) = open(&config).unwrap();
    let bell = Bell::new();
    ports[0].attach(bell.poller()).unwrap();
    let longest = frame(7, 14 + usize::from(super::super::MTU_MAX));
    netns.host().send(&longest);
    assert_eq!(receive(&mut *ports[0], &bell, 1)[0].0, longest);
    let host = netns.host();
    assert_eq!(ports[0].transmit(&[plain(&longest)]).consumed, 1);
    assert_eq!(host.recv_starting(&longest[..14]), longest);
}
