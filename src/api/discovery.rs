//! What a client learns about the server before it asks for data.
//!
//! *Promises*: what is told here is what is served: a test asks for all of it.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: RFC 8040 sections 3.1 (host-meta), 3.3 (the API resource), 3.7 (modules) and
//! 9.1 (capabilities); RFC 8525 (YANG library), RFC 6243 (defaults).

use serde_json::{Map, Value, json};

use super::path;

/// The module of what is served here, as it stands in the documentation.
pub(crate) const MODULE_TEXT: &str = include_str!("../../docs/yang/shunt-offload.yang");
/// Its name.
pub(crate) const MODULE: &str = "shunt-offload";
/// Its revision.
pub(crate) const REVISION: &str = "2026-11-24";
/// Where it is read.
pub(crate) const MODULE_PATH: &str = "/restconf/yang/shunt-offload@2026-11-24.yang";

/// Revision of the YANG library's module.
const LIBRARY_REVISION: &str = "2019-01-04";

/// Says where the API is; XRD.
pub(crate) const HOST_META: &str = concat!(
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n",
    "<XRD xmlns=\"http://docs.oasis-open.org/ns/xri/xrd-1.0\">",
    "<Link rel=\"restconf\" href=\"/restconf\"/></XRD>\n"
);

/// The API resource.
pub(crate) fn api() -> Value {
    json!({ "ietf-restconf:restconf": {
        "data": {}, "operations": {}, "yang-library-version": LIBRARY_REVISION
    }})
}

/// The leaf `yang-library-version`.
pub(crate) fn library_version() -> Value {
    json!({ "ietf-restconf:yang-library-version": LIBRARY_REVISION })
}

/// The operations that can be called.
pub(crate) fn operations(names: &[&str]) -> Value {
    let all: Map<String, Value> = names
        .iter()
        .map(|name| ((*name).to_owned(), json!([null])))
        .collect();
    json!({ "ietf-restconf:operations": all })
}

/// The operations of elements.
pub(crate) const ELEMENT_OPERATIONS: &[&str] = &[
    "shunt-offload:open-epoch",
    "shunt-offload:offload",
    "shunt-offload:withdraw",
    "shunt-offload:reprove",
    "shunt-offload:sync",
    "shunt-offload:shield",
    "shunt-offload:unshield",
];

/// The operations that operators call for elements.
pub(crate) const OPERATOR_OPERATIONS: &[&str] = &[
    "shunt-offload:offload",
    "shunt-offload:withdraw",
    "shunt-offload:reprove",
    "shunt-offload:shield",
    "shunt-offload:unshield",
];

/// All operations of a backend.
pub(crate) const BACKEND_OPERATIONS: &[&str] = &[
    "shunt-offload:open-epoch",
    "shunt-offload:offload",
    "shunt-offload:withdraw",
    "shunt-offload:reprove",
    "shunt-offload:sync",
    "shunt-offload:reload",
    "shunt-offload:shield",
    "shunt-offload:unshield",
];

/// How leaves at their default are told (RFC 6243).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Defaults {
    /// Left out.
    Trim,
    /// As they were set.
    Explicit,
}

/// Container `restconf-state` of ietf-restconf-monitoring.
pub(crate) fn restconf_state(defaults: Defaults) -> Value {
    let mode = match defaults {
        Defaults::Trim => "trim",
        Defaults::Explicit => "explicit",
    };
    json!({
        "capabilities": { "capability": [
            format!("urn:ietf:params:restconf:capability:defaults:1.0?basic-mode={mode}"),
            "urn:ietf:params:restconf:capability:depth:1.0",
            "urn:ietf:params:restconf:capability:fields:1.0"
        ]},
        "streams": {}
    })
}

/// The same, where each of `elements` has a stream of notifications.
pub(crate) fn restconf_state_with<'a>(
    defaults: Defaults,
    elements: impl Iterator<Item = &'a str>,
) -> Value {
    let stream = |element: &str| {
        json!({
            "name": format!("{MODULE}/element={element}"),
            "description": format!("what happens to element {element}"),
            "replay-support": false,
            "access": [{ "encoding": "json", "location": path::stream_path(element) }]
        })
    };
    let streams: Vec<Value> = elements.map(stream).collect();
    let mut state = restconf_state(defaults);
    if !streams.is_empty() {
        state["streams"] = json!({ "stream": streams });
    }
    state
}

