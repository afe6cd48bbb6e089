//! Network namespaces: the hosts of a test.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output};

use super::process::{Process, output, succeed};
use super::unique;

/// A network namespace with its loopback up, removed on drop.
///
/// IPv6 addresses are usable at once: no duplicate address detection, no router
/// advertisements.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new namespace whose name starts with `prefix` (at most 5 bytes).
    pub fn new(prefix: &str) -> Self {
        let name = unique(prefix);
        succeed(&["ip", "netns", "add", &name]);
        let netns = Self { name };
        netns.run(|| {
            for setting in ["default/accept_dad", "all/accept_dad", "default/accept_ra"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{setting}"), "0").unwrap();
            }
        });
        netns.ip("link set lo up");
        netns
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command in it to the end.
    pub fn exec(&self, argv: &[&str]) -> Output {
        output(&self.within(argv))
    }

    /// Runs a command in it that must succeed; gives what it printed.
    pub fn succeed(&self, argv: &[&str]) -> String {
        succeed(&self.within(argv))
    }

    /// Runs `ip` in it with `arguments`, split at white space.
    pub fn ip(&self, arguments: &str) -> String {
        let mut argv = vec!["ip", "-n", self.name.as_str()];
        argv.extend(arguments.split_whitespace());
        succeed(&argv)
    }

    /// Starts a program in it; its output goes to the file `log`.
    pub fn spawn(&self, argv: &[&str], log: &Path) -> Process {
        let mut command = Command::new("ip");
        command
            .args(&self.within(argv)[1..])
            .stdin(std::process::Stdio::null());
        Process::start(command, log)
    }

    /// Runs `body` on a thread inside. Sockets opened there stay in this namespace
    /// wherever they are used afterwards.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        let handle = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: setns takes a descriptor, open for as long as `handle`
                    // lives, and changes this thread only, which ends with `body`.
                    let result = unsafe { libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) };
                    assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
                    body()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A veth pair: `name` here, `peer_name` in `peer`, both up.
    pub fn veth(&self, name: &str, peer: &Netns, peer_name: &str) {
        self.ip(&format!(
            "link add {name} type veth peer name {peer_name} netns {}",
            peer.name
        ));
        self.ip(&format!("link set {name} up"));
        peer.ip(&format!("link set {peer_name} up"));
    }

    /// Moves a device of the test's own namespace here (a tap, say, that stays open
    /// where it was made) and brings it up.
    pub fn adopt(&self, interface: &str) {
        succeed(&["ip", "link", "set", interface, "netns", &self.name]);
        self.ip(&format!("link set {interface} up"));
    }

    /// Adds an address with its length (`10.0.0.2/24`, `fd00::2/64`).
    pub fn address(&self, interface: &str, address: &str) {
        self.ip(&format!("address add {address} dev {interface}"));
    }

    /// The default route, of the gateway's family.
    pub fn gateway(&self, gateway: &str) {
        self.ip(&format!("route add default via {gateway}"));
    }

    /// An interface's MAC address, in text.
    pub fn mac(&self, interface: &str) -> String {
        let links = self.json(&format!("-json link show dev {interface}"));
        links[0]["address"]
            .as_str()
            .expect("no MAC address")
            .to_owned()
    }

    /// A counter of `ip -s link`: `counter("eth0", "rx", "packets")`.
    pub fn counter(&self, interface: &str, direction: &str, counter: &str) -> u64 {
        let links = self.json(&format!("-json -s link show dev {interface}"));
        links[0]["stats64"][direction][counter]
            .as_u64()
            .expect("no such counter")
    }

    /// Whether one echo request to `address` is answered within a second.
    pub fn pings(&self, address: &str) -> bool {
        self.exec(&["ping", "-n", "-c", "1", "-W", "1", address])
            .status
            .success()
    }

    fn json(&self, arguments: &str) -> serde_json::Value {
        serde_json::from_str(&self.ip(arguments)).unwrap()
    }

    fn within<'a>(&'a self, argv: &[&'a str]) -> Vec<&'a str> {
        let mut whole = vec!["ip", "netns", "exec", self.name.as_str()];
        whole.extend_from_slice(argv);
        whole
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // What goes wrong here leaves an unused name behind and nothing else.
        let _ = output(&["ip", "netns", "delete", &self.name]);
    }
}
