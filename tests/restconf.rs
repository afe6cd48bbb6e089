//! The control API is RESTCONF as far as it says so, to curl.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests may be blunt"
)]

mod support;

use serde_json::{Value, json};
use support::process::output;
use support::shunt::{Answer, Shunt, idle_router};
use support::yang::{Kind, Model};
use support::{Dir, repository};

const DATA: &str = "/restconf/data";
const STATE: &str = "/restconf/data/shunt-offload:state";
const OFFLOAD: &str = "/restconf/operations/shunt-offload:offload";

/// A backend with some sessions.
fn start(dir: &Dir, sessions: usize) -> Shunt {
    let shunt = Shunt::start(dir, &idle_router(4096));
    let all: Vec<Value> = (0..sessions)
        .map(|number| {
            json!({
                "key": format!("s{number}"), "protocol": "udp",
                "original": {
                    "ingress-vnic": "lan", "egress-vnic": "wan",
                    "source-address": "10.0.0.2", "source-port": 1000 + number,
                    "destination-address": "192.0.2.9", "destination-port": 53
                }
            })
        })
        .collect();
    if sessions > 0 {
        let input = json!({ "shunt-offload:input": { "session": all } });
        shunt.control().post(OFFLOAD, &input);
    }
    shunt
}

fn get(shunt: &Shunt, path: &str) -> Answer {
    shunt.control().request("GET", path, None)
}

fn json_of(shunt: &Shunt, path: &str) -> Value {
    shunt.control().get(path)
}

/// Status and headers, in lower case, of a request without a body in its answer.
fn head(dir: &Dir, method: &[&str], path: &str) -> String {
    let socket = dir.file("control.sock");
    let url = format!("http://localhost{path}");
    let mut argv = vec!["curl", "--silent", "--globoff", "--max-time", "20"];
    argv.extend(["--unix-socket", socket.to_str().unwrap()]);
    argv.extend_from_slice(method);
    argv.push(&url);
    let said = output(&argv);
    assert!(said.status.success(), "{argv:?}: {said:?}");
    String::from_utf8(said.stdout).unwrap().to_ascii_lowercase()
}

