//! The program inside the guest: offloads what the guest has decided to forward.
//!
//! | module | what |
//! |---|---|
//! | [`connection`] | a connection as conntrack tells it |
//! | [`core`] | what is offloaded, and what becomes of it: pure |
//! | [`kernel`] | what is asked of the guest's kernel |
//! | [`network`] | interfaces, and how packets find their way |
//! | [`channel`] | the serial port, and what is asked over it |
//! | [`config`] | the file, which need not be there |
//! | [`mod@proxy`] | the port as a local HTTP socket |
//! | [`shields`] | shields that are kept, and sets of nftables that are mirrored |
//! | [`status`] | the agent's own socket |
//! | [`local`] | HTTP on a unix socket |
//! | [`service`] | all of it as a program |
//!
//! *Promises*: nothing is asked for that the guest has not itself forwarded.
//! *Refuses*: what the guest must see: see `docs/agent.md`.
//! *Caller's duty*: root, or CAP_NET_ADMIN, in the guest's network namespace.
//! *Standard*: `docs/agent.md`; RFC 8040 for what it asks.

pub mod channel;
pub mod config;
pub mod connection;
pub mod core;
pub mod kernel;
pub mod local;
pub mod network;
pub mod proxy;
mod run;
pub mod service;
pub mod shields;
pub mod status;

pub use service::AgentError;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// See [`AgentError`].
pub fn run(config: config::Config) -> Result<(), AgentError> {
    service::run(config, true)
}

/// Runs the proxy, and what keeps shields, alone.
///
/// # Errors
/// See [`AgentError`].
pub fn proxy(config: config::Config) -> Result<(), AgentError> {
    service::run(config, false)
}
