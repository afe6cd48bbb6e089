//! Connections and interfaces for tests.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::agent::connection::{Connection, Counters, Ports, Status, TcpState, Tuple};
use crate::agent::network::{BridgeVlans, IfIndex, Link, LinkKind, Links};
use crate::packet::MacAddr;
use crate::packet::key::protocol;

use super::ports::{Element, Vnic};

pub const LAN: IfIndex = IfIndex(2);
pub const WAN: IfIndex = IfIndex(3);
/// A VLAN on [`LAN`].
pub const GUESTS: IfIndex = IfIndex(4);
pub const NAT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

pub const fn client(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + number)
}

pub fn tuple(protocol: u8, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Tuple {
    Tuple {
        source: IpAddr::V4(from.0),
        destination: IpAddr::V4(to.0),
        protocol,
        ports: Ports::Ports(from.1, to.1),
    }
}

/// An established TCP connection of client `number`, masqueraded.
pub fn tcp(number: u32) -> Connection {
    connection(number, protocol::TCP)
}

/// The same of UDP.
pub fn udp(number: u32) -> Connection {
    Connection {
        tcp: None,
        timeout: Some(Duration::from_secs(120)),
        ..connection(number, protocol::UDP)
    }
}

fn connection(number: u32, protocol: u8) -> Connection {
    let port = 1024 + (number % 60_000) as u16;
    Connection {
        id: 1000 + number,
        original: tuple(protocol, (client(number), 40_000), (SERVER, 443)),
        reply: tuple(protocol, (SERVER, 443), (NAT, port)),
        zone: 0,
        status: Status(
            Status::SEEN_REPLY.0 | Status::ASSURED.0 | Status::CONFIRMED.0 | Status::SRC_NAT.0,
        ),
        mark: 0,
        timeout: Some(Duration::from_secs(432_000)),
        tcp: Some(TcpState::ESTABLISHED),
        counters: Some([Counters::default(); 2]),
        helper: None,
        has_master: false,
        shifts_sequence: false,
    }
}

pub fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

pub fn device(name: &str, bus_path: &str, last: u8) -> Link {
    Link {
        name: name.to_owned(),
        kind: LinkKind::Device {
            bus_path: Some(bus_path.to_owned()),
        },
        mac: mac(last),
        mtu: 1500,
        is_up: true,
        master: None,
        is_shaped: false,
        obstacle: None,
        vlans: BridgeVlans::default(),
    }
}

/// `lan` and `wan`, and a VLAN 7 on `lan`.
pub fn links() -> Links {
    let guests = Link {
        kind: LinkKind::Vlan {
            on: LAN,
            id: 7,
            is_service: false,
        },
        ..device("lan.7", "", 2)
    };
    Links(
        [
            (LAN, device("lan", "0000:00:02.0", 2)),
            (WAN, device("wan", "0000:00:03.0", 3)),
            (GUESTS, guests),
        ]
        .into(),
    )
}

pub fn element() -> Element {
    let vnic = |name: &str, bus_path: &str, last| Vnic {
        name: name.to_owned(),
        mac: mac(last),
        bus_path: Some(bus_path.to_owned()),
        mtu: Some(1500),
    };
    Element {
        name: "r1".to_owned(),
        vnics: vec![
            vnic("v-lan", "0000:00:02.0", 2),
            vnic("v-wan", "0000:00:03.0", 3),
        ],
        ..Element::default()
    }
}