#[test]
fn a_client_finds_the_api_its_modules_and_its_operations() {
    let dir = Dir::new();
    let shunt = start(&dir, 0);
    let meta = get(&shunt, "/.well-known/host-meta");
    assert_eq!(meta.status, 200);
    assert!(
        meta.body
            .contains(r#"<Link rel="restconf" href="/restconf"/>"#),
        "{}",
        meta.body
    );

    let root = json_of(&shunt, "/restconf");
    let version = &root["ietf-restconf:restconf"]["yang-library-version"];
    let leaf = json_of(&shunt, "/restconf/yang-library-version");
    assert_eq!(leaf["ietf-restconf:yang-library-version"], *version);

    let operations = json_of(&shunt, "/restconf/operations");
    let operations = operations["ietf-restconf:operations"].as_object().unwrap();
    for name in operations.keys() {
        let path = format!("/restconf/operations/{name}");
        let told = head(&dir, &["--request", "OPTIONS", "--include"], &path);
        assert!(told.contains("allow: post, options"), "{name}: {told}");
    }

    let library = json_of(&shunt, &format!("{DATA}/ietf-yang-library:yang-library"));
    let modules = library["ietf-yang-library:yang-library"]["module-set"][0]["module"]
        .as_array()
        .unwrap();
    let own = modules
        .iter()
        .find(|module| module["name"] == "shunt-offload")
        .unwrap();
    let text = get(&shunt, own["location"][0].as_str().unwrap());
    let file = repository().join("docs/yang/shunt-offload.yang");
    assert_eq!(text.body, std::fs::read_to_string(file).unwrap());
}

#[test]
fn the_whole_datastore_is_an_instance_of_the_modules_it_lists() {
    let (dir, model) = (Dir::new(), Model::offload());
    let shunt = start(&dir, 3);
    let all = json_of(&shunt, DATA)["ietf-restconf:data"].clone();
    for name in [
        "shunt-offload:state",
        "ietf-yang-library:yang-library",
        "ietf-restconf-monitoring:restconf-state",
    ] {
        assert!(all[name].is_object(), "{name}: {all}");
    }
    model.assert(Kind::State, &all);
    let operational = json_of(&shunt, "/restconf/ds/ietf-datastores:operational");
    assert_eq!(
        operational["ietf-restconf:data"]["ietf-yang-library:yang-library"],
        all["ietf-yang-library:yang-library"]
    );
    assert_eq!(
        get(&shunt, "/restconf/ds/ietf-datastores:running").status,
        404
    );
}

#[test]
fn content_depth_and_fields_choose_what_is_read() {
    let dir = Dir::new();
    let shunt = start(&dir, 600);
    let names = json_of(
        &shunt,
        &format!("{STATE}?fields=element(name;ports/vnic/name)"),
    );
    assert_eq!(
        names,
        json!({ "shunt-offload:state": { "element": [{
            "name": "router1", "ports": { "vnic": [{ "name": "lan" }, { "name": "wan" }] }
        }]}})
    );
    // More than a page of sessions, each cut.
    let keys = json_of(
        &shunt,
        &format!("{STATE}/element=router1/sessions?fields=session/key"),
    );
    let keys = keys["shunt-offload:sessions"]["session"]
        .as_array()
        .unwrap();
    assert_eq!(keys.len(), 600);
    assert!(
        keys.iter()
            .all(|entry| entry.as_object().unwrap().len() == 1)
    );

    assert_eq!(
        json_of(&shunt, &format!("{STATE}?depth=1")),
        json!({ "shunt-offload:state": {} })
    );
    assert_eq!(
        json_of(&shunt, &format!("{STATE}?depth=2")),
        json!({ "shunt-offload:state": { "summary": {}, "element": [{}] } })
    );
    let one = format!("{STATE}/element=router1/sessions/session=s7");
    assert_eq!(
        json_of(&shunt, &format!("{one}?depth=2&fields=key;status/id")),
        json!({ "shunt-offload:session": [{ "key": "s7", "status": {} }] })
    );
    let whole = json_of(&shunt, &format!("{one}?fields=original"));
    assert_eq!(
        whole["shunt-offload:session"][0]["original"]["source-port"],
        1007
    );

    assert_eq!(
        json_of(&shunt, &format!("{DATA}?content=config")),
        json!({ "ietf-restconf:data": {} })
    );
    assert_eq!(get(&shunt, &format!("{STATE}?content=config")).status, 404);
    assert_eq!(
        get(&shunt, &format!("{STATE}?content=nonconfig&depth=1")).status,
        200
    );
}

#[test]
fn a_query_that_is_unknown_repeated_or_wrong_is_400() {
    let dir = Dir::new();
    let shunt = start(&dir, 1);
    let summary = format!("{STATE}/summary");
    for query in [
        "depth=0",
        "depth=1&depth=2",
        "content=some",
        "fields=a(",
        "fields=nosuchmodule:a",
        "with-defaults=report-all",
        "insert=first",
        "point=/a",
        "x",
    ] {
        let answer = get(&shunt, &format!("{summary}?{query}"));
        assert_eq!(answer.status, 400, "{query}");
        let error = &answer.json()["ietf-restconf:errors"]["error"][0];
        assert_eq!(error["error-tag"], "invalid-value", "{query}");
    }
    for path in [
        "/restconf",
        "/restconf/operations",
        "/restconf/yang-library-version",
    ] {
        assert_eq!(
            get(&shunt, &format!("{path}?depth=1")).status,
            400,
            "{path}"
        );
    }
    let input = json!({ "shunt-offload:input": { "session": [] } });
    let call = shunt
        .control()
        .request("POST", &format!("{OFFLOAD}?depth=1"), Some(&input));
    assert_eq!(call.status, 400);
}

#[test]
fn head_and_options_say_what_get_would_and_what_may_be_done() {
    let dir = Dir::new();
    let _shunt = start(&dir, 1);
    let summary = format!("{STATE}/summary");
    let told = head(&dir, &["--head"], &summary);
    assert!(told.starts_with("http/1.1 200"), "{told}");
    assert!(
        told.contains("content-type: application/yang-data+json"),
        "{told}"
    );
    assert!(
        told.trim_end().ends_with(|end: char| end.is_ascii()),
        "{told}"
    );
    assert!(!told.contains("uptime"), "{told}");
    assert!(head(&dir, &["--head"], DATA).contains("etag: "));
    for path in [&summary, DATA, "/restconf", "/restconf/operations"] {
        let told = head(&dir, &["--request", "OPTIONS", "--include"], path);
        assert!(told.contains("allow: get, head, options"), "{path}: {told}");
    }
    let missing = head(
        &dir,
        &["--request", "OPTIONS", "--include"],
        &format!("{STATE}/nothing"),
    );
    assert!(missing.starts_with("http/1.1 404"), "{missing}");
    for method in ["PUT", "PATCH", "DELETE", "POST"] {
        let told = head(&dir, &["--request", method, "--include"], &summary);
        assert!(told.starts_with("http/1.1 405"), "{method}: {told}");
        assert!(told.contains("allow: "), "{method}: {told}");
    }
}
