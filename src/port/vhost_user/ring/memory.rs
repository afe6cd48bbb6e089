//! Copies between private buffers and guest addresses.
//!
//! *Promises*: a copy is whole or an error; a buffer that crosses into an adjacent
//! region is split (DPDK frontends share one region per hugepage). Nothing outside
//! the address range is touched. Writes are logged for a migration.
//! *Refuses*: a range that is not, or not wholly, in the guest's memory.
//! *Caller's duty*: use one [`Reach`] with one map; another map only costs a search.
//! *Standard*: none; vhost-user's `VHOST_USER_SET_LOG_BASE` for the log.

use super::chain::Direction;
use super::fault::RingFault;
use super::layout::{HEADER_MAX, HEADER_SHORT};
use super::raw::GuestMap;

/// What is prefetched of a buffer: the virtio-net header and a small frame.
const PREFETCH_BYTES: usize = HEADER_MAX + 64;

/// The migration log: pages that were written since they were last sent.
pub trait DirtyLog: Send + Sync {
    /// `len` bytes at guest address `guest_addr` were just written. The range is always
    /// inside the map's regions, though it may cross into an adjacent one.
    fn mark(&self, guest_addr: u64, len: u64);
}

/// A run of guest addresses out of a descriptor's copy. Nothing about it is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Segment {
    pub(super) addr: u64,
    pub(super) len: u32,
}

/// A virtio-net header to be written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Header<'h> {
    Long(&'h [u8; HEADER_MAX]),
    Short(&'h [u8; HEADER_SHORT]),
}

impl Header<'_> {
    #[inline]
    fn len(self) -> usize {
        match self {
            Self::Long(header) => header.len(),
            Self::Short(header) => header.len(),
        }
    }
}

/// Finds guest addresses, beginning at the region found last.
#[derive(Debug, Default)]
pub(super) struct Reach {
    hint: usize,
}

impl Reach {
    /// Fills `into` from `addr` on.
    #[inline]
    pub(super) fn read(
        &mut self,
        map: &GuestMap,
        addr: u64,
        into: &mut [u8],
    ) -> Result<(), RingFault> {
        match map.span(&mut self.hint, addr, into.len()) {
            Some(span) if span.len() == into.len() => {
                span.read(into);
                Ok(())
            }
            _ => self.read_split(map, addr, into),
        }
    }

    /// Writes all of `from` to `addr` and on.
    #[inline]
    pub(super) fn write(
        &mut self,
        map: &GuestMap,
        addr: u64,
        from: &[u8],
    ) -> Result<(), RingFault> {
        match map.span(&mut self.hint, addr, from.len()) {
            Some(span) if span.len() == from.len() => {
                span.write(from);
                map.mark(addr, from.len());
                Ok(())
            }
            _ => self.write_split(map, addr, from),
        }
    }

    /// Fills `into` from a buffer that lies in one region; false, and nothing done, if not.
    #[inline]
    pub(super) fn read_whole(&mut self, map: &GuestMap, addr: u64, into: &mut [u8]) -> bool {
        match map.span(&mut self.hint, addr, into.len()) {
            Some(span) if span.len() == into.len() => {
                span.read(into);
                true
            }
            _ => false,
        }
    }

    /// Writes `header` and behind it `data` to a buffer that lies in one region; false, and
    /// nothing done, if not.
    #[inline]
    pub(super) fn write_whole(
        &mut self,
        map: &GuestMap,
        addr: u64,
        header: Header<'_>,
        data: &[u8],
    ) -> bool {
        let len = header.len() + data.len();
        let Some(span) = map.span(&mut self.hint, addr, len) else {
            return false;
        };
        if span.len() != len {
            return false;
        }
        // Lengths known beforehand become two stores each.
        let written = match header {
            Header::Long(header) => span.write_array(header),
            Header::Short(header) => span.write_array(header),
        };
        span.skip(header.len()).write(data);
        map.mark(addr, len);
        written
    }

