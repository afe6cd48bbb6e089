//! Model checks of the table's memory ordering: every order of the threads' steps and
//! every value that the memory model lets a load return, within the bounds below.
//!
//! *Promises*: run by `RUSTFLAGS='--cfg shunt_loom' cargo test --lib --release model`;
//! loom's cells report any access to a spec that does not happen before or after a write.
//! *Refuses*: more than three preemptions in one execution are not explored.
//! *Caller's duty*: none.
//! *Standard*: the C++20 memory model, but for what loom leaves out (it takes SeqCst
//! accesses for AcqRel; the table uses SeqCst fences only, which loom has).

use loom::thread;

use super::queue;
use super::testing::{test_key, test_spec};
use super::{FlowId, FlowSpec, FlowState, HashSeed, TableReader, TableWriter, flow_table};
use crate::packet::FlowKey;

/// Explores `body` with at most three preemptions.
fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(body);
}

fn spec(number: u32, l3_mtu: u16) -> FlowSpec {
    let mut spec = test_spec(test_key(number));
    spec.l3_mtu = l3_mtu;
    spec
}

fn table() -> (TableWriter, TableReader) {
    let (writer, mut readers) = flow_table(2, 1, HashSeed::from_words(1, 2));
    (writer, readers.remove(0))
}

/// What a lookup of a key may see: the flow of that key, whole, for as long as the pin.
fn look(reader: &mut TableReader, key: &FlowKey) -> Option<u16> {
    let pin = reader.pin();
    let flow = pin.lookup(key)?;
    assert_eq!(flow.spec().key, *key);
    let id = flow.id();
    let l3_mtu = flow.spec().l3_mtu;
    assert_eq!(flow.spec().key, *key, "reused under a pin");
    assert_eq!(flow.id(), id);
    Some(l3_mtu)
}

#[test]
fn model_a_slot_is_not_reused_under_a_pin() {
    model(|| {
        let (mut writer, mut reader) = table();
        let (a, b) = writer
            .insert_pair(spec(0, 1), spec(1, 1), [true, false], FlowState::Active)
            .unwrap();
        let worker = thread::spawn(move || {
            look(&mut reader, &test_key(0));
        });
        writer.remove_pair(a, b);
        writer.reclaim();
        // The table has four slots: two inserts use every one that was given back.
        for number in [2, 4] {
            let pair = (spec(number, 1), spec(number + 1, 1));
            if let Ok((a, b)) = writer.insert_pair(pair.0, pair.1, [true, false], FlowState::Active)
            {
                writer.remove_pair(a, b);
            }
        }
        worker.join().unwrap();
    });
}

#[test]
fn model_who_finds_a_flow_by_id_keeps_it_for_the_pin() {
    model(|| {
        let (mut writer, mut reader) = table();
        let (a, b) = writer
            .insert_pair(spec(0, 1), spec(1, 1), [false, false], FlowState::Active)
            .unwrap();
        let worker = thread::spawn(move || {
            let pin = reader.pin();
            if let Some(flow) = pin.by_id(a) {
                assert_eq!(flow.spec().key, test_key(0));
                let partner = pin.partner(flow).unwrap();
                assert_eq!(partner.spec().key, test_key(1));
            }
        });
        writer.remove_pair(a, b);
        for number in [2, 4] {
            writer.reclaim();
            let pair = (spec(number, 1), spec(number + 1, 1));
            if let Ok((a, b)) =
                writer.insert_pair(pair.0, pair.1, [false, false], FlowState::Active)
            {
                writer.remove_pair(a, b);
            }
        }
        worker.join().unwrap();
    });
}

