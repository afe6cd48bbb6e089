//! The peer that runs in a process of its own: DPDK's `rte_hash`, compiled here and now.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::keys::Sequence;

const HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";
const FREE_HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// A running peer.
pub struct RteHash {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// How many hugepages the host had before.
    hugepages: Option<String>,
}

impl RteHash {
    /// Compiles and starts the peer on `cpu`, with memory for `flows`.
    pub fn start(dir: &Path, cpu: usize, flows: u32) -> Self {
        let program = dir.join("rte_hash");
        compile(&program);
        // Keys, values, buckets, the ring of free places; and what DPDK takes itself.
        let megabytes = u64::from(flows) * 224 / 1_000_000 + 256;
        let hugepages = reserve(megabytes / 2 + 64);
        let mut child = Command::new(&program)
            .args(["--in-memory", "--no-pci", "--no-telemetry", "-l"])
            .arg(cpu.to_string())
            .args(["-m", &megabytes.to_string(), "--log-level=error"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer rte_hash could not be started");
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self {
            child,
            commands,
            answers,
            hugepages,
        };
        while peer.answer() != "ready" {}
        peer
    }

    /// Puts `flows` into a new table; flows added a second.
    pub fn build(&mut self, flows: u32) -> f64 {
        self.ask(&format!("build {flows}"))[0]
    }

    /// Looks up `count` numbers from `offset`; look-ups a second, and hits.
    pub fn run(&mut self, sequence: &Sequence, offset: usize, count: usize) -> (f64, u64) {
        let path = sequence.path.display();
        let answer = self.ask(&format!("run {path} {offset} {count}"));
        (answer[0], answer[1] as u64)
    }

    fn ask(&mut self, command: &str) -> Vec<f64> {
        writeln!(self.commands.as_mut().unwrap(), "{command}").expect("the peer rte_hash ended");
        let answer = self.answer();
        answer
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect()
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        let length = self.answers.read_line(&mut line).unwrap();
        assert!(length > 0, "the peer rte_hash ended: see its message above");
        line.trim().to_owned()
    }
}

impl Drop for RteHash {
    fn drop(&mut self) {
        self.commands = None;
        let _ended = self.child.wait();
        if let Some(before) = &self.hugepages {
            let _left_as_is = std::fs::write(HUGEPAGES, before);
        }
    }
}

fn compile(program: &Path) {
    let flags = |option: &str| {
        let output = Command::new("pkg-config")
            .args([option, "libdpdk"])
            .output();
        let output = output.expect("pkg-config is missing: run `make setup`");
        assert!(
            output.status.success(),
            "libdpdk is missing (Debian: libdpdk-dev): run `make setup`"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let status = Command::new("gcc")
        .args(["-O3", "-march=native", "-Wall", "-Werror", "-o"])
        .arg(program)
        .args(flags("--cflags").split_whitespace())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/rte_hash.c"))
        .args(flags("--libs").split_whitespace())
        .status()
        .expect("gcc is missing: run `make setup`");
    assert!(
        status.success(),
        "benches/peers/rte_hash.c does not compile"
    );
}

/// Sees to it that so many hugepages are free; how many there were, if that took more.
fn reserve(pages: u64) -> Option<String> {
    let number = |path: &str| -> u64 {
        let text = std::fs::read_to_string(path).unwrap();
        text.trim().parse().unwrap()
    };
    let missing = pages.saturating_sub(number(FREE_HUGEPAGES));
    if missing == 0 {
        return None;
    }
    let before = number(HUGEPAGES);
    std::fs::write(HUGEPAGES, (before + missing).to_string())
        .expect("the peer rte_hash needs hugepages: run as root");
    assert!(
        number(FREE_HUGEPAGES) >= pages,
        "the peer rte_hash needs {pages} free hugepages"
    );
    Some(before.to_string())
}
