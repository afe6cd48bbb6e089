//! shim until packet::vnet_hdr is merged
use crate::packet::{Checksum, Gso, GsoKind, Offload};
pub enum Sender {
    Guest,
}
pub fn decode(h: &[u8], frame_len: usize, _s: Sender) -> Result<Offload, ()> {
    let le16 = |at: usize| u16::from_le_bytes([h[at], h[at + 1]]);
    let (size, start, offset) = (le16(4), le16(6), le16(8));
    let checksum = if h[0] & 1 != 0 {
        if usize::from(start) + usize::from(offset) + 2 > frame_len {
            return Err(());
        }
        Checksum::Partial { start, offset }
    } else {
        Checksum::Unchecked
    };
    let ecn = h[1] & 0x80 != 0;
    let kind = match h[1] & 0x7f {
        0 => GsoKind::None,
        1 => GsoKind::Tcp4,
        4 => GsoKind::Tcp6,
        3 => GsoKind::Ufo,
        5 => GsoKind::UdpL4,
        _ => return Err(()),
    };
    if kind == GsoKind::None {
        return Ok(Offload {
            checksum,
            gso: Gso::default(),
        });
    }
    if size == 0 || checksum == Checksum::Unchecked {
        return Err(());
    }
    Ok(Offload {
        checksum,
        gso: Gso { kind, size, ecn },
    })
}
pub fn encode(o: &Offload, _frame: &[u8]) -> [u8; 12] {
    let mut h = [0; 12];
    h[10] = 1;
    if let Checksum::Partial { start, offset } = o.checksum {
        h[0] = 1;
        h[6..8].copy_from_slice(&start.to_le_bytes());
        h[8..10].copy_from_slice(&offset.to_le_bytes());
        h[1] = match o.gso.kind {
            GsoKind::None => 0,
            GsoKind::Tcp4 => 1,
            GsoKind::Tcp6 => 4,
            GsoKind::Ufo => 3,
            GsoKind::UdpL4 => 5,
        };
        if o.gso.ecn {
            h[1] |= 0x80;
        }
        h[4..6].copy_from_slice(&o.gso.size.to_le_bytes());
    }
    h
}
