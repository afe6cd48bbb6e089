//! Open vSwitch with DPDK, as a switch between vhost-user sockets.
//!
//! A database and a daemon of its own in the test's directory: a switch that the machine
//! runs is left alone.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::{Process, needs, output, succeed};
use super::{Dir, eventually, unique};

const PACKAGE: &str = "openvswitch-switch-dpdk";
/// Debian's `ovs-vswitchd` is an alternative; this one is DPDK's in any case.
const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Rules take up to 14 s for 131,072.
const FLOWS_DEADLINE: Duration = Duration::from_secs(120);
const BRIDGE: &str = "br0";
/// So high that what the daemon makes of it, when it was stopped and finds that it has been
/// slow, still is.
const FLOW_LIMIT: u32 = 1_000_000_000;

/// Huge pages of one switch, MiB.
pub const MEMORY_MIB: u64 = 512;

/// A running Open vSwitch with one userspace bridge; dropping it kills it.
#[derive(Debug)]
pub struct Ovs {
    // Dropped in this order: the daemon before its database.
    daemon: Process,
    _database: Process,
    dir: PathBuf,
    ports: u32,
}

impl Ovs {
    /// Starts a switch whose only poll-mode thread runs on CPU `pmd`, all else on CPU
    /// `rest`. It needs [`MEMORY_MIB`] of huge pages.
    pub fn start(dir: &Dir, pmd: usize, rest: usize) -> Self {
        for program in [
            DAEMON,
            "ovsdb-server",
            "ovsdb-tool",
            "ovs-vsctl",
            "ovs-ofctl",
        ] {
            needs(program, PACKAGE);
        }
        let home = dir.file(&unique("ovs"));
        std::fs::create_dir(&home).unwrap();
        let at = |name: &str| home.join(name).display().to_string();
        succeed(&["ovsdb-tool", "create", &at("conf.db"), SCHEMA]);
        let mut command = Command::new("ovsdb-server");
        command
            .arg(at("conf.db"))
            .arg(format!("--remote=punix:{}", at("db.sock")))
            .arg(format!("--unixctl={}", at("db.ctl")));
        let mut database = Process::start(quiet(command, &home), &dir.file("ovsdb.log"));
        eventually(START_DEADLINE, "the switch's database listens", || {
            database.assert_running();
            home.join("db.sock").exists()
        });
        let masks = [
            ("pmd-cpu-mask", 1u64 << pmd),
            ("dpdk-lcore-mask", 1 << rest),
        ];
        let settings = masks.map(|(name, mask)| format!("other_config:{name}={mask:#x}"));
        vsctl(
            &home,
            &[
                "--no-wait",
                "set",
                "Open_vSwitch",
                ".",
                "other_config:dpdk-init=true",
                &format!("other_config:dpdk-socket-mem={MEMORY_MIB}"),
                "other_config:dpdk-extra=--in-memory --no-pci",
                // Rules it has learned stay, also while it is stopped for others' turns.
                "other_config:max-idle=3600000",
                &format!("other_config:flow-limit={FLOW_LIMIT}"),
                &settings[0],
                &settings[1],
            ],
        );
        let mut command = Command::new(DAEMON);
        command
            .arg(format!("unix:{}", at("db.sock")))
            .arg(format!("--unixctl={}", at("vswitchd.ctl")));
        let daemon = Process::start(quiet(command, &home), &dir.file("vswitchd.log"));
        let mut ovs = Self {
            daemon,
            _database: database,
            dir: home,
            ports: 0,
        };
        // Waits until the daemon has done it; an error of DPDK shows in its log.
        ovs.vsctl(&[
            "add-br",
            BRIDGE,
            "--",
            "set",
            "bridge",
            BRIDGE,
            "datapath_type=netdev",
            "fail-mode=secure",
        ]);
        ovs.daemon.assert_running();
        ovs.lift_flow_limit();
        ovs
    }

    /// Stops all of its threads, as they are.
    pub fn rest(&mut self) {
        self.daemon.signal(libc::SIGSTOP);
    }

