use super::*;
use crate::datapath::told::{Heard, Listener, listening};
use crate::flow::world::{request, shape};
use crate::flow::{
    CloseCode, FlowState, HashSeed, Outcome, SessionRequest, SessionsLimits, TableReader,
    flow_table,
};
use crate::packet::MacAddr;

const START: Moment = Moment(5_000_000_000);
const MS: Duration = Duration::from_millis(1);

/// A book for some sessions and a listener to it.
fn stage(sessions_max: u32) -> (Sessions, TableReader, Feed, Listener) {
    let (writer, mut readers) = flow_table(2 * sessions_max, 1, HashSeed::from_words(1, 2));
    let mut sessions = Sessions::new(shape(), writer, SessionsLimits::default());
    let (mut feed, (teller, listener)) = (Feed::default(), listening(|| {}));
    feed.add(teller, &mut sessions, START);
    (sessions, readers.remove(0), feed, listener)
}

fn vouched(number: u16) -> SessionRequest {
    let mut asked = request(number);
    asked.vouched = true;
    for direction in [&mut asked.original, &mut asked.reply] {
        let direction = direction.as_mut().unwrap();
        direction.dst_mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
        direction.src_mac = Some(MacAddr([2, 0, 0, 0, 0, 2]));
    }
    asked
}

fn add(sessions: &mut Sessions, asked: SessionRequest, now: Moment) {
    let outcome = sessions.offload(asked, now);
    assert!(matches!(outcome, Outcome::Offloaded(_)), "{outcome:?}");
}

/// A packet of a session's original direction.
fn forward(reader: &mut TableReader, asked: &SessionRequest, now: Moment) {
    let key = asked.original.as_ref().unwrap().key();
    let pin = reader.pin();
    let flow = pin.lookup(&key).unwrap();
    assert_eq!(flow.state(), FlowState::Active);
    flow.count(1, 100, now.millis() as u32);
}

fn all(listener: &mut Listener) -> Vec<Heard> {
    std::iter::from_fn(|| Some(listener.hear()).filter(|heard| *heard != Heard::Nothing)).collect()
}

/// What sessions were told to have moved, when.
fn moves(listener: &mut Listener) -> Vec<(Moment, String)> {
    let heard = all(listener).into_iter();
    let moves = heard.filter_map(|heard| match heard {
        Heard::Told(then, told) => match &*told {
            Told::Activity(moved) => Some((then, moved.clone())),
            _ => None,
        },
        _ => None,
    });
    moves
        .flat_map(|(then, moved)| moved.into_iter().map(move |one| (then, one.key)))
        .collect()
}

/// Lets time pass as the keeper does.
fn until(feed: &mut Feed, sessions: &mut Sessions, end: Moment) -> u32 {
    let mut passes = 0;
    while let Some(due) = feed.next_deadline().filter(|due| *due <= end) {
        sessions.advance(due);
        feed.pass(sessions, due, |_| {});
        passes += 1;
    }
    passes
}

#[test]
fn a_hand_over_and_an_end_are_told_in_this_order_and_once() {
    let (mut sessions, mut reader, mut feed, mut listener) = stage(8);
    let asked = vouched(1);
    add(&mut sessions, asked.clone(), START);
    forward(&mut reader, &asked, START);
    sessions.withdraw(&asked.key, START + MS);
    sessions.advance(START + MS);
    feed.pass(&mut sessions, START + MS, |_| {});
    feed.pass(&mut sessions, START + MS, |_| {});
    let heard = all(&mut listener);
    let [Heard::Told(_, moved), Heard::Told(_, closed)] = heard.as_slice() else {
        panic!("{heard:?}");
    };
    let Told::HandedOver(moved) = &**moved else {
        panic!("{moved:?}");
    };
    assert_eq!(moved.len(), 2, "one for each direction");
    let Told::Ended(closed) = &**closed else {
        panic!("{closed:?}");
    };
    assert_eq!(closed[0].code, CloseCode::Withdrawn);
    assert_eq!(closed[0].totals[0].map(|one| one.packets), Some(1));
}

