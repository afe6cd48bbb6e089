//! The command `shunt` against a control socket, and what its manual says.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt, helpers of tests too"
)]

mod fake_control;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fake_control::{LARGE, ROOM, Server, session};
use serde_json::{Value, json};
use shunt::api::epoch::OpenEpochInput;
use shunt::api::sync::SyncInput;
use shunt::api::{OffloadInput, ShieldInput, UnshieldInput, WithdrawInput, wire};

fn shunt(socket: &Path, args: &[&str]) -> Output {
    let mut command = command(socket, args);
    command.output().expect("shunt runs")
}

fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shunt"));
    command.args(args).env("SHUNT_SOCKET", socket);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs `args` with `--json`; the exit code and what was printed.
fn answer(server: &Server, args: &[&str]) -> (Option<i32>, Value) {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let output = shunt(server.path(), &args);
    let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), printed)
}

const ADD: &[&str] = &[
    "session",
    "add",
    "--protocol",
    "udp",
    "--ingress",
    "lan",
    "--egress",
    "wan",
    "--from",
    "10.0.0.2:40000",
    "--to",
    "192.0.2.9:53",
];

fn add<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    ADD.iter().chain(rest).copied().collect()
}

#[test]
fn every_flag_of_add_reaches_its_leaf() {
    let server = Server::start();
    let (code, printed) = answer(
        &server,
        &add(&[
            "--key",
            "c1",
            "--snat",
            "198.51.100.1:1024",
            "--dnat",
            ":5353",
            "--ingress-vlan",
            "5",
            "--egress-vlan",
            "7",
            "--ingress-mac",
            "00:00:5e:00:01:01",
            "--destination-mac",
            "52:54:00:00:00:01",
            "--source-mac",
            "52:54:00:00:00:02",
            "--mtu",
            "1400",
            "--dscp",
            "10",
            "--no-ttl",
            "--reply-ingress",
            "lan",
            "--reply-egress",
            "wan",
            "--reply-ingress-vlan",
            "0",
            "--reply-egress-vlan",
            "9",
            "--reply-ingress-mac",
            "00:00:5e:00:01:02",
            "--reply-destination-mac",
            "52:54:00:00:00:03",
            "--reply-source-mac",
            "52:54:00:00:00:04",
            "--reply-mtu",
            "1300",
            "--reply-dscp",
            "12",
            "--hand-over",
            "prompt",
            "--idle",
            "30",
            "--hard",
            "600",
            "--vouched",
        ]),
    );
    assert_eq!(code, Some(0));
    assert_eq!(
        printed,
        json!({"result": [{"key": "c1", "result": "offloaded"}]})
    );
    let (code, mut printed) = answer(&server, &["session", "show", "c1"]);
    assert_eq!(code, Some(0));
    assert_eq!(printed["status"]["id"], json!(LARGE.to_string()));
    printed.as_object_mut().expect("an object").remove("status");
    assert_eq!(
        printed,
        json!({
            "key": "c1", "protocol": "udp", "idle-timeout": 30, "hard-timeout": 600,
            "hand-over": "prompt", "vouched": true,
            "original": {
                "ingress-vnic": "lan", "ingress-vlan": 5, "ingress-mac": "00:00:5e:00:01:01",
                "source-address": "10.0.0.2", "source-port": 40000,
                "destination-address": "192.0.2.9", "destination-port": 53,
                "translation": {"source-address": "198.51.100.1", "source-port": 1024,
                                "destination-port": 5353},
                "egress-vnic": "wan", "egress-vlan": 7,
                "destination-mac": "52:54:00:00:00:01", "source-mac": "52:54:00:00:00:02",
                "l3-mtu": 1400, "decrement-ttl": false, "dscp": 10,
            },
            "reply": {
                "ingress-vnic": "lan", "ingress-vlan": 0, "ingress-mac": "00:00:5e:00:01:02",
                "egress-vnic": "wan", "egress-vlan": 9,
                "destination-mac": "52:54:00:00:00:03", "source-mac": "52:54:00:00:00:04",
                "l3-mtu": 1300, "decrement-ttl": false, "dscp": 12,
            },
        })
    );
}

#[test]
fn a_refused_entry_makes_the_exit_code_1_and_is_explained() {
    let server = Server::start();
    let (code, printed) = answer(&server, &add(&["--key", "c1", "--reply-egress", "wna"]));
    assert_eq!(code, Some(1));
    assert_eq!(printed["result"][0]["result"], "invalid");
    let output = shunt(
        server.path(),
        &add(&["--key", "c1", "--reply-egress", "wna"]),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("reply/egress-vnic: the element has no vNIC `wna`"));
}

