//! Elements that share a worker, on a clock that only their packets move: what each gets is
//! counted, and is the same on every machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::world::*;
use crate::datapath::clock::Time;
use crate::datapath::counters::{ElementCounters, Snapshot};
use crate::datapath::lane::{Lane, Vnic};
use crate::datapath::lanes::Lanes;
use crate::datapath::pace::Polling;
use crate::datapath::poller::EpollSet;
use crate::datapath::rounds::{Outlook, Rounds};
use crate::flow::Moment;
use crate::packet::{Burst, DropReason, Offload, PeerOffloads, PuntReason, TxFrame};
use crate::port::{Armed, Poller, Port, TxReport};

const SPAN: Duration = Duration::from_millis(50);
/// What looking at an empty queue costs, and a burst besides its frames, in nanoseconds.
const LOOK: u64 = 30;

/// Time that passes as work is done.
#[derive(Clone, Default)]
struct Work(Arc<AtomicU64>);

impl Work {
    fn pass(&self, nanos: u64) {
        self.0.fetch_add(nanos, Relaxed);
    }
}

impl Time for Work {
    fn now(&self) -> Moment {
        Moment(self.0.load(Relaxed))
    }
}

/// What comes by a queue.
#[derive(Clone)]
enum Supply {
    Nothing,
    /// As much as is taken, these frames in turn.
    Endless(Vec<Vec<u8>>),
    /// One of this frame every so many nanoseconds; a ring of 256 keeps what is not taken.
    Every(u64, Vec<u8>),
    /// What the port was handed comes back with this as its bytes, as from a router.
    Returned(Vec<u8>),
}

/// A queue whose every frame costs time, in and out.
struct Costly {
    work: Work,
    cost: u64,
    supply: Supply,
    next: usize,
    taken: u64,
    lost: Arc<AtomicU64>,
    handed: usize,
}

impl Costly {
    fn available(&mut self) -> usize {
        match &self.supply {
            Supply::Nothing => 0,
            Supply::Endless(_) => Burst::FRAMES_MAX,
            Supply::Every(gap, _) => {
                let waiting = self.work.now().0 / gap - self.taken;
                let over = waiting.saturating_sub(256);
                self.taken += over;
                self.lost.fetch_add(over, Relaxed);
                (waiting - over) as usize
            }
            Supply::Returned(_) => self.handed,
        }
    }
}

impl Port for Costly {
    fn attach(&mut self, _: Poller) -> std::io::Result<()> {
        Ok(())
    }

    fn is_running(&self) -> bool {
        true
    }

    fn peer(&self) -> PeerOffloads {
        ALL_OFFLOADS
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        let count = self.available().min(Burst::FRAMES_MAX);
        for _ in 0..count {
            let frame = match &self.supply {
                Supply::Endless(frames) => &frames[self.next % frames.len()],
                Supply::Every(_, frame) | Supply::Returned(frame) => frame,
                Supply::Nothing => unreachable!(),
            };
            assert!(burst.push(frame, Offload::default()));
            self.next += 1;
        }
        self.taken += count as u64;
        self.handed = self.handed.saturating_sub(count);
        self.work.pass(LOOK + count as u64 * self.cost);
        count
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        self.work.pass(LOOK + frames.len() as u64 * self.cost);
        self.handed += frames.len();
        TxReport {
            consumed: frames.len(),
            ..TxReport::default()
        }
    }

    fn arm(&mut self) -> Armed {
        match self.available() {
            0 => Armed::Asleep,
            _ => Armed::Ready,
        }
    }

    fn disarm(&mut self) {}
}

/// An element as a test describes it.
#[derive(Clone)]
struct Element {
    supply: Supply,
    queues: usize,
    cost: u64,
    punt_rate: Option<u32>,
}

impl Element {
    fn new(supply: Supply) -> Self {
        Self {
            supply,
            queues: 1,
            cost: 60,
            punt_rate: None,
        }
    }

