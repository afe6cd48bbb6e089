//! The datapath: workers poll ports, run the pipeline of DESIGN section 4 burst by
//! burst, and deliver the verdicts; one keeper owns every element's sessions.
//!
//! *Promises*: no locks, allocations, log lines or system calls per packet, other than
//! a port's own; an element sees only its own tables and ports; frames of one flow
//! keep their order; every frame received is counted exactly once; an element's share of a
//! worker does not depend on what the others do.
//! *Refuses*: to wait for a slow guest or uplink: what finds no room is dropped, counted. Only
//! a guest waits, where its uplink keeps frames for want of room
//! ([`Port::is_held_up`](crate::port::Port::is_held_up)).
//! *Caller's duty*: a queue pair belongs to one worker; ports are attached once.
//! *Standard*: none; the pipeline is this project's own contract.

pub mod books;
pub mod budget;
pub mod clock;
mod collect;
pub mod counters;
mod cpu;
pub mod crew;
mod deliver;
pub mod feed;
mod from_guest;
mod from_uplink;
pub mod keeper;
pub mod lane;
pub mod lanes;
mod mailbox;
mod mates;
pub mod pace;
mod parking;
pub mod poller;
mod punt_meter;
mod rhythm;
mod rounds;
mod schedule;
mod shields;
mod thread;
pub mod told;
mod vnic;
pub mod worker;

pub use punt_meter::PuntRate;

#[cfg(test)]
mod tests;

/// An element's number while the backend runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct ElementId(pub u32);
