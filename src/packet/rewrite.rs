//! Rewriting a frame in place, with checksum differences prepared once per flow.
//!
//! *Promises*: a checksum that was right equals a full recomputation afterwards; a wrong
//! one stays wrong by the same difference (RFC 1624). ECN bits, the IPv6 flow label, PCP
//! and DEI are kept. A complete UDP checksum of 0 (none) stays 0, and a computed 0 becomes
//! 0xffff. A partial checksum is an un-complemented pseudo-header sum: addresses enter it,
//! ports never, and VLAN push and pop move its start. Nothing outside the fields named is
//! written; the payload, Ethernet padding and neighbouring frames survive.
//! *Refuses*: [`InvalidRewrite`] when prepared: another family or protocol, ports where there
//! are none or where they would need a CRC32c (SCTP), addresses under a checksum that is
//! not understood. [`Rewrite::apply`] answers false, and changes nothing, for a frame that
//! is not the one parsed or has no headroom left for a tag.
//! *Caller's duty*: the frame's key is the `from` of [`Rewrite::new`]; a TTL that would
//! expire is punted before.
//! *Standard*: RFC 1624, RFC 768, RFC 2474 (DSCP), RFC 3168 (ECN), IEEE 802.1Q,
//! virtio 1.2 section 5.1.6.

use std::net::IpAddr;

use super::headers::{ECHO, ETHERNET, IPV4, IPV6, TAG, TCP, UDP, be16, ethertype};
use super::key::protocol;
use super::parse::Parsed;
use super::{Checksum, FlowKey, FrameMut, MacAddr, VlanId, checksum};

/// What becomes of a flow's packets, prepared once: target addresses and ports, VLAN, TTL, DSCP, and the
/// checksum differences that follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite {
    /// Source, then destination; of IPv4 the first eight bytes.
    addresses: [u8; 32],
    /// Source and destination port, or the echo identifier and zero.
    ports: [u8; 4],
    /// Bits of the IP header's first 16 that DSCP replaces, and by what.
    dscp_mask: u16,
    dscp_bits: u16,
    /// Change of the sum over the addresses.
    ip_delta: u16,
    /// Change of the sum that a complete L4 checksum covers.
    l4_delta: u16,
    /// Change of the pseudo-header's sum.
    partial_delta: u16,
    /// Egress VLAN, 0 for none.
    vlan: u16,
    /// How much TTL or hop limit shrinks: 0 or 1.
    ttl: u8,
    ipv4: bool,
    transport: Transport,
}

/// What a rewrite does besides addresses and ports: much the same for all flows of an element,
/// so a table keeps it once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Action {
    dscp_mask: u16,
    dscp_bits: u16,
    vlan: u16,
    ttl: u8,
    ipv4: bool,
    transport: Transport,
}

impl Action {
    /// Whether TTL or hop limit is decremented.
    #[inline]
    pub fn decrements_ttl(&self) -> bool {
        self.ttl != 0
    }

    /// The DSCP that is set, if one is.
    pub fn dscp(&self) -> Option<u8> {
        let shift = if self.ipv4 { 2 } else { 6 };
        (self.dscp_mask != 0).then_some((self.dscp_bits >> shift) as u8)
    }
}

/// Which L4 fields change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Transport {
    Untouched,
    Tcp,
    Udp,
    Echo,
}

