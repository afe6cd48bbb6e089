//! Clusters of etcd: real processes on loopback addresses of their own, data in memory,
//! because a disk that is slow to sync would be what is tested.
//!
//! *Promises*: whatever is started ends, and its data goes, when it is dropped.
//! *Refuses*: to run without Debian's `etcd-server`.
//! *Caller's duty*: none.
//! *Standard*: etcd 3.4; heartbeat 500 ms, election 5 s.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt, and each uses a part"
)]

use std::ffi::OsStr;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long a cluster may take to have a leader.
const DEADLINE: Duration = Duration::from_secs(60);

/// A loopback address that no other process of tests uses.
pub fn own_address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | high, middle, low)
}

/// Ports that nobody else of this process uses, on [`own_address`].
pub fn own_ports<const COUNT: usize>() -> [u16; COUNT] {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    std::array::from_fn(|_| NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where a program of a test runs.
#[derive(Clone)]
pub struct Place {
    /// Its own address.
    pub address: Ipv4Addr,
    /// The network namespace by name; `None`: the test's own.
    pub netns: Option<String>,
}

impl Place {
    /// Beside the test.
    pub fn here() -> Self {
        Self {
            address: own_address(),
            netns: None,
        }
    }

    /// What `program` is started with to run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(name) = &self.netns else {
            return Command::new(program);
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name]).arg(program);
        command
    }
}

/// A cluster.
pub struct Etcd {
    members: Vec<Member>,
    dir: tempfile::TempDir,
}

struct Member {
    place: Place,
    child: Option<Child>,
    arguments: Vec<String>,
    log: PathBuf,
    url: String,
    /// Where it says how it is.
    health: u16,
}

impl Etcd {
    /// Starts `count` members and waits until they have a leader.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, "http", &[])
    }

    /// The same with other arguments; clients use `scheme`.
    pub fn start_with(count: usize, scheme: &str, more: &[String]) -> Self {
        Self::start_at(&vec![Place::here(); count], scheme, more)
    }

    /// The same with each member at a place of its own.
    pub fn start_at(places: &[Place], scheme: &str, more: &[String]) -> Self {
        let count = places.len();
        let dir = tempfile::Builder::new()
            .prefix("shunt-etcd-")
            .tempdir_in("/dev/shm")
            .unwrap();
        let ports: Vec<[u16; 3]> = (0..count).map(|_| own_ports()).collect();
        let peer = |number: usize| {
            let (address, port) = (places[number].address, ports[number][1]);
            format!("m{number}=http://{address}:{port}")
        };
        let cluster: Vec<String> = (0..count).map(peer).collect();
        let cluster = cluster.join(",");
        let member = |number: usize| {
            let [client, peer, health] = ports[number];
            let address = places[number].address;
            let url = format!("{scheme}://{address}:{client}");
            let arguments = [
                format!("--name=m{number}"),
                format!(
                    "--data-dir={}",
                    dir.path().join(number.to_string()).display()
                ),
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                format!("--listen-peer-urls=http://{address}:{peer}"),
                format!("--initial-advertise-peer-urls=http://{address}:{peer}"),
                format!("--listen-metrics-urls=http://{address}:{health}"),
                format!("--initial-cluster={cluster}"),
                "--heartbeat-interval=500".to_owned(),
                "--election-timeout=5000".to_owned(),
                "--logger=zap".to_owned(),
                "--log-outputs=stderr".to_owned(),
            ];
            Member {
                place: places[number].clone(),
                child: None,
                arguments: arguments.into_iter().chain(more.iter().cloned()).collect(),
                log: dir.path().join(format!("{number}.log")),
                url,
                health,
            }
        };
        let members = (0..count).map(member).collect();
        let mut cluster = Self { members, dir };
        (0..count).for_each(|number| cluster.members[number].spawn());
        (0..count).for_each(|number| cluster.wait_healthy(number));
        cluster
    }

    /// The members' URLs.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|one| one.url.clone()).collect()
    }

    /// The processes that run.
    pub fn pids(&self) -> Vec<u32> {
        let running = self.members.iter().filter_map(|one| one.child.as_ref());
        running.map(Child::id).collect()
    }

    /// Where the data is.
    pub fn data(&self) -> &Path {
        self.dir.path()
    }

    /// SIGKILL to one member.
    pub fn kill9(&mut self, number: usize) {
        self.members[number].kill9();
    }

    /// Starts a member again; it need not be healthy yet.
    pub fn spawn(&mut self, number: usize) {
        self.members[number].spawn();
    }

    /// Waits until a member says that it has a leader.
    pub fn wait_healthy(&mut self, number: usize) {
        let begun = now();
        while !self.members[number].is_healthy() {
            let has_ended = self.members[number]
                .child
                .as_mut()
                .is_none_or(|child| child.try_wait().unwrap().is_some());
            assert!(
                !has_ended && begun.elapsed() < DEADLINE,
                "etcd is not healthy:\n{}",
                self.members[number].log()
            );
            pause();
        }
    }

    /// Which member leads.
    pub fn leader(&self) -> usize {
        let begun = now();
        loop {
            let leads = |one: &Member| {
                one.child.is_some()
                    && one
                        .told("/metrics")
                        .is_some_and(|told| told.contains("\netcd_server_is_leader 1\n"))
            };
            if let Some(leader) = self.members.iter().position(leads) {
                return leader;
            }
            assert!(begun.elapsed() < DEADLINE, "etcd has no leader");
            pause();
        }
    }
}

impl Member {
    fn spawn(&mut self) {
        self.kill9();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let child = self
            .place
            .command("etcd")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("etcd: {error}; install the Debian package etcd-server ('make setup' does)")
        });
        self.child = Some(child);
    }

    fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn is_healthy(&self) -> bool {
        self.told("/health")
            .is_some_and(|told| told.contains("\"health\":\"true\""))
    }

    /// What it answers on `path` of its port for health.
    fn told(&self, path: &str) -> Option<String> {
        let url = format!("http://{}:{}{path}", self.place.address, self.health);
        let mut command = self.place.command("curl");
        command.args(["--silent", "--max-time", "5", &url]);
        let said = command.output().unwrap();
        let told = said.status.success().then_some(said.stdout)?;
        String::from_utf8(told).ok()
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let skip = log.len().saturating_sub(4_000);
        log.get(skip..).unwrap_or(&log).to_owned()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill9();
    }
}

#[expect(clippy::disallowed_methods, reason = "real peers run on real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "between two looks at a condition"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
