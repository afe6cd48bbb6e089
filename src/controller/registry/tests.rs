//! Lookups, and what follows from changes.

use serde_json::json;

use super::*;
use crate::controller::store::{Document, Listing, Revision};

fn document(key: &str, content: Value) -> Document {
    Document {
        key: key.to_owned(),
        revision: Revision(1),
        value: json!({ "modified": 1, "content": content })
            .to_string()
            .into_bytes(),
    }
}

fn changed(key: &str, content: Value) -> Change {
    Change {
        key: key.to_owned(),
        document: Some(document(key, content)),
    }
}

fn gone(key: &str) -> Change {
    Change {
        key: key.to_owned(),
        document: None,
    }
}

fn host(name: &str) -> Value {
    json!({ "name": name, "backend": format!("/{name}"), "relay": [format!("r-{name}")] })
}

fn element(name: &str, host: &str, more: Value) -> Value {
    let mut element = json!({ "name": name, "tenant": "t", "host": host, "port": "p" });
    element
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    element
}

fn filled() -> Registry {
    let registry = Registry::default();
    let documents = vec![
        document("element/h1/a", element("a", "h1", json!({}))),
        document("element/h2/b", element("b", "h2", json!({ "kill": true }))),
        document("generation", Value::Null),
        document("host/h1", host("h1")),
        document("host/h2", host("h2")),
        document("index/element/a", json!("h1")),
        document("tenant/t", json!({ "name": "t" })),
    ];
    let due = registry.apply(Event::Everything(Listing {
        documents,
        revision: Revision(1),
        ..Listing::default()
    }));
    // What was killed while nobody watched; and what else there may be.
    assert_eq!(shown(&due), ["b@/h2", "?/h1", "?/h2"]);
    registry
}

fn shown(due: &BTreeSet<Due>) -> Vec<String> {
    let show = |one: &Due| match one {
        Due::HandBack(one) => format!("{}@{}", one.element, one.backend),
        Due::Compare(address) => format!("?{address}"),
    };
    due.iter().map(show).collect()
}

fn named(found: Option<Placed>) -> Option<String> {
    found.map(|placed| placed.element.name.clone())
}

#[test]
fn an_element_is_found_by_its_port_through_its_own_host_s_relay_only() {
    let registry = filled();
    assert_eq!(named(registry.on_port("r-h1", "p")).as_deref(), Some("a"));
    assert_eq!(named(registry.on_port("r-h2", "p")).as_deref(), Some("b"));
    for (relay, port) in [("r-h3", "p"), ("r-h1", "q"), ("h1", "p"), ("", "")] {
        assert_eq!(named(registry.on_port(relay, port)), None);
    }
    let mut other = host("h1");
    other["relay"] = json!(["r-new"]);
    registry.apply(Event::Changed(vec![changed("host/h1", other)]));
    assert_eq!(named(registry.on_port("r-h1", "p")), None);
    assert_eq!(named(registry.on_port("r-new", "p")).as_deref(), Some("a"));
}

#[test]
fn an_element_that_moves_is_handed_back_where_it_was() {
    let registry = filled();
    let moved = vec![
        changed("element/h2/a", element("a", "h2", json!({ "port": "q" }))),
        gone("element/h1/a"),
    ];
    assert_eq!(shown(&registry.apply(Event::Changed(moved))), ["a@/h1"]);
    assert_eq!(named(registry.on_port("r-h1", "p")), None);
    assert_eq!(named(registry.on_port("r-h2", "q")).as_deref(), Some("a"));
    let due = registry.apply(Event::Changed(vec![gone("element/h2/a")]));
    assert_eq!(shown(&due), ["a@/h2"]);
    let Some(Due::HandBack(one)) = due.first() else {
        panic!("{due:?}");
    };
    assert!(registry.is_due(one));
}

#[test]
fn a_kill_switch_hands_back_once_whatever_it_is_on() {
    for (key, content) in [
        ("element/h1/a", element("a", "h1", json!({ "kill": true }))),
        ("tenant/t", json!({ "name": "t", "kill": true })),
        (
            "host/h1",
            json!({ "name": "h1", "backend": "/h1", "kill": true }),
        ),
    ] {
        let registry = filled();
        let kill = || Event::Changed(vec![changed(key, content.clone())]);
        assert_eq!(shown(&registry.apply(kill())), ["a@/h1"], "{key}");
        assert_eq!(registry.placed("a").unwrap().bar(), Some(Bar::Kill));
        assert!(registry.apply(kill()).is_empty());
        assert!(registry.is_due(&HandBack {
            backend: "/h1".parse().unwrap(),
            element: "a".to_owned()
        }));
    }
    let registry = filled();
    assert!(!registry.is_due(&HandBack {
        backend: "/h1".parse().unwrap(),
        element: "a".to_owned()
    }));
    assert_eq!(registry.placed("a").unwrap().bar(), None);
}

