//! Walks descriptor chains over private copies.
//!
//! *Promises*: every head and every descriptor is read once; what was read is what
//! is checked and used. Each walk ends: it is bounded by the table walked and by
//! [`SEGMENTS_MAX`]. Any split of header and frame over descriptors is accepted.
//! *Refuses*, with the [`RingFault`]: indexes outside the table, loops, buffers of
//! 0 bytes or of the other direction, nested, continued, odd-sized, empty or
//! not-negotiated indirect tables.
//! *Caller's duty*: addresses in segments are not checked here; [`super::memory`]
//! checks them when they are used.
//! *Standard*: virtio 1.2 sections 2.7.4, 2.7.5 and 2.7.5.3.

use super::fault::RingFault;
use super::layout::{
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DESCRIPTOR_SIZE, Descriptor, RingConfig,
};
use super::memory::{Reach, Segment};
use super::raw::Areas;

/// Most descriptors walked for one frame. QEMU, too, takes no more than 1024
/// (`VIRTQUEUE_MAX_SIZE`); without a limit a ring of 32,768 one-byte buffers would
/// keep a worker busy for one frame.
pub(super) const SEGMENTS_MAX: usize = 1024;

/// Heads read ahead at most: a burst.
const AHEAD: usize = crate::packet::Burst::FRAMES_MAX;

/// How many chains ahead the first buffer is prefetched.
const PREFETCH_DISTANCE: u16 = 8;

/// One entry of the available ring and the first descriptor of its chain, as copies.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    pub(super) head: u16,
    first: Descriptor,
}

impl Entry {
    /// The chain's only buffer, if it is one and as the ring's direction asks for. `None` says
    /// nothing against the chain.
    #[inline]
    pub(super) fn alone(&self, direction: Direction) -> Option<Segment> {
        let wanted = match direction {
            Direction::FromGuest => 0,
            Direction::ToGuest => DESC_WRITE,
        };
        let flags = self.first.flags & (DESC_NEXT | DESC_INDIRECT | DESC_WRITE);
        (flags == wanted && self.first.len != 0).then_some(self.buffer())
    }

    /// The first descriptor's buffer, or indirect table.
    #[inline]
    fn buffer(&self) -> Segment {
        Segment {
            addr: self.first.addr,
            len: self.first.len,
        }
    }
}

/// Entries read ahead, so that loads from the guest's caches overlap. An entry stays
/// here until it is taken, also between bursts: it is read once.
#[derive(Debug)]
pub(super) struct Ahead {
    entries: Box<[Entry; AHEAD]>,
    /// Available index of the first entry.
    base: u16,
    len: u16,
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self {
            entries: Box::new([Entry::default(); AHEAD]),
            base: 0,
            len: 0,
        }
    }

    /// The entry at available index `index`; `until` is the driver's index, not equal
    /// to `index`.
    #[inline]
    pub(super) fn get(
        &mut self,
        areas: &Areas,
        reach: &mut Reach,
        config: &RingConfig,
        direction: Direction,
        index: u16,
        until: u16,
    ) -> Result<Entry, RingFault> {
        let mut place = index.wrapping_sub(self.base);
        if place >= self.len {
            self.refill(areas, config, index, until)?;
            place = 0;
            for entry in &self.entries[..usize::from(self.len.min(PREFETCH_DISTANCE))] {
                reach.prefetch(areas.map(), entry.buffer(), direction);
            }
        }
        let later = place + PREFETCH_DISTANCE;
        if later < self.len {
            let entry = &self.entries[usize::from(later) % AHEAD];
            reach.prefetch(areas.map(), entry.buffer(), direction);
        }
        Ok(self.entries[usize::from(place) % AHEAD])
    }

    /// Reads entries from `index` on, up to the first bad head; that one is a fault only
    /// once it is at the front.
    fn refill(
        &mut self,
        areas: &Areas,
        config: &RingConfig,
        index: u16,
        until: u16,
    ) -> Result<(), RingFault> {
        self.base = index;
        self.len = 0;
        let count = usize::from(until.wrapping_sub(index)).clamp(1, AHEAD);
        for (entry, index) in self.entries[..count].iter_mut().zip(0..) {
            let head = areas.head(self.base.wrapping_add(index));
            if head >= config.size {
                if index > 0 {
                    break;
                }
                let size = config.size;
                return Err(RingFault::HeadOutOfRange { head, size });
            }
            *entry = Entry {
                head,
                first: areas.descriptor(head),
            };
            self.len += 1;
        }
        Ok(())
    }
}

/// Which way the buffers of a ring go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    /// The guest transmits: buffers are readable.
    FromGuest,
    /// The guest receives: buffers are writable.
    ToGuest,
}

/// The buffers of one frame, in order.
#[derive(Debug)]
pub(super) struct Segments {
    list: Vec<Segment>,
    bytes: u64,
}

