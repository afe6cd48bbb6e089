//! Frames for tests, built by `etherparse` so that no code under test has a say.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpEcn, IpNumber, Ipv4Header,
    Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader,
};

use super::key::protocol;
use super::{
    Burst, Checksum, FlowKey, Gso, GsoKind, MacAddr, Offload, Parsed, Tuple, VnicId, parse,
};

/// The destination MAC of a sample.
pub(crate) const DST_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0xdd, 0, 1]);
/// The source MAC of a sample.
pub(crate) const SRC_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x55, 0, 2]);

/// What a frame is to look like.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub dst_mac: MacAddr,
    pub src_mac: MacAddr,
    /// Tag control information.
    pub tag: Option<u16>,
    pub tuple: Tuple,
    pub dscp: u8,
    pub ecn: u8,
    pub flow_label: u32,
    pub ttl: u8,
    /// TCP sequence number, echo sequence number.
    pub seq: u32,
    pub flags: u8,
    pub options: Vec<u8>,
    /// IPv4 identification.
    pub id: u16,
    pub payload: Vec<u8>,
}

impl Sample {
    pub fn new(src: &str, dst: &str, protocol: u8, ports: (u16, u16), payload: &[u8]) -> Self {
        Self {
            dst_mac: DST_MAC,
            src_mac: SRC_MAC,
            tag: None,
            tuple: Tuple {
                src: src.parse().unwrap(),
                dst: dst.parse().unwrap(),
                protocol,
                src_port: ports.0,
                dst_port: ports.1,
            },
            dscp: 0,
            ecn: 0,
            flow_label: 0,
            ttl: 64,
            seq: 1,
            flags: 0x10,
            options: Vec::new(),
            id: 0x1234,
            payload: payload.to_vec(),
        }
    }

    pub fn v4(protocol: u8, payload: &[u8]) -> Self {
        let ports = ports_of(protocol, 8);
        Self::new("192.0.2.1", "198.51.100.2", protocol, ports, payload)
    }

    pub fn v6(protocol: u8, payload: &[u8]) -> Self {
        let ports = ports_of(protocol, 128);
        Self::new("2001:db8::1", "2001:db8:1::2", protocol, ports, payload)
    }

    pub fn tcp4(payload: &[u8]) -> Self {
        Self::v4(protocol::TCP, payload)
    }

    pub fn tcp6(payload: &[u8]) -> Self {
        Self::v6(protocol::TCP, payload)
    }

    pub fn udp4(payload: &[u8]) -> Self {
        Self::v4(protocol::UDP, payload)
    }

    pub fn udp6(payload: &[u8]) -> Self {
        Self::v6(protocol::UDP, payload)
    }

    pub fn echo4(payload: &[u8]) -> Self {
        Self::v4(protocol::ICMP, payload)
    }

    pub fn is_ipv4(&self) -> bool {
        self.tuple.src.is_ipv4()
    }

    /// First byte of the IP header.
    pub fn l3(&self) -> usize {
        if self.tag.is_some() { 18 } else { 14 }
    }

    /// First byte of the L4 header.
    pub fn l4(&self) -> usize {
        self.l3() + if self.is_ipv4() { 20 } else { 40 }
    }

