//! The module as tables.
//!
//! *Promises*: the same nodes, types and defaults as the text; a test compares with libyang.
//! *Refuses*: nothing. *Caller's duty*: none. *Standard*: RFC 7950.

use crate::api::config::schema::{List, Literal, Module, Node, Type};

/// The default of `sessions`.
pub(super) const SESSIONS: u32 = 4_096;
/// The default of `requests-per-second`.
pub(super) const REQUESTS_PER_SECOND: u32 = 1_000;

/// The module.
pub static MODULE: Module = Module {
    name: "shunt-inventory",
    revision: "2026-11-24",
    namespace: "urn:shunt:inventory",
    text: include_str!("../../../docs/yang/shunt-inventory.yang"),
    top: Node::container(
        "inventory",
        &[
            Node::list(
                "tenant",
                List {
                    key: "name",
                    unique: &[],
                    nodes: TENANT,
                },
            ),
            Node::list(
                "host",
                List {
                    key: "name",
                    unique: &[],
                    nodes: HOST,
                },
            ),
            Node::list(
                "element",
                List {
                    key: "name",
                    unique: &[&["host", "port"]],
                    nodes: ELEMENT,
                },
            ),
        ],
    ),
};

const NAME: Type = Type::Name(64);
const SHORT_NAME: Type = Type::Name(32);
const DESCRIPTION: Node = Node::leaf("description", Type::Text(256));
const KILL: Node = Node::default("kill", Type::Boolean, Literal::Boolean(false));
const OBSERVE_ONLY: Node = Node::default("observe-only", Type::Boolean, Literal::Boolean(false));

const TENANT: &[Node] = &[
    Node::mandatory("name", NAME),
    DESCRIPTION,
    KILL,
    OBSERVE_ONLY,
];

const HOST: &[Node] = &[
    Node::mandatory("name", NAME),
    DESCRIPTION,
    Node::mandatory("backend", Type::Backend),
    Node::leaf_list("relay", NAME),
    Node::default("drain", Type::Boolean, Literal::Boolean(false)),
    KILL,
    OBSERVE_ONLY,
];

const ELEMENT: &[Node] = &[
    Node::mandatory("name", SHORT_NAME),
    DESCRIPTION,
    Node::mandatory("tenant", NAME),
    Node::mandatory("host", NAME),
    Node::leaf("port", NAME),
    KILL,
    OBSERVE_ONLY,
    Node::list(
        "vnic",
        List {
            key: "name",
            unique: &[&["mac", "vlan"], &["bus-path"]],
            nodes: VNIC,
        },
    ),
    Node::container("policy", POLICY),
];

const VNIC: &[Node] = &[
    Node::mandatory("name", SHORT_NAME),
    Node::mandatory("mac", Type::Mac),
    Node::leaf("bus-path", Type::BusPath),
    Node::leaf("vlan", number(1, 4_094)),
    Node::leaf("uplink", NAME),
    Node::leaf_list("source-prefix", Type::Prefix),
];

const POLICY: &[Node] = &[
    Node::leaf_list("source-prefix", Type::Prefix),
    Node::leaf_list("translation-prefix", Type::Prefix),
    Node::default("sessions", number(0, 4_194_304), Literal::Number(SESSIONS)),
    Node::default(
        "requests-per-second",
        number(1, 10_000_000),
        Literal::Number(REQUESTS_PER_SECOND),
    ),
    Node::default("minimum-rate", number(0, u32::MAX), Literal::Number(0)),
    Node::default("minimum-age", number(0, u32::MAX), Literal::Number(0)),
];

const fn number(min: u32, max: u32) -> Type {
    Type::Number { min, max }
}
