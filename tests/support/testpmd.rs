//! DPDK's testpmd as a guest (virtio-user frontend) or as a backend (vhost).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use super::netns::Netns;
use super::process::Process;
use super::{Dir, eventually, hugepages, now, unique};

const START_DEADLINE: Duration = Duration::from_secs(60);
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Memory of one testpmd, MiB.
pub const MEMORY_MIB: u64 = 256;

/// What a testpmd is started with.
#[derive(Debug)]
pub struct TestpmdBuilder {
    forward: String,
    lcores: String,
    devices: Vec<String>,
    arguments: Vec<String>,
    netns: Option<String>,
}

impl TestpmdBuilder {
    /// A virtio-user port: it connects to a backend's `socket`. `properties` go after
    /// it (`"queues=2,mrg_rxbuf=0"`), or are empty.
    pub fn virtio_user(self, socket: &Path, properties: &str) -> Self {
        let device = format!("net_virtio_user{}", self.devices.len());
        self.device(&format!("{device},path={}", socket.display()), properties)
    }

    /// A vhost port: it listens on `socket` for a frontend such as QEMU.
    pub fn vhost(self, socket: &Path, properties: &str) -> Self {
        let device = format!("net_vhost{}", self.devices.len());
        self.device(&format!("{device},iface={}", socket.display()), properties)
    }

    /// A port on a network interface (AF_PACKET): what comes in there is received.
    pub fn af_packet(self, interface: &str, properties: &str) -> Self {
        let device = format!("eth_af_packet{}", self.devices.len());
        self.device(&format!("{device},iface={interface}"), properties)
    }

    /// A port on a network interface, by AF_XDP.
    pub fn af_xdp(self, interface: &str, properties: &str) -> Self {
        let device = format!("net_af_xdp{}", self.devices.len());
        self.device(&format!("{device},iface={interface}"), properties)
    }

    /// Runs it inside a namespace, whose interfaces it then finds.
    pub fn within(mut self, netns: &Netns) -> Self {
        self.netns = Some(netns.name().to_owned());
        self
    }

    fn device(mut self, device: &str, properties: &str) -> Self {
        let comma = if properties.is_empty() { "" } else { "," };
        self.devices.push(format!("{device}{comma}{properties}"));
        self
    }

    /// The cores, in EAL's words; both on core 0 unless said otherwise.
    pub fn lcores(mut self, lcores: &str) -> Self {
        lcores.clone_into(&mut self.lcores);
        self
    }

    /// An argument of testpmd proper (after the `--`): `--flowgen-flows=16`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts it and waits for its prompt; nothing is forwarded before
    /// [`Testpmd::forward`].
    pub fn start(self, dir: &Dir) -> Testpmd {
        let name = unique("pmd");
        // Its answers come through stdio, its echo does not: by lines, they stay in order.
        let mut command = match &self.netns {
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name, "stdbuf"]);
                command
            }
            None => Command::new("stdbuf"),
        };
        command
            .args(["--output=L", "dpdk-testpmd"])
            .args([
                "--lcores",
                &self.lcores,
                "--no-pci",
                "--single-file-segments",
            ])
            .args(["--no-telemetry", "-m", &MEMORY_MIB.to_string()])
            .arg(format!("--file-prefix={name}"))
            .arg(if has_hugepages() {
                "--in-memory"
            } else {
                "--no-huge"
            });
        for device in &self.devices {
            command.arg(format!("--vdev={device}"));
        }
        command
            .args([
                "--",
                "--interactive",
                "--no-lsc-interrupt",
                "--disable-link-check",
                "--nb-cores=1",
            ])
            .args(["--txd=1024", "--rxd=1024", "--total-num-mbufs=16384"])
            .arg(format!("--forward-mode={}", self.forward))
            .args(&self.arguments)
            .stdin(Stdio::piped());
        let mut process = Process::start(command, &dir.file(&format!("{name}.log")));
        // testpmd ends with its standard input.
        let stdin = process.stdin();
        let runtime = Path::new("/var/run/dpdk").join(&name);
        let mut testpmd = Testpmd {
            process,
            stdin,
            commands: 0,
            runtime,
        };
        testpmd.command_within("show port summary all", START_DEADLINE);
        testpmd
    }
}

