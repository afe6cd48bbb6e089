//! Clients of the model's previous revision go on working.

use axum::http::HeaderValue;
use serde_json::Value;

use super::guest::{Guest, Http, Wire, request};
use super::run;
use super::support::Dir;
use super::support::shunt::{Control, Shunt};

/// What was said and answered when 2026-11-23 was the newest revision: JSON lines, in order.
/// `*` stands for what differs each time, and for sentences.
const RECORDED: &str = include_str!("recorded/2026-11-23.jsonl");

const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
[up]
controller = "{dir}/controller.sock"
presence = "{dir}/presence.sock"
audit = "{dir}/audit.jsonl"
[[element]]
name = "router1"
translation-prefixes = ["198.51.100.0/24"]
serial = { socket = "{dir}/serial", uid = 0 }
[[element.vnic]]
name = "lan"
socket = "{dir}/lan.sock"
mac = "52:54:00:00:00:01"
source-prefixes = ["0.0.0.0/0"]
uplink = { type = "vhost-user", socket = "{dir}/lan-uplink.sock" }
[[element.vnic]]
name = "wan"
socket = "{dir}/wan.sock"
mac = "52:54:00:00:00:02"
uplink = { type = "vhost-user", socket = "{dir}/wan-uplink.sock" }
"#;

/// Whether `now` says at least what `then` said. Lists may have more entries now, in any
/// order.
fn says(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (_, Value::String(any)) if any == "*" => true,
        (Value::Object(now), Value::Object(then)) => then
            .iter()
            .all(|(name, then)| now.get(name).is_some_and(|now| says(now, then))),
        (Value::Array(now), Value::Array(then)) => {
            let mut left: Vec<&Value> = now.iter().collect();
            then.iter().all(|then| {
                let found = left.iter().position(|now| says(now, then));
                found.map(|at| left.remove(at)).is_some()
            })
        }
        _ => now == then,
    }
}

async fn ask_as_guest(
    http: &Http,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> (u16, String) {
    let text = body.map(Value::to_string).unwrap_or_default();
    let mut request = request(method, path, &text);
    let json = HeaderValue::from_static("application/yang-data+json");
    request.headers_mut().insert("content-type", json);
    let answer = http.ask(request).await;
    (answer.status.as_u16(), answer.text)
}

#[test]
fn a_recorded_client_of_the_previous_revision_is_answered_as_then() {
    run(async {
        let dir = Dir::new();
        let _up = Shunt::up(&dir, CONFIG);
        let wire = Wire::connect(&dir.file("serial")).await;
        let mut guest = Guest::boot(&wire);
        let http = guest.http().await;
        for line in RECORDED.lines() {
            let step: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| step[name].as_str().unwrap();
            let (method, path, body) = (text("method"), text("path"), step.get("body"));
            let (status, answer) = match text("to") {
                "guest" => ask_as_guest(&http, method, path, body).await,
                program => {
                    let socket = match program {
                        "backend" => dir.file("control.sock"),
                        _ => dir.file("controller.sock"),
                    };
                    let answer = Control::new(&socket).request(method, path, body);
                    (answer.status, answer.body)
                }
            };
            assert_eq!(step["status"], status, "{line}\n{answer}");
            if let Some(then) = step.get("answer") {
                let now = serde_json::from_str(&answer).unwrap_or_default();
                assert!(says(&now, then), "{line}\n{answer}");
            }
        }
    });
}
