use super::*;
use crate::flow::table::{TableReader, flow_table};
use crate::flow::world::{request, shape};
use crate::flow::{FlowState, HashSeed};
use crate::packet::{MacAddr, VnicId};

const START: Moment = Moment(5_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn book(flows_max: u32) -> (Sessions, TableReader) {
    let (writer, mut readers) = flow_table(flows_max, 1, HashSeed::random());
    let sessions = Sessions::new(shape(), writer, SessionsLimits { closed: 8 });
    (sessions, readers.remove(0))
}

fn waiting(sessions: &Sessions) -> u32 {
    sessions.signals.waiting.load(Ordering::Relaxed)
}

fn vouched(n: u16) -> SessionRequest {
    let mut asked = request(n);
    asked.vouched = true;
    for direction in [&mut asked.original, &mut asked.reply] {
        let direction = direction.as_mut().unwrap();
        direction.dst_mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
        direction.src_mac = Some(MacAddr([2, 0, 0, 0, 0, 2]));
    }
    asked
}

fn codes(sessions: &mut Sessions) -> Vec<CloseCode> {
    std::iter::from_fn(|| sessions.take_closed())
        .map(|closed| closed.code)
        .collect()
}

fn activate(sessions: &mut Sessions, reader: &mut TableReader, asked: &SessionRequest) {
    for direction in asked.directions().into_iter().flatten() {
        let pin = reader.pin();
        let flow = pin.lookup(&direction.key()).unwrap();
        flow.learn_macs(MacAddr([2; 6]), MacAddr([4; 6]));
        assert!(flow.transition(FlowState::Pending, FlowState::Active));
        let event = FlowEvent::Activated {
            flow: flow.id(),
            transit: Some(MS),
            forced: false,
            toll: Toll::default(),
        };
        sessions.event(event, START);
        sessions.event(event, START);
    }
}

#[test]
fn the_same_request_again_changes_nothing() {
    let (mut sessions, _reader) = book(64);
    let Outcome::Offloaded(id) = sessions.offload(request(1), START) else {
        panic!("new");
    };
    assert_eq!(sessions.offload(request(1), START), Outcome::Unchanged(id));
    assert_eq!((sessions.len(), waiting(&sessions)), (1, 2));
}

#[test]
fn a_changed_rewrite_replaces_in_place_and_asks_for_proof_again() {
    let (mut sessions, mut reader) = book(64);
    let mut asked = request(1);
    let Outcome::Offloaded(id) = sessions.offload(asked.clone(), START) else {
        panic!("new");
    };
    activate(&mut sessions, &mut reader, &asked);
    assert_eq!((waiting(&sessions), sessions.stats().hand_overs), (0, 2));
    let pin = reader.pin();
    pin.lookup(&asked.original.as_ref().unwrap().key())
        .unwrap()
        .count(10, 1000, 5000);
    drop(pin);
    asked.original.as_mut().unwrap().dscp = Some(12);
    let before = sessions.signals().revisit.load(Ordering::Relaxed);
    assert_eq!(sessions.offload(asked, START), Outcome::Replaced(id));
    let after = sessions.signals().revisit.load(Ordering::Relaxed);
    assert_ne!(before, after, "a worker may have parked frames just before");
    let view = sessions.get("ct-1").unwrap();
    let [original, reply] = view.directions.map(Option::unwrap);
    assert_eq!(original.state, FlowState::Pending);
    assert_eq!(original.totals.packets, 10, "counters go on");
    assert_eq!(reply.state, FlowState::Active, "it did not change");
    assert_eq!(waiting(&sessions), 1);
}

#[test]
fn a_vouched_session_is_active_at_once_and_stays_so_when_replaced() {
    let (mut sessions, _reader) = book(64);
    let mut asked = vouched(1);
    sessions.offload(asked.clone(), START);
    asked.original.as_mut().unwrap().dscp = Some(12);
    assert!(matches!(
        sessions.offload(asked, START),
        Outcome::Replaced(_)
    ));
    let view = sessions.get("ct-1").unwrap();
    for direction in view.directions.map(Option::unwrap) {
        assert_eq!(direction.state, FlowState::Active);
    }
    assert_eq!(waiting(&sessions), 0);
}

#[test]
fn timeouts_change_without_touching_the_flows() {
    let (mut sessions, mut reader) = book(64);
    let mut asked = request(1);
    sessions.offload(asked.clone(), START);
    activate(&mut sessions, &mut reader, &asked);
    asked.idle_timeout = 2 * SECOND;
    sessions.offload(asked, START);
    assert_eq!(waiting(&sessions), 0);
    sessions.advance(START + 3 * SECOND);
    assert_eq!(codes(&mut sessions), [CloseCode::IdleTimeout]);
}

#[test]
fn whatever_is_in_the_way_is_superseded_and_the_newest_request_wins() {
    let (mut sessions, mut reader) = book(64);
    sessions.offload(request(1), START);
    // A worker that has not looked yet: nobody leaves, everybody waits.
    let pin = reader.pin();
    let mut newest = SessionId(0);
    for number in 0..5 {
        let mut asked = request(1);
        asked.key = format!("other-{number}");
        let Outcome::Superseded(id) = sessions.offload(asked, START) else {
            panic!("superseded");
        };
        newest = id;
        sessions.advance(START);
    }
    assert_eq!(waiting(&sessions), 0);
    drop(pin);
    for step in 1..20 {
        sessions.advance(START + step * MS);
    }
    assert_eq!(sessions.len(), 1);
    let view = sessions.iter().next().unwrap();
    assert_eq!((view.session, view.phase), (newest, SessionPhase::Live));
    assert_eq!(waiting(&sessions), 2);
    assert_eq!(codes(&mut sessions), [CloseCode::Superseded; 5]);
}

#[test]
fn the_same_egress_packets_supersede_too() {
    let (mut sessions, _reader) = book(64);
    let mut asked = request(1);
    asked.reply = None;
    sessions.offload(asked.clone(), START);
    asked.key = "other".to_owned();
    asked.original.as_mut().unwrap().tuple.src_port = 1;
    assert!(matches!(
        sessions.offload(asked, START),
        Outcome::Superseded(_)
    ));
    sessions.advance(START);
    assert_eq!(codes(&mut sessions), [CloseCode::Superseded]);
    assert_eq!(sessions.len(), 1);
}

#[test]
fn flows_stay_until_every_worker_has_looked() {
    let (mut sessions, mut reader) = book(64);
    let asked = request(1);
    sessions.offload(asked.clone(), START);
    let revisit = sessions.signals.revisit.load(Ordering::Acquire);
    let pin = reader.pin();
    assert!(sessions.withdraw("ct-1", START));
    assert_ne!(sessions.signals.revisit.load(Ordering::Acquire), revisit);
    assert_eq!(sessions.next_deadline(), Some(START + MS));
    sessions.advance(START + MS);
    let flow = pin.lookup(&asked.original.as_ref().unwrap().key()).unwrap();
    assert_eq!(flow.state(), FlowState::Closing);
    flow.count(3, 300, 5000);
    flow.note_tcp(7, 8, 9);
    drop(pin);
    assert!(sessions.take_closed().is_none());
    sessions.advance(START + 2 * MS);
    let closed = sessions.take_closed().unwrap();
    assert_eq!(closed.code, CloseCode::Withdrawn);
    assert_eq!(closed.totals[0].packets, 3, "counted after the close");
    assert_eq!(closed.totals[0].tcp, Some((7, 8, 9)));
    assert!(sessions.is_empty());
    assert_eq!(sessions.next_deadline(), None);
}

#[test]
fn a_full_table_refuses_and_takes_again_what_has_left() {
    let (mut sessions, _reader) = book(8);
    for number in 0..4 {
        assert!(matches!(
            sessions.offload(request(number), START),
            Outcome::Offloaded(_)
        ));
    }
    assert_eq!(sessions.offload(request(9), START), Outcome::TableFull);
    assert_eq!((sessions.len(), waiting(&sessions)), (4, 8));
    let mut asked = request(2);
    asked.original.as_mut().unwrap().decrement_ttl = false;
    asked.key = "successor".to_owned();
    assert!(matches!(
        sessions.offload(asked, START),
        Outcome::Superseded(_)
    ));
    assert_eq!(sessions.offload(request(9), START), Outcome::TableFull);
    sessions.advance(START);
    assert!(sessions.get("successor").unwrap().directions[0].is_some());
    sessions.withdraw("successor", START);
    sessions.advance(START);
    assert!(matches!(
        sessions.offload(request(9), START),
        Outcome::Offloaded(_)
    ));
    assert_eq!(sessions.stats().table_full, 2);
}

#[test]
fn a_session_is_idle_only_when_neither_direction_moves() {
    let (mut sessions, mut reader) = book(64);
    let asked = request(1);
    sessions.offload(asked.clone(), START);
    let moved_at = START + 20 * SECOND;
    let pin = reader.pin();
    let reply = pin.lookup(&asked.reply.as_ref().unwrap().key()).unwrap();
    reply.count(1, 100, moved_at.millis() as u32);
    drop(pin);
    sessions.advance(START + 49 * SECOND);
    assert_eq!(sessions.len(), 1);
    sessions.advance(moved_at + 31 * SECOND);
    assert_eq!(codes(&mut sessions), [CloseCode::IdleTimeout]);
}

#[test]
fn idleness_is_right_whatever_the_uptime() {
    // Milliseconds in 32 bits: half way, and around the wrap.
    for days in [0, 10, 25, 30, 49, 50, 60, 400] {
        let (mut sessions, _reader) = book(64);
        let start = Moment(days * 86_400_000_000_000);
        sessions.offload(request(1), start);
        sessions.advance(start + 29 * SECOND);
        assert_eq!(sessions.len(), 1, "after {days} days");
        sessions.advance(start + 31 * SECOND);
        assert_eq!(codes(&mut sessions), [CloseCode::IdleTimeout]);
    }
}

#[test]
fn the_hard_timeout_ends_what_moves() {
    let (mut sessions, mut reader) = book(64);
    let mut asked = request(1);
    asked.hard_timeout = Some(60 * SECOND);
    sessions.offload(asked.clone(), START);
    for second in 1..=61 {
        let now = START + second * SECOND;
        let pin = reader.pin();
        if let Some(flow) = pin.lookup(&asked.original.as_ref().unwrap().key()) {
            flow.count(1, 100, now.millis() as u32);
        }
        drop(pin);
        sessions.advance(now);
    }
    assert_eq!(codes(&mut sessions), [CloseCode::HardTimeout]);
}

#[test]
fn an_event_of_a_worker_that_got_lost_is_made_good() {
    let (mut sessions, mut reader) = book(64);
    let asked = request(1);
    sessions.offload(asked.clone(), START);
    let pin = reader.pin();
    let flow = pin.lookup(&asked.original.as_ref().unwrap().key()).unwrap();
    flow.transition(FlowState::Pending, FlowState::Active);
    flow.count(1, 1, (START + 20 * SECOND).millis() as u32);
    drop(pin);
    sessions.advance(START + 40 * SECOND);
    assert_eq!(waiting(&sessions), 1);
}

#[test]
fn losing_an_uplink_ends_the_sessions_that_use_it() {
    let (mut sessions, _reader) = book(64);
    sessions.offload(request(1), START);
    let mut hairpin = request(2);
    hairpin.reply = None;
    hairpin.original.as_mut().unwrap().egress = VnicId(0);
    sessions.offload(hairpin, START);
    sessions.unplug(VnicId(1), START);
    sessions.advance(START);
    assert_eq!(codes(&mut sessions), [CloseCode::EgressLost]);
    assert!(sessions.get("ct-2").is_some());
    assert_eq!(waiting(&sessions), 1);
}

#[test]
fn ended_sessions_that_nobody_takes_lose_their_oldest_and_are_counted() {
    let (mut sessions, _reader) = book(64);
    for number in 0..20 {
        sessions.offload(request(number), START);
        sessions.close_all(CloseCode::LeaseExpired, START);
        sessions.advance(START);
    }
    assert_eq!(sessions.stats().closed_lost, 12);
    assert_eq!(sessions.stats().closed[CloseCode::LeaseExpired.index()], 20);
    assert_eq!(sessions.take_closed().unwrap().request.key, "ct-12");
    assert_eq!(codes(&mut sessions).len(), 7);
    assert_eq!(waiting(&sessions), 0);
}

#[test]
fn a_refused_request_leaves_the_session_as_it_was() {
    let (mut sessions, _reader) = book(64);
    sessions.offload(request(1), START);
    let mut asked = request(1);
    asked.original.as_mut().unwrap().dscp = Some(99);
    let Outcome::Invalid(error) = sessions.offload(asked, START) else {
        panic!("invalid");
    };
    assert_eq!(error.leaf, "original/dscp");
    let view = sessions.get("ct-1").unwrap();
    assert_eq!(view.request, request(1));
}

#[test]
fn events_of_flows_that_are_gone_are_ignored() {
    let (mut sessions, mut reader) = book(64);
    let asked = request(1);
    let Outcome::Offloaded(first) = sessions.offload(asked.clone(), START) else {
        panic!("new");
    };
    let pin = reader.pin();
    let flow = pin
        .lookup(&asked.original.as_ref().unwrap().key())
        .unwrap()
        .id();
    drop(pin);
    sessions.withdraw("ct-1", START);
    sessions.advance(START);
    let Outcome::Offloaded(second) = sessions.offload(asked, START) else {
        panic!("new");
    };
    assert_ne!(first, second);
    sessions.event(
        FlowEvent::Activated {
            flow,
            transit: None,
            forced: false,
            toll: Toll::default(),
        },
        START,
    );
    sessions.event(
        FlowEvent::Closed {
            session: first,
            code: CloseCode::Rst,
        },
        START,
    );
    assert_eq!((waiting(&sessions), sessions.len()), (2, 1));
    sessions.event(
        FlowEvent::Closed {
            session: second,
            code: CloseCode::Reopened,
        },
        START,
    );
    sessions.advance(START);
    let closed = codes(&mut sessions);
    assert_eq!(closed, [CloseCode::Withdrawn, CloseCode::Reopened]);
}

/// The vouched session `n`, over IPv6.
fn ipv6(n: u16) -> SessionRequest {
    let mut asked = vouched(n);
    let [inside, outside, server] = ["2001:db8::2", "2001:db8:ffff::1", "2001:db8:5::7"];
    let tuple = |src: &str, mut tuple: crate::packet::Tuple| {
        (tuple.src, tuple.dst) = (src.parse().unwrap(), server.parse().unwrap());
        tuple
    };
    let original = asked.original.as_mut().unwrap();
    original.tuple = tuple(inside, original.tuple);
    original.translation = tuple(outside, original.translation);
    let (there, back) = (original.translation.reversed(), original.tuple.reversed());
    let reply = asked.reply.as_mut().unwrap();
    (reply.tuple, reply.translation) = (there, back);
    asked
}

#[test]
fn what_was_asked_for_is_shown_again_when_it_is_kept_in_32_bytes() {
    let (mut sessions, _reader) = book(256);
    let mut all = vec![request(1), vouched(2), ipv6(3)];
    for (number, key) in ["x", "elevenbytes", "twelve-bytes", &"k".repeat(64)]
        .iter()
        .enumerate()
    {
        let mut asked = request(10 + number as u16);
        asked.key = key.to_string();
        all.push(asked);
    }
    let mut odd = vouched(20);
    odd.hard_timeout = Some(Duration::from_millis(12_345));
    odd.mode = crate::flow::HandOverMode::Prompt;
    let original = odd.original.as_mut().unwrap();
    (original.dscp, original.l3_mtu) = (Some(0), Some(1400));
    original.ingress_mac = Some(MacAddr([2, 0, 0x5e, 0, 1, 7]));
    let reply = odd.reply.as_mut().unwrap();
    (reply.dscp, reply.decrement_ttl) = (Some(63), !reply.decrement_ttl);
    reply.egress_vlan = crate::packet::VlanId::try_from(4094).ok();
    all.push(odd);
    for (number, original) in [(30, true), (31, false)] {
        let mut half = ipv6(number);
        half.original = half.original.filter(|_| original);
        half.reply = half.reply.filter(|_| !original);
        all.push(half);
    }
    for asked in &all {
        let outcome = sessions.offload(asked.clone(), START);
        assert!(matches!(outcome, Outcome::Offloaded(_)), "{outcome:?}");
        let slot = sessions.book.by_key(&asked.key).unwrap();
        assert!(
            sessions.book.terms(slot).is_some(),
            "{asked:?} is not folded"
        );
    }
    for asked in &all {
        let view = sessions.get(&asked.key).unwrap();
        assert_eq!(view.request, *asked);
        assert_eq!((view.phase, view.age), (SessionPhase::Live, Duration::ZERO));
        let again = sessions.offload(asked.clone(), START);
        assert_eq!(again, Outcome::Unchanged(view.session));
    }
    for asked in &all {
        assert!(sessions.withdraw(&asked.key, START));
    }
    sessions.advance(START);
    let closed: Vec<_> = std::iter::from_fn(|| sessions.take_closed()).collect();
    assert_eq!(closed.last().unwrap().request, *all.last().unwrap());
    assert!(sessions.is_empty() && sessions.get("x").is_none());
}

#[test]
fn a_span_that_a_record_cannot_hold_is_kept_all_the_same() {
    let (mut sessions, _reader) = book(16);
    let mut asked = request(1);
    asked.idle_timeout = SECOND + Duration::from_nanos(1);
    sessions.offload(asked.clone(), START);
    assert_eq!(sessions.get("ct-1").unwrap().request, asked);
    sessions.advance(START + SECOND);
    assert_eq!(sessions.len(), 1);
    sessions.advance(START + SECOND + MS + super::super::wheel::TICK);
    assert_eq!(codes(&mut sessions), [CloseCode::IdleTimeout]);
}