/// Why a rewrite cannot be prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidRewrite {
    /// IPv4 into IPv6 or the reverse, or a tuple of both.
    #[error("IPv4 and IPv6 cannot be translated into each other: give all addresses in one family")]
    MixedFamilies,
    /// Another protocol after the rewrite.
    #[error("protocol {from} cannot become protocol {to}: leave the protocol as matched")]
    ProtocolChange {
        /// IP protocol number matched.
        from: u8,
        /// IP protocol number asked for.
        to: u8,
    },
    /// An echo request is to become a reply or the reverse.
    #[error("an ICMP echo of type {from} cannot become type {to}: leave the type as matched")]
    EchoTypeChange {
        /// ICMP type matched.
        from: u16,
        /// ICMP type asked for.
        to: u16,
    },
    /// SCTP port translation.
    #[error(
        "SCTP ports cannot be translated here, since the CRC32c over the packet would have to be \
         recomputed: translate SCTP addresses only, or leave the session to the guest"
    )]
    SctpPorts,
    /// Ports for a protocol that has none.
    #[error("protocol {0} has no ports: leave them out")]
    Portless(u8),
    /// The protocol protects the addresses in a way that is not understood.
    #[error(
        "addresses of protocol {0} cannot be translated, since it protects them by a checksum of \
         its own: forward it untranslated, or leave the session to the guest"
    )]
    AddressesProtected(u8),
    /// A DSCP above 63.
    #[error("{0} is not a DSCP: give a number from 0 to 63, or leave it out to keep the packet's")]
    Dscp(u8),
    /// An egress VLAN id above 4094.
    #[error("{0} is not a VLAN id: give a number from 1 to 4094, or leave it out for untagged")]
    Vlan(u16),
}

/// Protocols whose checksum or signature covers the addresses, besides those understood here.
const fn protects_addresses(number: u8, ipv4: bool) -> bool {
    const DCCP: u8 = 33;
    const AUTHENTICATION: u8 = 51;
    const OSPF: u8 = 89;
    const PIM: u8 = 103;
    const VRRP: u8 = 112;
    const UDP_LITE: u8 = 136;
    matches!(number, DCCP | AUTHENTICATION | VRRP | UDP_LITE)
        || (!ipv4 && matches!(number, OSPF | PIM))
}

fn octets(from: IpAddr, to: IpAddr) -> [u8; 32] {
    let mut bytes = [0; 32];
    match (from, to) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes[..4].copy_from_slice(&src.octets());
            bytes[4..8].copy_from_slice(&dst.octets());
        }
        (src, dst) => {
            let wide = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            bytes[..16].copy_from_slice(&wide(src));
            bytes[16..].copy_from_slice(&wide(dst));
        }
    }
    bytes
}

/// Whether both keys are of one family; the low byte of a key's first word is its IP
/// version, 0 for a tuple of both.
fn same_family(from: &FlowKey, to: &FlowKey) -> bool {
    let version = |key: &FlowKey| key.words()[0] as u8;
    version(from) == version(to) && matches!(version(from), 4 | 6)
}

impl Rewrite {
    /// Prepares the rewrite of packets with key `from` into packets with the key `to` (its vNIC is ignored; its VLAN is the
    /// egress VLAN).
    pub fn new(
        from: &FlowKey,
        to: &FlowKey,
        decrement_ttl: bool,
        dscp: Option<u8>,
    ) -> Result<Self, InvalidRewrite> {
        if !same_family(from, to) {
            return Err(InvalidRewrite::MixedFamilies);
        }
        if to.vlan() != 0 && VlanId::try_from(to.vlan()).is_err() {
            return Err(InvalidRewrite::Vlan(to.vlan()));
        }
        let ipv4 = from.is_ipv4();
        let (old, new) = (from.tuple(), to.tuple());
        let (old_addresses, addresses) = (octets(old.src, old.dst), octets(new.src, new.dst));
        let moved = old_addresses != addresses;
        let changed = moved || (old.src_port, old.dst_port) != (new.src_port, new.dst_port);
        let transport = transport(from, to, moved)?;
        let (dscp_mask, dscp_bits) = match (dscp, ipv4) {
            (None, _) => (0, 0),
            (Some(dscp @ 64..), _) => return Err(InvalidRewrite::Dscp(dscp)),
            (Some(dscp), true) => (0x00fc, u16::from(dscp) << 2),
            (Some(dscp), false) => (0x0fc0, u16::from(dscp) << 6),
        };
        let (old_ports, ports) = (wire_ports(&old), wire_ports(&new));
        let ip_delta = checksum::difference(&old_addresses, &addresses);
        // ICMP over IPv4 has no pseudo-header: a partial checksum's field is left alone.
        let partial_delta = if new.protocol == protocol::ICMP {
            0
        } else {
            ip_delta
        };
        Ok(Self {
            addresses,
            ports,
            dscp_mask,
            dscp_bits,
            ip_delta,
            l4_delta: checksum::add(partial_delta, checksum::difference(&old_ports, &ports)),
            partial_delta,
            vlan: to.vlan(),
            ttl: u8::from(decrement_ttl),
            ipv4,
            transport: if changed {
                transport
            } else {
                Transport::Untouched
            },
        })
    }

