//! What a hand-over makes a sender repeat.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::report::{Report, median};
use crate::rig::{Rig, SERVER, SOON, is_active};
use crate::support::tcp::{Direction, TcpPlan, TcpTransfer};
use crate::support::{now, pause};

/// How long after its hand-over a flow is watched.
const AFTERWARDS: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(20);
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
/// hand-over, and from their begin on. Each that does is described on standard error.
fn paced(rig: &mut Rig) -> [f64; 2] {
    let flows: Vec<_> = (0..TOGETHER).map(|_| start(rig, Some(PACE))).collect();
    let mut watch = Watch::default();
    let (started, mut before) = (now(), 0.0);
    loop {
        let repeated = watch.look(rig);
        if watch.asked.is_none() {
            before = repeated;
        }
        watch.look_at_sessions(&rig.sessions(), &flows);
        if watch.over.len() == flows.len() {
            break;
        }
        assert!(
            started.elapsed() < 2 * SOON,
            "{:?} are handed over",
            watch.over
        );
        pause(LOOK_EVERY);
    }
    pause(AFTERWARDS);
    let whole = watch.look(rig);
    for (_, transfer) in flows {
        transfer.finish(2 * SOON);
    }
    [whole - before, whole]
}

/// What is seen of some flows, each by the server's port.
#[derive(Default)]
struct Watch {
    repeated: BTreeMap<u16, f64>,
    /// When the first was asked for, and each was handed over whole.
    asked: Option<Instant>,
    over: BTreeMap<u16, Instant>,
}

impl Watch {
    /// How much all have repeated; tells of those that have repeated more than before.
    fn look(&mut self, rig: &Rig) -> f64 {
        let said = rig.client.succeed(&["ss", "-HtinO", "dst", SERVER]);
        for line in said.lines() {
            let port = line
                .split_whitespace()
                .nth(4)
                .and_then(|to| to.rsplit_once(':'));
            let Some(port) = port.and_then(|(_, port)| port.parse().ok()) else {
                continue;
            };
            let count = count(line);
            if self.repeated.insert(port, count).unwrap_or_default() < count {
                let since = |then: Option<&Instant>| then.map(Instant::elapsed);
                eprintln!(
                    "paced flow to port {port}: {count} repeated; since the first was asked for \
                     {:?}, since its hand-over {:?}: {line}",
                    since(self.asked.as_ref()),
                    since(self.over.get(&port)),
                );
            }
        }
        self.repeated.values().sum()
    }

    fn look_at_sessions(&mut self, sessions: &[Value], flows: &[(SocketAddr, TcpTransfer)]) {
        for (to, _) in flows {
            let is_its = |session: &&Value| session["original"]["destination-port"] == to.port();
            let Some(session) = sessions.iter().find(is_its) else {
                continue;
            };
            self.asked.get_or_insert_with(now);
            if is_active(session) {
                self.over.entry(to.port()).or_insert_with(now);
            }
        }
    }
}

/// Segments that the client has repeated on its connection to `to` so far.
fn repeated(rig: &Rig, to: SocketAddr) -> f64 {
    let (address, port) = (to.ip().to_string(), format!(":{}", to.port()));
    let argv = ["ss", "-Htin", "dst", &address, "dport", "=", &port];
    count(&rig.client.succeed(&argv))
}

/// `retrans:NOW/ALL` of `ss`, which says nothing at none.
fn count(said: &str) -> f64 {
    let word = said
        .split_whitespace()
        .find_map(|word| word.strip_prefix("retrans:"));
    let all = word.and_then(|counts| counts.split_once('/'));
    all.map_or(0.0, |(_, all)| all.parse().unwrap())
}
