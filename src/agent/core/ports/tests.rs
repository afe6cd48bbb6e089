use super::*;
use crate::agent::core::testing::{GUESTS, LAN, WAN, device, element, links, mac};
use crate::agent::network::BridgeVlans;

const BRIDGE: IfIndex = IfIndex(10);
const OTHER: IfIndex = IfIndex(11);

fn ports(links: &Links) -> Ports {
    Ports::new(links, &element(), &Switches::default())
}

fn bridge() -> Link {
    Link {
        kind: LinkKind::Bridge {
            filters_vlans: false,
        },
        ..device("br0", "", 0x44)
    }
}

#[test]
fn a_device_is_the_vnic_of_its_place_on_the_bus_whatever_its_mac() {
    let mut links = links();
    let [lan, wan] = [LAN, WAN].map(|index| links.0.get(&index).unwrap().mac);
    links.0.get_mut(&LAN).unwrap().mac = wan;
    links.0.get_mut(&WAN).unwrap().mac = lan;
    let ports = ports(&links);
    assert_eq!(&*ports.get(LAN).unwrap().vnic, "v-lan");
    // Its frames have another destination than the vNIC's MAC.
    assert_eq!(ports.get(LAN).unwrap().mac, Some(wan));
}

#[test]
fn a_device_whose_place_nobody_tells_is_the_only_vnic_of_its_mac() {
    let mut links = links();
    links.0.get_mut(&LAN).unwrap().kind = LinkKind::Device { bus_path: None };
    assert_eq!(&*ports(&links).get(LAN).unwrap().vnic, "v-lan");

    let mut twice = element();
    twice.vnics[1].mac = mac(2);
    let ports = Ports::new(&links, &twice, &Switches::default());
    assert_eq!(ports.get(LAN), Err(Reason::ForeignInterface));
}

#[test]
fn what_the_owner_says_of_an_interface_overrules_its_place_and_mac() {
    let said = |vnic: &str| Switches {
        vnics: [("lan".to_owned(), vnic.to_owned())].into(),
        ..Switches::default()
    };
    let ports = Ports::new(&links(), &element(), &said("v-wan"));
    assert_eq!(&*ports.get(LAN).unwrap().vnic, "v-wan");
    let ports = Ports::new(&links(), &element(), &said("unknown"));
    assert_eq!(ports.get(LAN), Err(Reason::ForeignInterface));
}

#[test]
fn a_device_at_another_place_is_no_vnic_although_it_has_its_mac() {
    let mut links = links();
    links.0.insert(OTHER, device("clone", "0000:00:09.0", 2));
    assert_eq!(ports(&links).get(OTHER), Err(Reason::ForeignInterface));
}

#[test]
fn a_vlan_has_its_tag_and_two_tags_are_refused() {
    let mut links = links();
    let port = ports(&links).get(GUESTS).unwrap().clone();
    assert_eq!((&*port.vnic, port.vlan), ("v-lan", 7));
    let kind = |on, is_service| LinkKind::Vlan {
        on,
        id: 8,
        is_service,
    };
    for (on, is_service) in [(GUESTS, false), (LAN, true)] {
        let link = Link {
            kind: kind(on, is_service),
            ..device("inner", "", 2)
        };
        links.0.insert(OTHER, link);
        assert_eq!(ports(&links).get(OTHER), Err(Reason::ServiceTag));
    }
}

#[test]
fn a_bridge_is_its_only_port_and_with_two_it_is_left_alone() {
    let mut links = links();
    links.0.insert(BRIDGE, bridge());
    assert_eq!(ports(&links).get(BRIDGE), Err(Reason::Down));
    links.0.get_mut(&LAN).unwrap().master = Some(BRIDGE);
    let found = ports(&links);
    let port = found.get(BRIDGE).unwrap();
    assert_eq!((&*port.vnic, port.vlan), ("v-lan", 0));
    assert_eq!(port.mac, Some(mac(0x44)));
    let there = Bridged {
        port: LAN,
        vlan: None,
    };
    assert_eq!(port.bridged, Some(there));
    assert_eq!(found.get(LAN), Err(Reason::ForeignInterface));

    // Any other port: a flooded frame would prove the wrong one.
    let veth = Link {
        kind: LinkKind::Other("veth".to_owned()),
        master: Some(BRIDGE),
        ..device("veth0", "", 0x55)
    };
    links.0.insert(OTHER, veth);
    assert_eq!(ports(&links).get(BRIDGE), Err(Reason::Bridge));
    links.0.get_mut(&OTHER).unwrap().is_up = false;
    assert!(ports(&links).get(BRIDGE).is_ok());
}

#[test]
fn a_bridge_over_a_vlan_has_its_tag_and_takes_no_second() {
    let mut links = links();
    links.0.insert(BRIDGE, bridge());
    links.0.get_mut(&GUESTS).unwrap().master = Some(BRIDGE);
    assert_eq!(ports(&links).get(BRIDGE).unwrap().vlan, 7);
    let above = Link {
        kind: LinkKind::Vlan {
            on: BRIDGE,
            id: 9,
            is_service: false,
        },
        ..device("br0.9", "", 0x44)
    };
    links.0.insert(OTHER, above);
    assert_eq!(ports(&links).get(OTHER), Err(Reason::ServiceTag));
}

