//! Connections over a line that has none: the byte stream between a guest's serial port
//! and the host.
//!
//! A virtual serial port passes bytes in order and knows nothing else: neither side sees
//! the other open, close, crash or reboot, bytes of an earlier open arrive late, and a
//! write may have been cut anywhere. [`frame`] makes self-synchronising frames of it,
//! [`line`](mod@line) makes one connection at a time of the frames, [`link`](mod@link)
//! makes `AsyncRead + AsyncWrite` of the connection. Both ends are alike; [`port`] is the
//! line as the guest has it.
//!
//! *Promises*: whatever lies on the line, the next whole frame is understood. What a
//! connection delivers is exactly what its other end wrote to this same connection, in
//! order; a loss ends it. A reader that never reads costs its own port only, in memory
//! ([`line::WINDOW`]) and in time (`Timing::stall`).
//! *Refuses*: frames longer than [`frame::PAYLOAD_MAX`] allows, bytes beyond the window.
//! *Caller's duty*: these frames find accidents, not forgers: whoever holds the other end
//! of the line is the peer.
//! *Standard*: `docs/serial.md`; COBS (Cheshire and Baker, 1999), CRC-32C (RFC 3720
//! appendix B.4).

pub mod frame;
pub mod line;
pub mod link;
pub mod port;

pub use line::{End, Line, Timing};
pub use link::{Connections, Driver, Stream, link};
