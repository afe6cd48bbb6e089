//! The whole way: guests, relays, a controller and backends as real processes. Element `a` of
//! tenant `t-a` runs on `h1`, whose backend is on the controller's machine; element `b` of
//! `t-b` on `h2`, whose backend is reached with mutual TLS.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::LOCAL;
use crate::guest::{Answer, Guest, Http, Wire, request};
use crate::lab::{Authority, Controller, INVENTORY, Identity, Reply, curl, mutual, told_port};
use crate::support::process::Process;
use crate::support::shunt::{Shunt, binary};
use crate::support::{Dir, eventually};

pub const OFFLOAD: &str = "/restconf/operations/shunt-offload:offload";
pub const STATE: &str = "/restconf/data/shunt-offload:state";
pub const SOON: Duration = Duration::from_secs(20);

const CONTROLLER: &str = r#"
[relays]
listen = "127.0.0.1:0"
certificate = "{dir}/server.crt"
key = "{dir}/server.key"
client-ca = "{dir}/relays.pem"
[backends]
certificate = "{dir}/controller.crt"
key = "{dir}/controller.key"
ca = "{dir}/servers.pem"
"#;

const BACKEND: &str = r#"
[backend]
control = "{dir}/control.sock"
[control-tls]
listen = "127.0.0.1:0"
certificate = "{pki}/backend-NAME.crt"
key = "{pki}/backend-NAME.key"
client-ca = "{pki}/controllers.pem"
controllers = ["controller.example"]
[[element]]
name = "NAME"
sessions = 1000000
translation-prefixes = ["198.51.100.NUMBER/32"]
[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:00:0NUMBER:01"
source-prefixes = ["0.0.0.0/0"]
uplink = { type = "vhost-user", socket = "{dir}/lan-uplink.sock" }
[[element.vnic]]
name = "NAME-wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:00:0NUMBER:02"
uplink = { type = "vhost-user", socket = "{dir}/wan-uplink.sock" }
"#;

const RELAY: &str = r#"
[relay]
host = "relay.hNUMBER.example"
certificate = "{pki}/relayNUMBER.crt"
key = "{pki}/relayNUMBER.key"
presence = "{dir}/presence"
[upstream]
url = "https://localhost:PORT"
ca = "{pki}/servers.pem"
[allow]
paths = ["/restconf"]
[limits]
streams = 256
requests-per-second = 20000
burst = 20000
[[port]]
name = "port1"
socket = "{dir}/port1"
uid = 0
"#;

/// See the module.
pub struct World {
    pub controller: Controller,
    pub servers: Authority,
    pub relays: Authority,
    pub controllers: Authority,
    /// The controller's certificate towards relays.
    server: Identity,
    /// Its own, towards backends.
    pub own: Identity,
    pub relay: [Identity; 2],
    pub backend: [Shunt; 2],
    relay_process: Vec<Process>,
    dirs: [Dir; 3],
}

fn element(name: &str, number: usize) -> Value {
    json!({
        "name": name, "tenant": format!("t-{name}"), "host": format!("h{number}"), "port": "port1",
        "vnic": [
            { "name": "lan", "mac": format!("52:54:00:00:0{number}:01"),
              "bus-path": "0000:00:04.0", "source-prefix": ["0.0.0.0/0"] },
            { "name": format!("{name}-wan"), "mac": format!("52:54:00:00:0{number}:02") }
        ],
        "policy": {
            "translation-prefix": [format!("198.51.100.{number}/32")],
            "sessions": 1_000_000, "requests-per-second": 1_000_000,
            "minimum-rate": 20, "minimum-age": 1
        }
    })
}

/// A session of `element`, from its LAN, translated to its own address.
pub fn session(element: &str, key: &str, port: u16) -> Value {
    let number = if element == "a" { 1 } else { 2 };
    json!({
        "key": key, "protocol": "udp",
        "original": {
            "ingress-vnic": "lan", "egress-vnic": format!("{element}-wan"),
            "source-address": "10.0.0.2", "source-port": port,
            "destination-address": "192.0.2.9", "destination-port": 53,
            "translation": { "source-address": format!("198.51.100.{number}") }
        }
    })
}

/// The input of an operation.
pub fn input(leaves: Value) -> Value {
    json!({ "shunt-offload:input": leaves })
}

impl World {
    pub fn start() -> Self {
        let dirs = [Dir::new(), Dir::new(), Dir::new()];
        let pki = dirs[0].path().to_str().unwrap().to_owned();
        let [servers, relays, controllers] =
            ["servers", "relays", "controllers"].map(|name| Authority::new(&dirs[0], name));
        let server = servers.issue("server", "localhost");
        let own = controllers.issue("controller", "controller.example");
        let relay = [1, 2].map(|number| {
            relays.issue(
                &format!("relay{number}"),
                &format!("relay.h{number}.example"),
            )
        });
        let backend = [("a", 1), ("b", 2)].map(|(name, number)| {
            servers.issue(&format!("backend-{name}"), "localhost");
            let config = BACKEND
                .replace("NAME", name)
                .replace("NUMBER", &number.to_string())
                .replace("{pki}", &pki);
            Shunt::start(&dirs[number], &config)
        });
        let controller = Controller::start(&dirs[0], &format!("{LOCAL}{CONTROLLER}"));
        let mut world = Self {
            controller,
            servers,
            relays,
            controllers,
            server,
            own,
            relay,
            backend,
            relay_process: Vec::new(),
            dirs,
        };
        world.fill();
        world.start_relays(&pki);
        world
    }

    fn fill(&mut self) {
        let host = |number: usize, backend: Value| {
            json!({
                "name": format!("h{number}"), "relay": [format!("relay.h{number}.example")],
                "backend": backend
            })
        };
        let port = self.backend_port(1);
        self.controller.set(
            "PUT",
            INVENTORY,
            &json!({ "shunt-inventory:inventory": {
                "tenant": [{ "name": "t-a" }, { "name": "t-b" }],
                "host": [
                    host(1, json!(self.dirs[1].file("control.sock"))),
                    host(2, json!(format!("https://localhost:{port}")))
                ],
                "element": [element("a", 1), element("b", 2)]
            }}),
        );
        for number in [0, 1] {
            eventually(SOON, "the inventory is known", || {
                self.with_token(number, 0, "GET", STATE, None).status == 200
            });
        }
    }

    fn start_relays(&mut self, pki: &str) {
        let port = self.relay_port();
        for number in [1, 2] {
            let dir = &self.dirs[number];
            let config = RELAY
                .replace("NUMBER", &number.to_string())
                .replace("PORT", &port.to_string())
                .replace("{pki}", pki)
                .replace("{dir}", dir.path().to_str().unwrap());
            let config = dir.write("relay.toml", &config);
            let mut command = Command::new(binary());
            command.args(["relay", "--config"]).arg(config);
            command.stdin(Stdio::null());
            let process = Process::start(command, &dir.file("relay.log"));
            self.relay_process.push(process);
        }
    }

    /// The port of the controller's listener for relays.
    pub fn relay_port(&self) -> u16 {
        self.controller.port(&self.server.certificate)
    }

    /// The port of a backend's listener for controllers.
    pub fn backend_port(&mut self, number: usize) -> u16 {
        let name = ["a", "b"][number];
        let certificate = self.dirs[0].file(&format!("backend-{name}.crt"));
        let backend = &mut self.backend[number];
        told_port(&certificate, || backend.process().log())
    }

    /// The guest of element `number`, with HTTP over its serial port. It lives as long as what
    /// is returned first.
    pub async fn guest(&self, number: usize) -> (Guest, Http) {
        let wire = Wire::connect(&self.dirs[number + 1].file("port1")).await;
        let mut guest = Guest::boot(&wire);
        let http = guest.http().await;
        (guest, http)
    }

    /// Asks the controller with a token through the connection of a relay's certificate, as
    /// nobody but that relay could.
    pub fn with(
        &self,
        relay: &Identity,
        token: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Reply {
        let mut argv = mutual(relay, &self.servers, self.relay_port());
        if !token.is_empty() {
            let header = format!("authorization: Bearer {token}");
            argv.extend(["--header".to_owned(), header]);
        }
        argv.extend(["--http2".to_owned(), format!("https://localhost{path}")]);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        curl(&argv, method, body).unwrap()
    }

    /// The same for the element of host `number`, with a token of its connection `fence`.
    pub fn with_token(
        &self,
        number: usize,
        fence: u64,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Reply {
        let relay = &self.relay[number];
        self.with(relay, &relay.token("port1", fence), method, path, body)
    }

    /// The keys of each backend's sessions.
    pub fn keys(&self) -> [Vec<String>; 2] {
        [("a", 0), ("b", 1)].map(|(name, number)| {
            let path = format!("{STATE}/element={name}/sessions?fields=session/key");
            let all = self.backend[number].control().get(&path);
            let empty = Vec::new();
            let all = all["shunt-offload:sessions"]["session"].as_array();
            let mut keys: Vec<String> = all
                .unwrap_or(&empty)
                .iter()
                .map(|one| one["key"].as_str().unwrap().to_owned())
                .collect();
            keys.sort();
            keys
        })
    }

    /// Waits until the audit log has a line of the kind.
    pub fn logs(&self, what: &str, is_one: impl Fn(&Value) -> bool) {
        let mut any = |lines: &[Value]| lines.iter().any(&is_one);
        self.controller.logs(what, &mut any);
    }
}

/// POSTs the input `leaves` of the operation `name`.
pub async fn call(guest: &Http, name: &str, leaves: Value) -> Answer {
    let path = format!("/restconf/operations/shunt-offload:{name}");
    let mut request = request("POST", &path, &input(leaves).to_string());
    let kind = "application/yang-data+json".parse().unwrap();
    request.headers_mut().insert("content-type", kind);
    guest.ask(request).await
}

/// The results of an answer: result, app-tag.
pub fn results(answer: &Answer) -> Vec<(String, String)> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body: Value = serde_json::from_str(&answer.text).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let results = body["shunt-offload:output"]["result"].as_array().unwrap();
    results
        .iter()
        .map(|one| (text(&one["result"]), text(&one["error"]["error-app-tag"])))
        .collect()
}