/// VLANs, each with whether it leaves without its tag, and that of what comes without one.
fn vlans(members: &[(u16, bool)], untagged: Option<u16>) -> BridgeVlans {
    BridgeVlans {
        untagged,
        members: members.iter().copied().collect(),
    }
}

#[test]
fn a_bridge_that_filters_vlans_gives_the_tag_that_its_port_has() {
    let mut links = links();
    let filtering = Link {
        kind: LinkKind::Bridge {
            filters_vlans: true,
        },
        vlans: vlans(&[(1, true), (10, false), (20, false)], Some(1)),
        ..bridge()
    };
    links.0.insert(BRIDGE, filtering);
    let above = Link {
        kind: LinkKind::Vlan {
            on: BRIDGE,
            id: 10,
            is_service: false,
        },
        ..device("br0.10", "", 0x44)
    };
    links.0.insert(OTHER, above);
    links.0.get_mut(&LAN).unwrap().master = Some(BRIDGE);
    let mut found = |port: BridgeVlans| {
        links.0.get_mut(&LAN).unwrap().vlans = port;
        let found = ports(&links);
        [BRIDGE, OTHER].map(|index| {
            let port = found.get(index)?;
            let there = port.bridged.unwrap();
            assert_eq!(there.port, LAN);
            Ok((port.vlan, there.vlan))
        })
    };
    let refused = Err(Reason::Bridge);
    // As it is by default, with VLAN 10 on a trunk.
    let trunk = vlans(&[(1, true), (10, false)], Some(1));
    assert_eq!(found(trunk), [Ok((0, Some(1))), Ok((10, Some(10)))]);
    // An access port of VLAN 10, and one that tags all.
    let access = vlans(&[(10, true)], Some(10));
    assert_eq!(found(access), [refused, Ok((0, Some(10)))]);
    let tagging = vlans(&[(1, false), (10, false)], None);
    assert_eq!(found(tagging), [Ok((1, Some(1))), Ok((10, Some(10)))]);
    // What comes is not what goes; or nothing passes.
    let askew = vlans(&[(1, true), (10, true)], Some(1));
    assert_eq!(found(askew), [Ok((0, Some(1))), refused]);
    assert_eq!(found(BridgeVlans::default()), [refused; 2]);
}

#[test]
fn what_stands_against_a_vrf_stands_against_its_members() {
    let mut links = links();
    let vrf = Link {
        kind: LinkKind::Vrf { table: 100 },
        ..device("red", "", 0x66)
    };
    links.0.insert(OTHER, vrf);
    links.0.get_mut(&LAN).unwrap().master = Some(OTHER);
    assert_eq!(ports(&links).get(LAN).unwrap().vrf, Some(OTHER));
    links.0.get_mut(&OTHER).unwrap().is_shaped = true;
    assert_eq!(ports(&links).get(LAN), Err(Reason::Shaped));
}

#[test]
fn what_stands_against_an_interface_stands_against_those_above_it() {
    type Harm = fn(&mut Link);
    let harms: [(Harm, Reason); 4] = [
        (|link| link.is_up = false, Reason::Down),
        (|link| link.is_shaped = true, Reason::Shaped),
        (
            |link| link.obstacle = Some("xdp".to_owned()),
            Reason::Obstacle,
        ),
        (|link| link.name = "off0".to_owned(), Reason::Interface),
    ];
    for (harm, reason) in harms {
        let mut links = links();
        harm(links.0.get_mut(&LAN).unwrap());
        let switches = Switches {
            interfaces_off: vec!["off*".to_owned()],
            ..Switches::default()
        };
        let ports = Ports::new(&links, &element(), &switches);
        assert_eq!(ports.get(LAN), Err(reason));
        assert_eq!(ports.get(GUESTS), Err(reason));
        assert!(ports.get(WAN).is_ok());
    }
}

#[test]
fn tunnels_and_strangers_are_told_apart() {
    let mut links = links();
    for (kind, reason) in [
        ("wireguard", Reason::Tunnel),
        ("ppp", Reason::Tunnel),
        ("dummy", Reason::ForeignInterface),
        ("macvlan", Reason::ForeignInterface),
        ("macvtap", Reason::ForeignInterface),
        ("ipvlan", Reason::ForeignInterface),
    ] {
        let link = Link {
            kind: LinkKind::Other(kind.to_owned()),
            ..device("x0", "", 2)
        };
        links.0.insert(OTHER, link);
        assert_eq!(ports(&links).get(OTHER), Err(reason), "{kind}");
    }
    assert_eq!(
        ports(&links).get(IfIndex(99)),
        Err(Reason::ForeignInterface)
    );
}

#[test]
fn the_smallest_mtu_on_the_way_counts() {
    let mut links = links();
    links.0.get_mut(&LAN).unwrap().mtu = 1400;
    assert_eq!(ports(&links).get(GUESTS).unwrap().mtu, 1400);
}
