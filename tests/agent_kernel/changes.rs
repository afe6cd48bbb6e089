//! What changes under the connections.

use shunt::agent::kernel::NetworkEvents;
use shunt::agent::network::NetworkChange;

use crate::rig::{Rig, SERVER, soon};
use crate::support::tagging::AccessPort;

/// What rtnetlink tells of `work`: a rule of routing that comes and goes is the end of it.
async fn told(rig: &Rig, events: &mut NetworkEvents, work: impl FnOnce()) -> Vec<NetworkChange> {
    work();
    rig.router
        .ip("rule add pref 4242 to 203.0.113.1 lookup main");
    let mut told = Vec::new();
    loop {
        match next(events).await {
            NetworkChange::Routes => break,
            change => told.push(change),
        }
    }
    rig.router.ip("rule del pref 4242");
    assert_eq!(next(events).await, NetworkChange::Routes);
    told
}

/// The next change.
async fn next(events: &mut NetworkEvents) -> NetworkChange {
    soon("a change", events.next()).await.unwrap()
}

#[test]
fn a_neighbour_that_fails_or_changes_its_mac_is_told_once_and_staleness_never() {
    let rig = Rig::new();
    assert!(rig.router.pings(SERVER));
    let wan = rig.index("wan");
    let change = NetworkChange::Neighbour {
        on: wan,
        address: SERVER.parse().unwrap(),
    };
    for setting in ["retrans_time_ms=50", "ucast_solicit=1", "mcast_solicit=1"] {
        let setting = format!("net.ipv4.neigh.wan.{setting}");
        rig.router.succeed(&["sysctl", "-qw", &setting]);
    }
    let neighbour = |words: &str| {
        rig.router
            .ip(&format!("neighbour replace {SERVER} dev wan {words}"));
    };
    let mac = rig.server.mac("eth0");
    rig.run(async || {
        let mut events = NetworkEvents::open().await.unwrap();
        let stale = || {
            neighbour(&format!("lladdr {mac} nud stale"));
            neighbour(&format!("lladdr {mac} nud reachable"));
            neighbour(&format!("lladdr {mac} nud stale"));
        };
        assert_eq!(told(&rig, &mut events, stale).await, []);
        let other = || neighbour("lladdr 02:00:00:00:00:07 nud reachable");
        assert_eq!(
            told(&rig, &mut events, other).await,
            std::slice::from_ref(&change)
        );
        assert_eq!(told(&rig, &mut events, other).await, []);

        // It answers no more: the kernel itself finds out.
        rig.server.ip("link set eth0 arp off");
        neighbour(&format!("lladdr {mac} nud reachable"));
        assert_eq!(next(&mut events).await, change);
        neighbour(&format!("lladdr {mac} nud probe"));
        assert_eq!(next(&mut events).await, change);
        let again = || {
            rig.router.pings(SERVER);
        };
        assert_eq!(told(&rig, &mut events, again).await, []);
    });
}

