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

pub mod flow;
pub mod packet;

mod sync;

#[cfg(feature = "host")]
pub mod datapath;
#[cfg(feature = "host")]
pub mod port;

// The floors above have no memory ordering of their own to check.
#[cfg(all(feature = "agent", not(shunt_loom)))]
pub mod agent;
#[cfg(not(shunt_loom))]
pub mod api;
#[cfg(all(feature = "host", not(shunt_loom)))]
pub mod backend;
#[cfg(not(shunt_loom))]
pub mod cli;
#[cfg(all(feature = "host", not(shunt_loom)))]
pub mod controller;
#[cfg(not(shunt_loom))]
mod orders;
#[cfg(all(feature = "host", not(shunt_loom)))]
pub mod relay;
#[cfg(not(shunt_loom))]
pub mod serial;
#[cfg(all(feature = "host", not(shunt_loom)))]
pub mod up;
