//! Links, routes and neighbours, beside what `ip`, `tc` and `bridge` say.

use std::net::IpAddr;

use serde_json::Value;
use shunt::agent::network::{Bridged, IfIndex, LinkKind, Links, Route, RouteQuery};

use crate::rig::{CLIENT, CLIENT_6, Rig, SERVER, SERVER_6, SOON, WAN, index};
use crate::support::eventually;
use crate::support::tagging::AccessPort;

fn json(rig: &Rig, argv: &[&str]) -> Vec<Value> {
    serde_json::from_str(&rig.router.succeed(argv)).unwrap()
}

#[test]
fn links_are_what_ip_shows_with_their_masters_and_kinds() {
    let rig = Rig::new();
    for command in [
        "link add br0 type bridge",
        "link add port0 type veth peer name port1",
        "link set port0 master br0 up",
        "link set br0 up",
        "link set wan mtu 1400",
        "link add mv0 link lan type macvlan",
    ] {
        rig.router.ip(command);
    }
    let links = rig.ask(async |kernel| kernel.links().await.unwrap());
    let shown = json(&rig, &["ip", "-json", "-details", "link", "show"]);
    assert_eq!(links.0.len(), shown.len());
    let by_name = |name: &Value| index(&rig.router, name.as_str().unwrap());
    for theirs in shown {
        let number = IfIndex(theirs["ifindex"].as_u64().unwrap().try_into().unwrap());
        let ours = &links.0[&number];
        assert_eq!(ours.name, theirs["ifname"].as_str().unwrap());
        assert_eq!(u64::from(ours.mtu), theirs["mtu"].as_u64().unwrap());
        assert_eq!(ours.mac.to_string(), theirs["address"].as_str().unwrap());
        let flags = theirs["flags"].as_array().unwrap();
        let has = |flag: &str| flags.iter().any(|of| of == flag);
        assert_eq!(ours.is_up, has("UP") && has("LOWER_UP"), "{theirs}");
        assert_eq!(ours.master, theirs.get("master").map(by_name));
        let kind = match theirs["linkinfo"]["info_kind"].as_str() {
            Some("bridge") => LinkKind::Bridge {
                filters_vlans: false,
            },
            Some(kind) => LinkKind::Other(kind.to_owned()),
            None => LinkKind::Other("loopback".to_owned()),
        };
        assert_eq!(ours.kind, kind);
        assert_eq!(ours.obstacle.is_some(), has("NOARP"), "{theirs}");
    }
}

fn is_shaped(links: &Links, on: IfIndex) -> bool {
    links.0[&on].is_shaped
}

#[test]
fn an_interface_with_a_shaper_or_an_ingress_hook_is_shaped_and_others_are_not() {
    let rig = Rig::new();
    let (lan, wan) = (rig.index("lan"), rig.index("wan"));
    rig.ask(async |kernel| {
        let tc = |arguments: &str| {
            let mut argv = vec!["tc", "qdisc"];
            argv.extend(arguments.split_whitespace());
            rig.router.succeed(&argv);
        };
        let shaped = async || {
            let links = kernel.links().await.unwrap();
            (is_shaped(&links, lan), is_shaped(&links, wan))
        };
        assert_eq!(shaped().await, (false, false));
        tc("add dev wan root tbf rate 10mbit burst 32k latency 50ms");
        assert_eq!(shaped().await, (false, true));
        tc("del dev wan root");
        tc("add dev lan clsact");
        assert_eq!(shaped().await, (true, false));
        tc("del dev lan clsact");
        tc("add dev lan root pfifo_fast");
        assert_eq!(shaped().await, (false, false));
    });
}

#[test]
fn an_interface_with_a_program_on_its_tcx_hooks_is_left_alone_while_it_has_one() {
    let rig = Rig::new();
    let (lan, wan) = (rig.index("lan"), rig.index("wan"));
    rig.ask(async |kernel| {
        let obstacles = async || {
            let links = kernel.links().await.unwrap();
            [lan, wan].map(|index| links.0[&index].obstacle.clone())
        };
        assert_eq!(obstacles().await, [None, None]);
        let programs = AccessPort::new(&rig.router, "lan", "wan", 7);
        let found = obstacles().await;
        let is_said = |of: &Option<String>| of.as_ref().is_some_and(|of| of.contains("tcx"));
        assert!(found.iter().all(is_said), "{found:?}");
        drop(programs);
        assert_eq!(obstacles().await, [None, None]);
    });
}

fn query(source: &str, destination: &str, ingress: Option<IfIndex>) -> RouteQuery {
    RouteQuery {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: 6,
        ports: Some((1234, 80)),
        ingress,
        vrf: None,
        mark: 0,
    }
}

