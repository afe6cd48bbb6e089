//! What the agent asks of the kernel, beside what the kernel's own tools say: a client, a
//! router and a server in namespaces, with real connections between them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests may be as blunt as tests"
)]

mod changes;
mod connections;
mod events;
mod network;
mod rig;
mod rulesets;
#[path = "../support/mod.rs"]
mod support;