#[test]
fn only_who_moved_since_the_last_look_is_told_and_within_a_round() {
    let (mut sessions, mut reader, mut feed, mut listener) = stage(2000);
    let asked: Vec<_> = (0..600)
        .map(|number| {
            let mut asked = vouched(number);
            asked.idle_timeout = Duration::from_secs(3600);
            asked
        })
        .collect();
    for one in &asked {
        add(&mut sessions, one.clone(), START);
    }
    let mut now = START;
    for round in 0..4u32 {
        let movers = [round as usize * 100 + 7, 599];
        for mover in movers {
            forward(&mut reader, &asked[mover], now);
        }
        now = now + ROUND;
        until(&mut feed, &mut sessions, now + ROUND);
        now = now + ROUND;
        let mut told: Vec<_> = moves(&mut listener)
            .into_iter()
            .map(|(_, key)| key)
            .collect();
        told.sort();
        told.dedup();
        let mut expected = movers.map(|mover| asked[mover].key.clone()).to_vec();
        expected.sort();
        assert_eq!(told, expected, "round {round}");
    }
}

#[test]
fn a_round_is_spread_evenly_and_costs_a_step_for_each_batch_of_places() {
    let (mut sessions, _reader, mut feed, mut listener) = stage(2000);
    for number in 0..1024 {
        let mut asked = vouched(number);
        asked.idle_timeout = Duration::from_secs(3600);
        add(&mut sessions, asked, START);
    }
    until(&mut feed, &mut sessions, START + ROUND);
    let passes = until(&mut feed, &mut sessions, START + ROUND * 2);
    assert_eq!(passes, 4);
    assert_eq!(moves(&mut listener), []);
}

#[test]
fn pressure_is_told_at_nine_tenths_and_again_only_below_eight() {
    let (mut sessions, _reader, mut feed, mut listener) = stage(10);
    let mut told = Vec::new();
    let mut step = |sessions: &mut Sessions| {
        sessions.advance(START);
        feed.pass(sessions, START, |_| {});
        told.extend(all(&mut listener).into_iter().filter_map(|heard| {
            let Heard::Told(_, one) = heard else {
                return None;
            };
            match &*one {
                Told::Pressure(pressure) => Some((pressure.is_high, pressure.sessions)),
                _ => None,
            }
        }));
    };
    for number in 0..9 {
        add(&mut sessions, request(number), START);
        step(&mut sessions);
    }
    // To and fro between both thresholds: nothing.
    sessions.withdraw(&request(0).key, START);
    step(&mut sessions);
    add(&mut sessions, request(0), START);
    step(&mut sessions);
    for number in 0..2 {
        sessions.withdraw(&request(number).key, START);
        step(&mut sessions);
    }
    assert_eq!(told, [(true, 9), (false, 7)]);
}

#[test]
fn a_listener_that_comes_while_the_table_is_nearly_full_is_told_so() {
    let (mut sessions, _reader, mut feed, _first) = stage(10);
    for number in 0..10 {
        add(&mut sessions, request(number), START);
    }
    feed.pass(&mut sessions, START, |_| {});
    let (teller, mut late) = listening(|| {});
    feed.add(teller, &mut sessions, START);
    let heard = late.hear();
    assert!(
        matches!(&heard, Heard::Told(_, told) if matches!(&**told, Told::Pressure(one) if one.is_high)),
        "{heard:?}"
    );
}

#[test]
fn what_the_book_lost_is_lost_to_listeners_too() {
    let (writer, _readers) = flow_table(64, 1, HashSeed::from_words(1, 2));
    let mut sessions = Sessions::new(shape(), writer, SessionsLimits { closed: 3 });
    let (mut feed, (teller, mut listener)) = (Feed::default(), listening(|| {}));
    feed.add(teller, &mut sessions, START);
    for number in 0..5 {
        add(&mut sessions, request(number), START);
    }
    sessions.close_all(CloseCode::Withdrawn, START);
    sessions.advance(START);
    feed.pass(&mut sessions, START, |_| {});
    let heard = all(&mut listener);
    assert!(
        matches!(heard.as_slice(), [Heard::Told(..), Heard::Lost(2)]),
        "{heard:?}"
    );
}

#[test]
fn without_listeners_nothing_is_due_and_ends_are_still_seen() {
    let (mut sessions, _reader, mut feed, listener) = stage(10);
    drop(listener);
    add(&mut sessions, request(1), START);
    sessions.close_all(CloseCode::Withdrawn, START);
    sessions.advance(START);
    let mut ended = 0;
    feed.pass(&mut sessions, START, |_| ended += 1);
    assert_eq!((ended, feed.next_deadline()), (1, None));
    assert_eq!(sessions.take_handed_over(), None);
}
