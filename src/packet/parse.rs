//! skeleton: helper packet
use super::{FlowKey, Offload, PuntReason, VnicId};

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
pub fn parse(_data: &[u8], _offload: &Offload, _ingress: VnicId) -> Result<Parsed, PuntReason> {
    unimplemented!()
}

impl Parsed {
    /// Whether the guest must see this packet of a session, whatever its state: SYN without
    /// ACK, FIN, RST, SCTP INIT/ABORT/SHUTDOWN.
    pub fn control(&self, _data: &[u8]) -> Option<PuntReason> {
        unimplemented!()
    }

    /// Largest L3 packet on the wire: `l3_len`, or headers plus GSO size for a GSO frame.
    pub fn wire_l3_max(&self, _offload: &Offload) -> u32 {
        unimplemented!()
    }

    /// Wire packets and their L3 bytes in total (a GSO frame counts its segments and each segment's headers).
    pub fn wire_count(&self, _offload: &Offload) -> (u64, u64) {
        unimplemented!()
    }

    /// (sequence number, acknowledgement number, window) of a TCP segment.
    pub fn tcp_position(&self, _data: &[u8]) -> Option<(u32, u32, u16)> {
        unimplemented!()
    }
}
