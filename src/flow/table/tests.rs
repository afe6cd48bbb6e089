use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::super::testing::{test_key, test_spec};
use super::*;
use crate::flow::SessionId;
use crate::packet::{MacAddr, VnicId};

const SEED: HashSeed = HashSeed::from_words(1, 2);

fn table(flows_max: u32) -> (TableWriter, TableReader) {
    let (writer, mut readers) = flow_table(flows_max, 1, SEED);
    (writer, readers.remove(0))
}

/// Session `number`: its two directions have keys of their own.
fn session(number: u32) -> (FlowSpec, FlowSpec) {
    let mut pair = (
        test_spec(test_key(2 * number)),
        test_spec(test_key(2 * number + 1)),
    );
    pair.0.session = SessionId(number.into());
    pair.1.session = SessionId(number.into());
    pair
}

fn insert(writer: &mut TableWriter, number: u32) -> Result<(FlowId, FlowId), InsertError> {
    let (original, reply) = session(number);
    writer.insert_pair(original, reply, [true, true], FlowState::Pending)
}

/// The same flow, its packets now towards another vNIC.
fn moved(mut spec: FlowSpec, egress: VnicId) -> FlowSpec {
    spec.egress = egress;
    spec.egress_key = FlowKey::new(egress, spec.key.vlan(), &spec.key.tuple());
    spec
}

#[test]
fn a_pair_is_found_by_both_keys_by_id_and_by_its_partner() {
    let (mut writer, mut reader) = table(2);
    let (original, reply) = session(0);
    let (a, b) = insert(&mut writer, 0).unwrap();
    assert_eq!(writer.find(&original.key), Some(a));
    assert_eq!(writer.find_egress(&reply.egress_key), Some(b));
    assert_eq!(writer.partner(a), Some(b));
    assert_eq!((writer.len(), writer.capacity()), (2, 2));

    let pin = reader.pin();
    let flow = pin.lookup(&original.key).unwrap();
    assert_eq!((flow.id(), flow.state()), (a, FlowState::Pending));
    assert_eq!(flow.spec().key, original.key);
    assert_eq!(pin.partner(flow).unwrap().id(), b);
    assert_eq!(pin.partner(pin.by_id(b).unwrap()).unwrap().id(), a);
    assert_eq!(pin.lookup_egress(&original.egress_key).unwrap().id(), a);
    assert!(pin.lookup(&original.egress_key).is_none());
    assert!(pin.lookup_egress(&original.key).is_none());
}

#[test]
fn an_absent_direction_matches_nothing_and_is_its_partners_partner() {
    let (mut writer, mut reader) = table(4);
    let (original, reply) = session(0);
    let presence = [true, false];
    let (a, b) = writer
        .insert_pair(original, reply.clone(), presence, FlowState::Active)
        .unwrap();
    {
        let pin = reader.pin();
        assert!(pin.lookup(&reply.key).is_none());
        assert!(pin.lookup_egress(&reply.egress_key).is_none());
        let shadow = pin.partner(pin.by_id(a).unwrap()).unwrap();
        assert_eq!(shadow.id(), b);
        assert!(!shadow.is_present());
    }
    assert_eq!(writer.find(&reply.key), None);
    // Another session may therefore have that key.
    let other = session(1).0;
    let (c, _) = writer
        .insert_pair(reply.clone(), other, presence, FlowState::Active)
        .unwrap();
    assert_eq!(writer.find(&reply.key), Some(c));
    writer.remove_pair(a, b);
    assert_eq!(writer.find(&reply.key), Some(c));
}

#[test]
fn a_key_that_is_taken_is_refused_with_its_owner() {
    let (mut writer, _reader) = table(8);
    let (a, b) = insert(&mut writer, 0).unwrap();
    assert_eq!(insert(&mut writer, 0), Err(InsertError::KeyExists(a)));
    let (mut original, reply) = session(1);
    original.egress_key = session(0).1.egress_key;
    assert_eq!(
        writer.insert_pair(original, reply, [true; 2], FlowState::Pending),
        Err(InsertError::KeyExists(b))
    );
    let (original, _) = session(2);
    assert_eq!(
        writer.insert_pair(original.clone(), original, [true; 2], FlowState::Pending),
        Err(InsertError::SameKey)
    );
    assert_eq!(writer.len(), 2);
}