/// A shield with every flag.
const SHIELD: &[&str] = &[
    "shield",
    "add",
    "--name",
    "s1",
    "--ttl",
    "60",
    "--priority",
    "7",
    "--ingress",
    "wan",
    "--source",
    "10.0.0.0/8",
    "--destination",
    "192.0.2.9/32",
    "--protocol",
    "tcp",
    "--source-port",
    "1024-2047",
    "--destination-port",
    "443",
    "--tcp-flags",
    "syn",
    "--tcp-flags-mask",
    "syn ack",
    "--action",
    "police",
    "--bit-rate",
    "8000000",
    "--burst",
    "70000",
];

#[test]
fn every_flag_of_shield_add_reaches_its_leaf() {
    let server = Server::start();
    let installed = json!({"result": [{"name": "s1", "result": "installed"}]});
    assert_eq!(answer(&server, SHIELD), (Some(0), installed));
    let unchanged = json!({"result": [{"name": "s1", "result": "unchanged"}]});
    assert_eq!(answer(&server, SHIELD), (Some(0), unchanged));
    let (_, mut listed) = answer(&server, &["shield", "list"]);
    let mut shield = listed["shield"][0].take();
    let status = shield["status"].take();
    assert_eq!(status["remaining"], 60);
    let expected = json!({
        "origin": "element", "name": "s1", "priority": 7, "ttl": 60, "ingress-vnic": "wan",
        "source-prefix": "10.0.0.0/8", "destination-prefix": "192.0.2.9/32", "protocol": "tcp",
        "source-port": {"lower-port": 1024, "upper-port": 2047},
        "destination-port": {"port": 443}, "tcp-flags": "syn", "tcp-flags-mask": "ack syn",
        "action": "police", "police": {"bit-rate": "8000000", "burst": 70_000}, "status": null
    });
    assert_eq!(shield, expected);
    let table = text(&shunt(server.path(), &["shield", "list"]).stdout);
    assert!(
        table.contains("from 10.0.0.0/8 from port 1024-2047"),
        "{table}"
    );
    let (_, deleted) = answer(&server, &["shield", "del", "s1", "s2"]);
    assert_eq!(deleted["result"][0]["result"], "removed");
    assert_eq!(deleted["result"][1]["result"], "absent");
}

