//! From a frame to its key and offsets, or to why it has none.
//!
//! *Promises*: never reads past the frame; every offset of a [`Parsed`] lies inside it;
//! two frames with the same key are the same to every flow.
//! *Refuses*: with a [`PuntReason`], what DESIGN keeps from ever having a key: group MACs,
//! non-IP, two tags or 802.1ad, group, loopback, unspecified and link-local addresses,
//! IPv4 options, fragments, IPv6 extension headers (AH among them; over IPv4 it is a
//! protocol like any other, over both families ESP is), ICMP other than echo, GRE with a
//! key or not of version 0, UFO, and lengths, versions or offload metadata that
//! contradict the frame. Where several apply, the outer header's reason is given.
//! *Caller's duty*: `offload` comes from a checked virtio-net header or is the default.
//! Whether the destination MAC is one of the vNIC's is not judged here.
//! *Standard*: IEEE 802.1Q, RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260, RFC 792,
//! RFC 4443, RFC 2784 and RFC 2890 (GRE), RFC 3927 and RFC 4291 (addresses).
//!
//! A priority tag (VLAN id 0) keys like no tag at all. IP checksums are not verified: a
//! wrong one stays wrong through the rewrite.

use super::headers::{
    self, ECHO, ETHERNET, IPV4, IPV6, SCTP, TAG, TCP, UDP, be16, be32, ethertype, extension,
    tcp_flag,
};
use super::key::protocol;
use super::{Checksum, FlowKey, GsoKind, Offload, PuntReason, VnicId};

/// Where the headers of a keyed frame lie. All offsets from the frame's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// The key.
    pub key: FlowKey,
    /// First byte of the IP header; 14, or 18 behind one 802.1Q tag.
    pub l3: u8,
    /// First byte of the L4 header.
    pub l4: u8,
    /// First byte of the L4 payload (TCP, UDP, SCTP common header, echo header; other protocols: `l4`).
    pub payload: u16,
    /// IP packet length from the IP header, bytes (Ethernet padding excluded).
    pub l3_len: u32,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The TCP flags octet; 0 for other protocols.
    pub tcp_flags: u8,
}

/// Parses a frame that came in on `ingress`; the answer is a key with offsets or why it has none.
pub fn parse(data: &[u8], offload: &Offload, ingress: VnicId) -> Result<Parsed, PuntReason> {
    parse_here(data, offload, ingress)
}

/// [`parse()`], inlined: for the loop that every frame passes.
#[inline(always)]
pub(crate) fn parse_here(
    data: &[u8],
    offload: &Offload,
    ingress: VnicId,
) -> Result<Parsed, PuntReason> {
    let Some((link, rest)) = data.split_first_chunk::<ETHERNET>() else {
        return Err(PuntReason::Malformed);
    };
    if link[0] & 1 != 0 {
        return Err(PuntReason::GroupMac);
    }
    let (kind, vlan, l3, packet) = match be16(link, 12) {
        ethertype::VLAN => {
            let Some((tag, rest)) = rest.split_first_chunk::<TAG>() else {
                return Err(PuntReason::Malformed);
            };
            (be16(tag, 2), be16(tag, 0) & 0x0fff, ETHERNET + TAG, rest)
        }
        kind => (kind, 0, ETHERNET, rest),
    };
    let parsed = match kind {
        ethertype::IPV4 => ipv4(packet, l3, vlan, ingress)?,
        ethertype::IPV6 => ipv6(packet, l3, vlan, ingress)?,
        ethertype::VLAN | ethertype::SERVICE_VLAN | ethertype::OLD_SERVICE_VLAN => {
            return Err(PuntReason::DoubleTagged);
        }
        _ => return Err(PuntReason::NonIp),
    };
    if offload.gso.kind != GsoKind::None || matches!(offload.checksum, Checksum::Partial { .. }) {
        agrees(data, offload, &parsed)?;
    }
    Ok(parsed)
}

