//! Sets of a real nftables, mirrored as shields.

use std::process::Command;

use serde_json::Value;

use super::program::{Agent, config, names};
use super::support::netns::Netns;
use super::support::process::needs;
use super::support::shunt::{Shunt, binary};
use super::support::{Dir, eventually};
use super::{CONFIG, SOON};

const RULESET: &str = "\
table inet filter {
  set bad4 { type ipv4_addr; flags interval; elements = { 198.51.100.0/24, 203.0.113.5-203.0.113.8 } }
  set short { type ipv4_addr; timeout 3s; }
  set flood { type ipv4_addr; flags dynamic, timeout; timeout 60s; size 100; }
  set ports { type inet_service; elements = { 80 } }
  chain input { type filter hook input priority 0;
    ip daddr 127.9.9.9 add @flood { ip saddr }
  }
}
table ip6 six {
  set bad6 { type ipv6_addr; elements = { 2001:db8::5 } }
}
";

const SETS: &str = "\
[shields]
interval = 0.2
maximum = 60
[[shields.set]]
table = 'filter'
set = 'bad4'
priority = 7
[[shields.set]]
table = 'filter'
set = 'short'
match = 'destination'
[[shields.set]]
table = 'filter'
set = 'flood'
action = 'police'
police = { packet-rate = 50 }
ingress-vnic = 'wan'
[[shields.set]]
family = 'ip6'
table = 'six'
set = 'bad6'
[[shields.set]]
table = 'filter'
set = 'ports'
[[shields.set]]
table = 'filter'
set = 'nothing'
";

/// What the shields are about, sorted.
fn prefixes(up: &Shunt) -> Vec<String> {
    let mut all: Vec<_> = names(up)
        .iter()
        .map(|name| name.splitn(3, '-').nth(2).unwrap().to_owned())
        .collect();
    all.sort();
    all
}

#[test]
fn elements_of_sets_are_shields_for_as_long_as_they_are_in_them() {
    needs("nft", "nftables");
    let dir = Dir::new();
    let mut up = Shunt::up(&dir, CONFIG);
    let netns = Netns::new("nfs");
    let rules = dir.write("rules.nft", RULESET);
    let nft = |text: &str| netns.succeed(&["nft", text]);
    netns.succeed(&["nft", "-f", rules.to_str().unwrap()]);
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", netns.name()])
        .arg(binary())
        .args(["agent", "proxy", "--config"])
        .arg(config(&dir, SETS));
    let agent = Agent::launch(&dir, command);
    let at_first = [
        "198.51.100.0/24",
        "2001:db8::5/128",
        "203.0.113.5/32",
        "203.0.113.6/31",
        "203.0.113.8/32",
    ];
    eventually(SOON, "all elements are shields", || {
        prefixes(&up) == at_first
    });
    let status = agent.json(&["status"]);
    let sets = status["shields"]["sets"].as_array().unwrap();
    let trouble = |place: usize| sets[place]["trouble"].as_str().unwrap_or_default();
    assert_eq!(sets[0]["shields"], 4);
    assert!(
        trouble(4).contains("ipv4_addr") && trouble(5).contains("no such set"),
        "{sets:?}"
    );

    // Elements come and go, intervals are split; a restart of the host changes nothing.
    nft("add element inet filter bad4 { 192.0.2.1 }");
    nft("delete element inet filter bad4 { 203.0.113.5-203.0.113.8 }");
    let later = ["192.0.2.1/32", "198.51.100.0/24", "2001:db8::5/128"];
    eventually(SOON, "the set is followed", || prefixes(&up) == later);
    up.restart();
    eventually(SOON, "all are asked for again", || prefixes(&up) == later);

    // One that runs out, and one that a rule adds: of neither the kernel tells.
    nft("add element inet filter short { 192.0.2.77 }");
    eventually(SOON, "it is a shield", || {
        prefixes(&up).contains(&"192.0.2.77/32".to_owned())
    });
    let path = "/restconf/data/shunt-offload:state/element=router1/shields";
    let shields = || up.control().get(path)["shunt-offload:shields"]["shield"].clone();
    let all = shields();
    let of = |all: &Value, name: &str| {
        let all = all.as_array().unwrap();
        let found = all
            .iter()
            .find(|one| one["name"].as_str().unwrap().ends_with(name));
        found.cloned().unwrap_or_default()
    };
    let short = of(&all, "192.0.2.77/32");
    assert!(short["ttl"].as_u64().unwrap() <= 3, "{short}");
    assert_eq!(short["destination-prefix"], "192.0.2.77/32");
    let bad = of(&all, "198.51.100.0/24");
    assert_eq!(
        (&bad["priority"], &bad["source-prefix"]),
        (&7.into(), &"198.51.100.0/24".into())
    );
    netns.ip("address add 127.9.9.9/32 dev lo");
    netns.pings("127.9.9.9");
    eventually(SOON, "who floods is policed", || {
        let flood = of(&shields(), "127.9.9.9/32");
        flood["action"] == "police" && flood["ingress-vnic"] == "wan"
    });
    eventually(SOON, "its time is over", || {
        !prefixes(&up).contains(&"192.0.2.77/32".to_owned())
    });

    // More than there is room for is told; the whole ruleset gone, all shields go.
    let many: Vec<_> = (0..100).map(|number| format!("10.9.{number}.1")).collect();
    nft(&format!(
        "add element inet filter bad4 {{ {} }}",
        many.join(", ")
    ));
    eventually(SOON, "there are as many as may be", || {
        prefixes(&up).len() == 60
    });
    let status = agent.json(&["status"]);
    assert_eq!(
        (&status["shields"]["held"], &status["shields"]["left-out"]),
        (&60.into(), &44.into())
    );
    nft("flush ruleset");
    eventually(SOON, "no shield is left", || prefixes(&up).is_empty());
}
