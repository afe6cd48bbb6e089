//! Sessions: the flow table, ageing, hand-over from slow to fast path and back.
//!
//! *Promises*: pure and driven by a clock passed in; one writer per table, any
//! number of readers that never wait.
//! *Refuses*: anything beyond the table's quota, with a reason; nothing is evicted.
//! *Caller's duty*: one [`TableWriter`] user at a time (it is not `Clone`); readers
//! keep their pins short.
//! *Standard*: RFC 9293 (which TCP segments end a session), RFC 9260 (SCTP).

pub mod moment;
pub mod spec;

pub use moment::Moment;
pub use spec::{CloseCode, Direction, FlowId, FlowSpec, FlowState, HandOverMode, SessionId};
