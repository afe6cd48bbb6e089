//! Several controllers over etcd: whichever process is killed under load, what was accepted
//! is there, and sessions go on.

#![expect(
    clippy::disallowed_types,
    reason = "the threads of a test note what was accepted"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::at;
use crate::lab::{Authority, Controller, INVENTORY, Identity, Reply, command, curl, curl_at};
use crate::support::etcd::{Etcd, Place, own_ports};
use crate::support::shunt::{Shunt, idle_router};
use crate::support::{Dir, eventually, eventually_some};

const CONFIG: &str = r#"
[controller]
socket = "{dir}/controller.sock"
[store]
etcd = ETCD
[audit]
file = "{dir}/audit.jsonl"
[relays]
listen = "ADDRESS"
certificate = "CERTS/server.crt"
key = "CERTS/server.key"
client-ca = "CERTS/relays.pem"
"#;

const OFFLOAD: &str = "/restconf/operations/shunt-offload:offload";
const SUMMARY: &str = "/restconf/data/shunt-offload:state/summary";
/// What must be accepted of each kind before and after each death.
const PROGRESS: usize = 5;
/// An election, retries, a slow machine.
const SOON: Duration = Duration::from_secs(60);

/// Who asks two controllers of a cluster of three, and a backend with the element `router1`.
pub struct Lab {
    /// Where each controller is asked.
    doors: Vec<Door>,
    backend: Shunt,
    relay: Identity,
    servers: Authority,
    /// Of the controllers, of certificates, of the backend.
    dirs: [Dir; 4],
}

/// Where a controller is asked, whether or not it runs.
struct Door {
    socket: PathBuf,
    /// A relay beside it asks here.
    place: Place,
    relays: u16,
}

impl Lab {
    /// Over a cluster of `etcd`, with controllers at `places`, who may be killed.
    pub fn over(etcd: &Etcd, places: [Place; 2]) -> (Self, Vec<Controller>) {
        let dirs = std::array::from_fn(|_| Dir::new());
        let [_, _, certs, home] = &dirs;
        let servers = Authority::new(certs, "servers");
        let relays = Authority::new(certs, "relays");
        servers.issue("server", "localhost");
        let relay = relays.issue("relay", "relay.h1.example");
        let backend = Shunt::start(home, &idle_router(65_536));
        let mut doors = Vec::new();
        let start = |(dir, place): (&Dir, Place)| {
            let [port] = own_ports();
            let config = CONFIG
                .replace("ETCD", &json!(etcd.urls()).to_string())
                .replace("ADDRESS", &format!("{}:{port}", place.address))
                .replace("CERTS", certs.path().to_str().unwrap());
            doors.push(Door {
                socket: dir.file("controller.sock"),
                place: place.clone(),
                relays: port,
            });
            Controller::start_at(place, dir, &config)
        };
        let controllers: Vec<Controller> = dirs[..2].iter().zip(places).map(start).collect();
        let lab = Self {
            doors,
            backend,
            relay,
            servers,
            dirs,
        };
        controllers[0].set("PUT", INVENTORY, &lab.inventory());
        eventually(SOON, "both know the element", || {
            (0..2).all(|door| lab.offer(door, "first", 1).is_ok())
        });
        (lab, controllers)
    }

    fn inventory(&self) -> Value {
        json!({ "shunt-inventory:inventory": {
            "tenant": [{ "name": "acme" }],
            "host": [{
                "name": "h1", "relay": ["relay.h1.example"],
                "backend": self.dirs[3].file("control.sock")
            }],
            "element": [{
                "name": "router1", "tenant": "acme", "host": "h1", "port": "port1",
                "vnic": [
                    { "name": "lan", "mac": "52:54:00:00:00:01", "source-prefix": ["0.0.0.0/0"] },
                    { "name": "wan", "mac": "52:54:00:00:00:02" }
                ],
                "policy": { "translation-prefix": ["198.51.100.1/32"], "sessions": 65_536 }
            }]
        }})
    }