    fn lane(
        &self,
        work: &Work,
        lost: &Arc<AtomicU64>,
    ) -> (Lane, Arc<ElementCounters>, super::super::lane::Bench) {
        let mut world = World::metered(self.punt_rate);
        world.offload(vouched("s", UDP));
        let port = |supply: &Supply| -> Box<dyn Port> {
            Box::new(Costly {
                work: work.clone(),
                cost: self.cost,
                supply: supply.clone(),
                next: 0,
                taken: 0,
                lost: lost.clone(),
                handed: 0,
            })
        };
        let side = |supply: &Supply| (0..self.queues).map(|_| port(supply)).collect();
        let vnic = |mac, uplink: &Supply| {
            let guest = side(&Supply::Returned(sent()));
            Vnic::new(mac, guest, side(uplink))
        };
        world.into_lane(vec![
            vnic(LAN_MAC, &self.supply),
            vnic(WAN_MAC, &Supply::Nothing),
        ])
    }
}

/// What an element got.
struct Got {
    counters: Snapshot,
    lost: u64,
}

/// Runs elements on one worker for [`SPAN`].
fn run(elements: &[Element]) -> Vec<Got> {
    run_for(elements, SPAN)
}

fn run_for(elements: &[Element], span: Duration) -> Vec<Got> {
    let work = Work::default();
    let losses: Vec<Arc<AtomicU64>> = elements.iter().map(|_| Arc::default()).collect();
    let mut lanes = Lanes::new(Arc::new(EpollSet::new().unwrap()));
    let (mut counters, mut bench) = (Vec::new(), None);
    for (element, lost) in elements.iter().zip(&losses) {
        let (lane, counted, lent) = element.lane(&work, lost);
        lanes.admit(Box::new(lane)).unwrap();
        counters.push(counted);
        bench = Some(lent);
    }
    let mut rounds = Rounds::new(lanes, bench.unwrap(), work.clone(), Polling::Adaptive);
    while work.now() < Moment::default() + span {
        match rounds.round() {
            Outlook::Work => work.pass(LOOK),
            Outlook::Nap(span) => {
                work.pass(span.as_nanos() as u64);
                rounds.nap_ended();
            }
            Outlook::Sleep => work.pass(1_000),
        }
        if rounds.any_asleep() {
            // The doorbell of whatever came meanwhile.
            rounds.wake(u64::MAX);
        }
    }
    let got = |(counters, lost): (&Arc<ElementCounters>, &Arc<AtomicU64>)| {
        let got = Got {
            counters: counters.snapshot(),
            lost: lost.load(Relaxed),
        };
        assert!(got.counters.is_conserved(), "{:?}", got.counters);
        got
    };
    counters.iter().zip(&losses).map(got).collect()
}

fn miss() -> Vec<u8> {
    udp((CLIENT_MAC, LAN_MAC), (CLIENT.0, 1), SERVER, 64, b"miss")
}

fn sent() -> Vec<u8> {
    udp((LAN_MAC, CLIENT_MAC), SERVER, (CLIENT.0, 1), 63, b"sent")
}

fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(CLIENT_MAC.0);
    frame.extend([8, 6]);
    frame.resize(60, 0);
    frame
}

fn hits() -> Element {
    Element::new(Supply::Endless(vec![datagram(1)]))
}

fn flood() -> Element {
    Element::new(Supply::Endless(vec![miss()]))
}

fn forwarded(got: &Got) -> f64 {
    got.counters.forwarded.packets as f64
}

fn punted(got: &Got) -> f64 {
    got.counters.punted.packets as f64
}

#[test]
fn a_flood_of_misses_costs_the_neighbours_offloaded_traffic_less_than_a_tenth() {
    let alone = run(&[hits()]);
    for queues in [1, 8] {
        let flood = Element { queues, ..flood() };
        let both = run(&[hits(), flood]);
        let kept = forwarded(&both[0]) / forwarded(&alone[0]);
        assert!(kept > 0.9, "{queues} queues: {kept}");
        // It is held back, not cut off, and what it lost is counted.
        assert!(punted(&both[1]) > 1_000.0 * SPAN.as_secs_f64());
        assert!(both[1].counters.dropped_for(DropReason::PuntMeter) > 0);
    }
}

