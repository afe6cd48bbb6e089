//! A small world for the machines of this floor: two uplinks, a guest, a virtual clock,
//! and a datapath of a few lines over the real table, sessions and hand-over machine.
//!
//! The world keeps its own books: every packet it sends has a number, and [`World::check`]
//! compares what arrived with what was sent and what the guest model dropped.

mod random;
mod stories;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::hand_over::{
    FlowEvent, GuestSent, HandOver, HandOverLimits, Ingress, Release, ReleaseTo, Toll,
};
use super::request::{DirectionRequest, ElementShape, SessionRequest, VnicShape};
use super::sessions::{ElementSignals, Outcome, Sessions, SessionsLimits};
use super::table::{TableReader, flow_table};
use super::{CloseCode, FlowId, FlowState, HandOverMode, HashSeed, Moment};
use crate::packet::key::protocol;
use crate::packet::{FlowKey, MacAddr, Marker, Tuple, VnicId};

pub(super) const MAC_DST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xd]);
pub(super) const MAC_SRC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x5]);

/// An element with two vNICs.
pub(crate) fn shape() -> ElementShape {
    let vnic = |last| VnicShape {
        mac: MacAddr([2, 0, 0, 0, 1, last]),
        mtu: 1500,
    };
    ElementShape::new([vnic(0), vnic(1)])
}

/// A source NAT session from vNIC 0 to vNIC 1, number `n`.
pub(crate) fn request(n: u16) -> SessionRequest {
    let original = Tuple {
        src: "10.0.0.2".parse().unwrap(),
        dst: "198.51.100.7".parse().unwrap(),
        protocol: protocol::TCP,
        src_port: 10_000 + n,
        dst_port: 443,
    };
    let translation = Tuple {
        src: "203.0.113.1".parse().unwrap(),
        src_port: 40_000 + n,
        ..original
    };
    let direction = |ingress, egress, tuple: Tuple, translation: Tuple| DirectionRequest {
        ingress: VnicId(ingress),
        ingress_vlan: None,
        ingress_mac: None,
        tuple,
        translation,
        egress: VnicId(egress),
        egress_vlan: None,
        dst_mac: None,
        src_mac: None,
        l3_mtu: None,
        decrement_ttl: true,
        dscp: None,
    };
    SessionRequest {
        key: format!("ct-{n}"),
        protocol: protocol::TCP,
        idle_timeout: Duration::from_secs(30),
        hard_timeout: None,
        mode: HandOverMode::Ordered,
        vouched: false,
        original: Some(direction(0, 1, original, translation)),
        reply: Some(direction(1, 0, translation.reversed(), original.reversed())),
    }
}

/// What the world knows of a packet.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub direction: usize,
    /// The numbers it carries: one, or several once the guest has merged them.
    pub numbers: Vec<u64>,
    pub marker: Marker,
    /// FIN.
    pub control: bool,
}

/// What the guest does with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Act {
    #[default]
    Forward,
    Drop,
    /// Sends it with the one behind it, as GRO does.
    Merge,
    Twice,
    /// Forwards it, but not as the request says.
    OtherRewrite,
    /// Sends it by another vNIC.
    OtherRoute,
}

/// The guest: a queue with a transit time.
pub(super) struct Guest {
    pub transit: Duration,
    pub act: Box<dyn FnMut(&Packet) -> Act>,
    queue: VecDeque<(Moment, Packet)>,
}

pub(super) struct World {
    pub now: Moment,
    pub sessions: Sessions,
    pub hand_over: HandOver,
    pub guest: Guest,
    pub signals: Arc<ElementSignals>,
    pub request: SessionRequest,
    /// Where the guest sends what it forwards.
    pub next_hop: MacAddr,
    reader: TableReader,
    revisit: u32,
    lot: HashMap<FlowId, VecDeque<Packet>>,
    /// Numbers sent and numbers arrived, by direction.
    sent: [Vec<u64>; 2],
    pub arrived: [Vec<u64>; 2],
    dropped: HashSet<u64>,
    /// Packets of a direction below this prove nothing: they were sent before it was sent back.
    proves_from: [u64; 2],
    /// The highest number that the guest has sent, exactly as requested.
    proved_by: [Option<u64>; 2],
    /// By which way they came.
    pub forwarded: u64,
    pub through_guest: u64,
    next: u64,
}

impl World {
    pub fn new(limits: HandOverLimits) -> Self {
        let (writer, mut readers) = flow_table(64, 1, HashSeed::random());
        let sessions = Sessions::new(shape(), writer, SessionsLimits::default());
        Self {
            now: Moment(7_000_000_000),
            signals: sessions.signals(),
            sessions,
            hand_over: HandOver::new(limits),
            guest: Guest {
                transit: Duration::from_micros(300),
                act: Box::new(|_| Act::Forward),
                queue: VecDeque::new(),
            },
            request: request(1),
            next_hop: MAC_DST,
            reader: readers.remove(0),
            revisit: 0,
            lot: HashMap::new(),
            sent: [vec![], vec![]],
            arrived: [vec![], vec![]],
            dropped: HashSet::new(),
            proves_from: [0; 2],
            proved_by: [None; 2],
            forwarded: 0,
            through_guest: 0,
            next: 0,
        }
    }