/// A module of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    /// Its text.
    pub(crate) text: &'static str,
    /// Its name.
    pub(crate) name: &'static str,
    /// Its revision.
    pub(crate) revision: &'static str,
    /// Its namespace.
    pub(crate) namespace: &'static str,
    /// Where it is read.
    pub(crate) path: &'static str,
}

/// The module of sessions.
pub(crate) const OFFLOAD: Own = Own {
    text: MODULE_TEXT,
    name: MODULE,
    revision: REVISION,
    namespace: "urn:shunt:offload",
    path: MODULE_PATH,
};

/// The module of a controller's configuration.
pub(crate) const INVENTORY: Own = Own {
    text: super::inventory::MODULE.text,
    name: "shunt-inventory",
    revision: "2026-11-24",
    namespace: "urn:shunt:inventory",
    path: "/restconf/yang/shunt-inventory@2026-11-24.yang",
};

/// Container `yang-library` of ietf-yang-library, with `own` in one datastore.
pub(crate) fn yang_library(own: &[Own], datastore: &str) -> Value {
    let mut imported = vec![
        ietf("ietf-datastores", "2018-02-14"),
        ietf("ietf-inet-types", "2013-07-15"),
        ietf("ietf-yang-types", "2013-07-15"),
    ];
    if own.iter().any(|own| own.name == MODULE) {
        imported.push(ietf("ietf-ethertypes", "2019-03-04"));
        imported.push(ietf("ietf-packet-fields", "2019-03-04"));
    }
    let mut modules: Vec<Value> = own.iter().map(of_ours).collect();
    modules.push(ietf("ietf-restconf-monitoring", "2017-01-26"));
    modules.push(ietf("ietf-yang-library", LIBRARY_REVISION));
    json!({
        "module-set": [{
            "name": "all",
            "module": modules,
            "import-only-module": imported
        }],
        "schema": [{ "name": "all", "module-set": ["all"] }],
        "datastore": [{ "name": format!("ietf-datastores:{datastore}"), "schema": "all" }],
        "content-id": content_id(own)
    })
}

fn of_ours(own: &Own) -> Value {
    json!({
        "name": own.name, "revision": own.revision, "namespace": own.namespace,
        "location": [own.path]
    })
}

/// Changes whenever the library does.
fn content_id(own: &[Own]) -> String {
    let revisions = own.iter().map(|own| own.revision);
    let all: Vec<&str> = [env!("CARGO_PKG_VERSION")]
        .into_iter()
        .chain(revisions)
        .collect();
    all.join("-")
}

fn ietf(name: &str, revision: &str) -> Value {
    let namespace = format!("urn:ietf:params:xml:ns:yang:{name}");
    json!({ "name": name, "revision": revision, "namespace": namespace })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_told_is_the_module_served() {
        assert!(MODULE_TEXT.starts_with(&format!("module {MODULE} {{")));
        let newest = MODULE_TEXT
            .lines()
            .find_map(|line| line.trim().strip_prefix("revision "))
            .and_then(|line| line.strip_suffix(" {"));
        assert_eq!(newest, Some(REVISION));
        assert!(MODULE_PATH.ends_with(&format!("/{MODULE}@{REVISION}.yang")));
        assert!(MODULE_TEXT.contains("namespace \"urn:shunt:offload\";"));
        let inventory = &crate::api::inventory::MODULE;
        assert_eq!(INVENTORY.name, inventory.name);
        assert_eq!(INVENTORY.revision, inventory.revision);
        assert_eq!(INVENTORY.namespace, inventory.namespace);
        let revision = format!("revision {} {{", inventory.revision);
        assert!(inventory.text.contains(&revision));
        let namespace = format!("namespace \"{}\";", inventory.namespace);
        assert!(inventory.text.contains(&namespace));
        assert!(
            INVENTORY
                .path
                .ends_with(&format!("/{}@{}.yang", INVENTORY.name, INVENTORY.revision))
        );
    }
}
