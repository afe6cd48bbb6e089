//! Operators with certificates.

use serde_json::{Value, json};

use crate::lab::{Authority, Controller, INVENTORY, Identity, curl, mutual};
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
        let port = self.controller.port(&self.server.certificate);
        let mut argv = mutual(who, &self.servers, port);
        argv.push(format!("https://localhost{path}"));
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        curl(&argv, method, Some(body)).map(|reply| reply.status)
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