#[test]
fn model_who_finds_a_key_sees_the_whole_spec_and_both_links() {
    model(|| {
        let (mut writer, mut reader) = table();
        let worker = thread::spawn(move || {
            let pin = reader.pin();
            // The name that the first flow of a new table gets.
            let first = FlowId {
                index: 0,
                generation: 1,
            };
            if let Some(flow) = pin.by_id(first) {
                assert_eq!(flow.spec().l3_mtu, 1400);
            }
            if let Some(flow) = pin.lookup(&test_key(0)) {
                assert_eq!(flow.id(), first);
                assert_eq!(flow.spec().l3_mtu, 1400);
                assert_eq!(flow.state(), FlowState::Active);
                let (dst, src) = flow.macs();
                assert_eq!(
                    (Some(dst), Some(src)),
                    (flow.spec().dst_mac, flow.spec().src_mac)
                );
                let partner = pin.partner(flow).unwrap();
                assert_eq!(partner.spec().l3_mtu, 1300);
                let egress = pin.lookup_egress(&flow.spec().egress_key);
                assert!(egress.is_some(), "found by ingress, so by egress key, too");
            }
        });
        writer
            .insert_pair(
                spec(0, 1400),
                spec(1, 1300),
                [true, false],
                FlowState::Active,
            )
            .unwrap();
        worker.join().unwrap();
    });
}

#[test]
fn model_a_replaced_flow_is_seen_old_or_new_never_neither() {
    model(|| {
        let (mut writer, mut reader) = table();
        let (a, _) = writer
            .insert_pair(spec(0, 1), spec(1, 1), [true, false], FlowState::Active)
            .unwrap();
        let worker = thread::spawn(move || {
            let first = look(&mut reader, &test_key(0)).expect("old or new");
            let second = look(&mut reader, &test_key(0)).expect("old or new");
            assert!(first <= second, "the old one came back");
        });
        let a = writer.replace(a, spec(0, 2)).unwrap();
        writer.reclaim();
        let _ = writer.replace(a, spec(0, 3));
        worker.join().unwrap();
    });
}

#[test]
fn model_what_was_concluded_before_a_reprove_changes_nothing_after_it() {
    model(|| {
        let (mut writer, mut reader) = table();
        let (a, _) = writer
            .insert_pair(spec(0, 1), spec(1, 1), [true, false], FlowState::Pending)
            .unwrap();
        let worker = thread::spawn(move || {
            let pin = reader.pin();
            let flow = pin.lookup(&test_key(0)).unwrap();
            // As a proof does: looks, concludes, moves.
            let stand = flow.stand();
            let is_moved = flow.advance(stand, FlowState::Active);
            (is_moved, stand.round())
        });
        let was = writer.flow(a).unwrap().reprove();
        let (is_moved, round) = worker.join().unwrap();
        let stands = writer.flow(a).unwrap().stand();
        assert_eq!(stands.round(), 1);
        match (was, is_moved) {
            // It came first, and was undone.
            (FlowState::Active, _) => assert_eq!(stands.state(), FlowState::Pending),
            // It looked before, and came too late; or it looked after.
            (_, false) => assert_eq!((stands.state(), round), (FlowState::Pending, 0)),
            (_, true) => assert_eq!((stands.state(), round), (FlowState::Active, 1)),
        }
    });
}

#[test]
fn model_after_a_grace_no_reader_acts_on_a_closed_flow() {
    model(|| {
        let (mut writer, mut reader) = table();
        let (a, b) = writer
            .insert_pair(spec(0, 1), spec(1, 1), [true, false], FlowState::Active)
            .unwrap();
        let worker = thread::spawn(move || {
            let pin = reader.pin();
            if let Some(flow) = pin.lookup(&test_key(0))
                && flow.state() == FlowState::Active
            {
                flow.count(1, 100, 1);
                return 1;
            }
            0
        });
        assert!(writer.flow(a).unwrap().close());
        let grace = writer.grace();
        let counted = writer
            .has_passed(&grace)
            .then(|| writer.flow(a).unwrap().counters().packets);
        writer.remove_pair(a, b);
        let forwarded = worker.join().unwrap();
        if let Some(counted) = counted {
            assert_eq!(counted, forwarded, "forwarded after the grace");
        }
    });
}

#[test]
fn model_the_queue_neither_loses_nor_doubles_nor_reorders() {
    model(|| {
        let (mut sender, mut receiver) = queue::channel(2);
        let producer = thread::spawn(move || {
            (0..4u32)
                .filter(|&item| sender.try_send(item).is_ok())
                .collect::<Vec<_>>()
        });
        let mut received = Vec::new();
        for _ in 0..3 {
            received.extend(receiver.try_recv());
        }
        let sent = producer.join().unwrap();
        received.extend(std::iter::from_fn(|| receiver.try_recv()));
        assert_eq!(received, sent);
    });
}
