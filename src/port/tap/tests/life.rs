//! Sleeping and waking; an interface that goes down or away; bad frames.

use super::*;

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
fn frames_cut_short_or_with_a_lying_header_are_discarded_and_the_rest_arrive() {
    let (queue, mut port, driver) = port_of_a_pair();
    let good = [&[0; 12][..], &frame(1, 60)].concat();
    // A checksum beyond the end; a segment size of 0; a type that does not exist.
    let lies: [[u8; 12]; 3] = [
        [1, 0, 0, 0, 0, 0, 59, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [0, 9, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ];
    let mut burst = Burst::new();
    for bad in lies.map(|header| [&header[..], &frame(2, 60)].concat()) {
        driver.send(&bad).unwrap();
        driver.send(&good).unwrap();
        assert_eq!(port.receive(&mut burst), 1);
    }
    driver.send(&[0; 5]).unwrap();
    driver.send(&vec![0; 12 + FRAME_MAX]).unwrap();
    driver.send(&vec![0; 12 + FRAME_MAX - 1]).unwrap();
    assert_eq!(port.receive(&mut burst), 1);
    assert_eq!(burst.len(), 4);
    assert_eq!(burst.frame(3).data.len(), FRAME_MAX - 1);
    assert_eq!(queue.rx_frames.load(Ordering::Relaxed), 4);
    assert_eq!(queue.rx_discarded.load(Ordering::Relaxed), 5);
    assert_eq!(port.arm(), Armed::Asleep);
}

#[test]
fn a_full_device_leaves_the_rest_unconsumed() {
    let (queue, mut port, driver) = port_of_a_pair();
    let data: Vec<_> = (0..64).map(|n| frame(n, 60_000)).collect();
    let frames: Vec<_> = data.iter().map(|data| plain(data)).collect();
    let first = port.transmit(&frames).consumed;
    assert!((1..64).contains(&first), "{first}");
    assert_eq!(port.transmit(&frames[first..]).consumed, 0);
    let mut message = vec![0; 70_000];
    for expected in &data[..first] {
        let len = driver.recv(&mut message).unwrap();
        assert_eq!(message[12..len], expected[..]);
    }
    assert!(port.transmit(&frames[first..]).consumed > 0);
    assert_eq!(queue.tx_discarded.load(Ordering::Relaxed), 0);
    assert!(port.is_running());
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
