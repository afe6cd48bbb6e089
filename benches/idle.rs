//! What does a backend cost that has little to do, and what does its thrift cost the packets?
//!
//! *Held constant*: one element with two vNICs, one worker on CPU 1; frames of 64 bytes that
//! hit one session, evenly paced into one vhost-user uplink and taken from the other by a
//! polling generator on CPU 0 (`paced.rs`). CPU time is the process's own, all threads.
//! *Peers*: Open vSwitch with DPDK (`ovs-dpdk`), one poll-mode thread on CPU 1, the session as
//! an OpenFlow rule, measured in turn with ours; for the delays, ourselves with
//! `polling = "busy"` (`self-busy`). *Expected before measuring*: nothing at rest; one wake-up
//! for each frame at 1,000 a second; at 100,000 a wake-up for what comes in 50 us.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod end;
mod load;
mod paced;
mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use std::os::unix::net::UnixListener;
use std::time::Duration;

use end::End;
use etherparse::PacketBuilder;
use paced::{Run, Tag, Way};
use report::{Peer, Report, cpu_seconds, median};
use support::hugepages::Hugepages;
use support::ovs::{self, Ovs};
use support::process::pin;
use support::shunt::Shunt;
use support::{Dir, eventually, eventually_some, now};

const SAMPLES: usize = 5;
const SAMPLE: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_millis(100);
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
const SOUND_DEADLINE: Duration = Duration::from_secs(30);
const RATES: [u64; 4] = [0, 1_000, 10_000, 100_000];

fn main() {
    pin(std::process::id(), "0");
    let _hugepages = Hugepages::free(ovs::MEMORY_MIB);
    let mut contenders = [
        Contender::shunt("adaptive"),
        Contender::shunt("busy"),
        Contender::shunt("interrupt"),
        Contender::ovs(),
    ];
    let mut report = Report::new("idle");
    for pps in RATES {
        let mut samples: [Vec<Sample>; 4] = Default::default();
        for _ in 0..SAMPLES {
            for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
                samples.push(contender.sample(pps));
            }
        }
        tell(&mut report, pps, &samples);
    }
}

/// The lines of one rate.
fn tell(report: &mut Report, pps: u64, samples: &[Vec<Sample>; 4]) {
    let figure = |contender: usize, of: fn(&Sample) -> f64| {
        median(samples[contender].iter().map(of).collect())
    };
    let [adaptive, busy, interrupt, ovs] = [0, 1, 2, 3];
    let peer = |name, theirs| Some(Peer { name, theirs });
    let share = |contender| figure(contender, |sample| sample.share);
    let case = format!("pps={pps}");
    report.line(
        &case,
        share(adaptive),
        "cores",
        peer("ovs-dpdk", share(ovs)),
    );
    let other = format!("{case} interrupt");
    report.line(&other, share(interrupt), "cores", None);
    if pps == 0 {
        return;
    }
    for (name, of) in [
        ("median", (|sample| sample.median) as fn(&Sample) -> f64),
        ("p99", |sample| sample.p99),
    ] {
        let case = format!("{case} delay-{name}");
        let theirs = peer("self-busy", figure(busy, of));
        report.line(&case, figure(adaptive, of), "us", theirs);
        let case = format!("{case} interrupt");
        report.line(&case, figure(interrupt, of), "us", None);
    }
}

/// One look at one contender.
struct Sample {
    /// Cores its process used.
    share: f64,
    /// Delays in microseconds.
    median: f64,
    p99: f64,
}

struct Contender {
    backend: Backend,
    ports: Ports,
    // Last, since the backend's sockets are in it.
    _dir: Dir,
}

enum Backend {
    Shunt(Box<Shunt>),
    Ovs(Box<Ovs>),
}

impl Contender {
    fn shunt(polling: &str) -> Self {
        let dir = Dir::new();
        let mut config = format!(
            "[backend]\ncontrol = \"{{dir}}/control.sock\"\npolling = \"{polling}\"\n\
             [[element]]\nname = \"router\"\n"
        );
        for (number, side) in ["lan", "wan"].iter().enumerate() {
            config += &format!(
                "[[element.vnic]]\nname = \"{side}\"\nsocket = \"{{dir}}/{side}.sock\"\n\
                 mac = \"52:54:00:00:00:0{number}\"\n\
                 uplink = {{ type = \"vhost-user\", socket = \"{{dir}}/{side}-uplink.sock\" }}\n"
            );
        }
        let mut shunt = Shunt::start(&dir, &config);
        load::offload(&dir.file("control.sock"), "router", "lan", "wan", 1);
        pin(shunt.process().id(), "1");
        let (from, to) = (
            End::connect(&dir.file("lan-uplink.sock")),
            End::connect(&dir.file("wan-uplink.sock")),
        );
        Self::resting(Backend::Shunt(Box::new(shunt)), from, to, dir)
    }

