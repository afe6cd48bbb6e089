//! `shunt agent` as its users meet it: the program, its sockets, its commands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::support::process::{Process, output};
use super::support::shunt::{Control, Shunt, binary};
use super::support::stream::Stream;
use super::support::{Dir, eventually};
use super::{CONFIG, SOON};

const SHIELDS: &str = "/restconf/data/shunt-offload:state/element=router1/shields";

/// A running `shunt agent proxy`, and its files.
pub struct Agent {
    pub process: Process,
    socket: PathBuf,
    api: PathBuf,
}

/// The configuration of an agent at the port of [`CONFIG`].
pub fn config(dir: &Dir, more: &str) -> PathBuf {
    let text = format!(
        "[serial]\nport = '{{dir}}/port'\n[status]\nsocket = '{{dir}}/agent.sock'\n\
         [proxy]\nsocket = '{{dir}}/api.sock'\nrequests = 2\n{more}"
    );
    let text = text.replace("{dir}", dir.path().to_str().unwrap());
    dir.write("agent.toml", &text)
}

impl Agent {
    pub fn start(dir: &Dir, more: &str) -> Self {
        let mut command = Command::new(binary());
        command
            .args(["agent", "proxy", "--config"])
            .arg(config(dir, more));
        Self::launch(dir, command)
    }

    pub fn launch(dir: &Dir, mut command: Command) -> Self {
        command.stdin(Stdio::null());
        let agent = Self {
            process: Process::start(command, &dir.file("agent.log")),
            socket: dir.file("agent.sock"),
            api: dir.file("api.sock"),
        };
        eventually(SOON, "the agent answers", || {
            agent.cli(&["status"]).status.success()
        });
        agent
    }

    /// `shunt agent ARGUMENTS… --socket …`.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut argv = vec![binary().into_os_string(), "agent".into()];
        argv.extend(arguments.iter().map(OsString::from));
        argv.extend(["--socket".into(), self.socket.clone().into_os_string()]);
        output(&argv)
    }

    /// The same, which must succeed and print JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.cli(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn is_connected(&self) -> bool {
        self.json(&["status"])["channel"]["connected"] == true
    }

    fn api(&self) -> Control {
        Control::new(&self.api)
    }
}

/// Names of the shields that the backend has, sorted.
pub fn names(up: &Shunt) -> Vec<String> {
    let answer = up.control().get(SHIELDS);
    let shields = answer["shunt-offload:shields"]["shield"].as_array();
    let name = |shield: &Value| shield["name"].as_str().unwrap().to_owned();
    let mut names: Vec<_> = shields.into_iter().flatten().map(name).collect();
    names.sort();
    names
}

