//! Which frames of a shared device are whose.
//!
//! *Promises*: a frame is one member's, a group's, or nobody's, by its VLAN and destination
//! MAC alone; a lookup is two binary searches at most.
//! *Refuses*: two members with the same MAC in one VLAN.
//! *Caller's duty*: none.
//! *Standard*: IEEE 802.1Q (tags and priority tags), IEEE 802 (group addresses).

use crate::packet::{Checksum, MacAddr, Offload, VlanId};

/// Bytes of the two MAC addresses.
pub(super) const MACS: usize = 12;
/// Bytes of a VLAN tag.
pub(super) const TAG: usize = 4;

/// What of a shared device belongs to a vNIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selector {
    /// Its VLAN: the vNIC sees its frames without the tag. `None`: frames without a tag.
    pub vlan: Option<VlanId>,
    /// Addresses of its guest: the vNIC's own, and any it shares with others (VRRP).
    pub macs: Vec<MacAddr>,
}

/// Another member has the same address in the same VLAN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "another vNIC on the same uplink has the address {mac} in the same VLAN: give each its own \
     address or VLAN"
)]
pub struct Taken {
    /// The address.
    pub mac: MacAddr,
}

/// How a frame is tagged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tagging {
    /// Not at all, or for its priority only.
    None,
    /// With this VLAN, outermost.
    Vlan(u16),
    /// With a tag of another kind: 802.1ad and the older stacking ones.
    Other,
}

/// The outermost tag. A frame too short for one has none.
pub(super) fn tagging(frame: &[u8]) -> Tagging {
    let word = |at: usize| {
        frame
            .get(at..at + 2)
            .map(|two| u16::from_be_bytes([two[0], two[1]]))
    };
    match word(MACS) {
        Some(0x8100) => match word(MACS + 2).map(|tci| tci & 0x0fff) {
            None | Some(0) => Tagging::None,
            Some(vlan) => Tagging::Vlan(vlan),
        },
        Some(0x88a8 | 0x9100 | 0x9200) => Tagging::Other,
        _ => Tagging::None,
    }
}

/// Whether anything at all precedes the frame's own type: what a guest in a VLAN of its own
/// must not send, since a switch may look behind a priority tag.
pub(super) fn has_tag(frame: &[u8]) -> bool {
    let kind = frame.get(MACS..MACS + 2);
    matches!(
        kind,
        Some([0x81, 0x00] | [0x88, 0xa8] | [0x91 | 0x92, 0x00])
    )
}

/// What is left undone, for the frame with `by` bytes more in front.
pub(super) fn moved(offload: Offload, by: i32) -> Option<Offload> {
    let checksum = match offload.checksum {
        Checksum::Partial { start, offset } => Checksum::Partial {
            start: u16::try_from(i32::from(start) + by).ok()?,
            offset,
        },
        same => same,
    };
    Some(Offload {
        checksum,
        ..offload
    })
}

/// Whose a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whose<'a> {
    /// One member's.
    Member(u16),
    /// Everybody's in its VLAN.
    Group(&'a [u16]),
    /// No member's.
    Nobody,
}

/// All members' selectors.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    /// VLAN (0: none) and MAC in one number, sorted.
    unicast: Vec<(u64, u16)>,
    /// VLAN and its members, sorted.
    groups: Vec<(u16, Vec<u16>)>,
}

fn vlan_number(vlan: Option<VlanId>) -> u16 {
    vlan.map_or(0, u16::from)
}