    fn ovs() -> Self {
        let dir = Dir::new();
        let mut switch = Ovs::start(&dir, 1, 0);
        let listen = |name: &str| UnixListener::bind(dir.file(name)).unwrap();
        let listeners = ["from.sock", "to.sock"].map(listen);
        let from = switch.add_vhost_client(&dir.file("from.sock"));
        let to = switch.add_vhost_client(&dir.file("to.sock"));
        switch.add_flows(&format!(
            "in_port={from},dl_dst={},udp,nw_src=10.254.0.0,nw_dst={},tp_src=1000,tp_dst=1001,\
             actions=mod_dl_src:02:00:00:00:00:0c,mod_dl_dst:02:00:00:00:00:0d,mod_nw_src:{},\
             mod_tp_src:{},dec_ttl,output:{to}\n",
            load::FLOWGEN_MAC,
            load::destination(0),
            load::translated(0),
            load::source_port(0),
        ));
        let [from, to] = listeners.each_ref().map(End::accept);
        eventually(CONNECT_DEADLINE, "the switch's links are up", || {
            switch.is_connected()
        });
        Self::resting(Backend::Ovs(Box::new(switch)), from, to, dir)
    }

    fn resting(backend: Backend, from: End, to: End, dir: Dir) -> Self {
        let frame = frame();
        let mut contender = Self {
            backend,
            ports: Ports { from, to, frame },
            _dir: dir,
        };
        eventually(CONNECT_DEADLINE, "frames come through", || {
            contender.run(1_000, WARM_UP).received > 0
        });
        contender.signal(libc::SIGSTOP);
        contender
    }

    /// Gives it the CPU, measures, takes it away. A look during which the machine did
    /// something else for so long that frames were lost is taken again.
    fn sample(&mut self, pps: u64) -> Sample {
        self.signal(libc::SIGCONT);
        self.run(pps, WARM_UP);
        let sample = eventually_some(SOUND_DEADLINE, "nearly all frames come through", || {
            self.look(pps)
        });
        self.signal(libc::SIGSTOP);
        sample
    }

    /// Measures; `None` if frames were lost.
    fn look(&mut self, pps: u64) -> Option<Sample> {
        let process = self.process();
        let (began, before) = (now(), cpu_seconds(process));
        let run = self.run(pps, SAMPLE);
        let share = (cpu_seconds(process) - before) / began.elapsed().as_secs_f64();
        let due = pps as f64 * SAMPLE.as_secs_f64();
        if (run.received as f64) < due * 0.95 {
            return None;
        }
        let delay = |part| match run.received {
            0 => 0.0,
            _ => run.delay(part),
        };
        Some(Sample {
            share,
            median: delay(0.5),
            p99: delay(0.99),
        })
    }

    fn run(&mut self, pps: u64, span: Duration) -> Run {
        paced::run(&mut self.ports, pps, span)
    }

    fn process(&mut self) -> u32 {
        match &mut self.backend {
            Backend::Shunt(shunt) => shunt.process().id(),
            Backend::Ovs(switch) => switch.process().id(),
        }
    }

    fn signal(&mut self, signal: libc::c_int) {
        match &mut self.backend {
            Backend::Shunt(shunt) => shunt.process().signal(signal),
            Backend::Ovs(switch) => switch.process().signal(signal),
        }
    }
}

/// From one port of a backend to the other.
struct Ports {
    from: End,
    to: End,
    frame: Vec<u8>,
}

/// Where a frame's tag is: behind Ethernet, IPv4 and UDP.
const TAG: std::ops::Range<usize> = 42..47;

impl Way for Ports {
    fn is_full(&self) -> bool {
        self.from.is_full()
    }

    fn send(&mut self, tag: Tag) {
        self.frame[TAG].copy_from_slice(&tag);
        self.from.send(&self.frame);
    }

    fn take(&mut self) -> Option<Tag> {
        let came = self.to.take()?;
        Some(came.get(TAG)?.try_into().unwrap())
    }
}

/// What `load::offload` has a session for, with room for a tag.
fn frame() -> Vec<u8> {
    let to = load::destination(0).octets();
    let mac = [0x00, 0x01, 0x02, 0x03, 0x04, 0x01];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xa], mac)
        .ipv4([10, 254, 0, 0], to, 64)
        .udp(1000, 1001)
        .write(&mut frame, &[0; 18])
        .unwrap();
    frame
}