    /// The checksum field of the L4 header, from the frame's first byte.
    pub fn check(&self) -> Option<usize> {
        let offset = match self.tuple.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            protocol::ICMP | protocol::ICMPV6 => 2,
            _ => return None,
        };
        Some(self.l4() + offset)
    }

    /// The key of the frame on vNIC 1.
    pub fn key(&self) -> FlowKey {
        FlowKey::new(VnicId(1), self.tag.unwrap_or(0) & 0x0fff, &self.tuple)
    }

    /// The frame, with every checksum right.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = [self.dst_mac.0, self.src_mac.0].concat();
        if let Some(tci) = self.tag {
            frame.extend([0x81, 0x00]);
            frame.extend(tci.to_be_bytes());
        }
        match (self.tuple.src, self.tuple.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([0x08, 0x00]);
                let (src, dst) = (src.octets(), dst.octets());
                let number = IpNumber(self.tuple.protocol);
                let mut ip = Ipv4Header::new(0, self.ttl, number, src, dst).unwrap();
                ip.dscp = IpDscp::try_new(self.dscp).unwrap();
                ip.ecn = IpEcn::try_new(self.ecn).unwrap();
                ip.identification = self.id;
                let l4 = self.transport(Some(&ip), None);
                ip.set_payload_len(l4.len()).unwrap();
                ip.header_checksum = ip.calc_header_checksum();
                frame.extend(&ip.to_bytes()[..]);
                frame.extend(l4);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x86, 0xdd]);
                let mut ip = Ipv6Header {
                    traffic_class: self.dscp << 2 | self.ecn,
                    flow_label: Ipv6FlowLabel::try_new(self.flow_label).unwrap(),
                    payload_length: 0,
                    next_header: IpNumber(self.tuple.protocol),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                let l4 = self.transport(None, Some(&ip));
                ip.set_payload_length(l4.len()).unwrap();
                frame.extend(ip.to_bytes());
                frame.extend(l4);
            }
            _ => panic!("mixed families"),
        }
        frame
    }

    fn transport(&self, v4: Option<&Ipv4Header>, v6: Option<&Ipv6Header>) -> Vec<u8> {
        let (src, dst) = (self.tuple.src_port, self.tuple.dst_port);
        let header = match self.tuple.protocol {
            protocol::TCP => self.tcp(v4, v6),
            protocol::UDP => match (v4, v6) {
                (Some(ip), _) => UdpHeader::with_ipv4_checksum(src, dst, ip, &self.payload),
                (_, ip) => UdpHeader::with_ipv6_checksum(src, dst, ip.unwrap(), &self.payload),
            }
            .unwrap()
            .to_bytes()
            .to_vec(),
            protocol::ICMP => {
                let echo = etherparse::IcmpEchoHeader {
                    id: src,
                    seq: self.seq as u16,
                };
                let kind = match dst {
                    8 => Icmpv4Type::EchoRequest(echo),
                    _ => Icmpv4Type::EchoReply(echo),
                };
                Icmpv4Header::with_checksum(kind, &self.payload)
                    .to_bytes()
                    .to_vec()
            }
            protocol::ICMPV6 => {
                let echo = etherparse::IcmpEchoHeader {
                    id: src,
                    seq: self.seq as u16,
                };
                let kind = match dst {
                    128 => Icmpv6Type::EchoRequest(echo),
                    _ => Icmpv6Type::EchoReply(echo),
                };
                let ip = v6.unwrap();
                Icmpv6Header::with_checksum(kind, ip.source, ip.destination, &self.payload)
                    .unwrap()
                    .to_bytes()
                    .to_vec()
            }
            protocol::SCTP => {
                let ports = [src.to_be_bytes(), dst.to_be_bytes()].concat();
                // Verification tag and a CRC32c that nobody here looks at.
                [&ports[..], &[1, 2, 3, 4, 5, 6, 7, 8]].concat()
            }
            protocol::GRE => vec![0, 0, 0x08, 0x00],
            _ => Vec::new(),
        };
        [header, self.payload.clone()].concat()
    }

    fn tcp(&self, v4: Option<&Ipv4Header>, v6: Option<&Ipv6Header>) -> Vec<u8> {
        let (src, dst) = (self.tuple.src_port, self.tuple.dst_port);
        let mut tcp = TcpHeader::new(src, dst, self.seq, 0x2000);
        tcp.acknowledgment_number = 0x0102_0304;
        tcp.set_options_raw(&self.options).unwrap();
        let bit = |n: u8| self.flags & 1 << n != 0;
        (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (bit(0), bit(1), bit(2), bit(3));
        (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (bit(4), bit(5), bit(6), bit(7));
        tcp.checksum = match (v4, v6) {
            (Some(ip), _) => tcp.calc_checksum_ipv4(ip, &self.payload).unwrap(),
            (_, ip) => tcp.calc_checksum_ipv6(ip.unwrap(), &self.payload).unwrap(),
        };
        tcp.to_bytes().to_vec()
    }

    /// The frame as a sender leaves it that has its checksum done by others: only the
    /// pseudo-header's sum in the field, by a plain loop.
    pub fn build_partial(&self) -> (Vec<u8>, Offload) {
        let mut frame = self.build();
        let field = self.check().unwrap();
        let number = self.tuple.protocol;
        let len = (frame.len() - self.l4()) as u32;
        let mut pseudo = match (self.tuple.src, self.tuple.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
            _ => panic!("mixed families"),
        };
        pseudo.extend(len.to_be_bytes());
        pseudo.extend([0, 0, 0, number]);
        let mut sum = 0u32;
        if number != protocol::ICMP {
            for pair in pseudo.chunks(2) {
                sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
                sum = (sum & 0xffff) + (sum >> 16);
            }
        }
        frame[field..field + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        let checksum = Checksum::Partial {
            start: self.l4() as u16,
            offset: (field - self.l4()) as u16,
        };
        let offload = Offload {
            checksum,
            gso: Gso::default(),
        };
        (frame, offload)
    }

    /// As [`Sample::build_partial`], to be cut into payloads of `size`.
    pub fn build_gso(&self, size: u16) -> (Vec<u8>, Offload) {
        let (frame, mut offload) = self.build_partial();
        let kind = match (self.tuple.protocol, self.is_ipv4()) {
            (protocol::TCP, true) => GsoKind::Tcp4,
            (protocol::TCP, false) => GsoKind::Tcp6,
            _ => GsoKind::UdpL4,
        };
        let ecn = kind != GsoKind::UdpL4 && self.flags & 0x80 != 0;
        offload.gso = Gso { kind, size, ecn };
        (frame, offload)
    }
}

fn ports_of(protocol: u8, echo: u16) -> (u16, u16) {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => (40_000, 443),
        protocol::ICMP | protocol::ICMPV6 => (0x4242, echo),
        _ => (0, 0),
    }
}

/// The parse of a frame that must have a key.
pub(crate) fn parsed(frame: &[u8]) -> Parsed {
    parse(frame, &Offload::default(), VnicId(1)).unwrap()
}

/// A burst of `frame` between two others of 0xa5.
pub(crate) fn guarded(frame: &[u8], offload: Offload) -> Burst {
    let mut burst = Burst::new();
    assert!(burst.push(&[0xa5; 64], Offload::default()));
    assert!(burst.push(frame, offload));
    assert!(burst.push(&[0xa5; 64], Offload::default()));
    burst
}

/// The frame of [`guarded`], whose neighbours must have survived.
pub(crate) fn unguarded(burst: &Burst) -> &[u8] {
    assert_eq!(burst.frame(0).data, [0xa5; 64]);
    assert_eq!(burst.frame(2).data, [0xa5; 64]);
    burst.frame(1).data
}