#[test]
fn a_full_table_refuses_and_keeps_what_it_has() {
    const SESSIONS: u32 = 500;
    let (mut writer, mut reader) = table(2 * SESSIONS);
    let ids: Vec<_> = (0..SESSIONS)
        .map(|number| insert(&mut writer, number).unwrap())
        .collect();
    let full = InsertError::TableFull {
        flows_max: 2 * SESSIONS,
    };
    assert_eq!(insert(&mut writer, SESSIONS), Err(full));
    for number in 0..SESSIONS {
        let (original, reply) = session(number);
        let pin = reader.pin();
        let (a, b) = ids[number as usize];
        assert_eq!(pin.lookup(&original.key).unwrap().id(), a);
        assert_eq!(pin.lookup_egress(&reply.egress_key).unwrap().id(), b);
    }
    // A replacement needs no quota, and a removal makes room at once, even while a
    // reader still sees what was there.
    let _pin = reader.pin();
    let (a, b) = ids[0];
    let a = writer
        .replace(a, moved(session(0).0, VnicId(9)))
        .expect("spare slots");
    writer.remove_pair(a, b);
    insert(&mut writer, SESSIONS).unwrap();
}

#[test]
fn slots_a_reader_may_see_are_not_reused_and_running_out_of_them_is_told() {
    let (mut writer, mut reader) = table(2);
    let pin = reader.pin();
    let mut seen = Vec::new();
    let error = loop {
        match insert(&mut writer, 0) {
            Ok((a, b)) => {
                assert!(!seen.contains(&a.index) && !seen.contains(&b.index));
                seen.extend([a.index, b.index]);
                writer.remove_pair(a, b);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error, InsertError::Reclaiming);
    assert_eq!(seen.len(), 2 + spare_slots(2) as usize);
    assert_eq!(writer.reclaim(), 0);
    drop(pin);
    assert_eq!(writer.reclaim(), seen.len());
    insert(&mut writer, 0).unwrap();
}

#[test]
fn an_id_of_an_earlier_use_of_the_slot_names_nothing() {
    let (mut writer, mut reader) = table(2);
    let (old, partner) = insert(&mut writer, 0).unwrap();
    writer.remove_pair(old, partner);
    assert!(writer.flow(old).is_none(), "removed, not yet reclaimed");
    assert!(reader.pin().by_id(old).is_none());
    assert_eq!(writer.reclaim(), 2);
    // Slots are used again in turn, so the old one comes round.
    let new = loop {
        let (a, b) = insert(&mut writer, 1).unwrap();
        if let Some(id) = [a, b].into_iter().find(|id| id.index == old.index) {
            break id;
        }
        writer.remove_pair(a, b);
        writer.reclaim();
    };
    assert_ne!(new.generation, old.generation);
    let pin = reader.pin();
    assert!(pin.by_id(old).is_none());
    assert_eq!(pin.by_id(new).unwrap().id(), new);
    for (index, generation) in [(old.index, 0), (old.index, 2), (u32::MAX, 1)] {
        let id = FlowId { index, generation };
        assert!(pin.by_id(id).is_none());
        assert!(writer.flow(id).is_none());
    }
    writer.remove_pair(old, partner);
    assert_eq!(writer.len(), 2, "stale ids remove nothing");
}

#[test]
fn a_grace_passes_when_the_readers_of_its_time_have_left() {
    let (mut writer, mut readers) = flow_table(2, 2, SEED);
    let (first, second) = readers.split_at_mut(1);
    let pin = first[0].pin();
    let grace = writer.grace();
    let later = second[0].pin();
    assert!(!writer.has_passed(&grace));
    drop(pin);
    assert!(writer.has_passed(&grace));
    drop(later);
}

#[test]
fn a_reader_that_is_gone_holds_nothing_up() {
    let (mut writer, mut reader) = table(2);
    let (a, b) = insert(&mut writer, 0).unwrap();
    std::mem::forget(reader.pin());
    writer.remove_pair(a, b);
    assert_eq!(writer.reclaim(), 0);
    drop(reader);
    assert_eq!(writer.reclaim(), 2);
}

#[test]
fn a_replacement_that_has_to_be_proved_starts_pending_unless_its_flow_is_closing() {
    let (mut writer, _readers) = flow_table(8, 1, HashSeed::random());
    for (before, after) in [
        (FlowState::Active, FlowState::Pending),
        (FlowState::Draining, FlowState::Pending),
        (FlowState::Closing, FlowState::Closing),
    ] {
        let (original, reply) = session(7);
        let (a, b) = writer
            .insert_pair(original.clone(), reply, [true; 2], before)
            .unwrap();
        let a = writer.replace_unproved(a, original).unwrap();
        assert_eq!(writer.flow(a).unwrap().state(), after);
        writer.remove_pair(a, b);
        writer.reclaim();
    }
}

#[test]
fn a_replacement_takes_over_links_counters_and_state() {
    let (mut writer, mut reader) = table(2);
    let (a, b) = insert(&mut writer, 0).unwrap();
    let old = writer.flow(a).unwrap();
    assert!(old.transition(FlowState::Pending, FlowState::Active));
    old.count(3, 300, 7);
    old.note_tcp(10, 20, 30);
    let spec = moved(session(0).0, VnicId(9));
    let (old_egress, new_egress) = (session(0).0.egress_key, spec.egress_key);

    let pin = reader.pin();
    let late = pin.lookup(&spec.key).unwrap();
    let new = writer.replace(a, spec.clone()).unwrap();
    assert_eq!(writer.find(&spec.key), Some(new));
    assert_eq!(writer.find_egress(&new_egress), Some(new));
    assert_eq!(writer.find_egress(&old_egress), None);
    assert_eq!(
        (writer.partner(new), writer.partner(b)),
        (Some(b), Some(new))
    );
    assert!(writer.flow(a).is_none());
    assert_eq!(writer.len(), 2);
    let flow = writer.flow(new).unwrap();
    assert_eq!(flow.state(), FlowState::Active);
    assert_eq!(flow.counters().tcp, Some((10, 20, 30)));

    // A worker in the middle of its burst still counts on the old one, and closes it.
    late.count(1, 100, 8);
    assert!(late.close());
    flow.count(2, 200, 9);
    drop(pin);
    assert_eq!(writer.reclaim(), 1);
    let flow = writer.flow(new).unwrap();
    let counters = writer.counters(new).unwrap();
    assert_eq!((counters.packets, counters.bytes), (6, 600));
    assert_eq!(counters.last_seen_ms, 9);
    assert_eq!(flow.state(), FlowState::Closing);
}

#[test]
fn counts_survive_two_replacements_within_one_burst() {
    let (mut writer, mut reader) = table(2);
    let (a, _) = insert(&mut writer, 0).unwrap();
    let spec = session(0).0;
    let pin = reader.pin();
    let first = pin.lookup(&spec.key).unwrap();
    let second = writer.replace(a, spec.clone()).unwrap();
    let second_ref = pin.lookup(&spec.key).unwrap();
    let third = writer.replace(second, spec).unwrap();
    first.count(1, 10, 1);
    second_ref.count(2, 20, 1);
    drop(pin);
    writer.reclaim();
    let counters = writer.counters(third).unwrap();
    assert_eq!((counters.packets, counters.bytes), (3, 30));
}

#[test]
fn a_replacement_towards_another_network_with_open_macs_must_prove_itself() {
    let (mut writer, _reader) = table(4);
    let open = |mut spec: FlowSpec| {
        (spec.dst_mac, spec.src_mac) = (None, None);
        spec
    };
    let (original, reply) = session(0);
    let (a, _) = writer
        .insert_pair(open(original.clone()), reply, [true; 2], FlowState::Pending)
        .unwrap();
    let (dst, src) = (MacAddr([2; 6]), MacAddr([4; 6]));
    writer.flow(a).unwrap().learn_macs(dst, src);
    let flow = writer.flow(a).unwrap();
    assert!(flow.transition(FlowState::Pending, FlowState::Active));

    let same = writer.replace(a, open(original.clone())).unwrap();
    let flow = writer.flow(same).unwrap();
    assert_eq!((flow.state(), flow.macs()), (FlowState::Active, (dst, src)));
    let other = writer
        .replace(same, open(moved(original, VnicId(9))))
        .unwrap();
    assert_eq!(writer.flow(other).unwrap().state(), FlowState::Pending);
}

#[test]
fn a_replacement_that_fits_nowhere_changes_nothing() {
    let (mut writer, _reader) = table(4);
    let (a, b) = insert(&mut writer, 0).unwrap();
    let (c, _) = insert(&mut writer, 1).unwrap();
    let mut taken = session(0).0;
    taken.egress_key = session(1).0.egress_key;
    assert_eq!(writer.replace(a, taken), Err(InsertError::KeyExists(c)));
    let other = session(0).1;
    assert_eq!(writer.replace(a, other), Err(InsertError::OtherKey(a)));
    assert_eq!(writer.find(&session(0).0.key), Some(a));
    writer.remove_pair(a, b);
    let spec = session(0).0;
    assert_eq!(writer.replace(a, spec), Err(InsertError::UnknownFlow(a)));
}

#[test]
fn one_caller_alone_closes_a_flow_and_learned_macs_fill_only_open_places() {
    let (mut writer, _reader) = table(2);
    let (mut original, reply) = session(0);
    original.dst_mac = None;
    let given = original.src_mac.unwrap();
    let (a, _) = writer
        .insert_pair(original, reply, [true; 2], FlowState::Draining)
        .unwrap();
    let flow = writer.flow(a).unwrap();
    flow.learn_macs(MacAddr([8; 6]), MacAddr([6; 6]));
    assert_eq!(flow.macs(), (MacAddr([8; 6]), given));
    assert!(!flow.transition(FlowState::Pending, FlowState::Active));
    assert!(flow.close());
    assert!(!flow.close());
    assert!(!flow.transition(FlowState::Draining, FlowState::Active));
    assert_eq!(flow.counters(), Default::default());
}

#[test]
fn a_burst_answers_as_single_lookups_do() {
    let (mut writer, mut reader) = table(400);
    for number in 0..200 {
        insert(&mut writer, number).unwrap();
    }
    // More than one chunk, hits and misses mixed, a key twice.
    let keys: Vec<_> = (0..150u32).map(|n| test_key(n * 37 % 800)).collect();
    let pin = reader.pin();
    let mut out = vec![None; keys.len()];
    pin.lookup_burst(&keys, &mut out);
    for (key, found) in keys.iter().zip(&out) {
        assert_eq!(found.map(FlowRef::id), pin.lookup(key).map(FlowRef::id));
    }
    assert!(out.iter().any(Option::is_some) && out.iter().any(Option::is_none));
    let mut short = [None; 3];
    pin.lookup_burst(&keys, &mut short);
    let mut long = [None; 200];
    pin.lookup_burst(&keys[..1], &mut long);
    assert!(long[1..].iter().all(Option::is_none));
}

#[test]
fn keys_that_collide_under_one_seed_spread_under_another() {
    const FLOWS: u32 = 4096;
    let known = Buckets::new(FLOWS);
    // What an attacker who knew the seed would send: all in one bucket of 456.
    let colliding: Vec<_> = (0..)
        .map(test_key)
        .filter(|key| known.home(hash(&SEED, key)) == 7)
        .take(400)
        .collect();
    let longest = |seed: &HashSeed| {
        let index = Buckets::new(FLOWS);
        let hashes: Vec<_> = colliding.iter().map(|key| hash(seed, key)).collect();
        for (slot, hash) in (0..).zip(&hashes) {
            index.insert(*hash, slot);
        }
        let lengths = (0..)
            .zip(&hashes)
            .map(|(slot, hash)| index.probe_length(*hash, slot));
        lengths.max().unwrap()
    };
    assert_eq!(longest(&SEED), 400usize.div_ceil(12));
    assert!(longest(&HashSeed::from_words(3, 4)) <= 2);
    assert!(longest(&HashSeed::random()) <= 2);
}

#[test]
fn the_size_in_the_module_documentation_is_true() {
    const SESSIONS: u32 = 1 << 16;
    let (narrow, wide) = table_memory_bytes(2 * SESSIONS);
    let each = |bytes: u64| bytes as f64 / f64::from(SESSIONS);
    let (narrow, wide) = (each(narrow), each(wide));
    assert!((190.0..210.0).contains(&narrow), "{narrow} bytes a session");
    assert!((136.0..139.0).contains(&wide), "{wide} bytes more");
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u32, [bool; 2]),
    Remove(u32),
    Replace(u32, bool, u16),
    Count(u32, u8),
    Pin,
    Unpin,
    Reclaim,
}

fn op() -> impl Strategy<Value = Op> {
    let number = 0u32..24;
    prop_oneof![
        4 => (number.clone(), any::<[bool; 2]>()).prop_map(|(n, p)| Op::Insert(n, p)),
        3 => number.clone().prop_map(Op::Remove),
        3 => (number.clone(), any::<bool>(), 1u16..4).prop_map(|(n, r, v)| Op::Replace(n, r, v)),
        3 => (number, any::<u8>()).prop_map(|(n, c)| Op::Count(n, c)),
        1 => Just(Op::Pin),
        1 => Just(Op::Unpin),
        1 => Just(Op::Reclaim),
    ]
}

/// What the oracle knows of a session's direction.
struct Known {
    id: FlowId,
    spec: FlowSpec,
    present: bool,
    packets: u64,
}

fn check(writer: &TableWriter, reader: &mut TableReader, oracle: &HashMap<u32, [Known; 2]>) {
    assert_eq!(writer.len(), 2 * oracle.len());
    let pin = reader.pin();
    for number in 0..24 {
        for (half, spec) in [session(number).0, session(number).1].iter().enumerate() {
            let known = oracle.get(&number).map(|pair| &pair[half]);
            let visible = known.filter(|known| known.present);
            assert_eq!(writer.find(&spec.key), visible.map(|known| known.id));
            let found = pin.lookup(&spec.key);
            assert_eq!(found.map(FlowRef::id), visible.map(|known| known.id));
            for vnic in 1..4 {
                let key = moved(spec.clone(), VnicId(vnic)).egress_key;
                let here = visible.filter(|known| known.spec.egress_key == key);
                assert_eq!(writer.find_egress(&key), here.map(|known| known.id));
            }
            if let Some(known) = known {
                let flow = pin.by_id(known.id).unwrap();
                assert_eq!(flow.spec().egress_key, known.spec.egress_key);
                assert_eq!(writer.counters(known.id).unwrap().packets, known.packets);
                let partner = &oracle[&number][1 - half];
                assert_eq!(pin.partner(flow).unwrap().id(), partner.id);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn it_does_what_a_map_with_a_quota_does(ops in prop::collection::vec(op(), 1..80)) {
        const QUOTA: usize = 32;
        let (mut writer, mut readers) = flow_table(QUOTA as u32, 2, SEED);
        let (holder, reader) = readers.split_at_mut(1);
        let (holder, reader) = (&mut holder[0], &mut reader[0]);
        let mut oracle: HashMap<u32, [Known; 2]> = HashMap::new();
        for op in ops {
            match op {
                Op::Insert(number, presence) => {
                    let (a, b) = session(number);
                    let result =
                        writer.insert_pair(a.clone(), b.clone(), presence, FlowState::Active);
                    let taken = oracle.get(&number).is_some_and(|pair| {
                        (0..2).any(|half| presence[half] && pair[half].present)
                    });
                    if taken {
                        prop_assert!(matches!(result, Err(InsertError::KeyExists(_))));
                    } else if 2 * oracle.len() == QUOTA {
                        let full = InsertError::TableFull { flows_max: QUOTA as u32 };
                        prop_assert_eq!(result, Err(full));
                    } else if let Ok(ids) = result {
                        if oracle.contains_key(&number) {
                            // Two halves of no common presence: not what this test is about.
                            writer.remove_pair(ids.0, ids.1);
                            continue;
                        }
                        let known = |id, spec, present| Known { id, spec, present, packets: 0 };
                        let pair =
                            [known(ids.0, a, presence[0]), known(ids.1, b, presence[1])];
                        oracle.insert(number, pair);
                    } else {
                        prop_assert_eq!(result, Err(InsertError::Reclaiming));
                    }
                }
                Op::Remove(number) => {
                    if let Some([a, b]) = oracle.remove(&number) {
                        writer.remove_pair(a.id, b.id);
                    }
                }
                Op::Replace(number, reply, vnic) => {
                    if let Some(pair) = oracle.get_mut(&number) {
                        let known = &mut pair[usize::from(reply)];
                        let spec = moved(known.spec.clone(), VnicId(vnic));
                        match writer.replace(known.id, spec.clone()) {
                            Ok(id) => (known.id, known.spec) = (id, spec),
                            Err(error) => prop_assert_eq!(error, InsertError::Reclaiming),
                        }
                    }
                }
                Op::Count(number, packets) => {
                    if let Some([a, _]) = oracle.get_mut(&number) {
                        a.packets += u64::from(packets);
                        writer.flow(a.id).unwrap().count(u64::from(packets), 0, 1);
                    }
                }
                Op::Pin => std::mem::forget(holder.pin()),
                Op::Unpin => drop(holder.pin()),
                Op::Reclaim => {
                    writer.reclaim();
                }
            }
            check(&writer, reader, &oracle);
        }
    }
}

/// Readers on real threads beside a writer that inserts, replaces and removes: what they
/// find always matches the key, is linked to its own partner, and is whole.
#[test]
fn readers_never_see_a_flow_of_another_key() {
    const SESSIONS: u32 = 16;
    const ROUNDS: u32 = 30_000;
    const LOOKS: u64 = 200;
    let (mut writer, readers) = flow_table(2 * SESSIONS, 3, HashSeed::random());
    let (done, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    let keys: Vec<_> = (0..2 * SESSIONS).map(test_key).collect();
    let look = |mut reader: TableReader| {
        while !done.load(Ordering::Relaxed) {
            let pin = reader.pin();
            let mut out = [None; 2 * SESSIONS as usize];
            pin.lookup_burst(&keys, &mut out);
            for (number, flow) in out.iter().enumerate() {
                let Some(flow) = flow else { continue };
                assert_eq!(flow.spec().key, keys[number]);
                assert_eq!(flow.spec().session, SessionId(number as u64 / 2));
                assert_eq!(flow.spec().egress_key.vnic(), flow.spec().egress);
                let partner = pin.partner(*flow).unwrap();
                assert_eq!(partner.spec().key, keys[number ^ 1]);
                assert_eq!(flow.spec().key, keys[number], "still the same flow");
            }
            looks.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = readers
            .into_iter()
            .map(|reader| scope.spawn(|| look(reader)))
            .collect();
        let mut ids: Vec<_> = (0..SESSIONS)
            .map(|number| insert(&mut writer, number).ok())
            .collect();
        // At least so many rounds, and until the readers have run beside them.
        let enough = |round| round >= ROUNDS && looks.load(Ordering::Relaxed) >= LOOKS;
        for round in (0..).take_while(|&round| !enough(round) && round < 1000 * ROUNDS) {
            let number = round * 7 % SESSIONS;
            let entry = &mut ids[number as usize];
            match *entry {
                Some((a, b)) if round % 3 == 0 => {
                    writer.remove_pair(a, b);
                    *entry = None;
                }
                Some((a, b)) => {
                    let egress = VnicId(1 + (round % 5) as u16);
                    if let Ok(a) = writer.replace(a, moved(session(number).0, egress)) {
                        *entry = Some((a, b));
                    }
                }
                None => *entry = insert(&mut writer, number).ok(),
            }
            writer.reclaim();
        }
        done.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().expect("no reader complained");
        }
    });
    assert!(
        looks.into_inner() >= LOOKS,
        "the readers ran beside the writer"
    );
}

/// The IPv6 flow number `number`, its source translated.
fn ipv6(number: u16) -> FlowSpec {
    let tuple = |src: [u16; 8]| crate::packet::Tuple {
        src: std::net::Ipv6Addr::from(src).into(),
        dst: "2001:db8::1".parse().unwrap(),
        protocol: 17,
        src_port: 1000,
        dst_port: 53,
    };
    let inside = tuple([0x2001, 0xdb8, 0, 0, 0, 0, number, 5]);
    let outside = tuple([0x2001, 0xdb8, 0xffff, 0, 0, number, 0, 5]);
    let mut spec = test_spec(FlowKey::new(VnicId(0), 0, &inside));
    spec.egress_key = FlowKey::new(VnicId(1), 0, &outside);
    spec.rewrite =
        crate::packet::rewrite::Rewrite::new(&spec.key, &spec.egress_key, true, Some(9)).unwrap();
    spec
}

#[test]
fn ipv6_flows_live_beside_ipv4_flows_and_give_their_addresses_back() {
    const PAIRS: u16 = 40;
    let (mut writer, mut reader) = table(4 * u32::from(PAIRS));
    for round in 0..5 {
        let mut pairs = Vec::new();
        for number in 0..PAIRS {
            pairs.push(insert(&mut writer, number.into()).unwrap());
            let (a, b) = (ipv6(2 * number), ipv6(2 * number + 1));
            pairs.push(
                writer
                    .insert_pair(a, b, [true; 2], FlowState::Active)
                    .unwrap(),
            );
        }
        let keys: Vec<_> = (0..2 * PAIRS)
            .flat_map(|number| [ipv6(number).key, test_key(number.into())])
            .collect();
        let pin = reader.pin();
        let mut out = vec![None; keys.len()];
        pin.lookup_burst(&keys, &mut out);
        for (number, found) in (0..2 * PAIRS).zip(out.chunks(2)) {
            let (flow, spec) = (found[0].unwrap(), ipv6(number));
            assert_eq!((flow.key(), flow.egress_key()), (spec.key, spec.egress_key));
            assert_eq!(*flow.rewrite(), spec.rewrite);
            assert_eq!(pin.lookup_egress(&spec.egress_key).unwrap().id(), flow.id());
            assert_eq!(found[1].unwrap().key(), test_key(number.into()));
        }
        assert!(pin.lookup(&ipv6(2 * PAIRS).key).is_none());
        drop(pin);
        for (a, b) in pairs {
            writer.remove_pair(a, b);
        }
        assert_eq!(writer.reclaim(), 4 * usize::from(PAIRS), "round {round}");
    }
}

#[test]
fn ways_beyond_the_bound_are_refused_and_those_of_removed_flows_serve_again() {
    let (mut writer, _reader) = table(2000);
    let odd = |number: u16| {
        let (mut original, reply) = session(number.into());
        original.l3_mtu = 100 + number;
        (original, reply)
    };
    let insert = |writer: &mut TableWriter, number| {
        let (original, reply) = odd(number);
        writer.insert_pair(original, reply, [true; 2], FlowState::Active)
    };
    let mut pairs = Vec::new();
    let refused = (0..1000).find_map(|number| match insert(&mut writer, number) {
        Ok(pair) => {
            pairs.push(pair);
            None
        }
        Err(error) => Some((number, error)),
    });
    let (number, error) = refused.expect("a bound");
    assert_eq!(error, InsertError::TooManyWays);
    assert_eq!(writer.len(), 2 * pairs.len());
    for (a, b) in pairs.drain(..10) {
        writer.remove_pair(a, b);
    }
    writer.reclaim();
    for number in number..number + 10 {
        insert(&mut writer, number).expect("their ways are free");
    }
}
