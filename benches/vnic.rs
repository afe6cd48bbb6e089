//! How many packets a second go around the guest, vhost-user to vhost-user, and through
//! its vNICs?
//!
//! *Held constant*: 64-byte UDP frames of `dpdk-testpmd` flowgen on `net_virtio_user` ports,
//! the generator on CPU 0, one worker on CPU 1. Cases `sessions=N`: every packet hits one of
//! N `vouched` sessions (rules) a side and gets its source address and port, both MACs and
//! its TTL rewritten. Case `miss`: no session; flowgen at the two uplinks and at the guest's
//! two vNICs, so that every frame crosses once, half of them to the guest and half from it.
//! *Peers*, measured in turn with ours, all of them alive at once and at rest meanwhile:
//! OVS-DPDK with one poll-mode thread and the same rules in OpenFlow, testpmd with
//! `net_vhost` as `io` and as `macswap` (no look-up at all), and ourselves at 64 sessions.
//! *Reported*: frames a second that came back (medians of [`ROUNDS`]); `… busy`, the share
//! of time in which the worker had frames in its hands; `… cycles`, what a frame cost it.
//! Where `busy` is below 0.95, the generator was the limit, and `cycles` are to be compared.
//! *Expected before measuring*: 25 ns for parse and rewrite, 70 ns for the rings, 50 ns for
//! look-up and the rest: some 6 Mpps if testpmd could send them.
//!
//! `cargo bench --bench vnic -- sessions=64 miss` runs only these cases.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod contender;
mod load;
mod report;
#[path = "../qemu/demo/signals.rs"]
mod signals;
#[path = "../tests/support/mod.rs"]
mod support;

use std::panic::catch_unwind;
use std::process::ExitCode;

use contender::{Contender, Load, Sample};
use report::{Peer, Report, median};
use support::hugepages::Hugepages;
use support::{Dir, ovs, testpmd};

/// Samples of each contender.
const ROUNDS: usize = 5;

const CASES: [&str; 5] = [
    "sessions=64",
    "sessions=4096",
    "sessions=65536",
    "sessions=1048576",
    "miss",
];

fn main() -> ExitCode {
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
    // Interrupted or failed, whatever was started or set ends by its drop.
    signals::handle();
    let outcome = catch_unwind(|| {
        let mut report = Report::new("vnic");
        for case in CASES {
            if asked.is_empty() || asked.iter().any(|one| one == case) {
                run(case, &mut report);
            }
        }
    });
    match (signals::caught(), outcome) {
        (Some(signal), _) => {
            ExitCode::from(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)))
        }
        (None, Ok(())) => ExitCode::SUCCESS,
        // What failed has been told.
        (None, Err(_)) => ExitCode::FAILURE,
    }
}

fn run(case: &str, report: &mut Report) {
    // Generators and testpmd peers of the case with most of them, and the switch.
    let _pages = Hugepages::free(6 * testpmd::MEMORY_MIB + ovs::MEMORY_MIB);
    let dirs = [(); 4].map(|()| Dir::new());
    let mut contenders = contenders(case, &dirs);
    let mut samples = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (contender, samples) in contenders.iter_mut().zip(&mut samples) {
            samples.push(contender.sample());
        }
    }
    let all: Vec<Sample> = samples.iter().map(|samples| middle(samples)).collect();
    let ours = all[0];
    for (contender, theirs) in contenders.iter().zip(&all).skip(1) {
        let mut line = |what: &str, ours: f64, theirs: f64, unit: &str| {
            let name = contender.name;
            let peer = Some(Peer { name, theirs });
            report.line(&format!("{case}{what}"), ours, unit, peer);
        };
        line("", ours.pps.round(), theirs.pps.round(), "pps");
        line(" busy", ours.busy, theirs.busy, "share");
        line(" cycles", ours.cycles, theirs.cycles, "cycles/packet");
    }
}

/// Ours first.
fn contenders(case: &str, dirs: &[Dir; 4]) -> Vec<Contender> {
    let [first, second, third, fourth] = dirs;
    let Some(flows) = case.strip_prefix("sessions=") else {
        let load = Load {
            flows: 64,
            sessions: false,
        };
        return vec![
            Contender::shunt("ours", first, load),
            Contender::testpmd("testpmd-io", "io", second, load),
        ];
    };
    let load = Load {
        flows: flows.parse().expect("a number"),
        sessions: true,
    };
    let mut all = vec![Contender::shunt("ours", first, load)];
    if load.flows <= 1 << 16 {
        all.push(Contender::ovs("ovs-dpdk", second, load));
    } else {
        let few = Load { flows: 64, ..load };
        all.push(Contender::shunt("self-64", second, few));
    }
    if load.flows == 64 {
        all.push(Contender::testpmd("testpmd-io", "io", third, load));
        all.push(Contender::testpmd(
            "testpmd-macswap",
            "macswap",
            fourth,
            load,
        ));
    }
    all
}

fn middle(samples: &[Sample]) -> Sample {
    let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
    Sample {
        pps: of(|sample| sample.pps),
        busy: of(|sample| sample.busy),
        cycles: of(|sample| sample.cycles),
    }
}