    /// Goes on after [`Ovs::rest`], with all the flows it had.
    pub fn resume(&mut self) {
        self.daemon.signal(libc::SIGCONT);
        self.lift_flow_limit();
    }

    /// It begins with 10,000 flows, adds 1,000 at a time, and takes the time it was stopped
    /// for slowness, by which it divides.
    fn lift_flow_limit(&self) {
        self.appctl(&["upcall/set-flow-limit", &FLOW_LIMIT.to_string()]);
    }

    /// Adds a port that connects to the frontend which listens, or will, on `socket`.
    /// Gives its OpenFlow number.
    pub fn add_vhost_client(&mut self, socket: &Path) -> u32 {
        self.ports += 1;
        let name = format!("vhost{}", self.ports);
        self.vsctl(&[
            "add-port",
            BRIDGE,
            &name,
            "--",
            "set",
            "Interface",
            &name,
            "type=dpdkvhostuserclient",
            &format!("options:vhost-server-path={}", socket.display()),
            &format!("ofport_request={}", self.ports),
        ]);
        self.ports
    }

    /// Whether every port has its frontend.
    pub fn is_connected(&self) -> bool {
        let links = self.vsctl(&["--columns=link_state", "--bare", "list", "Interface"]);
        links.lines().filter(|line| *line == "up").count() >= self.ports as usize
    }

    /// Adds OpenFlow rules, one a line, as `ovs-ofctl add-flows` takes them.
    pub fn add_flows(&self, rules: &str) {
        let file = self.dir.join("rules");
        std::fs::write(&file, rules).unwrap();
        let timeout = format!("--timeout={}", FLOWS_DEADLINE.as_secs());
        let management = self.dir.join(format!("{BRIDGE}.mgmt"));
        succeed(&[
            "ovs-ofctl",
            &timeout,
            "add-flows",
            &format!("unix:{}", management.display()),
            file.to_str().unwrap(),
        ]);
    }

    /// How many flows its datapath has learned from the rules.
    pub fn learned(&self) -> u64 {
        let text = self.appctl(&["upcall/show"]);
        let count = text.split("(current ").nth(1);
        let count = count.and_then(|rest| rest.split(')').next()?.parse().ok());
        count.unwrap_or_else(|| panic!("no count of flows in:\n{text}"))
    }

    /// A command to the daemon, such as `dpif-netdev/pmd-stats-show`.
    pub fn appctl(&self, arguments: &[&str]) -> String {
        let control = self.dir.join("vswitchd.ctl");
        let mut argv = vec![
            "ovs-appctl",
            "--timeout=20",
            "-t",
            control.to_str().unwrap(),
        ];
        argv.extend(arguments);
        succeed(&argv)
    }

    /// The daemon: id, signals, log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.daemon
    }

    fn vsctl(&self, arguments: &[&str]) -> String {
        vsctl(&self.dir, arguments)
    }
}

/// All that a daemon would put under /var/run/openvswitch goes to `home`.
fn quiet(mut command: Command, home: &Path) -> Command {
    command
        .env("OVS_RUNDIR", home)
        .env("OVS_LOGDIR", home)
        .env("OVS_DBDIR", home)
        .stdin(Stdio::null());
    command
}

fn vsctl(home: &Path, arguments: &[&str]) -> String {
    let database = format!("--db=unix:{}/db.sock", home.display());
    let timeout = format!("--timeout={}", START_DEADLINE.as_secs());
    let mut argv = vec!["ovs-vsctl", &database, &timeout];
    argv.extend(arguments);
    let output = output(&argv);
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        for log in ["ovsdb.log", "vswitchd.log"] {
            let file = home.parent().unwrap().join(log);
            let _ = write!(
                said,
                "\n{}",
                std::fs::read_to_string(file).unwrap_or_default()
            );
        }
        panic!("ovs-vsctl {arguments:?}: {}\n{said}", output.status);
    }
    String::from_utf8_lossy(&output.stdout).into_owned()
}
