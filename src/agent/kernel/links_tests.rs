use proptest::prelude::*;

use super::*;

/// `struct ifinfomsg` of an interface that is up.
fn header(hardware: u16, index: u32, flags: i32) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[2..4].copy_from_slice(&hardware.to_ne_bytes());
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&(flags as u32).to_ne_bytes());
    bytes
}

const UP: i32 = libc::IFF_UP | libc::IFF_LOWER_UP;

/// A message with those attributes, without its `nlmsghdr`.
fn message(header: &[u8], attributes: impl FnOnce(Request) -> Request) -> Vec<u8> {
    attributes(Request::new(RTM_NEWLINK, header)).numbered(0, 0)[16..].to_vec()
}

fn named(request: Request, name: &str) -> Request {
    request
        .with(IFLA_IFNAME, name.as_bytes())
        .with(IFLA_MTU, &1500_u32.to_ne_bytes())
        .with(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1])
}

/// `ip link add link eth0 name eth0.42 type vlan id 42`, as 8021q tells of it.
#[rustfmt::skip]
const VLAN: [u8; 124] = [
    // ifinfomsg: Ethernet, interface 9, up with carrier
    0, 0, 1, 0, 9, 0, 0, 0, 0x43, 0x10, 1, 0, 0, 0, 0, 0,
    // IFLA_IFNAME "eth0.42"
    12, 0, 3, 0, b'e', b't', b'h', b'0', b'.', b'4', b'2', 0,
    // IFLA_MTU 1500
    8, 0, 4, 0, 0xdc, 5, 0, 0,
    // IFLA_LINK 4
    8, 0, 5, 0, 4, 0, 0, 0,
    // IFLA_ADDRESS 52:54:00:12:34:56
    10, 0, 1, 0, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0, 0,
    // IFLA_QDISC "noqueue"
    12, 0, 6, 0, b'n', b'o', b'q', b'u', b'e', b'u', b'e', 0,
    // IFLA_LINKINFO
    52, 0, 18, 0,
        // IFLA_INFO_KIND "vlan"
        9, 0, 1, 0, b'v', b'l', b'a', b'n', 0, 0, 0, 0,
        // IFLA_INFO_DATA
        36, 0, 2, 0,
            // IFLA_VLAN_PROTOCOL 802.1Q, big-endian
            6, 0, 5, 0, 0x81, 0, 0, 0,
            // IFLA_VLAN_ID 42
            6, 0, 1, 0, 42, 0, 0, 0,
            // IFLA_VLAN_FLAGS
            12, 0, 2, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
            // the end of a nest that had room for more
            4, 0, 3, 0,
    // IFLA_EVENT, of no use here
    4, 0, 44, 0,
];

#[test]
fn a_vlan_is_read_with_what_carries_it() {
    let (index, link) = read(&VLAN).unwrap();
    assert_eq!(index, IfIndex(9));
    assert_eq!(
        link,
        Link {
            name: "eth0.42".to_owned(),
            kind: LinkKind::Vlan {
                on: IfIndex(4),
                id: 42,
                is_service: false,
            },
            mac: MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            mtu: 1500,
            is_up: true,
            master: None,
            is_shaped: false,
            obstacle: None,
            vlans: BridgeVlans::default(),
        }
    );
}

#[test]
fn a_service_vlan_is_told_from_a_plain_one() {
    let mut bytes = VLAN;
    let at = bytes
        .windows(2)
        .rposition(|pair| pair == [0x81, 0])
        .unwrap();
    bytes[at..at + 2].copy_from_slice(&[0x88, 0xa8]);
    let (_, link) = read(&bytes).unwrap();
    assert!(matches!(
        link.kind,
        LinkKind::Vlan {
            is_service: true,
            ..
        }
    ));
}

#[test]
fn a_vlan_on_an_interface_of_another_namespace_is_something_else() {
    let mut bytes = VLAN.to_vec();
    bytes.extend([8, 0, 37, 0, 1, 0, 0, 0]);
    let (_, link) = read(&bytes).unwrap();
    assert_eq!(link.kind, LinkKind::Other("vlan".to_owned()));
}

#[test]
fn a_bridge_is_read_with_whether_it_filters_vlans_and_of_which_tag() {
    let kind = |filters: u8, protocol: u16| {
        let bridge = message(&header(1, 7, UP), |request| {
            named(request, "br0").with_nest(IFLA_LINKINFO, |info| {
                info.with(IFLA_INFO_KIND, b"bridge\0")
                    .with_nest(IFLA_INFO_DATA, |data| {
                        data.with(IFLA_BR_VLAN_FILTERING, &[filters])
                            .with(IFLA_BR_VLAN_PROTOCOL, &protocol.to_be_bytes())
                    })
            })
        });
        read(&bridge).unwrap().1.kind
    };
    for filters_vlans in [false, true] {
        let bridge = LinkKind::Bridge { filters_vlans };
        assert_eq!(kind(u8::from(filters_vlans), 0x8100), bridge);
    }
    assert!(matches!(kind(1, SERVICE_TAG), LinkKind::Other(_)));
}

