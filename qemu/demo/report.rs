//! What the demo measured: a table for people, `target/demo.json` for scripts.

use std::fmt::{Display, Formatter, Result};
use std::ops::Add;
use std::path::PathBuf;

use crate::support::repository;

/// Packets that a paced run with an echo did not get in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub sent: u64,
    pub lost: u64,
    pub reordered: u64,
}

/// The guest's counters against the packets of an interval.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// Received by the guest's interfaces.
    pub guest: u64,
    /// Forwarded around it.
    pub around: u64,
}

impl Share {
    fn of_forwarded(self) -> f64 {
        self.guest as f64 / self.around.max(1) as f64
    }
}

impl Add for Share {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            guest: self.guest + other.guest,
            around: self.around + other.around,
        }
    }
}

/// Everything in one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub slow_pps: f64,
    pub fast_pps: f64,
    pub slow_bps: f64,
    pub fast_bps: f64,
    pub slow_share: Share,
    pub fast_share: Share,
    pub hand_over: Faults,
    pub hand_back: Faults,
}

const GIGA: f64 = 1e9;

impl Report {
    fn lost(&self) -> u64 {
        self.hand_over.lost + self.hand_back.lost
    }

    fn reordered(&self) -> u64 {
        self.hand_over.reordered + self.hand_back.reordered
    }

    /// Whether every paced packet came, in order.
    pub fn is_unbroken(&self) -> bool {
        self.lost() == 0 && self.reordered() == 0
    }

    /// Writes `target/demo.json`; gives its path.
    pub fn write(&self) -> PathBuf {
        let json = serde_json::json!({
            "slow_pps": self.slow_pps.round(),
            "fast_pps": self.fast_pps.round(),
            "ratio": self.fast_pps / self.slow_pps,
            "slow_gbps": self.slow_bps / GIGA,
            "fast_gbps": self.fast_bps / GIGA,
            "gbps_ratio": self.fast_bps / self.slow_bps,
            "guest_share": self.fast_share.of_forwarded(),
            "lost": self.lost(),
            "reordered": self.reordered(),
        });
        let path = repository().join("target/demo.json");
        std::fs::write(&path, format!("{json:#}\n"))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let mut row = |what: &str, slow: String, fast: String, remark: String| {
            writeln!(out, "  {what:<38}{slow:>16}{fast:>16}{remark:>12}")
        };
        let times = |fast: f64, slow: f64| format!("{:.1} x", fast / slow);
        let heading = |text: &str| text.to_owned();
        row(
            "",
            heading("slow path"),
            heading("fast path"),
            String::new(),
        )?;
        row(
            "UDP, 64-byte frames, under 1 % lost",
            format!("{:.0} pps", self.slow_pps),
            format!("{:.0} pps", self.fast_pps),
            times(self.fast_pps, self.slow_pps),
        )?;
        row(
            "TCP, one connection, TSO",
            format!("{:.2} Gb/s", self.slow_bps / GIGA),
            format!("{:.2} Gb/s", self.fast_bps / GIGA),
            times(self.fast_bps, self.slow_bps),
        )?;
        let (slow, fast) = (self.slow_share, self.fast_share);
        row(
            "packets received by the guest",
            slow.guest.to_string(),
            fast.guest.to_string(),
            String::new(),
        )?;
        row(
            "packets around the guest",
            slow.around.to_string(),
            fast.around.to_string(),
            format!("{:.4} %", fast.of_forwarded() * 100.0),
        )?;
        writeln!(out)?;
        for (what, faults) in [("hand-over", self.hand_over), ("hand-back", self.hand_back)] {
            let Faults {
                sent,
                lost,
                reordered,
            } = faults;
            writeln!(
                out,
                "  {what}: {sent} packets sent and echoed, {lost} lost, {reordered} reordered"
            )?;
        }
        Ok(())
    }
}