    /// All of it but addresses, ports, and what follows from these.
    pub fn action(&self) -> Action {
        Action {
            dscp_mask: self.dscp_mask,
            dscp_bits: self.dscp_bits,
            vlan: self.vlan,
            ttl: self.ttl,
            ipv4: self.ipv4,
            transport: self.transport,
        }
    }

    /// The rewrite that [`Rewrite::new`] prepared, from its `action` and the same two keys.
    #[inline]
    pub fn of_action(action: &Action, from: &FlowKey, to: &FlowKey) -> Self {
        let (old, new) = (from.words(), to.words());
        let mut addresses = [0; 32];
        let words = if action.ipv4 {
            let both = new[1] | new[3] >> 32;
            addresses[..8].copy_from_slice(&both.to_be_bytes());
            [1, 3].as_slice()
        } else {
            for (bytes, word) in addresses.chunks_exact_mut(8).zip(&new[1..5]) {
                bytes.copy_from_slice(&word.to_be_bytes());
            }
            [1, 2, 3, 4].as_slice()
        };
        let halves = |word: u64| (word >> 32) + (word & 0xffff_ffff);
        let moved = words
            .iter()
            .map(|&place| halves(!old[place]) + halves(new[place]))
            .sum();
        let icmp = from.protocol() == protocol::ICMP;
        // The second "port" of an echo is its type, which is no part of a rewrite.
        let echo = icmp || from.protocol() == protocol::ICMPV6;
        let kept = if echo { 0xffff_0000 } else { 0xffff_ffff };
        let (old_ports, ports) = (old[5] & kept, new[5] & kept);
        let ip_delta = never_zero(checksum::fold(moved));
        let port_delta = never_zero(checksum::fold((!old_ports & 0xffff_ffff) + ports));
        let partial_delta = if icmp { 0 } else { ip_delta };
        Self {
            addresses,
            ports: (ports as u32).to_be_bytes(),
            dscp_mask: action.dscp_mask,
            dscp_bits: action.dscp_bits,
            ip_delta,
            l4_delta: checksum::add(partial_delta, port_delta),
            partial_delta,
            vlan: action.vlan,
            ttl: action.ttl,
            ipv4: action.ipv4,
            transport: action.transport,
        }
    }

    /// Whether TTL or hop limit is decremented.
    #[inline]
    pub fn decrements_ttl(&self) -> bool {
        self.ttl != 0
    }

    /// The egress VLAN.
    #[inline]
    pub fn vlan(&self) -> Option<VlanId> {
        VlanId::try_from(self.vlan).ok()
    }

    /// Whether a frame that carries the `to` key is what this rewrite makes, as far as its
    /// key does not say: it has the DSCP asked for, if one is.
    #[inline]
    pub fn matches(&self, data: &[u8], parsed: &Parsed) -> bool {
        let head = data
            .get(usize::from(parsed.l3)..)
            .and_then(|packet| packet.first_chunk::<2>());
        head.is_some_and(|head| be16(head, 0) & self.dscp_mask == self.dscp_bits)
    }