    /// Offers a session through a controller; `Ok`: it was accepted.
    fn offer(&self, door: usize, key: &str, port: u16) -> Result<(), String> {
        let session = json!({
            "key": key, "protocol": "udp", "idle-timeout": 3600,
            "original": {
                "ingress-vnic": "lan", "egress-vnic": "wan",
                "source-address": "10.0.0.2", "source-port": port,
                "destination-address": "192.0.2.9", "destination-port": 53,
                "translation": { "source-address": "198.51.100.1" }
            }
        });
        let body = json!({ "shunt-offload:input": { "session": [session] } });
        let reply = self.as_relay(door, &body)?;
        let results = reply.json();
        let result = results["shunt-offload:output"]["result"][0]["result"].as_str();
        match (reply.status, result) {
            (200, Some("offloaded" | "unchanged")) => Ok(()),
            _ => Err(format!("{reply:?}")),
        }
    }

    fn as_relay(&self, door: usize, body: &Value) -> Result<Reply, String> {
        let Door { place, relays, .. } = &self.doors[door];
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let argv = [
            "--cert".to_owned(),
            text(&self.relay.certificate),
            "--key".to_owned(),
            text(&self.relay.key),
            "--cacert".to_owned(),
            text(&self.servers.file()),
            "--connect-to".to_owned(),
            format!("::{}:{relays}", place.address),
            "--header".to_owned(),
            format!("authorization: Bearer {}", self.relay.token("port1", 1)),
            "--http2".to_owned(),
            format!("https://localhost{OFFLOAD}"),
        ];
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        curl_at(place, &argv, "POST", Some(body)).map_err(|code| format!("curl ended with {code}"))
    }

