//! Stand-in for branch `sessions`: the types that `api` reads. Its file replaces this one.
use super::request::{RequestError, SessionRequest};
use super::{CloseCode, FlowState, SessionId};
use crate::packet::MacAddr;
use std::time::Duration;

/// What became of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "stand-in")]
pub enum Outcome {
    Offloaded(SessionId),
    Unchanged(SessionId),
    Replaced(SessionId),
    Superseded(SessionId),
    TableFull,
    Invalid(RequestError),
}

/// Totals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "stand-in")]
pub struct Totals {
    pub packets: u64,
    pub bytes: u64,
}

/// One direction of a session in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "stand-in")]
pub struct DirectionView {
    pub state: FlowState,
    pub totals: Totals,
    /// Destination and source MAC on egress; zero until they are learned.
    pub macs: (MacAddr, MacAddr),
}

/// Phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "stand-in")]
pub enum SessionPhase {
    Entering,
    Live,
    Replacing,
    Closing(CloseCode),
}

/// A session as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "stand-in")]
pub struct SessionView<'a> {
    pub session: SessionId,
    pub request: &'a SessionRequest,
    pub phase: SessionPhase,
    pub directions: [Option<DirectionView>; 2],
    pub age: Duration,
    pub idle: Duration,
    pub transit: Option<Duration>,
    pub drain_bounds: u32,
}
