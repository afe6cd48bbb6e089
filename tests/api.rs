//! The control interface over a real unix socket.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt, helpers of tests too"
)]

mod fake_control;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use fake_control::{ELEMENT, LARGE, ROOM, Server, runtime, session};
use serde_json::{Value, json};
use shunt::api::{Client, ENTRIES_MAX};
use shunt::packet::{DropReason, PuntReason};

const OFFLOAD: &str = "/restconf/operations/shunt-offload:offload";
const WITHDRAW: &str = "/restconf/operations/shunt-offload:withdraw";
const STATE: &str = "/restconf/data/shunt-offload:state";
const YANG: &str = "Content-Type: application/yang-data+json\r\n";

struct Response {
    status: u16,
    head: String,
    body: Value,
}

impl Response {
    /// The one error of the body: tag, path, message.
    fn error(&self) -> (&str, Option<&str>, &str) {
        assert!(
            self.head.contains("application/yang-data+json"),
            "{}",
            self.head
        );
        let error = &self.body["ietf-restconf:errors"]["error"][0];
        (
            error["error-tag"].as_str().expect("a tag"),
            error["error-path"].as_str(),
            error["error-message"].as_str().expect("a message"),
        )
    }
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("connect");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    stream
}

/// Sends a request as raw text; the client adds nothing.
fn raw(server: &Server, request: &str) -> Response {
    let mut stream = connect(server.path());
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    Response {
        status: head[9..12].parse().expect("a status"),
        head: head.to_ascii_lowercase(),
        body: serde_json::from_str(body).unwrap_or(Value::Null),
    }
}

fn get(server: &Server, path: &str) -> Response {
    raw(
        server,
        &format!("GET {path} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"),
    )
}

fn post(server: &Server, path: &str, body: &str) -> Response {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n{YANG}Content-Length: {length}"
    );
    raw(server, &format!("{head}\r\n\r\n{body}"))
}

fn offload(server: &Server, sessions: &[Value]) -> Response {
    let body = json!({"shunt-offload:input": {"element": ELEMENT, "session": sessions}});
    post(server, OFFLOAD, &body.to_string())
}

#[test]
fn results_come_in_order_and_a_refused_entry_spoils_no_other() {
    let server = Server::start();
    let mut lost = session("lost", 2);
    lost["original"]["egress-vnic"] = json!("wna");
    let answer = offload(
        &server,
        &[session("b", 1), lost, session("a", 3), session("b", 1)],
    );
    assert_eq!(answer.status, 200);
    let results = answer.body["shunt-offload:output"]["result"]
        .as_array()
        .expect("results");
    let told: Vec<_> = results.iter().map(|r| (&r["key"], &r["result"])).collect();
    assert_eq!(
        json!(told),
        json!([
            ["b", "offloaded"],
            ["lost", "invalid"],
            ["a", "offloaded"],
            ["b", "unchanged"]
        ])
    );
    let error = &results[1]["error"];
    let path = "/shunt-offload:input/session[key='lost']/original/egress-vnic";
    assert_eq!(error["error-path"], path);
    assert_eq!(
        (&error["error-type"], &error["error-tag"]),
        (&json!("application"), &json!("invalid-value"))
    );
    assert_eq!(error["error-app-tag"], "unknown-vnic");
    assert!(results[0].get("error").is_none());
    let answer = offload(&server, &[session("b", 9)]);
    assert_eq!(
        answer.body["shunt-offload:output"]["result"][0]["result"],
        "replaced"
    );
}