    /// Asks for the cache lines of a frame's first bytes at `addr`, if that is guest memory
    /// at all.
    #[inline]
    pub(super) fn prefetch(&mut self, map: &GuestMap, segment: Segment, direction: Direction) {
        let len = (segment.len as usize).min(PREFETCH_BYTES);
        if let Some(span) = map.span(&mut self.hint, segment.addr, len) {
            match direction {
                Direction::FromGuest => span.prefetch(),
                Direction::ToGuest => span.prefetch_to_write(),
            }
        }
    }

    #[cold]
    fn read_split(
        &mut self,
        map: &GuestMap,
        addr: u64,
        mut into: &mut [u8],
    ) -> Result<(), RingFault> {
        let fault = unmapped(addr, into.len());
        let mut at = Some(addr);
        while !into.is_empty() {
            let here = at.ok_or_else(|| fault.clone())?;
            let span = map
                .span(&mut self.hint, here, into.len())
                .ok_or_else(|| fault.clone())?;
            let (part, rest) = into.split_at_mut(span.len());
            span.read(part);
            at = here.checked_add(part.len() as u64);
            into = rest;
        }
        Ok(())
    }

    #[cold]
    fn write_split(&mut self, map: &GuestMap, addr: u64, mut from: &[u8]) -> Result<(), RingFault> {
        let fault = unmapped(addr, from.len());
        let mut at = Some(addr);
        while !from.is_empty() {
            let here = at.ok_or_else(|| fault.clone())?;
            let span = map
                .span(&mut self.hint, here, from.len())
                .ok_or_else(|| fault.clone())?;
            let (part, rest) = from.split_at(span.len());
            span.write(part);
            map.mark(here, part.len());
            at = here.checked_add(part.len() as u64);
            from = rest;
        }
        Ok(())
    }
}

fn unmapped(addr: u64, len: usize) -> RingFault {
    RingFault::BufferUnmapped {
        addr,
        len: len as u64,
    }
}

/// A place in a list of segments, moving forward.
#[derive(Debug)]
pub(super) struct Cursor<'s> {
    segments: &'s [Segment],
    /// Bytes of the first segment already passed; always less than its length.
    offset: u32,
}

impl<'s> Cursor<'s> {
    #[inline]
    pub(super) fn new(segments: &'s [Segment]) -> Self {
        Self {
            segments,
            offset: 0,
        }
    }

    /// The next run, at most `want` bytes long, and moves behind it. Shorter than
    /// `want` at a segment's end; `None` behind the last segment.
    #[inline]
    fn advance(&mut self, want: usize) -> Option<Result<(u64, usize), RingFault>> {
        let segment = self.segments.first()?;
        let left = segment.len - self.offset;
        let Some(addr) = segment.addr.checked_add(u64::from(self.offset)) else {
            return Some(Err(unmapped(segment.addr, segment.len as usize)));
        };
        let run = want.min(left as usize);
        if run == left as usize {
            self.segments = &self.segments[1..];
            self.offset = 0;
        } else {
            self.offset += run as u32;
        }
        Some(Ok((addr, run)))
    }

    /// Fills `into`; the caller has made sure that the segments hold that much.
    #[inline]
    pub(super) fn read(
        &mut self,
        reach: &mut Reach,
        map: &GuestMap,
        mut into: &mut [u8],
    ) -> Result<(), RingFault> {
        while !into.is_empty() {
            let Some(step) = self.advance(into.len()) else {
                return Err(unmapped(0, into.len()));
            };
            let (addr, run) = step?;
            let (part, rest) = into.split_at_mut(run);
            reach.read(map, addr, part)?;
            into = rest;
        }
        Ok(())
    }

    /// Writes all of `from`; the caller has made sure that the segments hold that much.
    #[inline]
    pub(super) fn write(
        &mut self,
        reach: &mut Reach,
        map: &GuestMap,
        mut from: &[u8],
    ) -> Result<(), RingFault> {
        while !from.is_empty() {
            let Some(step) = self.advance(from.len()) else {
                return Err(unmapped(0, from.len()));
            };
            let (addr, run) = step?;
            let (part, rest) = from.split_at(run);
            reach.write(map, addr, part)?;
            from = rest;
        }
        Ok(())
    }
}
