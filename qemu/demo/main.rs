//! `make demo`: a running session is offloaded, measured on both paths, and taken back.
//!
//! *Promises*: one line a step, figures at the end and in `target/demo.json`; namespaces,
//! taps, guest and backend go away at the end, on a failure, and on SIGINT, SIGTERM and
//! SIGHUP. Fails if a packet of a paced run was lost or reordered, or traffic did not move.
//! *Refuses*: to run without root. *Caller's duty*: `make setup build guest`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it stands on the tests' support and is as blunt: a failure unwinds and cleans up"
)]

mod report;
mod signals;
#[path = "../../tests/support/mod.rs"]
mod support;
mod tcp;
mod udp;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use report::{Faults, Report};
use support::udp::{Reply, Tally, UdpReceiver, UdpSender};
use support::{at, eventually, now, pause};
use tcp::Stream;
use udp::{Blaster, Effort};
use world::{CLIENT, OUTSIDE, SERVER, Session, World};

const USAGE: &str = "usage: demo [--quick]

Boots a router guest on `shunt up`, which asks over its serial port for running sessions to
be offloaded; prints slow path against fast path, and cleans up. Needs root, and `make setup build guest` before.

  --quick   short measurements: shows that it works, not how well";

const UDP: Session = Session {
    key: "demo-udp",
    protocol: "udp",
    from: 40_000,
    to: 9_000,
};
const TCP_PORT: u16 = 5_001;
/// Of paced runs: far below what the guest carries, so that every loss is a fault.
const GAP: Duration = Duration::from_millis(2);
/// Packets of a paced run before and after its session changes the path.
const PACED: u64 = 500;
/// Where the searches for the highest rate start, packets a second.
const SLOW_START: f64 = 2_000.0;
const FAST_START: f64 = 40_000.0;
/// No echo came for so long: what is missing is lost.
const QUIET: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const SOON: Duration = Duration::from_secs(20);
/// A hand-over meets its bounds and tries again as long as the guest is full.
const ACTIVE_WITHIN: Duration = Duration::from_secs(30);

/// How long is measured.
#[derive(Clone, Copy)]
struct Plan {
    udp: Effort,
    tcp: Duration,
}

impl Plan {
    fn new(quick: bool) -> Self {
        let (trial, halvings, tcp) = if quick { (300, 1, 1) } else { (1_000, 4, 4) };
        Self {
            udp: Effort {
                trial: Duration::from_millis(trial),
                halvings,
            },
            tcp: Duration::from_secs(tcp),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => false,
        ["--quick"] => true,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    // SAFETY: geteuid takes and changes nothing.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("the demo makes network namespaces and taps: run it as root");
        return ExitCode::FAILURE;
    }
    signals::handle();
    let outcome = catch_unwind(AssertUnwindSafe(|| demo(Plan::new(quick))));
    if let Some(signal) = signals::caught() {
        eprintln!("interrupted: everything is cleaned up");
        return ExitCode::from(128_u8.saturating_add(u8::try_from(signal).unwrap_or(0)));
    }
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("packets of a paced run were lost or reordered: the demo failed");
            ExitCode::FAILURE
        }
        // What failed has been told.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Tells the steps as they begin.
struct Steps {
    started: Instant,
}

impl Steps {
    fn step(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.started.elapsed().as_secs_f64());
    }
}

/// Says whether every paced packet came, in order.
fn demo(plan: Plan) -> bool {
    let steps = Steps { started: now() };
    steps.step(
        "booting the guest: a Linux router, two vNICs and a serial port on `shunt up`, nftables \
         masquerade",
    );
    let mut world = World::start();
    world.wait_ready();

    let mut report = Report::default();
    measure_tcp(&steps, plan, &mut world, &mut report);
    measure_udp(&steps, plan, &mut world, &mut report);
    drop(world);
    steps.step("done, everything is cleaned up");
    let path = report.write();
    println!("\n{report}\n  {}", path.display());
    report.is_unbroken()
}