#[test]
fn a_message_outside_the_model_is_refused_whole_with_the_leaf_s_path() {
    let server = Server::start();
    type Change = fn(&mut Value);
    let cases: &[(Change, &str, &str)] = &[
        (
            |s| s["original"]["ingress-vlna"] = json!(5),
            "unknown-element",
            "/original/ingress-vlna",
        ),
        (|s| s["color"] = json!("red"), "unknown-element", "/color"),
        (
            |s| s["original"]["translation"]["port"] = json!(1),
            "unknown-element",
            "/original/translation/port",
        ),
        (
            |s| s["original"]["ingress-vlan"] = json!(4095),
            "invalid-value",
            "/original/ingress-vlan",
        ),
        (
            |s| s["original"]["source-address"] = json!("10.0.0.300"),
            "invalid-value",
            "/original/source-address",
        ),
        (
            |s| s["original"]["destination-mac"] = json!("5"),
            "invalid-value",
            "/original/destination-mac",
        ),
        (
            |s| s["original"]["dscp"] = json!(64),
            "invalid-value",
            "/original/dscp",
        ),
        (
            |s| s["original"]["l3-mtu"] = json!(67),
            "invalid-value",
            "/original/l3-mtu",
        ),
        (
            |s| s["original"]["source-port"] = json!(65536),
            "invalid-value",
            "/original/source-port",
        ),
        (
            |s| s["idle-timeout"] = json!(0),
            "invalid-value",
            "/idle-timeout",
        ),
        (
            |s| s["hand-over"] = json!("late"),
            "invalid-value",
            "/hand-over",
        ),
        (
            |s| s["directions"] = json!("none"),
            "invalid-value",
            "/directions",
        ),
        (
            |s| s["protocol"] = json!("upd"),
            "invalid-value",
            "/protocol",
        ),
        (|s| s["key"] = json!("with space"), "invalid-value", "/key"),
        (|s| s["vouched"] = json!("yes"), "bad-element", "/vouched"),
        (
            |s| {
                s.as_object_mut().expect("an object").remove("key");
            },
            "missing-element",
            "",
        ),
    ];
    for (change, tag, path) in cases {
        let mut wrong = session("wrong", 2);
        change(&mut wrong);
        let answer = offload(&server, &[session("right", 1), wrong]);
        assert_eq!(answer.status, 400, "{path}");
        let (told, at, message) = answer.error();
        let expected = format!("/shunt-offload:input/session[2]{path}");
        assert_eq!((told, at), (*tag, Some(expected.as_str())), "{message}");
    }
    let summary = get(&server, &format!("{STATE}/summary"));
    assert_eq!(
        summary.body["shunt-offload:summary"]["element"][0]["sessions"],
        0
    );
}

