//! Operators with certificates.

use serde_json::{Value, json};

use crate::lab::{Authority, Controller, INVENTORY, Identity, Reply, curl, mutual};
use crate::support::shunt::{Shunt, idle_router};
use crate::support::yang::{Kind, Model};
use crate::support::{Dir, eventually};
use crate::{LOCAL, at};
use std::time::Duration;

const CONFIG: &str = r#"
[operators]
listen = "127.0.0.1:0"
certificate = "{dir}/server.crt"
key = "{dir}/server.key"
client-ca = "{dir}/operators.pem"
[[operators.role]]
certificate = "watcher.example"
role = "read-only"
[[operators.role]]
certificate = "operator.example"
role = "operator"
[[operators.role]]
certificate = "admin.example"
role = "admin"
"#;

/// A controller with a listener for operators.
pub struct Lab {
    pub servers: Authority,
    pub operators: Authority,
    pub server: Identity,
    pub controller: Controller,
    dir: Dir,
}

impl Lab {
    pub fn new() -> Self {
        let dir = Dir::new();
        let (servers, operators) = (
            Authority::new(&dir, "servers"),
            Authority::new(&dir, "operators"),
        );
        let server = servers.issue("server", "localhost");
        let controller = Controller::start(&dir, &format!("{LOCAL}{CONFIG}"));
        Self {
            servers,
            operators,
            server,
            controller,
            dir,
        }
    }

    fn ask(&self, who: &Identity, method: &str, path: &str, body: &Value) -> Result<u16, i32> {
        let reply = self.reply(who, method, path, body);
        reply.map(|reply| reply.status)
    }

    fn reply(&self, who: &Identity, method: &str, path: &str, body: &Value) -> Result<Reply, i32> {
        let port = self.controller.port(&self.server.certificate);
        let mut argv = mutual(who, &self.servers, port);
        argv.push(format!("https://localhost{path}"));
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        curl(&argv, method, Some(body))
    }
}

#[test]
fn each_role_may_what_it_may_and_no_more() {
    let lab = Lab::new();
    lab.controller.set("PUT", INVENTORY, &crate::whole());
    let of = |name: &str| lab.operators.issue(name, &format!("{name}.example"));
    let (watcher, operator, admin, stranger) =
        (of("watcher"), of("operator"), of("admin"), of("stranger"));
    let kill = json!({ "shunt-inventory:kill": true });
    let tenant = json!({ "shunt-inventory:tenant": [{ "name": "acme" }] });
    let policy = json!({ "shunt-inventory:policy": { "sessions": 9 } });
    for (method, path, body, expected) in [
        ("GET", at("/element=router1"), Value::Null, [200, 200, 200]),
        (
            "PATCH",
            at("/element=router1/policy"),
            policy,
            [403, 204, 204],
        ),
        ("PUT", at("/tenant=acme/kill"), kill, [403, 201, 204]),
        ("PUT", at("/tenant=acme"), tenant.clone(), [403, 403, 204]),
        (
            "PATCH",
            INVENTORY.to_owned(),
            json!({ "shunt-inventory:inventory": {} }),
            [403, 403, 204],
        ),
    ] {
        let said =
            [&watcher, &operator, &admin].map(|who| lab.ask(who, method, &path, &body).unwrap());
        assert_eq!(said, expected, "{method} {path}");
        assert_eq!(lab.ask(&stranger, method, &path, &body), Ok(403));
    }
    // Of another authority, or none: no connection.
    let other = Authority::new(&lab.dir, "others").issue("impostor", "admin.example");
    assert!(lab.ask(&other, "GET", INVENTORY, &Value::Null).is_err());
    let port = lab.controller.port(&lab.server.certificate);
    let ca = lab.servers.file();
    let to = format!("::127.0.0.1:{port}");
    let url = format!("https://localhost{INVENTORY}");
    let bare = ["--cacert", ca.to_str().unwrap(), "--connect-to", &to, &url];
    assert!(curl(&bare, "GET", None).is_err());
    lab.controller
        .logs("refusals and edits are logged", |lines| {
            let refused = lines
                .iter()
                .filter(|line| line["status"] == 403 && line["peer"] == "stranger.example");
            let edited = |line: &Value| line["role"] == "operator" && line["status"] == 201;
            refused.count() == 5 && lines.iter().any(edited)
        });
}

