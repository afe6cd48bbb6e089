//! The program inside the guest: offloads what the guest has decided to forward.
//!
//! | module | what |
//! |---|---|
//! | [`connection`] | a connection as conntrack tells it |
//! | [`core`] | what is offloaded, and what becomes of it: pure |
//! | [`kernel`] | what is asked of the guest's kernel |
//! | [`network`] | interfaces, and how packets find their way |
//!
//! *Promises*: nothing is asked for that the guest has not itself forwarded.
//! *Refuses*: what the guest must see: see `docs/agent.md`.
//! *Caller's duty*: root, or CAP_NET_ADMIN, in the guest's network namespace.
//! *Standard*: `docs/agent.md`; RFC 8040 for what it asks.

pub mod connection;
pub mod core;
pub mod kernel;
pub mod network;
mod run;
