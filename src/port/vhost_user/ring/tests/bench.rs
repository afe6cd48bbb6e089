//! What a frame costs: `cargo test --release ring::tests::bench -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::super::mock::{Driver, Features, Guest};
use super::super::{RxRing, TxRing};
use super::{DATA, FAR, GAP, RINGS, frame};
use crate::packet::{Burst, Offload, TxFrame};

const ROUNDS: u32 = 40_000;
const BURST: usize = 64;

#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn timed<R>(bursts: &mut Vec<Duration>, act: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = std::hint::black_box(act());
    bursts.push(start.elapsed());
    result
}

/// Fastest and median burst, per frame: a preempted burst changes neither.
fn each(mut bursts: Vec<Duration>) -> String {
    bursts.sort_unstable();
    let per_frame = |burst: Duration| burst.as_nanos() as f64 / BURST as f64;
    let (best, median) = (bursts[0], bursts[bursts.len() / 2]);
    format!(
        "{:.1} ns (median {:.1})",
        per_frame(best),
        per_frame(median)
    )
}

/// Bursts of 64 frames of 64 bytes, one descriptor each, rings of 256; the driver's part
/// is not timed. Expected: well under 100 ns for both together (5 Mpps on one core).
#[test]
#[ignore = "a measurement, to be read by people"]
fn nanoseconds_per_frame_of_64_bytes() {
    let features = Features {
        event_idx: true,
        indirect: true,
        in_order: true,
        mrg_rxbuf: true,
        header_len: 12,
    };
    let guest = Guest::new();
    let mut sender = Driver::new(&guest, RINGS, DATA..GAP, 256, 0, features);
    let mut receiver = Driver::new(
        &guest,
        FAR,
        FAR + 0x1_0000..FAR + 0x4_0000,
        256,
        0,
        features,
    );
    let mut rx = RxRing::start(guest.map.clone(), sender.config).unwrap();
    let mut tx = TxRing::start(guest.map.clone(), receiver.config).unwrap();
    let mut burst = Burst::new();
    let data = frame(1, 64);
    let (mut pop, mut push) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..BURST {
            sender.send(&data);
            receiver.offer(&[1526], None);
        }
        burst.clear();
        let popped = timed(&mut pop, || {
            let popped = rx.pop(&mut burst);
            (popped, rx.needs_call()).0
        });
        assert_eq!(popped.frames, BURST);
        let none = TxFrame {
            data: &[],
            offload: Offload::default(),
        };
        let mut frames = [none; BURST];
        for (index, frame) in frames.iter_mut().enumerate() {
            *frame = burst.frame(index);
        }
        let pushed = timed(&mut push, || {
            let pushed = tx.push(&frames);
            (pushed, tx.needs_call()).0
        });
        assert_eq!(pushed.consumed, BURST);
        sender.used();
        receiver.used();
    }
    println!("a frame: pop {}, push {}", each(pop), each(push));
}