/// One connection on both paths: it moves while it is full.
fn measure_tcp(steps: &Steps, plan: Plan, world: &mut World, report: &mut Report) {
    let stream = Stream::start(&world.client, &world.server, TCP_PORT);
    steps.step("TCP on the slow path: one connection, TSO");
    (report.slow_bps, report.slow_share) = world.share_of(|| stream.rate(plan.tcp));

    steps.step("the guest asks for the running TCP connection to be offloaded");
    let session = stream.session("demo-tcp", TCP_PORT);
    world.offload(session);
    world.wait_active(session, ACTIVE_WITHIN);
    steps.step("TCP on the fast path: the same connection");
    (report.fast_bps, report.fast_share) = world.share_of(|| stream.rate(plan.tcp));
    drop(stream);
    world.withdraw(session);
}

fn measure_udp(steps: &Steps, plan: Plan, world: &mut World, report: &mut Report) {
    steps.step("UDP on the slow path: the highest rate of 64-byte frames with under 1 % loss");
    let mut blaster = blaster(world);
    let (rate, share) = world.share_of(|| blaster.highest_rate(SLOW_START, plan.udp));
    report.slow_pps = rate;
    report.slow_share = report.slow_share + share;
    drop(blaster);

    steps.step(
        "the guest asks for the running UDP session to be offloaded, paced packets count what \
         goes missing",
    );
    report.hand_over = paced(world, |world| {
        world.offload(UDP);
        world.wait_active(UDP, ACTIVE_WITHIN);
    });

    steps.step("UDP on the fast path");
    let mut blaster = self::blaster(world);
    let (rate, share) = world.share_of(|| blaster.highest_rate(FAST_START, plan.udp));
    report.fast_pps = rate;
    report.fast_share = report.fast_share + share;
    drop(blaster);

    steps.step("the guest withdraws the UDP session");
    let mut before = 0;
    report.hand_back = paced(world, |world| {
        before = world.guest_received();
        world.withdraw(UDP);
    });
    let back = world.guest_received() - before;
    // Each packet and its echo.
    assert!(
        back >= 2 * PACED,
        "after the withdraw only {back} packets came to the guest: {:?}",
        report.hand_back
    );
    steps.step(&format!("the traffic is back in the guest: {back} packets"));
}

fn blaster(world: &World) -> Blaster {
    let (from, to) = ends();
    let seen = at(&format!("{OUTSIDE}:{}", UDP.from));
    Blaster::new((&world.client, from), (&world.server, "wan"), (seen, to))
}

fn ends() -> (std::net::SocketAddr, std::net::SocketAddr) {
    (
        at(&format!("{CLIENT}:{}", UDP.from)),
        at(&format!("{SERVER}:{}", UDP.to)),
    )
}

/// Sends the UDP session's packets at a pace, each echoed by the server, makes `change`
/// in the middle, and says what was lost or reordered in either direction.
fn paced(world: &mut World, change: impl FnOnce(&mut World)) -> Faults {
    let (from, to) = ends();
    let receiver = UdpReceiver::start(&world.server, to, Reply::Echo);
    let before = world.drops();
    let mut sender = UdpSender::start(&world.client, from, to, udp::PAYLOAD, GAP);
    let reach = |sender: &UdpSender, wanted| {
        eventually(SOON, "paced packets are sent", || sender.sent() >= wanted);
    };
    reach(&sender, PACED);
    change(world);
    let wanted = sender.sent() + PACED;
    reach(&sender, wanted);
    let sent = sender.stop();
    let mut last = (0, now());
    while last.0 < sent && last.1.elapsed() < QUIET {
        pause(LOOK_EVERY);
        let received = sender.replies().received();
        if received != last.0 {
            last = (received, now());
        }
    }
    let (there, back) = (receiver.tally(), sender.replies());
    let sound = |tally: &Tally| tally.duplicated == 0 && tally.corrupted == 0;
    assert!(
        sound(&there) && sound(&back),
        "packets were doubled or damaged"
    );
    let lost = back.lost(sent);
    if lost > 0 {
        let drops = world.drops();
        let met = drops
            .iter()
            .filter(|(name, count)| before.get(*name) != Some(*count));
        println!(
            "          packets are missing; these counters moved: {:?}",
            met.collect::<Vec<_>>()
        );
    }
    Faults {
        sent,
        lost,
        reordered: there.reordered + back.reordered,
    }
}
