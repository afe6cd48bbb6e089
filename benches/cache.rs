//! How many look-ups a second does the flow table answer, how fast is it filled, and what does
//! a session cost?
//!
//! *Held constant*: one core; the keys, their 48 bytes and the order of the look-ups; bursts of 64;
//! every hit ends with a read of two fields of what its packet would get (of a peer's value: the
//! first and the last word). Both directions of each session are looked up. Large allocations of
//! every one of the three get huge pages.
//! *Peers*: DPDK's `rte_hash` with CRC32 (`rte_hash_lookup_bulk_data`, its values prefetched, then
//! read), and `hashbrown` with foldhash, its value beside the key. Neither hash is keyed by a secret
//! that holds against collisions made on purpose; the table's is.
//! *Expected before measuring*: in cache 20 ns for SipHash and 10 ns for the rest; beyond it one
//! line of buckets and one of the entry, both overlapped over the burst: some 40 ns.
//!
//! `SHUNT_BENCH_SESSIONS=64,65536` measures these sizes only.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_types,
    reason = "a bench may be blunt"
)]

#[path = "cache/control.rs"]
mod control;
#[path = "cache/keys.rs"]
mod keys;
#[path = "cache/memory.rs"]
mod memory;
mod report;
#[path = "cache/rte_hash.rs"]
mod rte_hash;
#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use keys::{Choice, LENGTH, Sequence, key_of, specs};
use report::{Peer, Report, median};
use rte_hash::RteHash;
use shunt::flow::{FlowState, HashSeed, TableReader, TableWriter, flow_table};
use shunt::packet::FlowKey;
use support::{Dir, now};

/// Every one is a power of two, as the choice among them wants it.
const SIZES: [u32; 4] = [64, 64 << 10, 1 << 20, 4 << 20];
const BURST: usize = 64;
/// Look-ups a sample; samples go through the sequence in turn.
const SAMPLE: usize = 1 << 20;
const SAMPLES: usize = 7;
/// Where everything runs.
const CPU: usize = 1;

/// What a peer's entry holds for the rewrite.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Value([u64; 8]);

fn main() {
    memory::pin_to(CPU);
    let mut report = Report::new("cache");
    let sizes = sizes();
    for &sessions in &sizes {
        lookups(&mut report, sessions);
    }
    for &sessions in &sizes {
        memory::bytes_a_session(&mut report, sessions);
    }
    memory::many_elements(&mut report);
    control::beside_readers(&mut report);
}

fn sizes() -> Vec<u32> {
    match std::env::var("SHUNT_BENCH_SESSIONS") {
        Ok(list) => list.split(',').map(|size| size.parse().unwrap()).collect(),
        Err(_) => SIZES.to_vec(),
    }
}

/// A table of that many sessions, and how many were inserted a second.
fn table(sessions: u32) -> (TableWriter, TableReader, f64) {
    let (mut writer, mut readers) = flow_table(2 * sessions, 1, HashSeed::random());
    // Requests come prepared; what is measured is the table.
    let mut took = 0.0;
    for first in (0..sessions).step_by(1024) {
        let batch: Vec<_> = (first..sessions.min(first + 1024)).map(specs).collect();
        let start = now();
        for (original, reply) in batch {
            writer
                .insert_pair(original, reply, [true; 2], FlowState::Active)
                .expect("room");
        }
        took += start.elapsed().as_secs_f64();
    }
    (writer, readers.remove(0), f64::from(sessions) / took)
}

fn lookups(report: &mut Report, sessions: u32) {
    let dir = Dir::new();
    let flows = 2 * sessions;
    let (_writer, mut reader, inserts) = table(sessions);
    let start = now();
    let mut map: HashMap<FlowKey, Value, FixedState> =
        HashMap::with_capacity_and_hasher(flows as usize, FixedState::with_seed(7));
    for number in 0..flows {
        map.insert(key_of(number), Value([u64::from(number); 8]));
    }
    let map_inserts = f64::from(sessions) / start.elapsed().as_secs_f64();
    let mut peer = RteHash::start(dir.path(), CPU, flows);
    let peer_inserts = peer.build(flows) / 2.0;
    for (choice, word) in [(Choice::Uniform, "uniform"), (Choice::Zipf, "zipf")] {
        for hit in [true, false] {
            let sequence = Sequence::new(dir.path(), flows, choice, hit);
            let mut rates = [const { Vec::new() }; 3];
            for sample in 0..=SAMPLES {
                let offset = sample * SAMPLE % LENGTH;
                let numbers = &sequence.numbers[offset..offset + SAMPLE];
                let ours = timed(numbers, |numbers| look_up(&mut reader, numbers));
                let theirs = peer.run(&sequence, offset, SAMPLE);
                let std = timed(numbers, |numbers| look_up_map(&map, numbers));
                let expected = if hit { SAMPLE as u64 } else { 0 };
                assert!([ours.1, theirs.1, std.1] == [expected; 3], "a wrong answer");
                // The first round warms up.
                for (rates, (rate, _)) in rates.iter_mut().zip([ours, theirs, std]) {
                    rates.extend((sample > 0).then_some(rate));
                }
            }
            let [ours, theirs, std] = rates.map(median);
            let answer = if hit { "hit" } else { "miss" };
            let case = format!("sessions={sessions} {word} {answer}");
            compare(report, &case, "lookups/s", ours, [theirs, std]);
        }
    }
    let case = format!("sessions={sessions} insert");
    compare(
        report,
        &case,
        "sessions/s",
        inserts,
        [peer_inserts, map_inserts],
    );
}

fn compare(report: &mut Report, case: &str, unit: &str, ours: f64, peers: [f64; 2]) {
    for (name, theirs) in ["rte_hash", "hashbrown"].into_iter().zip(peers) {
        let peer = Peer {
            name,
            theirs: theirs.round(),
        };
        report.line(case, ours.round(), unit, Some(peer));
    }
}

/// How many of `numbers` a second `look_up` takes, and how many hits it saw.
fn timed(numbers: &[u32], look_up: impl FnOnce(&[u32]) -> u64) -> (f64, u64) {
    let start = now();
    let hits = look_up(numbers);
    (numbers.len() as f64 / start.elapsed().as_secs_f64(), hits)
}

/// Hits among `numbers`, each ended with a read of what its packet would get.
pub fn look_up(reader: &mut TableReader, numbers: &[u32]) -> u64 {
    let mut hits = 0;
    let mut keys = [FlowKey::default(); BURST];
    for burst in numbers.chunks_exact(BURST) {
        for (key, number) in keys.iter_mut().zip(burst) {
            *key = key_of(*number);
        }
        let pin = reader.pin();
        let mut found = [None; BURST];
        pin.lookup_burst(&keys, &mut found);
        // By reference: `found` read as one piece would wait for what was just written in many.
        for flow in found.iter().flatten() {
            black_box((flow.state(), flow.egress()));
            hits += 1;
        }
    }
    hits
}

fn look_up_map(map: &HashMap<FlowKey, Value, FixedState>, numbers: &[u32]) -> u64 {
    let mut hits = 0;
    let mut keys = [FlowKey::default(); BURST];
    for burst in numbers.chunks_exact(BURST) {
        for (key, number) in keys.iter_mut().zip(burst) {
            *key = key_of(*number);
        }
        for key in &keys {
            if let Some(value) = map.get(key) {
                black_box((value.0[0], value.0[7]));
                hits += 1;
            }
        }
    }
    hits
}
