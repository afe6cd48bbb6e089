//! The control interface: the model `shunt-offload` as Rust types, the HTTP server
//! that offers it on a unix socket, and the client of it.
//!
//! *Promises*: N entries in, N results out, in order; every refusal names the leaf and
//! says what to do; a slow or broken client costs itself only.
//! *Refuses*: leaves the model does not have; anything but the paths of
//! `docs/control.md`.
//! *Caller's duty*: implement [`Control`] so that no call waits for another client.
//! *Standard*: RFC 8040, RFC 7951, RFC 9110.

pub mod bounds;
pub mod client;
pub mod config;
mod connection;
pub mod control;
pub mod convert;
pub(crate) mod discovery;
mod drain;
pub mod epoch;
pub mod error;
pub mod events;
pub mod identity;
pub mod inventory;
pub mod link;
pub mod listen;
pub mod offload;
pub mod passage;
mod path;
mod preface;
mod previous;
mod query;
mod read;
pub mod reload;
pub mod reprove;
mod select;
pub mod server;
pub mod session;
pub mod shield;
pub mod socket;
pub mod sse;
pub mod state;
mod stream;
pub mod sync;
pub mod tls;
pub mod wire;
pub mod withdraw;

pub use client::{Client, ClientError, EventStream};
pub use control::{Answer, Control, SessionPage};
pub use convert::{NotInModel, VnicNames, from_request, to_request};
pub use epoch::{OpenEpochInput, OpenEpochOutput};
pub use error::{ApiError, ErrorEntry, ErrorTag};
pub use events::{Event, EventFeed, Notification, RawEvent};
pub use offload::{ENTRIES_MAX, Fault, OffloadInput, OffloadOutput, OffloadResult, OffloadStatus};
pub(crate) use path::{no_resource, stream_of};
pub use reprove::{ReproveInput, ReproveOutput, ReproveResult, ReproveStatus};
pub use server::serve;
pub use session::{Session, SessionKey};
pub use shield::{ShieldInput, ShieldOutput, Shields, UnshieldInput, UnshieldOutput};
pub use socket::{ControlSocket, SocketError};
pub use state::{Ports, SessionReport, Sessions, Statistics, Summary};
pub use sync::{SyncInput, SyncOutput, SyncPage, SyncStatus, SyncStep};
pub use withdraw::{WithdrawInput, WithdrawOutput, WithdrawResult, WithdrawStatus};
