//! One element on two workers.
//!
//! The explorer runs one lane's step at a time, in an order that chance decides, and between the
//! steps source, guest, keeper and clock do what chance has them do. Whatever the order, each
//! datagram of the flow must arrive, once, and after those sent before it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::world::*;
use crate::datapath::ElementId;
use crate::datapath::counters::CrewCounters;
use crate::datapath::crew::{Crew, lanes_of};
use crate::datapath::lane::{Bench, Lane, Reporter};
use crate::datapath::poller::EpollSet;
use crate::flow::hand_over::HandOverLimits;
use crate::flow::queue::{Receiver, channel};
use crate::flow::{
    ElementShape, FlowEvent, HandOverMode, HashSeed, Moment, Sessions, VnicShape, flow_table,
};
use crate::packet::Offload;
use crate::port::testing::Loose;

/// Chance, the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// An element with two lanes, and all that is around it.
struct Pair {
    now: Moment,
    #[expect(clippy::vec_box, reason = "as workers take them")]
    lanes: Vec<Box<Lane>>,
    benches: Vec<Bench>,
    events: Vec<Receiver<(ElementId, FlowEvent)>>,
    book: Sessions,
    counters: CrewCounters,
    lan: Ends,
    wan: Ends,
    /// What the guest has received and not yet sent.
    in_guest: VecDeque<Loose>,
    guest_sent: u64,
    guest_queue: usize,
    sent: u32,
    queue: usize,
    arrived: Vec<u32>,
}

impl Pair {
    fn new(queue: usize) -> Self {
        let (lan, lan_vnic) = vnic(LAN_MAC, ALL_OFFLOADS);
        let (wan, wan_vnic) = vnic(WAN_MAC, ALL_OFFLOADS);
        let vnics = vec![lan_vnic, wan_vnic];
        let (writer, readers) = flow_table(64, lanes_of(&vnics, 5), HashSeed::random());
        let shapes = [LAN_MAC, WAN_MAC].map(|mac| VnicShape { mac, mtu: 1500 });
        let book = Sessions::new(ElementShape::new(shapes), writer, Default::default());
        let crew = Crew {
            id: ElementId(0),
            vnics,
            signals: book.signals(),
            limits: HandOverLimits::default(),
            punt_rate: None,
        };
        let (lanes, counters) = crew.lanes(readers).unwrap();
        assert_eq!(lanes.len(), 2, "one for each queue pair");
        let keeper = Arc::new(EpollSet::new().unwrap());
        let reporter = |_| {
            let (sender, events) = channel(1024);
            let bench = Bench::new(Reporter::new(sender, Arc::default(), keeper.clone()));
            (bench, events)
        };
        let (benches, events) = (0..lanes.len()).map(reporter).unzip();
        let mut pair = Self {
            now: Moment(1_000_000_000),
            lanes,
            benches,
            events,
            book,
            counters,
            lan,
            wan,
            in_guest: VecDeque::new(),
            guest_sent: 0,
            guest_queue: 0,
            sent: 0,
            queue,
            arrived: Vec::new(),
        };
        pair.settle();
        pair
    }

    /// One step of a lane: the beginning of a turn, or a burst of its next queue.
    fn step(&mut self, lane: usize, begins: bool) -> usize {
        let (lane, bench) = (&mut self.lanes[lane], &mut self.benches[lane]);
        let frames = match begins {
            true => lane.prepare(bench, self.now),
            false => {
                let place = lane.step();
                lane.poll(place, bench, self.now)
            }
        };
        self.look();
        frames
    }

