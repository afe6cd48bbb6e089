//! When the guest is called, and when it is asked to kick.

use super::super::mock::{Driver, Features};
use super::super::{RxRing, TxRing};
use super::{World, frame, world};
use crate::packet::{Burst, Offload, TxFrame};
use crate::port::Armed;

/// Frames sent; whether the guest would have kicked for them.
fn send(driver: &mut Driver, count: usize) -> bool {
    let old = driver.avail_idx;
    for seed in 0..count {
        driver.send(&frame(seed as u8, 60));
    }
    driver.would_kick(old)
}

#[test]
fn no_kick_while_polling_and_one_kick_once_armed() {
    for features in Features::all() {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut burst = Burst::new();
        for _ in 0..100 {
            assert!(!send(&mut driver, 1), "notifications are off after a start");
            assert_eq!(ring.arm(), Armed::Ready);
            assert!(
                !send(&mut driver, 2),
                "arm that finds work takes itself back"
            );
            burst.clear();
            assert_eq!(ring.pop(&mut burst).frames, 3);
            driver.used();
            assert_eq!(ring.arm(), Armed::Asleep);
            assert!(send(&mut driver, 1));
            ring.disarm();
            assert!(!send(&mut driver, 1));
            burst.clear();
            assert_eq!(ring.pop(&mut burst).frames, 2);
            driver.used();
        }
        ring.stop();
        assert!(send(&mut driver, 1), "a stopped ring asks for kicks again");
    }
}

#[test]
fn the_guest_is_called_once_a_burst_and_only_if_it_asked() {
    for features in Features::all() {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut burst = Burst::new();
        let mut pop = |driver: &mut Driver, count| {
            send(driver, count);
            burst.clear();
            assert_eq!(ring.pop(&mut burst).frames, count);
            driver.used();
            let answer = ring.needs_call();
            assert!(!ring.needs_call(), "one call per publication");
            answer
        };
        driver.set_used_event(driver.avail_idx);
        assert!(pop(&mut driver, 2));
        driver.set_avail_flags(1);
        driver.set_used_event(driver.avail_idx.wrapping_add(4));
        assert!(!pop(&mut driver, 4));
        assert_eq!(pop(&mut driver, 1), features.event_idx);
        assert!(!pop(&mut driver, 1));
        driver.set_avail_flags(0);
        driver.set_used_event(driver.avail_idx.wrapping_add(1));
        assert!(pop(&mut driver, 3));
    }
}

#[test]
fn the_guest_is_called_for_what_it_receives_but_never_kicks_for_buffers() {
    for features in Features::all() {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
        driver.set_used_event(driver.avail_idx);
        let old = driver.avail_idx;
        driver.offer(&[200], None);
        assert!(!driver.would_kick(old));
        let data = frame(1, 60);
        let out = TxFrame {
            data: &data,
            offload: Offload::default(),
        };
        assert_eq!(ring.push(&[out, out]).consumed, 1);
        assert!(ring.needs_call() && !ring.needs_call());
        assert_eq!(ring.push(&[out]).consumed, 0);
        assert!(!ring.needs_call(), "nothing new was delivered");
    }
}
