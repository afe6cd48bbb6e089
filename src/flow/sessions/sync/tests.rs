use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::flow::world::{request, shape};
use crate::flow::{
    HashSeed, SessionPhase, SessionRequest, SessionsLimits, TableReader, flow_table,
};

const START: Moment = Moment(5_000_000_000);

fn book(sessions_max: u32) -> (Sessions, Vec<TableReader>) {
    let (writer, readers) = flow_table(2 * sessions_max, 1, HashSeed::from_words(1, 2));
    let sessions = Sessions::new(shape(), writer, SessionsLimits::default());
    (sessions, readers)
}

/// The traffic of that number, asked for under one of two keys.
fn asked(traffic: u16, other: bool) -> SessionRequest {
    let mut asked = request(traffic);
    asked.key = key(traffic, other);
    asked
}

fn key(traffic: u16, other: bool) -> String {
    format!("{traffic}{}", if other { "b" } else { "a" })
}

/// The keys of sessions that have not ended.
fn there(sessions: &Sessions) -> BTreeSet<String> {
    let goes_on = |phase| !matches!(phase, SessionPhase::Closing(_));
    let all = sessions.iter().filter(|one| goes_on(one.phase));
    all.map(|one| one.request.key).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Offload(u16, bool),
    Withdraw(u16, bool),
    Begin,
    Page(Vec<(u16, bool)>),
    /// Of the sync that runs, or of the one before it.
    End {
        stale: bool,
    },
    Epoch,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = || (0u16..12, any::<bool>());
    let step = prop_oneof![
        8 => one().prop_map(|(traffic, other)| Step::Offload(traffic, other)),
        2 => one().prop_map(|(traffic, other)| Step::Withdraw(traffic, other)),
        2 => Just(Step::Begin),
        4 => proptest::collection::vec(one(), 0..8).prop_map(Step::Page),
        2 => prop::bool::weighted(0.2).prop_map(|stale| Step::End { stale }),
        1 => Just(Step::Epoch),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// The oracle: which key has which traffic, and a set of the keys that are wanted.
    #[test]
    fn a_sync_leaves_exactly_what_was_named_or_asked_for_since_it_began(steps in steps()) {
        let (mut sessions, _readers) = book(32);
        let mut holders: BTreeMap<u16, String> = BTreeMap::new();
        let mut wanted: Option<BTreeSet<String>> = None;
        let (mut number, mut before) = (0, 0);
        for step in steps {
            match step {
                Step::Offload(traffic, other) => {
                    sessions.offload(asked(traffic, other), START);
                    holders.insert(traffic, key(traffic, other));
                    if let Some(wanted) = &mut wanted {
                        wanted.insert(key(traffic, other));
                    }
                }
                Step::Withdraw(traffic, other) => {
                    let key = key(traffic, other);
                    let is_there = holders.get(&traffic) == Some(&key);
                    prop_assert_eq!(sessions.withdraw(&key, START), is_there);
                    if is_there {
                        holders.remove(&traffic);
                    }
                }
                Step::Begin => {
                    before = number;
                    number = sessions.begin_sync(0);
                    prop_assert!(number > before);
                    wanted = Some(BTreeSet::new());
                }
                Step::Page(page) => {
                    prop_assert_eq!(sessions.is_syncing(number), wanted.is_some());
                    let Some(wanted) = &mut wanted else {
                        continue;
                    };
                    for (traffic, other) in page {
                        let key = key(traffic, other);
                        let is_there = holders.get(&traffic) == Some(&key);
                        prop_assert_eq!(sessions.keep(&key), is_there);
                        if is_there {
                            wanted.insert(key);
                        }
                    }
                }
                Step::End { stale } => {
                    let swept = sessions.end_sync(if stale { before } else { number }, START);
                    let Some(wanted) = wanted.take_if(|_| !stale) else {
                        prop_assert_eq!(swept, None);
                        continue;
                    };
                    let many = holders.len();
                    holders.retain(|_, key| wanted.contains(key));
                    let left = holders.len() as u32;
                    let withdrawn = many as u64 - u64::from(left);
                    prop_assert_eq!(swept, Some(Swept { withdrawn, left }));
                }
                Step::Epoch => {
                    sessions.open_epoch(CloseCode::Withdrawn, 0, START);
                    holders.clear();
                    wanted = None;
                }
            }
            // Nobody reads the table: who was superseded while it waited for a place is gone.
            sessions.advance(START);
            let expected: BTreeSet<String> = holders.values().cloned().collect();
            prop_assert_eq!(there(&sessions), expected);
        }
    }
}

/// The story that fences are for: a controller that was cut off wakes up.
#[test]
fn a_delayed_offload_of_an_older_connection_does_not_undo_a_newer_withdraw() {
    let (mut sessions, _readers) = book(8);
    let epoch = sessions.open_epoch(CloseCode::Withdrawn, 1_000, START);
    let of = |fence| Claim {
        epoch: Some(epoch),
        fence: Some(fence),
    };
    sessions.judge(of(5)).unwrap();
    sessions.offload(request(1), START);
    sessions.judge(of(6)).unwrap();
    assert!(sessions.withdraw(&request(1).key, START));
    assert_eq!(sessions.judge(of(5)), Err(Late::Fence));
    // A relay's word of a newer connection does the same before any call by it.
    sessions.see_fence(9);
    assert_eq!(sessions.judge(of(8)), Err(Late::Fence));
    assert_eq!(sessions.judge(of(9)), Ok(()));
}

#[test]
fn a_new_epoch_withdraws_what_there_was_and_ends_a_sync() {
    let (mut sessions, _readers) = book(8);
    let old = sessions.open_epoch(CloseCode::Withdrawn, 1_000, START);
    sessions.offload(request(1), START);
    let sync = sessions.begin_sync(1_000);
    let new = sessions.open_epoch(CloseCode::Withdrawn, 1_000, START);
    assert!(new > old);
    assert!(there(&sessions).is_empty());
    assert_eq!(sessions.end_sync(sync, START), None);
    let stale = Claim {
        epoch: Some(old),
        fence: None,
    };
    assert_eq!(sessions.judge(stale), Err(Late::Epoch));
    sessions.advance(START);
    assert_eq!(
        sessions.take_closed().map(|closed| closed.code),
        Some(CloseCode::Withdrawn)
    );
}
