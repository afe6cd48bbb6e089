//! Header fields: offsets and names, and a lenient walk for frames that never get a key.
//!
//! [`parse`](super::parse()) is strict because a key must mean exactly one thing. A frame for the
//! guest may have options, extension headers or two tags and still want its checksum
//! completed or its payload cut; [`walk`] finds the L4 header of such a frame.
//!
//! *Promises*: every offset given lies inside the frame.
//! *Refuses*: what has no L4 header it can find: `None`.
//! *Caller's duty*: none; addresses and length fields are not judged here.
//! *Standard*: IEEE 802.1Q, RFC 791, RFC 8200, RFC 9293.

use super::GsoKind;
use super::key::protocol;

/// Ethernet header without tags, bytes.
pub(super) const ETHERNET: usize = 14;
/// A VLAN tag, bytes.
pub(super) const TAG: usize = 4;
/// IPv4 header without options, bytes.
pub(super) const IPV4: usize = 20;
/// IPv6 header, bytes.
pub(super) const IPV6: usize = 40;
/// TCP header without options, bytes.
pub(super) const TCP: usize = 20;
/// UDP header, bytes.
pub(super) const UDP: usize = 8;
/// SCTP common header, bytes.
pub(super) const SCTP: usize = 12;
/// ICMP echo header, bytes.
pub(super) const ECHO: usize = 8;

/// EtherTypes (IEEE 802 numbers).
pub(super) mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// The number used for stacked tags before 802.1ad.
    pub const OLD_SERVICE_VLAN: u16 = 0x9100;
}

/// TCP flags (RFC 9293 section 3.1).
pub(super) mod tcp_flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const CWR: u8 = 0x80;
}

/// IPv6 extension headers by protocol number (IANA), but ESP, which is opaque and
/// therefore treated as a protocol of its own.
pub(super) mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const NO_NEXT_HEADER: u8 = 59;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
    pub const EXPERIMENT_1: u8 = 253;
    pub const EXPERIMENT_2: u8 = 254;
}

/// Where a protocol keeps the checksum that a partial one may stand for, from its first
/// byte; `None` for a protocol whose checksum is of another kind or unknown.
#[inline]
pub(super) const fn checksum_offset(protocol: u8) -> Option<u16> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        protocol::ICMP | protocol::ICMPV6 => Some(2),
        _ => None,
    }
}

/// A big-endian 16-bit field of a header; the index is a constant below `N - 1`.
#[inline(always)]
pub(super) const fn be16<const N: usize>(header: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

/// A big-endian 32-bit field of a header; the index is a constant below `N - 3`.
#[inline(always)]
pub(super) const fn be32<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// The headers of a frame as [`walk`] found them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outline {
    /// First byte of the IP header.
    pub l3: usize,
    /// First byte of the L4 header.
    pub l4: usize,
    /// Whether IP is IPv4.
    pub ipv4: bool,
    /// The L4 protocol.
    pub protocol: u8,
}

/// Tags and extension headers walked at most; Linux too gives up on more.
const STEPS_MAX: usize = 8;

/// The EtherType behind all tags, and where its header begins.
pub(super) fn link(data: &[u8]) -> Option<(u16, usize)> {
    let mut at = ETHERNET;
    for _ in 0..STEPS_MAX {
        let kind = u16::from_be_bytes(*data.get(at - 2..at)?.first_chunk()?);
        match kind {
            ethertype::VLAN | ethertype::SERVICE_VLAN | ethertype::OLD_SERVICE_VLAN => at += TAG,
            _ => return Some((kind, at)),
        }
    }
    None
}

/// Finds the L4 header behind any tags, IPv4 options and the IPv6 extension headers that
/// may precede a whole segment; `None` for fragments and everything that is not IP.
pub(super) fn walk(data: &[u8]) -> Option<Outline> {
    let (kind, l3) = link(data)?;
    let packet = data.get(l3..)?;
    let (l4, ipv4, protocol) = match kind {
        ethertype::IPV4 => {
            let header = packet.first_chunk::<IPV4>()?;
            let len = usize::from(header[0] & 0x0f) * 4;
            let fragment = be16(header, 6) & 0x3fff != 0;
            if header[0] >> 4 != 4 || len < IPV4 || fragment {
                return None;
            }
            (l3 + len, true, header[9])
        }
        ethertype::IPV6 => {
            let header = packet.first_chunk::<IPV6>()?;
            if header[0] >> 4 != 6 {
                return None;
            }
            let (l4, protocol) = skip_extensions(data, l3 + IPV6, header[6])?;
            (l4, false, protocol)
        }
        _ => return None,
    };
    (l4 <= data.len()).then_some(Outline {
        l3,
        l4,
        ipv4,
        protocol,
    })
}

fn skip_extensions(data: &[u8], mut at: usize, mut next: u8) -> Option<(usize, u8)> {
    for _ in 0..STEPS_MAX {
        match next {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                let header = data.get(at..)?.first_chunk::<2>()?;
                next = header[0];
                at += (usize::from(header[1]) + 1) * 8;
            }
            extension::FRAGMENT => return None,
            _ => return Some((at, next)),
        }
    }
    None
}

/// The headers of a GSO frame and where its payload begins, if they are of the kind that
/// its sender says and the partial checksum is their own.
pub(super) fn walk_gso(
    data: &[u8],
    kind: GsoKind,
    start: u16,
    offset: u16,
) -> Option<(Outline, usize)> {
    let outline = walk(data)?;
    let segment = data.get(outline.l4..)?;
    let len = match (kind, outline.ipv4, outline.protocol) {
        (GsoKind::Tcp4, true, protocol::TCP) | (GsoKind::Tcp6, false, protocol::TCP) => {
            usize::from(segment.first_chunk::<TCP>()?[12] >> 4) * 4
        }
        (GsoKind::UdpL4 | GsoKind::Ufo, _, protocol::UDP) => UDP,
        _ => return None,
    };
    let least = if outline.protocol == protocol::TCP {
        TCP
    } else {
        UDP
    };
    let own = usize::from(start) == outline.l4 && checksum_offset(outline.protocol) == Some(offset);
    (own && len >= least && len <= segment.len()).then_some((outline, outline.l4 + len))
}

/// Whether a partial checksum may be completed: its field lies inside the frame, and
/// behind the addresses, which a source check has already seen.
pub(super) fn partial_is_sound(data: &[u8], start: u16, offset: u16) -> bool {
    let Some((kind, l3)) = link(data) else {
        return false;
    };
    let first = match kind {
        ethertype::IPV4 => l3 + IPV4,
        ethertype::IPV6 => l3 + IPV6,
        _ => l3,
    };
    let start = usize::from(start);
    start >= first && start + usize::from(offset) + 2 <= data.len()
}
