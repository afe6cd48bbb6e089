//! What is measured: a backend between vhost-user sockets, and the generator at its ports.
//!
//! All contenders of a case live at once. One at a time has the CPUs: the others are
//! stopped (SIGSTOP, testpmd `stop`) meanwhile.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::load;
use crate::support::ovs::Ovs;
use crate::support::process::{needs, pin};
use crate::support::shunt::Shunt;
use crate::support::testpmd::Testpmd;
use crate::support::{Dir, eventually, now, pause};

/// The backend's CPU, the generator's, and how testpmd is told of them.
const WORKER_CPU: usize = 1;
const GENERATOR_CPU: usize = 0;
const WORKER_LCORES: &str = "0@0,1@1";
const GENERATOR_LCORES: &str = "0@0,1@0";

const WARM_UP: Duration = Duration::from_millis(400);
const SAMPLE: Duration = Duration::from_secs(1);
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
const LEARN_DEADLINE: Duration = Duration::from_secs(60);
/// Features of the generator's ports, the same for every backend.
const FEATURES: &str = "queues=1,mrg_rxbuf=1,in_order=0,packed_vq=0";

/// One second of one contender.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Frames a second that came back to the generator, all ports.
    pub pps: f64,
    /// Share of the time in which the worker had frames in its hands.
    pub busy: f64,
    /// CPU cycles the worker spent on each.
    pub cycles: f64,
}

/// A backend and its generator.
pub struct Contender {
    /// As reported in `peer`.
    pub name: &'static str,
    backend: Backend,
    generator: Testpmd,
    ports: usize,
}

enum Backend {
    Shunt(Box<Shunt>),
    Ovs(Box<Ovs>),
    Testpmd(Box<Testpmd>),
}

/// What a case asks of every contender.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Flows that flowgen makes for each port.
    pub flows: u32,
    /// Whether they have sessions (rules): rewritten and forwarded; otherwise only ours
    /// and testpmd can run, on four ports.
    pub sessions: bool,
}

impl Load {
    fn ports(self) -> usize {
        if self.sessions { 2 } else { 4 }
    }

    fn sockets(self, dir: &Dir) -> Vec<PathBuf> {
        ["lan-uplink", "wan-uplink", "lan", "wan"][..self.ports()]
            .iter()
            .map(|name| dir.file(&format!("{name}.sock")))
            .collect()
    }
}

impl Contender {
    /// `shunt backend` with one worker. Without sessions its guest is the generator too.
    pub fn shunt(name: &'static str, dir: &Dir, load: Load) -> Self {
        let mut shunt = Shunt::start(dir, &config(load));
        if load.sessions {
            let control = dir.file("control.sock");
            for (ingress, egress) in [("lan", "wan"), ("wan", "lan")] {
                load::offload(&control, "router", ingress, egress, load.flows);
            }
        }
        pin(shunt.process().id(), &WORKER_CPU.to_string());
        Self::with(name, dir, load, "", Backend::Shunt(Box::new(shunt)))
    }

    /// Open vSwitch with one poll-mode thread and a rule for each flow of each port.
    pub fn ovs(name: &'static str, dir: &Dir, load: Load) -> Self {
        let mut ovs = Ovs::start(dir, WORKER_CPU, GENERATOR_CPU);
        let ports: Vec<u32> = load
            .sockets(dir)
            .iter()
            .map(|socket| ovs.add_vhost_client(socket))
            .collect();
        let (lan, wan) = (ports[0], ports[1]);
        ovs.add_flows(&(rules(lan, wan, load.flows) + &rules(wan, lan, load.flows)));
        // The frontends listen, and start only once the switch has found them.
        Self::with(name, dir, load, ",server=1", Backend::Ovs(Box::new(ovs)))
    }

    /// testpmd with vhost ports, in a forward mode that looks nothing up.
    pub fn testpmd(name: &'static str, mode: &str, dir: &Dir, load: Load) -> Self {
        needs("dpdk-testpmd", "dpdk");
        let mut builder = Testpmd::build(mode).lcores(WORKER_LCORES);
        for socket in load.sockets(dir) {
            builder = builder.vhost(&socket, "queues=1");
        }
        let mut testpmd = builder.start(dir);
        testpmd.command("set record-core-cycles on");
        Self::with(name, dir, load, "", Backend::Testpmd(Box::new(testpmd)))
    }

    fn with(name: &'static str, dir: &Dir, load: Load, extra: &str, backend: Backend) -> Self {
        let mut builder = Testpmd::build("flowgen")
            .lcores(GENERATOR_LCORES)
            .argument(&format!("--flowgen-flows={}", load.flows));
        for socket in load.sockets(dir) {
            builder = builder.virtio_user(&socket, &format!("{FEATURES}{extra}"));
        }
        let generator = builder.start(dir);
        if let Backend::Ovs(ovs) = &backend {
            eventually(CONNECT_DEADLINE, "the switch's links are up", || {
                ovs.is_connected()
            });
        }
        let mut contender = Self {
            name,
            backend,
            generator,
            ports: load.ports(),
        };
        contender.learn();
        contender
    }

    /// A switch learns each flow from its first frame: that is not measured.
    fn learn(&mut self) {
        if let Backend::Ovs(ovs) = &mut self.backend {
            self.generator.forward();
            let mut before = 0;
            eventually(LEARN_DEADLINE, "the switch has learned all flows", || {
                pause(SAMPLE);
                let learned = ovs.learned();
                let grown = learned.abs_diff(std::mem::replace(&mut before, learned));
                learned > 0 && grown <= learned / 50
            });
            self.generator.stop();
        }
        self.rest();
    }