    /// Whole turns of both lanes until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = 0;
            for lane in 0..2 {
                moved += self.step(lane, true);
                for _ in 0..self.lanes[lane].queues() {
                    moved += self.step(lane, false);
                }
            }
            if moved == 0 {
                break;
            }
        }
        self.keep();
    }

    fn keep(&mut self) {
        for events in &mut self.events {
            while let Some((_, event)) = events.try_recv() {
                self.book.event(event, self.now);
            }
        }
        self.book.advance(self.now);
    }

    /// What has come out: the guest takes its part, the rest has arrived.
    fn look(&mut self) {
        for queue in 0..2 {
            self.in_guest.extend(self.lan.guest(queue).take());
        }
        let mut queues = [0, 1].map(|queue| {
            let frames = self.wan.uplink(queue).take();
            let number = |frame: &Loose| {
                let payload = seen(&frame.data).3;
                u32::from_be_bytes(payload[..4].try_into().unwrap())
            };
            frames.iter().map(number).collect::<Vec<u32>>()
        });
        // By which queue the older ones left, nobody can say any more.
        queues.sort();
        self.arrived.extend(queues.concat());
    }

    fn send(&mut self) {
        let frame = datagram(self.sent);
        self.lan.uplink(self.queue).send(&frame, Offload::default());
        self.sent += 1;
    }

    fn guest_forwards(&mut self, count: u64) {
        for _ in 0..count {
            let Some(frame) = self.in_guest.pop_front() else {
                return;
            };
            let frame = routed(LAN, &frame);
            let out = self.wan.guest(self.guest_queue);
            out.send(&frame.data, frame.offload);
            self.guest_sent += 1;
        }
    }

    fn request(&mut self, key: &str, dscp: Option<u8>) {
        let mut request = session(key, UDP);
        request.original.as_mut().unwrap().dscp = dscp;
        self.book.offload(request, self.now);
    }

    /// What is sent has been received, so that the sender may go over to another queue.
    fn is_received(&self) -> (bool, bool) {
        let counters = self.counters.snapshot();
        (
            counters.from_uplink.packets == u64::from(self.sent),
            counters.from_guest.packets == self.guest_sent,
        )
    }

    /// Something that chance decides. With `moves` the device moves the flow between its
    /// queues; without, its session ends and changes.
    fn act(&mut self, chance: &mut Chance, moves: bool) {
        match chance.below(24) {
            0..=4 => {
                self.step(0, chance.one_in(3));
            }
            5..=9 => {
                self.step(1, chance.one_in(3));
            }
            10..=14 => (0..1 + chance.below(3)).for_each(|_| self.send()),
            15..=18 => self.guest_forwards(1 + chance.below(4)),
            19 => {
                self.now = self.now + Duration::from_micros(chance.below(2_000));
            }
            20 => self.keep(),
            21 if chance.one_in(8) => {
                // Nobody is set aside for so long with a frame in its hands.
                for lane in [0, 1, 0, 1] {
                    self.step(lane, true);
                }
                let long = [25, 25, 150][chance.below(3) as usize];
                self.now = self.now + Duration::from_millis(long);
            }
            22 => {
                let (uplink, guest) = self.is_received();
                if moves && uplink && chance.one_in(2) {
                    self.queue = 1 - self.queue;
                }
                // What goes around the guest goes by the queue pair that the guest had used.
                let waits = self.lanes.iter().any(|lane| lane.has_mail());
                let around = !moves && !self.book.is_empty();
                if guest && !waits && !around && chance.one_in(2) {
                    self.guest_queue = 1 - self.guest_queue;
                }
            }
            23 if chance.one_in(3) => match chance.below(6) {
                0 if !moves => {
                    self.book.withdraw("s", self.now);
                }
                1 if !moves => self.request("s", Some(5)),
                2 if !moves => self.request("other", None),
                _ => self.request("s", None),
            },
            _ => {}
        }
    }

    /// Lets everything come to rest, and looks whether all is well.
    fn end(&mut self, what: &str) {
        for _ in 0..50 {
            self.settle();
            self.guest_forwards(u64::MAX);
            self.now = self.now + Duration::from_millis(25);
        }
        let all: Vec<u32> = (0..self.sent).collect();
        assert_eq!(self.arrived, all, "{what}");
        let counters = self.counters.snapshot();
        assert!(counters.is_conserved(), "{what}: {counters:?}");
        assert_eq!(counters.parked, 0, "{what}");
    }
}

/// Explores; says how many packets both lanes forwarded, and how many were parked.
fn explore(seeds: std::ops::Range<u64>, moves: bool) -> ([u64; 2], u64) {
    let (mut forwarded, mut parked) = ([0; 2], 0);
    for seed in seeds {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..20 {
            chance.below(2);
        }
        let mut pair = Pair::new(chance.below(2) as usize);
        for _ in 0..1_500 {
            pair.act(&mut chance, moves);
        }
        pair.end(&format!("seed {seed}, moves: {moves}"));
        for (sum, lane) in forwarded.iter_mut().zip(pair.counters.lanes()) {
            *sum += lane.forwarded.packets;
            parked += lane.hand_over.parked_frames;
        }
    }
    (forwarded, parked)
}

