//! What a hand-over makes a sender repeat.

use std::net::SocketAddr;
use std::time::Duration;

use crate::report::{Report, median};
use crate::rig::{Rig, SERVER, SOON};
use crate::support::pause;
use crate::support::tcp::{Direction, TcpPlan, TcpTransfer};

/// How long after its hand-over a flow is watched.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// Paced flows at a time, and the rate of each, bytes a second.
const TOGETHER: usize = 10;
const PACE: u64 = 300_000;

/// Hands over `count` bulk flows, one after another, and `count` paced ones.
pub fn run(rig: &mut Rig, count: usize, report: &mut Report) {
    let repeated: Vec<f64> = (0..count).map(|_| bulk(rig)).collect();
    let most = repeated.iter().copied().fold(0.0, f64::max);
    let case = "hand-over-retransmits";
    report.line(case, median(repeated), "segments", None);
    report.line(&format!("{case} most"), most, "segments", None);
    let paced: Vec<_> = (0..count / TOGETHER).map(|_| paced(rig)).collect();
    for (name, which) in [("paced", 0), ("paced whole", 1)] {
        let sum = paced.iter().map(|of| of[which]).sum();
        report.line(&format!("{case} {name}"), sum, "segments", None);
    }
}

fn start(rig: &Rig, rate: Option<u64>) -> (SocketAddr, TcpTransfer) {
    let to = rig.free(&rig.server, SERVER);
    let plan = TcpPlan {
        listen: to,
        connect: to,
        direction: Direction::Upload,
        bytes: u64::MAX,
        rate,
    };
    (to, TcpTransfer::start(&rig.client, &rig.server, plan))
}

/// Segments that one bulk flow repeats because it is handed over.
fn bulk(rig: &mut Rig) -> f64 {
    let (to, transfer) = start(rig, None);
    let mut before = 0.0;
    loop {
        let repeated = repeated(rig, to);
        if !rig.sessions_to(to).is_empty() {
            break;
        }
        before = repeated;
    }
    rig.wait_offloaded(to);
    pause(AFTERWARDS);
    let after = repeated(rig, to);
    transfer.finish(2 * SOON);
    after - before
}

/// Segments that some paced flows repeat: from before the first is asked for to after their
/// hand-over, and from their begin on.
fn paced(rig: &mut Rig) -> [f64; 2] {
    let flows: Vec<_> = (0..TOGETHER).map(|_| start(rig, Some(PACE))).collect();
    let all = |rig: &Rig| flows.iter().map(|(to, _)| repeated(rig, *to)).sum::<f64>();
    let mut before = 0.0;
    loop {
        let repeated = all(rig);
        if flows.iter().any(|(to, _)| !rig.sessions_to(*to).is_empty()) {
            break;
        }
        before = repeated;
    }
    for (to, _) in &flows {
        rig.wait_offloaded(*to);
    }
    pause(AFTERWARDS);
    let whole = all(rig);
    for (_, transfer) in flows {
        transfer.finish(2 * SOON);
    }
    [whole - before, whole]
}

/// Segments that the client has repeated on its connection to `to` so far: `retrans:NOW/ALL` of
/// `ss`, which says nothing at none.
fn repeated(rig: &Rig, to: SocketAddr) -> f64 {
    let (address, port) = (to.ip().to_string(), format!(":{}", to.port()));
    let argv = ["ss", "-Htin", "dst", &address, "dport", "=", &port];
    let said = rig.client.succeed(&argv);
    let word = said
        .split_whitespace()
        .find_map(|word| word.strip_prefix("retrans:"));
    let all = word.and_then(|counts| counts.split_once('/'));
    all.map_or(0.0, |(_, all)| all.parse().unwrap())
}