/// What `ip route get` says of the same packet.
fn shown(rig: &Rig, query: &RouteQuery, ingress: Option<&str>) -> Route {
    let (source, destination) = (query.source.to_string(), query.destination.to_string());
    let mark = query.mark.to_string();
    let mut argv = vec!["ip", "-json", "route", "get", &destination];
    if let Some(ingress) = ingress {
        argv.extend(["from", &source, "iif", ingress]);
    }
    argv.extend([
        "mark", &mark, "ipproto", "6", "sport", "1234", "dport", "80",
    ]);
    let output = rig.router.exec(&argv);
    let Ok(routes) = serde_json::from_slice::<Vec<Value>>(&output.stdout) else {
        return Route::None;
    };
    match routes[0]["type"].as_str() {
        None | Some("unicast") => Route::Unicast {
            by: index(&rig.router, routes[0]["dev"].as_str().unwrap()),
            gateway: routes[0]["gateway"]
                .as_str()
                .or(routes[0]["via"]["host"].as_str())
                .map(|text| text.parse().unwrap()),
            mtu: routes[0]["metrics"][0]["mtu"]
                .as_u64()
                .map(|mtu| mtu.try_into().unwrap()),
            is_encapsulated: routes[0].get("encap").is_some(),
        },
        Some("local") => Route::Local,
        _ => Route::None,
    }
}

#[test]
fn routes_are_what_ip_route_get_says_with_rules_marks_and_types() {
    let rig = Rig::new();
    for command in [
        "route add 10.93.0.0/16 via 10.92.0.2 mtu 1300",
        "route add blackhole 10.94.0.0/24",
        "route add unreachable 10.94.1.0/24",
        "route add prohibit 10.94.2.0/24",
        "route add default via 10.92.0.9 table 77",
        "rule add fwmark 0x5 table 77",
        "rule add ipproto 6 dport 80 to 10.95.0.0/16 table 77",
        "-6 route add fd93::/64 via fd92::2 mtu 1320",
        "-6 route add unreachable fd94::/64",
        "route add 10.96.0.0/24 via inet6 fd92::2 dev wan",
    ] {
        rig.router.ip(command);
    }
    rig.router
        .succeed(&["sysctl", "-qw", "net.ipv4.conf.lan.rp_filter=1"]);
    let lan = rig.index("lan");
    let mut queries = Vec::new();
    for destination in [
        SERVER,
        "10.93.1.1",
        "10.94.0.1",
        "10.94.1.1",
        "10.94.2.1",
        "10.95.1.1",
        "10.96.0.1",
        "10.99.0.1",
        WAN,
        "224.0.0.9",
        "10.92.0.255",
        "255.255.255.255",
    ] {
        queries.push(query(CLIENT, destination, Some(lan)));
        queries.push(query(WAN, destination, None));
    }
    for destination in [
        SERVER_6, "fd93::1", "fd94::1", "fd99::1", "fd92::1", "ff02::1",
    ] {
        queries.push(query(CLIENT_6, destination, Some(lan)));
        queries.push(query("fd92::1", destination, None));
    }
    queries.push(RouteQuery {
        mark: 5,
        ..query(CLIENT, "10.99.0.1", Some(lan))
    });
    // A source that does not belong there.
    queries.push(query("10.92.0.77", SERVER, Some(lan)));
    rig.ask(async |kernel| {
        for query in queries {
            let ours = kernel.route(&query).await;
            let ours = ours.unwrap_or_else(|error| panic!("{query:?}: {error}"));
            let theirs = shown(&rig, &query, query.ingress.map(|_| "lan"));
            assert_eq!(ours, theirs, "{query:?}");
        }
        // A source that is not the element's own is left out.
        let foreign = kernel.route(&query(CLIENT, SERVER, None)).await.unwrap();
        let by_wan = Route::Unicast {
            by: rig.index("wan"),
            gateway: None,
            mtu: None,
            is_encapsulated: false,
        };
        assert_eq!(foreign, by_wan);
    });
}

