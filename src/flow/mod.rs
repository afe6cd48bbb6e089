//! Sessions: the flow table, ageing, hand-over from slow to fast path and back; shields.
//!
//! *Promises*: pure and driven by a clock passed in; one writer per table, any
//! number of readers that never wait.
//! *Refuses*: anything beyond the table's quota, with a reason; nothing is evicted.
//! *Caller's duty*: one [`TableWriter`] user at a time (it is not `Clone`); readers
//! keep their pins short.
//! *Standard*: RFC 9293 (which TCP segments end a session), RFC 9260 (SCTP).

mod arena;
mod buckets;
pub mod claim;
mod entry;
mod epoch;
pub mod hand_over;
pub mod hash;
pub mod meter;
#[cfg(test)]
#[cfg(shunt_loom)]
mod model;
pub mod moment;
mod prefetch;
pub mod queue;
pub mod request;
pub mod route;
pub mod sessions;
pub mod shield;
mod slab;
pub mod spec;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
mod ways;
pub mod wheel;
mod wide;
#[cfg(test)]
pub(crate) mod world;

pub use claim::{Claim, Late};
pub use entry::{FlowCounters, FlowRef, Stand};
pub use hand_over::{
    FlowEvent, GuestSent, HandOver, HandOverLimits, HandOverStats, Ingress, Release, ReleaseTo,
    Toll,
};
pub use hash::HashSeed;
pub use meter::TokenBucket;
pub use moment::Moment;
pub use request::{DirectionRequest, ElementShape, RequestError, SessionRequest, VnicShape};
pub use route::Route;
pub use sessions::{
    ClosedSession, ElementSignals, HandedOver, Moved, Outcome, Reproof, SessionPhase, SessionView,
    Sessions, SessionsLimits, Swept, Tally, Totals, book_memory_bytes,
};
pub use shield::{ShieldBook, ShieldSet};
pub use spec::{CloseCode, Direction, FlowId, FlowSpec, FlowState, HandOverMode, SessionId};
pub use table::{
    Grace, InsertError, Pin, TableReader, TableWriter, flow_table, slots_of, table_memory_bytes,
};
