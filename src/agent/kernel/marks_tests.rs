use proptest::prelude::*;

use super::*;

/// `bridge vlan` of a port that is untagged in VLAN 1 and tagged in 10 to 12, as the kernel tells
/// of it, without its `nlmsghdr`.
#[rustfmt::skip]
const PORT: [u8; 60] = [
    // ifinfomsg: of a bridge, Ethernet, interface 9
    7, 0, 1, 0, 9, 0, 0, 0, 0x43, 0x10, 1, 0, 0, 0, 0, 0,
    // IFLA_MASTER 4
    8, 0, 10, 0, 4, 0, 0, 0,
    // IFLA_AF_SPEC
    36, 0, 26, 0,
        // IFLA_BRIDGE_FLAGS, of no use here
        6, 0, 0, 0, 0, 0, 0, 0,
        // IFLA_BRIDGE_VLAN_INFO: PVID, untagged; 1
        8, 0, 2, 0, 6, 0, 1, 0,
        // a range's begin; 10
        8, 0, 2, 0, 8, 0, 10, 0,
        // its end; 12
        8, 0, 2, 0, 0x10, 0, 12, 0,
];

#[test]
fn a_port_s_vlans_are_read_with_their_ranges_and_their_tags_outside() {
    let (index, vlans) = read_bridge_vlans(&PORT).unwrap();
    assert_eq!(index, IfIndex(9));
    let tags = [1, 9, 10, 11, 12, 13].map(|vlan| vlans.tag_of(vlan));
    assert_eq!(tags, [Some(0), None, Some(10), Some(11), Some(12), None]);
    let inside = [0, 1, 10].map(|tag| vlans.vlan_of(tag));
    assert_eq!(inside, [Some(1), None, Some(10)]);
}

#[test]
fn a_vlan_whose_frames_come_otherwise_than_they_go_has_no_tag() {
    let (_, mut vlans) = read_bridge_vlans(&PORT).unwrap();
    vlans.untagged = Some(10);
    assert_eq!(
        [1, 10, 11].map(|vlan| vlans.tag_of(vlan)),
        [None, None, Some(11)]
    );
    assert_eq!(vlans.vlan_of(0), None);
}

proptest! {
    #[test]
    fn any_bytes_are_a_discipline_or_vlans_or_none(bytes: Vec<u8>) {
        read_qdisc(&bytes);
        read_bridge_vlans(&bytes);
    }

    #[test]
    fn a_port_s_message_with_any_bytes_changed_is_vlans_or_none(
        changes in prop::collection::vec((0_usize..PORT.len(), any::<u8>()), 1..9),
    ) {
        let mut bytes = PORT;
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        read_bridge_vlans(&bytes);
    }
}
