//! Sets and books of shields, against a plain list, and a police bucket on a virtual clock.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::flow::testing::{test_key, test_spec};
use crate::flow::{FlowState, HashSeed, Moment, flow_table, slots_of};
use crate::packet::{FlowKey, Tuple};

const SECOND: Duration = Duration::from_secs(1);

/// The shield that rules, found by asking every one of them in turn.
pub(super) fn oracle<'s>(
    shields: &'s [(Origin, Shield)],
    vnic: &str,
    tuple: &Tuple,
    flags: Option<u8>,
) -> Option<&'s Shield> {
    let within = |prefix: Option<(IpAddr, u8)>, address: IpAddr| match (prefix, address) {
        (None, _) => true,
        (Some((IpAddr::V4(net), length)), IpAddr::V4(own)) => {
            (0..u32::from(length)).all(|bit| (net.to_bits() ^ own.to_bits()) >> (31 - bit) & 1 == 0)
        }
        (Some((IpAddr::V6(net), length)), IpAddr::V6(own)) => (0..u32::from(length))
            .all(|bit| (net.to_bits() ^ own.to_bits()) >> (127 - bit) & 1 == 0),
        _ => false,
    };
    let matching = shields.iter().filter(|(_, shield)| {
        let own = &shield.matches;
        let of_network = shield.vnic.as_deref().is_none_or(|own| own == vnic)
            && within(own.source, tuple.src)
            && within(own.destination, tuple.dst)
            && own
                .protocol
                .is_none_or(|protocol| protocol == tuple.protocol);
        let in_range = |ports: Ports, port: u16| {
            (ports.low..=ports.high).any(|own| own == port) != ports.others
        };
        let Some(flags) = flags else {
            // Without a transport header: those that do not speak of one.
            let speaks = own.flags.is_some()
                || own.source_ports != Ports::ANY
                || own.destination_ports != Ports::ANY;
            return of_network && !speaks;
        };
        of_network
            && in_range(own.source_ports, tuple.src_port)
            && in_range(own.destination_ports, tuple.dst_port)
            && own.flags.is_none_or(|own| flags & own.mask == own.value)
    });
    matching
        .min_by_key(|(origin, shield)| (Reverse(shield.priority), *origin, shield.name.clone()))
        .map(|(_, shield)| shield)
}

fn prefix(v4: bool) -> impl Strategy<Value = (IpAddr, u8)> {
    (
        0u8..4,
        prop::sample::select(vec![0u8, 8, 22, 30, 31, 32, 64, 126, 127, 128]),
    )
        .prop_map(move |(last, length)| match v4 {
            true => ([10, 0, 0, last].into(), length.min(32)),
            false => ([0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()].into(), length),
        })
}

fn ports() -> impl Strategy<Value = Ports> {
    let range = |(low, more): (u16, u16)| Ports {
        low,
        high: low.saturating_add(more),
        others: false,
    };
    prop_oneof![
        4 => Just(Ports::ANY),
        2 => (0u16..8).prop_map(Ports::of),
        1 => (0u16..8).prop_map(|port| Ports { others: true, ..Ports::of(port) }),
        2 => (0u16..8, 0u16..8).prop_map(range),
        1 => (0u16..8).prop_map(|low| Ports { low, ..Ports::ANY }),
    ]
}

fn matches() -> impl Strategy<Value = Matches> {
    let protocols = prop::sample::select(vec![protocol::TCP, protocol::UDP, protocol::ICMP, 47]);
    let flags = prop::option::weighted(0.4, (any::<u8>(), any::<u8>()));
    (any::<bool>(), prop::option::of(protocols), flags).prop_flat_map(|(v4, number, flags)| {
        let has_ports = matches!(number, Some(protocol::TCP | protocol::UDP));
        let ports = move || match has_ports {
            true => ports().boxed(),
            false => Just(Ports::ANY).boxed(),
        };
        let of_tcp = flags.filter(|_| number == Some(protocol::TCP));
        let prefixes = (prop::option::of(prefix(v4)), prop::option::of(prefix(v4)));
        (prefixes, ports(), ports()).prop_map(move |((source, destination), from, to)| Matches {
            source,
            destination,
            protocol: number,
            source_ports: from,
            destination_ports: to,
            flags: of_tcp.map(|(value, mask)| Flags {
                value: value & mask & 0x13,
                mask: mask & 0x13,
            }),
        })
    })
}

