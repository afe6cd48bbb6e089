//! Workers on their own threads: waiting in every manner, losing no frame and no time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::world::*;
use crate::datapath::ElementId;
use crate::datapath::clock::Clock;
use crate::datapath::counters::ElementCounters;
use crate::datapath::lane::{Lane, Reporter, Vnic};
use crate::datapath::pace::Polling;
use crate::datapath::poller::EpollSet;
use crate::datapath::worker::Worker;
use crate::flow::queue::channel;
use crate::flow::{ElementShape, HandOver, HashSeed, Sessions, VnicShape, flow_table};
use crate::packet::Offload;
use crate::port::testing::{FarEnd, port};

pub(super) const SOON: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "real threads run on real time")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// The far ends of a vNIC.
pub(super) struct Line {
    uplink: FarEnd,
    guest: FarEnd,
}

impl Line {
    /// Sends a frame by the uplink and waits until the guest has it.
    pub(super) fn cross(&self, number: u32) {
        self.uplink.send(&datagram(number), Offload::default());
        let sent = now();
        loop {
            let taken = self.guest.take();
            if !taken.is_empty() {
                assert_eq!(taken[0].data, datagram(number));
                return;
            }
            assert!(sent.elapsed() < SOON, "frame {number} is lost");
            std::thread::yield_now();
        }
    }
}

pub(super) fn vnic() -> (Vnic, Line) {
    let (uplink_port, uplink) = port(ALL_OFFLOADS);
    let (guest_port, guest) = port(ALL_OFFLOADS);
    let vnic = Vnic::new(
        LAN_MAC,
        vec![Box::new(guest_port)],
        vec![Box::new(uplink_port)],
    );
    (vnic, Line { uplink, guest })
}

/// An element with one vNIC and no session: what the uplink brings, the guest gets.
pub(super) struct Element {
    pub(super) line: Line,
    counters: Arc<ElementCounters>,
}

pub(super) fn element(number: u32) -> (Box<Lane>, Element) {
    let (writer, mut readers) = flow_table(64, 1, HashSeed::random());
    let shape = ElementShape::new([VnicShape {
        mac: LAN_MAC,
        mtu: 1500,
    }]);
    let book = Sessions::new(shape, writer, Default::default());
    let (vnic, line) = vnic();
    let counters = Arc::new(ElementCounters::default());
    let lane = Lane::new(
        ElementId(number),
        readers.pop().unwrap(),
        HandOver::new(Default::default()),
        vec![vnic],
        counters.clone(),
        book.signals(),
        None,
    );
    (Box::new(lane), Element { line, counters })
}

pub(super) fn start(polling: Polling, count: u32) -> (Worker, Vec<Element>) {
    let (lanes, elements) = (0..count).map(element).unzip();
    let (sender, _events) = channel(64);
    let keeper = Arc::new(EpollSet::new().unwrap());
    let reporter = Reporter::new(sender, Arc::default(), keeper);
    let worker = Worker::start("test", Clock::start(), polling, lanes, reporter).unwrap();
    (worker, elements)
}

pub(super) fn linger(span: Duration) {
    let since = now();
    while since.elapsed() < span {
        std::thread::yield_now();
    }
}

#[test]
fn no_frame_waits_for_ever_however_the_worker_waits() {
    for polling in [Polling::Adaptive, Polling::Busy, Polling::Interrupt] {
        let (worker, elements) = start(polling, 2);
        for number in 0..2_000 {
            // Gaps around the lengths of naps, in both elements, by turns and together.
            linger(Duration::from_micros(u64::from(number * 7 % 130)));
            elements[0].line.cross(number);
            if number % 3 == 0 {
                elements[1].line.cross(number);
            }
        }
        assert!(worker.is_alive());
    }
}

#[test]
fn cpu_time_is_that_of_the_element_it_was_spent_on() {
    let (worker, elements) = start(Polling::Adaptive, 2);
    let spent = |element: &Element| element.counters.snapshot().cpu_ns;
    let started = now();
    let mut number = 0;
    while spent(&elements[0]) < 20_000_000 {
        elements[0].line.cross(number);
        number += 1;
        assert!(started.elapsed() < SOON, "{} ns", spent(&elements[0]));
    }
    let (own, other) = (spent(&elements[0]), spent(&elements[1]));
    assert!(other * 20 < own, "{own} and {other}");
    // No more than there was.
    assert!(u128::from(own + other) <= started.elapsed().as_nanos());
    drop(worker);
}

#[test]
fn polling_in_vain_is_paid_for_by_who_is_polled() {
    let (worker, elements) = start(Polling::Busy, 2);
    let spent = |element: &Element| element.counters.snapshot().cpu_ns;
    let started = now();
    while elements.iter().any(|element| spent(element) < 5_000_000) {
        assert!(started.elapsed() < SOON);
        std::thread::yield_now();
    }
    drop(worker);
}

#[test]
fn a_guest_goes_on_when_its_full_uplink_has_room_although_nobody_tells() {
    for polling in [Polling::Adaptive, Polling::Busy, Polling::Interrupt] {
        let (worker, elements) = start(polling, 1);
        let Line { uplink, guest } = &elements[0].line;
        uplink.set_keeps();
        for round in 0..20 {
            uplink.set_room(1);
            (0..300).for_each(|number| guest.send(&datagram(number), Offload::default()));
            let mut came = Vec::new();
            let sent = now();
            while came.len() < 300 {
                assert!(
                    sent.elapsed() < SOON,
                    "{} came in round {round}",
                    came.len()
                );
                came.extend(uplink.take());
                if sent.elapsed() > Duration::from_millis(3) {
                    uplink.set_room(usize::MAX);
                }
                std::thread::yield_now();
            }
            let expected = (0..300).map(datagram);
            assert!(came.into_iter().map(|frame| frame.data).eq(expected));
        }
        assert!(worker.is_alive());
    }
}
