//! Doing in software what a frame's receiver does not do itself: completing a checksum,
//! cutting a GSO frame into wire packets.
//!
//! *Promises*: what comes out is what Linux makes of the same frame for a device without
//! offloads: TCP sequence numbers advance, the IPv4 id counts up, FIN and PSH stay on the
//! last segment and CWR on the first (RFC 3168 section 6.1.2), lengths are each segment's
//! own. A partial checksum is taken at its sender's word: a wrong pseudo-header sum gives
//! wrong checksums. IPv4 options, extension headers and any tags are repeated unread.
//! *Refuses*: [`DropReason::Unsegmentable`]: headers that do not allow it, a checksum field
//! among the addresses (see [`super::vnet_hdr::encode`]), UFO, a frame above
//! [`FRAME_MAX`], a segment too large for IP, or more than [`SEGMENTS_MAX`] segments, since a frame's work must stay bounded.
//! *Caller's duty*: ask [`fits`] first; call [`Segments::fill`] until it answers 0.
//! Segments always leave complete, also for a peer that would take partial checksums:
//! such a peer without TSO is rare, and one form is simpler than two.
//! *Standard*: virtio 1.2 section 5.1.6, RFC 9293, RFC 3168, RFC 768.

use super::checksum::{self, Zero};
use super::headers::{self, IPV6, Outline, tcp_flag};
use super::key::protocol;
use super::{
    Burst, Checksum, DropReason, FRAME_MAX, Frame, FrameMut, Gso, GsoKind, Offload, PeerOffloads,
};

/// Segments of one frame at most: 64 KiB in pieces of 32 bytes.
pub const SEGMENTS_MAX: usize = 2048;

/// Whether `peer` takes a frame as it is.
#[inline(always)]
pub fn fits(offload: &Offload, peer: &PeerOffloads) -> bool {
    if *offload == Offload::default() {
        return true;
    }
    let kind = match offload.gso.kind {
        GsoKind::None => true,
        GsoKind::Tcp4 => peer.tso4,
        GsoKind::Tcp6 => peer.tso6,
        GsoKind::UdpL4 => peer.uso,
        GsoKind::Ufo => false,
    };
    let checksum = offload.checksum == Checksum::Unchecked || peer.checksum;
    kind && checksum && (!offload.gso.ecn || peer.ecn)
}

/// Completes the checksum of a frame without GSO in place; afterwards it asks for nothing.
pub fn complete(frame: &mut FrameMut<'_>) -> Result<(), DropReason> {
    let offload = *frame.offload();
    if offload.gso.kind != GsoKind::None {
        return Err(DropReason::Unsegmentable);
    }
    if let Checksum::Partial { start, offset } = offload.checksum {
        complete_at(frame.data(), start, offset)?;
    }
    *frame.offload() = Offload::default();
    Ok(())
}

fn complete_at(data: &mut [u8], start: u16, offset: u16) -> Result<(), DropReason> {
    // UDP alone keeps its checksum there, and UDP-Lite and DCCP, for which both zeros are one.
    let zero = match offset {
        6 => Zero::AllOnes,
        _ => Zero::AsIs,
    };
    let sound = headers::partial_is_sound(data, start, offset);
    if sound && checksum::complete(data, start.into(), offset.into(), zero) {
        Ok(())
    } else {
        Err(DropReason::Unsegmentable)
    }
}

/// A frame's wire packets, made burst by burst.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    data: &'a [u8],
    work: Work,
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Done,
    /// One packet, whose checksum may have to be completed.
    Whole(Checksum),
    Cut(Cut),
}

/// How a GSO frame is cut, and how far it is.
#[derive(Clone, Copy, Debug)]
struct Cut {
    outline: Outline,
    /// First payload byte: what lies before it is repeated.
    payload: usize,
    /// First payload byte of the next segment.
    next: usize,
    /// Payload bytes of a segment.
    size: usize,
    /// Which segment is next.
    index: u16,
    /// The checksum field's place in the L4 header.
    check: usize,
    /// The pseudo-header's sum without the length.
    pseudo: u16,
}

impl<'a> Segments<'a> {
    /// Prepares a frame: cut if it is GSO, else only completed.
    pub fn new(frame: Frame<'a>) -> Result<Self, DropReason> {
        let data = frame.data;
        let work = match (frame.offload.gso.kind, frame.offload.checksum) {
            // No burst would take it.
            _ if data.len() > FRAME_MAX => None,
            (GsoKind::None, Checksum::Partial { start, offset })
                if !headers::partial_is_sound(data, start, offset) =>
            {
                None
            }
            (GsoKind::None, checksum) => Some(Work::Whole(checksum)),
            (_, Checksum::Partial { start, offset }) => {
                Cut::new(data, &frame.offload, start, offset).map(Work::Cut)
            }
            _ => None,
        };
        let work = work.ok_or(DropReason::Unsegmentable)?;
        Ok(Self { data, work })
    }

