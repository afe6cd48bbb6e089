//! One element on two workers that run: what `crew` explores step by step, on real threads.

use std::time::Duration;

use super::waiting::{SOON, linger, now};
use super::world::*;
use crate::datapath::ElementId;
use crate::datapath::clock::Clock;
use crate::datapath::counters::CrewCounters;
use crate::datapath::crew::Crew;
use crate::datapath::keeper::{Books, Keeper, Preparation};
use crate::datapath::pace::Polling;
use crate::datapath::worker::Worker;
use crate::flow::{
    ElementShape, HandOverLimits, HashSeed, SessionRequest, Sessions, VnicShape, flow_table,
};
use crate::packet::Offload;

const ELEMENT: ElementId = ElementId(3);
/// Frames on their way at a time: fewer than there are parcels, so that none is lost.
const FLYING: u32 = 24;

/// A backend of two workers without devices, and everybody it talks to.
struct Site {
    // Workers end before the keeper.
    workers: Vec<Worker>,
    keeper: Keeper,
    counters: CrewCounters,
    lan: Ends,
    wan: Ends,
    sent: u32,
    guest_sent: u64,
    arrived: [Vec<u32>; 2],
}

impl Site {
    fn new(polling: Polling) -> Self {
        let (lan, lan_vnic) = vnic(LAN_MAC, ALL_OFFLOADS);
        let (wan, wan_vnic) = vnic(WAN_MAC, ALL_OFFLOADS);
        let (writer, readers) = flow_table(64, 2, HashSeed::random());
        let shapes = [LAN_MAC, WAN_MAC].map(|mac| VnicShape { mac, mtu: 1500 });
        let book = Sessions::new(ElementShape::new(shapes), writer, Default::default());
        let crew = Crew {
            id: ELEMENT,
            vnics: vec![lan_vnic, wan_vnic],
            signals: book.signals(),
            limits: HandOverLimits::default(),
            punt_rate: None,
        };
        let (lanes, counters) = crew.lanes(readers).unwrap();
        let clock = Clock::start();
        let mut preparation = Preparation::new().unwrap();
        let workers = lanes.into_iter().map(|lane| {
            let reporter = preparation.reporter();
            Worker::start("crew", clock, polling, vec![lane], reporter).unwrap()
        });
        let workers = workers.collect();
        let mut books = Books::new();
        books.insert(ELEMENT, book);
        Self {
            workers,
            keeper: preparation.start(clock, books).unwrap(),
            counters,
            lan,
            wan,
            sent: 0,
            guest_sent: 0,
            arrived: [Vec::new(), Vec::new()],
        }
    }

    fn ask(&mut self, what: impl FnOnce(&mut Sessions, crate::flow::Moment) + Send + 'static) {
        let command = move |books: &mut Books, now| what(books.get_mut(&ELEMENT).unwrap(), now);
        self.keeper.submit(command).unwrap();
    }

    fn offload(&mut self, request: SessionRequest) {
        self.ask(|book, now| drop(book.offload(request, now)));
    }

    fn send(&mut self, queue: usize) {
        let frame = datagram(self.sent);
        self.lan.uplink(queue).send(&frame, Offload::default());
        self.sent += 1;
    }

    /// The guest forwards what it has by its queue pair `queue`, and what arrived is looked at.
    fn attend(&mut self, queue: usize) {
        for ingress in 0..2 {
            for frame in self.lan.guest(ingress).take() {
                let frame = routed(LAN, &frame);
                self.wan.guest(queue).send(&frame.data, frame.offload);
                self.guest_sent += 1;
            }
        }
        for (queue, arrived) in self.arrived.iter_mut().enumerate() {
            for frame in self.wan.uplink(queue).take() {
                let payload = seen(&frame.data).3;
                let number = u32::from_be_bytes(payload[..4].try_into().unwrap());
                assert!(arrived.last().is_none_or(|last| *last < number), "{number}");
                arrived.push(number);
            }
        }
    }