/// Shields whose priorities are often equal, with names of their own.
fn shields() -> impl Strategy<Value = Vec<(Origin, Shield)>> {
    let vnics = prop::option::weighted(0.3, prop::sample::select(vec!["lan", "wan"]));
    let one = (any::<bool>(), 0u16..4, vnics, matches(), any::<bool>());
    prop::collection::vec(one, 0..60).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        numbered
            .map(|(number, (by_operator, priority, vnic, matches, punts))| {
                let shield = Shield {
                    // Not in the order of the list.
                    name: format!("{}-{number}", number * 7 % 10),
                    priority,
                    vnic: vnic.map(str::to_owned),
                    matches,
                    action: if punts { Action::Punt } else { Action::Drop },
                };
                let origin = match by_operator {
                    true => Origin::Operator,
                    false => Origin::Element,
                };
                (origin, shield)
            })
            .collect()
    })
}

fn tuple() -> impl Strategy<Value = Tuple> {
    let protocols = prop::sample::select(vec![protocol::TCP, protocol::UDP, protocol::ICMP, 47]);
    (
        any::<bool>(),
        [0u8..5, 0u8..5],
        protocols,
        [0u16..9, 0u16..9],
    )
        .prop_map(|(v4, [src, dst], protocol, [src_port, dst_port])| {
            let address = |last: u8| -> IpAddr {
                match v4 {
                    true => [10, 0, 0, last].into(),
                    false => [0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()].into(),
                }
            };
            Tuple {
                src: address(src),
                dst: address(dst),
                protocol,
                src_port,
                dst_port,
            }
        })
}

pub(super) fn number_of(vnic: &str) -> Option<VnicId> {
    match vnic {
        "lan" => Some(VnicId(0)),
        "wan" => Some(VnicId(1)),
        _ => None,
    }
}

/// A book of these shields; masks and quota are none of the matter.
pub(super) fn book_of(shields: &[(Origin, Shield)]) -> ShieldBook {
    let mut book = ShieldBook::new(1, slots_of(8) as usize, 100);
    let configured = shields
        .iter()
        .filter(|(origin, _)| *origin == Origin::Operator);
    book.configure(configured.map(|(_, shield)| shield.clone()), 100);
    for (_, shield) in shields
        .iter()
        .filter(|(origin, _)| *origin == Origin::Element)
    {
        let asked = Asked {
            shield: shield.clone(),
            ttl: SECOND,
        };
        assert_eq!(book.install(asked, Moment(0)), Installed::Installed);
    }
    book
}

/// Which shield a rank is: it is the only one whose count goes up.
fn ruled(book: &mut ShieldBook, set: Option<&Arc<ShieldSet>>, rank: Option<Rank>) -> Option<Hits> {
    if let (Some(set), Some(rank)) = (set, rank) {
        set.rule(rank, 0, (1, 100), Moment(0));
    }
    let mut hits = book.new_hits();
    assert!(hits.len() <= 1);
    hits.pop()
}