#[inline(always)]
fn ipv4(packet: &[u8], l3: usize, vlan: u16, vnic: VnicId) -> Result<Parsed, PuntReason> {
    let Some(header) = packet.first_chunk::<IPV4>() else {
        return Err(PuntReason::Malformed);
    };
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let len = usize::from(be16(header, 2));
    if header[0] >> 4 != 4 || header_len < IPV4 || len < header_len || len > packet.len() {
        return Err(PuntReason::Malformed);
    }
    let (src, dst) = (be32(header, 12), be32(header, 16));
    if group_ipv4(src) | group_ipv4(dst) {
        return Err(PuntReason::GroupAddress);
    }
    if (src >> 16 == 0xa9fe) | (dst >> 16 == 0xa9fe) {
        return Err(PuntReason::LinkLocal);
    }
    if header_len != IPV4 {
        return Err(PuntReason::Ipv4Options);
    }
    // More Fragments, or an offset.
    if be16(header, 6) & 0x3fff != 0 {
        return Err(PuntReason::Fragment);
    }
    let l4 = Transport::read(header[9], Family::V4, packet.get(IPV4..len).unwrap_or(&[]))?;
    let ports = (l4.src_port, l4.dst_port);
    Ok(Parsed {
        key: FlowKey::of_ipv4((vnic, vlan, header[9]), (src, dst), ports),
        l3: l3 as u8,
        l4: (l3 + IPV4) as u8,
        payload: (l3 + IPV4) as u16 + l4.header_len,
        l3_len: len as u32,
        ttl: header[8],
        tcp_flags: l4.flags,
    })
}

#[inline]
fn ipv6(packet: &[u8], l3: usize, vlan: u16, vnic: VnicId) -> Result<Parsed, PuntReason> {
    let Some((header, rest)) = packet.split_first_chunk::<IPV6>() else {
        return Err(PuntReason::Malformed);
    };
    let len = usize::from(be16(header, 4));
    if header[0] >> 4 != 6 || len > rest.len() {
        return Err(PuntReason::Malformed);
    }
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    src.copy_from_slice(&header[8..24]);
    dst.copy_from_slice(&header[24..40]);
    let (from, to) = (u128::from_be_bytes(src), u128::from_be_bytes(dst));
    if group_ipv6(from) | group_ipv6(to) {
        return Err(PuntReason::GroupAddress);
    }
    if (from >> 118 == 0x3fa) | (to >> 118 == 0x3fa) {
        return Err(PuntReason::LinkLocal);
    }
    if let Some(reason) = extended(header[6]) {
        return Err(reason);
    }
    let l4 = Transport::read(header[6], Family::V6, rest.get(..len).unwrap_or(&[]))?;
    Ok(Parsed {
        key: FlowKey::from_parts(
            vnic,
            vlan,
            6,
            header[6],
            &src,
            &dst,
            l4.src_port,
            l4.dst_port,
        ),
        l3: l3 as u8,
        l4: (l3 + IPV6) as u8,
        payload: (l3 + IPV6) as u16 + l4.header_len,
        l3_len: (IPV6 + len) as u32,
        ttl: header[7],
        tcp_flags: l4.flags,
    })
}

/// Unspecified, loopback, multicast or limited broadcast. A subnet's broadcast address
/// cannot be told from the others here; the flow table has no session for it.
#[inline]
fn group_ipv4(address: u32) -> bool {
    (address == 0) | (address >> 24 == 127) | (address >> 28 == 0xe) | (address == u32::MAX)
}

/// Unspecified, loopback or multicast.
#[inline]
fn group_ipv6(address: u128) -> bool {
    (address <= 1) | (address >> 120 == 0xff)
}

