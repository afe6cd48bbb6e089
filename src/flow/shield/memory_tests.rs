//! What flows remember of shields: it changes nothing of what becomes of a frame.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::set_tests::{book_of, number_of, oracle};
use super::*;
use crate::flow::testing::{test_key, test_spec};
use crate::flow::{FlowId, FlowState, HashSeed, Moment, TableReader, TableWriter, flow_table};
use crate::packet::{FlowKey, Tuple};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A TCP segment's addresses and ports, all from few.
fn segment(source: u8, destination: u8, port: u16) -> Tuple {
    Tuple {
        src: [10, 0, 0, source].into(),
        dst: [10, 0, 0, destination].into(),
        protocol: protocol::TCP,
        src_port: 1,
        dst_port: port,
    }
}

/// Shields over few segments, most of which wait for flags; they have these names, in this order.
fn pool() -> impl Strategy<Value = Vec<(Origin, Shield)>> {
    let prefix = || prop::option::weighted(0.4, (0u8..4, 30u8..33));
    let octet = prop_oneof![
        3 => prop::sample::select(vec![SYN, ACK, PSH | ACK, RST, SYN | ACK, FIN]),
        1 => any::<u8>(),
    ];
    let flags = prop::option::weighted(0.8, (octet.clone(), octet));
    let rate = (1u64..3, 1u64..3, any::<bool>()).prop_map(|(rate, burst, by_bits)| Rate {
        unit: if by_bits { Unit::Bits } else { Unit::Packets },
        rate: rate * 1_000,
        burst: if by_bits { burst * 900 } else { burst },
    });
    let action = prop_oneof![
        Just(Action::Drop),
        Just(Action::Punt),
        rate.prop_map(Action::Police)
    ];
    let port = prop::option::weighted(0.3, 0u16..3);
    let one = (
        any::<bool>(),
        0u16..4,
        [prefix(), prefix()],
        port,
        (flags, action),
    );
    prop::collection::vec(one, 1..32).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        let shields = numbered.map(
            |(number, (by_operator, priority, [from, to], port, rest))| {
                let (flags, action) = rest;
                let prefix = |(last, length)| ([10, 0, 0, last].into(), length);
                let of_tcp = flags.is_some() || port.is_some();
                let matches = Matches {
                    source: from.map(prefix),
                    destination: to.map(prefix),
                    protocol: of_tcp.then_some(protocol::TCP),
                    source_ports: Ports::ANY,
                    destination_ports: port.map_or(Ports::ANY, Ports::of),
                    flags: flags.map(|(value, mask)| Flags {
                        value: value & mask,
                        mask,
                    }),
                };
                let shield = Shield {
                    name: format!("{}-{number}", number * 7 % 10),
                    priority,
                    vnic: None,
                    matches,
                    action,
                };
                let origin = match by_operator {
                    true => Origin::Operator,
                    false => Origin::Element,
                };
                (origin, shield)
            },
        );
        shields.collect()
    })
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A shield of the pool comes, or goes if it is there.
    Turn(usize),
    /// A flow ends, and its slot is another's.
    End(usize),
    /// A segment with these flags, so much later, and so many octets.
    Frame(usize, u8, u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let usual = prop::sample::select(vec![ACK, PSH | ACK, SYN, SYN | ACK, RST, FIN | ACK]);
    let octet = prop_oneof![4 => usual, 1 => any::<u8>()];
    prop_oneof![
        2 => (0usize..32).prop_map(Step::Turn),
        1 => (0usize..6).prop_map(Step::End),
        30 => (0usize..6, octet, 0u64..1_000_000, 40u64..1_500)
            .prop_map(|(flow, octet, later, octets)| Step::Frame(flow, octet, later, octets)),
    ]
}

/// A flow table whose flows are found by key.
struct Table {
    writer: TableWriter,
    reader: TableReader,
    flows: HashMap<FlowKey, (FlowId, FlowId)>,
}

impl Table {
    fn new(flows: u32) -> Self {
        let (writer, mut readers) = flow_table(flows, 1, HashSeed::from_words(1, 2));
        Self {
            writer,
            reader: readers.remove(0),
            flows: HashMap::new(),
        }
    }

    fn insert(&mut self, key: FlowKey, other: u32) {
        let (own, other) = (test_spec(key), test_spec(test_key(other)));
        let pair = (self.writer).insert_pair(own, other, [true, false], FlowState::Active);
        self.flows.insert(key, pair.unwrap());
    }

    fn remove(&mut self, key: &FlowKey) {
        if let Some((original, reply)) = self.flows.remove(key) {
            self.writer.remove_pair(original, reply);
            self.writer.reclaim();
        }
    }
}