    /// Gives it the CPUs, measures for a second, takes them away.
    pub fn sample(&mut self) -> Sample {
        match &mut self.backend {
            Backend::Shunt(_) => {}
            Backend::Ovs(ovs) => ovs.resume(),
            Backend::Testpmd(testpmd) => testpmd.forward(),
        }
        self.generator.forward();
        pause(WARM_UP);
        let busy_before = self.busy_ns();
        let (began, before) = (now(), self.received());
        pause(SAMPLE);
        let (received, elapsed) = (self.received() - before, began.elapsed());
        let (mut busy, mut cycles) = self.usage(received);
        if let Some(before) = busy_before {
            let ns = self.busy_ns().unwrap_or(before) - before;
            busy = ns / elapsed.as_nanos() as f64;
            cycles = ns * ghz() / received;
        } else if let Backend::Testpmd(_) = self.backend {
            busy /= elapsed.as_secs_f64();
        }
        self.generator.stop();
        self.rest();
        let pps = received / elapsed.as_secs_f64();
        Sample { pps, busy, cycles }
    }

    /// Takes the CPUs from a backend that polls without end.
    fn rest(&mut self) {
        match &mut self.backend {
            // It sleeps by itself.
            Backend::Shunt(_) => {}
            Backend::Ovs(ovs) => ovs.rest(),
            Backend::Testpmd(testpmd) => testpmd.stop(),
        }
    }

    /// What came back so far; peers' own counters start anew with it.
    fn received(&mut self) -> f64 {
        let stats = self.generator.stats();
        assert_eq!(stats.len(), self.ports, "the generator lost a port");
        stats.iter().map(|port| port.rx_packets as f64).sum()
    }

    /// Nanoseconds our worker has had work; `None` for a peer, whose counter is reset.
    fn busy_ns(&mut self) -> Option<f64> {
        match &mut self.backend {
            Backend::Shunt(shunt) => {
                let path = "/restconf/data/shunt-offload:state/element=router/statistics";
                let answer = shunt.control().get(path);
                let text = &answer["shunt-offload:statistics"]["busy-time"];
                Some(text.as_str().expect("a counter").parse().expect("a number"))
            }
            Backend::Ovs(ovs) => {
                ovs.appctl(&["dpif-netdev/pmd-stats-clear"]);
                None
            }
            Backend::Testpmd(testpmd) => {
                testpmd.command("clear fwd stats all");
                None
            }
        }
    }

    /// A peer's own word on its busy share (testpmd: busy seconds) and cycles a frame.
    fn usage(&mut self, received: f64) -> (f64, f64) {
        match &mut self.backend {
            Backend::Shunt(_) => (0.0, 0.0),
            Backend::Ovs(ovs) => {
                let text = ovs.appctl(&["dpif-netdev/pmd-stats-show"]);
                let line = after(&text, "processing cycles:");
                let share = number(after(line, "("));
                (share / 100.0, number(line) / received)
            }
            Backend::Testpmd(testpmd) => {
                let text = testpmd.command("show fwd stats all");
                let cycles = number(after(&text, "(total cycles="));
                let mhz = number(after(&text, ") at "));
                (cycles / (mhz * 1e6), cycles / received)
            }
        }
    }
}

fn config(load: Load) -> String {
    let sessions = (load.flows * 2).max(1024);
    let mut config = format!(
        "[backend]\ncontrol = \"{{dir}}/control.sock\"\nworkers = 1\n\
         [[element]]\nname = \"router\"\nsessions = {sessions}\n"
    );
    for (number, side) in ["lan", "wan"].iter().enumerate() {
        write!(
            config,
            "[[element.vnic]]\nname = \"{side}\"\nsocket = \"{{dir}}/{side}.sock\"\n\
             mac = \"52:54:00:00:00:0{number}\"\n\
             uplink = {{ type = \"vhost-user\", socket = \"{{dir}}/{side}-uplink.sock\" }}\n"
        )
        .unwrap();
    }
    config
}

/// The same match and rewrite as a session's, as OpenFlow rules.
fn rules(from: u32, to: u32, flows: u32) -> String {
    let mut text = String::new();
    for number in 0..flows {
        writeln!(
            text,
            "in_port={from},dl_dst={},udp,nw_src=10.254.0.0,nw_dst={},tp_src=1000,tp_dst=1001,\
             actions=mod_dl_src:02:00:00:00:00:0c,mod_dl_dst:02:00:00:00:00:0d,mod_nw_src:{},\
             mod_tp_src:{},dec_ttl,output:{to}",
            load::FLOWGEN_MAC,
            load::destination(number),
            load::translated(number),
            load::source_port(number),
        )
        .unwrap();
    }
    text
}

fn after<'t>(text: &'t str, mark: &str) -> &'t str {
    let at = text.find(mark);
    let at = at.unwrap_or_else(|| panic!("no '{mark}' in:\n{text}"));
    &text[at + mark.len()..]
}

/// The number that `text` begins with.
fn number(text: &str) -> f64 {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let digits = &text[..end.unwrap_or(text.len())];
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number at '{}'", &text[..text.len().min(40)]))
}

/// Cycles of the time stamp counter a nanosecond, which testpmd and OVS count in.
fn ghz() -> f64 {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    number(after(after(&cpu, "cpu MHz"), ":")) / 1000.0
}
