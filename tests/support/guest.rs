//! The router guest: QEMU through `qemu/run`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::{Process, succeed};
use super::{eventually, eventually_some, now, repository};

/// Boots take 4 to 6 s on an idle machine without KVM.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);
/// How long [`Guest::run`] lets a command run.
const RUN_DEADLINE: Duration = Duration::from_secs(30);
const READY: &str = "firewall ready";

/// What a guest is started with.
#[derive(Debug, Default)]
pub struct GuestBuilder {
    arguments: Vec<String>,
}

impl GuestBuilder {
    /// A vhost-user vNIC on `socket`; eth0 is the first.
    pub fn vnic(self, socket: &Path) -> Self {
        self.argument("--vnic", &format!("socket={}", socket.display()))
    }

    /// A vNIC in the words of `qemu/run --vnic`.
    pub fn vnic_with(self, specification: &str) -> Self {
        self.argument("--vnic", specification)
    }

    /// An address inside: `("eth0", "10.0.0.1/24")`.
    pub fn address(self, interface: &str, address: &str) -> Self {
        self.argument("--address", &format!("{interface}={address}"))
    }

    /// Source NAT on what leaves `interface`.
    pub fn masquerade(self, interface: &str) -> Self {
        self.argument("--masquerade", interface)
    }

    /// A program of this machine that can be run inside by its name.
    pub fn program(self, path: &Path) -> Self {
        self.argument("--program", path.to_str().unwrap())
    }

    /// Any option of `qemu/run` that has a value.
    pub fn argument(mut self, option: &str, value: &str) -> Self {
        self.arguments.extend([option.to_owned(), value.to_owned()]);
        self
    }

    /// Any option of `qemu/run` without one (`--no-tso`).
    pub fn flag(mut self, option: &str) -> Self {
        self.arguments.push(option.to_owned());
        self
    }

    /// Builds the image if it is out of date, starts QEMU with its files in `dir`, and
    /// does not wait.
    pub fn start(self, dir: &Path) -> Guest {
        let repository = repository();
        // It holds a file lock: other test processes wait for one build.
        succeed(&[repository.join("qemu/build-guest")]);
        std::fs::create_dir_all(dir).unwrap();
        let mut command = Command::new(repository.join("qemu/run"));
        command
            .arg("--dir")
            .arg(dir)
            .args(&self.arguments)
            .stdin(Stdio::null());
        let process = Process::start(command, &dir.join("qemu.log"));
        Guest {
            process,
            dir: dir.to_owned(),
            boots: 0,
            port: None,
            next_id: 0,
        }
    }
}

/// An interface's counters, as the guest's kernel has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counters {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_dropped: u64,
}

/// A running guest; dropping it ends its QEMU.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    dir: PathBuf,
    boots: usize,
    port: Option<BufReader<UnixStream>>,
    next_id: u64,
}

impl Guest {
    /// Begins a description of a guest without vNICs.
    pub fn build() -> GuestBuilder {
        GuestBuilder::default()
    }

    /// Waits until the router inside is up (again, after [`Guest::reboot`]).
    pub fn wait_ready(&mut self) {
        let wanted = self.boots + 1;
        eventually(BOOT_DEADLINE, "the guest prints 'firewall ready'", || {
            self.process.assert_running();
            self.console().matches(READY).count() >= wanted
        });
        self.boots = wanted;
    }

    /// Runs a shell script inside; gives its output (stdout and stderr) and exit code.
    pub fn run(&mut self, script: &str) -> (String, i32) {
        self.run_for(script, RUN_DEADLINE)
    }

    /// The same with a time of its own, after which the script is killed (code 137).
    pub fn run_for(&mut self, script: &str, time: Duration) -> (String, i32) {
        let id = self.send(script, time);
        // The guest's clock may run slow when the machine is busy.
        self.receive(id, script, time * 2 + RUN_DEADLINE)
    }

    /// Runs a script that must succeed; gives its output.
    pub fn succeed(&mut self, script: &str) -> String {
        let (output, code) = self.run(script);
        assert_eq!(code, 0, "in the guest: {script}\n{output}");
        output
    }

    /// The counters of an interface inside.
    pub fn counters(&mut self, interface: &str) -> Counters {
        let output = self.succeed(&format!(
            "cd /sys/class/net/{interface}/statistics && \
             cat rx_packets rx_bytes rx_dropped tx_packets tx_bytes tx_dropped"
        ));
        let values: Vec<u64> = output.lines().map(|line| line.parse().unwrap()).collect();
        let [
            rx_packets,
            rx_bytes,
            rx_dropped,
            tx_packets,
            tx_bytes,
            tx_dropped,
        ] = values[..]
        else {
            panic!("{interface} has other counters: {output}");
        };
        Counters {
            rx_packets,
            rx_bytes,
            rx_dropped,
            tx_packets,
            tx_bytes,
            tx_dropped,
        }
    }