proptest! {
    #[test]
    fn the_shield_that_rules_is_the_one_a_plain_list_gives(
        shields in shields(),
        frames in prop::collection::vec((tuple(), any::<bool>(), any::<u8>()), 1..40),
    ) {
        let mut book = book_of(&shields);
        let set = book.compile(number_of);
        prop_assert_eq!(set.is_some(), !shields.is_empty());
        for (tuple, by_wan, flags) in frames {
            let vnic = if by_wan { "wan" } else { "lan" };
            let flags = if tuple.protocol == protocol::TCP { flags } else { 0 };
            let key = FlowKey::new(number_of(vnic).unwrap(), 5, &tuple);
            let rank = set.as_ref().and_then(|set| set.of_key(&key, flags));
            let hits = ruled(&mut book, set.as_ref(), rank);
            let expected = oracle(&shields, vnic, &tuple, Some(flags));
            prop_assert_eq!(hits.map(|hits| hits.name), expected.map(|own| own.name.clone()));

            let bare = Tuple { src_port: 0, dst_port: 0, ..tuple };
            let key = FlowKey::new(number_of(vnic).unwrap(), 0, &bare);
            let rank = set.as_ref().and_then(|set| set.of_network(&key));
            let hits = ruled(&mut book, set.as_ref(), rank);
            let expected = oracle(&shields, vnic, &bare, None);
            prop_assert_eq!(hits.map(|hits| hits.name), expected.map(|own| own.name.clone()));
        }
    }

    /// Flows come and go, slots are used again, sets are compiled anew: what is remembered is
    /// what a search finds.
    #[test]
    fn what_a_flow_remembers_is_what_a_search_finds(
        shields in shields(),
        tuples in prop::collection::vec((tuple(), any::<bool>()), 8),
        steps in prop::collection::vec((0usize..8, 0u8..12, any::<u8>()), 1..120),
    ) {
        let mut book = book_of(&shields);
        let mut set = book.compile(number_of);
        let (mut writer, mut readers) = flow_table(8, 1, HashSeed::from_words(1, 2));
        let mut flows: HashMap<FlowKey, _> = HashMap::new();
        for (place, kind, flags) in steps {
            let (mut tuple, by_wan) = tuples[place];
            if tuple.protocol != protocol::TCP {
                // One that any rewrite can be made for.
                tuple.protocol = protocol::UDP;
            }
            let flags = if tuple.protocol == protocol::TCP { flags } else { 0 };
            let key = FlowKey::new(VnicId(by_wan.into()), 0, &tuple);
            match kind {
                0 => set = book.compile(number_of),
                1 | 2 => if let Some((original, reply)) = flows.remove(&key) {
                    writer.remove_pair(original, reply);
                    writer.reclaim();
                },
                _ if !flows.contains_key(&key) && flows.len() < 4 => {
                    let other = test_spec(test_key(place as u32));
                    let pair = writer.insert_pair(
                        test_spec(key), other, [true, false], FlowState::Active,
                    );
                    flows.extend(pair.ok().map(|pair| (key, pair)));
                }
                _ => {}
            }
            let pin = readers[0].pin();
            if let (Some(set), Some(flow)) = (&set, pin.lookup(&key)) {
                prop_assert_eq!(set.of_flow(flow, &key, flags), set.of_key(&key, flags));
                prop_assert_eq!(set.of_flow(flow, &key, !flags), set.of_key(&key, !flags));
            }
        }
    }

    #[test]
    fn no_more_than_rate_and_burst_pass_and_hardly_less(
        rate in 10u64..100_000,
        burst in 1u64..2_000,
        by_bits: bool,
        gaps in prop::collection::vec(1u64..200_000, 200..2_000),
    ) {
        let (unit, of_frame) = if by_bits { (Unit::Bits, 800) } else { (Unit::Packets, 1) };
        let action = Action::Police(Rate { unit, rate: rate * of_frame, burst: burst * of_frame });
        let mut book = book_of(&[(Origin::Element, shield("p", action))]);
        let set = book.compile(number_of).unwrap();
        let rank = set.of_key(&FlowKey::default(), 0).unwrap();
        let (mut now, mut passed, mut sent) = (Moment(0), 0, 0u64);
        for gap in gaps {
            now = now + Duration::from_nanos(gap * 100);
            sent += 1;
            match set.rule(rank, 0, (1, 100), now) {
                Ruling::Pass => passed += 1,
                other => prop_assert_eq!(other, Ruling::Exceeds),
            }
        }
        let come = now.0 * rate / 1_000_000_000;
        prop_assert!(passed <= come + burst + 2, "{passed} of {sent}, {come} came, {burst} at once");
        prop_assert!(passed + 1 >= sent.min(burst));
        let total = book.iter(now).next().unwrap().count;
        prop_assert_eq!((total.packets, total.octets), (sent, sent * 100));
        prop_assert_eq!(total.dropped, sent - passed);
    }
}