#[test]
fn a_refused_shield_makes_the_exit_code_1_and_rates_are_for_police() {
    let server = Server::start();
    let add = |rest: &[&str]| {
        let common = ["shield", "add", "--ttl", "5", "--name"];
        let args: Vec<&str> = common.iter().chain(rest).copied().collect();
        shunt(server.path(), &args)
    };
    for name in ["a", "b", "c"] {
        assert_eq!(add(&[name, "--action", "drop"]).status.code(), Some(0));
    }
    let refused = add(&["d", "--action", "drop"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stdout).contains("shield-quota"),
        "{refused:?}"
    );
    let unknown = add(&["a", "--action", "drop", "--ingress", "dmz"]);
    assert!(
        text(&unknown.stdout).contains("no vNIC `dmz`"),
        "{unknown:?}"
    );
    for (args, told) in [
        (
            &["a", "--action", "police"][..],
            "--packet-rate or --bit-rate",
        ),
        (
            &["a", "--action", "drop", "--packet-rate", "5"],
            "for --action police",
        ),
    ] {
        let output = add(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(told), "{output:?}");
    }
    for wrong in [
        &["a", "--action", "divert"][..],
        &["a", "--action", "drop", "--source", "10.0.0.1"],
        &["a", "--action", "drop", "--source-port", "5-1"],
        &["a", "--action", "drop", "--tcp-flags", "fun"],
        &["a"],
    ] {
        assert_eq!(add(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_reload_tells_each_change_and_fails_if_one_did() {
    let server = Server::start();
    let (code, printed) = answer(&server, &["reload"]);
    assert_eq!(code, Some(0));
    assert_eq!(printed["change"][0]["name"], "router1/wan");
    let (code, printed) = answer(&server, &["reload"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        printed["change"][1]["error"]["error-tag"],
        "operation-failed"
    );
    let output = command(server.path(), &["reload"]).output().expect("shunt");
    let text = String::from_utf8(output.stdout).expect("text");
    let expected = "ACTION  KIND     NAME         RESULT\n\
                    remove  vNIC     router1/wan  done\n\
                    add     element  router2      the tap is not there\n";
    assert_eq!(text, expected);
}

#[test]
fn sessions_of_a_file_are_offered_reproved_and_withdrawn_in_as_many_calls_as_needed() {
    let server = Server::start();
    let sessions: Vec<Value> = (0..ROOM).map(|n| session(&format!("s{n}"), 1)).collect();
    let input = json!({"shunt-offload:input": {"session": sessions}});
    let mut child = command(server.path(), &["session", "add", "--file", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("shunt runs");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(input.to_string().as_bytes()).expect("send");
    drop(stdin);
    let output = child.wait_with_output().expect("shunt ends");
    assert_eq!(output.status.code(), Some(0));
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed["result"].as_array().expect("results").len(), ROOM);

    let (code, printed) = answer(&server, &["session", "reprove", "s1", "nobody"]);
    assert_eq!(code, Some(0));
    assert_eq!(
        printed,
        json!({"reproved": "1", "result": [
            {"key": "s1", "result": "pending"}, {"key": "nobody", "result": "absent"}]})
    );
    let (code, printed) = answer(&server, &["session", "reprove", "--all"]);
    assert_eq!(
        (code, printed),
        (Some(0), json!({"reproved": ROOM.to_string()}))
    );

    let (code, printed) = answer(&server, &["session", "del", "s1", "nobody"]);
    assert_eq!(code, Some(0));
    assert_eq!(
        printed,
        json!({"withdrawn": "1", "result": [
            {"key": "s1", "result": "withdrawn"}, {"key": "nobody", "result": "absent"}]})
    );
    let (code, printed) = answer(&server, &["session", "del", "--all"]);
    assert_eq!(
        (code, printed),
        (Some(0), json!({"withdrawn": (ROOM - 1).to_string()}))
    );
}

#[test]
fn a_wrong_file_is_refused_with_the_leaf_s_path() {
    let server = Server::start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut wrong = session("c1", 1);
    wrong["original"]["ingress-vlna"] = json!(5);
    let input = json!({"shunt-offload:input": {"session": [wrong]}});
    std::fs::write(file.path(), input.to_string()).expect("write");
    let path = file.path().to_str().expect("UTF-8");
    let output = shunt(server.path(), &["session", "add", "--file", path]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.contains("/shunt-offload:input/session[1]/original/ingress-vlna"),
        "{told}"
    );
}

#[test]
fn every_show_prints_a_table_and_the_same_as_json() {
    let server = Server::start();
    assert_eq!(answer(&server, &add(&["--key", "c1"])).0, Some(0));
    for (args, word, leaf) in [
        (&["show", "summary"][..], "router1", "/element/0/name"),
        (
            &["show", "sessions"],
            "10.0.0.2:40000",
            "/session/0/original/source-port",
        ),
        (&["session", "show"], "c1", "/session/0/key"),
        (&["session", "show", "c1"], "3m07s", "/status/age"),
        (
            &["show", "ports"],
            "/run/shunt/lan.sock",
            "/vnic/0/guest/queue/0/rx-frames",
        ),
        (&["show", "stats"], "miss", "/punted/0/count"),
        (
            &["show", "stats", "--element", "router1"],
            "lease-expired",
            "/closed/0/name",
        ),
    ] {
        let output = shunt(server.path(), args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let table = text(&output.stdout);
        assert!(table.contains(word), "{args:?}\n{table}");
        assert!(table.lines().all(|line| line == line.trim_end()), "{table}");
        let (code, printed) = answer(&server, args);
        assert!(
            code == Some(0) && printed.pointer(leaf).is_some(),
            "{args:?} {printed}"
        );
    }
}

#[test]
fn what_is_not_there_is_told_with_a_next_step() {
    let server = Server::start();
    let directory = tempfile::tempdir().expect("a directory");
    let dead = directory.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("bind"));
    for (socket, args, told) in [
        (
            server.path(),
            &["session", "show", "none"][..],
            "has no session `none`",
        ),
        (
            server.path(),
            &["show", "ports", "--element", "x"],
            "there is no element `x`",
        ),
        (
            server.path(),
            &["session", "add", "--file", "/nonexistent"],
            "because: No such file",
        ),
        (
            directory.path().join("none").as_path(),
            &["show", "stats"],
            "is `shunt backend` running",
        ),
        (dead.as_path(), &["show", "stats"], "start it again"),
    ] {
        let output = shunt(socket, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let said = text(&output.stderr);
        assert!(said.starts_with("shunt: ") && said.contains(told), "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let nowhere = Path::new("/nonexistent");
    for args in [
        &["session", "add"][..],
        &["session", "add", "--file", "f", "--key", "k"],
        &["session", "del"],
        &["session", "del", "k", "--all"],
        &["session", "show", "a b"],
        &["show"],
        &["backend"],
    ] {
        assert_eq!(shunt(nowhere, args).status.code(), Some(2), "{args:?}");
    }
    for wrong in [
        ["--dscp", "64"],
        ["--mtu", "10"],
        ["--ingress-vlan", "4095"],
        ["--idle", "0"],
        ["--source-mac", "x"],
        ["--from", ":5"],
        ["--hand-over", "late"],
    ] {
        let args = add(&["--key", "k", wrong[0], wrong[1]]);
        assert_eq!(shunt(nowhere, &args).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn every_command_s_help_has_an_example() {
    for args in [
        &["backend"][..],
        &["session", "add"],
        &["session", "del"],
        &["session", "show"],
        &["shield", "add"],
        &["shield", "del"],
        &["shield", "list"],
        &["show", "summary"],
        &["show", "sessions"],
        &["show", "ports"],
        &["show", "stats"],
    ] {
        let args: Vec<&str> = args.iter().copied().chain(["--help"]).collect();
        let output = shunt(Path::new("/nonexistent"), &args);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("Example"), "{args:?}");
    }
}

const MANUAL: &str = include_str!("../docs/control.md");

/// The fenced blocks of the manual in `language`.
fn blocks(language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = MANUAL.split(fence.as_str()).skip(1);
    blocks
        .map(|rest| rest.split("```").next().expect("a first part").to_owned())
        .collect()
}

#[test]
fn the_manual_s_inputs_are_of_the_model() {
    let inputs: Vec<String> = blocks("json")
        .into_iter()
        .filter(|block| block.starts_with(r#"{"shunt-offload:input""#))
        .collect();
    assert!(inputs.len() >= 3);
    for block in inputs {
        let offload = wire::read_input::<OffloadInput>(block.as_bytes());
        let withdraw = wire::read_input::<WithdrawInput>(block.as_bytes());
        let shield = wire::read_input::<ShieldInput>(block.as_bytes());
        let unshield = wire::read_input::<UnshieldInput>(block.as_bytes());
        let epoch = wire::read_input::<OpenEpochInput>(block.as_bytes());
        let sync = wire::read_input::<SyncInput>(block.as_bytes());
        let faults = [
            offload.err(),
            withdraw.err(),
            shield.err(),
            unshield.err(),
            epoch.err(),
            sync.err(),
        ];
        assert!(faults.iter().any(Option::is_none), "{block}\n{faults:?}");
    }
}

#[test]
fn the_manual_s_commands_run() {
    let server = Server::start();
    let socket = server.path().to_str().expect("UTF-8");
    let binary = Path::new(env!("CARGO_BIN_EXE_shunt"));
    let search = format!(
        "{}:{}",
        binary.parent().expect("a directory").display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    let mut runs = 0;
    for block in blocks("sh") {
        if block.contains("shunt backend") || (block.contains("curl") && !has_curl) {
            continue;
        }
        let output = Command::new("sh")
            .args([
                "-e",
                "-c",
                &block.replace("/run/shunt/backend.sock", socket),
            ])
            .env("PATH", &search)
            .env("SHUNT_SOCKET", socket)
            .output()
            .expect("sh runs");
        assert!(output.status.success(), "{block}\n{output:?}");
        runs += 1;
    }
    assert!(runs > 0);
}

#[test]
fn the_manual_names_every_leaf_result_and_limit() {
    let server = Server::start();
    assert_eq!(answer(&server, SHIELD).0, Some(0));
    let mut names: Vec<String> = Vec::new();
    for args in [
        &["show", "summary"][..],
        &["show", "ports"],
        &["show", "stats"],
        &["show", "sessions"],
        &["shield", "list"],
    ] {
        collect(&answer(&server, args).1, &mut names);
    }
    // Leaves that only a full session shows are in the manual's own table, whose
    // examples the other tests read.
    for name in [
        "identifier",
        "translation",
        "ingress-mac",
        "vouched",
        "directions",
        "hard-timeout",
        "offloaded",
        "unchanged",
        "replaced",
        "superseded",
        "table-full",
        "invalid",
        "withdrawn",
        "absent",
        "pending",
        "reproved",
        "close-code",
        "drain-bounds",
        "installed",
        "access-denied",
        "removed",
    ] {
        names.push(name.to_owned());
    }
    for limit in ["1024 sessions", "4 MiB", "604800", "64 connections"] {
        assert!(MANUAL.contains(limit), "{limit}");
    }
    for name in names {
        assert!(
            MANUAL.contains(&format!("`{name}`")) || MANUAL.contains(&format!(" {name} ")),
            "{name}"
        );
    }
}

/// The names of all leaves.
fn collect(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                names.push(name.clone());
                collect(value, names);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, names)),
        _ => {}
    }
}
