//! An element between ports that never run dry, and the workers that serve it.

#![allow(dead_code, reason = "each bench uses a part")]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use shunt::datapath::ElementId;
use shunt::datapath::clock::Clock;
use shunt::datapath::crew::Crew;
use shunt::datapath::keeper::Preparation;
use shunt::datapath::lane::Vnic;
use shunt::datapath::lanes::Lanes;
use shunt::datapath::pace::Polling;
use shunt::datapath::worker::Worker;
use shunt::flow::{
    DirectionRequest, ElementShape, HandOverLimits, HandOverMode, HashSeed, Moment, Outcome,
    SessionRequest, Sessions, ShieldSet, VnicShape, flow_table, slots_of,
};
use shunt::packet::{Burst, MacAddr, Offload, PeerOffloads, Tuple, TxFrame, VnicId};
use shunt::port::{Armed, Poller, Port, TxReport};

const SESSIONS: u32 = 4096;
const LAN_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const WAN_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const CLIENT_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xc]);
const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xd]);
/// How many CPUs there are; asked before the first pin.
static CPUS: OnceLock<usize> = OnceLock::new();
/// A frame of 64 bytes with its check sequence.
const PAYLOAD: [u8; 18] = [0; 18];

/// Which of two workers' work a process does.
#[derive(Clone, Copy)]
pub struct Part {
    /// How many workers it has.
    pub workers: usize,
    /// Whose frames the first of them gets: 0 or 1.
    pub first: usize,
    /// What the frames are.
    pub traffic: Traffic,
}

/// What comes in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// UDP of sessions.
    Udp,
    /// TCP segments of sessions, with the flag ACK.
    Tcp,
    /// The same, and every other segment of a session has PSH, too.
    TcpPushes,
    /// UDP that no session concerns: all of it is the guest's.
    Misses,
}

impl Traffic {
    fn protocol(self) -> u8 {
        match self {
            Self::Tcp | Self::TcpPushes => 6,
            Self::Udp | Self::Misses => 17,
        }
    }
}

/// Brings the same frames for ever, and takes all that it is given.
struct Endless {
    frames: Vec<Vec<u8>>,
    next: usize,
    taken: Arc<AtomicU64>,
    room: Box<[[u8; 128]; Burst::FRAMES_MAX]>,
}

impl Endless {
    fn port(frames: Vec<Vec<u8>>, taken: &Arc<AtomicU64>) -> Box<dyn Port> {
        Box::new(Self {
            frames,
            next: 0,
            taken: taken.clone(),
            room: Box::new([[0; 128]; Burst::FRAMES_MAX]),
        })
    }
}

impl Port for Endless {
    fn attach(&mut self, _: Poller) -> std::io::Result<()> {
        Ok(())
    }

    fn is_running(&self) -> bool {
        true
    }

    fn peer(&self) -> PeerOffloads {
        PeerOffloads::ALL
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        let before = burst.len();
        while let Some(frame) = self.frames.get(self.next) {
            if !burst.push(frame, Offload::default()) {
                break;
            }
            self.next = (self.next + 1) % self.frames.len();
        }
        burst.len() - before
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        for (place, frame) in self.room.iter_mut().zip(frames) {
            place[..frame.data.len()].copy_from_slice(frame.data);
        }
        let taken = self.taken.load(Ordering::Relaxed) + frames.len() as u64;
        self.taken.store(taken, Ordering::Relaxed);
        TxReport {
            consumed: frames.len(),
            ..TxReport::default()
        }
    }

    fn arm(&mut self) -> Armed {
        Armed::Ready
    }

    fn disarm(&mut self) {}
}

/// Addresses and ports of a session, before and after translation.
fn tuples(protocol: u8, session: u32) -> [Tuple; 2] {
    let own = Tuple {
        src: Ipv4Addr::from_bits(0x0a00_0002 + session).into(),
        dst: Ipv4Addr::new(192, 0, 2, 9).into(),
        protocol,
        src_port: 40_000,
        dst_port: 5_000,
    };
    let outside = Tuple {
        src: Ipv4Addr::new(198, 51, 100, 1).into(),
        src_port: 1_024 + session as u16,
        ..own
    };
    [own, outside]
}

fn request(protocol: u8, session: u32) -> SessionRequest {
    let [own, outside] = tuples(protocol, session);
    let direction = |ingress, egress, tuple, translation, (dst, src)| DirectionRequest {
        ingress: VnicId(ingress),
        ingress_vlan: None,
        ingress_mac: None,
        tuple,
        translation,
        egress: VnicId(egress),
        egress_vlan: None,
        dst_mac: Some(dst),
        src_mac: Some(src),
        l3_mtu: None,
        decrement_ttl: true,
        dscp: None,
    };
    let back = (CLIENT_MAC, LAN_MAC);
    SessionRequest {
        key: session.to_string(),
        protocol,
        idle_timeout: Duration::from_secs(3600),
        hard_timeout: None,
        mode: HandOverMode::Ordered,
        vouched: true,
        original: Some(direction(0, 1, own, outside, (SERVER_MAC, WAN_MAC))),
        reply: Some(direction(1, 0, outside.reversed(), own.reversed(), back)),
    }
}

