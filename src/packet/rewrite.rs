//! Rewriting a frame in place, its checksums updated by what changes.
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
//! *Caller's duty*: the frame's key is the `from` of [`Rewrite::new`], whose keys are also the
//! [`Change`]'s; a TTL that would expire is punted before.
//! *Standard*: RFC 1624, RFC 768, RFC 2474 (DSCP), RFC 3168 (ECN), IEEE 802.1Q,
//! virtio 1.2 section 5.1.6.
//!
//! The differences of the sums are not kept: made of both tuples they take a dozen instructions,
//! fewer than fetching a line that holds them.

use super::headers::{ECHO, ETHERNET, IPV4, IPV6, TAG, TCP, UDP, be16, ethertype};
use super::key::protocol;
use super::parse::Parsed;
use super::{Checksum, FlowKey, FrameMut, VlanId, checksum};

/// What becomes of a flow's packets besides addresses and ports, which are a [`Change`]: VLAN,
/// TTL, DSCP and which L4 fields change. Much the same for all flows of an element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rewrite {
    /// Bits of the IP header's first 16 that DSCP replaces, and by what.
    dscp_mask: u16,
    dscp_bits: u16,
    /// Egress VLAN, 0 for none.
    vlan: u16,
    /// How much TTL or hop limit shrinks: 0 or 1.
    ttl: u8,
    ipv4: bool,
    transport: Transport,
}

/// Addresses and ports as a flow matches them and as it sends them, in [`FlowKey`]'s forms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change<const WORDS: usize> {
    /// Source, then destination address: see [`Narrow`] and [`Wide`].
    pub from: [u64; WORDS],
    /// The same on egress.
    pub to: [u64; WORDS],
    /// Source port or echo identifier in the upper half, destination port or echo type below.
    pub from_ports: u32,
    /// The same on egress.
    pub to_ports: u32,
}

/// A change of IPv4 addresses: source in the upper half of the word, destination below.
pub type Narrow = Change<1>;
/// A change of IPv6 addresses, two words each.
pub type Wide = Change<4>;

impl<const WORDS: usize> Change<WORDS> {
    const IPV4: bool = WORDS == 1;

    /// Change of the sum over the addresses.
    #[inline(always)]
    fn moved(&self) -> u64 {
        checksum::difference(&self.from, &self.to)
    }

