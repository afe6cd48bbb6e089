//! How much goes from tap to tap around the guest?
//!
//! *Held constant*: a client's and a server's namespace; one iperf3 TCP connection, and one
//! flow of 64-byte UDP frames, all of them through sessions that translate the source
//! address; one worker. A sender that costs little and a sink where the server's stack begins
//! (`qemu/demo/udp.rs`) are the ends of every path. *Peers*: `kernel-nat`, forwarding and
//! masquerade between veth devices; `tap-copy`, a loop that reads one tap and writes the other,
//! GSO on, without a look at the frames; `read-write`, Shunt itself where the kernel refuses
//! io_uring. Paths take turns, and a figure is the median over its turns. CPU time is the whole
//! machine's, ends included; programs with a positive nice value do not count.
//! *Expected before measuring*: TCP as fast as `tap-copy`, which copies each byte as often; for
//! small frames some 2.3 us of kernel time each, 0.2 us of ours.
//!
//! An argument (`tcp`, `udp64`) chooses one case.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

#[allow(dead_code, reason = "another bench uses the rest")]
mod paths;
mod report;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../qemu/demo/udp.rs"]
mod udp;

use std::time::Duration;

use paths::{CLIENT, Path, SERVER};
use report::{Peer, Report, machine_cpu_seconds, median};
use support::at;
use udp::{Blaster, Effort};

const TURNS: usize = 5;
const IPERF_PORT: u16 = 5201;
/// Seconds of one TCP transfer, and of those before that do not count.
const TCP_SECONDS: (u32, u32) = (3, 1);
const UDP_PORTS: (u16, u16) = (paths::PORTS.start, 9000);
const UDP_EFFORT: Effort = Effort {
    trial: Duration::from_millis(400),
    halvings: 4,
};
/// How long a rate that got through is looked at for its cost.
const UDP_COST: Duration = Duration::from_secs(1);
/// Where the first search begins, packets a second.
const UDP_FIRST: f64 = 150_000.0;

/// What one turn of a path gave: its speed, and CPU seconds for so much of it.
#[derive(Clone, Copy)]
struct Turn {
    speed: f64,
    cost: f64,
}

fn main() {
    let wanted = |case: &str| {
        let mut cases = std::env::args()
            .skip(1)
            .filter(|word| !word.starts_with('-'));
        cases.next().is_none_or(|word| word == case)
    };
    let mut report = Report::new("tap");
    let paths = [
        paths::shunt(true, &[IPERF_PORT], UDP_PORTS.1),
        paths::kernel_nat(),
        paths::tap_copy(),
        paths::shunt(false, &[IPERF_PORT], UDP_PORTS.1),
    ];
    if wanted("tcp") {
        let turns = take_turns(&paths, tcp);
        tell(&mut report, "tcp", ("Gb/s", "cpu-s/GB"), &paths, &turns);
    }
    if wanted("udp64") {
        let mut rates = [UDP_FIRST; 4];
        let turns = take_turns(&paths, |index, path| udp64(path, &mut rates[index]));
        tell(&mut report, "udp64", ("pps", "cpu-s/Mpkt"), &paths, &turns);
    }
}

/// The turns of each path, all paths once before any again.
fn take_turns(paths: &[Path], mut turn: impl FnMut(usize, &Path) -> Turn) -> Vec<Vec<Turn>> {
    let mut turns = vec![Vec::new(); paths.len()];
    for _ in 0..TURNS {
        for (index, path) in paths.iter().enumerate() {
            turns[index].push(turn(index, path));
        }
    }
    turns
}

fn tell(
    report: &mut Report,
    case: &str,
    units: (&'static str, &'static str),
    paths: &[Path],
    turns: &[Vec<Turn>],
) {
    let speeds = |turns: &[Turn]| median(turns.iter().map(|turn| turn.speed).collect());
    let costs = |turns: &[Turn]| median(turns.iter().map(|turn| turn.cost).collect());
    for (path, theirs) in paths.iter().zip(turns).skip(1) {
        for (case, unit, figure) in [
            (case.to_owned(), units.0, &speeds as &dyn Fn(&[Turn]) -> f64),
            (format!("{case} cpu"), units.1, &costs),
        ] {
            let peer = Peer {
                name: path.name,
                theirs: figure(theirs),
            };
            report.line(&case, figure(&turns[0]), unit, Some(peer));
        }
    }
}

/// One iperf3 connection: Gb/s that arrived.
fn tcp(_: usize, path: &Path) -> Turn {
    let (seconds, omitted) = TCP_SECONDS;
    let before = machine_cpu_seconds();
    let output = path.client.succeed(&[
        "iperf3",
        "--client",
        SERVER,
        "--json",
        "--time",
        &seconds.to_string(),
        "--omit",
        &omitted.to_string(),
    ]);
    let cpu = machine_cpu_seconds() - before;
    let answer: serde_json::Value = serde_json::from_str(&output).expect("iperf3 prints JSON");
    let received = &answer["end"]["sum_received"];
    let speed = received["bits_per_second"].as_f64().expect("a rate") / 1e9;
    // CPU time is of the omitted seconds as well, which carried as much.
    let gigabytes = speed / 8.0 * f64::from(seconds + omitted);
    Turn {
        speed,
        cost: cpu / gigabytes,
    }
}

/// One flow of small frames: the highest rate with under 1 % loss, packets a second.
fn udp64(path: &Path, rate: &mut f64) -> Turn {
    let (from, to) = UDP_PORTS;
    let mut blaster = Blaster::new(
        (&path.client, at(&format!("{CLIENT}:{from}"))),
        (&path.server, "wan"),
        (
            at(&format!("{}:{from}", path.seen)),
            at(&format!("{SERVER}:{to}")),
        ),
    );
    // Below the last one, so that the search begins with a rate that gets through.
    *rate = blaster.highest_rate(*rate * 0.7, UDP_EFFORT);
    let before = machine_cpu_seconds();
    let trial = blaster.trial(*rate * 0.8, UDP_COST);
    let cpu = machine_cpu_seconds() - before;
    Turn {
        speed: rate.round(),
        cost: cpu / (trial.received as f64 / 1e6),
    }
}