#[test]
fn four_floods_together_cost_no_more_than_one() {
    let alone = run(&[hits()]);
    let all = run(&[hits(), flood(), flood(), flood(), flood()]);
    let kept = forwarded(&all[0]) / forwarded(&alone[0]);
    assert!(kept > 0.88, "{kept}");
    assert!(all[1..].iter().all(|got| punted(got) > 0.0));
}

#[test]
fn punts_are_unlimited_while_nobody_waits() {
    let alone = run(&[flood()]);
    // 100,000 packets a second take a hundredth of the worker.
    let light = Element::new(Supply::Every(10_000, datagram(1)));
    let both = run(&[light, flood()]);
    let kept = punted(&both[1]) / punted(&alone[0]);
    assert!(kept > 0.9, "{kept}");
    assert_eq!(both[1].counters.dropped_for(DropReason::PuntMeter), 0);
    assert_eq!(both[0].lost, 0);
    let due = SPAN.as_nanos() as f64 / 10_000.0;
    assert!(forwarded(&both[0]) > due - 20.0);
}

#[test]
fn a_neighbour_that_needs_most_of_the_worker_gets_it_and_the_flood_the_rest() {
    let capacity = forwarded(&run(&[hits()])[0]) / SPAN.as_nanos() as f64;
    let gap = (1.0 / (0.7 * capacity)) as u64;
    let busy = Element::new(Supply::Every(gap, datagram(1)));
    let both = run(&[busy, flood()]);
    let due = SPAN.as_nanos() as f64 / gap as f64;
    assert!(
        forwarded(&both[0]) > due * 0.95,
        "{} of {due}",
        forwarded(&both[0])
    );
    let rest = punted(&both[1]) / punted(&run(&[flood()])[0]);
    assert!(rest > 0.15, "{rest}");
}

#[test]
fn two_floods_share_the_worker_and_waste_none_of_it() {
    let alone = run(&[flood()]);
    let both = run(&[
        flood(),
        Element {
            queues: 4,
            ..flood()
        },
    ]);
    let [one, two] = [0, 1].map(|place| punted(&both[place]) / punted(&alone[0]));
    assert!(one + two > 0.95, "{one} {two}");
    assert!((one / two - 1.0).abs() < 0.1, "{one} {two}");
}

#[test]
fn neither_many_queues_nor_costly_packets_get_an_element_more_time() {
    let alone = run(&[hits()]);
    for (queues, cost) in [(8, 60), (1, 600), (8, 3_000)] {
        let greedy = Element {
            queues,
            cost,
            ..hits()
        };
        let both = run(&[hits(), greedy]);
        let kept = forwarded(&both[0]) / forwarded(&alone[0]);
        assert!(
            (0.45..0.55).contains(&kept),
            "{queues} queues at {cost}: {kept}"
        );
    }
}

#[test]
fn arp_and_the_like_come_through_a_flood_that_is_held_back() {
    let mut frames = vec![miss(); 15];
    frames.push(arp());
    let flood = Element::new(Supply::Endless(frames));
    let both = run(&[hits(), flood]);
    let counters = &both[1].counters;
    let (arps, misses) = (
        counters.punted_for(PuntReason::NonIp) + counters.punted_for(PuntReason::GroupMac),
        counters.punted_for(PuntReason::Miss),
    );
    let dropped = counters.dropped_for(DropReason::PuntMeter);
    // One in sixteen came in; none of them is among those dropped.
    let came = arps + misses + dropped;
    assert!(dropped > 0 && arps >= came / 16 - 4, "{arps} of {came}");
}

#[test]
fn a_configured_rate_holds_also_for_an_element_alone() {
    let metered = Element {
        punt_rate: Some(100_000),
        ..flood()
    };
    let got = &run_for(&[metered], Duration::from_millis(200))[0];
    let punted = got.counters.punted.packets;
    assert!((20_000..=25_100).contains(&punted), "{punted}");
    assert!(got.counters.dropped_for(DropReason::PuntMeter) > 100_000);
}