fn place_of(vlan: u16, mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from(vlan) << 48 | u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

impl Selectors {
    /// Gives `member` what `selector` says.
    pub(super) fn join(&mut self, member: u16, selector: &Selector) -> Result<(), Taken> {
        let vlan = vlan_number(selector.vlan);
        for mac in &selector.macs {
            let place = place_of(vlan, mac.0);
            if self.unicast.iter().any(|(taken, _)| *taken == place) {
                return Err(Taken { mac: *mac });
            }
        }
        for mac in &selector.macs {
            self.unicast.push((place_of(vlan, mac.0), member));
        }
        self.unicast.sort_unstable();
        // The same address twice in one selector.
        self.unicast.dedup();
        match self.groups.binary_search_by_key(&vlan, |group| group.0) {
            Ok(found) => self.groups[found].1.push(member),
            Err(place) => self.groups.insert(place, (vlan, vec![member])),
        }
        Ok(())
    }

    /// Takes everything from `member`.
    pub(super) fn leave(&mut self, member: u16) {
        self.unicast.retain(|(_, whose)| *whose != member);
        for (_, members) in &mut self.groups {
            members.retain(|whose| *whose != member);
        }
        self.groups.retain(|(_, members)| !members.is_empty());
    }

    /// Whose a frame from the device is.
    #[inline]
    pub(super) fn whose(&self, frame: &[u8]) -> Whose<'_> {
        match tagging(frame) {
            Tagging::None => self.in_vlan(0, frame),
            Tagging::Vlan(vlan) => self.in_vlan(vlan, frame),
            Tagging::Other => Whose::Nobody,
        }
    }

    /// Whose a frame within `vlan` (0: none) is, by its destination.
    #[inline]
    pub(super) fn in_vlan(&self, vlan: u16, frame: &[u8]) -> Whose<'_> {
        let Some(mac) = frame.first_chunk::<6>() else {
            return Whose::Nobody;
        };
        if mac[0] & 1 != 0 {
            let found = self.groups.binary_search_by_key(&vlan, |group| group.0);
            return found.map_or(Whose::Nobody, |found| Whose::Group(&self.groups[found].1));
        }
        let place = place_of(vlan, *mac);
        let found = self.unicast.binary_search_by_key(&place, |entry| entry.0);
        found.map_or(Whose::Nobody, |found| Whose::Member(self.unicast[found].1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

    fn selector(vlan: u16, macs: &[MacAddr]) -> Selector {
        Selector {
            vlan: VlanId::try_from(vlan).ok(),
            macs: macs.to_vec(),
        }
    }

    fn frame(dst: [u8; 6], behind: &[u8]) -> Vec<u8> {
        [&dst[..], &[2, 9, 9, 9, 9, 9], behind].concat()
    }

    #[test]
    fn vlan_and_address_together_say_whose_a_frame_is() {
        let mut all = Selectors::default();
        all.join(0, &selector(0, &[A])).unwrap();
        all.join(1, &selector(20, &[A, B])).unwrap();
        all.join(2, &selector(20, &[MacAddr([2, 0, 0, 0, 0, 0xc])]))
            .unwrap();
        let tagged = |vlan: u16| [0x81, 0, (vlan >> 8) as u8 | 0xe0, vlan as u8, 8, 0];
        let whose = |dst: MacAddr, behind: &[u8]| match all.whose(&frame(dst.0, behind)) {
            Whose::Member(member) => Some(vec![member]),
            Whose::Group(members) => Some(members.to_vec()),
            Whose::Nobody => None,
        };
        assert_eq!(whose(A, &[8, 0]), Some(vec![0]));
        assert_eq!(whose(A, &tagged(20)), Some(vec![1]));
        assert_eq!(whose(B, &tagged(20)), Some(vec![1]));
        assert_eq!(whose(B, &[8, 0]), None);
        assert_eq!(whose(A, &tagged(21)), None);
        // A priority tag is no VLAN.
        assert_eq!(whose(A, &tagged(0)), Some(vec![0]));
        assert_eq!(whose(A, &[0x88, 0xa8, 0, 20, 8, 0]), None);
        let broadcast = MacAddr([0xff; 6]);
        assert_eq!(whose(broadcast, &tagged(20)), Some(vec![1, 2]));
        assert_eq!(whose(broadcast, &[8, 6]), Some(vec![0]));
        assert_eq!(whose(broadcast, &tagged(21)), None);
        assert_eq!(all.whose(&[2, 0, 0]), Whose::Nobody);
    }

    #[test]
    fn an_address_is_given_once_in_a_vlan_and_free_again_after_leaving() {
        let mut all = Selectors::default();
        all.join(0, &selector(20, &[A])).unwrap();
        assert_eq!(all.join(1, &selector(20, &[B, A])), Err(Taken { mac: A }));
        // Refused whole.
        all.join(1, &selector(20, &[B])).unwrap();
        all.leave(0);
        all.join(2, &selector(20, &[A])).unwrap();
        assert_eq!(all.in_vlan(20, &frame(A.0, &[8, 0])), Whose::Member(2));
        all.leave(1);
        all.leave(2);
        assert_eq!(all.in_vlan(20, &frame([0xff; 6], &[8, 0])), Whose::Nobody);
    }
}
