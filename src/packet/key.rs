//! The exact-match key of a flow.
//!
//! A key is six 64-bit words so that hashing and comparing it never branches on
//! the IP version: word 0 holds ingress vNIC, VLAN id, protocol and version,
//! words 1–2 and 3–4 source and destination (IPv4 in the first four bytes, rest
//! zero), word 5 the ports.
//!
//! ICMP echo has no ports: its identifier stands in `src_port`, its type in
//! `dst_port` ([`Tuple::reversed`] knows). Other protocols have both 0.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers the pipeline knows (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// A vNIC's number within its element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct VnicId(pub u16);

/// Addresses, protocol and ports of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// Source address; same family as `dst`.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port, or the echo identifier.
    pub src_port: u16,
    /// Destination port, or the ICMP type of an echo.
    pub dst_port: u16,
}

impl Tuple {
    /// The tuple of an answer.
    pub fn reversed(self) -> Self {
        let (src_port, dst_port) = match (self.protocol, self.dst_port) {
            (protocol::ICMP, 8) => (self.src_port, 0),
            (protocol::ICMP, 0) => (self.src_port, 8),
            (protocol::ICMPV6, 128) => (self.src_port, 129),
            (protocol::ICMPV6, 129) => (self.src_port, 128),
            _ => (self.dst_port, self.src_port),
        };
        Self {
            src: self.dst,
            dst: self.src,
            protocol: self.protocol,
            src_port,
            dst_port,
        }
    }
}

/// The key of a flow: where a packet came in, and its tuple.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    words: [u64; 6],
}

impl FlowKey {
    /// The key of `tuple` on `vnic`; `vlan` 0 means untagged or priority-tagged.
    /// Addresses of different families give a key that no frame has.
    pub fn new(vnic: VnicId, vlan: u16, tuple: &Tuple) -> Self {
        let mut src = [0u8; 16];
        let mut dst = [0u8; 16];
        let version = match (tuple.src, tuple.dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                src[..4].copy_from_slice(&s.octets());
                dst[..4].copy_from_slice(&d.octets());
                4
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                src = s.octets();
                dst = d.octets();
                6
            }
            _ => 0,
        };
        Self::from_parts(
            vnic,
            vlan,
            version,
            tuple.protocol,
            &src,
            &dst,
            tuple.src_port,
            tuple.dst_port,
        )
    }

    /// The key of an IPv4 packet from header fields: vNIC, VLAN (0: untagged) and protocol,
    /// addresses, ports. Built of whole words only: a word that is read while its parts are still
    /// on their way to memory costs a dozen cycles.
    #[inline(always)]
    pub fn of_ipv4(
        (vnic, vlan, protocol): (VnicId, u16, u8),
        (src, dst): (u32, u32),
        (src_port, dst_port): (u16, u16),
    ) -> Self {
        let first = |address: u32| u64::from(address) << 32;
        Self {
            words: [
                head(vnic, vlan, protocol, 4),
                first(src),
                0,
                first(dst),
                0,
                ports(src_port, dst_port),
            ],
        }
    }

    /// The key from header bytes; IPv4 addresses in the first four of sixteen.
    #[inline]
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of the key, each of another kind"
    )]
    pub fn from_parts(
        vnic: VnicId,
        vlan: u16,
        version: u8,
        protocol: u8,
        src: &[u8; 16],
        dst: &[u8; 16],
        src_port: u16,
        dst_port: u16,
    ) -> Self {
        let [s0, s1] = halves(src);
        let [d0, d1] = halves(dst);
        let head = head(vnic, vlan, protocol, version);
        Self {
            words: [head, s0, s1, d0, d1, ports(src_port, dst_port)],
        }
    }

    /// The key of these words.
    #[inline]
    pub(crate) fn from_words(words: [u64; 6]) -> Self {
        Self { words }
    }

    /// The words, for hashing.
    #[inline]
    pub fn words(&self) -> &[u64; 6] {
        &self.words
    }

    /// Ingress vNIC.
    pub fn vnic(&self) -> VnicId {
        VnicId((self.words[0] >> 48) as u16)
    }

    /// VLAN id, 0 for none.
    pub fn vlan(&self) -> u16 {
        (self.words[0] >> 32) as u16
    }

    /// IP protocol number.
    #[inline]
    pub fn protocol(&self) -> u8 {
        (self.words[0] >> 8) as u8
    }

    /// Whether the key is of IPv4.
    #[inline]
    pub fn is_ipv4(&self) -> bool {
        self.words[0] as u8 == 4
    }

    /// The tuple.
    pub fn tuple(&self) -> Tuple {
        let src = joined(self.words[1], self.words[2]);
        let dst = joined(self.words[3], self.words[4]);
        let (src, dst) = if self.is_ipv4() {
            (v4(src), v4(dst))
        } else {
            (
                IpAddr::V6(Ipv6Addr::from(src)),
                IpAddr::V6(Ipv6Addr::from(dst)),
            )
        };
        Tuple {
            src,
            dst,
            protocol: self.protocol(),
            src_port: (self.words[5] >> 16) as u16,
            dst_port: self.words[5] as u16,
        }
    }
}

#[inline(always)]
fn head(vnic: VnicId, vlan: u16, protocol: u8, version: u8) -> u64 {
    u64::from(vnic.0) << 48 | u64::from(vlan) << 32 | u64::from(protocol) << 8 | u64::from(version)
}

#[inline(always)]
fn ports(src: u16, dst: u16) -> u64 {
    u64::from(src) << 16 | u64::from(dst)
}

fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let value = u128::from_be_bytes(*bytes);
    [(value >> 64) as u64, value as u64]
}

fn joined(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

fn v4(bytes: [u8; 16]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_the_tuple_it_was_made_of() {
        for (src, dst) in [
            ("10.0.0.1", "192.0.2.9"),
            ("2001:db8::1", "2001:db8:ffff::2"),
        ] {
            let tuple = Tuple {
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                protocol: protocol::UDP,
                src_port: 40000,
                dst_port: 53,
            };
            let key = FlowKey::new(VnicId(3), 17, &tuple);
            assert_eq!(key.tuple(), tuple);
            assert_eq!(
                (key.vnic(), key.vlan(), key.protocol()),
                (VnicId(3), 17, protocol::UDP)
            );
        }
    }

    #[test]
    fn an_echo_reply_is_the_reverse_of_its_request() {
        let request = Tuple {
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            protocol: protocol::ICMP,
            src_port: 0x1234,
            dst_port: 8,
        };
        let reply = request.reversed();
        assert_eq!((reply.src_port, reply.dst_port), (0x1234, 0));
        assert_eq!(reply.reversed(), request);
    }
}
