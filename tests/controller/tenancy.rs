//! What element A tries on element B, from its guest through its relay, as a relay that errs,
//! and as a controller that lies: refused with the right status, logged, and nothing changed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::at;
use crate::guest::{Http, request};
use crate::lab::{Identity, curl, mutual, wall_clock};
use crate::world::{OFFLOAD, STATE, World, call, input, results, session};

/// `b` has a session; `a` knows all about it.
async fn begin(world: &World) -> (Http, Http, Vec<crate::guest::Guest>) {
    let (guest_a, a) = world.guest(0).await;
    let (guest_b, b) = world.guest(1).await;
    let offered = call(
        &b,
        "offload",
        json!({ "session": [session("b", "of-b", 1)] }),
    )
    .await;
    assert_eq!(results(&offered)[0].0, "offloaded");
    assert_eq!(world.keys(), [vec![], vec!["of-b".to_owned()]]);
    (a, b, vec![guest_a, guest_b])
}

/// `a`'s session with the leaf at `pointer` changed.
fn changed(pointer: &str, value: Value) -> Value {
    let mut session = session("a", "tried", 9);
    let (parent, leaf) = pointer.rsplit_once('/').unwrap();
    if parent == "/reply" {
        session["reply"] = json!({});
    }
    let parent = session.pointer_mut(parent).unwrap();
    parent[leaf] = value;
    session
}

/// A shield that drops everything, of one vNIC or all.
fn shield(name: &str, vnic: Option<&str>) -> Value {
    let mut shield = json!({ "name": name, "ttl": 60, "action": "drop" });
    if let Some(vnic) = vnic {
        shield["ingress-vnic"] = json!(vnic);
    }
    shield
}