    pub fn offload(&mut self) -> Outcome {
        let request = self.request.clone();
        let outcome = self.sessions.offload(request, self.now);
        if !matches!(outcome, Outcome::Unchanged(_)) {
            self.proves_from = [0; 2];
        }
        outcome
    }

    /// All sessions are to be proved again, by packets from now on.
    pub fn reprove(&mut self) -> u64 {
        let sent = self.sessions.reprove_all(self.now);
        self.proves_from = [self.next; 2];
        self.check_waiting();
        sent
    }

    /// The state of a direction's flow.
    pub fn state(&self, direction: usize) -> Option<FlowState> {
        let view = self.sessions.get(&self.request.key)?;
        Some(view.directions[direction]?.state)
    }

    /// The next packet of a direction, with sequence numbers that go up.
    pub fn send(&mut self, direction: usize) {
        let seq_end = (self.next as u32 + 1).wrapping_mul(100);
        self.send_as(direction, Marker::Tcp { seq_end, ack: 1 }, false);
    }

    pub fn send_as(&mut self, direction: usize, marker: Marker, control: bool) {
        let number = self.next;
        self.next += 1;
        self.sent[direction].push(number);
        let numbers = vec![number];
        self.uplink_receives(Packet {
            direction,
            numbers,
            marker,
            control,
        });
        self.tell();
    }

    /// `count` packets of a direction, `gap` apart.
    pub fn send_paced(&mut self, direction: usize, count: usize, gap: Duration) {
        for _ in 0..count {
            self.send(direction);
            self.run(gap);
        }
    }