/// A book's views: what each shield has matched.
fn counts(book: &ShieldBook) -> Vec<(String, Count)> {
    let views = book.iter(Moment(0));
    views
        .map(|view| (view.shield.name.clone(), view.count))
        .collect()
}

proptest! {
    /// Flows with any flags in any order, while shields and flows come and go: each frame is ruled
    /// by the shield that a plain list gives, and each bucket and counter is what it is where
    /// every frame is searched for.
    #[test]
    fn each_frame_of_a_flow_is_ruled_and_counted_as_if_it_were_searched_for(
        pool in pool(),
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut there = pool.clone();
        let mut remembering = (book_of(&there), None);
        let mut searching = (book_of(&there), None);
        let mut table = Table::new(32);
        let tuples: Vec<_> = (0..6u8).map(|n| segment(n % 4, n % 3, u16::from(n % 2))).collect();
        let mut now = Moment(0);
        for (number, step) in std::iter::once(Step::Turn(0)).chain(steps).enumerate() {
            match step {
                Step::Turn(place) => {
                    let shield = &pool[place % pool.len()];
                    match there.iter().position(|own| own == shield) {
                        Some(place) => drop(there.remove(place)),
                        None => there.push(shield.clone()),
                    }
                    for (book, set) in [&mut remembering, &mut searching] {
                        apply(book, shield, &there, now);
                        *set = book.compile(number_of);
                    }
                }
                Step::End(place) => {
                    table.remove(&FlowKey::new(VnicId(0), 0, &tuples[place]));
                }
                Step::Frame(place, octet, later, octets) => {
                    now = Moment(now.0 + later);
                    let key = FlowKey::new(VnicId(0), 0, &tuples[place]);
                    if !table.flows.contains_key(&key) {
                        table.insert(key, number as u32);
                    }
                    let pin = table.reader.pin();
                    let flow = pin.lookup(&key).unwrap();
                    let rank = |set: &Option<Arc<ShieldSet>>, by_flow| match by_flow {
                        true => set.as_ref()?.of_flow(flow, &key, octet),
                        false => set.as_ref()?.of_key(&key, octet),
                    };
                    let ranks = [rank(&remembering.1, true), rank(&searching.1, false)];
                    prop_assert_eq!(ranks[0], ranks[1]);
                    let rule = |set: &Option<Arc<ShieldSet>>, rank: Option<Rank>| {
                        Some(set.as_ref()?.rule(rank?, 0, (1, octets), now))
                    };
                    let ruling = rule(&remembering.1, ranks[0]);
                    prop_assert_eq!(ruling, rule(&searching.1, ranks[1]));
                    let hits = remembering.0.new_hits();
                    prop_assert_eq!(&hits, &searching.0.new_hits());
                    let expected = oracle(&there, "lan", &tuples[place], Some(octet));
                    let hit = hits.first().map(|hits| hits.name.as_str());
                    prop_assert_eq!(hit, expected.map(|own| own.name.as_str()));
                }
            }
        }
        prop_assert_eq!(counts(&remembering.0), counts(&searching.0));
    }
}

/// Has a book hold the shields that are `there`, of which `turned` has just come or gone.
fn apply(
    book: &mut ShieldBook,
    turned: &(Origin, Shield),
    there: &[(Origin, Shield)],
    now: Moment,
) {
    let (origin, shield) = turned;
    let stays = there.contains(turned);
    match origin {
        Origin::Operator => {
            let own = there.iter().filter(|(own, _)| own == origin);
            book.configure(own.map(|(_, shield)| shield.clone()), 100);
        }
        Origin::Element if stays => {
            let asked = Asked {
                shield: shield.clone(),
                ttl: std::time::Duration::from_secs(60),
            };
            assert_eq!(book.install(asked, now), Installed::Installed);
        }
        Origin::Element => assert!(book.remove(&shield.name)),
    }
}

/// One that drops segments with these flags, from or to an address.
fn waiting(number: u8, from: Option<u8>, to: Option<u8>, flags: Flags) -> (Origin, Shield) {
    let prefix = |last| ([10, 0, 0, last].into(), 32);
    let shield = Shield {
        name: format!("{number:03}"),
        priority: 0,
        vnic: None,
        matches: Matches {
            source: from.map(prefix),
            destination: to.map(prefix),
            protocol: Some(protocol::TCP),
            flags: Some(flags),
            ..Matches::default()
        },
        action: Action::Drop,
    };
    (Origin::Operator, shield)
}