#[test]
fn in_every_order_of_two_lanes_steps_a_flow_keeps_its_order_and_loses_nothing() {
    let (forwarded, parked) = explore(1..300, false);
    assert!(forwarded.iter().all(|sum| *sum > 1_000), "{forwarded:?}");
    assert!(parked > 1_000, "{parked}");
}

#[test]
fn a_flow_that_its_device_moves_between_queue_pairs_keeps_its_order() {
    let (forwarded, parked) = explore(1..300, true);
    assert!(forwarded.iter().all(|sum| *sum > 1_000), "{forwarded:?}");
    assert!(parked > 1_000, "{parked}");
}

/// A vouched flow that came in by the first queue pair, and is at home there.
fn at_home() -> Pair {
    let mut pair = Pair::new(0);
    pair.book.offload(vouched("s", UDP), pair.now);
    pair.send();
    pair.settle();
    assert_eq!(pair.arrived, [0]);
    pair
}

#[test]
fn a_moved_flow_is_handed_to_its_home_until_it_was_idle_for_long() {
    let mut pair = at_home();
    pair.queue = 1;
    pair.send();
    pair.settle();
    let forwarded = |pair: &Pair| -> Vec<u64> {
        let lanes = pair.counters.lanes();
        lanes.map(|lane| lane.forwarded.packets).collect()
    };
    assert_eq!(forwarded(&pair), [2, 0]);
    pair.now = pair.now + Duration::from_millis(150);
    pair.send();
    pair.settle();
    assert_eq!(forwarded(&pair), [2, 1]);
    assert_eq!(pair.arrived, [0, 1, 2]);
}

#[test]
fn where_the_guest_has_one_queue_pair_the_other_lanes_punts_get_there() {
    let mut pair = Pair::new(1);
    pair.lan.guest(1).set_running(false);
    pair.settle();
    (0..5).for_each(|_| pair.send());
    pair.settle();
    assert_eq!(pair.in_guest.len(), 5);
    let counters = pair.counters.snapshot();
    assert_eq!(counters.punted.packets, 5);
    assert!(counters.is_conserved());
}

#[test]
fn a_lane_that_takes_nothing_costs_the_other_drops_and_no_wait() {
    let mut pair = Pair::new(1);
    pair.lan.guest(1).set_running(false);
    pair.settle();
    for _ in 0..100 {
        (0..64).for_each(|_| pair.send());
        while pair.step(1, false) == 0 {}
    }
    let lost = || pair.counters.snapshot();
    let full = lost().dropped_for(crate::packet::DropReason::GuestRingFull);
    assert_eq!(full, 6_400 - 32 * 64);
    pair.settle();
    assert_eq!(pair.in_guest.len(), 32 * 64);
    assert!(pair.counters.snapshot().is_conserved());
}

#[test]
fn an_egress_of_which_only_the_other_lanes_queue_pair_runs_is_reached_by_it() {
    let mut pair = at_home();
    (0..2).for_each(|queue| pair.wan.uplink(queue).set_running(false));
    pair.settle();
    pair.send();
    pair.settle();
    assert_eq!(
        pair.in_guest.len(),
        1,
        "the guest has to see that the way is gone"
    );
    pair.in_guest.clear();
    pair.wan.uplink(1).set_running(true);
    pair.settle();
    pair.send();
    pair.settle();
    assert_eq!(pair.arrived, [0, 2]);
    assert!(pair.counters.snapshot().is_conserved());
}

#[test]
fn a_session_closed_on_two_lanes_at_once_ends_once() {
    let mut pair = Pair::new(0);
    let mut request = vouched("s", TCP);
    request.mode = HandOverMode::Prompt;
    pair.book.offload(request, pair.now);
    let fin = segment(1, |step| step.fin().ack(7), b"");
    pair.lan.uplink(0).send(&fin, Offload::default());
    pair.lan.uplink(1).send(&fin, Offload::default());
    pair.settle();
    pair.settle();
    let closed: Vec<_> = std::iter::from_fn(|| pair.book.take_closed()).collect();
    assert_eq!(closed.len(), 1);
    assert_eq!(pair.counters.snapshot().punted.packets, 2);
}