#[test]
fn a_route_into_a_tunnel_of_its_own_or_under_a_policy_of_ipsec_is_encapsulated() {
    let rig = Rig::new();
    rig.router
        .ip("-6 route add fd97::/64 encap seg6 mode encap segs fd92::2 dev wan");
    let lan = rig.index("lan");
    rig.ask(async |kernel| {
        let is_encapsulated = async |source: &str, destination: &str| match kernel
            .route(&query(source, destination, Some(lan)))
            .await
            .unwrap()
        {
            Route::Unicast {
                is_encapsulated, ..
            } => is_encapsulated,
            other => panic!("{other:?}"),
        };
        assert!(is_encapsulated(CLIENT_6, "fd97::1").await);
        assert!(!is_encapsulated(CLIENT_6, SERVER_6).await);
        assert!(!is_encapsulated(CLIENT, SERVER).await);
        rig.router.ip(
            "xfrm policy add src 10.91.0.0/24 dst 10.92.0.0/24 dir out priority 9 \
             tmpl src 10.92.0.1 dst 10.92.0.2 proto esp mode tunnel",
        );
        assert!(is_encapsulated(CLIENT, SERVER).await);
        assert!(!is_encapsulated(CLIENT_6, SERVER_6).await);
        rig.router
            .ip("xfrm policy add src 10.91.0.2/32 dst 10.92.0.0/24 dir out priority 3");
        assert!(!is_encapsulated(CLIENT, SERVER).await);
    });
}

#[test]
fn a_stale_neighbour_that_is_used_is_asked_for_and_an_unknown_one_is_found() {
    let rig = Rig::new();
    let wan = rig.index("wan");
    let state = |address: &str| {
        let shown = json(
            &rig,
            &[
                "ip",
                "-json",
                "neighbour",
                "show",
                "to",
                address,
                "dev",
                "wan",
            ],
        );
        shown
            .first()
            .map(|entry| entry["state"][0].as_str().unwrap().to_owned())
    };
    assert!(rig.router.pings(SERVER));
    rig.router
        .ip(&format!("neighbour change {SERVER} dev wan nud stale"));
    rig.ask(async |kernel| {
        let use_it = async |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            kernel.use_neighbour(wan, address).await.unwrap();
        };
        use_it(SERVER).await;
        assert_ne!(state(SERVER).as_deref(), Some("STALE"));
        use_it(SERVER_6).await;
    });
    eventually(SOON, "the neighbour answers", || {
        state(SERVER_6).as_deref() == Some("REACHABLE")
    });
}

#[test]
fn a_bridge_entry_that_is_used_stays_young_and_at_its_port() {
    let rig = Rig::new();
    for command in [
        "link add br0 type bridge",
        "link add p0 type veth peer name q0",
        "link add p1 type veth peer name q1",
        "link set br0 up",
    ] {
        rig.router.ip(command);
    }
    for port in ["p0", "p1"] {
        rig.router.ip(&format!("link set {port} master br0 up"));
        rig.router
            .ip(&format!("link set {} up", port.replace('p', "q")));
    }
    for command in [
        "link set br0 address 02:00:00:00:00:01",
        "address add 10.93.0.1/24 dev br0",
        "neighbour add 10.93.0.9 lladdr 02:00:00:00:00:99 dev br0 nud permanent",
    ] {
        rig.router.ip(command);
    }
    let bridge = |command: &str| {
        let command = format!("bridge fdb {command}");
        rig.router.succeed(&command.split(' ').collect::<Vec<_>>());
    };
    bridge("add 02:00:00:00:00:99 dev p0 master dynamic");
    let entry = || {
        let shown = json(
            &rig,
            &["bridge", "-statistics", "-json", "fdb", "show", "br", "br0"],
        );
        shown
            .into_iter()
            .find(|entry| entry["mac"] == "02:00:00:00:00:99" && entry.get("vlan").is_none())
            .map(|entry| {
                let port = entry["ifname"].as_str().unwrap().to_owned();
                (port, entry["updated"].as_u64().unwrap())
            })
    };
    let (br0, p0, p1) = (rig.index("br0"), rig.index("p0"), rig.index("p1"));
    let address: IpAddr = "10.93.0.9".parse().unwrap();
    let stranger: IpAddr = "10.93.0.10".parse().unwrap();
    let behind = |port| Bridged { port, vlan: None };
    let age = |least| {
        eventually(SOON, "the entry ages", || {
            entry().is_some_and(|(_, updated)| updated >= least)
        });
    };
    rig.ask(async |kernel| {
        age(2);
        // At another port: what the bridge saw is newer.
        kernel.use_bridged(br0, address, behind(p1)).await.unwrap();
        kernel.use_bridged(br0, stranger, behind(p0)).await.unwrap();
        let (port, updated) = entry().unwrap();
        assert!(port == "p0" && updated >= 2, "{port} {updated}");
        kernel.use_bridged(br0, address, behind(p0)).await.unwrap();
        let (port, updated) = entry().unwrap();
        assert!(port == "p0" && updated < 2, "{port} {updated}");
        // One that is gone stays so.
        bridge("del 02:00:00:00:00:99 dev p0 master");
        kernel.use_bridged(br0, address, behind(p0)).await.unwrap();
        assert_eq!(entry(), None);
    });
}