/// A shield over everything.
fn shield(name: &str, action: Action) -> Shield {
    Shield {
        name: name.to_owned(),
        priority: 0,
        vnic: None,
        matches: Matches::default(),
        action,
    }
}

fn asked(name: &str, action: Action, seconds: u32) -> Asked {
    Asked {
        shield: shield(name, action),
        ttl: seconds * SECOND,
    }
}

#[test]
fn a_steady_excess_passes_at_the_rate() {
    let rate = Rate {
        unit: Unit::Packets,
        rate: 1_000,
        burst: 100,
    };
    let mut book = book_of(&[(Origin::Element, shield("p", Action::Police(rate)))]);
    let set = book.compile(number_of).unwrap();
    let rank = set.of_key(&FlowKey::default(), 0).unwrap();
    let ticks = 10 * 50_000u64;
    let passed = (0..ticks)
        .filter(|tick| {
            let now = Moment(tick * 20_000);
            set.rule(rank, 0, (1, 60), now) == Ruling::Pass
        })
        .count();
    assert!((10_000..=10_110).contains(&passed), "{passed}");
}

#[test]
fn two_lanes_share_one_bucket_and_each_counts() {
    let rate = Rate {
        unit: Unit::Packets,
        rate: 1_000,
        burst: 10,
    };
    let mut book = ShieldBook::new(2, 0, 10);
    book.install(asked("p", Action::Police(rate), 60), Moment(0));
    let set = book.compile(number_of).unwrap();
    let passed: usize = std::thread::scope(|scope| {
        let lane = |lane| {
            let set = &set;
            move || {
                let rank = set.of_key(&FlowKey::default(), 0).unwrap();
                let frames = 0..100_000u64;
                let passes = |tick: &u64| {
                    set.rule(rank, lane, (1, 60), Moment(tick * 10_000)) == Ruling::Pass
                };
                frames.filter(passes).count()
            }
        };
        let lanes = [scope.spawn(lane(0)), scope.spawn(lane(1))];
        lanes.map(|lane| lane.join().unwrap()).iter().sum()
    });
    // One second's: the rate, a burst, and a frame that each may overdraw at once, with another
    // burst where one thread's clock is far behind the other's.
    assert!((900..=1_030).contains(&passed), "{passed}");
    let total = book.iter(Moment(0)).next().unwrap().count;
    assert_eq!(total.packets, 200_000);
    assert_eq!(total.dropped, 200_000 - passed as u64);
}

#[test]
fn what_was_asked_for_ends_with_its_time_unless_asked_for_again() {
    let at = |seconds: u32| Moment(0) + seconds * SECOND;
    let mut book = ShieldBook::new(1, 0, 10);
    book.configure([shield("ours", Action::Drop)], 10);
    assert_eq!(
        book.install(asked("a", Action::Drop, 10), at(0)),
        Installed::Installed
    );
    assert_eq!(
        book.install(asked("b", Action::Drop, 10), at(0)),
        Installed::Installed
    );
    book.note_delivered();
    // Asked for again, nothing changes for the lanes.
    assert_eq!(
        book.install(asked("b", Action::Drop, 10), at(9)),
        Installed::Unchanged
    );
    assert!(!book.is_changed());
    assert_eq!(book.next_end(), Some(at(10)));
    book.expire(Moment(at(10).0 - 1));
    assert!(!book.is_changed());
    book.expire(at(10));
    assert!(book.is_changed());
    let names = |book: &ShieldBook| -> Vec<String> {
        let all = book.iter(at(12));
        all.map(|view| view.shield.name.clone()).collect()
    };
    assert_eq!(names(&book), ["ours", "b"]);
    let life = book.iter(at(12)).nth(1).unwrap().life;
    assert_eq!(life, Some((10 * SECOND, 7 * SECOND)));
    book.expire(at(1_000_000));
    assert_eq!(names(&book), ["ours"], "an operator's does not end");
    assert_eq!(book.next_end(), None);
}

