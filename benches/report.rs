//! How every bench reports: one JSON object a line, printed and kept in
//! `target/bench/NAME.jsonl`.

#![allow(dead_code, reason = "each bench uses a part")]

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

/// A peer's figure from the same run.
pub struct Peer {
    /// Its name, such as `testpmd-io`.
    pub name: &'static str,
    /// Its figure, in the unit of ours.
    pub theirs: f64,
}

/// The report of one bench.
pub struct Report {
    bench: &'static str,
    file: std::fs::File,
}

impl Report {
    /// Begins the report of `bench`, replacing that of an earlier run.
    pub fn new(bench: &'static str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        std::fs::create_dir_all(&dir).unwrap();
        let file = std::fs::File::create(dir.join(format!("{bench}.jsonl"))).unwrap();
        Self { bench, file }
    }

    /// One figure; with a peer, `ratio` is ours / theirs.
    pub fn line(&mut self, case: &str, ours: f64, unit: &str, peer: Option<Peer>) {
        let mut line = Map::new();
        line.insert("bench".to_owned(), json!(self.bench));
        line.insert("case".to_owned(), json!(case));
        line.insert("ours".to_owned(), json!(ours));
        if let Some(peer) = &peer {
            line.insert("peer".to_owned(), json!(peer.name));
            line.insert("theirs".to_owned(), json!(peer.theirs));
        }
        line.insert("unit".to_owned(), json!(unit));
        if let Some(peer) = &peer {
            line.insert("ratio".to_owned(), json!(ours / peer.theirs));
        }
        let line = Value::Object(line);
        println!("{line}");
        writeln!(self.file, "{line}").unwrap();
    }
}

/// The middle of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// CPU time of a process so far, in seconds, user and system, all threads.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Fields 14 and 15; the name in field 2 may have spaces, so count from its end.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // USER_HZ is 100 on every Linux of this architecture.
    ticks / 100.0
}

/// CPU time that the machine has spent so far, in seconds, all CPUs; without that of programs
/// with a positive nice value, which are not the bench's.
pub fn machine_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap())
        .collect();
    // user, (nice), system, (idle, iowait), irq, softirq
    (fields[0] + fields[2] + fields[5] + fields[6]) / 100.0
}
