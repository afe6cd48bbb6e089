//! Shunt: a vhost-user backend that lets the offloaded connections of a router
//! VM go around its guest.
//!
//! The modules are floors; a file may use what stands on lower floors only
//! (see `docs/architecture.md`).
//!
//! | floor | module |
//! |---|---|
//! | 0 | [`packet`] |
//! | 1 | [`flow`], [`port`], [`serial`] |
//! | 2 | [`datapath`] |
//! | 3 | [`api`] |
//! | 4 | [`backend`], [`controller`], [`relay`], [`agent`] |
//! | 5 | [`up`], [`cli`] |
//!
//! The feature `agent` is the program for guests; `host` is everything that runs on hosts.
//! Both are on by default.

#[cfg(feature = "agent")]
pub mod agent;
pub mod api;
pub mod cli;
pub mod flow;
pub mod packet;
pub mod serial;

mod orders;
mod sync;

// What runs on hosts, not in guests.
#[cfg(feature = "host")]
pub mod backend;
#[cfg(feature = "host")]
pub mod controller;
#[cfg(feature = "host")]
pub mod datapath;
#[cfg(feature = "host")]
pub mod port;
#[cfg(feature = "host")]
pub mod relay;
#[cfg(feature = "host")]
pub mod up;
