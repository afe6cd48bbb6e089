//! The routes, over documents in memory.

#![expect(clippy::disallowed_types, reason = "a test's store")]

mod refusals;

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::api::inventory::MODULE;
use crate::api::wire::MEDIA_TYPE;

/// Documents in memory; may lose races on purpose.
#[derive(Default)]
struct Memory {
    state: Mutex<Loaded>,
    races: Mutex<u32>,
}

impl Datastore for Memory {
    fn module(&self) -> &'static Module {
        &MODULE
    }

    fn load(&self, scope: Scope) -> Answer<'_, Loaded> {
        let mut loaded = self.state.lock().unwrap().clone();
        if let Scope::Some(ids) = scope {
            loaded.documents.retain(|id, _| ids.contains(id));
        }
        Box::pin(async { Ok(loaded) })
    }

    fn commit(&self, base: Tag, changes: Vec<Change>) -> Answer<'_, Committed> {
        let mut state = self.state.lock().unwrap();
        let mut races = self.races.lock().unwrap();
        let is_raced = *races > 0 || state.generation != base;
        *races = races.saturating_sub(1);
        if is_raced {
            return Box::pin(async { Ok(Committed::Raced) });
        }
        let tag = Tag {
            revision: base.revision + 1,
            modified: 1_000 + base.revision,
        };
        state.generation = tag;
        for change in changes {
            match change.after {
                Some(content) => drop(state.documents.insert(change.id, Stored { tag, content })),
                None => drop(state.documents.remove(&change.id)),
            }
        }
        Box::pin(async move { Ok(Committed::Done(tag)) })
    }
}

struct Reply {
    status: u16,
    etag: Option<String>,
    location: Option<String>,
    body: Value,
}

impl Reply {
    /// Tag and path of the error.
    fn error(&self) -> (u16, &str, &str) {
        let error = &self.body["ietf-restconf:errors"]["error"][0];
        let text = |name: &str| error[name].as_str().unwrap_or_default();
        (self.status, text("error-tag"), text("error-path"))
    }
}

struct Client {
    memory: Arc<Memory>,
    routes: axum::Router,
}

const TOP: &str = "/restconf/data/shunt-inventory:inventory";

impl Client {
    fn new() -> Self {
        let memory = Arc::new(Memory::default());
        let told: Told = Box::new(|| json!({ "content-id": "x" }));
        let state = vec![("ietf-yang-library:yang-library", told)];
        let datastore = memory.clone();
        let routes = routes(Arc::new(Site { datastore, state }));
        Self { memory, routes }
    }

    /// With a tenant, a host and an element.
    async fn filled() -> Self {
        let client = Self::new();
        let all = json!({ "shunt-inventory:inventory": {
            "tenant": [{ "name": "t1" }],
            "host": [{ "name": "h1", "backend": "/run/b.sock" }],
            "element": [{
                "name": "e1", "tenant": "t1", "host": "h1", "port": "p1",
                "vnic": [{ "name": "lan", "mac": "52:54:00:00:00:0A" }],
                "policy": { "source-prefix": ["10.1.2.3/8"], "sessions": 7 }
            }]
        }});
        assert_eq!(client.ask("PUT", TOP, &all).await.status, 201);
        client
    }

    async fn send(&self, method: &str, path: &str, fields: &[(&str, &str)], body: String) -> Reply {
        let mut request = Request::builder()
            .method(method.parse::<Method>().unwrap())
            .uri(path)
            .header(header::CONTENT_TYPE, MEDIA_TYPE);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).unwrap();
        let reply = self.routes.clone().oneshot(request).await.unwrap();
        let text = |name| Some(reply.headers().get(name)?.to_str().unwrap().to_owned());
        let (etag, location) = (text(header::ETAG), text(header::LOCATION));
        let status = reply.status().as_u16();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        Reply {
            status,
            etag,
            location,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.send(method, path, &[], body.to_string()).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &Value::Null).await
    }

    fn documents(&self) -> BTreeMap<DocumentId, Stored> {
        self.memory.state.lock().unwrap().documents.clone()
    }
}

fn at(rest: &str) -> String {
    format!("{TOP}{rest}")
}