    /// Rewrites a frame in place. `parsed` must be of this frame and its key the `from` of [`Rewrite::new`].
    /// A tag that the egress VLAN does not want is popped, a priority tag too; a pushed one
    /// has PCP 0. False, and no change, when that cannot be.
    #[inline]
    pub fn apply(
        &self,
        frame: &mut FrameMut<'_>,
        parsed: &Parsed,
        dst_mac: MacAddr,
        src_mac: MacAddr,
    ) -> bool {
        let l3 = usize::from(parsed.l3);
        let reach = l3
            + if self.ipv4 { IPV4 } else { IPV6 }
            + match self.transport {
                Transport::Untouched => 0,
                Transport::Tcp => TCP,
                Transport::Udp => UDP,
                Transport::Echo => ECHO,
            };
        if frame.data().len() < reach || parsed.key.is_ipv4() != self.ipv4 {
            return false;
        }
        let partial = matches!(frame.offload().checksum, Checksum::Partial { .. });
        let Some(l3) = self.retag(frame, l3) else {
            return false;
        };
        let data = frame.data();
        // What `reach` has checked; shifting by a tag moves both.
        let Some((link, packet)) = data.split_at_mut_checked(l3) else {
            return false;
        };
        if let Some(macs) = link.first_chunk_mut::<12>() {
            macs[..6].copy_from_slice(&dst_mac.0);
            macs[6..].copy_from_slice(&src_mac.0);
        }
        let l3_len = parsed.l3_len as usize;
        if self.ipv4 {
            if let Some((header, rest)) = packet.split_first_chunk_mut::<IPV4>() {
                self.ipv4(header);
                self.transport(rest, l3_len.saturating_sub(IPV4), partial);
            }
        } else if let Some((header, rest)) = packet.split_first_chunk_mut::<IPV6>() {
            self.ipv6(header);
            self.transport(rest, l3_len.saturating_sub(IPV6), partial);
        }
        true
    }

    /// Gives the frame the egress VLAN and says where the IP header is then.
    #[inline]
    fn retag(&self, frame: &mut FrameMut<'_>, l3: usize) -> Option<usize> {
        match (l3, self.vlan) {
            (ETHERNET, 0) => Some(l3),
            (ETHERNET, vlan) => {
                let start = match frame.offload().checksum {
                    Checksum::Partial { start, .. } => Some(start.checked_add(TAG as u16)?),
                    _ => None,
                };
                if !frame.grow_front(TAG) {
                    return None;
                }
                move_start(frame, start);
                let tag = frame.data().get_mut(12..16)?;
                tag[..2].copy_from_slice(&ethertype::VLAN.to_be_bytes());
                tag[2..].copy_from_slice(&vlan.to_be_bytes());
                Some(l3 + TAG)
            }
            (18, 0) => {
                let start = match frame.offload().checksum {
                    Checksum::Partial { start, .. } => Some(start.checked_sub(TAG as u16)?),
                    _ => None,
                };
                if !frame.shrink_front(TAG) {
                    return None;
                }
                move_start(frame, start);
                Some(ETHERNET)
            }
            (18, vlan) => {
                let tci = frame.data().get_mut(14..16)?.first_chunk_mut::<2>()?;
                // PCP and DEI are the packet's own.
                *tci = (u16::from_be_bytes(*tci) & 0xf000 | vlan).to_be_bytes();
                Some(l3)
            }
            _ => None,
        }
    }

    #[inline]
    fn ipv4(&self, header: &mut [u8; IPV4]) {
        let (head, life) = (be16(header, 0), be16(header, 8));
        let new_head = head & !self.dscp_mask | self.dscp_bits;
        header[8] = header[8].saturating_sub(self.ttl);
        let new_life = be16(header, 8);
        header[..2].copy_from_slice(&new_head.to_be_bytes());
        header[12..20].copy_from_slice(&self.addresses[..8]);
        let sum = u64::from(!be16(header, 10))
            + u64::from(!head)
            + u64::from(new_head)
            + u64::from(!life)
            + u64::from(new_life)
            + u64::from(self.ip_delta);
        header[10..12].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
    }

    #[inline]
    fn ipv6(&self, header: &mut [u8; IPV6]) {
        let head = be16(header, 0) & !self.dscp_mask | self.dscp_bits;
        header[..2].copy_from_slice(&head.to_be_bytes());
        header[7] = header[7].saturating_sub(self.ttl);
        header[8..40].copy_from_slice(&self.addresses);
    }

