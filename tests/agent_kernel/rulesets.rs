//! What rulesets must see, of real tools' making.

use shunt::agent::network::Hazard;

use crate::rig::Rig;
use crate::support::process::needs;

fn hazards(rig: &Rig) -> Vec<String> {
    let found: Vec<Hazard> = rig.ask(async |kernel| kernel.hazards().await.unwrap());
    found
        .into_iter()
        .map(|hazard| format!("{} in {}", hazard.what, hazard.chain))
        .collect()
}

/// Hazards with these rules only.
fn of_nft(rig: &Rig, rules: &str) -> Vec<String> {
    rig.nft("flush ruleset");
    rig.nft(rules);
    hazards(rig)
}

#[test]
fn what_forwarded_packets_of_established_connections_come_to_is_a_hazard() {
    let rig = Rig::new();
    assert_eq!(hazards(&rig), Vec::<String>::new());
    let base = "type filter hook forward priority 0;";
    for (rules, expected) in [
        (
            format!("table inet t {{ chain c {{ {base} limit rate 100/second accept; }} }}"),
            vec!["limit in inet t c"],
        ),
        (
            format!(
                "table ip t {{ chain c {{ {base} ip saddr 10.0.0.1 quota over 1 mbytes drop; }} }}"
            ),
            vec!["quota in ip t c"],
        ),
        (
            // Packets of input are not forwarded.
            "table inet t { chain c { type filter hook input priority 0; \
             limit rate 1/second accept; } }"
                .to_owned(),
            vec![],
        ),
        (
            // What is routed by a bridge's own interface comes to its input and output.
            "table bridge t { chain c { type filter hook input priority 0; \
             limit rate 1/second accept; } }\n\
             table bridge u { chain c { type filter hook output priority 0; \
             quota over 1 mbytes drop; } }"
                .to_owned(),
            vec!["limit in bridge t c", "quota in bridge u c"],
        ),
        (
            // Nobody jumps there.
            format!(
                "table inet t {{ chain c {{ {base} }}; chain d {{ limit rate 1/second drop; }} }}"
            ),
            vec![],
        ),
        (
            format!(
                "table inet t {{ chain d {{ limit rate 1/second drop; }}; \
                 chain c {{ {base} tcp dport 80 jump d; }} }}"
            ),
            vec!["limit in inet t d"],
        ),
        (
            format!(
                "table inet t {{ chain c {{ {base} ct state new limit rate 1/second drop; }} }}"
            ),
            vec![],
        ),
        (
            format!(
                "table inet t {{ chain c {{ {base} ct state {{ new, untracked }} \
                 limit rate 1/second drop; }} }}"
            ),
            vec![],
        ),
        (
            format!(
                "table inet t {{ chain c {{ {base} ct state != {{ established, related }} \
                 limit rate 1/second drop; }} }}"
            ),
            vec![],
        ),
        (
            format!(
                "table inet t {{ chain c {{ {base} ct state established,related counter accept; \
                 limit rate 1/second drop; }} }}"
            ),
            vec![],
        ),
        (
            format!(
                "table inet t {{ chain d {{ limit rate 1/second drop; }}; \
                 chain e {{ quota over 1 mbytes drop; }}; chain c {{ {base} \
                 ct state vmap {{ established : accept, invalid : drop, new : jump d }}; \
                 jump e; }} }}"
            ),
            vec![],
        ),
        (
            format!(
                "table inet t {{ chain d {{ limit rate 1/second drop; }}; chain c {{ {base} \
                 iifname vmap {{ \"lan\" : jump d, \"wan\" : accept }}; }} }}"
            ),
            vec!["limit in inet t d"],
        ),
        (
            format!(
                "table inet t {{ map m {{ type ipv4_addr : verdict; \
                 elements = {{ 10.0.0.1 : jump d }} }}; chain d {{ limit rate 1/second drop; }}; \
                 chain c {{ {base} ip saddr vmap @m; }} }}"
            ),
            vec!["limit in inet t d"],
        ),
        (
            // For a log's sake.
            format!(
                "table inet t {{ chain c {{ {base} limit rate 1/second log prefix \"x\"; \
                 ct state established accept; }} }}"
            ),
            vec![],
        ),
        (
            "table inet t { chain c { type nat hook prerouting priority dstnat; \
             limit rate 1/second accept; } }"
                .to_owned(),
            vec![],
        ),
        (
            // Before conntrack no packet is established.
            "table inet t { chain c { type filter hook prerouting priority raw; \
             ct state established accept; limit rate 1/second drop; } }"
                .to_owned(),
            vec!["limit in inet t c"],
        ),
        (
            format!(
                "table inet t {{ set s {{ type ipv4_addr; size 99; flags dynamic; }}; \
                 chain c {{ {base} update @s {{ ip saddr limit rate over 1/second }} drop; }} }}"
            ),
            vec!["limit in inet t c"],
        ),
        (
            format!(
                "table inet t {{ quota q {{ over 1 mbytes }}; \
                 chain c {{ {base} quota name \"q\" drop; }} }}"
            ),
            vec!["quota in inet t c"],
        ),
        (
            format!("table inet t {{ chain c {{ {base} ct bytes > 1000 drop; }} }}"),
            vec!["ct bytes in inet t c"],
        ),
        (
            format!("table ip t {{ chain c {{ {base} dup to 10.92.0.2 device wan; }} }}"),
            vec!["dup in ip t c"],
        ),
        (
            "table netdev t { chain c { type filter hook ingress device lan priority 0; \
             fwd to wan; } }"
                .to_owned(),
            vec!["fwd in netdev t c"],
        ),
        (
            "table ip t { chain c { type filter hook prerouting priority mangle; \
             tcp dport 80 tproxy to :8080 accept; } }"
                .to_owned(),
            vec!["tproxy in ip t c"],
        ),
        (
            format!("table inet t {{ chain c {{ {base} tcp dport 80 synproxy; }} }}"),
            vec!["synproxy in inet t c"],
        ),
        (
            format!("table inet t {{ chain c {{ {base} ct count over 9 drop; }} }}"),
            vec!["connlimit in inet t c"],
        ),
    ] {
        assert_eq!(of_nft(&rig, &rules), expected, "{rules}");
    }
}