#[tokio::test]
async fn what_is_written_is_read_in_its_canonical_form() {
    let client = Client::filled().await;
    let element = client.get(&at("/element=e1")).await;
    assert_eq!(
        element.body["shunt-inventory:element"],
        json!([{
            "name": "e1", "tenant": "t1", "host": "h1", "port": "p1",
            "vnic": [{ "name": "lan", "mac": "52:54:00:00:00:0a" }],
            "policy": { "source-prefix": ["10.0.0.0/8"], "sessions": 7 }
        }])
    );
    for (path, expected) in [
        (
            "/element=e1/vnic=lan/mac",
            json!({ "shunt-inventory:mac": "52:54:00:00:00:0a" }),
        ),
        (
            "/element=e1/policy/source-prefix=10.0.0.0%2F8",
            json!({ "shunt-inventory:source-prefix": ["10.0.0.0/8"] }),
        ),
        // What holds by default.
        (
            "/element=e1/policy/requests-per-second",
            json!({ "shunt-inventory:requests-per-second": 1000 }),
        ),
        ("/host=h1/drain", json!({ "shunt-inventory:drain": false })),
    ] {
        let reply = client.get(&at(path)).await;
        assert_eq!((reply.status, reply.body), (200, expected), "{path}");
    }
    for path in [
        "/element=e2",
        "/element=e1/vnic=wan",
        "/element=e1/vnic=lan/vlan",
        "/element=e1/policy/source-prefix=11.0.0.0%2F8",
        "/element=e2/policy/sessions",
    ] {
        assert_eq!(client.get(&at(path)).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn post_creates_once_and_says_where() {
    let client = Client::filled().await;
    let vnic = json!({ "shunt-inventory:vnic": [{ "name": "w.1", "mac": "52:54:00:00:00:0b" }] });
    let made = client.ask("POST", &at("/element=e1"), &vnic).await;
    assert_eq!(made.status, 201);
    let location = made.location.unwrap();
    assert_eq!(location, at("/element=e1/vnic=w.1"));
    let read = client.get(&location).await;
    assert_eq!((read.status, read.etag), (200, made.etag));
    let again = client.ask("POST", &at("/element=e1"), &vnic).await;
    assert_eq!(
        again.error(),
        (
            409,
            "data-exists",
            "/shunt-inventory:inventory/element[name='e1']/vnic[name='w.1']"
        )
    );
    let prefix = json!({ "shunt-inventory:translation-prefix": ["192.0.2.1/32"] });
    let made = client.ask("POST", &at("/element=e1/policy"), &prefix).await;
    let path = "/element=e1/policy/translation-prefix=192.0.2.1%2F32";
    assert_eq!((made.status, made.location), (201, Some(at(path))));
    let missing = client.ask("POST", &at("/element=e9"), &vnic).await;
    assert_eq!(missing.status, 404);
}

#[tokio::test]
async fn put_creates_or_replaces_and_patch_merges_what_is_there() {
    let client = Client::filled().await;
    let policy = json!({ "shunt-inventory:policy": { "translation-prefix": ["192.0.2.0/31"] } });
    let path = at("/element=e1/policy");
    assert_eq!(client.ask("PATCH", &path, &policy).await.status, 204);
    let merged = client.get(&path).await.body;
    assert_eq!(
        merged["shunt-inventory:policy"],
        json!({ "source-prefix": ["10.0.0.0/8"], "translation-prefix": ["192.0.2.0/31"], "sessions": 7 })
    );
    assert_eq!(client.ask("PUT", &path, &policy).await.status, 204);
    assert_eq!(client.get(&path).await.body, policy);

    let tenant = json!({ "shunt-inventory:tenant": [{ "name": "t2" }] });
    assert_eq!(
        client.ask("PATCH", &at("/tenant=t2"), &tenant).await.status,
        404
    );
    assert_eq!(
        client.ask("PUT", &at("/tenant=t2"), &tenant).await.status,
        201
    );
    assert_eq!(
        client.ask("PUT", &at("/tenant=t2"), &tenant).await.status,
        204
    );
    let kill = json!({ "shunt-inventory:kill": true });
    assert_eq!(
        client
            .ask("PUT", &at("/tenant=t2/kill"), &kill)
            .await
            .status,
        201
    );
    assert_eq!(
        client
            .ask("DELETE", &at("/tenant=t2/kill"), &Value::Null)
            .await
            .status,
        204
    );
    assert_eq!(
        client
            .ask("DELETE", &at("/tenant=t2/kill"), &Value::Null)
            .await
            .status,
        404
    );

    // Several documents at once, and all of them.
    let more = json!({ "shunt-inventory:inventory": {
        "tenant": [{ "name": "t2", "kill": true }, { "name": "t3" }]
    }});
    assert_eq!(client.ask("PATCH", TOP, &more).await.status, 204);
    assert_eq!(client.documents().len(), 5);
    let whole = json!({ "ietf-restconf:data": more });
    assert_eq!(
        client.ask("PUT", "/restconf/data", &whole).await.status,
        204
    );
    assert_eq!(client.documents().len(), 2);
    assert_eq!(client.ask("DELETE", TOP, &Value::Null).await.status, 204);
    assert_eq!(client.documents().len(), 0);
}

#[tokio::test]
async fn an_edit_that_changes_nothing_keeps_the_tag() {
    let client = Client::filled().await;
    let before = client.get(&at("/element=e1")).await;
    let same = client.ask("PUT", &at("/element=e1"), &before.body).await;
    assert_eq!((same.status, &same.etag), (204, &before.etag));
    let other = json!({ "shunt-inventory:description": "edge" });
    assert_eq!(
        client
            .ask("PUT", &at("/tenant=t1/description"), &other)
            .await
            .status,
        201
    );
    assert_eq!(client.get(&at("/element=e1")).await.etag, before.etag);
    assert_ne!(client.get("/restconf/data").await.etag, before.etag);
}

#[tokio::test]
async fn a_stale_tag_is_412_also_when_it_became_stale_just_now() {
    let client = Client::filled().await;
    let path = at("/element=e1/description");
    let text = json!({ "shunt-inventory:description": "edge" }).to_string();
    let tag = client.get(&at("/element=e1")).await.etag.unwrap();
    let fields = [("if-match", tag.as_str())];
    let put = async |fields: &[(&str, &str)]| client.send("PUT", &path, fields, text.clone()).await;
    // The leaf is not there, so nothing matches.
    assert_eq!(put(&fields).await.status, 412);
    assert_eq!(put(&[("if-none-match", "*")]).await.status, 201);
    assert_eq!(put(&[("if-none-match", "*")]).await.status, 412);
    assert_eq!(put(&fields).await.status, 412);
    let tag = client.get(&path).await.etag.unwrap();
    let fields = [("if-match", tag.as_str())];
    // A race that changed something else is tried again.
    *client.memory.races.lock().unwrap() = 3;
    let other = json!({ "shunt-inventory:description": "core" }).to_string();
    assert_eq!(client.send("PUT", &path, &fields, other).await.status, 204);
    *client.memory.races.lock().unwrap() = 1_000;
    let kill = json!({ "shunt-inventory:kill": true });
    assert_eq!(
        client
            .ask("PUT", &at("/tenant=t1/kill"), &kill)
            .await
            .status,
        503
    );
    let read = client
        .send("GET", &path, &[("if-none-match", &tag)], String::new())
        .await;
    assert_eq!(read.status, 200);
    let tag = read.etag.unwrap();
    let read = client
        .send("GET", &path, &[("if-none-match", &tag)], String::new())
        .await;
    assert_eq!((read.status, read.etag), (304, Some(tag)));
}

#[tokio::test]
async fn content_depth_and_fields_choose_what_is_read() {
    let client = Client::filled().await;
    let names = client.get(&at("?fields=element(name;vnic/name)")).await;
    assert_eq!(
        names.body,
        json!({ "shunt-inventory:inventory": { "element": [
            { "name": "e1", "vnic": [{ "name": "lan" }] }
        ]}})
    );
    let shallow = client.get(&at("/element=e1?depth=2")).await;
    let element = &shallow.body["shunt-inventory:element"][0];
    assert_eq!(element["policy"], json!({}));
    assert_eq!(client.get(&at("?content=nonconfig")).await.status, 404);
    let config = client.get("/restconf/data?content=config").await.body;
    let data = config["ietf-restconf:data"].as_object().unwrap();
    assert_eq!(
        data.keys().collect::<Vec<_>>(),
        ["shunt-inventory:inventory"]
    );
    let state = client.get("/restconf/data?content=nonconfig").await.body;
    let data = state["ietf-restconf:data"].as_object().unwrap();
    assert_eq!(
        data.keys().collect::<Vec<_>>(),
        ["ietf-yang-library:yang-library"]
    );
}
