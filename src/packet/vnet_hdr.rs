//! The virtio-net header: its bytes, and what they say about a frame.
//!
//! *Promises*: an [`Offload`] from [`decode`] is true to its own documentation: fields lie
//! inside the frame, a GSO size is not 0. (Whether its kind fits the packet is judged
//! where headers are read: by `parse`, by [`encode`] and by segmentation.) A header from [`encode`] is built from the frame
//! at hand, never copied from another header, so VLAN push and pop cannot leave it stale.
//! *Refuses*: [`InvalidVnetHdr`], the frame is to be discarded and counted. Unknown flags are
//! ignored (virtio 1.2 section 5.1.6.2.2). GSO without a partial checksum is refused:
//! segments need their own, and Linux as guest and as tap always sets both.
//! *Caller's duty*: say who sent the header; only the host's word on `DATA_VALID` counts.
//! `num_buffers` is 1 here; a port that merges receive buffers sets it.
//! *Standard*: virtio 1.2 section 5.1.6.

use super::headers;
use super::{Checksum, Gso, GsoKind, Offload};

/// The header with `num_buffers`: VERSION_1 or MRG_RXBUF negotiated.
pub const LEN: usize = 12;
/// The header without `num_buffers`.
pub const LEN_LEGACY: usize = 10;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Linux reads this size as "as the fragments lie" and refuses it from a device.
const GSO_BY_FRAGS: u16 = 0xffff;

/// Who wrote a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// A guest or another peer behind vhost-user: it may claim anything.
    Guest,
    /// The host's kernel, through a tap.
    Host,
}

/// Why a virtio-net header is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidVnetHdr {
    /// Fewer bytes than a header has.
    #[error("a virtio-net header of {0} bytes: 10 or 12 are needed")]
    Short(usize),
    /// The checksum field lies outside the frame.
    #[error("checksum at {start} + {offset} in a frame of {frame_len} bytes")]
    ChecksumOutside {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// The frame's length, bytes.
        frame_len: usize,
    },
    /// A `gso_type` that virtio 1.2 does not define, or ECN without TCP.
    #[error("gso_type {0:#04x} is not defined")]
    GsoType(u8),
    /// A `gso_size` that cuts nothing.
    #[error("gso_size {0} with a gso_type")]
    GsoSize(u16),
    /// Segmentation asked for, but no checksum.
    #[error("gso_type {0:#04x} without NEEDS_CSUM")]
    GsoWithoutChecksum(u8),
}

/// The header of a frame that lacks nothing.
const PLAIN: [u8; LEN] = [0, GSO_NONE, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Whether a header of at least [`LEN_LEGACY`] bytes asks for nothing and promises nothing: that
/// of a usual wire packet. [`decode`] then gives the default.
#[inline(always)]
pub fn is_plain(header: &[u8]) -> bool {
    header.first_chunk() == Some(&[0, GSO_NONE])
}

/// Reads the header of a frame of `frame_len` bytes; bytes behind the tenth are ignored.
pub fn decode(header: &[u8], frame_len: usize, sender: Sender) -> Result<Offload, InvalidVnetHdr> {
    let Some(h) = header.first_chunk::<LEN_LEGACY>() else {
        return Err(InvalidVnetHdr::Short(header.len()));
    };
    let le16 = |at: usize| u16::from_le_bytes([h[at], h[at + 1]]);
    let (size, start, offset) = (le16(4), le16(6), le16(8));
    let checksum = if h[0] & F_NEEDS_CSUM != 0 {
        if usize::from(start) + usize::from(offset) + 2 > frame_len {
            return Err(InvalidVnetHdr::ChecksumOutside {
                start,
                offset,
                frame_len,
            });
        }
        Checksum::Partial { start, offset }
    } else if h[0] & F_DATA_VALID != 0 && sender == Sender::Host {
        Checksum::Valid
    } else {
        Checksum::Unchecked
    };
    Ok(Offload {
        checksum,
        gso: gso(h[1], size, checksum)?,
    })
}

fn gso(gso_type: u8, size: u16, checksum: Checksum) -> Result<Gso, InvalidVnetHdr> {
    let ecn = gso_type & GSO_ECN != 0;
    let kind = match (gso_type & !GSO_ECN, ecn) {
        (GSO_NONE, false) => return Ok(Gso::default()),
        (GSO_TCPV4, _) => GsoKind::Tcp4,
        (GSO_TCPV6, _) => GsoKind::Tcp6,
        (GSO_UDP, false) => GsoKind::Ufo,
        (GSO_UDP_L4, false) => GsoKind::UdpL4,
        _ => return Err(InvalidVnetHdr::GsoType(gso_type)),
    };
    if size == 0 || size == GSO_BY_FRAGS {
        return Err(InvalidVnetHdr::GsoSize(size));
    }
    if !matches!(checksum, Checksum::Partial { .. }) {
        return Err(InvalidVnetHdr::GsoWithoutChecksum(gso_type));
    }
    Ok(Gso { kind, size, ecn })
}

/// The header of a frame about to leave; a peer without `num_buffers` gets the first
/// [`LEN_LEGACY`] bytes.
///
/// `hdr_len` of a GSO frame is what each of its segments repeats: everything up to the L4
/// payload. A partial checksum whose field lies among link-layer or IP header bytes is left
/// out, and the frame goes as it is: completing it would let its sender change addresses
/// after they were checked. So is a GSO kind that the headers contradict.
#[inline(always)]
pub fn encode(offload: &Offload, frame: &[u8]) -> [u8; LEN] {
    match offload.checksum {
        Checksum::Unchecked => PLAIN,
        Checksum::Valid | Checksum::Partial { .. } => encode_marked(offload, frame),
    }
}

#[inline(never)]
fn encode_marked(offload: &Offload, frame: &[u8]) -> [u8; LEN] {
    let mut header = PLAIN;
    match offload.checksum {
        Checksum::Unchecked => {}
        Checksum::Valid => header[0] = F_DATA_VALID,
        Checksum::Partial { start, offset } => {
            if !headers::partial_is_sound(frame, start, offset) {
                return header;
            }
            header[0] = F_NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
            let ecn = if offload.gso.ecn { GSO_ECN } else { 0 };
            let gso_type = match offload.gso.kind {
                GsoKind::None => return header,
                GsoKind::Tcp4 => GSO_TCPV4 | ecn,
                GsoKind::Tcp6 => GSO_TCPV6 | ecn,
                GsoKind::UdpL4 => GSO_UDP_L4,
                GsoKind::Ufo => GSO_UDP,
            };
            let kind = offload.gso.kind;
            let Some((_, payload)) = headers::walk_gso(frame, kind, start, offset) else {
                return header;
            };
            header[1] = gso_type;
            let len = u16::try_from(payload).unwrap_or(u16::MAX);
            header[2..4].copy_from_slice(&len.to_le_bytes());
            header[4..6].copy_from_slice(&offload.gso.size.to_le_bytes());
        }
    }
    header
}

#[cfg(test)]
mod tests;
