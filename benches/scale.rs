//! What do many hosts and elements cost controllers and etcd?
//!
//! *Held constant*: three members of etcd, data in memory, two controllers over it, all real
//! processes on this machine; 100 tenants, ten elements on each host, each element with two
//! vNICs and a policy. Hosts are simulated: nothing here talks to backends.
//! *Peers*: the same programs without any elements, where that says something.
//! *Expected before measuring*: memory and start grow with elements, edits with the members'
//! answers and not with elements.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

#[path = "scale/client.rs"]
mod client;
mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use client::Client;
use report::{Peer, Report, cpu_seconds};
use serde_json::{Value, json};
use shunt::controller::store::{self, Event, Settings, Store};
use support::etcd::Etcd;
use support::process::Process;
use support::shunt::binary;
use support::{Dir, eventually, eventually_some, now};

const HOSTS: usize = 1_000;
const ELEMENTS_A_HOST: usize = 10;
const ELEMENTS: usize = HOSTS * ELEMENTS_A_HOST;
const TENANTS: usize = 100;
/// Hosts of one request: with elements and their index it is below etcd's 128 operations.
const HOSTS_A_REQUEST: usize = 6;
const INVENTORY: &str = "/restconf/data/shunt-inventory:inventory";
/// How long each rate is measured.
const SAMPLE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(60);
/// Edits whose way is timed.
const WATCHED: usize = 500;

fn main() {
    let etcd = Etcd::start(3);
    let dirs = [Dir::new(), Dir::new()];
    let mut controllers = dirs.each_ref().map(|dir| Controller::start(dir, &etcd));
    let mut report = Report::new("scale");
    let empty = Resident::of(&controllers, &etcd);
    let empty_start = restarted(&mut controllers);

    let begun = now();
    fill(&controllers);
    let took = begun.elapsed().as_secs_f64();
    let case = format!("elements={ELEMENTS}");
    let mut line = |name: &str, ours: f64, unit: &str, peer: Option<Peer>| {
        report.line(&format!("{name} {case}"), ours, unit, peer);
    };
    line("fill", ELEMENTS as f64 / took, "elements/s", None);

    let documents = stored(&controllers[0]);
    line("document", documents, "bytes/element", None);
    let start = restarted(&mut controllers);
    line("start", start, "s", without(empty_start));
    let full = Resident::of(&controllers, &etcd);
    line(
        "controller-memory",
        full.controller,
        "MiB",
        without(empty.controller),
    );
    line("etcd-memory", full.etcd, "MiB", without(empty.etcd));
    let a_mebibyte = f64::from(1 << 20);
    let grown = (full.controller - empty.controller) * a_mebibyte / ELEMENTS as f64;
    line("controller-memory", grown, "bytes/element", None);

    let (members, before) = (etcd.pids(), now());
    let cpu = |controllers: &[Controller; 2]| {
        let own = controllers.iter().map(|one| cpu_seconds(one.process.id()));
        [
            own.sum(),
            members.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>(),
        ]
    };
    let spent = cpu(&controllers);
    support::pause(SAMPLE);
    let idle = cpu(&controllers);
    let seconds = before.elapsed().as_secs_f64();
    line(
        "idle-controllers",
        (idle[0] - spent[0]) / seconds,
        "cores",
        None,
    );
    line("idle-etcd", (idle[1] - spent[1]) / seconds, "cores", None);

    for clients in [1, 4, 16] {
        let mut delays = edits(&controllers, clients);
        let rate = delays.len() as f64 / SAMPLE.as_secs_f64();
        line(&format!("edits clients={clients}"), rate, "edits/s", None);
        let middle = percentile(&mut delays, 50);
        line(&format!("edit-p50 clients={clients}"), middle, "ms", None);
        let worst = percentile(&mut delays, 99);
        line(&format!("edit-p99 clients={clients}"), worst, "ms", None);
    }
    let mut delays = watched(&controllers[0], &etcd);
    line("edit-to-watch-p50", percentile(&mut delays, 50), "ms", None);
    line("edit-to-watch-p99", percentile(&mut delays, 99), "ms", None);
}

