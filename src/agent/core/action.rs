//! What the core wants done, and how it is told what became of it.
//!
//! *Promises*: one call of each kind at a time: the next action of a kind comes after the
//! answer to the one before.
//! *Refuses*: nothing.
//! *Caller's duty*: every action is answered, also when it fails.
//! *Standard*: none.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::identity::Id;
use crate::agent::connection::Connection;
use crate::agent::network::{Bridged, IfIndex, Route, RouteQuery};
use crate::api::{Session, SessionKey};

/// Something to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Look at the whole table: `Core::scanned` for each, then `Core::scan_ended`.
    Scan,
    /// Follow news of new and changed connections, or leave them. Those of ended ones always.
    Follow(bool),
    /// Read the interfaces: `Core::links`.
    ReadLinks,
    /// Read the ruleset's hazards: `Core::hazards`.
    ReadHazards,
    /// Do these one after the other: `Core::kernel_answered`.
    Kernel(Vec<KernelRequest>),
    /// Begin anew with the host: `Core::epoch_opened`.
    OpenEpoch,
    /// Ask the host who we are: `Core::element_read`.
    ReadElement,
    /// Offload these: `Core::offloaded`.
    Offload(Vec<Session>),
    /// Make the host's sessions exactly these: `Core::synced`.
    Sync(Vec<Session>),
    /// Take these back: `Core::withdrawn`.
    Withdraw(Vec<SessionKey>),
    /// Have these proved again: `Core::reproved`.
    Reprove(Reprove),
    /// Be unseen until the lease has run out. The line is up again when it is told so.
    FallSilent,
    /// Tell people what would be offloaded.
    Tell(Box<Session>),
}

/// Which sessions are to be proved again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reprove {
    /// All of them.
    All,
    /// These.
    Keys(Vec<SessionKey>),
}

/// A question or order to the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KernelRequest {
    /// Where does it go?
    Route(Id, RouteQuery),
    /// Is it there, and how?
    Look(Id, Arc<Connection>),
    /// Give it this timeout.
    Refresh(Id, Arc<Connection>, Duration),
    /// Check its TCP windows no more.
    BeLiberal(Id, Arc<Connection>),
    /// This neighbour is in use; it is there behind a bridge, if there is one.
    UseNeighbour(IfIndex, IpAddr, Option<Bridged>),
}

/// An answer to a [`KernelRequest`]; one that failed has none but where it says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KernelAnswer {
    /// To `Route`; a failure is no route.
    Route(Id, Route),
    /// To `Look`: as it is; none if it is gone.
    Look(Id, Option<Box<Connection>>),
    /// To `Refresh`: whether it is there.
    IsThere(Id, bool),
    /// To `BeLiberal`: whether it is there. It is answered also if it failed.
    IsLiberal(Id, bool),
}

/// Why a call to the host came to nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallError {
    /// The epoch has ended.
    StaleEpoch,
    /// No answer came: it may have been carried out.
    Lost,
    /// The host answered that it does not; try again later.
    Refused,
    /// The host has no such call.
    NotOffered,
}

/// What became of one session of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offered {
    /// Its key.
    pub key: SessionKey,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of an offered session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The host has it, newly or otherwise than before.
    Taken,
    /// The host had it as it is.
    Unchanged,
    /// The element's table, or quota, is full.
    NoRoom,
    /// Not this one: it is not allowed, or contradicts what the host knows.
    Refused,
}