#[test]
fn rules_of_iptables_old_and_new_are_hazards_by_their_own_names() {
    needs("iptables-legacy", "iptables");
    let rig = Rig::new();
    rig.nft("flush ruleset");
    for (program, label) in [
        ("iptables-legacy", "iptables filter"),
        ("ip6tables-legacy", "ip6tables filter"),
        ("iptables-nft", "ip filter"),
        ("ip6tables-nft", "ip6 filter"),
    ] {
        let run = |arguments: &str| {
            let mut argv = vec![program];
            argv.extend(arguments.split(' '));
            rig.router.succeed(&argv);
        };
        let expect = |what: &str, chain: &str| {
            assert_eq!(
                hazards(&rig),
                [format!("{what} in {label} {chain}")],
                "{program}"
            );
        };
        let none = || assert_eq!(hazards(&rig), Vec::<String>::new(), "{program}");

        run("-A INPUT -m limit --limit 5/min -j ACCEPT");
        run("-A FORWARD -m limit --limit 5/min -j LOG");
        run("-A FORWARD -m conntrack --ctstate NEW -m limit --limit 5/min -j ACCEPT");
        none();
        run("-A FORWARD -p tcp -m hashlimit --hashlimit-upto 5/sec --hashlimit-name a -j ACCEPT");
        expect("hashlimit", "FORWARD");
        run("-I FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        none();
        run("-D FORWARD 1");
        run("-I FORWARD -m state --state ESTABLISHED -m comment --comment x -j ACCEPT");
        none();
        run("-D FORWARD 1");
        // A jump that surely ends, and one that may.
        run("-N first");
        run("-A first -m conntrack --ctstate ESTABLISHED -j ACCEPT");
        run("-I FORWARD -j first");
        none();
        run("-R FORWARD 1 -p udp -j first");
        expect("hashlimit", "FORWARD");
        run("-F FORWARD");
        run("-F first");
        run("-A first -m connlimit --connlimit-above 9 -j REJECT");
        none();
        run("-A FORWARD -p tcp -g first");
        expect("connlimit", "first");
        run("-F");
        run("-A FORWARD -j NFQUEUE --queue-num 1");
        expect("NFQUEUE", "FORWARD");
        run("-F");
        run("-X");
        run(
            "-t mangle -A PREROUTING -p tcp -m statistic --mode nth --every 3 --packet 0 -j MARK --set-mark 1",
        );
        let found = hazards(&rig);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("mangle PREROUTING"), "{found:?}");
        run("-t mangle -F");
        none();
    }
}

#[test]
fn a_kernel_without_rules_has_no_hazards() {
    let rig = Rig::new();
    rig.nft("flush ruleset");
    rig.ask(async |kernel| {
        assert_eq!(kernel.hazards().await.unwrap(), []);
    });
}
