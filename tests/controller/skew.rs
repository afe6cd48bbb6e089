//! A backend of the model's previous revision behind a controller of this one.

#![allow(
    clippy::disallowed_types,
    reason = "guards what a test's server keeps, for an instant"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::at;
use crate::guest;
use crate::support::Dir;
use crate::world::{OFFLOAD, World, call, results, session};

/// What such a backend does: HTTP/1.1, no leaves and no operations that came later.
#[derive(Default)]
struct Previous {
    keys: Mutex<BTreeSet<String>>,
    /// What was asked, but for its bodies.
    asked: Mutex<Vec<String>>,
}

type Answer = (StatusCode, Value);

fn refused(status: StatusCode, tag: &str, path: &str) -> Answer {
    let error = json!({ "error-type": "application", "error-tag": tag, "error-path": path,
                        "error-message": "as it was said then" });
    (
        status,
        json!({ "ietf-restconf:errors": { "error": [error] } }),
    )
}

impl Previous {
    /// Serves it on `socket` as long as the runtime lives.
    fn serve(socket: &Path) -> Arc<Self> {
        let own = Arc::new(Self::default());
        let listener = UnixListener::bind(socket).unwrap();
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660)).unwrap();
        let app = Router::new().fallback(any(answer)).with_state(own.clone());
        // With axum's feature `http1` alone this speaks nothing newer.
        tokio::spawn(async move { axum::serve(listener, app).await });
        own
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> Answer {
        self.asked.lock().unwrap().push(format!("{method} {path}"));
        let input = || {
            let body: Value = serde_json::from_slice(body).unwrap();
            body["shunt-offload:input"].clone()
        };
        match (method.as_str(), path) {
            ("GET", "/restconf/data/ietf-yang-library:yang-library") => {
                let module = json!({ "name": "shunt-offload", "revision": "2026-11-23",
                                     "namespace": "urn:shunt:offload" });
                let set = json!([{ "name": "all", "module": [module] }]);
                let library = json!({ "module-set": set, "content-id": "1" });
                (
                    StatusCode::OK,
                    json!({ "ietf-yang-library:yang-library": library }),
                )
            }
            ("GET", "/restconf/data/shunt-offload:state/summary") => {
                let sessions = self.keys.lock().unwrap().len();
                let element = json!([{ "name": "a", "sessions": sessions, "sessions-max": 4096,
                                       "vnic": ["lan", "a-wan"] }]);
                let summary = json!({ "version": "0.1.0", "uptime": 5, "element": element });
                (StatusCode::OK, json!({ "shunt-offload:summary": summary }))
            }
            ("POST", OFFLOAD) => self.changed(&input(), &["element", "session"]),
            ("POST", WITHDRAW) => self.changed(&input(), &["element", "key", "all"]),
            _ => refused(StatusCode::NOT_FOUND, "invalid-value", path),
        }
    }

    /// Both operations: what is offered is there, what is named or meant goes.
    fn changed(&self, input: &Value, leaves: &[&str]) -> Answer {
        let mut given = input.as_object().unwrap().keys();
        if let Some(unknown) = given.find(|leaf| !leaves.contains(&leaf.as_str())) {
            let path = format!("/shunt-offload:input/{unknown}");
            return refused(StatusCode::BAD_REQUEST, "unknown-element", &path);
        }
        let list = |name: &str| input[name].as_array().cloned().unwrap_or_default();
        let mut keys = self.keys.lock().unwrap();
        let mut output = json!({ "result": [] });
        for one in list("session") {
            keys.insert(one["key"].as_str().unwrap().to_owned());
            let result = json!({ "key": one["key"], "result": "offloaded" });
            output["result"].as_array_mut().unwrap().push(result);
        }
        if leaves.contains(&"key") {
            let before = keys.len();
            if input["all"] == true {
                keys.clear();
            }
            for key in list("key") {
                let was_there = keys.remove(key.as_str().unwrap());
                let result = if was_there { "withdrawn" } else { "absent" };
                let result = json!({ "key": key, "result": result });
                output["result"].as_array_mut().unwrap().push(result);
            }
            output["withdrawn"] = json!((before - keys.len()).to_string());
        }
        (StatusCode::OK, json!({ "shunt-offload:output": output }))
    }
}

const WITHDRAW: &str = "/restconf/operations/shunt-offload:withdraw";

async fn answer(
    State(own): State<Arc<Previous>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let (status, answer) = own.answer(&method, uri.path(), &body);
    let mut response = (status, Json(answer)).into_response();
    let kind = "application/yang-data+json".parse().unwrap();
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn app_tag(answer: &guest::Answer) -> String {
    let body: Value = serde_json::from_str(&answer.text).unwrap();
    let tag = body["ietf-restconf:errors"]["error"][0]["error-app-tag"].as_str();
    tag.unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_of_the_previous_revision_is_asked_for_nothing_that_it_refuses() {
    let (world, dir) = (World::start(), Dir::new());
    let socket = dir.file("previous.sock");
    let previous = Previous::serve(&socket);
    let host = at("/host=h1");
    let now = world.controller.get(&host).json();
    let to_previous = json!({ "shunt-inventory:host": [{ "name": "h1", "backend": socket }] });
    world.controller.set("PATCH", &host, &to_previous);

    let (_guest, a) = world.guest(0).await;
    let own = [session("a", "one", 1), session("a", "two", 2)];
    let offered = call(&a, "offload", json!({ "session": own })).await;
    let said: Vec<_> = results(&offered).into_iter().map(|one| one.0).collect();
    assert_eq!(said, ["offloaded", "offloaded"]);
    let withdrawn = call(&a, "withdraw", json!({ "key": ["one", "nobody"] })).await;
    let said: Vec<_> = results(&withdrawn).into_iter().map(|one| one.0).collect();
    assert_eq!(said, ["withdrawn", "absent"]);
    assert_eq!(*previous.keys.lock().unwrap(), ["two".to_owned()].into());
    // It never opened an epoch, and has none of the newer operations.
    let late = call(&a, "withdraw", json!({ "epoch": "5", "all": true })).await;
    assert_eq!(
        (late.status.as_u16(), app_tag(&late)),
        (409, "stale-epoch".to_owned())
    );
    for (name, leaves) in [
        ("open-epoch", json!({})),
        ("reprove", json!({ "all": true })),
        ("sync", json!({ "begin": [null] })),
    ] {
        let answer = call(&a, name, leaves).await;
        let said = (answer.status.as_u16(), app_tag(&answer));
        assert_eq!(said, (501, "older-backend".to_owned()), "{name}");
    }
    let asked = previous.asked.lock().unwrap().clone();
    let newer = |one: &&String| {
        ["epoch", "reprove", "sync"]
            .iter()
            .any(|name| one.contains(name))
    };
    assert_eq!(asked.iter().find(newer), None);

    // Its host gets a newer one.
    world.controller.set("PATCH", &host, &now);
    let opened = call(&a, "open-epoch", json!({})).await;
    assert_eq!(opened.status, 200, "{opened:?}");
}
