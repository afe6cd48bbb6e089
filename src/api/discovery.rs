//! What a client learns about the server before it asks for data.
//!
//! *Promises*: what is told here is what is served: a test asks for all of it.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: RFC 8040 sections 3.1 (host-meta), 3.3 (the API resource), 3.7 (modules) and
//! 9.1 (capabilities); RFC 8525 (YANG library), RFC 6243 (defaults).

use serde_json::{Value, json};

/// The module of what is served here, as it stands in the documentation.
pub(super) const MODULE_TEXT: &str = include_str!("../../docs/yang/shunt-offload.yang");
/// Its name.
pub(super) const MODULE: &str = "shunt-offload";
/// Its revision.
pub(super) const REVISION: &str = "2026-11-23";
/// Where it is read.
pub(super) const MODULE_PATH: &str = "/restconf/yang/shunt-offload@2026-11-23.yang";

/// Revision of the YANG library's module.
const LIBRARY_REVISION: &str = "2019-01-04";

/// Says where the API is; XRD.
pub(super) const HOST_META: &str = concat!(
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n",
    "<XRD xmlns=\"http://docs.oasis-open.org/ns/xri/xrd-1.0\">",
    "<Link rel=\"restconf\" href=\"/restconf\"/></XRD>\n"
);

/// The API resource.
pub(super) fn api() -> Value {
    json!({ "ietf-restconf:restconf": {
        "data": {}, "operations": {}, "yang-library-version": LIBRARY_REVISION
    }})
}

/// The leaf `yang-library-version`.
pub(super) fn library_version() -> Value {
    json!({ "ietf-restconf:yang-library-version": LIBRARY_REVISION })
}

/// The operations that can be called.
pub(super) fn operations() -> Value {
    json!({ "ietf-restconf:operations": {
        "shunt-offload:offload": [null], "shunt-offload:withdraw": [null],
        "shunt-offload:reload": [null]
    }})
}

/// Container `restconf-state` of ietf-restconf-monitoring.
pub(super) fn restconf_state() -> Value {
    json!({
        "capabilities": { "capability": [
            "urn:ietf:params:restconf:capability:defaults:1.0?basic-mode=trim",
            "urn:ietf:params:restconf:capability:depth:1.0",
            "urn:ietf:params:restconf:capability:fields:1.0"
        ]},
        "streams": {}
    })
}

/// Container `yang-library` of ietf-yang-library.
pub(super) fn yang_library() -> Value {
    json!({
        "module-set": [{
            "name": "all",
            "module": [
                {
                    "name": MODULE, "revision": REVISION, "namespace": "urn:shunt:offload",
                    "location": [MODULE_PATH]
                },
                ietf("ietf-restconf-monitoring", "2017-01-26"),
                ietf("ietf-yang-library", LIBRARY_REVISION)
            ],
            "import-only-module": [
                ietf("ietf-datastores", "2018-02-14"),
                ietf("ietf-inet-types", "2013-07-15"),
                ietf("ietf-yang-types", "2013-07-15")
            ]
        }],
        "schema": [{ "name": "all", "module-set": ["all"] }],
        "datastore": [{ "name": "ietf-datastores:operational", "schema": "all" }],
        "content-id": content_id()
    })
}

/// Changes whenever the library does.
pub(super) fn content_id() -> String {
    format!("{}-{REVISION}", env!("CARGO_PKG_VERSION"))
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
    }
}
