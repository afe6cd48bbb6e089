//! What does an unchanged Linux firewall gain by the agent inside it, and what does it pay?
//!
//! *Held constant*: the rig of `tests/agent`: client, guest (one emulated CPU, stateful rules,
//! masquerade), server, behind `shunt up` with taps. *Peer*: `without-agent`, the same guest
//! with the agent stopped, in turn with ours in the same run.
//! *Reported*: `tcp`, `tcp-notso`: what iperf3 receives, after three seconds to settle (medians
//! of [`ROUNDS`] pairs; without TSO the guest is another one). `cps`: TCP connections a second
//! that are opened, say 64 bytes, hear 512 and end (medians of [`PAIRS`] pairs).
//! `hand-over-retransmits`: segments that the sender of a bulk flow repeats from the moment at
//! which its session is asked for until a second after it went around the guest, median of
//! [`HAND_OVERS`]; `… paced`: all that as many paced flows repeat in that time, and (`whole`) from
//! their begin on.
//! *Expected before measuring*: an emulated guest forwards some hundreds of Mbit/s with TSO and
//! tens without it, taps a few Gbit/s; a connection that is too short to be offloaded costs the
//! agent two events, some per cent of what its packets cost the guest.
//!
//! `cargo bench --bench agent -- tcp cps` runs only these cases.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

#[path = "agent/connections.rs"]
mod connections;
#[path = "agent/hand_over.rs"]
mod hand_over;
mod report;
#[path = "../tests/agent/rig.rs"]
mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

use report::{Peer, Report, median};
use rig::{Plan, Rig, SERVER, SOON};
use serde_json::Value;
use support::eventually;
use support::process::needs;

/// Pairs of runs of iperf3.
const ROUNDS: usize = 5;
/// Pairs of runs of short connections.
const PAIRS: usize = 10;
/// Bulk flows, and paced ones, that are handed over.
const HAND_OVERS: usize = 50;
const CASES: [&str; 4] = ["tcp", "cps", "hand-over-retransmits", "tcp-notso"];

fn main() {
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for case in &asked {
        assert!(
            CASES.contains(&case.as_str()),
            "no case '{case}': {CASES:?}"
        );
    }
    let wanted = |case: &str| asked.is_empty() || asked.iter().any(|one| one == case);
    let mut report = Report::new("agent");
    if wanted("tcp") || wanted("cps") {
        let mut rig = Rig::start(&Plan::default(), |guest| guest);
        if wanted("tcp") {
            bulk("tcp", &mut rig, &mut report);
        }
        if wanted("cps") {
            let sides = pairs(&mut rig, PAIRS, connections::rate);
            line("cps", sides, "connections/s", &mut report);
        }
    }
    if wanted("hand-over-retransmits") {
        let plan = Plan {
            agent: "[offload]\nminimum-age = 0.5\nminimum-rate = 1",
            ..Plan::default()
        };
        let mut rig = Rig::start(&plan, |guest| guest);
        hand_over::run(&mut rig, HAND_OVERS, &mut report);
    }
    if wanted("tcp-notso") {
        let mut rig = Rig::start(&Plan::default(), |guest| guest.flag("--no-tso"));
        bulk("tcp-notso", &mut rig, &mut report);
    }
}

/// Measures with the agent and without it; both sides' medians. Each is first in every other
/// pair: what a run leaves behind in the guest costs both alike.
fn pairs(rig: &mut Rig, count: usize, mut measure: impl FnMut(&mut Rig) -> f64) -> [f64; 2] {
    let mut sides = [Vec::new(), Vec::new()];
    for pair in 0..count {
        let with_agent = pair % 2 == 0;
        sides[usize::from(!with_agent)].push(measure(rig));
        if with_agent {
            rig.stop_agent();
            eventually(SOON, "all sessions are handed back", || {
                rig.sessions().is_empty()
            });
        } else {
            rig.start_agent();
        }
        sides[usize::from(with_agent)].push(measure(rig));
    }
    if count % 2 == 1 {
        rig.start_agent();
    }
    sides.map(median)
}

fn line(case: &str, [ours, theirs]: [f64; 2], unit: &str, report: &mut Report) {
    let name = "without-agent";
    report.line(case, ours.round(), unit, Some(Peer { name, theirs }));
}

/// Bulk TCP from client to server.
fn bulk(case: &str, rig: &mut Rig, report: &mut Report) {
    needs("iperf3", "iperf3");
    let argv = ["iperf3", "--server", "--bind", SERVER];
    let _server = rig.server.spawn(&argv, &rig.dir.file("iperf3.log"));
    let sides = pairs(rig, ROUNDS, received);
    line(case, sides, "Mbit/s", report);
}

/// What iperf3 receives, Mbit/s.
fn received(rig: &mut Rig) -> f64 {
    let argv = [
        "iperf3", "--client", SERVER, "--json", "--omit", "3", "--time", "4",
    ];
    let mut said = Value::Null;
    eventually(SOON, "iperf3 is through", || {
        let output = rig.client.exec(&argv);
        said = serde_json::from_slice(&output.stdout).unwrap_or_default();
        said["end"]["sum_received"]["bits_per_second"].is_number()
    });
    said["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap()
        / 1e6
}