#[test]
fn any_program_uses_the_api_through_the_proxy_as_if_it_were_the_host_s() {
    let dir = Dir::new();
    let mut up = Shunt::up(&dir, CONFIG);
    let agent = Agent::start(&dir, "");
    eventually(SOON, "the agent is connected", || agent.is_connected());

    let summary = agent
        .api()
        .get("/restconf/data/shunt-offload:state/summary?depth=2");
    let summary = &summary["shunt-offload:summary"];
    assert!(summary["version"].is_string(), "{summary}");
    let mut of_agent = agent
        .api()
        .get("/restconf/data/shunt-offload:state/element=router1");
    let mut of_host = up
        .control()
        .get("/restconf/data/shunt-offload:state/element=router1");
    for answer in [&mut of_agent, &mut of_host] {
        let element = &mut answer["shunt-offload:element"][0];
        element["statistics"].take();
        assert_eq!(element["name"], "router1");
    }
    assert_eq!(of_agent, of_host);
    let answer = agent.api().request("GET", "/restconf/data/nothing", None);
    assert_eq!(answer.status, 404, "{answer:?}");
    // What the relay says is carried, too.
    let answer = agent.api().request("GET", "/elsewhere", None);
    assert!(
        answer.status == 403 && answer.body.contains("\"side\":\"guest\""),
        "{answer:?}"
    );

    // Two readers of one stream, which the host has only one of.
    let readers = [(); 2].map(|()| Stream::open(&dir, &dir.file("api.sock"), "router1"));
    let full = agent.api().request("GET", "/restconf/data", None);
    assert!(
        full.status == 503 && full.body.contains("\"side\":\"agent\""),
        "{full:?}"
    );
    let [first, second] = readers;
    drop(second);
    let session = json!({ "key": "own", "protocol": "udp", "original": {
        "ingress-vnic": "lan", "egress-vnic": "wan", "source-address": "10.0.0.2",
        "source-port": 4000, "destination-address": "192.0.2.9", "destination-port": 53,
    }});
    let path = |rpc: &str| format!("/restconf/operations/shunt-offload:{rpc}");
    let offload = json!({ "shunt-offload:input": { "session": [session] } });
    let mut answer = Value::Null;
    eventually(SOON, "the second reader's seat is free", || {
        let said = agent
            .api()
            .request("POST", &path("offload"), Some(&offload));
        let is_answered = said.status == 200;
        if is_answered {
            answer = said.json();
        }
        is_answered
    });
    assert_eq!(
        answer["shunt-offload:output"]["result"][0]["result"],
        "offloaded"
    );
    let all = json!({ "shunt-offload:input": { "all": true } });
    agent.api().post(&path("withdraw"), &all);
    eventually(SOON, "the reader is told", || {
        let closed = first.of("session-closed");
        closed.iter().any(|one| one["session"][0]["key"] == "own")
    });
    drop(first);

    // A large body, in pieces: refused by the host, not here.
    let large = json!({ "shunt-offload:input": { "key": ["k".repeat(5 << 20)] } });
    let answer = agent.api().request("POST", &path("withdraw"), Some(&large));
    assert_eq!(answer.status, 413, "{answer:?}");

    up.kill9();
    eventually(SOON, "the agent has noticed", || !agent.is_connected());
    let answer = agent.api().request("GET", "/restconf/data", None);
    assert!(
        answer.status == 503 && answer.body.contains("\"applied\":\"no\""),
        "{answer:?}"
    );
    up.restart();
    eventually(SOON, "the agent is connected again", || {
        agent.is_connected()
    });
}

