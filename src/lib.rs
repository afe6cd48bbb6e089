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

pub mod agent;
pub mod api;
pub mod backend;
pub mod cli;
pub mod controller;
pub mod datapath;
pub mod flow;
pub mod packet;
pub mod port;
pub mod relay;
pub mod serial;
pub mod up;

mod orders;
mod sync;