#[test]
fn a_backend_is_looked_at_when_it_is_new_to_the_inventory() {
    let registry = filled();
    let of_host = |content: Value| Event::Changed(vec![changed("host/h1", content)]);
    let mut moved = host("h1");
    assert!(registry.apply(of_host(moved.clone())).is_empty());
    moved["backend"] = json!("https://h1.example:8443");
    // Its element is handed back at the old one.
    let expected = ["a@/h1", "?https://h1.example:8443"];
    assert_eq!(shown(&registry.apply(of_host(moved))), expected);
    assert!(!registry.has_backend(&"/h1".parse().unwrap()));
    let tenant = changed("tenant/t", json!({ "name": "t", "observe-only": true }));
    assert!(registry.apply(Event::Changed(vec![tenant])).is_empty());
}

#[test]
fn an_element_is_still_there_until_it_moves() {
    let registry = filled();
    let (was, mut changes) = (registry.placed("a").unwrap(), registry.changes());
    let same = changed("element/h1/a", element("a", "h1", json!({ "kill": true })));
    registry.apply(Event::Changed(vec![same]));
    assert!(changes.has_changed().unwrap() && registry.is_still(&was));
    let ported = changed("element/h1/a", element("a", "h1", json!({ "port": "q" })));
    registry.apply(Event::Changed(vec![ported]));
    assert!(!registry.is_still(&was));
    changes.mark_unchanged();
    registry.apply(Event::Changed(vec![gone("element/h1/a")]));
    assert!(changes.has_changed().unwrap() && !registry.is_still(&was));
}

fn everything(prefix: &str, documents: Vec<Document>) -> Event {
    Event::Everything(Listing {
        prefix: prefix.to_owned(),
        documents,
        revision: Revision(1),
    })
}

/// As a controller of the hosts `h1…` and `h2…` is told: a watch for each beginning.
#[test]
fn watches_of_several_prefixes_do_not_touch_each_other_s_part() {
    let registry = Registry::default();
    let a = || document("element/h1/a", element("a", "h1", json!({})));
    for (prefix, documents) in [
        (
            "tenant/",
            vec![document("tenant/t", json!({ "name": "t" }))],
        ),
        ("host/h1", vec![document("host/h1", host("h1"))]),
        ("host/h2", vec![document("host/h2", host("h2"))]),
        ("element/h1", vec![a()]),
        (
            "element/h2",
            vec![document("element/h2/b", element("b", "h2", json!({})))],
        ),
    ] {
        let due = registry.apply(everything(prefix, documents));
        // A host is new with its own watch, and only then.
        let host = prefix.strip_prefix("host/");
        assert_eq!(
            shown(&due),
            Vec::from_iter(host.map(|name| format!("?/{name}")))
        );
    }
    assert!(registry.placed("a").is_some() && registry.placed("b").is_some());
    // One begins anew: the same, then without its element.
    assert!(
        registry
            .apply(everything("element/h1", vec![a()]))
            .is_empty()
    );
    assert!(registry.on_port("r-h1", "p").is_some());
    let due = registry.apply(everything("element/h1", vec![]));
    assert_eq!(shown(&due), ["a@/h1"]);
    assert!(registry.placed("a").is_none() && registry.placed("b").is_some());
    // A move is told by two watches, in either order.
    for is_gone_first in [false, true] {
        assert!(
            registry
                .apply(everything("element/h1", vec![a()]))
                .is_empty()
        );
        let gone = Event::Changed(vec![gone("element/h1/a")]);
        let there = changed("element/h2/a", element("a", "h2", json!({ "port": "q" })));
        let there = Event::Changed(vec![there]);
        let events = if is_gone_first {
            [gone, there]
        } else {
            [there, gone]
        };
        let due = events.into_iter().flat_map(|event| registry.apply(event));
        assert_eq!(shown(&due.collect()), ["a@/h1"]);
        assert_eq!(registry.placed("a").unwrap().element.host, "h2");
        assert_eq!(registry.on_port("r-h2", "q").unwrap().element.name, "a");
        assert!(registry.on_port("r-h1", "p").is_none());
        let back = Event::Changed(vec![self::gone("element/h2/a")]);
        registry.apply(back);
    }
}
