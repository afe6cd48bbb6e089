//! What the control thread does to a reader: it inserts and removes two million sessions a second
//! (or what it manages) in the reader's table, or in one that the reader has nothing to do with.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use shunt::flow::{FlowSpec, FlowState, HashSeed, TableReader, TableWriter, flow_table};

use super::keys::{Choice, Sequence, specs};
use super::memory::pin_to;
use super::report::{Peer, Report, median};
use super::support::{Dir, now};
use super::{CPU, look_up};

/// Sessions that stay, and those that come and go.
const SESSIONS: u32 = 1 << 18;
const CHURN: u32 = 1 << 12;
/// Inserts and as many removals a second.
const RATE: f64 = 2_000_000.0;
const SAMPLES: usize = 7;
const SAMPLE: Duration = Duration::from_millis(400);

/// Measures a reader beside a writer of its table, and beside one of another.
pub fn beside_readers(report: &mut Report) {
    let dir = Dir::new();
    let sequence = Sequence::new(dir.path(), 2 * SESSIONS, Choice::Uniform, true);
    let (mut own, mut reader) = roomy();
    let (mut other, _idle) = roomy();
    let churn: Vec<_> = (SESSIONS..SESSIONS + CHURN).map(specs).collect();
    let mut figures = [const { Vec::new() }; 3];
    for sample in 0..=SAMPLES {
        let (beside_own, wrote) = beside(&mut reader, &mut own, &sequence, &churn);
        let (beside_other, _) = beside(&mut reader, &mut other, &sequence, &churn);
        if sample > 0 {
            figures[0].push(beside_own);
            figures[1].push(beside_other);
            figures[2].push(wrote);
        }
    }
    let [own, other, wrote] = figures.map(median);
    let theirs = Peer {
        name: "self-unrelated",
        theirs: other.round(),
    };
    report.line(
        "reader beside control",
        own.round(),
        "lookups/s",
        Some(theirs),
    );
    report.line("control beside reader", wrote.round(), "sessions/s", None);
    let mut rates = Vec::new();
    for _ in 0..SAMPLES {
        let (mut writer, _reader) = roomy();
        let start = now();
        for _ in 0..16 {
            write_once(&mut writer, &churn);
        }
        rates.push(16.0 * f64::from(CHURN) / start.elapsed().as_secs_f64());
    }
    report.line(
        "insert and remove",
        median(rates).round(),
        "sessions/s",
        None,
    );
}

/// A table of `SESSIONS` with room for more.
fn roomy() -> (TableWriter, TableReader) {
    let (mut writer, mut readers) = flow_table(4 * SESSIONS, 1, HashSeed::random());
    for (original, reply) in (0..SESSIONS).map(specs) {
        writer
            .insert_pair(original, reply, [true; 2], FlowState::Active)
            .expect("room");
    }
    (writer, readers.remove(0))
}

fn write_once(writer: &mut TableWriter, churn: &[(FlowSpec, FlowSpec)]) {
    let mut pairs = Vec::with_capacity(churn.len());
    for (original, reply) in churn {
        let (original, reply) = (original.clone(), reply.clone());
        pairs.extend(writer.insert_pair(original, reply, [true; 2], FlowState::Active));
    }
    for (original, reply) in pairs {
        writer.remove_pair(original, reply);
    }
    writer.reclaim();
}

/// Look-ups a second while another thread writes, and what that thread wrote a second.
fn beside(
    reader: &mut TableReader,
    writer: &mut TableWriter,
    sequence: &Sequence,
    churn: &[(FlowSpec, FlowSpec)],
) -> (f64, f64) {
    let (stop, wrote) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin_to(1 - CPU);
            let start = now();
            while !stop.load(Ordering::Relaxed) {
                let done = wrote.load(Ordering::Relaxed) as f64;
                if done <= start.elapsed().as_secs_f64() * RATE {
                    write_once(writer, churn);
                    wrote.fetch_add(churn.len() as u64, Ordering::Relaxed);
                }
            }
        });
        let start = now();
        let mut looked = 0;
        for numbers in sequence.numbers.chunks(1 << 14).cycle() {
            looked += look_up(reader, numbers);
            if start.elapsed() >= SAMPLE {
                break;
            }
        }
        let took = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        (
            looked as f64 / took,
            wrote.load(Ordering::Relaxed) as f64 / took,
        )
    })
}
