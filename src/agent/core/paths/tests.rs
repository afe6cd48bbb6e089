//! Searches in routers of several kinds.

use super::super::settings::Switches;
use super::super::testing::{GUESTS, LAN, WAN, client, device, element, links, tcp};
use super::*;
use crate::agent::network::{Link, LinkKind, Links};

const OTHER: IfIndex = IfIndex(9);
const VRF: IfIndex = IfIndex(20);

fn ports(links: &Links) -> Ports {
    Ports::new(links, &element(), &Switches::default())
}

fn by(by: IfIndex) -> Route {
    Route::Unicast {
        by,
        gateway: None,
        mtu: None,
        is_encapsulated: false,
    }
}

/// Asks until the search is over; also how many questions it took.
fn search(
    connection: &Connection,
    ports: &Ports,
    answer: impl Fn(&RouteQuery) -> Route,
) -> (Result<Vec<Path>, Reason>, usize) {
    let mut search = Search::new(connection, ports);
    let mut asked = 0;
    while let Some(query) = search.question() {
        asked += 1;
        assert!(asked <= QUESTIONS_MAX);
        search.answer(answer(&query), ports);
    }
    (search.finish(ports), asked)
}

fn to_client(query: &RouteQuery) -> bool {
    query.destination == IpAddr::V4(client(1))
}

/// (ingress, egress) of both directions.
fn ends(path: &Path) -> [(IfIndex, IfIndex); 2] {
    path.legs().map(|leg| (leg.ingress, leg.exit.by))
}

#[test]
fn a_plain_router_is_asked_three_times_and_has_one_way() {
    let ports = ports(&links());
    let mut asked = Vec::new();
    let mut search = Search::new(&tcp(1), &ports);
    while let Some(query) = search.question() {
        asked.push((query.ingress, query.ports));
        let next = if to_client(&query) { LAN } else { WAN };
        search.answer(by(next), &ports);
    }
    // As the kernel decides: translated destination, untranslated source.
    assert_eq!(
        asked,
        [
            (None, Some((443, 40_000))),
            (Some(LAN), Some((40_000, 443))),
            (Some(WAN), Some((443, 40_000))),
        ]
    );
    let paths = search.finish(&ports).unwrap();
    assert_eq!(ends(&paths[0]), [(LAN, WAN), (WAN, LAN)]);
    assert_eq!(paths[0].reply.exit.next_hop, Some(IpAddr::V4(client(1))));
}

#[test]
fn what_ends_in_the_element_or_goes_nowhere_is_told_so() {
    let ports = ports(&links());
    let encapsulated = Route::Unicast {
        by: WAN,
        gateway: None,
        mtu: None,
        is_encapsulated: true,
    };
    for (route, reason) in [
        (Route::Local, Reason::Local),
        (Route::None, Reason::Unrouted),
        (encapsulated, Reason::Tunnel),
        (by(IfIndex(77)), Reason::ForeignInterface),
    ] {
        for is_back in [false, true] {
            let (found, _) = search(&tcp(1), &ports, |query| match to_client(query) == is_back {
                true => route,
                false => by(if is_back { WAN } else { LAN }),
            });
            assert_eq!(found, Err(reason));
        }
    }
}

#[test]
fn a_rule_that_looks_at_the_interface_makes_an_asymmetric_way() {
    let mut links = links();
    links.0.insert(OTHER, device("dmz", "0000:00:09.0", 9));
    let mut element = element();
    element.vnics.push(super::super::ports::Vnic {
        name: "v-dmz".to_owned(),
        bus_path: Some("0000:00:09.0".to_owned()),
        ..element.vnics[0].clone()
    });
    let ports = Ports::new(&links, &element, &Switches::default());
    // Answers go to the LAN, but those that come in from the WAN go to the DMZ.
    let (found, asked) = search(&tcp(1), &ports, |query| {
        match (to_client(query), query.ingress) {
            (true, None) => by(LAN),
            (true, Some(_)) => by(OTHER),
            (false, _) => by(WAN),
        }
    });
    assert_eq!(asked, 4);
    assert_eq!(ends(&found.unwrap()[0]), [(OTHER, WAN), (WAN, OTHER)]);
}

#[test]
fn other_ways_are_tried_after_the_one_that_routes_tell() {
    let ports = ports(&links());
    let (found, _) = search(&tcp(1), &ports, |query| {
        by(if to_client(query) { GUESTS } else { WAN })
    });
    let found: Vec<_> = found.unwrap().iter().map(ends).collect();
    assert_eq!(
        found,
        [
            [(GUESTS, WAN), (WAN, GUESTS)],
            // Answers come in elsewhere; the original comes in elsewhere; equal routes.
            [(GUESTS, WAN), (LAN, GUESTS)],
            [(LAN, WAN), (WAN, GUESTS)],
            [(GUESTS, LAN), (LAN, GUESTS)],
            [(LAN, WAN), (WAN, LAN)],
        ]
    );
}

#[test]
fn a_hairpin_is_a_way() {
    let ports = ports(&links());
    let (found, _) = search(&tcp(1), &ports, |_| by(LAN));
    assert_eq!(ends(&found.unwrap()[0]), [(LAN, LAN), (LAN, LAN)]);
}

#[test]
fn every_vrf_is_asked_and_the_mark_before_none() {
    let mut links = links();
    let vrf = Link {
        kind: LinkKind::Vrf { table: 100 },
        ..device("blue", "", 20)
    };
    links.0.insert(VRF, vrf);
    for index in [LAN, WAN] {
        links.0.get_mut(&index).unwrap().master = Some(VRF);
    }
    let ports = ports(&links);
    let mut marked = tcp(1);
    marked.mark = 5;
    let mut contexts = Vec::new();
    let mut search = Search::new(&marked, &ports);
    while let Some(query) = search.question() {
        contexts.push((query.vrf, query.ingress, query.mark));
        // The default table knows nothing; the VRF's only packets with the mark.
        let known = query.mark == 5 && (query.vrf.is_some() || query.ingress.is_some());
        let next = if to_client(&query) { LAN } else { WAN };
        search.answer(if known { by(next) } else { Route::None }, &ports);
    }
    assert_eq!(
        contexts,
        [
            (None, None, 5),
            (None, None, 0),
            (Some(VRF), None, 5),
            (None, Some(LAN), 5),
            (None, Some(WAN), 5),
            (Some(VRF), None, 0),
        ]
    );
    assert_eq!(
        ends(&search.finish(&ports).unwrap()[0]),
        [(LAN, WAN), (WAN, LAN)]
    );
}

#[test]
fn a_router_of_many_interfaces_has_few_candidates() {
    let mut links = links();
    for number in 0..50 {
        let vlan = Link {
            kind: LinkKind::Vlan {
                on: LAN,
                id: 100 + number,
                is_service: false,
            },
            ..device(&format!("lan.{number}"), "", 2)
        };
        links.0.insert(IfIndex(100 + u32::from(number)), vlan);
    }
    let ports = ports(&links);
    let (found, _) = search(&tcp(1), &ports, |query| {
        by(if to_client(query) { LAN } else { WAN })
    });
    assert_eq!(found.unwrap().len(), PATHS_MAX);
}