    /// Reboots from inside and waits until the router is up again.
    pub fn reboot(&mut self) {
        // No answer: the reboot comes first.
        self.send("reboot -f", RUN_DEADLINE);
        self.wait_ready();
    }

    /// Resets the machine, as a power button does, and waits.
    pub fn reset(&mut self) {
        self.qmp("system_reset", &serde_json::json!({}));
        self.wait_ready();
    }

    /// SIGKILL to QEMU.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// QEMU's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What the console has printed.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where QEMU looks for the agent's helper (org.shunt.offload.0): listen here.
    pub fn offload_socket(&self) -> PathBuf {
        self.dir.join("offload.sock")
    }

    /// A command of QEMU's monitor; gives what it returned.
    pub fn qmp(&mut self, command: &str, arguments: &serde_json::Value) -> serde_json::Value {
        let mut monitor = connect(&mut self.process, &self.dir.join("qmp.sock"));
        let mut greeting = String::new();
        monitor.read_line(&mut greeting).unwrap();
        let capabilities = serde_json::json!({"execute": "qmp_capabilities"});
        let request = serde_json::json!({"execute": command, "arguments": arguments});
        exchange(&mut monitor, &capabilities);
        exchange(&mut monitor, &request)
    }

    /// Sends a request line of `qemu/guest/init`'s `serve`; gives its id.
    fn send(&mut self, script: &str, time: Duration) -> u64 {
        if self.port.is_none() {
            let path = self.dir.join("test.sock");
            self.port = Some(connect(&mut self.process, &path));
        }
        self.next_id += 1;
        let (id, seconds) = (self.next_id, time.as_secs().max(1));
        let line = format!("{id} {seconds} {}\n", base64::encode(script.as_bytes()));
        let port = self.port.as_mut().unwrap();
        port.get_mut().write_all(line.as_bytes()).unwrap();
        id
    }

    fn receive(&mut self, id: u64, script: &str, deadline: Duration) -> (String, i32) {
        let port = self.port.as_mut().unwrap();
        port.get_ref().set_read_timeout(Some(deadline)).unwrap();
        let started = now();
        let wanted = id.to_string();
        while started.elapsed() < deadline {
            let mut line = String::new();
            if let Err(error) = port.read_line(&mut line) {
                panic!(
                    "no answer to '{script}' ({error}); console:\n{}",
                    self.console()
                );
            }
            assert!(!line.is_empty(), "QEMU ended; console:\n{}", self.console());
            let mut fields = line.trim_end().splitn(3, ' ');
            // Other ids: answers that somebody before did not wait for.
            if fields.next() == Some(&wanted) {
                let code = fields.next().unwrap().parse().unwrap();
                let output = base64::decode(fields.next().unwrap_or_default());
                return (String::from_utf8_lossy(&output).into_owned(), code);
            }
        }
        panic!("no answer to '{script}'; console:\n{}", self.console());
    }
}

fn connect(process: &mut Process, path: &Path) -> BufReader<UnixStream> {
    eventually_some(
        BOOT_DEADLINE,
        &format!("QEMU listens on {}", path.display()),
        || {
            process.assert_running();
            UnixStream::connect(path).ok().map(BufReader::new)
        },
    )
}

/// One monitor command; events that come in between are passed over.
fn exchange(monitor: &mut BufReader<UnixStream>, request: &serde_json::Value) -> serde_json::Value {
    monitor
        .get_ref()
        .set_read_timeout(Some(RUN_DEADLINE))
        .unwrap();
    monitor
        .get_mut()
        .write_all(format!("{request}\n").as_bytes())
        .unwrap();
    loop {
        let mut line = String::new();
        monitor.read_line(&mut line).unwrap();
        let mut answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("error").is_none(), "{request}: {answer}");
        if let Some(result) = answer.get_mut("return") {
            return result.take();
        }
    }
}

/// RFC 4648 section 4, as the guest's shell speaks it.
mod base64 {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub fn encode(bytes: &[u8]) -> String {
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let mut group = [0; 3];
            group[..chunk.len()].copy_from_slice(chunk);
            let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
            for position in 0..4 {
                let digit = (bits >> (18 - 6 * position)) & 63;
                let used = position <= chunk.len();
                text.push(if used {
                    char::from(ALPHABET[digit as usize])
                } else {
                    '='
                });
            }
        }
        text
    }

    pub fn decode(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (mut bits, mut have) = (0_u32, 0);
        for character in text.bytes().filter(|byte| *byte != b'=') {
            let digit = ALPHABET.iter().position(|known| *known == character);
            let digit = digit.unwrap_or_else(|| panic!("not base64: {text}"));
            bits = (bits << 6) | u32::try_from(digit).unwrap();
            have += 6;
            if have >= 8 {
                have -= 8;
                bytes.push(u8::try_from((bits >> have) & 0xff).unwrap());
            }
        }
        bytes
    }
}