/// Entries that are `b`'s: the leaf, a value, and why it is denied.
fn entries_of_b() -> Vec<(&'static str, Value, &'static str)> {
    let (address, mac) = (json!("198.51.100.2"), json!("52:54:00:00:02:02"));
    vec![
        ("/original/ingress-vnic", json!("b-wan"), "unknown-vnic"),
        ("/original/egress-vnic", json!("b-wan"), "unknown-vnic"),
        ("/reply/ingress-vnic", json!("b-wan"), "unknown-vnic"),
        ("/reply/egress-vnic", json!("b-wan"), "unknown-vnic"),
        (
            "/original/translation/source-address",
            address.clone(),
            "address",
        ),
        (
            "/original/translation/destination-address",
            address.clone(),
            "address",
        ),
        // Untranslated, as if it were its own.
        ("/original/translation", json!({}), "address"),
        ("/original/source-mac", mac.clone(), "address"),
        ("/reply/source-mac", mac, "address"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_element_s_guest_reaches_nothing_of_another() {
    let world = World::start();
    let (a, b, _guests) = begin(&world).await;
    let before = world.keys();

    for (pointer, value, reason) in entries_of_b() {
        let offered = call(
            &a,
            "offload",
            json!({ "session": [changed(pointer, value)] }),
        )
        .await;
        let expected = [("access-denied".to_owned(), reason.to_owned())];
        assert_eq!(results(&offered), expected, "{pointer}");
        assert_eq!(world.keys(), before, "{pointer}");
    }
    let vouched = call(
        &a,
        "offload",
        json!({ "session": [changed("/vouched", json!(true))] }),
    );
    assert_eq!(results(&vouched.await)[0].1, "vouched");

    // A shield before B's vNIC, among one before its own.
    let shields = [shield("own", Some("lan")), shield("other", Some("b-wan"))];
    let shielded = call(&a, "shield", json!({ "shield": shields })).await;
    let expected = [("installed", ""), ("access-denied", "unknown-vnic")];
    assert_eq!(
        results(&shielded),
        expected.map(|(result, tag)| (result.to_owned(), tag.to_owned()))
    );

    // B's session by its key: to `a` there is none.
    let withdrawn = call(&a, "withdraw", json!({ "key": ["of-b"] })).await;
    assert_eq!(results(&withdrawn)[0].0, "absent");
    let reproved = call(&a, "reprove", json!({ "key": ["of-b"] })).await;
    assert_eq!(results(&reproved)[0].0, "absent");
    // B's name in the input of every operation.
    for (name, mut leaves) in [
        ("open-epoch", json!({})),
        ("offload", json!({ "session": [session("b", "more", 2)] })),
        ("withdraw", json!({ "all": true })),
        ("withdraw", json!({ "key": ["of-b"] })),
        ("reprove", json!({ "all": true })),
        ("reprove", json!({ "key": ["of-b"] })),
        ("sync", json!({ "begin": [null] })),
        ("shield", json!({ "shield": [shield("all", None)] })),
        ("unshield", json!({ "all": true })),
    ] {
        leaves["element"] = json!("b");
        assert_eq!(call(&a, name, leaves).await.status, 404, "{name}");
        assert_eq!(world.keys(), before, "{name}");
    }
    // B's name in a path, also of its events.
    for path in [
        format!("{STATE}/element=b"),
        format!("{STATE}/element=b/sessions/session=of-b"),
        "/restconf/streams/shunt-offload/element=b/json".to_owned(),
        at("/element=b/policy"),
        at("/element=b/vnic=lan"),
        at("/element=a?fields=host"),
        at("/element=a/host"),
        at("/tenant=t-b"),
        at(""),
    ] {
        let answer = a.call("GET", &path, "").await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
    }
    // Of itself an element reads what its agent needs, and not where it runs or for whom.
    let own = a.call("GET", &at("/element=a"), "").await;
    let own: Value = serde_json::from_str(&own.text).unwrap();
    let own = own["shunt-inventory:element"][0].as_object().unwrap();
    let mut leaves: Vec<_> = own.keys().collect();
    leaves.sort();
    assert_eq!(leaves, ["name", "policy", "vnic"]);
    let vnics = own["vnic"].as_array().unwrap();
    let lan = vnics.iter().find(|vnic| vnic["name"] == "lan").unwrap();
    assert_eq!(lan["bus-path"], "0000:00:04.0");
    assert_eq!(own["policy"]["minimum-rate"], 20);
    // Nothing of `b` in what there is for `a`.
    for path in ["/restconf/data", STATE] {
        let text = a.call("GET", path, "").await.text;
        assert!(!text.contains("of-b") && !text.contains("b-wan"), "{text}");
    }
    // What operators do.
    for (method, path) in [
        ("PUT", at("/element=a/policy")),
        ("DELETE", at("/element=b")),
        ("POST", at("")),
        ("PATCH", "/restconf/data".to_owned()),
    ] {
        let mut edit = request(method, &path, r#"{"shunt-inventory:policy":{}}"#);
        let kind = "application/yang-data+json".parse().unwrap();
        edit.headers_mut().insert("content-type", kind);
        assert_eq!(a.ask(edit).await.status, 405, "{method} {path}");
    }
    // The guest's own word for who it is does not count.
    let mut forged = request("GET", &format!("{STATE}/element=b"), "");
    let token = world.relay[1].token("port1", u64::MAX);
    let authorization = format!("Bearer {token}").parse().unwrap();
    forged.headers_mut().insert("authorization", authorization);
    assert_eq!(a.ask(forged).await.status, 404);

    assert_eq!(world.keys(), before);
    let again = call(
        &b,
        "offload",
        json!({ "session": [session("b", "of-b", 1)] }),
    )
    .await;
    assert_eq!(results(&again)[0].0, "unchanged");
    let reproved = call(&b, "reprove", json!({ "key": ["of-b", "nobody"] })).await;
    let said: Vec<_> = results(&reproved).into_iter().map(|one| one.0).collect();
    assert_eq!(said, ["pending", "absent"]);
    world.logs("what was to be proved again", |line| {
        let results = &line["results"];
        line["action"] == "reprove" && line["element"] == "b" && results["pending"] == 1
    });
    for (what, action, status) in [
        ("other names in operations", "withdraw", 404),
        ("other names in sync", "sync", 404),
        ("other names in open-epoch", "open-epoch", 404),
        ("other names in paths", "read", 404),
        ("other names of streams", "events", 404),
    ] {
        world.logs(what, |line| {
            line["action"] == action && line["status"] == status && line["element"] == "a"
        });
    }
    world.logs("refused entries", |line| {
        line["action"] == "offload" && line["refused"][0]["reason"] == "unknown-vnic"
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_for_its_certificate_its_host_its_time_and_its_connection() {
    let world = World::start();
    let (_a, _b, _guests) = begin(&world).await;
    let before = world.keys();
    let [one, two] = &world.relay;
    let body = input(json!({ "session": [session("a", "tried", 9)] }));
    let status = |relay: &Identity, token: &str| {
        let reply = world.with(relay, token, "POST", OFFLOAD, Some(&body));
        reply.status
    };
    let past = wall_clock() - Duration::from_secs(120);
    let unknown = world.relays.issue("r3", "relay.h3.example");
    let newest = u64::MAX;
    let latest = world.with_token(0, newest, "GET", STATE, None);
    assert_eq!(latest.status, 200);
    for (what, relay, token, expected) in [
        ("no token", one, String::new(), 401),
        ("no token at all", one, "nonsense".to_owned(), 401),
        (
            "another certificate's",
            one,
            two.token("port1", newest),
            401,
        ),
        (
            "an expired one",
            one,
            one.token_at("port1", newest, past),
            401,
        ),
        (
            "of a port that is not there",
            one,
            one.token("port2", newest),
            403,
        ),
        (
            "of an unknown host",
            &unknown,
            unknown.token("port1", newest),
            403,
        ),
        (
            "of an older connection",
            one,
            one.token("port1", newest - 1),
            403,
        ),
    ] {
        assert_eq!(status(relay, &token), expected, "{what}");
        assert_eq!(world.keys(), before, "{what}");
        world.logs(what, |line| {
            line["by"] == "relay" && line["status"] == expected && line["action"] == "offload"
        });
    }
    // A relay speaks for the elements of its own host: the same port is another element there.
    let body = input(json!({ "element": "a", "session": [session("a", "tried", 9)] }));
    let reply = world.with(
        two,
        &two.token("port1", newest),
        "POST",
        OFFLOAD,
        Some(&body),
    );
    assert_eq!(reply.status, 404);
    assert_eq!(world.keys(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_refuses_a_lying_controller_by_its_own_file() {
    let mut world = World::start();
    let (_a, _b, _guests) = begin(&world).await;
    let before = world.keys();
    let port = world.backend_port(0);
    let over_tls = |identity: &Identity, body: &Value| {
        let mut argv = mutual(identity, &world.servers, port);
        argv.extend(["--http2".to_owned(), format!("https://localhost{OFFLOAD}")]);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        curl(&argv, "POST", Some(body))
    };
    for (pointer, value, reason) in entries_of_b() {
        let body = input(json!({ "element": "a", "session": [changed(pointer, value)] }));
        let on_socket = world.backend[0].control().post(OFFLOAD, &body);
        let by_controller = over_tls(&world.own, &body).unwrap();
        assert_eq!(by_controller.status, 200, "{by_controller:?}");
        for answer in [on_socket, by_controller.json()] {
            let result = &answer["shunt-offload:output"]["result"][0];
            assert_eq!(result["result"], "access-denied", "{pointer}");
            assert_eq!(result["error"]["error-app-tag"], reason, "{pointer}");
        }
        assert_eq!(world.keys(), before, "{pointer}");
    }
    // Whoever is no controller is nobody, with or without a certificate of the authority.
    let own = input(json!({ "element": "a", "session": [session("a", "tried", 9)] }));
    let stranger = world.controllers.issue("stranger", "stranger.example");
    assert_eq!(over_tls(&stranger, &own).unwrap().status, 403);
    assert!(over_tls(&world.relay[0], &own).is_err());
    assert_eq!(world.keys(), before);
    let offered = over_tls(&world.own, &own).unwrap();
    assert_eq!(offered.status, 200);
    assert_eq!(world.keys()[0], ["tried"]);
}