#[test]
fn shields_by_command_are_kept_over_restarts_of_the_host_until_they_are_deleted() {
    let dir = Dir::new();
    let mut up = Shunt::up(&dir, CONFIG);
    let mut agent = Agent::start(&dir, "[shields]\nttl = 10\nmaximum = 3\n");
    eventually(SOON, "the agent is connected", || agent.is_connected());
    let bad = [
        "shield",
        "add",
        "--name",
        "bad-net",
        "--source",
        "198.51.100.0/24",
    ];
    let added = agent.json(&[&bad[..], &["--action", "drop"]].concat());
    assert_eq!(added["shield"][0]["standing"], "held", "{added}");
    assert_eq!(added["shield"][0]["shield"]["ttl"], Value::Null);
    let flood = [
        "shield",
        "add",
        "--name",
        "flood",
        "--ttl",
        "3000",
        "--protocol",
        "tcp",
    ];
    let police = [
        "--action",
        "police",
        "--packet-rate",
        "100",
        "--destination-port",
        "443",
    ];
    agent.json(&[&flood[..], &police].concat());
    assert_eq!(names(&up), ["bad-net", "flood"]);
    let remaining = || {
        let answer = up.control().get(SHIELDS);
        let shields = answer["shunt-offload:shields"]["shield"]
            .as_array()
            .unwrap()
            .clone();
        let bad = shields.iter().find(|shield| shield["name"] == "bad-net");
        bad.unwrap()["status"]["remaining"].as_u64().unwrap()
    };
    // Renewed at half its time: the time that is left goes down, and up again.
    eventually(SOON, "half of its time is over", || remaining() <= 6);
    eventually(SOON, "it is asked for again", || remaining() >= 9);

    // What the host refuses is told, and not kept.
    let wrong = [
        "shield",
        "add",
        "--name",
        "x",
        "--ingress",
        "nowhere",
        "--action",
        "drop",
    ];
    let output = agent.cli(&wrong);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.code() == Some(1) && said.contains("nowhere"),
        "{said}"
    );
    // And so is what is one too many, which waits for room.
    for (name, code) in [("third", 0), ("zfourth", 1)] {
        let output = agent.cli(&["shield", "add", "--name", name, "--action", "punt"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
    agent.cli(&["shield", "del", "third"]);
    eventually(SOON, "there is room", || {
        names(&up) == ["bad-net", "flood", "zfourth"]
    });
    agent.cli(&["shield", "del", "zfourth"]);

    up.restart();
    eventually(SOON, "they are asked for again", || {
        names(&up) == ["bad-net", "flood"]
    });
    let list = agent.json(&["shield", "list"]);
    let shields = list["shield"].as_array().unwrap();
    let standings: Vec<_> = shields
        .iter()
        .map(|one| (&one["by"], &one["standing"]))
        .collect();
    assert_eq!(standings, [(&json!("command"), &json!("held")); 2]);
    assert_eq!(shields[0]["packets"], 0);
    let table = String::from_utf8(agent.cli(&["shield", "list"]).stdout).unwrap();
    assert!(table.contains("from 198.51.100.0/24"), "{table}");

    let removed = agent.json(&["shield", "del", "bad-net", "nothing"]);
    assert_eq!(removed["removed"], json!(["bad-net"]));
    assert_eq!(names(&up), ["flood"]);
    assert!(agent.process.terminate(SOON).success());
    assert!(!dir.file("agent.sock").exists() && !dir.file("api.sock").exists());
}

#[test]
fn status_is_told_in_json_and_for_people_and_a_second_agent_is_refused() {
    let dir = Dir::new();
    let _up = Shunt::up(&dir, CONFIG);
    let agent = Agent::start(&dir, "");
    eventually(SOON, "the agent is connected", || agent.is_connected());
    let status = agent.json(&["status"]);
    assert_eq!(
        status["channel"]["port"],
        dir.file("port").to_str().unwrap()
    );
    assert_eq!(status["shields"]["held"], 0);
    let text = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(
        text.contains("\nchannel\n") && text.contains("  connected"),
        "{text}"
    );

    // A proxy has no mode.
    let paused = agent.cli(&["pause"]);
    let said = String::from_utf8_lossy(&paused.stderr).into_owned();
    assert!(
        paused.status.code() == Some(1) && said.contains("does not offload"),
        "{said}"
    );

    let second = output_of(&dir, &["agent", "proxy"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        second.status.code() == Some(1) && said.contains("another process"),
        "{said}"
    );

    let control = Control::new(&dir.file("agent.sock"));
    for (method, path, body, status) in [
        ("GET", "/nothing", None, 404),
        ("DELETE", "/status", None, 405),
        ("POST", "/mode", Some(json!({ "mode": "on", "x": 1 })), 400),
        ("POST", "/unshield", Some(json!({})), 400),
        (
            "POST",
            "/shield",
            Some(json!({ "name": "x".repeat(70_000) })),
            400,
        ),
    ] {
        let answer = control.request(method, path, body.as_ref());
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
    let nobody = output(&[
        binary().to_str().unwrap(),
        "agent",
        "status",
        "--socket",
        "/nonexistent/s",
    ]);
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(
        nobody.status.code() == Some(1) && said.contains("is `shunt agent` running"),
        "{said}"
    );
}

/// Runs `shunt ARGUMENTS… --config` of an agent to its end.
fn output_of(dir: &Dir, arguments: &[&str]) -> Output {
    let config = config(dir, "");
    let mut argv = vec![binary().into_os_string()];
    argv.extend(arguments.iter().map(OsString::from));
    argv.extend(["--config".into(), config.into_os_string()]);
    output(&argv)
}

#[test]
fn a_configuration_is_judged_without_running_anything() {
    let dir = Dir::new();
    let good = output_of(&dir, &["agent", "run", "--check"]);
    assert!(good.status.success(), "{good:?}");
    assert!(!dir.file("agent.sock").exists());
    let path = dir.write("wrong.toml", "[offload]\nminimum-aeg = 1\n");
    let program = binary();
    let wrong = [
        program.to_str().unwrap(),
        "agent",
        "--check",
        "--config",
        path.to_str().unwrap(),
    ];
    let wrong = output(&wrong);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        wrong.status.code() == Some(1) && said.contains("minimum-aeg"),
        "{said}"
    );
}