#[test]
fn each_origin_has_its_own_names_and_operators_go_first() {
    let mut book = ShieldBook::new(1, 0, 10);
    book.configure([shield("same", Action::Punt)], 10);
    book.install(asked("same", Action::Drop, 60), Moment(0));
    let set = book.compile(number_of).unwrap();
    let rank = set.of_key(&FlowKey::default(), 0).unwrap();
    assert_eq!(set.rule(rank, 0, (1, 60), Moment(0)), Ruling::Punt);
    assert!(book.remove("same") && !book.remove("same"));
    assert_eq!(book.remove_all(), 0);
    assert_eq!(book.iter(Moment(0)).count(), 1, "the operator's stays");
    // A higher priority goes before whoever set the other.
    let mut high = asked("high", Action::Drop, 60);
    high.shield.priority = 1;
    book.install(high, Moment(0));
    let set = book.compile(number_of).unwrap();
    let rank = set.of_key(&FlowKey::default(), 0).unwrap();
    assert_eq!(set.rule(rank, 0, (1, 60), Moment(0)), Ruling::Drop);
}

#[test]
fn quota_and_masks_bound_what_is_asked_for_and_not_what_is_configured() {
    let mut book = ShieldBook::new(1, 0, 2);
    book.configure((0..10).map(|n| shield(&format!("o{n}"), Action::Drop)), 2);
    for name in ["a", "b"] {
        assert_eq!(
            book.install(asked(name, Action::Drop, 1), Moment(0)),
            Installed::Installed
        );
    }
    assert_eq!(
        book.install(asked("c", Action::Drop, 1), Moment(0)),
        Installed::Quota
    );
    assert_eq!(
        book.install(asked("b", Action::Punt, 1), Moment(0)),
        Installed::Replaced
    );

    let mut book = ShieldBook::new(1, 0, 1_000);
    let with_mask = |name: String, length: u8, ports: Ports| {
        let mut asked = asked(&name, Action::Drop, 1);
        asked.shield.matches = Matches {
            source: Some(([10, 0, 0, 0].into(), length)),
            protocol: Some(protocol::UDP),
            source_ports: ports,
            ..Matches::default()
        };
        asked
    };
    let outcomes: Vec<_> = (0..66u8)
        .map(|n| {
            let ports = if n < 33 { Ports::ANY } else { Ports::of(1) };
            book.install(with_mask(format!("m{n}"), n % 33, ports), Moment(0))
        })
        .collect();
    let taken = outcomes.iter().filter(|one| **one == Installed::Installed);
    assert_eq!(taken.count(), MASKS_MAX);
    assert_eq!(outcomes[65], Installed::Masks);
    let known = with_mask("known".to_owned(), 8, Ports::of(2));
    assert_eq!(book.install(known, Moment(0)), Installed::Installed);
    assert_eq!(book.compile(number_of).unwrap().masks(), MASKS_MAX);
}

#[test]
fn a_shield_keeps_its_count_and_bucket_until_it_is_another() {
    let mut book = ShieldBook::new(1, 0, 10);
    let rate = Rate {
        unit: Unit::Packets,
        rate: 1,
        burst: 1,
    };
    let police = || asked("p", Action::Police(rate), 60);
    book.install(police(), Moment(0));
    // The operator's is for vNIC `lan` only.
    let ours = |action| Shield {
        vnic: Some("lan".to_owned()),
        ..shield("o", action)
    };
    book.configure([ours(Action::Drop)], 10);
    let rule = |book: &mut ShieldBook, name: &str| {
        let set = book.compile(number_of).unwrap();
        let vnic = if name == "o" { 0 } else { 1u64 << 48 };
        let rank = set.of_key(&FlowKey::from_words([vnic, 0, 0, 0, 0, 0]), 0);
        set.rule(rank.unwrap(), 0, (1, 60), Moment(0))
    };
    assert_eq!(rule(&mut book, "p"), Ruling::Pass);
    assert_eq!(rule(&mut book, "o"), Ruling::Drop);
    // A new set, the same shields.
    book.install(police(), Moment(0));
    book.configure([ours(Action::Drop)], 10);
    assert_eq!(rule(&mut book, "p"), Ruling::Exceeds);
    assert_eq!(rule(&mut book, "o"), Ruling::Drop);
    let packets = |book: &ShieldBook| -> Vec<u64> {
        book.iter(Moment(0))
            .map(|view| view.count.packets)
            .collect()
    };
    assert_eq!(packets(&book), [2, 2]);
    assert_eq!(book.new_hits().len(), 2);
    assert!(book.new_hits().is_empty());
    book.configure([ours(Action::Punt)], 10);
    book.install(asked("p", Action::Drop, 60), Moment(0));
    assert_eq!(packets(&book), [0, 0]);
}