fn frame((dst_mac, src_mac): (MacAddr, MacAddr), tuple: Tuple, pushes: bool) -> Vec<u8> {
    let (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) = (tuple.src, tuple.dst) else {
        unreachable!("IPv4 only")
    };
    let mut frame = Vec::new();
    let builder =
        PacketBuilder::ethernet2(src_mac.0, dst_mac.0).ipv4(src.octets(), dst.octets(), 64);
    let (from, to) = (tuple.src_port, tuple.dst_port);
    match tuple.protocol {
        6 => {
            let builder = builder.tcp(from, to, 1, 512).ack(1);
            let builder = if pushes { builder.psh() } else { builder };
            builder.write(&mut frame, &PAYLOAD[12..])
        }
        _ => builder.udp(from, to).write(&mut frame, &PAYLOAD),
    }
    .unwrap();
    frame
}

/// The frames of every second session as they come in by LAN and WAN.
fn frames(traffic: Traffic, odd: usize) -> [Vec<Vec<u8>>; 2] {
    let turns: &[bool] = match traffic {
        Traffic::TcpPushes => &[false, true],
        Traffic::Udp | Traffic::Tcp | Traffic::Misses => &[false],
    };
    let sessions = || (0..SESSIONS).filter(|session| *session as usize % 2 == odd);
    let turns = turns
        .iter()
        .flat_map(|pushes| sessions().map(move |session| (session, *pushes)));
    let both = turns.map(|(session, pushes)| {
        let [own, outside] = tuples(traffic.protocol(), session);
        let original = frame((LAN_MAC, CLIENT_MAC), own, pushes);
        let reply = frame((WAN_MAC, SERVER_MAC), outside.reversed(), pushes);
        (original, reply)
    });
    let (lan, wan) = both.unzip();
    [lan, wan]
}

/// Workers that run, and how much has come out of them.
pub struct Running {
    workers: Vec<Worker>,
    taken: Vec<Arc<AtomicU64>>,
    _book: Sessions,
    _reports: Preparation,
}

impl Running {
    /// Packets a second, over a second.
    pub fn rate(&mut self) -> f64 {
        let sum = |taken: &[Arc<AtomicU64>]| -> u64 {
            taken.iter().map(|own| own.load(Ordering::Relaxed)).sum()
        };
        let (began, before) = (now(), sum(&self.taken));
        linger(Duration::from_secs(1));
        assert!(self.workers.iter().all(Worker::is_alive));
        let came = sum(&self.taken) - before;
        came as f64 / began.elapsed().as_secs_f64()
    }

    /// From now on these are the element's shields.
    pub fn set_shields(&mut self, shields: Option<&Arc<ShieldSet>>) {
        for worker in &mut self.workers {
            let shields = shields.cloned();
            let order = move |lanes: &mut Lanes| drop(lanes.set_shields(ElementId(0), shields));
            worker.submit(order).unwrap();
        }
    }
}

/// Cells that a set of shields for the element needs.
pub fn slots() -> usize {
    slots_of(2 * SESSIONS) as usize
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn linger(span: Duration) {
    std::thread::sleep(span);
}

/// Starts the workers of one element, each on a CPU of its own.
pub fn start(part: Part) -> Running {
    let taken: Vec<Arc<AtomicU64>> = (0..part.workers).map(|_| Arc::default()).collect();
    let mut sides = [Vec::new(), Vec::new()];
    for (queue, taken) in taken.iter().enumerate() {
        let uplinks = frames(part.traffic, (part.first + queue) % 2);
        for (side, frames) in sides.iter_mut().zip(uplinks) {
            side.push((
                Endless::port(Vec::new(), taken),
                Endless::port(frames, taken),
            ));
        }
    }
    let macs = [LAN_MAC, WAN_MAC];
    let vnics = macs.into_iter().zip(sides).map(|(mac, side)| {
        let (guest, uplink) = side.into_iter().unzip();
        Vnic::new(mac, guest, uplink)
    });
    let (writer, readers) = flow_table(2 * SESSIONS, part.workers, HashSeed::random());
    let shapes = macs.map(|mac| VnicShape { mac, mtu: 1500 });
    let mut book = Sessions::new(ElementShape::new(shapes), writer, Default::default());
    let sessions = match part.traffic {
        Traffic::Misses => 0,
        Traffic::Udp | Traffic::Tcp | Traffic::TcpPushes => SESSIONS,
    };
    for session in 0..sessions {
        let request = request(part.traffic.protocol(), session);
        let outcome = book.offload(request, Moment(1));
        assert!(matches!(outcome, Outcome::Offloaded(_)), "{outcome:?}");
    }
    let crew = Crew {
        id: ElementId(0),
        vnics: vnics.collect(),
        signals: book.signals(),
        limits: HandOverLimits::default(),
        punt_rate: None,
    };
    let (lanes, _) = crew.lanes(readers).unwrap();
    let mut reports = Preparation::new().unwrap();
    let clock = Clock::start();
    let workers = lanes.into_iter().enumerate().map(|(number, lane)| {
        let name = format!("worker-{number}");
        let lanes = vec![lane];
        // A thread starts where the one is that starts it.
        pin(Some(part.first + number));
        Worker::start(&name, clock, Polling::Adaptive, lanes, reports.reporter()).unwrap()
    });
    let workers = workers.collect();
    pin(None);
    Running {
        workers,
        taken,
        _book: book,
        _reports: reports,
    }
}

/// Keeps this thread, and what it starts from now on, on a CPU; `None`: on any.
fn pin(cpu: Option<usize>) {
    let count = std::thread::available_parallelism().map_or(1, |count| count.get());
    // SAFETY: a `cpu_set_t` of zeros is an empty set, and it lives over both calls.
    let answer = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match cpu {
            Some(cpu) => libc::CPU_SET(cpu % CPUS.get_or_init(|| count), &mut set),
            None => (0..*CPUS.get_or_init(|| count)).for_each(|cpu| libc::CPU_SET(cpu, &mut set)),
        }
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}