#[test]
fn each_refusal_has_its_status_and_an_error_body() {
    let server = Server::start();
    let input = json!({"shunt-offload:input": {"session": []}}).to_string();
    let sent = |kind: &str, extra: &str| {
        let length = input.len();
        let head =
            format!("POST {OFFLOAD} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n{kind}{extra}");
        raw(
            &server,
            &format!("{head}Content-Length: {length}\r\n\r\n{input}"),
        )
    };
    assert_eq!(sent(YANG, "").status, 200);
    assert_eq!(
        sent(
            "Content-Type: application/yang-data+json; charset=utf-8\r\n",
            ""
        )
        .status,
        200
    );
    assert_eq!(sent(YANG, "Accept: text/html, */*;q=0.1\r\n").status, 200);
    for (answer, status, tag) in [
        (
            sent("Content-Type: application/json\r\n", ""),
            415,
            "invalid-value",
        ),
        (sent("", ""), 415, "invalid-value"),
        (
            sent(YANG, "Accept: application/yang-data+xml\r\n"),
            406,
            "invalid-value",
        ),
        (get(&server, OFFLOAD), 405, "operation-not-supported"),
        (post(&server, STATE, &input), 405, "operation-not-supported"),
        (
            get(&server, "/restconf/data/other:thing"),
            404,
            "invalid-value",
        ),
        (get(&server, "/"), 404, "invalid-value"),
        (
            post(&server, "/restconf/operations/shunt-offload:onload", &input),
            404,
            "invalid-value",
        ),
        (
            get(&server, &format!("{STATE}/element=nobody/ports")),
            404,
            "invalid-value",
        ),
        (
            get(&server, &format!("{STATE}/element=nobody/sessions")),
            404,
            "invalid-value",
        ),
        (
            get(
                &server,
                &format!("{STATE}/element={ELEMENT}/sessions/session=none"),
            ),
            404,
            "invalid-value",
        ),
        (
            get(&server, &format!("{STATE}/summary?depths=1")),
            400,
            "invalid-value",
        ),
        (
            get(&server, &format!("{STATE}/element=busy/ports")),
            503,
            "resource-denied",
        ),
        (
            get(&server, &format!("{STATE}/element=broken/statistics")),
            500,
            "operation-failed",
        ),
        (post(&server, OFFLOAD, "{"), 400, "malformed-message"),
        (post(&server, OFFLOAD, "\u{0}"), 400, "malformed-message"),
        (
            post(&server, WITHDRAW, r#"{"shunt-offload:input":{}}"#),
            400,
            "missing-element",
        ),
        (
            post(
                &server,
                WITHDRAW,
                r#"{"shunt-offload:input":{"key":["a"],"all":true}}"#,
            ),
            400,
            "missing-element",
        ),
        (
            post(
                &server,
                WITHDRAW,
                r#"{"shunt-offload:input":{"keys":["a"]}}"#,
            ),
            400,
            "unknown-element",
        ),
    ] {
        assert_eq!(
            (answer.status, answer.error().0),
            (status, tag),
            "{}",
            answer.body
        );
    }
    assert!(get(&server, OFFLOAD).head.contains("allow: post"));
}

#[test]
fn a_call_too_large_is_refused_before_it_is_done() {
    let server = Server::start();
    let many: Vec<Value> = (0..=ENTRIES_MAX)
        .map(|n| session(&format!("s{n}"), 1))
        .collect();
    let answer = offload(&server, &many);
    assert_eq!((answer.status, answer.error().0), (413, "too-big"));
    assert_eq!(answer.error().1, Some("/shunt-offload:input/session"));
    // A told length is judged at once; a chunked body while it comes.
    let head = format!("POST {OFFLOAD} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n{YANG}");
    let answer = raw(&server, &format!("{head}Content-Length: 4194305\r\n\r\n"));
    assert_eq!((answer.status, answer.error().0), (413, "too-big"));
    let blanks = " ".repeat(4 << 20);
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n400001\r\n{blanks} ");
    let answer = raw(&server, &chunked);
    assert_eq!((answer.status, answer.error().0), (413, "too-big"));
    let summary = get(&server, &format!("{STATE}/summary"));
    assert_eq!(
        summary.body["shunt-offload:summary"]["element"][0]["sessions"],
        0
    );
}

#[test]
fn sixty_four_bit_numbers_are_strings_and_every_reason_is_listed() {
    let server = Server::start();
    offload(&server, &[session("c1", 1)]);
    let large = json!(LARGE.to_string());
    let statistics = get(&server, &format!("{STATE}/element={ELEMENT}/statistics")).body;
    let statistics = &statistics["shunt-offload:statistics"];
    assert_eq!(statistics["forwarded"]["packets"], large);
    assert_eq!(
        statistics["punted"][0],
        json!({"name": "miss", "count": large})
    );
    let names = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list");
        list.iter()
            .map(|count| count["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    let punts: Vec<_> = PuntReason::ALL.iter().map(|reason| reason.name()).collect();
    let drops: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names(&statistics["punted"]), punts);
    assert_eq!(names(&statistics["dropped"]), drops);
    let ports = get(&server, &format!("{STATE}/element={ELEMENT}/ports")).body;
    assert_eq!(
        ports["shunt-offload:ports"]["vnic"][0]["guest"]["queue"][0]["rx-frames"],
        large
    );
    let one = get(
        &server,
        &format!("{STATE}/element={ELEMENT}/sessions/session=c1"),
    )
    .body;
    let one = &one["shunt-offload:session"][0];
    assert_eq!(one["status"]["id"], large);
    assert_eq!(
        one["original"]["translation"],
        json!({"source-address": "198.51.100.1"})
    );
}

#[test]
fn many_sessions_are_read_whole_and_offered_again_as_they_were_read() {
    let server = Server::start();
    let keys: Vec<String> = (0..ROOM + 1).map(|n| format!("s{n:04}/,%")).collect();
    for chunk in keys.chunks(ENTRIES_MAX) {
        let sessions: Vec<Value> = chunk.iter().map(|key| session(key, 1)).collect();
        let answer = offload(&server, &sessions);
        let results = answer.body["shunt-offload:output"]["result"]
            .as_array()
            .expect("results")
            .clone();
        assert_eq!(results.len(), chunk.len());
        let is_last = results.last().expect("one")["key"] == keys[ROOM].as_str();
        if is_last {
            let refused = &results[results.len() - 1];
            assert_eq!(refused["result"], "table-full");
            assert_eq!(refused["error"]["error-tag"], "resource-denied");
        }
    }
    runtime().block_on(async {
        let client = Client::new(server.path());
        let sessions = client.sessions(ELEMENT).await.expect("sessions").session;
        let read: Vec<String> = sessions.iter().map(|s| s.session.key.to_string()).collect();
        assert_eq!(read, keys[..ROOM]);
        let found = client
            .session(ELEMENT, &sessions[7].session.key)
            .await
            .expect("an answer");
        assert_eq!(found.as_ref(), Some(&sessions[7]));
        let again: Vec<Value> = sessions.iter().take(3).map(|s| json!(s.session)).collect();
        let results = offload(&server, &again).body["shunt-offload:output"]["result"].clone();
        assert!(
            results
                .as_array()
                .expect("results")
                .iter()
                .all(|r| r["result"] == "unchanged")
        );
    });
    // Everything at once is one JSON document, too.
    if let Some(state) = curl(&server, &[&format!("http://s{STATE}")]) {
        let element = &state["shunt-offload:state"]["element"][0];
        assert_eq!(element["name"], ELEMENT);
        assert_eq!(
            element["sessions"]["session"]
                .as_array()
                .expect("a list")
                .len(),
            ROOM
        );
        assert_eq!(element["statistics"]["forwarded"]["octets"], "2");
    }
}

/// The answer of a real client; `None` where it is not installed.
fn curl(server: &Server, args: &[&str]) -> Option<Value> {
    let output = std::process::Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--unix-socket",
        ])
        .arg(server.path())
        .args(args)
        .output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        output => output.expect("curl runs"),
    };
    assert!(output.status.success(), "{output:?}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

#[test]
fn curl_offers_reads_and_withdraws() {
    let server = Server::start();
    let input = json!({"shunt-offload:input": {"session": [session("c1", 1)]}}).to_string();
    let header = "Content-Type: application/yang-data+json";
    let url = |path: &str| format!("http://localhost{path}");
    let Some(answer) = curl(&server, &["-H", header, "-d", &input, &url(OFFLOAD)]) else {
        eprintln!("curl is not installed: nothing was checked");
        return;
    };
    assert_eq!(
        answer["shunt-offload:output"]["result"][0]["result"],
        "offloaded"
    );
    let path = url(&format!("{STATE}/element={ELEMENT}/sessions"));
    let answer = curl(&server, &[&path]).expect("curl");
    assert_eq!(answer["shunt-offload:sessions"]["session"][0]["key"], "c1");
    let input = r#"{"shunt-offload:input":{"key":["c1","c2"]}}"#;
    let answer = curl(&server, &["-H", header, "-d", input, &url(WITHDRAW)]).expect("curl");
    assert_eq!(
        answer["shunt-offload:output"],
        json!({"withdrawn": "1", "result": [
            {"key": "c1", "result": "withdrawn"}, {"key": "c2", "result": "absent"}]})
    );
}

#[test]
fn clients_that_stall_do_not_hold_up_others() {
    let server = Server::start();
    let half = format!("POST {OFFLOAD} HTTP/1.1\r\nHost: s\r\n{YANG}Content-Length: 100\r\n\r\n{{");
    let stalled: Vec<UnixStream> = ["", "GET / HT", &half]
        .into_iter()
        .cycle()
        .take(48)
        .map(|start| {
            let mut stream = connect(server.path());
            stream.write_all(start.as_bytes()).expect("send");
            stream
        })
        .collect();
    assert_eq!(offload(&server, &[session("c1", 1)]).status, 200);
    // One that broke off leaves nothing behind.
    drop(stalled);
    assert_eq!(get(&server, &format!("{STATE}/summary")).status, 200);
}