    /// Whether all that was sent has been seen through, the guest's part of it too.
    fn is_settled(&self) -> bool {
        let seen = self.counters.snapshot();
        let dropped: u64 = seen.drops.iter().map(|(_, count)| count).sum();
        let came = seen.from_uplink.packets + seen.from_guest.packets;
        let went = seen.forwarded.packets + seen.passed.packets + seen.punted.packets + dropped;
        came == went
            && seen.from_uplink.packets == u64::from(self.sent)
            && seen.from_guest.packets == self.guest_sent
            && seen.punted.packets == self.guest_sent
    }

    fn flying(&self) -> u32 {
        self.sent
            - self
                .arrived
                .iter()
                .map(|queue| queue.len() as u32)
                .sum::<u32>()
    }

    fn send_until(&mut self, what: impl Fn(&Self) -> bool) {
        let began = now();
        while !what(self) {
            self.send(0);
            self.attend(0);
            assert!(began.elapsed() < SOON, "{:?}", self.counters.snapshot());
            linger(Duration::from_millis(1));
        }
    }

    fn wait_until(&mut self, queue: usize, what: impl Fn(&Self) -> bool) {
        let began = now();
        while !what(self) {
            self.attend(queue);
            assert!(began.elapsed() < SOON, "{:?}", self.counters.snapshot());
            assert!(self.workers.iter().all(Worker::is_alive));
            std::thread::yield_now();
        }
    }
}

fn hand_overs(polling: Polling, moves: bool) {
    const ROUNDS: usize = 40;
    let mut site = Site::new(polling);
    let (mut queue, mut guest_queue) = (0, 0);
    for round in 0..ROUNDS {
        site.offload(session("s", UDP));
        for _ in 0..200 {
            site.send(queue);
            site.wait_until(guest_queue, |site| site.flying() < FLYING);
        }
        // Both senders may go over to another queue pair once all they sent was received.
        site.wait_until(guest_queue, |site| site.flying() == 0);
        guest_queue = round / 2 % 2;
        match moves {
            true => queue = 1 - queue,
            false => site.ask(|book, now| assert!(book.withdraw("s", now))),
        }
    }
    let mut all = site.arrived.concat();
    all.sort_unstable();
    assert_eq!(all, (0..site.sent).collect::<Vec<_>>());
    let Site {
        workers, counters, ..
    } = site;
    drop(workers);
    let total = counters.snapshot();
    assert!(total.is_conserved(), "{total:?}");
    assert!(total.hand_over.activated > 0, "{total:?}");
    let worked = |lane: crate::datapath::counters::Snapshot| {
        lane.from_uplink.packets + lane.from_guest.packets > 0
    };
    assert!(counters.lanes().all(worked), "{total:?}");
}

#[test]
fn hand_overs_between_two_workers_keep_order_and_lose_nothing() {
    hand_overs(Polling::Adaptive, false);
    hand_overs(Polling::Interrupt, false);
}

#[test]
fn a_flow_that_moves_between_two_workers_keeps_order_and_loses_nothing() {
    hand_overs(Polling::Adaptive, true);
    hand_overs(Polling::Interrupt, true);
}

/// A tap's link comes up without its sleeping worker noticing; the other one's packets tell it.
#[test]
fn a_sleeping_worker_whose_queue_pair_came_up_is_told_by_the_other() {
    let mut site = Site::new(Polling::Interrupt);
    (0..2).for_each(|queue| site.wan.uplink(queue).set_running(false));
    site.offload(vouched("s", UDP));
    linger(Duration::from_millis(20));
    // The guest is sent what cannot leave, once both know that it cannot.
    site.send_until(|site| site.guest_sent > 0);
    // What is still in the guest's hands would come out behind newer packets.
    site.wait_until(0, Site::is_settled);
    linger(Duration::from_millis(20));
    site.wan.uplink(1).set_running(true);
    site.send_until(|site| !site.arrived[1].is_empty());
}
