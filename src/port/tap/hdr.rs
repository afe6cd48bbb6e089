//! shim until packet::vnet_hdr is there
use crate::packet::{Checksum, Gso, GsoKind, Offload};

pub(super) fn decode(h: &[u8; 12], frame: &[u8]) -> Option<Offload> {
    let le = |at: usize| u16::from_le_bytes([h[at], h[at + 1]]);
    let checksum = if h[0] & 1 != 0 {
        let (start, offset) = (le(6), le(8));
        if usize::from(start) + usize::from(offset) + 2 > frame.len() {
            return None;
        }
        Checksum::Partial { start, offset }
    } else if h[0] & 2 != 0 {
        Checksum::Valid
    } else {
        Checksum::Unchecked
    };
    let kind = match h[1] & 0x7f {
        0 => GsoKind::None,
        1 => GsoKind::Tcp4,
        3 => GsoKind::Ufo,
        4 => GsoKind::Tcp6,
        5 => GsoKind::UdpL4,
        _ => return None,
    };
    let size = if kind == GsoKind::None { 0 } else { le(4) };
    if kind != GsoKind::None && size == 0 {
        return None;
    }
    Some(Offload {
        checksum,
        gso: Gso {
            kind,
            size,
            ecn: h[1] & 0x80 != 0,
        },
    })
}

pub(super) fn encode(frame: &[u8], offload: &Offload) -> [u8; 12] {
    let _ = frame;
    let mut h = [0u8; 12];
    match offload.checksum {
        Checksum::Partial { start, offset } => {
            h[0] = 1;
            h[6..8].copy_from_slice(&start.to_le_bytes());
            h[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        Checksum::Valid => h[0] = 2,
        Checksum::Unchecked => {}
    }
    h[1] = match offload.gso.kind {
        GsoKind::None => 0,
        GsoKind::Tcp4 => 1,
        GsoKind::Ufo => 3,
        GsoKind::Tcp6 => 4,
        GsoKind::UdpL4 => 5,
    };
    if offload.gso.ecn {
        h[1] |= 0x80;
    }
    h[4..6].copy_from_slice(&offload.gso.size.to_le_bytes());
    h
}
