//! What a frame still lacks: a checksum, or being cut into wire packets.
//!
//! This is the meaning of a virtio-net header (virtio 1.2 section 5.1.6), freed of
//! its byte layout; [`super::vnet_hdr`] holds the layout. Whoever builds one has
//! checked it against the frame's length: `start + offset + 2` lies inside the
//! frame, a GSO size is not 0, and the GSO kind fits the L3 protocol.

/// The state of a frame's L4 checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checksum {
    /// The frame carries a checksum nobody vouches for: wire bytes.
    #[default]
    Unchecked,
    /// The sender's side has verified it (`VIRTIO_NET_HDR_F_DATA_VALID`).
    Valid,
    /// The field holds only the un-complemented pseudo-header sum; the sum from
    /// `start` to the frame's end is to be stored at `start + offset`
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial {
        /// First byte summed, from the frame's first byte.
        start: u16,
        /// The checksum field, from `start`.
        offset: u16,
    },
}

/// How a frame larger than the MTU is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum GsoKind {
    /// Not at all: one wire packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one size (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    UdpL4,
    /// IP fragmentation of one UDP datagram (`VIRTIO_NET_HDR_GSO_UDP`): never
    /// offered by Shunt, always for the guest.
    Ufo,
}

/// Generic segmentation offload of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gso {
    /// What is cut.
    pub kind: GsoKind,
    /// L4 payload bytes of each wire packet; not 0 unless `kind` is `None`.
    pub size: u16,
    /// Congestion Window Reduced is set in the first segment only (RFC 3168).
    pub ecn: bool,
}

/// Everything a frame's sender left to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offload {
    /// State of the L4 checksum.
    pub checksum: Checksum,
    /// Segmentation still to be done.
    pub gso: Gso,
}

/// What a peer (a guest, a tap, a vhost-user frontend) takes unfinished.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PeerOffloads {
    /// Partial checksums (`VIRTIO_NET_F_GUEST_CSUM` of a guest).
    pub checksum: bool,
    /// TCP over IPv4 segmentation.
    pub tso4: bool,
    /// TCP over IPv6 segmentation.
    pub tso6: bool,
    /// TSO frames with CWR set.
    pub ecn: bool,
    /// UDP segmentation.
    pub uso: bool,
}

impl PeerOffloads {
    /// Everything.
    pub const ALL: Self = Self {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        uso: true,
    };
}
