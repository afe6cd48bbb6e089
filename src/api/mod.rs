//! The control interface: the model `shunt-offload` as Rust types, the HTTP server
//! that offers it on a unix socket, and the client of it. A build for guests (without the
//! feature `host`) has the types alone.
//!
//! *Promises*: N entries in, N results out, in order; every refusal names the leaf and
//! says what to do; a slow or broken client costs itself only.
//! *Refuses*: leaves the model does not have; anything but the paths of
//! `docs/control.md`.
//! *Caller's duty*: implement [`Control`] so that no call waits for another client.
//! *Standard*: RFC 8040, RFC 7951, RFC 9110.

pub mod convert;
pub mod epoch;
pub mod error;
pub mod events;
pub mod offload;
mod prefix;
pub mod reprove;
pub mod session;
pub mod shield;
pub mod socket;
pub mod sse;
pub mod state;
pub mod sync;
pub mod wire;
pub mod withdraw;

// What serves, and what asks on the host.
#[cfg(feature = "host")]
pub mod bounds;
#[cfg(feature = "host")]
pub mod client;
#[cfg(feature = "host")]
pub mod config;
#[cfg(feature = "host")]
mod connection;
#[cfg(feature = "host")]
pub mod control;
#[cfg(feature = "host")]
pub(crate) mod discovery;
#[cfg(feature = "host")]
mod drain;
#[cfg(feature = "host")]
pub mod identity;
#[cfg(feature = "host")]
pub mod inventory;
#[cfg(feature = "host")]
pub mod link;
#[cfg(feature = "host")]
pub mod listen;
#[cfg(feature = "host")]
pub mod passage;
#[cfg(feature = "host")]
mod path;
#[cfg(feature = "host")]
mod preface;
#[cfg(feature = "host")]
mod previous;
#[cfg(feature = "host")]
mod query;
#[cfg(feature = "host")]
mod read;
#[cfg(feature = "host")]
pub mod reload;
#[cfg(feature = "host")]
mod select;
#[cfg(feature = "host")]
pub mod server;
#[cfg(feature = "host")]
mod stream;
#[cfg(feature = "host")]
pub mod tls;

pub use convert::{NotInModel, VnicNames, from_request, to_request};
pub use epoch::{OpenEpochInput, OpenEpochOutput};
pub use error::{ApiError, ErrorEntry, ErrorTag};
pub use events::{Event, EventFeed, Notification, RawEvent};
pub use offload::{ENTRIES_MAX, Fault, OffloadInput, OffloadOutput, OffloadResult, OffloadStatus};
pub use prefix::{InvalidPrefix, Prefix};
pub use reprove::{ReproveInput, ReproveOutput, ReproveResult, ReproveStatus};
pub use session::{Session, SessionKey};
pub use shield::{ShieldInput, ShieldOutput, Shields, UnshieldInput, UnshieldOutput};
pub use socket::{ControlSocket, SocketError};
pub use state::{Ports, SessionReport, Sessions, Statistics, Summary};
pub use sync::{SyncInput, SyncOutput, SyncPage, SyncStatus, SyncStep};
pub use withdraw::{WithdrawInput, WithdrawOutput, WithdrawResult, WithdrawStatus};

#[cfg(feature = "host")]
pub use client::{Client, ClientError, EventStream};
#[cfg(feature = "host")]
pub use control::{Answer, Control, SessionPage};
#[cfg(feature = "host")]
pub(crate) use path::{no_resource, stream_of};
#[cfg(feature = "host")]
pub use server::serve;
