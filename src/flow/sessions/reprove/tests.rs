use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::SessionsLimits;
use super::*;
use crate::flow::table::{TableReader, flow_table};
use crate::flow::world::{request, shape};
use crate::flow::{
    CloseCode, Direction, FlowEvent, FlowId, HashSeed, Outcome, SessionRequest, Toll,
};
use crate::packet::MacAddr;

const START: Moment = Moment(5_000_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn book(flows_max: u32) -> (Sessions, TableReader) {
    let (writer, mut readers) = flow_table(flows_max, 1, HashSeed::random());
    let mut sessions = Sessions::new(shape(), writer, SessionsLimits::default());
    sessions.listen(true);
    (sessions, readers.remove(0))
}

fn waiting(sessions: &Sessions) -> u32 {
    sessions.signals.waiting.load(Ordering::Relaxed)
}

fn states(sessions: &Sessions, key: &str) -> [FlowState; 2] {
    let view = sessions.get(key).unwrap();
    view.directions.map(|direction| direction.unwrap().state)
}

fn flows(reader: &mut TableReader, asked: &SessionRequest) -> [FlowId; 2] {
    let pin = reader.pin();
    let found = asked.directions().map(|direction| {
        let flow = pin.lookup(&direction.unwrap().key());
        flow.unwrap().id()
    });
    drop(pin);
    found
}

/// A worker makes them active; what it reports is for the caller to bring.
fn activate(reader: &mut TableReader, asked: &SessionRequest) -> [FlowEvent; 2] {
    let flows = flows(reader, asked);
    let pin = reader.pin();
    flows.map(|flow| {
        let found = pin.by_id(flow).unwrap();
        found.learn_macs(MacAddr([2; 6]), MacAddr([4; 6]));
        assert!(found.transition(FlowState::Pending, FlowState::Active));
        FlowEvent::Activated {
            flow,
            transit: None,
            forced: false,
            toll: Toll::default(),
        }
    })
}

fn offloaded(sessions: &mut Sessions, reader: &mut TableReader, n: u16) -> SessionRequest {
    let asked = request(n);
    assert!(matches!(
        sessions.offload(asked.clone(), START),
        Outcome::Offloaded(_)
    ));
    for event in activate(reader, &asked) {
        sessions.event(event, START);
    }
    asked
}

fn handed_over(sessions: &mut Sessions) -> Vec<(String, Direction)> {
    std::iter::from_fn(|| sessions.take_handed_over())
        .map(|told| (told.key, told.direction))
        .collect()
}

#[test]
fn the_session_goes_on_and_its_hand_over_is_told_again() {
    let (mut sessions, mut reader) = book(64);
    let asked = offloaded(&mut sessions, &mut reader, 1);
    assert_eq!(handed_over(&mut sessions).len(), 2);
    let (before, ids) = (sessions.get("ct-1").unwrap(), flows(&mut reader, &asked));
    let later = START + SECOND;
    assert_eq!(sessions.reprove("ct-1", later), Some(Reproof::Sent));
    assert_eq!(states(&sessions, "ct-1"), [FlowState::Pending; 2]);
    assert_eq!(waiting(&sessions), 2);
    assert_eq!(sessions.reprove("ct-1", later), Some(Reproof::Waits));
    let after = sessions.get("ct-1").unwrap();
    assert_eq!(
        (after.session, &after.request, after.age),
        (before.session, &before.request, SECOND)
    );
    assert_eq!(flows(&mut reader, &asked), ids, "no place has changed");
    assert!(sessions.take_closed().is_none());
    for event in activate(&mut reader, &asked) {
        sessions.event(event, later);
    }
    assert_eq!(waiting(&sessions), 0);
    let both = [Direction::Original, Direction::Reply];
    let told = both.map(|direction| ("ct-1".to_owned(), direction));
    assert_eq!(handed_over(&mut sessions), told);
    // Its timers, too: it ends when it would have.
    sessions.reprove_all(later);
    sessions.advance(START + 31 * SECOND);
    drop(reader);
    sessions.advance(START + 32 * SECOND);
    let closed = sessions.take_closed().unwrap();
    assert_eq!(closed.code, CloseCode::IdleTimeout);
    assert_eq!(waiting(&sessions), 0);
}

#[test]
fn a_report_from_before_does_not_make_a_reproved_flow_count_as_active() {
    let (mut sessions, mut reader) = book(64);
    let asked = request(1);
    sessions.offload(asked.clone(), START);
    let late = activate(&mut reader, &asked);
    assert_eq!(sessions.reprove_all(START), 1);
    for event in late {
        sessions.event(event, START);
    }
    assert_eq!(waiting(&sessions), 2, "workers go on looking for the proof");
    assert!(handed_over(&mut sessions).is_empty());
    for event in activate(&mut reader, &asked) {
        sessions.event(event, START);
    }
    assert_eq!(
        (waiting(&sessions), handed_over(&mut sessions).len()),
        (0, 2)
    );
}

#[test]
fn all_means_every_session_but_vouched_ones() {
    let (mut sessions, mut reader) = book(4096);
    let mut vouched = request(0);
    vouched.vouched = true;
    for direction in [&mut vouched.original, &mut vouched.reply] {
        let direction = direction.as_mut().unwrap();
        direction.dst_mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
        direction.src_mac = Some(MacAddr([2, 0, 0, 0, 0, 2]));
    }
    sessions.offload(vouched, START);
    for n in 1..=1000 {
        offloaded(&mut sessions, &mut reader, n);
    }
    sessions.offload(request(1001), START);
    assert_eq!(sessions.reprove_all(START), 1000);
    assert_eq!(waiting(&sessions), 2002);
    assert_eq!(states(&sessions, "ct-0"), [FlowState::Active; 2]);
    for n in 1..=1001 {
        assert_eq!(
            states(&sessions, &format!("ct-{n}")),
            [FlowState::Pending; 2]
        );
    }
    assert_eq!(sessions.reprove("ct-0", START), Some(Reproof::Vouched));
    assert_eq!(sessions.reprove("ct-1001", START), Some(Reproof::Waits));
    assert_eq!(sessions.reprove("none", START), None);
    // A session that ends is no more what its key means.
    sessions.withdraw("ct-5", START);
    assert_eq!(sessions.reprove("ct-5", START), None);
    assert_eq!(waiting(&sessions), 2000);
    assert_eq!(sessions.reprove_all(START), 0);
}

#[test]
fn a_direction_that_a_session_does_not_have_waits_for_nothing() {
    let (mut sessions, mut reader) = book(64);
    let mut asked = request(1);
    asked.reply = None;
    sessions.offload(asked.clone(), START);
    let pin = reader.pin();
    let flow = pin.lookup(&asked.original.unwrap().key()).unwrap();
    assert!(flow.transition(FlowState::Pending, FlowState::Active));
    let flow = flow.id();
    drop(pin);
    let event = FlowEvent::Activated {
        flow,
        transit: None,
        forced: false,
        toll: Toll::default(),
    };
    sessions.event(event, START);
    assert_eq!(sessions.reprove_all(START), 1);
    assert_eq!(waiting(&sessions), 1);
}

#[test]
fn workers_look_again_only_where_frames_may_be_parked() {
    let (mut sessions, mut reader) = book(64);
    let asked = offloaded(&mut sessions, &mut reader, 1);
    let revisit = |sessions: &Sessions| sessions.signals.revisit.load(Ordering::Relaxed);
    let before = revisit(&sessions);
    sessions.reprove("ct-1", START);
    assert_eq!(revisit(&sessions), before);
    let pin = reader.pin();
    let flow = pin.lookup(&asked.original.unwrap().key()).unwrap();
    assert!(flow.transition(FlowState::Pending, FlowState::Draining));
    drop(pin);
    assert_eq!(sessions.reprove("ct-1", START), Some(Reproof::Sent));
    assert_ne!(revisit(&sessions), before);
    assert_eq!(waiting(&sessions), 2);
}