#[test]
fn a_shield_whose_vnic_is_away_matches_nothing() {
    let mut book = ShieldBook::new(1, 0, 10);
    let mut asked = asked("wan", Action::Drop, 60);
    asked.shield.vnic = Some("wan".to_owned());
    book.install(asked, Moment(0));
    assert!(book.compile(|_| None).is_none());
    let set = book.compile(number_of).unwrap();
    let of = |vnic: u64| FlowKey::from_words([vnic << 48, 0, 0, 0, 0, 0]);
    assert!(set.of_key(&of(1), 0).is_some() && set.of_key(&of(0), 0).is_none());
}

#[test]
fn contradictions_are_refused_with_the_leaf() {
    let v6 = ([0; 8].into(), 0);
    let v4 = ([10, 0, 0, 0].into(), 8);
    let tcp = Matches {
        protocol: Some(protocol::TCP),
        ..Matches::default()
    };
    let flags = |value, mask| Some(Flags { value, mask });
    let cases = [
        (
            Matches {
                source: Some(v4),
                destination: Some(v6),
                ..tcp
            },
            Some("destination-prefix"),
        ),
        (
            Matches {
                source_ports: Ports::of(1),
                protocol: None,
                ..tcp
            },
            Some("source-port"),
        ),
        (
            Matches {
                destination_ports: Ports::of(1),
                protocol: Some(protocol::GRE),
                ..tcp
            },
            Some("destination-port"),
        ),
        (
            Matches {
                flags: flags(2, 2),
                protocol: Some(protocol::UDP),
                ..tcp
            },
            Some("tcp-flags"),
        ),
        (
            Matches {
                flags: flags(3, 2),
                ..tcp
            },
            Some("tcp-flags"),
        ),
        (
            Matches {
                flags: flags(2, 0x12),
                source_ports: Ports::of(1),
                ..tcp
            },
            None,
        ),
        (Matches::default(), None),
    ];
    for (matches, leaf) in cases {
        let mut shield = shield("s", Action::Drop);
        shield.matches = matches;
        assert_eq!(
            shield.check().err().map(|error| error.leaf),
            leaf,
            "{matches:?}"
        );
    }
}

#[test]
fn generations_of_sets_may_wrap_and_nothing_old_is_remembered() {
    let (mut writer, mut readers) = flow_table(8, 1, HashSeed::from_words(1, 2));
    let key = test_key(1);
    writer
        .insert_pair(
            test_spec(key),
            test_spec(test_key(2)),
            [true; 2],
            FlowState::Active,
        )
        .unwrap();
    let pin = readers[0].pin();
    let flow = pin.lookup(&key).unwrap();
    let mut book = ShieldBook::new(1, slots_of(8) as usize, 10);
    book.configure([shield("o", Action::Drop)], 10);
    let first = book.compile(number_of).unwrap();
    assert!(first.of_flow(flow, &key, 0).is_some());
    for _ in 0..0xffff {
        book.compile(number_of).unwrap();
    }
    let mut other = shield("o", Action::Drop);
    other.matches.protocol = Some(protocol::TCP);
    book.configure([other], 10);
    let set = book.compile(number_of).unwrap();
    assert!(set.of_flow(flow, &key, 0).is_none());
}