    /// Lets time pass, doing all that becomes due on the way.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        for _ in 0..100_000 {
            let guest = self.guest.queue.front().map(|(at, _)| *at);
            let due = [
                guest,
                self.hand_over.next_deadline(),
                self.sessions.next_deadline(),
            ];
            let Some(next) = due.into_iter().flatten().min().filter(|&at| at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            if self
                .hand_over
                .next_deadline()
                .is_some_and(|at| at <= self.now)
            {
                self.expire();
            }
            if guest.is_some_and(|at| at <= self.now) {
                self.guest_works();
            }
            if self
                .sessions
                .next_deadline()
                .is_some_and(|at| at <= self.now)
            {
                self.sessions.advance(self.now);
                self.look_again();
            }
            self.tell();
        }
        panic!("the world stands still at {:?}", self.now);
    }

    /// Lets everything come to rest, and checks the books.
    pub fn check(&mut self, ordered: bool) {
        self.run(Duration::from_secs(3));
        assert!(self.guest.queue.is_empty());
        assert_eq!(self.hand_over.parked_frames(), 0);
        assert!(self.lot.values().all(VecDeque::is_empty));
        for direction in 0..2 {
            let mut firsts = Vec::new();
            let mut seen = HashSet::new();
            for &number in &self.arrived[direction] {
                if seen.insert(number) {
                    firsts.push(number);
                }
            }
            if ordered {
                assert!(firsts.is_sorted(), "overtaken: {firsts:?}");
            }
            for number in &self.sent[direction] {
                let lost = self.dropped.contains(number);
                assert_ne!(seen.contains(number), lost, "packet {number}");
            }
            assert!(seen.len() <= self.sent[direction].len());
        }
        let stats = self.hand_over.stats();
        assert!(stats.overtaken == 0 || !ordered, "{stats:?}");
        assert!(stats.transit_us_min <= stats.transit_us_max);
        assert!(stats.transit_us_sum <= stats.transits * stats.transit_us_max);
        let released = stats.released_to_egress + stats.released_to_guest;
        assert_eq!(stats.parked_frames, released);
    }

    /// `waiting` is what a walk over all sessions says.
    pub fn check_waiting(&self) {
        let waiting = self
            .sessions
            .iter()
            .flat_map(|view| view.directions)
            .flatten()
            .filter(|view| matches!(view.state, FlowState::Pending | FlowState::Draining))
            .count();
        let signal = self.signals.waiting.load(Ordering::Relaxed);
        assert_eq!(signal as usize, waiting);
    }

    // The datapath.

    fn key(&self, direction: usize) -> FlowKey {
        self.request.directions()[direction].unwrap().key()
    }

    fn key_out(&self, direction: usize) -> FlowKey {
        self.request.directions()[direction].unwrap().egress_key()
    }

    fn uplink_receives(&mut self, packet: Packet) {
        self.look_again();
        let key = self.key(packet.direction);
        let pin = self.reader.pin();
        let Some(flow) = pin.lookup(&key) else {
            return punt(&mut self.guest, self.now, packet);
        };
        let id = flow.id();
        let answer = if flow.state() == FlowState::Active && !packet.control {
            flow.count(1, 100, self.now.millis() as u32);
            let from = self.proves_from[packet.direction];
            let proved_by = self.proved_by[packet.direction];
            assert!(proved_by.is_some_and(|by| by >= from), "not proved");
            self.forwarded += 1;
            self.arrived[packet.direction].extend(packet.numbers);
            return;
        } else {
            let control = packet.control;
            self.hand_over
                .ingress(flow, packet.marker, control, 100, self.now)
        };
        let parked = self.lot.entry(id).or_default();
        match answer {
            Ingress::Park => return parked.push_back(packet),
            Ingress::Punt => assert!(parked.is_empty(), "it would overtake"),
            Ingress::ReleaseThenPunt => {
                for parked in parked.drain(..) {
                    punt(&mut self.guest, self.now, parked);
                }
            }
            Ingress::ReleaseThenForward => {
                let all = parked.drain(..).chain([packet]);
                for packet in all {
                    self.arrived[packet.direction].extend(packet.numbers);
                }
                return;
            }
        }
        if packet.control {
            let session = flow.session();
            for flow in [Some(flow), pin.partner(flow)].into_iter().flatten() {
                flow.close();
            }
            drop(pin);
            let code = CloseCode::Fin;
            let event = FlowEvent::Closed { session, code };
            self.sessions.event(event, self.now);
        }
        punt(&mut self.guest, self.now, packet);
    }

    fn guest_works(&mut self) {
        let Some((_, mut packet)) = self.guest.queue.pop_front() else {
            return;
        };
        let mut act = (self.guest.act)(&packet);
        if act == Act::Drop {
            self.dropped.extend(packet.numbers);
            return;
        }
        if act == Act::Merge {
            let next = self.guest.queue.front_mut();
            if let Some((_, next)) = next.filter(|(_, next)| {
                next.direction == packet.direction && !next.control && !packet.control
            }) {
                packet.numbers.append(&mut next.numbers);
                next.numbers = packet.numbers;
                return;
            }
            act = Act::Forward;
        }
        self.through_guest += 1;
        let asked = self.request.directions()[packet.direction].unwrap();
        let key = match act {
            Act::OtherRoute => FlowKey::new(VnicId(9), 0, &asked.translation),
            _ => asked.egress_key(),
        };
        let again = (act == Act::Twice).then(|| packet.clone());
        self.guest_sends(packet, key, act != Act::OtherRewrite);
        if let Some(packet) = again {
            self.guest_sends(packet, key, true);
        }
    }

    fn guest_sends(&mut self, packet: Packet, key: FlowKey, exact: bool) {
        self.look_again();
        if exact && key == self.key_out(packet.direction) {
            let proved_by = &mut self.proved_by[packet.direction];
            *proved_by = (*proved_by).max(packet.numbers.iter().copied().max());
        }
        self.arrived[packet.direction].extend(packet.numbers);
        if self.signals.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let pin = self.reader.pin();
        let Some(flow) = pin.lookup_egress(&key) else {
            return;
        };
        let answer =
            self.hand_over
                .guest_sent(flow, packet.marker, self.next_hop, MAC_SRC, exact, self.now);
        let (to, release) = match answer {
            GuestSent::Nothing => return,
            GuestSent::Activated { release } => (ReleaseTo::Uplink, release),
            GuestSent::Disproved { release } => (ReleaseTo::Guest, release),
        };
        let parked = self.lot.get(&flow.id()).map_or(0, VecDeque::len);
        assert_eq!(release, parked > 0);
        let flow = flow.id();
        drop(pin);
        self.release(Release { flow, to });
    }

    fn expire(&mut self) {
        let mut releases = Vec::new();
        let pin = self.reader.pin();
        self.hand_over
            .expire(&pin, self.now, |release| releases.push(release));
        drop(pin);
        releases
            .into_iter()
            .for_each(|release| self.release(release));
    }

    fn look_again(&mut self) {
        let revisit = self.signals.revisit.load(Ordering::Acquire);
        if std::mem::replace(&mut self.revisit, revisit) != revisit {
            let mut releases = Vec::new();
            let pin = self.reader.pin();
            self.hand_over
                .revisit(&pin, |release| releases.push(release));
            drop(pin);
            releases
                .into_iter()
                .for_each(|release| self.release(release));
        }
    }

    fn release(&mut self, release: Release) {
        for packet in self.lot.remove(&release.flow).into_iter().flatten() {
            match release.to {
                ReleaseTo::Guest => punt(&mut self.guest, self.now, packet),
                ReleaseTo::Uplink => self.arrived[packet.direction].extend(packet.numbers),
            }
        }
    }

    fn tell(&mut self) {
        while let Some(event) = self.hand_over.next_event() {
            self.sessions.event(event, self.now);
        }
        self.check_waiting();
    }
}

fn punt(guest: &mut Guest, now: Moment, packet: Packet) {
    let leaves = now + guest.transit;
    let after = guest.queue.back().map_or(leaves, |(at, _)| leaves.max(*at));
    guest.queue.push_back((after, packet));
}