/// Why an IPv6 packet with this next header has no key.
#[inline]
fn extended(next: u8) -> Option<PuntReason> {
    match next {
        extension::FRAGMENT => Some(PuntReason::Fragment),
        extension::HOP_BY_HOP
        | extension::ROUTING
        | extension::AUTHENTICATION
        | extension::NO_NEXT_HEADER
        | extension::DESTINATION
        | extension::MOBILITY
        | extension::HIP
        | extension::SHIM6
        | extension::EXPERIMENT_1
        | extension::EXPERIMENT_2 => Some(PuntReason::Ipv6Extension),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// What the L4 header adds to the key.
struct Transport {
    src_port: u16,
    dst_port: u16,
    header_len: u16,
    flags: u8,
}

impl Transport {
    /// Reads the L4 header; `segment` ends where the IP packet does.
    #[inline(always)]
    fn read(number: u8, family: Family, segment: &[u8]) -> Result<Self, PuntReason> {
        match number {
            protocol::TCP => Self::tcp(segment),
            protocol::UDP => Self::udp(segment),
            protocol::SCTP => {
                let header = segment.first_chunk::<SCTP>().ok_or(PuntReason::Malformed)?;
                Ok(Self::ports(be16(header, 0), be16(header, 2), SCTP as u16))
            }
            protocol::ICMP | protocol::ICMPV6 => Self::echo(number, family, segment),
            protocol::GRE => {
                let header = segment.first_chunk::<4>().ok_or(PuntReason::Malformed)?;
                // Key present (RFC 2890), or a version other than 0 (RFC 2637).
                if be16(header, 0) & 0x2007 != 0 {
                    return Err(PuntReason::GreKey);
                }
                Ok(Self::ports(0, 0, 0))
            }
            _ => Ok(Self::ports(0, 0, 0)),
        }
    }

    #[inline]
    fn ports(src_port: u16, dst_port: u16, header_len: u16) -> Self {
        Self {
            src_port,
            dst_port,
            header_len,
            flags: 0,
        }
    }

    #[inline]
    fn tcp(segment: &[u8]) -> Result<Self, PuntReason> {
        let header = segment.first_chunk::<TCP>().ok_or(PuntReason::Malformed)?;
        let len = usize::from(header[12] >> 4) * 4;
        if len < TCP || len > segment.len() {
            return Err(PuntReason::Malformed);
        }
        let ports = Self::ports(be16(header, 0), be16(header, 2), len as u16);
        Ok(Self {
            flags: header[13],
            ..ports
        })
    }

    /// A UDP length below the IP payload's is allowed: what follows is the surplus area
    /// of UDP options.
    #[inline]
    fn udp(segment: &[u8]) -> Result<Self, PuntReason> {
        let header = segment.first_chunk::<UDP>().ok_or(PuntReason::Malformed)?;
        let len = usize::from(be16(header, 4));
        if len < UDP || len > segment.len() {
            return Err(PuntReason::Malformed);
        }
        Ok(Self::ports(be16(header, 0), be16(header, 2), UDP as u16))
    }

    /// Echo request and reply; ICMP of the other family's number is no echo.
    #[inline]
    fn echo(number: u8, family: Family, segment: &[u8]) -> Result<Self, PuntReason> {
        let header = segment.first_chunk::<ECHO>().ok_or(PuntReason::Malformed)?;
        let echo = match (family, number) {
            (Family::V4, protocol::ICMP) => matches!(header[0], 8 | 0),
            (Family::V6, protocol::ICMPV6) => matches!(header[0], 128 | 129),
            _ => false,
        };
        if !echo || header[1] != 0 {
            return Err(PuntReason::Icmp);
        }
        Ok(Self::ports(
            be16(header, 4),
            u16::from(header[0]),
            ECHO as u16,
        ))
    }
}

/// Whether the offload metadata speaks of the packet that was parsed. A partial checksum
/// deeper inside a packet without a checksum of its own is that of a tunnel's content.
fn agrees(data: &[u8], offload: &Offload, parsed: &Parsed) -> Result<(), PuntReason> {
    if offload.gso.kind == GsoKind::Ufo {
        return Err(PuntReason::Ufo);
    }
    let number = parsed.key.protocol();
    let partial = match offload.checksum {
        Checksum::Partial { start, offset } => match headers::checksum_offset(number) {
            Some(own) => start == u16::from(parsed.l4) && offset == own,
            None => start >= u16::from(parsed.l4) && number != protocol::SCTP,
        },
        Checksum::Unchecked | Checksum::Valid => offload.gso.kind == GsoKind::None,
    };
    let kind = match offload.gso.kind {
        GsoKind::None | GsoKind::Ufo => true,
        GsoKind::Tcp4 => number == protocol::TCP && parsed.key.is_ipv4(),
        GsoKind::Tcp6 => number == protocol::TCP && !parsed.key.is_ipv4(),
        GsoKind::UdpL4 => number == protocol::UDP,
    };
    // A frame that is to be cut has no padding: its cutter would send that as payload.
    let end = usize::from(parsed.l3) + parsed.l3_len as usize;
    let whole = offload.gso.kind == GsoKind::None || (end == data.len() && offload.gso.size != 0);
    if partial && kind && whole {
        Ok(())
    } else {
        Err(PuntReason::Malformed)
    }
}

/// SCTP chunk types (RFC 9260 section 3.2).
mod chunk {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// SCTP chunks looked at. Control chunks come before DATA; a SACK before a SHUTDOWN is usual.
const CHUNKS_MAX: usize = 8;

impl Parsed {
    /// Whether the guest must see this packet of a session, whatever its state: SYN without
    /// ACK, FIN, RST, SCTP INIT/ABORT/SHUTDOWN (with SHUTDOWN ACK and COMPLETE).
    #[inline]
    pub fn control(&self, data: &[u8]) -> Option<PuntReason> {
        let flags = self.tcp_flags;
        if flags & (tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST) != 0 {
            if flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN {
                return Some(PuntReason::TcpSyn);
            }
            if flags & tcp_flag::RST != 0 {
                return Some(PuntReason::TcpRst);
            }
            if flags & tcp_flag::FIN != 0 {
                return Some(PuntReason::TcpFin);
            }
        }
        let closes = self.key.protocol() == protocol::SCTP && self.sctp_changes(data);
        closes.then_some(PuntReason::SctpControl)
    }

    /// Whether an SCTP packet opens an association: its first chunk, and then its only
    /// one, is INIT (RFC 9260 section 6.10).
    pub fn sctp_opens(&self, data: &[u8]) -> bool {
        self.key.protocol() == protocol::SCTP && self.payload(data).first() == Some(&chunk::INIT)
    }

    /// Whether an SCTP packet aborts an association: its first chunk is ABORT.
    pub fn sctp_aborts(&self, data: &[u8]) -> bool {
        self.key.protocol() == protocol::SCTP && self.payload(data).first() == Some(&chunk::ABORT)
    }

    /// Whether a control chunk before the first DATA chunk opens or ends an association.
    #[cold]
    fn sctp_changes(&self, data: &[u8]) -> bool {
        let mut rest = self.payload(data);
        for _ in 0..CHUNKS_MAX {
            let Some(head) = rest.first_chunk::<4>() else {
                return false;
            };
            match head[0] {
                chunk::INIT
                | chunk::ABORT
                | chunk::SHUTDOWN
                | chunk::SHUTDOWN_ACK
                | chunk::SHUTDOWN_COMPLETE => return true,
                chunk::DATA => return false,
                _ => {}
            }
            // Chunks are padded to four bytes; a length below the head's would not advance.
            let len = usize::from(be16(head, 2)).max(4).next_multiple_of(4);
            rest = rest.get(len..).unwrap_or(&[]);
        }
        false
    }

    /// The L4 payload, without Ethernet padding; empty if `data` is not the frame parsed.
    #[inline]
    pub fn payload<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        data.get(usize::from(self.payload)..self.end())
            .unwrap_or(&[])
    }

    /// First byte behind the IP packet.
    #[inline]
    fn end(&self) -> usize {
        usize::from(self.l3) + self.l3_len as usize
    }

    /// Bytes from the IP header to the L4 payload: what each segment of a GSO frame repeats.
    #[inline]
    fn headers_len(&self) -> u32 {
        u32::from(self.payload).saturating_sub(u32::from(self.l3))
    }

    /// Largest L3 packet on the wire, bytes: `l3_len`, or headers plus GSO size for a GSO frame.
    #[inline]
    pub fn wire_l3_max(&self, offload: &Offload) -> u32 {
        match offload.gso.kind {
            GsoKind::None => self.l3_len,
            _ => self
                .l3_len
                .min(self.headers_len() + u32::from(offload.gso.size)),
        }
    }

    /// Wire packets and their L3 bytes in total (a GSO frame counts its segments and each segment's headers).
    #[inline]
    pub fn wire_count(&self, offload: &Offload) -> (u64, u64) {
        let bytes = u64::from(self.l3_len);
        if offload.gso.kind == GsoKind::None || offload.gso.size == 0 {
            return (1, bytes);
        }
        let headers = self.headers_len();
        let payload = self.l3_len.saturating_sub(headers);
        let packets = u64::from(payload.div_ceil(u32::from(offload.gso.size)).max(1));
        (packets, bytes + (packets - 1) * u64::from(headers))
    }

    /// (sequence number, acknowledgement number, window) of a TCP segment.
    #[inline]
    pub fn tcp_position(&self, data: &[u8]) -> Option<(u32, u32, u16)> {
        if self.key.protocol() != protocol::TCP {
            return None;
        }
        let header = data.get(usize::from(self.l4)..)?.first_chunk::<TCP>()?;
        Some((be32(header, 4), be32(header, 8), be16(header, 14)))
    }
}

#[cfg(test)]
mod tests;