/// A session of `router1` that leaves as `address`, for which an operator vouches.
fn vouched(key: &str, address: &str) -> Value {
    let macs = |own, next| {
        json!({
            "source-mac": format!("52:54:00:00:00:0{own}"),
            "destination-mac": format!("02:00:00:00:00:0{next}")
        })
    };
    let mut original = json!({
        "ingress-vnic": "lan", "egress-vnic": "wan",
        "source-address": "10.0.0.2", "source-port": 1024,
        "destination-address": "192.0.2.9", "destination-port": 53,
        "translation": { "source-address": address }
    });
    let (leaves, macs_of_original) = (original.as_object_mut().unwrap(), macs(2, 2));
    leaves.extend(macs_of_original.as_object().unwrap().clone());
    json!({
        "key": key, "protocol": "udp", "vouched": true, "original": original, "reply": macs(1, 1)
    })
}

#[test]
fn an_operator_asks_for_an_element_as_the_role_allows_and_it_is_logged() {
    let (lab, home, model) = (Lab::new(), Dir::new(), Model::offload());
    let backend = Shunt::start(&home, &idle_router(64));
    let mut inventory = crate::whole();
    let own = &mut inventory["shunt-inventory:inventory"];
    own["host"][0]["backend"] = json!(backend.socket());
    own["element"][0]["observe-only"] = json!(false);
    own["element"][0]["vnic"] = json!([
        { "name": "lan", "mac": "52:54:00:00:00:01", "source-prefix": ["0.0.0.0/0"] },
        { "name": "wan", "mac": "52:54:00:00:00:02" }
    ]);
    own["element"][0]["policy"] = json!({ "translation-prefix": ["198.51.100.1/32"] });
    lab.controller.set("PUT", INVENTORY, &inventory);
    let of = |name: &str| lab.operators.issue(name, &format!("{name}.example"));
    let (watcher, operator) = (of("watcher"), of("operator"));
    let ask = |who: &Identity, rpc: &'static str, input: Value| {
        let body = json!({ "shunt-offload:input": input });
        model.check(Kind::Input(rpc), &body).unwrap();
        let path = format!("/restconf/operations/shunt-offload:{rpc}");
        let reply = lab.reply(who, "POST", &path, &body).unwrap();
        if reply.status == 200 {
            model.check(Kind::Output(rpc), &reply.json()).unwrap();
        }
        reply
    };
    let sessions = json!([
        vouched("ours", "198.51.100.1"),
        vouched("not-ours", "198.51.100.2")
    ]);
    let offload = json!({ "element": "router1", "session": sessions });
    eventually(Duration::from_secs(10), "the inventory is known", || {
        ask(
            &operator,
            "offload",
            json!({ "element": "router1", "session": [] }),
        )
        .status
            == 200
    });
    assert_eq!(ask(&watcher, "offload", offload.clone()).status, 403);
    let done = ask(&operator, "offload", offload).json();
    let result = &done["shunt-offload:output"]["result"];
    assert_eq!(result[0]["result"], "offloaded", "{done}");
    assert_eq!(result[1]["result"], "access-denied", "{done}");
    // Whoever may read sees it.
    let path = "/restconf/data/shunt-offload:state/element=router1/sessions/session=ours";
    let read = lab.reply(&watcher, "GET", path, &Value::Null).unwrap();
    let session = &read.json()["shunt-offload:session"][0];
    assert_eq!(session["status"]["original"]["state"], "active", "{read:?}");
    let socket = lab.dir.file("controller.sock");
    let show = ["session", "show", "--element", "router1", "--socket"];
    let said = backend.cli(&[&show[..], &[socket.to_str().unwrap()]].concat());
    let table = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success() && table.contains("ours"), "{said:?}");
    // Another element there is none; an element's agent is nobody else.
    let nobody = json!({ "element": "router2", "key": ["ours"] });
    assert_eq!(ask(&operator, "withdraw", nobody).status, 404);
    assert_eq!(
        ask(&operator, "open-epoch", json!({ "element": "router1" })).status,
        404
    );
    // Shields; the only element need not be named.
    let shield = json!({ "name": "s", "ttl": 60, "action": "drop", "ingress-vnic": "wan" });
    let done = ask(&operator, "shield", json!({ "shield": [shield] })).json();
    assert_eq!(
        done["shunt-offload:output"]["result"][0]["result"],
        "installed"
    );
    let done = ask(&operator, "unshield", json!({ "name": ["s"] })).json();
    assert_eq!(done["shunt-offload:output"]["removed"], "1", "{done}");
    let done = ask(&operator, "withdraw", json!({ "key": ["ours"] })).json();
    assert_eq!(done["shunt-offload:output"]["withdrawn"], "1", "{done}");
    // What is killed is killed for all.
    let kill = json!({ "shunt-inventory:kill": true });
    let path = at("/element=router1/kill");
    assert_eq!(lab.ask(&operator, "PUT", &path, &kill), Ok(204));
    eventually(Duration::from_secs(10), "nothing is offloaded", || {
        let input = json!({ "session": [vouched("late", "198.51.100.1")] });
        let done = ask(&operator, "offload", input).json();
        done["shunt-offload:output"]["result"][0]["result"] == "access-denied"
    });
    lab.controller.logs("calls are logged, and once", |lines| {
        let of = |action: &str, peer: &str| -> Vec<&Value> {
            let is = |line: &&Value| line["action"] == *action && line["peer"] == *peer;
            lines.iter().filter(is).collect()
        };
        let (refused, done) = (
            of("POST", "watcher.example"),
            of("offload", "operator.example"),
        );
        let [refused] = refused[..] else { return false };
        let done = done.iter().find(|line| line["results"]["offloaded"] == 1);
        let Some(done) = done else { return false };
        assert_eq!(refused["status"], 403);
        assert_eq!(
            (&done["by"], &done["role"]),
            (&json!("operator"), &json!("operator"))
        );
        assert_eq!(done["element"], "router1");
        assert_eq!(done["refused"][0]["key"], "not-ours");
        of("withdraw", "operator.example").len() == 1
    });
}

#[test]
fn certificates_are_exchanged_without_a_restart() {
    let mut lab = Lab::new();
    let admin = lab.operators.issue("admin", "admin.example");
    let ask = |lab: &Lab| lab.ask(&admin, "GET", INVENTORY, &Value::Null);
    assert_eq!(ask(&lab), Ok(200));
    // A file that cannot be used changes nothing.
    let good = std::fs::read(&lab.server.certificate).unwrap();
    std::fs::write(&lab.server.certificate, "nonsense").unwrap();
    lab.controller.hang_up();
    assert_eq!(ask(&lab), Ok(200));
    std::fs::write(&lab.server.certificate, good).unwrap();
    // Another authority of servers: clients that know it only are served before long.
    let new = Authority::new(&lab.dir, "servers2");
    lab.server = new.issue("server", "localhost");
    lab.servers = new;
    lab.controller.hang_up();
    eventually(
        Duration::from_secs(20),
        "the new certificate is shown",
        || ask(&lab) == Ok(200),
    );
    // Without the signal too: another authority of operators shuts the old ones out.
    Authority::new(&lab.dir, "operators");
    eventually(
        Duration::from_secs(30),
        "the old authority is refused",
        || ask(&lab).is_err(),
    );
}