/// The same without elements.
fn without(theirs: f64) -> Option<Peer> {
    let name = "self-empty";
    Some(Peer { name, theirs })
}

fn percentile(figures: &mut [f64], percent: usize) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[(figures.len() - 1) * percent / 100]
}

struct Controller {
    process: Process,
    socket: PathBuf,
    config: PathBuf,
}

impl Controller {
    fn start(dir: &Dir, etcd: &Etcd) -> Self {
        let at = dir.path().display();
        let text = format!(
            "[controller]\nsocket = '{at}/controller.sock'\n[store]\netcd = {}\n\
             [audit]\nfile = '{at}/audit.jsonl'\n",
            json!(etcd.urls())
        );
        let config = dir.write("controller.toml", &text);
        let mut controller = Self {
            process: spawn(&config),
            socket: dir.file("controller.sock"),
            config,
        };
        controller.wait_ready();
        controller
    }

    fn wait_ready(&mut self) {
        eventually(DEADLINE, "the controller answers", || {
            self.process.assert_running();
            // A socket that the last process left behind refuses.
            Client::connect(&self.socket)
                .and_then(|mut client| client.ask("GET", "/restconf", &Value::Null))
                .is_some()
        });
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }
}

fn spawn(config: &std::path::Path) -> Process {
    let mut command = Command::new(binary());
    command
        .arg("controller")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null());
    Process::start(command, &config.with_extension("log"))
}

/// Kills and starts both, one after the other; gives the longer time until an answer, which
/// comes once the inventory is known.
fn restarted(controllers: &mut [Controller; 2]) -> f64 {
    let of = |controller: &mut Controller| {
        controller.process.kill9();
        let begun = now();
        controller.process = spawn(&controller.config);
        controller.wait_ready();
        begun.elapsed().as_secs_f64()
    };
    let [one, other] = controllers;
    of(one).max(of(other))
}

/// Memory of the largest process of a kind, MiB.
struct Resident {
    controller: f64,
    etcd: f64,
}

impl Resident {
    fn of(controllers: &[Controller; 2], etcd: &Etcd) -> Self {
        let own = controllers.iter().map(|one| resident(one.process.id()));
        let members = etcd.pids().into_iter().map(resident);
        Self {
            controller: own.fold(0.0, f64::max),
            etcd: members.fold(0.0, f64::max),
        }
    }
}

fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: f64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kibibytes / 1024.0
}

fn element(host: usize, number: usize) -> Value {
    let name = host * ELEMENTS_A_HOST + number;
    let [high, low] = u16::try_from(name).unwrap().to_be_bytes();
    json!({
        "name": format!("element-{name}"), "tenant": format!("tenant-{}", name % TENANTS),
        "host": format!("host-{host}"), "port": format!("port-{number}"),
        "vnic": [
            { "name": "lan", "mac": format!("52:54:00:00:{high:02x}:{low:02x}"),
              "source-prefix": ["0.0.0.0/0", "::/0"] },
            { "name": "wan", "mac": format!("52:54:00:01:{high:02x}:{low:02x}") }
        ],
        "policy": {
            "translation-prefix": [format!("198.18.{high}.{low}/32"), "2001:db8::/64"],
            "sessions": 10_000, "requests-per-second": 2_000
        }
    })
}

/// Writes everything, in turn through both.
fn fill(controllers: &[Controller; 2]) {
    let mut clients = controllers.each_ref().map(Controller::client);
    let mut write = |number: usize, inventory: Value| {
        let body = json!({ "shunt-inventory:inventory": inventory });
        let status = clients[number % 2].ask("PATCH", INVENTORY, &body);
        assert_eq!(status, Some(204), "{body}");
    };
    let tenants: Vec<Value> = (0..TENANTS)
        .map(|number| json!({ "name": format!("tenant-{number}") }))
        .collect();
    write(0, json!({ "tenant": tenants }));
    let hosts: Vec<usize> = (0..HOSTS).collect();
    for (number, hosts) in hosts.chunks(HOSTS_A_REQUEST).enumerate() {
        let own: Vec<Value> = hosts
            .iter()
            .map(|host| {
                json!({ "name": format!("host-{host}"), "backend": "/run/shunt/backend.sock",
                    "relay": [format!("relay.host-{host}.example.net")] })
            })
            .collect();
        write(number, json!({ "host": own }));
        let elements = hosts
            .iter()
            .flat_map(|host| (0..ELEMENTS_A_HOST).map(move |number| element(*host, number)));
        let elements: Vec<Value> = elements.collect();
        write(number, json!({ "element": elements }));
    }
}

