//! A relay with its upstream and its ports' sockets.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::UnixStream;

use super::guest::{Guest, Http, Wire};
use super::pki::{HOST, Pki};
use super::support::Dir;
use super::support::process::Process;
use super::upstream::{Upstream, free_address};

/// Everything, with two ports, `a` and `b`.
pub struct Rig {
    pub dir: Dir,
    pub pki: Pki,
    pub relay: Process,
    pub upstream: Upstream,
}

/// The configuration that tests change.
const CONFIG: &str = r#"
[relay]
host = "{host}"
certificate = "{dir}/relay.pem"
key = "{dir}/relay.key"
presence = "{dir}/presence"

[upstream]
url = "https://localhost:{port}"
ca = "{dir}/ca.pem"
response-timeout-ms = 30000

[allow]
paths = ["/restconf"]

[limits]
streams = 100

[serial]
beat-ms = 200
stall-ms = 1500

[[port]]
name = "a"
socket = "{dir}/a"
uid = 0

[[port]]
name = "b"
socket = "{dir}/b"
uid = 0
"#;

impl Rig {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With texts of the configuration replaced.
    pub async fn start_with(changes: &[(&str, &str)]) -> Self {
        Self::start_in(Dir::new(), changes).await
    }

    /// In a directory that is prepared.
    pub async fn start_in(dir: Dir, changes: &[(&str, &str)]) -> Self {
        let pki = Pki::new();
        pki.write(dir.path());
        let address = free_address();
        let upstream = Upstream::tls(&pki, address).await;
        let config = config(&dir, address.port(), changes);
        let relay = start(&config, &dir);
        Self {
            dir,
            pki,
            relay,
            upstream,
        }
    }

    /// QEMU's side of a port.
    pub async fn wire(&self, port: &str) -> Wire {
        Wire::connect(&self.dir.file(port)).await
    }

    /// A guest that has booted and speaks HTTP.
    pub async fn guest(&self, port: &str) -> (Guest, Http) {
        let mut guest = Guest::boot(&self.wire(port).await);
        let http = guest.http().await;
        (guest, http)
    }

    /// Kills the relay as nothing else does, and starts it again.
    pub fn restart(&mut self) {
        self.relay.kill9();
        self.relay = start(&self.dir.file("relay.toml"), &self.dir);
    }

    pub async fn presence(&self) -> Presence {
        let path = self.dir.file("presence");
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return Presence(BufReader::new(stream).lines()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// Writes a configuration with `changes`.
pub fn config(dir: &Dir, port: u16, changes: &[(&str, &str)]) -> PathBuf {
    let mut text = CONFIG.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    let text = text
        .replace("{dir}", dir.path().to_str().unwrap())
        .replace("{host}", HOST)
        .replace("{port}", &port.to_string());
    dir.write("relay.toml", &text)
}

/// Starts the program.
pub fn start(config: &std::path::Path, dir: &Dir) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shunt"));
    command
        .args(["relay", "--config"])
        .arg(config)
        .stdin(Stdio::null());
    Process::start(command, &dir.file("relay.log"))
}

/// A reader of the presence socket.
pub struct Presence(Lines<BufReader<UnixStream>>);

impl Presence {
    pub async fn line(&mut self) -> Value {
        let line = self
            .0
            .next_line()
            .await
            .unwrap()
            .expect("the relay is gone");
        serde_json::from_str(&line).unwrap()
    }

    /// The next change of `port` to being there, or not.
    pub async fn change(&mut self, port: &str, present: bool) -> Value {
        loop {
            let mut line = self.line().await;
            let port_now = line["port"].take();
            if port_now["name"] == port && port_now["present"] == present {
                return port_now;
            }
        }
    }
}

/// Waits until `condition` holds; the test's own deadline bounds it.
pub async fn eventually(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
