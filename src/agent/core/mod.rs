//! What the agent decides: pure, driven by what it is told and by a clock passed in.
//!
//! | module | what |
//! |---|---|
//! | [`settings`] | what the owner has set |
//! | [`reason`], [`eligible`] | whether a connection may be offloaded, and why not |
//! | [`ports`] | which vNIC and VLAN an interface is |
//! | [`paths`] | the ways a connection may take, by asking the routing tables |
//! | [`request`] | the session that a connection on a path is |
//! | [`identity`] | names of connections that outlive the agent |
//! | [`watch`] | connections that are not worth it yet |
//! | [`held`], [`book`] | those that are asked for, and what becomes of them |
//! | [`pace`] | how often and how much at once |
//! | [`action`] | what is to be done, and its answers |
//! | [`statistics`], [`snapshot`] | what is shown |
//!
//! *Promises*: no I/O, no clock of its own; the same inputs give the same actions, but for the
//! order within a batch.
//! *Refuses*: see [`reason`].
//! *Caller's duty*: see [`book`].
//! *Standard*: `docs/agent.md`.

pub mod action;
pub mod book;
pub mod eligible;
pub mod held;
pub mod identity;
pub mod moment;
pub mod pace;
pub mod paths;
pub mod ports;
pub mod reason;
pub mod request;
pub mod settings;
pub mod snapshot;
pub mod statistics;
#[cfg(test)]
pub(crate) mod testing;
pub mod watch;

pub use action::{Action, CallError, KernelAnswer, KernelRequest, Offered, Outcome, Reprove};
pub use book::Core;
pub use moment::Moment;
pub use ports::{Element, Vnic};
pub use settings::{Mode, Settings};
pub use snapshot::Snapshot;
