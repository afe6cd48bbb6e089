//! Frames at a given rate, one by one and even, and how long each took: no packet generator at
//! hand keeps a low rate evenly. One direction.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::support::now;

/// How long the last frames of a run are waited for.
const TAIL: Duration = Duration::from_millis(20);

/// What tells a frame from all others: its number, and its run's.
pub type Tag = [u8; 5];

/// From one end to another.
pub trait Way {
    /// Whether nothing can be sent at the moment.
    fn is_full(&self) -> bool;
    /// Sends a frame with a tag in it.
    fn send(&mut self, tag: Tag);
    /// The tag of the next frame that came.
    fn take(&mut self) -> Option<Tag>;
}

/// What a run found.
pub struct Run {
    /// Frames that came out.
    pub received: usize,
    /// From the one to the other, in microseconds, ascending.
    pub delays: Vec<f64>,
}

impl Run {
    /// The delay that this part of all frames did not exceed.
    pub fn delay(&self, part: f64) -> f64 {
        let last = self.delays.len() - 1;
        self.delays[(last as f64 * part).round() as usize]
    }
}

/// Sends `pps` frames a second for `span`, evenly, and takes what comes.
pub fn run(way: &mut impl Way, pps: u64, span: Duration) -> Run {
    static RUNS: AtomicU8 = AtomicU8::new(0);
    // Frames of an earlier run may still come.
    let this = RUNS.fetch_add(1, Ordering::Relaxed);
    let count = (pps as f64 * span.as_secs_f64()) as u64;
    let mut sent: Vec<Instant> = Vec::with_capacity(count as usize);
    let mut delays = Vec::with_capacity(count as usize);
    let began = now();
    while now().duration_since(began) < span + TAIL {
        let elapsed = began.elapsed().as_nanos() as u64;
        let due = (u128::from(elapsed) * u128::from(pps) / 1_000_000_000) as usize;
        if due.min(count as usize) > sent.len() && !way.is_full() {
            let [a, b, c, d] = (sent.len() as u32).to_be_bytes();
            sent.push(now());
            way.send([a, b, c, d, this]);
        }
        while let Some([a, b, c, d, run]) = way.take() {
            if run == this {
                let number = u32::from_be_bytes([a, b, c, d]) as usize;
                delays.push(sent[number].elapsed().as_nanos() as f64 / 1e3);
            }
        }
    }
    delays.sort_by(f64::total_cmp);
    Run {
        received: delays.len(),
        delays,
    }
}
