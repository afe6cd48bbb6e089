//! Headers: parse a frame into a [`FlowKey`] and offsets, rewrite it in place,
//! keep its checksums, and know what a GSO frame means on the wire.
//!
//! *Promises*: pure functions over bytes; no input of any length or content
//! panics or is read past its end.
//! *Refuses*: frames that DESIGN section 4 step 3 keeps from ever having a key; the
//! caller gets the [`PuntReason`] instead.
//! *Caller's duty*: a [`Parsed`] belongs to the bytes it was made from.
//! *Standard*: IEEE 802.1Q, RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260,
//! RFC 792, RFC 4443, RFC 1071, RFC 1624, virtio 1.2 section 5.1.6.

pub mod addr;
pub mod burst;
pub mod checksum;
mod headers;
pub mod key;
pub mod marker;
pub mod network;
pub mod offload;
pub mod parse;
pub mod rewrite;
pub mod segment;
#[cfg(test)]
pub(crate) mod testing;
pub mod unmarked;
pub mod verdict;
pub mod vnet_hdr;

pub use addr::{MacAddr, VlanId};
pub use burst::{Burst, FRAME_MAX, Frame, FrameMut, HEADROOM, TxFrame};
pub use key::{FlowKey, Tuple, VnicId};
pub use marker::Marker;
pub use network::network_key;
pub use offload::{Checksum, Gso, GsoKind, Offload, PeerOffloads};
#[cfg(feature = "host")]
pub(crate) use parse::parse_here;
pub use parse::{Parsed, parse};
pub use verdict::{DropReason, PuntReason, ShareClass, Verdict};