impl Segments {
    /// The only place that allocates.
    pub(super) fn new() -> Self {
        Self {
            list: Vec::with_capacity(SEGMENTS_MAX),
            bytes: 0,
        }
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    #[inline]
    pub(super) fn list(&self) -> &[Segment] {
        &self.list
    }

    /// Bytes of all of them.
    #[inline]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.list.len() >= SEGMENTS_MAX
    }
}

/// One walk: what it may use, and what it collects.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) areas: &'a Areas,
    pub(super) reach: &'a mut Reach,
    pub(super) config: &'a RingConfig,
    pub(super) direction: Direction,
    pub(super) segments: &'a mut Segments,
}

impl Walk<'_> {
    /// Appends the chain's buffers until there are `enough` bytes in all, the chain
    /// ends, or [`SEGMENTS_MAX`] is reached.
    #[inline]
    pub(super) fn gather(&mut self, entry: &Entry, enough: u64) -> Result<(), RingFault> {
        let head = entry.head;
        let first = entry.first;
        if first.flags & (DESC_NEXT | DESC_INDIRECT) == 0 {
            return self.append(head, &first);
        }
        self.walk_table(head, first, enough)
    }

    fn walk_table(&mut self, head: u16, first: Descriptor, enough: u64) -> Result<(), RingFault> {
        let size = self.config.size;
        let alone = self.segments.list.is_empty();
        let mut descriptor = first;
        // A chain that visits more descriptors than the table has, visits one twice.
        for _ in 0..size {
            if descriptor.has(DESC_INDIRECT) {
                return self.walk_indirect(head, &descriptor, enough, alone);
            }
            self.append(head, &descriptor)?;
            if !descriptor.has(DESC_NEXT) || self.segments.bytes >= enough {
                return Ok(());
            }
            if self.segments.is_full() {
                return full(head, alone);
            }
            let next = descriptor.next;
            if next >= size {
                let size = u32::from(size);
                return Err(RingFault::NextOutOfRange { head, next, size });
            }
            descriptor = self.areas.descriptor(next);
        }
        let limit = u32::from(size);
        Err(RingFault::ChainTooLong { head, limit })
    }

    fn walk_indirect(
        &mut self,
        head: u16,
        table: &Descriptor,
        enough: u64,
        alone: bool,
    ) -> Result<(), RingFault> {
        if !self.config.indirect {
            return Err(RingFault::IndirectRefused { head });
        }
        if table.has(DESC_NEXT) {
            return Err(RingFault::IndirectNotLast { head });
        }
        let len = table.len;
        let count = len / DESCRIPTOR_SIZE as u32;
        if count == 0 || !len.is_multiple_of(DESCRIPTOR_SIZE as u32) || count > 1 << 16 {
            return Err(RingFault::IndirectLength { head, len });
        }
        let mut next = 0u16;
        for _ in 0..count {
            let descriptor = self.indirect(table, next)?;
            if descriptor.has(DESC_INDIRECT) {
                return Err(RingFault::IndirectNested { head });
            }
            self.append(head, &descriptor)?;
            if !descriptor.has(DESC_NEXT) || self.segments.bytes >= enough {
                return Ok(());
            }
            if self.segments.is_full() {
                return full(head, alone);
            }
            next = descriptor.next;
            if u32::from(next) >= count {
                let size = count;
                return Err(RingFault::NextOutOfRange { head, next, size });
            }
        }
        Err(RingFault::ChainTooLong { head, limit: count })
    }

    /// A copy of an indirect table's descriptor; tables need no alignment and may cross
    /// into an adjacent region.
    fn indirect(&mut self, table: &Descriptor, index: u16) -> Result<Descriptor, RingFault> {
        let offset = u64::from(index) * DESCRIPTOR_SIZE as u64;
        let addr = table
            .addr
            .checked_add(offset)
            .ok_or(RingFault::BufferUnmapped {
                addr: table.addr,
                len: u64::from(table.len),
            })?;
        let mut bytes = [0; DESCRIPTOR_SIZE];
        self.reach.read(self.areas.map(), addr, &mut bytes)?;
        Ok(Descriptor::from_bytes(bytes))
    }

    #[inline]
    fn append(&mut self, head: u16, descriptor: &Descriptor) -> Result<(), RingFault> {
        let writable = descriptor.has(DESC_WRITE);
        if writable != (self.direction == Direction::ToGuest) {
            let found = if writable { "writable" } else { "readable" };
            return Err(RingFault::Direction { head, found });
        }
        if descriptor.len == 0 {
            return Err(RingFault::EmptyBuffer { head });
        }
        if !self.segments.is_full() {
            self.segments.list.push(Segment {
                addr: descriptor.addr,
                len: descriptor.len,
            });
            self.segments.bytes += u64::from(descriptor.len);
        }
        Ok(())
    }
}

/// No more segments are kept: that is the chain's fault only if it filled them `alone`.
/// Otherwise the frame has met more small buffers than it may use.
#[cold]
fn full(head: u16, alone: bool) -> Result<(), RingFault> {
    if alone {
        let limit = SEGMENTS_MAX as u32;
        return Err(RingFault::ChainTooLong { head, limit });
    }
    Ok(())
}
