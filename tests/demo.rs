//! `make demo` works, says what it promises to say, and leaves nothing behind.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may be as blunt as tests"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::process::{Process, succeed};
use support::{Dir, base36, eventually, eventually_some, repository};

const RUN_DEADLINE: Duration = Duration::from_secs(150);
const STEP_DEADLINE: Duration = Duration::from_secs(120);
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Starts the demo of this build, with short measurements.
fn start(dir: &Dir) -> Process {
    // `cargo test --test demo` alone builds no examples; otherwise this finds it done.
    let of_build = Path::new(env!("CARGO_BIN_EXE_shunt")).parent().unwrap();
    build(of_build.file_name().unwrap().to_str().unwrap());
    let mut command = Command::new(of_build.join("examples/demo"));
    command.arg("--quick").stdin(Stdio::null());
    Process::start(command, &dir.file("demo.log"))
}

/// Builds the demo as what lies in the directory `of_build` was built.
fn build(of_build: &str) {
    let profile = if of_build == "debug" { "dev" } else { of_build };
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--locked", "--quiet", "--example", "demo"])
        .args(["--profile", profile])
        .current_dir(repository());
    // What Cargo tells a test of its package: build scripts that look at it (ring's is one) would
    // find another environment than the build's own, and all that hangs on them be built anew,
    // now and at the next build again.
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo build: {said}");
}

/// A process that the demo has started.
#[derive(Debug)]
struct Descendant {
    id: u32,
    command: Vec<String>,
}

/// All processes under `root` at this moment.
fn descendants(root: u32) -> Vec<Descendant> {
    let output = succeed(&["ps", "-e", "-o", "pid=,ppid="]);
    let pairs: Vec<(u32, u32)> = output
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap());
            Some((numbers.next()?, numbers.next()?))
        })
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = pairs.iter().filter(|(_, of)| *of == parent);
        found.extend(children.map(|(id, _)| *id));
        next += 1;
    }
    found[1..]
        .iter()
        .map(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words = line.split(|byte| *byte == 0);
            let command = words.map(|word| String::from_utf8_lossy(word).into_owned());
            Descendant {
                id: *id,
                command: command.collect(),
            }
        })
        .collect()
}

/// Namespaces of the demo with process id `demo`.
fn namespaces(demo: u32) -> Vec<String> {
    let mark = format!("{}x", base36(demo));
    let entries = std::fs::read_dir("/run/netns").unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| {
            let own = name.strip_prefix("democ").or(name.strip_prefix("demos"));
            own.is_some_and(|rest| rest.starts_with(&mark))
        })
        .collect()
}

/// The demo's temporary directory, from its backend's command line.
fn directory(of: &[Descendant]) -> Option<PathBuf> {
    let backend = of
        .iter()
        .find(|process| process.command.iter().any(|word| word == "--config"))?;
    let config = backend
        .command
        .iter()
        .rev()
        .find(|word| word.ends_with("shunt.toml"))?;
    Path::new(config).parent().map(Path::to_owned)
}

/// Sends `signal` once `line` is printed; nothing of the demo may be left then.
fn leaves_nothing_when_interrupted(signal: libc::c_int, line: &str) {
    let dir = Dir::new();
    let mut demo = start(&dir);
    let id = demo.id();
    eventually(STEP_DEADLINE, &format!("the demo says '{line}'"), || {
        demo.assert_running();
        demo.log().contains(line)
    });
    let is_guest = |process: &Descendant| process.command[0].contains("qemu-system");
    let started = eventually_some(STEP_DEADLINE, "guest and backend run", || {
        let started = descendants(id);
        let complete = started.iter().any(is_guest) && directory(&started).is_some();
        complete.then_some(started)
    });
    assert_eq!(namespaces(id).len(), 2);
    let files = directory(&started).unwrap();
    assert!(files.join("lan.sock").exists());

    demo.signal(signal);
    let status = demo.wait(END_DEADLINE);
    assert_eq!(status.code(), Some(128 + signal), "{}", demo.log());
    assert_eq!(namespaces(id), Vec::<String>::new());
    let alive: Vec<&Descendant> = started
        .iter()
        .filter(|process| Path::new(&format!("/proc/{}", process.id)).exists())
        .collect();
    assert!(alive.is_empty(), "still running: {alive:?}");
    assert!(!files.exists(), "{} is left", files.display());
}

#[test]
fn the_demo_offloads_a_running_session_without_loss_and_writes_its_figures() {
    let dir = Dir::new();
    let figures = repository().join("target/demo.json");
    let _absent = std::fs::remove_file(&figures);
    let mut demo = start(&dir);
    let id = demo.id();
    let status = demo.wait(RUN_DEADLINE);
    let log = demo.log();
    println!("{log}");
    assert!(status.success(), "{status}:\n{log}");
    assert_eq!(namespaces(id), Vec::<String>::new());

    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&figures).unwrap()).unwrap();
    let number = |key: &str| {
        json[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} in {json}"))
    };
    for key in ["slow_pps", "fast_pps", "slow_gbps", "fast_gbps"] {
        assert!(number(key) > 0.0, "{key} in {json}");
    }
    assert!(
        number("ratio") > 1.0 && number("gbps_ratio") > 1.0,
        "{json}"
    );
    assert!(number("guest_share") < 0.001, "{json}");
    assert_eq!((number("lost"), number("reordered")), (0.0, 0.0), "{json}");
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    leaves_nothing_when_interrupted(libc::SIGTERM, "booting the guest");
    leaves_nothing_when_interrupted(libc::SIGINT, "UDP on the slow path");
}