    /// Change of the sum over the ports; an echo's type is the same before and after, so that it
    /// is not 0 for them.
    #[inline(always)]
    fn ported(&self) -> u64 {
        u64::from(!self.from_ports) + u64::from(self.to_ports)
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

/// Whether both keys are of one family; the low byte of a key's first word is its IP
/// version, 0 for a tuple of both.
fn same_family(from: &FlowKey, to: &FlowKey) -> bool {
    let version = |key: &FlowKey| key.words()[0] as u8;
    version(from) == version(to) && matches!(version(from), 4 | 6)
}

impl Rewrite {
    /// Prepares the rewrite of packets with key `from` into packets with the key `to` (its vNIC is
    /// ignored; its VLAN is the egress VLAN).
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
        let moved = from.words()[1..5] != to.words()[1..5];
        let changed = moved || from.words()[5] != to.words()[5];
        let transport = transport(from, to, moved)?;
        let (dscp_mask, dscp_bits) = match (dscp, ipv4) {
            (None, _) => (0, 0),
            (Some(dscp @ 64..), _) => return Err(InvalidRewrite::Dscp(dscp)),
            (Some(dscp), true) => (0x00fc, u16::from(dscp) << 2),
            (Some(dscp), false) => (0x0fc0, u16::from(dscp) << 6),
        };
        Ok(Self {
            dscp_mask,
            dscp_bits,
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

    /// Rewrites a frame in place. `parsed` must be of this frame and its key, like `change`, that
    /// of [`Rewrite::new`]; `macs` are destination and source. A tag that the egress VLAN does not
    /// want is popped, a priority tag too; a pushed one has PCP 0. False, and no change, when that
    /// cannot be.
    #[inline(always)]
    pub fn apply<const WORDS: usize>(
        &self,
        change: &Change<WORDS>,
        frame: &mut FrameMut<'_>,
        parsed: &Parsed,
        macs: &[u8; 12],
    ) -> bool {
        let l3 = usize::from(parsed.l3);
        let header = if Change::<WORDS>::IPV4 { IPV4 } else { IPV6 };
        let reach = l3 + header + self.transport.reach();
        if frame.data().len() < reach || parsed.key.is_ipv4() != Change::<WORDS>::IPV4 {
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
        if let Some(link) = link.first_chunk_mut::<12>() {
            *link = *macs;
        }
        let moved = change.moved();
        let rest = if Change::<WORDS>::IPV4 {
            let Some((header, rest)) = packet.split_first_chunk_mut::<IPV4>() else {
                return false;
            };
            self.ipv4(header, change.to[0], moved);
            rest
        } else {
            let Some((header, rest)) = packet.split_first_chunk_mut::<IPV6>() else {
                return false;
            };
            self.ipv6(header, &change.to);
            rest
        };
        let len = (parsed.l3_len as usize).saturating_sub(header);
        self.transport(change, moved, rest, len, partial);
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

    #[inline(always)]
    fn ipv4(&self, header: &mut [u8; IPV4], addresses: u64, moved: u64) {
        let (head, life) = (be16(header, 0), be16(header, 8));
        let new_head = head & !self.dscp_mask | self.dscp_bits;
        let new_life = (life >> 8).saturating_sub(self.ttl.into()) << 8 | life & 0xff;
        let delta =
            u64::from(!head) + u64::from(new_head) + u64::from(!life) + u64::from(new_life) + moved;
        let check = checksum::update(be16(header, 10), delta);
        header[..2].copy_from_slice(&new_head.to_be_bytes());
        // TTL and protocol in one piece, never a byte to be read back as part of a word.
        header[8..10].copy_from_slice(&new_life.to_be_bytes());
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header[12..20].copy_from_slice(&addresses.to_be_bytes());
    }

    #[inline(always)]
    fn ipv6(&self, header: &mut [u8; IPV6], addresses: &[u64]) {
        let head = be16(header, 0) & !self.dscp_mask | self.dscp_bits;
        header[..2].copy_from_slice(&head.to_be_bytes());
        header[7] = header[7].saturating_sub(self.ttl);
        for (bytes, word) in header[8..40].chunks_exact_mut(8).zip(addresses) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
    }

    /// Ports or identifier, and the checksum; `len` is the segment's, without padding.
    #[inline(always)]
    fn transport<const WORDS: usize>(
        &self,
        change: &Change<WORDS>,
        moved: u64,
        segment: &mut [u8],
        len: usize,
        partial: bool,
    ) {
        let ported = if partial { 0 } else { change.ported() };
        let refresh = |check: u16| refreshed(check, moved + ported, partial);
        match self.transport {
            Transport::Untouched => {}
            Transport::Tcp => {
                if let Some(header) = segment.first_chunk_mut::<TCP>() {
                    let check = refresh(be16(header, 16));
                    header[..4].copy_from_slice(&change.to_ports.to_be_bytes());
                    header[16..18].copy_from_slice(&check.to_be_bytes());
                }
            }
            Transport::Udp => {
                if let Some(header) = segment.first_chunk_mut::<UDP>() {
                    let check = match be16(header, 6) {
                        0 if !partial => 0,
                        old => match refresh(old) {
                            0 => 0xffff,
                            check => check,
                        },
                    };
                    header[..4].copy_from_slice(&change.to_ports.to_be_bytes());
                    header[6..8].copy_from_slice(&check.to_be_bytes());
                }
            }
            Transport::Echo => {
                // ICMP over IPv4 has no pseudo-header: a partial checksum's field is left alone.
                let pseudo = if Change::<WORDS>::IPV4 { 0 } else { moved };
                echo(change.to_ports, pseudo + ported, segment, len, partial);
            }
        }
    }
}

impl Transport {
    /// How much of the segment changes, counted from its start.
    #[inline(always)]
    const fn reach(self) -> usize {
        match self {
            Self::Untouched => 0,
            Self::Tcp => TCP,
            Self::Udp => UDP,
            Self::Echo => ECHO,
        }
    }
}

#[inline(never)]
fn echo(ports: u32, change: u64, segment: &mut [u8], len: usize, partial: bool) {
    let Some(header) = segment.first_chunk_mut::<ECHO>() else {
        return;
    };
    let check = refreshed(be16(header, 2), change, partial);
    header[4..6].copy_from_slice(&((ports >> 16) as u16).to_be_bytes());
    header[2..4].copy_from_slice(&check.to_be_bytes());
    // The one message whose words can all be zero: its right checksum is the other zero.
    if check == 0 && !partial && header[0] == 0 {
        let whole = segment.get(..len).unwrap_or(&[]);
        if whole.iter().all(|byte| *byte == 0) {
            segment[2..4].fill(0xff);
        }
    }
}

/// An L4 checksum field after `change` of what it covers; a partial one is not complemented.
#[inline(always)]
fn refreshed(check: u16, change: u64, partial: bool) -> u16 {
    if partial {
        !checksum::update(!check, change)
    } else {
        checksum::update(check, change)
    }
}

#[inline]
fn move_start(frame: &mut FrameMut<'_>, to: Option<u16>) {
    if let (Some(to), Checksum::Partial { start, .. }) = (to, &mut frame.offload().checksum) {
        *start = to;
    }
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
