//! What a session does to packets is what the guest's two tuples imply.

use proptest::prelude::*;

use super::super::paths::{Exit, Search};
use super::super::settings::Switches;
use super::super::testing::{GUESTS, LAN, WAN, element, links, tcp};
use super::*;
use crate::agent::connection::Tuple;
use crate::agent::network::{IfIndex, Route};
use crate::api::convert::{VnicNames, to_request};
use crate::packet::VnicId;

struct Names;

impl VnicNames for Names {
    fn id(&self, name: &str) -> Option<VnicId> {
        ["v-lan", "v-wan"]
            .iter()
            .position(|own| *own == name)
            .map(|place| VnicId(place as u16))
    }

    fn name(&self, id: VnicId) -> Option<&str> {
        ["v-lan", "v-wan"].get(usize::from(id.0)).copied()
    }
}

fn ports() -> Ports {
    Ports::new(&links(), &element(), &Switches::default())
}

const fn leg(ingress: IfIndex, by: IfIndex) -> Leg {
    Leg {
        ingress,
        exit: Exit {
            by,
            next_hop: None,
            mtu: None,
        },
    }
}

const fn path(original: Leg, reply: Leg) -> Path {
    Path { original, reply }
}

const THROUGH: Path = path(leg(LAN, WAN), leg(WAN, LAN));

fn ask(connection: &Connection, path: &Path) -> Result<Session, Reason> {
    let full = connection.timeout.unwrap_or_default();
    session(connection, path, &ports(), full, HandOver::Ordered)
}

/// A packet: addresses and what tells flows apart. The oracle's own words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Packet {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

/// The packet that a tuple describes; an echo's identifier stands at both ends.
fn packet(tuple: &Tuple) -> Packet {
    let (from, to) = match tuple.ports {
        Numbers::Ports(from, to) => (from, to),
        Numbers::Icmp { id, .. } => (id, id),
        Numbers::None => (0, 0),
    };
    Packet {
        from: (tuple.source, from),
        to: (tuple.destination, to),
    }
}

fn answered(packet: Packet) -> Packet {
    Packet {
        from: packet.to,
        to: packet.from,
    }
}

/// What the session says becomes of a packet of its original direction.
fn translated(session: &Session, mut packet: Packet) -> Packet {
    let to = &session.original.translation;
    if let Some(id) = to.identifier {
        (packet.from.1, packet.to.1) = (id, id);
    }
    packet.from.0 = to.source_address.unwrap_or(packet.from.0);
    packet.to.0 = to.destination_address.unwrap_or(packet.to.0);
    packet.from.1 = to.source_port.unwrap_or(packet.from.1);
    packet.to.1 = to.destination_port.unwrap_or(packet.to.1);
    packet
}

/// A connection as a NAT makes it: any end may be another on the far side.
fn connections() -> impl Strategy<Value = Connection> {
    let v4 = any::<u32>().prop_map(|bits| IpAddr::V4(bits.into()));
    let v6 = any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()));
    let four = |of: BoxedStrategy<IpAddr>| [of.clone(), of.clone(), of.clone(), of];
    let addresses = prop_oneof![four(v4.boxed()), four(v6.boxed())];
    let numbers = (any::<[u16; 4]>(), any::<[bool; 4]>(), 0..4u8, any::<u32>());
    (addresses, numbers).prop_map(|(addresses, (numbers, is_changed, kind, id))| {
        let [near, far, nat, behind] = addresses;
        let source = if is_changed[0] { nat } else { near };
        let destination = if is_changed[1] { behind } else { far };
        let port = if is_changed[2] {
            numbers[2]
        } else {
            numbers[0]
        };
        let server = if is_changed[3] {
            numbers[3]
        } else {
            numbers[1]
        };
        let is_v4 = near.is_ipv4();
        let echo = |kind: u8, id| Numbers::Icmp { kind, code: 0, id };
        let (protocol, there, back) = match (kind, is_v4) {
            (0, true) => (1, echo(8, numbers[0]), echo(0, port)),
            (0, false) => (58, echo(128, numbers[0]), echo(129, port)),
            (1, _) => (50, Numbers::None, Numbers::None),
            _ => (
                if kind == 2 { 6 } else { 17 },
                Numbers::Ports(numbers[0], numbers[1]),
                Numbers::Ports(server, port),
            ),
        };
        let mut connection = tcp(1);
        connection.id = id;
        connection.original = Tuple {
            source: near,
            destination: far,
            protocol,
            ports: there,
        };
        connection.reply = Tuple {
            source: destination,
            destination: source,
            protocol,
            ports: back,
        };
        connection
    })
}