/// What a port of testpmd has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortStats {
    pub rx_packets: u64,
    pub rx_missed: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_bytes: u64,
}

/// A running testpmd; dropping it kills it.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    stdin: ChildStdin,
    commands: u64,
    runtime: PathBuf,
}

impl Testpmd {
    /// Describes a testpmd with a forward mode: `io`, `macswap`, `rxonly`, `txonly`,
    /// `flowgen`, `icmpecho`…
    pub fn build(forward: &str) -> TestpmdBuilder {
        TestpmdBuilder {
            forward: forward.to_owned(),
            lcores: "0@0,1@0".to_owned(),
            devices: Vec::new(),
            arguments: Vec::new(),
            netns: None,
        }
    }

    /// Starts forwarding (`start`).
    pub fn forward(&mut self) {
        let answer = self.command("start");
        assert!(
            answer.contains("packet forwarding"),
            "testpmd did not start: {answer}"
        );
    }

    /// Stops forwarding (`stop`), after what is in flight.
    pub fn stop(&mut self) {
        self.command("stop");
    }

    /// The counters of all ports, in order.
    pub fn stats(&mut self) -> Vec<PortStats> {
        parse_stats(&self.command("show port stats all"))
    }

    /// A command at its prompt; gives what it printed.
    pub fn command(&mut self, command: &str) -> String {
        self.command_within(command, COMMAND_DEADLINE)
    }

    /// testpmd echoes what it reads, when it reads it: the echo of a comment sent after
    /// the command says that the command is done. Another of its threads may print in the
    /// middle of that echo, so it is asked for again.
    fn command_within(&mut self, command: &str, deadline: Duration) -> String {
        self.commands += 1;
        let mark = format!("# done {} #", self.commands);
        let before = self.process.log().len();
        writeln!(self.stdin, "{command}\n{mark}").unwrap();
        self.stdin.flush().unwrap();
        let what = format!("testpmd answers '{command}'");
        let mut asked = now();
        eventually(deadline, &what, || {
            self.process.assert_running();
            if asked.elapsed() > ASK_AGAIN {
                writeln!(self.stdin, "{mark}").unwrap();
                self.stdin.flush().unwrap();
                asked = now();
            }
            self.process.log().contains(&mark)
        });
        let log = self.process.log();
        let answer = log.get(before..).unwrap_or_default();
        answer
            .split(&mark)
            .next()
            .unwrap_or_default()
            .replace('\r', "")
    }

    /// SIGKILL: a guest or a peer that crashes.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// The process: id, signals, log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        self.process.kill9();
        // DPDK leaves its directory behind; without huge pages in use there may be none.
        let _ = std::fs::remove_dir_all(&self.runtime);
    }
}

/// Numbers of `show port stats all`: words that end in a colon, each with its value.
fn parse_stats(text: &str) -> Vec<PortStats> {
    let ports = text.split("NIC statistics for port").skip(1);
    ports
        .map(|port| {
            let words: Vec<&str> = port.split_whitespace().collect();
            let value = |name: &str| {
                let at = words.iter().position(|word| *word == name);
                let at = at.unwrap_or_else(|| panic!("testpmd shows no {name} in:\n{port}"));
                words[at + 1].parse().unwrap()
            };
            PortStats {
                rx_packets: value("RX-packets:"),
                rx_missed: value("RX-missed:"),
                rx_bytes: value("RX-bytes:"),
                tx_packets: value("TX-packets:"),
                tx_errors: value("TX-errors:"),
                tx_bytes: value("TX-bytes:"),
            }
        })
        .collect()
}

/// Whether enough huge pages are free for one testpmd.
fn has_hugepages() -> bool {
    hugepages::free() * hugepages::page_kib() / 1024 >= MEMORY_MIB
}