    /// Ports or identifier, and the checksum; `len` is the segment's, without padding.
    #[inline]
    fn transport(&self, segment: &mut [u8], len: usize, partial: bool) {
        match self.transport {
            Transport::Untouched => {}
            Transport::Tcp => {
                if let Some(header) = segment.first_chunk_mut::<TCP>() {
                    header[..4].copy_from_slice(&self.ports);
                    let check = self.refresh(be16(header, 16), partial);
                    header[16..18].copy_from_slice(&check.to_be_bytes());
                }
            }
            Transport::Udp => {
                if let Some(header) = segment.first_chunk_mut::<UDP>() {
                    header[..4].copy_from_slice(&self.ports);
                    let check = match be16(header, 6) {
                        0 if !partial => 0,
                        old => match self.refresh(old, partial) {
                            0 => 0xffff,
                            check => check,
                        },
                    };
                    header[6..8].copy_from_slice(&check.to_be_bytes());
                }
            }
            Transport::Echo => self.echo(segment, len, partial),
        }
    }

    #[inline]
    fn echo(&self, segment: &mut [u8], len: usize, partial: bool) {
        let Some(header) = segment.first_chunk_mut::<ECHO>() else {
            return;
        };
        header[4..6].copy_from_slice(&self.ports[..2]);
        let check = self.refresh(be16(header, 2), partial);
        header[2..4].copy_from_slice(&check.to_be_bytes());
        // The one message whose words can all be zero: its right checksum is the other zero.
        if check == 0 && !partial && header[0] == 0 {
            let whole = segment.get(..len).unwrap_or(&[]);
            if whole.iter().all(|byte| *byte == 0) {
                segment[2..4].fill(0xff);
            }
        }
    }

    #[inline]
    fn refresh(&self, check: u16, partial: bool) -> u16 {
        if partial {
            checksum::add(check, self.partial_delta)
        } else {
            checksum::update(check, self.l4_delta)
        }
    }
}

/// A difference as [`checksum::difference`] writes it.
#[inline]
fn never_zero(difference: u16) -> u16 {
    match difference {
        0 => 0xffff,
        delta => delta,
    }
}

#[inline]
fn move_start(frame: &mut FrameMut<'_>, to: Option<u16>) {
    if let (Some(to), Checksum::Partial { start, .. }) = (to, &mut frame.offload().checksum) {
        *start = to;
    }
}

/// The bytes of ports on the wire that a rewrite may change; an echo's type is not among them.
fn wire_ports(tuple: &super::Tuple) -> [u8; 4] {
    let [a, b] = tuple.src_port.to_be_bytes();
    let [c, d] = match tuple.protocol {
        protocol::ICMP | protocol::ICMPV6 => [0, 0],
        _ => tuple.dst_port.to_be_bytes(),
    };
    [a, b, c, d]
}

/// Which L4 fields a rewrite touches, if it may.
fn transport(from: &FlowKey, to: &FlowKey, moved: bool) -> Result<Transport, InvalidRewrite> {
    let (old, new) = (from.tuple(), to.tuple());
    let number = old.protocol;
    if number != new.protocol {
        return Err(InvalidRewrite::ProtocolChange {
            from: number,
            to: new.protocol,
        });
    }
    match (number, from.is_ipv4()) {
        (protocol::TCP, _) => Ok(Transport::Tcp),
        (protocol::UDP, _) => Ok(Transport::Udp),
        (protocol::ICMP, true) | (protocol::ICMPV6, false) => {
            if old.dst_port == new.dst_port {
                Ok(Transport::Echo)
            } else {
                Err(InvalidRewrite::EchoTypeChange {
                    from: old.dst_port,
                    to: new.dst_port,
                })
            }
        }
        (protocol::SCTP, _) => {
            if (old.src_port, old.dst_port) == (new.src_port, new.dst_port) {
                Ok(Transport::Untouched)
            } else {
                Err(InvalidRewrite::SctpPorts)
            }
        }
        _ if [old.src_port, old.dst_port, new.src_port, new.dst_port] != [0; 4] => {
            Err(InvalidRewrite::Portless(number))
        }
        (_, ipv4) if moved && protects_addresses(number, ipv4) => {
            Err(InvalidRewrite::AddressesProtected(number))
        }
        _ => Ok(Transport::Untouched),
    }
}

#[cfg(test)]
mod tests;