    /// Creates a tenant through a controller; `Ok`: it was accepted.
    fn edit(&self, door: usize, name: &str) -> Result<(), String> {
        let url = format!("http://localhost{INVENTORY}");
        let socket = self.doors[door].socket.to_str().unwrap();
        let body = json!({ "shunt-inventory:tenant": [{ "name": name }] });
        match curl(&["--unix-socket", socket, &url], "POST", Some(&body)) {
            Ok(reply) if reply.status == 201 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    /// The store, as a backup has it.
    fn stored(&self) -> String {
        let file = self.dirs[0].file("backup.jsonl");
        let config = self.dirs[0].file("controller.toml");
        let said = command(&config, &["--backup", file.to_str().unwrap()]);
        assert!(said.status.success(), "{said:?}");
        std::fs::read_to_string(file).unwrap()
    }

    /// Keys of all sessions in the backend.
    fn sessions(&self) -> BTreeSet<String> {
        let path = "/restconf/data/shunt-offload:state/element=router1/sessions";
        let sessions = self.backend.control().get(path);
        let sessions = sessions["shunt-offload:sessions"]["session"].as_array();
        let keys = sessions.unwrap().iter();
        keys.map(|one| one["key"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// What clients ask of the controllers, and what of it was accepted.
#[derive(Default)]
pub struct Load {
    is_over: AtomicBool,
    next: AtomicUsize,
    /// Accepted names and keys, by controller.
    edits: [Mutex<BTreeSet<String>>; 2],
    sessions: [Mutex<BTreeSet<String>>; 2],
}

fn names(of: &Mutex<BTreeSet<String>>) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// Asks one controller, one thing after the other, until it is over.
    fn run(
        &self,
        accepted: &Mutex<BTreeSet<String>>,
        ask: impl Fn(&str, u16) -> Result<(), String>,
    ) {
        while !self.is_over.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let name = format!("n{number}");
            // What was not accepted may or may not be there: either is right.
            if ask(&name, u16::try_from(number + 2).unwrap()).is_ok() {
                names(accepted).insert(name);
            }
        }
    }

    /// How many edits a controller has accepted.
    pub fn edits(&self, door: usize) -> usize {
        names(&self.edits[door]).len()
    }

    /// Waits until each of `doors` has accepted some more of both.
    pub fn goes_on(&self, doors: &[usize], what: &str) {
        self.accepts(doors, doors, what);
    }

    /// Waits until some of each have accepted more edits, and some more sessions.
    pub fn accepts(&self, edits: &[usize], sessions: &[usize], what: &str) {
        let counts = || -> Vec<usize> {
            let edits = edits.iter().map(|door| &self.edits[*door]);
            let sessions = sessions.iter().map(|door| &self.sessions[*door]);
            edits.chain(sessions).map(|one| names(one).len()).collect()
        };
        let before = counts();
        eventually(SOON, what, || {
            let is_on = |(now, before): (&usize, &usize)| *now >= before + PROGRESS;
            counts().iter().zip(&before).all(is_on)
        });
    }
}

/// Ends the load also where the test fails.
struct Over<'a>(&'a Load);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Lab {
    /// Does `work` while both controllers are asked for edits and sessions; no session may be
    /// dropped meanwhile, and everything accepted must be there afterwards.
    pub fn under_load(
        &self,
        controllers: &mut [Controller],
        work: impl FnOnce(&Load, &mut [Controller]),
    ) {
        let load = Load::default();
        std::thread::scope(|scope| {
            let over = Over(&load);
            let load = &load;
            for door in [0, 1] {
                scope.spawn(move || {
                    load.run(&load.edits[door], |name, _| self.edit(door, name));
                });
                scope.spawn(move || {
                    load.run(&load.sessions[door], |name, port| {
                        self.offer(door, name, port)
                    });
                });
            }
            scope.spawn(move || {
                let mut most = 0;
                while !load.is_over.load(Ordering::Relaxed) {
                    let summary = self.backend.control().get(SUMMARY);
                    let own = &summary["shunt-offload:summary"]["element"][0]["sessions"];
                    let count = own.as_u64().unwrap();
                    assert!(count >= most, "a session was dropped");
                    most = count;
                }
            });
            load.goes_on(&[0, 1], "both controllers accept");
            work(load, controllers);
            drop(over);
        });
        let there = eventually_some(SOON, "both tell the same", || {
            let there = tenants(&controllers[0]);
            (there == tenants(&controllers[1])).then_some(there)
        });
        let held = self.sessions();
        for door in [0, 1] {
            let (edits, sessions) = (names(&load.edits[door]), names(&load.sessions[door]));
            let lost: Vec<&String> = edits.difference(&there).collect();
            assert!(lost.is_empty(), "edits are lost: {lost:?}");
            let lost: Vec<&String> = sessions.difference(&held).collect();
            assert!(lost.is_empty(), "sessions are lost: {lost:?}");
        }
    }
}

#[test]
fn whichever_process_is_killed_under_load_nothing_accepted_is_lost() {
    let mut etcd = Etcd::start(3);
    let (lab, mut controllers) = Lab::over(&etcd, [Place::here(), Place::here()]);
    lab.under_load(&mut controllers, |load, controllers| {
        let leader = etcd.leader();
        for member in [(leader + 1) % 3, leader, (leader + 2) % 3] {
            etcd.kill9(member);
            load.goes_on(&[0, 1], "without a member of etcd");
            etcd.spawn(member);
            etcd.wait_healthy(member);
            load.goes_on(&[0, 1], "with the member again");
        }
        for door in [0, 1] {
            controllers[door].kill9();
            load.goes_on(&[1 - door], "without a controller");
            controllers[door].restart();
            load.goes_on(&[0, 1], "with the controller again");
        }
    });
    // Of sessions the store knows nothing.
    let stored = lab.stored();
    assert!(stored.contains("tenant/acme") && !stored.contains("192.0.2.9"));
}

/// The names of tenants as a controller tells them.
fn tenants(controller: &Controller) -> BTreeSet<String> {
    let inventory = controller.get(&at("?fields=tenant/name")).json();
    let tenants = inventory["shunt-inventory:inventory"]["tenant"].as_array();
    let names = tenants.unwrap().iter();
    names
        .map(|one| one["name"].as_str().unwrap().to_owned())
        .collect()
}
