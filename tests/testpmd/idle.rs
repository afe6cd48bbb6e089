//! What an idle backend costs.

use std::time::Duration;

use crate::SOON;
use crate::driver::Driver;
use crate::rig::{MAC_A, MAC_B, missed, pinned_nowhere};
use crate::support::{eventually, now, pause};
use crate::taps::{Taps, Vnic};

const LAN: Vnic = ("lan", "52:54:00:00:00:0a");
const WAN: Vnic = ("wan", "52:54:00:00:00:0b");
const SPAN: Duration = Duration::from_secs(5);

#[test]
fn idle_with_two_elements_connected_costs_less_than_a_hundredth_of_a_core() {
    let mut taps = Taps::start(&[&[LAN, WAN], &[LAN, WAN]]);
    // A guest that polls its rings, and one that waits.
    let mut polling = pinned_nowhere("io")
        .virtio_user(&taps.socket(0, "lan"), "packed_vq=0")
        .virtio_user(&taps.socket(0, "wan"), "packed_vq=0")
        .start(&taps.dir);
    polling.forward();
    let mut lan = Driver::connect(&taps.socket(1, "lan"), MAC_A);
    let mut wan = Driver::connect(&taps.socket(1, "wan"), MAC_B);
    let mut next = 0;
    // All were at work before.
    lan.exchange(&taps.wire(1, "lan"), &mut next, "lan");
    wan.exchange(&taps.wire(1, "wan"), &mut next, "wan");
    let (from, to) = (taps.wire(0, "lan"), taps.wire(0, "wan"));
    let probe = missed(1, 100);
    eventually(SOON, "testpmd forwards", || {
        from.send(&probe);
        to.arrived().contains(&probe.bytes())
    });
    drop((from, to));

    let backend = taps.shunt.process().id();
    let (before, started) = (cpu_time(backend), now());
    pause(SPAN);
    let (used, passed) = (cpu_time(backend) - before, started.elapsed());
    assert!(
        used * 100 < passed,
        "an idle backend used {used:?} of {passed:?}"
    );
}

/// utime and stime of a process.
fn cpu_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name before may hold anything but ends in the last parenthesis.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = fields[11..=12]
        .iter()
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    // SAFETY: takes no pointers.
    let second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_secs_f64(ticks as f64 / second as f64)
}