#[test]
fn links_addresses_routes_rules_and_shapers_are_told_and_repetitions_are_not() {
    let rig = Rig::new();
    let (lan, wan) = (rig.index("lan"), rig.index("wan"));
    let links = NetworkChange::Links { gone: None };
    rig.run(async || {
        let mut events = NetworkEvents::open().await.unwrap();
        let ip = |words: &str| {
            rig.router.ip(words);
        };
        let promisc = || ip("link set wan promisc on");
        assert_eq!(told(&rig, &mut events, promisc).await, []);
        let mtu = || ip("link set wan mtu 1400");
        assert_eq!(
            told(&rig, &mut events, mtu).await,
            std::slice::from_ref(&links)
        );

        ip("address add 10.92.0.77/24 dev wan");
        let first = [next(&mut events).await, next(&mut events).await];
        assert!(first.contains(&NetworkChange::Addresses(wan)), "{first:?}");
        assert!(first.contains(&NetworkChange::Routes), "{first:?}");
        ip("address change 10.92.0.77/24 dev wan valid_lft 1000 preferred_lft 900");

        for words in [
            "route add 10.97.0.0/16 via 10.92.0.2",
            "route del 10.97.0.0/16",
            "-6 route add fd97::/64 via fd92::2",
            "rule add fwmark 9 lookup 9",
            "-6 rule add fwmark 9 lookup 9",
            "nexthop add id 7 via 10.92.0.2 dev wan",
        ] {
            ip(words);
            assert_eq!(next(&mut events).await, NetworkChange::Routes, "{words}");
        }
        rig.router
            .succeed(&["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
        assert_eq!(next(&mut events).await, NetworkChange::Routes);

        rig.router
            .succeed(&["tc", "qdisc", "add", "dev", "wan", "clsact"]);
        assert_eq!(next(&mut events).await, links);
        ip("link set lan down");
        let gone = NetworkChange::Links { gone: Some(lan) };
        while next(&mut events).await != gone {}
        ip("link del wan");
        let gone = NetworkChange::Links { gone: Some(wan) };
        while next(&mut events).await != gone {}
    });
}

#[test]
fn programs_on_tcx_hooks_are_told_as_they_come_and_go() {
    let rig = Rig::new();
    let links = NetworkChange::Links { gone: None };
    rig.run(async || {
        let mut events = NetworkEvents::open().await.unwrap();
        let programs = AccessPort::new(&rig.router, "lan", "wan", 7);
        assert_eq!(next(&mut events).await, links);
        drop(programs);
        assert_eq!(next(&mut events).await, links);
    });
}

#[test]
fn rulesets_of_all_kinds_and_policies_of_ipsec_are_told() {
    crate::support::process::needs("iptables-legacy", "iptables");
    crate::support::process::needs("ipset", "ipset");
    let rig = Rig::new();
    rig.run(async || {
        let mut events = NetworkEvents::open().await.unwrap();
        for (command, change) in [
            ("nft add table inet more", NetworkChange::Ruleset),
            (
                "nft add set inet more s { type ipv4_addr; }",
                NetworkChange::Ruleset,
            ),
            (
                "nft add element inet more s { 10.0.0.1 }",
                NetworkChange::Ruleset,
            ),
            (
                "ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out",
                NetworkChange::Xfrm,
            ),
            (
                "iptables-legacy -A FORWARD -s 10.0.0.7 -j DROP",
                NetworkChange::Ruleset,
            ),
            (
                "iptables-legacy -I FORWARD -s 10.0.0.8 -j DROP",
                NetworkChange::Ruleset,
            ),
            (
                "iptables-legacy -D FORWARD -s 10.0.0.7 -j DROP",
                NetworkChange::Ruleset,
            ),
            (
                "ip6tables-legacy -A FORWARD -s fd00::7 -j DROP",
                NetworkChange::Ruleset,
            ),
            (
                "ipset create blocked hash:ip timeout 600 counters",
                NetworkChange::Ruleset,
            ),
            ("ipset add blocked 10.0.0.9", NetworkChange::Ruleset),
            ("ipset add blocked 10.0.0.10", NetworkChange::Ruleset),
            ("ipset del blocked 10.0.0.9", NetworkChange::Ruleset),
        ] {
            let argv: Vec<&str> = command.split(' ').collect();
            rig.router.succeed(&argv);
            assert_eq!(next(&mut events).await, change, "{command}");
        }
    });
}

#[test]
fn packets_that_rules_count_and_timeouts_that_run_are_no_change_of_a_ruleset() {
    let rig = Rig::new();
    for command in [
        "iptables-legacy -A FORWARD -m limit --limit 50/s -j ACCEPT",
        "ip6tables-legacy -A FORWARD -m limit --limit 50/s -j ACCEPT",
        "ipset create known hash:ip timeout 600 counters",
        "ipset add known 10.91.0.2",
        "iptables-legacy -A FORWARD -m set --match-set known src -j ACCEPT",
    ] {
        rig.router.succeed(&command.split(' ').collect::<Vec<_>>());
    }
    rig.run(async || {
        let mut events = NetworkEvents::open().await.unwrap();
        let quiet = tokio::time::timeout(std::time::Duration::from_millis(1800), async {
            loop {
                let change = events.next().await.unwrap();
                // The neighbours of the pings come and go.
                assert_ne!(change, NetworkChange::Ruleset);
            }
        });
        let mut pings = 0;
        let traffic = async {
            for _ in 0..3 {
                pings += usize::from(rig.client.pings(SERVER));
                tokio::time::sleep(std::time::Duration::from_millis(550)).await;
            }
        };
        let (ended, ()) = tokio::join!(quiet, traffic);
        assert!(ended.is_err());
        assert_eq!(pings, 3);
    });
}

#[test]
fn changes_that_come_faster_than_they_are_read_are_told_as_lost() {
    let rig = Rig::new();
    let dir = crate::support::Dir::new();
    let batch = dir.path().join("routes");
    let routes: String = (0..60_000_u32)
        .map(|n| {
            format!(
                "route add 100.{}.{}.{}/32 dev wan\n",
                64 + (n >> 14),
                (n >> 7) & 127,
                n & 127
            )
        })
        .collect();
    std::fs::write(&batch, routes).unwrap();
    rig.run(async || {
        let mut events = NetworkEvents::open().await.unwrap();
        rig.router
            .succeed(&["ip", "-batch", batch.to_str().unwrap()]);
        let mut changes = Vec::new();
        while changes.last() != Some(&NetworkChange::Lost) {
            changes.push(next(&mut events).await);
        }
        // It hears on, and knows what is there.
        rig.router.ip("link set lan mtu 1300");
        while next(&mut events).await != (NetworkChange::Links { gone: None }) {}
    });
}
