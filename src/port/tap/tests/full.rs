//! A tap whose host holds what it was given.

use std::cell::RefCell;

use super::*;

/// `tap0`, with room for 64 KiB in work, bridged to `held`, which
/// lets out a frame now and then only. Frames come out at `out`.
fn full_world() -> (Netns, Arc<dyn Device>, Box<dyn Port>, Host) {
    let netns = Netns::new();
    let config = TapConfig {
        send_buffer: Some(64 * 1024),
        ..netns.config(1)
    };
    let (device, mut ports) = open(&config).unwrap();
    netns.ip("link add held type veth peer name out");
    netns.ip("link add br0 type bridge");
    for port in ["tap0", "held"] {
        netns.ip(&format!("link set {port} master br0"));
    }
    for device in ["tap0", "held", "out", "br0"] {
        netns.ip(&format!("link set {device} up"));
    }
    shape(&netns, "add", "8kbit");
    let out = netns.run(|| Host::on(c"out"));
    (netns, device, ports.remove(0), out)
}

/// Sets how fast `held` lets frames out.
fn shape(netns: &Netns, verb: &str, rate: &str) {
    let shaper = format!("{verb} dev held root tbf rate {rate} burst 4000 limit 10000000");
    let mut words = vec!["-n", netns.0.as_str(), "qdisc"];
    words.extend(shaper.split_whitespace());
    let tc = std::process::Command::new("tc").args(&words).status();
    assert!(tc.unwrap().success(), "tc {words:?}");
}

fn numbered(numbers: std::ops::Range<u8>) -> Vec<Vec<u8>> {
    numbers.map(|number| frame(number, 1000)).collect()
}

#[test]
fn a_full_tap_keeps_what_waits_refuses_what_does_not_and_loses_neither_frame_nor_order() {
    if !is_root() {
        return;
    }
    let (netns, device, mut port, out) = full_world();
    let data = numbered(0..200);
    let frames: Vec<_> = data.iter().map(|data| plain(data)).collect();
    let (first, second) = frames.split_at(64);
    let taken = port.transmit(first).consumed;
    assert!((1..64).contains(&taken), "{taken} of 64 frames fit");
    assert!(!port.is_held_up(), "refused frames are their sender's");
    assert_eq!(port.transmit_or_keep(&first[taken..]).consumed, 64 - taken);
    assert!(port.is_held_up());
    // What may be dropped is not let past what waits.
    assert_eq!(port.transmit(&second[..1]).consumed, 0);
    assert_eq!(port.transmit_or_keep(&second[..64]).consumed, 64);
    assert_eq!(device.status().queues[0].tx_frames, taken as u64);
    shape(&netns, "change", "1gbit");
    let port = RefCell::new(port);
    eventually(|| !port.borrow_mut().is_held_up());
    assert_eq!(device.status().queues[0].tx_frames, 128);
    for expected in &data[..128] {
        assert_eq!(out.recv_starting(&expected[..14]), *expected);
    }
    assert_eq!(device.status().queues[0].tx_discarded, 0);
}

#[test]
fn what_a_tap_keeps_is_bounded() {
    let (queue, mut port, _driver) = port_of_a_pair();
    let longest = vec![1; FRAME_MAX];
    let burst = vec![plain(&longest); 64];
    // The first burst goes out in part.
    assert_eq!(port.transmit_or_keep(&burst).consumed, 64);
    assert_eq!(port.transmit_or_keep(&burst).consumed, 64);
    let third = port.transmit_or_keep(&burst).consumed;
    assert!(third < 64, "{third}");
    assert!(port.is_held_up());
    queue.set_state(State::Gone);
    assert!(!port.is_held_up(), "nobody waits for a tap that is no more");
}