/// Bytes of keys and documents an element, as a backup has them.
fn stored(controller: &Controller) -> f64 {
    let file = controller.config.with_extension("backup");
    let said = Command::new(binary())
        .arg("controller")
        .arg("--config")
        .arg(&controller.config)
        .arg("--backup")
        .arg(&file)
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    let text = std::fs::read_to_string(file).unwrap();
    let sizes = text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let key = line["document"]["key"].as_str()?;
        let is_of_one = key.starts_with("element/") || key.starts_with("index/element/");
        is_of_one.then(|| key.len() + line["document"]["value"].as_str().unwrap().len())
    });
    sizes.sum::<usize>() as f64 / ELEMENTS as f64
}

/// Edits elements from `clients` connections, half of them to each controller; gives how
/// long each accepted one took, ms.
fn edits(controllers: &[Controller; 2], clients: usize) -> Vec<f64> {
    let begun = now();
    let edit = |number: usize| {
        let mut client = controllers[number % 2].client();
        let mut delays = Vec::new();
        let mut next = number;
        while begun.elapsed() < SAMPLE {
            let path = format!("{INVENTORY}/element=element-{}/policy", next % ELEMENTS);
            // Another than it has: what changes nothing is not written.
            let age = clients * 1_000 + next % 997;
            let body = json!({ "shunt-inventory:policy": { "minimum-age": age } });
            let asked = now();
            // 503: the others were quicker so often that it gave up.
            match client.ask("PATCH", &path, &body).unwrap() {
                204 => delays.push(asked.elapsed().as_secs_f64() * 1e3),
                status => assert_eq!(status, 503),
            }
            next += clients;
        }
        delays
    };
    let edit = &edit;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|number| scope.spawn(move || edit(number)))
            .collect();
        let delays = threads.into_iter().flat_map(|one| one.join().unwrap());
        delays.collect()
    })
}

/// From sending an edit to one controller until a watch as the others have it tells it, ms.
fn watched(controller: &Controller, etcd: &Etcd) -> Vec<f64> {
    let (told, hear) = mpsc::channel();
    let mut members = etcd.urls();
    members.rotate_left(1);
    std::thread::spawn(move || watch(members, &told));
    let is_ready = hear.recv_timeout(DEADLINE).unwrap();
    assert!(is_ready.0.is_empty());
    let mut client = controller.client();
    let edit = |number: usize| {
        let path = format!("{INVENTORY}/element=element-{number}/kill");
        let asked = now();
        let status = client.ask("PUT", &path, &json!({ "shunt-inventory:kill": true }));
        assert_eq!(status, Some(201));
        let end = format!("/element-{number}");
        let at = eventually_some(DEADLINE, "the watch tells it", || {
            let (key, at) = hear.recv_timeout(DEADLINE).unwrap();
            key.ends_with(&end).then_some(at)
        });
        at.duration_since(asked).as_secs_f64() * 1e3
    };
    (0..WATCHED).map(edit).collect()
}

/// Tells what a watch tells, and when; at first that it is there.
fn watch(members: Vec<String>, told: &mpsc::Sender<(String, Instant)>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let settings = Settings {
            members,
            files: None,
            prefix: "/shunt/".to_owned(),
            operations_max: 128,
        };
        let store = store::Etcd::new(settings).unwrap();
        let mut watch = store.watch("").await.unwrap();
        while let Some(event) = watch.next().await {
            let keys = match event {
                Event::Everything(_) => vec![String::new()],
                Event::Changed(changes) => changes.into_iter().map(|one| one.key).collect(),
            };
            for key in keys {
                if told.send((key, now())).is_err() {
                    return;
                }
            }
        }
    });
}
