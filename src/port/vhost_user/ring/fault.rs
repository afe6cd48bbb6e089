//! Why a ring stopped, or did not start.
//!
//! *Promises*: each text names the value that was wrong and what helps.
//! *Refuses*: nothing; a frame that is merely bad is discarded, not a fault.
//! *Caller's duty*: report a fault once per stop ([`super::RxRing::report_fault`]).
//! *Standard*: virtio 1.2 sections 2.7 and 5.1.6.

use super::layout::RING_SIZE_MAX;

/// One of the three areas of a split virtqueue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring, written by the driver.
    Available,
    /// The used ring, written by Shunt.
    Used,
}

impl std::fmt::Display for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "descriptor table",
            Self::Available => "available ring",
            Self::Used => "used ring",
        })
    }
}

/// The first thing that was wrong with a ring. It stops that ring only, until the
/// peer starts it anew.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RingFault {
    /// Not a size of a split ring.
    #[error(
        "ring size {size} is not a power of two up to {RING_SIZE_MAX}; set another queue size in the VMM"
    )]
    Size {
        /// The size asked for, entries.
        size: u16,
    },
    /// Not a length of a virtio-net header, or 10 together with MRG_RXBUF.
    #[error("a virtio-net header of {len} bytes does not fit the features; renegotiate them")]
    HeaderLength {
        /// The length asked for, bytes.
        len: u8,
    },
    /// An area does not begin where virtio 1.2 section 2.7 demands.
    #[error("{area} at guest address {addr:#x} is not aligned to {align} bytes; reset the device")]
    Misaligned {
        /// Which area.
        area: Area,
        /// Its guest address.
        addr: u64,
        /// The alignment missed, bytes.
        align: u64,
    },
    /// An area does not lie inside one memory region.
    #[error(
        "{area} at guest address {addr:#x}, {len} bytes, is not inside one memory region; \
         reset the device, and check that the VMM shares all of the guest's memory"
    )]
    AreaUnmapped {
        /// Which area.
        area: Area,
        /// Its guest address.
        addr: u64,
        /// Its length, bytes.
        len: u64,
    },
    /// More entries became available than the ring has.
    #[error("available index went from {from} to {to} on a ring of {size}; reset the device")]
    AvailJump {
        /// The next entry to be taken.
        from: u16,
        /// The index read.
        to: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// The available ring names a descriptor that does not exist.
    #[error("chain head {head} is outside a ring of {size}; reset the device")]
    HeadOutOfRange {
        /// The head read.
        head: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A descriptor goes on at one that does not exist.
    #[error("chain {head} goes on at {next}, outside a table of {size}; reset the device")]
    NextOutOfRange {
        /// Head of the chain.
        head: u16,
        /// The `next` read.
        next: u16,
        /// Entries of the table.
        size: u32,
    },
    /// A loop, or more descriptors than Shunt walks for one buffer.
    #[error("chain {head} loops or has more than {limit} descriptors; reset the device")]
    ChainTooLong {
        /// Head of the chain.
        head: u16,
        /// Most descriptors it may have.
        limit: u32,
    },
    /// A descriptor of no bytes.
    #[error("chain {head} has a buffer of 0 bytes; reset the device")]
    EmptyBuffer {
        /// Head of the chain.
        head: u16,
    },
    /// A buffer is not, or not wholly, in the guest's memory.
    #[error(
        "{len} bytes at guest address {addr:#x} are not in the guest's memory; reset the device"
    )]
    BufferUnmapped {
        /// Guest address of the access.
        addr: u64,
        /// Its length, bytes.
        len: u64,
    },
    /// A buffer to be written among those to be read, or the other way round.
    #[error(
        "chain {head} has a device-{found} buffer in a ring of the other direction; reset the device"
    )]
    Direction {
        /// Head of the chain.
        head: u16,
        /// `readable` or `writable`.
        found: &'static str,
    },
    /// An indirect table although the feature was not negotiated.
    #[error("chain {head} has an indirect table, which was not negotiated; reset the device")]
    IndirectRefused {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect table inside another (virtio 1.2 section 2.7.5.3.1).
    #[error("chain {head} has an indirect table inside another; reset the device")]
    IndirectNested {
        /// Head of the chain.
        head: u16,
    },
    /// A descriptor that is an indirect table and goes on, too.
    #[error("chain {head} goes on behind an indirect table; reset the device")]
    IndirectNotLast {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect table whose length is 0, not a multiple of 16, or beyond the limit.
    #[error("chain {head} has an indirect table of {len} bytes; reset the device")]
    IndirectLength {
        /// Head of the chain.
        head: u16,
        /// Bytes of the table.
        len: u32,
    },
    /// A chain too short for the virtio-net header.
    #[error("chain {head} has {len} bytes, too few for a virtio-net header; reset the device")]
    HeaderMissing {
        /// Head of the chain.
        head: u16,
        /// Bytes of the chain.
        len: u64,
    },
}

/// Why regions do not make a [`super::GuestMap`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// A region of 0 bytes, or one that ends beyond the address space.
    #[error("memory region at {guest_base:#x} of {len} bytes is empty or ends beyond 64 bits")]
    Extent {
        /// Guest address.
        guest_base: u64,
        /// Bytes.
        len: u64,
    },
    /// Two regions share an address.
    #[error("memory regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Guest address of the lower one.
        first: u64,
        /// Guest address of the upper one.
        second: u64,
    },
    /// A region that cannot be both read and written.
    #[error("memory region at {guest_base:#x} is not mapped for reading and writing")]
    Protection {
        /// Guest address.
        guest_base: u64,
    },
}