    /// Appends as many packets as `out` takes and says how many. 0 with an empty `out` means
    /// that all are done; then, and not before, the frame is.
    pub fn fill(&mut self, out: &mut Burst) -> usize {
        let mut made = 0;
        while self.step(out) {
            made += 1;
        }
        made
    }

    /// Whether all packets were made.
    pub fn is_done(&self) -> bool {
        matches!(self.work, Work::Done)
    }

    /// Makes one packet; false if there is none left or no room.
    fn step(&mut self, out: &mut Burst) -> bool {
        match &mut self.work {
            Work::Done => false,
            Work::Whole(checksum) => {
                let Some(space) = out.reserve(self.data.len()) else {
                    return false;
                };
                space.copy_from_slice(self.data);
                if let Checksum::Partial { start, offset } = *checksum {
                    // Sound, as `new` has found.
                    let _ = complete_at(space, start, offset);
                }
                out.commit(self.data.len(), Offload::default());
                self.work = Work::Done;
                true
            }
            Work::Cut(cut) => {
                let Some(len) = cut.segment_len(self.data) else {
                    self.work = Work::Done;
                    return false;
                };
                let Some(space) = out.reserve(len) else {
                    return false;
                };
                cut.write(self.data, space);
                out.commit(len, Offload::default());
                if cut.next >= self.data.len() {
                    self.work = Work::Done;
                }
                true
            }
        }
    }
}

impl Cut {
    fn new(data: &[u8], offload: &Offload, start: u16, offset: u16) -> Option<Self> {
        let Gso { kind, size, .. } = offload.gso;
        if kind == GsoKind::Ufo {
            return None;
        }
        let (outline, payload) = headers::walk_gso(data, kind, start, offset)?;
        let (l4, size) = (outline.l4, usize::from(size));
        let segment = data.get(l4..)?;
        let payload_len = data.len().checked_sub(payload)?;
        let l3_max = payload - outline.l3 + size.min(payload_len);
        let ip_max = usize::from(u16::MAX) + if outline.ipv4 { 0 } else { IPV6 };
        if size == 0 || payload_len.div_ceil(size) > SEGMENTS_MAX || l3_max > ip_max {
            return None;
        }
        let check = usize::from(offset);
        let field = segment.get(check..)?.first_chunk::<2>()?;
        let whole = checksum::fold(segment.len() as u64);
        Some(Self {
            outline,
            payload,
            next: payload,
            size,
            index: 0,
            check,
            pseudo: checksum::add(u16::from_be_bytes(*field), !whole),
        })
    }

    /// The next segment's length with all its headers.
    fn segment_len(&self, data: &[u8]) -> Option<usize> {
        let rest = data.len().checked_sub(self.next)?;
        Some(self.payload + rest.min(self.size))
    }

    /// Writes the next segment into `out`, which has [`Cut::segment_len`] bytes.
    fn write(&mut self, data: &[u8], out: &mut [u8]) {
        let Outline { l3, l4, ipv4, .. } = self.outline;
        let end = self.next + (out.len() - self.payload);
        out[..self.payload].copy_from_slice(&data[..self.payload]);
        out[self.payload..].copy_from_slice(&data[self.next..end]);
        let len = out.len();
        if ipv4 {
            let id = get16(out, l3 + 4).wrapping_add(self.index);
            put16(out, l3 + 2, (len - l3) as u16);
            put16(out, l3 + 4, id);
            put16(out, l3 + 10, 0);
            let check = !checksum::sum(&out[l3..l4]);
            put16(out, l3 + 10, check);
        } else {
            put16(out, l3 + 4, (len - l3 - IPV6) as u16);
        }
        let zero = if self.outline.protocol == protocol::TCP {
            self.write_tcp(data.len() == end, &mut out[l4..]);
            Zero::AsIs
        } else {
            put16(out, l4 + 4, (len - l4) as u16);
            Zero::AllOnes
        };
        let pseudo = checksum::add(self.pseudo, checksum::fold((len - l4) as u64));
        put16(out, l4 + self.check, pseudo);
        checksum::complete(out, l4, self.check, zero);
        self.next = end;
        self.index = self.index.wrapping_add(1);
    }

    fn write_tcp(&self, last: bool, header: &mut [u8]) {
        let passed = (self.next - self.payload) as u32;
        if let Some(field) = header[4..].first_chunk_mut::<4>() {
            *field = u32::from_be_bytes(*field)
                .wrapping_add(passed)
                .to_be_bytes();
        }
        if !last {
            header[13] &= !(tcp_flag::FIN | tcp_flag::PSH);
        }
        if self.index != 0 {
            header[13] &= !tcp_flag::CWR;
        }
    }
}

fn get16(data: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([data[at], data[at + 1]])
}

fn put16(data: &mut [u8], at: usize, value: u16) {
    data[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests;
