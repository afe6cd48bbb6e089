//! `make bench-workers`: two workers of one element beside two processes of one worker each.
//!
//! Ports are in memory (`benches/endless.rs`), so what is measured is the datapath: 64-byte UDP
//! frames of both directions of 4,096 vouched sessions, NAT of each. Worker 0 has the frames of
//! the even sessions, worker 1 those of the odd ones, whether both are threads of one process and
//! of one element, or alone in a process of their own. Every worker is pinned to a CPU; rounds of
//! the contenders alternate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod endless;
mod report;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use endless::{Part, Traffic};
use report::{Peer, Report, median};

const ROUNDS: usize = 5;

/// This program again, as a contender: it starts its workers, and counts for a second whenever
/// it is told to.
struct Contender {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Contender {
    fn start(part: Part) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "contender",
                &part.workers.to_string(),
                &part.first.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut contender = Self {
            child,
            orders,
            answers,
        };
        assert_eq!(contender.answer(), "ready");
        contender
    }

    fn begin(&mut self) {
        self.orders.write_all(b"go\n").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Packets a second of contenders that run together.
fn together(parts: &[Part]) -> f64 {
    let mut contenders: Vec<_> = parts.iter().copied().map(Contender::start).collect();
    contenders.iter_mut().for_each(Contender::begin);
    let rates = contenders.iter_mut().map(|one| one.answer().parse::<f64>());
    rates.map(Result::unwrap).sum()
}

fn contend(part: Part) {
    let mut running = endless::start(part);
    println!("ready");
    for order in std::io::stdin().lines() {
        assert_eq!(order.unwrap(), "go");
        println!("{}", running.rate());
    }
}

fn part(workers: usize, first: usize) -> Part {
    Part {
        workers,
        first,
        traffic: Traffic::Udp,
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, mode, workers, first] = args.as_slice()
        && mode == "contender"
    {
        let [workers, first] = [workers, first].map(|text| text.parse().unwrap());
        return contend(part(workers, first));
    }
    let mut report = Report::new("workers");
    let alone = |first| part(1, first);
    let both = part(2, 0);
    let [mut two, mut processes, mut one] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        two.push(together(&[both]));
        processes.push(together(&[alone(0), alone(1)]));
        one.push(together(&[alone(0)]));
    }
    let peer = Peer {
        name: "two-processes",
        theirs: median(processes),
    };
    report.line("workers=2", median(two), "packets/s", Some(peer));
    report.line("workers=1", median(one), "packets/s", None);
}