#[test]
fn a_vrf_is_read_with_its_table_and_its_members_with_their_master() {
    let vrf = message(&header(1, 7, UP | libc::IFF_NOARP), |request| {
        named(request, "red").with_nest(IFLA_LINKINFO, |info| {
            info.with(IFLA_INFO_KIND, b"vrf\0")
                .with_nest(IFLA_INFO_DATA, |data| {
                    data.with(IFLA_VRF_TABLE, &100_u32.to_ne_bytes())
                })
        })
    });
    let (_, link) = read(&vrf).unwrap();
    assert_eq!(link.kind, LinkKind::Vrf { table: 100 });
    assert_eq!(link.obstacle, None);

    let member = message(&header(1, 8, UP), |request| {
        named(request, "eth9").with(IFLA_MASTER, &7_u32.to_ne_bytes())
    });
    assert_eq!(read(&member).unwrap().1.master, Some(IfIndex(7)));
}

#[test]
fn what_keeps_the_fast_path_away_is_said() {
    let xdp = message(&header(1, 3, UP), |request| {
        named(request, "eth1").with_nest(IFLA_XDP, |xdp| xdp.with(IFLA_XDP_ATTACHED, &[2]))
    });
    let none = message(&header(1, 3, UP), |request| {
        named(request, "eth1").with_nest(IFLA_XDP, |xdp| xdp.with(IFLA_XDP_ATTACHED, &[0]))
    });
    let no_arp = message(&header(1, 3, UP | libc::IFF_NOARP), |request| {
        named(request, "eth1")
    });
    let obstacle = |bytes: &[u8]| read(bytes).unwrap().1.obstacle;
    assert!(obstacle(&xdp).unwrap().contains("XDP"));
    assert_eq!(obstacle(&none), None);
    assert!(obstacle(&no_arp).unwrap().contains("NOARP"));
}

#[test]
fn up_is_up_with_a_carrier_and_not_dormant() {
    let is_up = |flags| {
        let bytes = message(&header(1, 3, flags), |request| named(request, "eth1"));
        read(&bytes).unwrap().1.is_up
    };
    assert!(is_up(UP));
    assert!(!is_up(libc::IFF_UP));
    assert!(!is_up(libc::IFF_LOWER_UP));
    assert!(!is_up(UP | libc::IFF_DORMANT));
}

#[test]
fn a_bridges_word_of_its_port_is_no_interface() {
    let mut bytes = VLAN;
    bytes[0] = libc::AF_BRIDGE as u8;
    assert_eq!(read(&bytes), None);
    assert_eq!(read_index(&bytes), None);
}

#[test]
fn the_bus_path_is_the_last_pci_function_above_the_device() {
    let root = tempfile::tempdir().unwrap();
    let device = root
        .path()
        .join("devices/pci0000:00/0000:00:02.0/0000:01:00.3/virtio7");
    fs::create_dir_all(&device).unwrap();
    let class = root.path().join("class/eth0");
    fs::create_dir_all(&class).unwrap();
    std::os::unix::fs::symlink(&device, class.join("device")).unwrap();
    fs::write(class.join("ifindex"), "4\n").unwrap();

    let ask = |index, name| bus_path(&root.path().join("class"), IfIndex(index), name);
    assert_eq!(ask(4, "eth0").as_deref(), Some("0000:01:00.3"));
    // sysfs shows another namespace, or names lead elsewhere.
    assert_eq!(ask(5, "eth0"), None);
    assert_eq!(ask(4, "../class/eth0"), None);
    assert_eq!(ask(4, "eth1"), None);
}

#[test]
fn names_of_pci_functions_are_known_from_others() {
    for name in ["0000:00:04.0", "10000:e1:00.7", "abcd:0f:1f.3"] {
        assert!(is_pci_function(name), "{name}");
    }
    for name in [
        "virtio0",
        "pci0000:00",
        "0000:00:04",
        "00:04.0",
        "0000:00:04.0:1",
        "",
    ] {
        assert!(!is_pci_function(name), "{name}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_interface_or_none(bytes: Vec<u8>) {
        read(&bytes);
    }

    #[test]
    fn a_message_with_any_bytes_changed_is_an_interface_or_none(
        changes in prop::collection::vec((0_usize..VLAN.len(), any::<u8>()), 1..9),
    ) {
        let mut bytes = VLAN;
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        read(&bytes);
    }
}
