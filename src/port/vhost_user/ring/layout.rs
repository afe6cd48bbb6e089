//! The byte layout of a split virtqueue and what a ring is started with.
//!
//! *Promises*: offsets and sizes of the three areas for any legal ring size.
//! *Refuses*: sizes and header lengths no split virtqueue has ([`RingFault`]).
//! *Caller's duty*: addresses in a [`RingConfig`] are guest-physical.
//! *Standard*: virtio 1.2 sections 2.7 and 5.1.6.

use super::fault::RingFault;

/// The largest split ring (virtio 1.2 section 2.7).
pub const RING_SIZE_MAX: u16 = 32_768;

/// Bytes of one descriptor.
pub(super) const DESCRIPTOR_SIZE: usize = 16;
/// Bytes of one used entry: id and length.
pub(super) const USED_ENTRY_SIZE: usize = 8;
/// Where the entries of the available and of the used ring begin.
pub(super) const ENTRIES_OFFSET: usize = 4;
/// Where the index of the available and of the used ring lies; flags lie at 0.
pub(super) const INDEX_OFFSET: usize = 2;

/// Alignment of the descriptor table, bytes (virtio 1.2 section 2.7).
pub(super) const DESC_ALIGN: u64 = 16;
/// Alignment of the available ring, bytes.
pub(super) const AVAIL_ALIGN: u64 = 2;
/// Alignment of the used ring, bytes.
pub(super) const USED_ALIGN: u64 = 4;

/// The chain goes on at `next`.
pub(super) const DESC_NEXT: u16 = 1;
/// The device writes this buffer; otherwise it reads it.
pub(super) const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const DESC_INDIRECT: u16 = 4;

/// The longest virtio-net header: with `num_buffers`.
pub(super) const HEADER_MAX: usize = 12;
/// The header without `num_buffers`: neither VERSION_1 nor MRG_RXBUF.
pub(super) const HEADER_SHORT: usize = 10;

/// What was negotiated for one ring, and where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingConfig {
    /// Entries: a power of two up to [`RING_SIZE_MAX`].
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// `VIRTIO_RING_F_EVENT_IDX`.
    pub event_idx: bool,
    /// `VIRTIO_RING_F_INDIRECT_DESC`.
    pub indirect: bool,
    /// `VIRTIO_F_IN_ORDER`. Buffers are completed in order, one used entry each,
    /// whether it was negotiated or not; both kinds of driver understand that.
    pub in_order: bool,
    /// `VIRTIO_NET_F_MRG_RXBUF`; needs the header of 12 bytes.
    pub mrg_rxbuf: bool,
    /// Bytes of the virtio-net header: 12 with VERSION_1 or MRG_RXBUF, else 10.
    pub header_len: u8,
    /// The first entry of the available ring not yet taken.
    pub next_avail: u16,
    /// The next used entry to be written; equals `next_avail` unless a peer says
    /// otherwise, since nothing is in flight between bursts.
    pub used_idx: u16,
}

impl RingConfig {
    /// Checks what does not depend on memory.
    pub(super) fn check(&self) -> Result<(), RingFault> {
        if !self.size.is_power_of_two() || self.size > RING_SIZE_MAX {
            return Err(RingFault::Size { size: self.size });
        }
        let shortest = if self.mrg_rxbuf {
            HEADER_MAX
        } else {
            HEADER_SHORT
        };
        match usize::from(self.header_len) {
            HEADER_MAX => Ok(()),
            HEADER_SHORT if shortest == HEADER_SHORT => Ok(()),
            _ => Err(RingFault::HeaderLength {
                len: self.header_len,
            }),
        }
    }

    /// Bytes of the descriptor table.
    pub(super) fn desc_bytes(&self) -> usize {
        usize::from(self.size) * DESCRIPTOR_SIZE
    }

    /// Bytes of the available ring; `used_event` stands behind the entries.
    pub(super) fn avail_bytes(&self) -> usize {
        ENTRIES_OFFSET + usize::from(self.size) * 2 + self.event_bytes()
    }

    /// Bytes of the used ring; `avail_event` stands behind the entries.
    pub(super) fn used_bytes(&self) -> usize {
        ENTRIES_OFFSET + usize::from(self.size) * USED_ENTRY_SIZE + self.event_bytes()
    }

    fn event_bytes(&self) -> usize {
        if self.event_idx { 2 } else { 0 }
    }
}

/// A private copy of one descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// From the two little-endian words of the table.
    #[inline]
    pub(super) fn from_words(first: u64, second: u64) -> Self {
        let second = u64::from_le(second);
        Self {
            addr: u64::from_le(first),
            len: second as u32,
            flags: (second >> 32) as u16,
            next: (second >> 48) as u16,
        }
    }

    /// From the bytes of an indirect table, which need not be aligned.
    #[inline]
    pub(super) fn from_bytes(bytes: [u8; DESCRIPTOR_SIZE]) -> Self {
        let both = u128::from_le_bytes(bytes);
        let (first, second) = (both as u64, (both >> 64) as u64);
        Self::from_words(first.to_le(), second.to_le())
    }

    #[inline]
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// One used entry as it lies in memory: id in the low half, length in the high one.
#[inline]
pub(super) fn used_entry(head: u16, written: u32) -> u64 {
    (u64::from(head) | u64::from(written) << 32).to_le()
}
