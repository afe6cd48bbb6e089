//! With io_uring and without.

use std::os::fd::AsRawFd;

use super::refuse::{forbid, without};
use super::*;

/// Whatever looks at a descriptor.
const LOOKS: [libc::c_long; 7] = [
    libc::SYS_io_uring_enter,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
];

#[test]
fn a_look_at_an_empty_tap_is_no_system_call() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (_device, mut ports) = open(&netns.config(2)).unwrap();
    let host = netns.host();
    let looks = || {
        let mut burst = Burst::new();
        let mut found = 0;
        let mut look = |times| {
            for _ in 0..times {
                for port in &mut ports {
                    burst.clear();
                    found += port.receive(&mut burst);
                }
            }
        };
        host.send(&frame(1, 60));
        look(4);
        forbid(&LOOKS);
        look(1000);
        found
    };
    // What ends there must not be a port, which looks once more.
    let found = std::thread::scope(|scope| scope.spawn(looks).join());
    assert_eq!(found.unwrap(), 1);
}

#[test]
fn each_frame_after_a_silence_is_seen() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let (_device, mut ports) = open(&netns.config(2)).unwrap();
    let host = netns.host();
    let mut burst = Burst::new();
    for number in 0..200u8 {
        let count = 1 + usize::from(number % 5);
        (0..count).for_each(|_| host.send(&frame(number, 60)));
        // One look finds some, the next ones the rest.
        let mut found = 0;
        for _ in 0..4 {
            for (queue, port) in ports.iter_mut().enumerate() {
                burst.clear();
                let here = port.receive(&mut burst);
                assert!(queue == 0 || here == 0);
                found += here;
            }
        }
        assert_eq!(found, count);
        assert!(ports.iter_mut().all(|port| port.arm() == Armed::Asleep));
    }
}

#[test]
fn a_dropped_port_lets_go_of_its_tap_at_once() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    netns.ip("tuntap add dev tap0 mode tap vnet_hdr");
    netns.ip("link set tap0 up");
    // Programs that other tests start hold copies for a moment: hence several tries.
    let at_once = (0..20).filter(|_| {
        let Ok((device, mut ports)) = open(&netns.config(1)) else {
            return false;
        };
        assert_eq!(ports[0].receive(&mut Burst::new()), 0);
        drop((ports, device));
        open(&netns.config(1)).is_ok()
    });
    assert!(at_once.count() > 0);
}

#[test]
fn without_io_uring_frames_cross_whole_and_in_order() {
    let refused = [libc::SYS_io_uring_setup];
    without(&refused, libc::ENOSYS, || {
        assert!(super::super::batch::with(|_| ()).is_none());
        let (queue, mut port, driver) = port_of_a_pair();
        let bell = Bell::new();
        port.attach(bell.poller()).unwrap();
        let data: Vec<_> = (0..100)
            .map(|n| frame(n, 60 + 9 * usize::from(n)))
            .collect();
        for data in &data {
            driver.send(&[&[0; 12][..], data].concat()).unwrap();
        }
        let got = receive(&mut port, &bell, 100);
        assert!(got.iter().map(|(got, _)| got).eq(&data));
        assert_eq!(port.receive(&mut Burst::new()), 0);
        assert_eq!(port.arm(), Armed::Asleep);
        let mut message = [0; 2000];
        for data in data.chunks(50) {
            let frames: Vec<_> = data.iter().map(|data| plain(data)).collect();
            assert_eq!(port.transmit(&frames).consumed, frames.len());
            for expected in data {
                let len = driver.recv(&mut message).unwrap();
                assert_eq!(message[12..len], expected[..]);
            }
        }
        assert_eq!(queue.tx_frames.load(Ordering::Relaxed), 100);
    });
}

#[test]
fn without_io_uring_a_full_device_leaves_the_rest_unconsumed() {
    without(&[libc::SYS_io_uring_setup], libc::EPERM, || {
        let (_queue, mut port, driver) = port_of_a_pair();
        let data: Vec<_> = (0..64).map(|n| frame(n, 60_000)).collect();
        let frames: Vec<_> = data.iter().map(|data| plain(data)).collect();
        let first = port.transmit(&frames).consumed;
        assert!((1..64).contains(&first), "{first}");
        assert_eq!(port.transmit(&frames[first..]).consumed, 0);
        drop(driver);
    });
}

#[test]
fn a_ring_that_fails_is_not_used_again_and_loses_nothing() {
    let (queue, mut port, driver) = port_of_a_pair();
    let mut burst = Burst::new();
    assert!(super::super::batch::with(|_| ()).is_some());
    let thread = || {
        driver
            .send(&[&[0; 12][..], &frame(1, 60)].concat())
            .unwrap();
        without(&[libc::SYS_io_uring_enter], libc::ENOSYS, || {
            // The first call makes the ring, and fails.
            let found: usize = (0..3).map(|_| port.receive(&mut burst)).sum();
            assert!(super::super::batch::with(|_| ()).is_none());
            found
        })
    };
    assert_eq!(
        std::thread::scope(|scope| scope.spawn(thread).join()).unwrap(),
        1
    );
    assert_eq!(queue.rx_frames.load(Ordering::Relaxed), 1);
    assert!(queue.file.as_raw_fd() >= 0);
}