#[test]
fn a_flow_is_searched_for_once_whatever_flags_its_frames_have() {
    let exactly = |octet| Flags::of(Some(octet), Some(0x1f));
    let shields = [
        waiting(0, Some(1), None, exactly(PSH | ACK)),
        waiting(1, Some(1), None, exactly(ACK)),
        waiting(2, None, Some(2), exactly(RST)),
        waiting(3, None, None, Flags::of(Some(FIN), None)),
    ];
    let mut book = book_of(&shields);
    // The book of the tests has a cell for each slot of a table of eight flows.
    let mut table = Table::new(8);
    let set = book.compile(number_of).unwrap();
    let key = FlowKey::new(VnicId(0), 0, &segment(1, 2, 0));
    table.insert(key, 1);
    let pin = table.reader.pin();
    let flow = pin.lookup(&key).unwrap();
    assert_eq!(set.of_flow(flow, &key, SYN), None);
    // Were it searched for, it would be by this key, which meets none but the last.
    let strange = FlowKey::new(VnicId(0), 0, &segment(8, 8, 0));
    for octet in 0..=u8::MAX {
        assert_eq!(
            set.of_flow(flow, &strange, octet),
            set.of_key(&key, octet),
            "{octet:02x}"
        );
    }
    assert_ne!(set.of_key(&key, ACK), set.of_key(&strange, ACK));
    // The next set knows nothing of it.
    let next = book.compile(number_of).unwrap();
    assert_eq!(next.of_flow(flow, &strange, ACK), None);
}

#[test]
fn flows_for_whose_answers_there_is_no_room_are_searched_for() {
    const EACH: u8 = 20;
    let (syn, rst) = (Flags::of(Some(SYN), None), Flags::of(Some(RST), None));
    let sources = (0..EACH).map(|n| waiting(n, Some(n), None, syn));
    let destinations = (0..EACH).map(|n| waiting(EACH + n, None, Some(n), rst));
    let shields: Vec<_> = sources.chain(destinations).collect();
    let mut book = ShieldBook::new(1, crate::flow::slots_of(2_048) as usize, 0);
    book.configure(shields.into_iter().map(|(_, shield)| shield), 0);
    let set = book.compile(number_of).unwrap();
    // As many different answers as there are pairs, 400, and room for 256.
    let mut table = Table::new(2_048);
    let pairs = || (0..EACH).flat_map(|from| (0..EACH).map(move |to| (from, to)));
    let key = |(from, to)| FlowKey::new(VnicId(0), 0, &segment(from, to, 0));
    for (number, pair) in (0..).zip(pairs()) {
        table.insert(key(pair), number);
    }
    let pin = table.reader.pin();
    for turn in 0..2 {
        for pair in pairs() {
            let key = key(pair);
            let flow = pin.lookup(&key).unwrap();
            for octet in [ACK, SYN, RST, SYN | RST] {
                let found = set.of_flow(flow, &key, octet);
                assert_eq!(
                    found,
                    set.of_key(&key, octet),
                    "{turn} {pair:?} {octet:02x}"
                );
                assert_eq!(found.is_none(), octet == ACK);
            }
        }
    }
}

#[test]
fn lanes_that_learn_at_once_find_what_a_search_finds() {
    const LANES: usize = 4;
    let flags = |octet| Flags::of(Some(octet), Some(0x1f));
    let octets = [ACK, PSH | ACK, SYN, RST];
    let shields =
        (0..32u8).map(|n| waiting(n, Some(n / 4), None, flags(octets[usize::from(n % 4)])));
    let mut book = ShieldBook::new(LANES, crate::flow::slots_of(256) as usize, 0);
    book.configure(shields.map(|(_, shield)| shield), 0);
    let (mut writer, readers) = flow_table(256, LANES, HashSeed::from_words(1, 2));
    let keys: Vec<_> = (0..64u8)
        .map(|n| FlowKey::new(VnicId(0), 0, &segment(n / 4, n % 4, 0)))
        .collect();
    for (number, key) in (1_000..).zip(&keys) {
        let pair = (test_spec(*key), test_spec(test_key(number)));
        writer
            .insert_pair(pair.0, pair.1, [true, false], FlowState::Active)
            .unwrap();
    }
    let sets: Vec<_> = (0..200).map(|_| book.compile(number_of).unwrap()).collect();
    std::thread::scope(|scope| {
        for mut reader in readers {
            let (sets, keys) = (&sets, &keys);
            scope.spawn(move || {
                // Each set is new to all lanes, which come to it at about the same time.
                for (set, key) in sets
                    .iter()
                    .flat_map(|set| keys.iter().map(move |key| (set, key)))
                {
                    let pin = reader.pin();
                    let flow = pin.lookup(key).unwrap();
                    for octet in octets {
                        assert_eq!(set.of_flow(flow, key, octet), set.of_key(key, octet));
                    }
                }
            });
        }
    });
}