proptest! {
    #[test]
    fn a_translated_packet_is_the_one_that_is_answered(connection in connections()) {
        let session = ask(&connection, &THROUGH).unwrap();
        let out = translated(&session, packet(&connection.original));
        prop_assert_eq!(answered(out), packet(&connection.reply));
    }

    #[test]
    fn both_flows_of_the_backend_match_and_restore_the_tuples(connection in connections()) {
        let session = ask(&connection, &THROUGH).unwrap();
        let request = to_request(&session, &Names).unwrap();
        let [forth, back] = [request.original.unwrap(), request.reply.unwrap()];
        let flow = |of: crate::packet::Tuple| {
            // An echo's flow has its identifier at the source, its type at the destination.
            let is_echo = matches!(connection.original.ports, Numbers::Icmp { .. });
            let to = if is_echo { of.src_port } else { of.dst_port };
            Packet { from: (of.src, of.src_port), to: (of.dst, to) }
        };
        prop_assert_eq!(flow(forth.tuple), packet(&connection.original));
        prop_assert_eq!(flow(back.tuple), packet(&connection.reply));
        prop_assert_eq!(flow(back.translation), answered(packet(&connection.original)));
        prop_assert_eq!(flow(forth.translation), answered(packet(&connection.reply)));
    }
}

#[test]
fn nothing_is_said_that_follows_from_the_rest() {
    let mut plain = tcp(1);
    plain.reply = Tuple {
        source: plain.original.destination,
        destination: plain.original.source,
        ports: Numbers::Ports(443, 40_000),
        ..plain.original
    };
    let session = ask(&plain, &THROUGH).unwrap();
    assert!(session.original.translation.is_empty());
    assert!(session.reply.is_default());
    assert_eq!(session.original.l3_mtu, None);
    assert_eq!(session.idle_timeout.get(), 432_000);
}

#[test]
fn vlans_and_asymmetric_ways_are_asked_for_as_they_are() {
    let tagged = ask(&tcp(1), &path(leg(GUESTS, WAN), leg(WAN, GUESTS))).unwrap();
    assert_eq!(tagged.original.ingress_vnic, "v-lan");
    assert_eq!(tagged.original.ingress_vlan.get(), 7);
    assert!(tagged.reply.is_default());

    // Comes in tagged, and answers leave untagged by the same vNIC.
    let split = ask(&tcp(1), &path(leg(GUESTS, WAN), leg(WAN, LAN))).unwrap();
    assert_eq!(split.reply.egress_vnic, None);
    assert_eq!(split.reply.egress_vlan.map(|vlan| vlan.get()), Some(0));

    // From one VLAN to the other of a vNIC, and back.
    let hairpin = ask(&tcp(1), &path(leg(GUESTS, LAN), leg(LAN, GUESTS))).unwrap();
    assert_eq!(hairpin.original.egress_vnic, "v-lan");
    assert_eq!(hairpin.original.egress_vlan.get(), 0);
    let request = to_request(&hairpin, &Names).unwrap();
    assert_eq!(request.reply.unwrap().egress_vlan.map(u16::from), Some(7));
}

#[test]
fn the_mtu_is_the_smallest_of_route_and_links_and_only_told_if_below_the_vnics() {
    let with = |mtu: u32| {
        let mut path = THROUGH;
        path.original.exit.mtu = Some(mtu);
        path
    };
    let mtu = |session: Session| session.original.l3_mtu.map(|mtu| mtu.get());
    assert_eq!(ask(&tcp(1), &with(9000)).map(mtu), Ok(None));
    assert_eq!(ask(&tcp(1), &with(1500)).map(mtu), Ok(None));
    assert_eq!(ask(&tcp(1), &with(1400)).map(mtu), Ok(Some(1400)));
    assert_eq!(ask(&tcp(1), &with(60)).map(mtu), Err(Reason::Mtu));
    let mut six = tcp(1);
    let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
    (six.original.source, six.original.destination) = (v6("2001:db8::1"), v6("2001:db8::2"));
    (six.reply.source, six.reply.destination) = (v6("2001:db8::2"), v6("2001:db8::1"));
    assert_eq!(ask(&six, &with(1279)).map(mtu), Err(Reason::Mtu));
    assert_eq!(ask(&six, &with(1280)).map(mtu), Ok(Some(1280)));
}

#[test]
fn the_idle_timeout_stays_within_what_the_model_takes() {
    let idle = |seconds| {
        let full = Duration::from_secs(seconds);
        let session = session(&tcp(1), &THROUGH, &ports(), full, HandOver::Prompt);
        session.unwrap().idle_timeout.get()
    };
    assert_eq!(idle(0), 1);
    assert_eq!(idle(30), 30);
    assert_eq!(idle(u64::from(u32::MAX)), 604_800);
}

#[test]
fn a_search_ends_in_a_session() {
    let ports = ports();
    let connection = tcp(1);
    let mut search = Search::new(&connection, &ports);
    while let Some(query) = search.question() {
        let by = if query.destination == connection.original.source {
            LAN
        } else {
            WAN
        };
        let route = Route::Unicast {
            by,
            gateway: None,
            mtu: None,
            is_encapsulated: false,
        };
        search.answer(route, &ports);
    }
    let paths = search.finish(&ports).unwrap();
    assert!(ask(&connection, &paths[0]).is_ok());
}
