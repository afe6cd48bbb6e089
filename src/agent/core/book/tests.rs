//! The book by itself: many connections, and the order of calls.

use std::time::Duration;

use super::*;
use crate::agent::connection::{ConntrackEvent, Counters, Status, TcpState};
use crate::agent::core::action::{KernelAnswer, Offered, Outcome};
use crate::agent::core::testing::{LAN, WAN, element, links, tcp};
use crate::agent::network::{Bridged, Route};
use crate::api::SessionKey;
use crate::api::events::{Active, Closed, Direction, Event, HandedOver, Sessions};
use crate::api::state::Traffic;

/// A connection of that number with so many packets.
fn with(number: u32, packets: u64) -> Connection {
    let mut connection = tcp(number);
    let counters = Counters {
        packets,
        octets: packets * 100,
    };
    connection.counters = Some([counters; 2]);
    connection
}

/// A core that knows its world and has an epoch.
fn informed(settings: Settings) -> Core {
    let mut core = Core::new(settings);
    let now = Moment(0);
    core.line(true, now);
    core.act(now);
    core.links(links(), now);
    core.hazards(Vec::new(), now);
    core.epoch_opened(Ok(Some(Duration::from_secs(10))), now);
    core.act(now);
    core.element_read(Ok(element()), now);
    core.scan_ended(true, Duration::ZERO, now);
    core
}

/// Answers all that the core asks of the kernel; what it wants of the host.
fn settle(core: &mut Core, now: Moment) -> Vec<Action> {
    let mut host = Vec::new();
    loop {
        let mut is_idle = true;
        for action in core.act(now) {
            let Action::Kernel(requests) = action else {
                host.push(action);
                continue;
            };
            is_idle = false;
            let answers = requests.into_iter().filter_map(answer).collect();
            core.kernel_answered(answers, now);
        }
        if is_idle {
            return host;
        }
    }
}

fn answer(request: KernelRequest) -> Option<KernelAnswer> {
    match request {
        KernelRequest::Route(id, query) => {
            let is_near = matches!(query.destination, IpAddr::V4(v4) if v4.octets()[0] == 10);
            let route = Route::Unicast {
                by: if is_near { LAN } else { WAN },
                gateway: None,
                mtu: None,
                is_encapsulated: false,
            };
            Some(KernelAnswer::Route(id, route))
        }
        KernelRequest::Look(id, _) => Some(KernelAnswer::Look(id, None)),
        KernelRequest::Refresh(id, ..) => Some(KernelAnswer::IsThere(id, true)),
        KernelRequest::BeLiberal(id, ..) => Some(KernelAnswer::IsLiberal(id, true)),
        KernelRequest::UseNeighbour(..) => None,
    }
}

fn look(core: &mut Core, connections: impl IntoIterator<Item = Connection>, now: Moment) {
    core.pace.start(now);
    core.scan += 1;
    for connection in connections {
        core.scanned(connection, now);
    }
    core.scan_ended(true, Duration::from_micros(10), now);
}

/// Offers `numbers` and has all of them taken.
fn offload(core: &mut Core, numbers: std::ops::Range<u32>) {
    let all = |packets| -> Vec<Connection> {
        let of = numbers.clone().map(|number| with(number, packets));
        of.collect()
    };
    offload_all(core, &all(0), &all(99));
}

/// The same of connections, as they are at first and a second later.
fn offload_all(core: &mut Core, first: &[Connection], later: &[Connection]) {
    look(core, first.iter().cloned(), Moment(0));
    look(core, later.iter().cloned(), Moment(1000));
    loop {
        let offers = settle(core, Moment(1000))
            .into_iter()
            .find_map(|action| match action {
                Action::Offload(sessions) => Some(sessions),
                _ => None,
            });
        let Some(sessions) = offers else {
            return;
        };
        let taken = sessions.into_iter().map(|session| Offered {
            key: session.key,
            outcome: Outcome::Taken,
        });
        core.offloaded(Ok(taken.collect()), Moment(1000));
    }
}

/// The host took a direction over.
fn handed_over(key: SessionKey, direction: Direction) -> Event {
    Event::SessionHandedOver(Sessions {
        element: "r1".to_owned(),
        session: vec![HandedOver {
            key,
            id: 1,
            direction,
            transit: None,
            forced: false,
            overtaken: 0,
            lost: 0,
        }],
    })
}

/// The host ended a session.
fn closed(key: SessionKey, code: &str) -> Event {
    Event::SessionClosed(Sessions {
        element: "r1".to_owned(),
        session: vec![Closed {
            key,
            id: 1,
            close_code: code.to_owned(),
            age: 1,
            original: None,
            reply: None,
        }],
    })
}

#[test]
fn a_hundred_thousand_connections_are_watched_looked_at_and_forgotten() {
    let mut core = informed(Settings::default());
    for second in 0..3 {
        let slow = (0..100_000).map(|number| with(number, second));
        look(&mut core, slow, Moment(second * 1000));
        assert_eq!(core.watches.count(), 100_000);
        assert!(core.held.is_empty());
    }
    for number in 0..50_000 {
        core.conntrack(ConntrackEvent::Gone(with(number, 2)), Moment(3000));
    }
    assert_eq!(core.watches.count(), 50_000);
    look(&mut core, [], Moment(4000));
    assert_eq!(core.watches.count(), 0);
}

#[test]
fn no_more_are_held_than_allowed_and_the_policy_counts_too() {
    let mut core = informed(Settings {
        sessions_max: 50,
        ..Settings::default()
    });
    offload(&mut core, 0..200);
    assert_eq!(core.held.len(), 50);
    core.line(false, Moment(1000));
    core.line(true, Moment(1000));
    let mut own = element();
    own.sessions_max = Some(10);
    core.act(Moment(1000));
    core.element_read(Ok(own), Moment(1000));
    look(
        &mut core,
        (0..40).map(|number| with(number, 99)),
        Moment(2000),
    );
    offload(&mut core, 300..400);
    let is_new = |held: &Held| held.connection.id >= 1300;
    assert!(
        !core.held.values().any(is_new),
        "no new ones until there are fewer than ten"
    );
}

#[test]
fn what_is_gone_while_it_is_asked_for_is_withdrawn_only_after_the_answer() {
    let mut core = informed(Settings::default());
    look(&mut core, [with(1, 0)], Moment(0));
    look(&mut core, [with(1, 99)], Moment(1000));
    let actions = settle(&mut core, Moment(1000));
    let [Action::Offload(sessions)] = &actions[..] else {
        panic!("{actions:?}");
    };
    core.conntrack(ConntrackEvent::Gone(with(1, 99)), Moment(1001));
    assert_eq!(settle(&mut core, Moment(1001)), []);
    let taken = Offered {
        key: sessions[0].key.clone(),
        outcome: Outcome::Taken,
    };
    core.offloaded(Ok(vec![taken]), Moment(1002));
    let actions = settle(&mut core, Moment(1002));
    assert_eq!(actions, [Action::Withdraw(vec![sessions[0].key.clone()])]);
    core.withdrawn(Ok(()), Moment(1003));
    assert!(core.held.is_empty() && core.by_tuple.is_empty() && core.hops.is_empty());
}

#[test]
fn a_new_entry_of_a_tuple_waits_until_the_old_one_is_withdrawn() {
    let mut core = informed(Settings::default());
    offload(&mut core, 1..2);
    let mut again = with(1, 0);
    again.id = 77;
    let mut later = with(1, 99);
    later.id = 77;
    // The end of the old one was never told.
    look(&mut core, [with(1, 99), again.clone()], Moment(2000));
    look(&mut core, [with(1, 99), later.clone()], Moment(3000));
    let actions = settle(&mut core, Moment(3000));
    assert!(
        matches!(&actions[..], [.., Action::Withdraw(keys)] if keys.len() == 1),
        "{actions:?}"
    );
    core.withdrawn(Ok(()), Moment(3100));
    let mut last = later;
    last.counters = with(1, 999).counters;
    look(&mut core, [last], Moment(4000));
    let actions = settle(&mut core, Moment(4000));
    assert!(
        matches!(&actions[..], [Action::Offload(sessions)] if sessions.len() == 1),
        "{actions:?}"
    );
}

#[test]
fn what_was_read_from_the_table_before_its_end_was_told_is_not_asked_for() {
    let mut core = informed(Settings::default());
    look(&mut core, [with(1, 0)], Moment(0));
    core.pace.start(Moment(1000));
    core.scan += 1;
    core.conntrack(ConntrackEvent::Gone(with(1, 99)), Moment(1000));
    core.scanned(with(1, 99), Moment(1001));
    core.scan_ended(true, Duration::ZERO, Moment(1002));
    assert_eq!(settle(&mut core, Moment(1002)), []);
    assert!(core.held.is_empty());
    assert_eq!(core.watches.count(), 0);
}

#[test]
fn a_connection_that_was_taken_up_in_the_middle_is_found() {
    let mut core = informed(Settings::default());
    // The first packet: one-sided still. What follows is told without its state.
    let mut begun = with(1, 0);
    begun.status.0 &= !Status::ASSURED.0;
    core.conntrack(ConntrackEvent::Changed(begun), Moment(2000));
    assert_eq!(core.act(Moment(2000)), []);
    let mut assured = with(1, 0);
    (assured.tcp, assured.counters) = (None, None);
    core.conntrack(ConntrackEvent::Changed(assured), Moment(2001));
    assert_eq!(core.act(Moment(2001)), [Action::Scan]);
    let is_asked_for = |core: &mut Core, packets, now| {
        look(core, [with(1, packets)], now);
        let actions = settle(core, now);
        actions
            .iter()
            .any(|action| matches!(action, Action::Offload(_)))
    };
    // What it had before says nothing of its rate.
    assert!(!is_asked_for(&mut core, 1_000_000, Moment(3000)));
    assert!(!is_asked_for(&mut core, 1_000_001, Moment(4000)));
    assert!(is_asked_for(&mut core, 1_000_099, Moment(5000)));
}

#[test]
fn what_changes_in_a_connection_that_is_not_open_does_not_have_it_watched_for_long() {
    let mut core = informed(Settings::default());
    let mut closing = with(1, 9);
    closing.tcp = Some(TcpState(7));
    let stateless = Connection {
        tcp: None,
        ..closing.clone()
    };
    core.conntrack(ConntrackEvent::Changed(stateless), Moment(2000));
    look(&mut core, [closing], Moment(3000));
    assert_eq!(core.watches.count(), 0);
}

#[test]
fn windows_are_checked_no_more_before_the_host_is_asked() {
    let mut core = informed(Settings::default());
    look(&mut core, [with(1, 0)], Moment(0));
    look(&mut core, [with(1, 99)], Moment(1000));
    let mut waiting = None;
    let is_offer = |action: &Action| matches!(action, Action::Offload(_));
    while waiting.is_none() {
        let actions = core.act(Moment(1000));
        assert!(!actions.iter().any(is_offer), "{actions:?}");
        let [Action::Kernel(requests)] = &actions[..] else {
            panic!("{actions:?}");
        };
        let is_wish = |request: &KernelRequest| matches!(request, KernelRequest::BeLiberal(..));
        let answers: Vec<_> = requests.iter().cloned().filter_map(answer).collect();
        match requests.iter().any(is_wish) {
            true => waiting = Some(answers),
            false => core.kernel_answered(answers, Moment(1000)),
        }
    }
    core.line(false, Moment(1000));
    core.line(true, Moment(1000));
    assert!(!core.act(Moment(1000)).iter().any(is_offer));
    core.kernel_answered(waiting.unwrap(), Moment(1001));
    core.element_read(Ok(element()), Moment(1001));
    let _synced = core.act(Moment(1001));
    core.synced(Ok(Vec::new()), Moment(1001));
    assert!(core.act(Moment(1001)).iter().any(is_offer));
}

/// Has a session that goes around the guest end; what the kernel is told of its connection, which
/// it has as `found` then.
fn settled(found: Connection) -> Vec<KernelRequest> {
    let mut core = informed(Settings::default());
    offload(&mut core, 1..2);
    let key = core.held.keys().next().and_then(|id| id.key()).unwrap();
    core.told(&handed_over(key.clone(), Direction::Original), Moment(2000));
    settle(&mut core, Moment(2000));
    core.told(&closed(key, "withdrawn"), Moment(100_000));
    let actions = core.act(Moment(100_000));
    let [Action::Kernel(requests)] = &actions[..] else {
        panic!("{actions:?}");
    };
    let [KernelRequest::Look(id, _)] = &requests[..] else {
        panic!("{requests:?}");
    };
    let answers = vec![KernelAnswer::Look(*id, Some(Box::new(found)))];
    core.kernel_answered(answers, Moment(100_001));
    match &core.act(Moment(100_001))[..] {
        [] => Vec::new(),
        [Action::Kernel(requests)] => requests.clone(),
        actions => panic!("{actions:?}"),
    }
}

#[test]
fn a_session_s_end_sets_the_timeout_of_an_open_connection_and_none_of_one_that_has_ended() {
    let open = Connection {
        timeout: Some(Duration::from_secs(400_000)),
        ..with(1, 99)
    };
    assert!(matches!(
        settled(open.clone())[..],
        [KernelRequest::Refresh(..)]
    ));
    for state in (0..10)
        .map(TcpState)
        .filter(|of| *of != TcpState::ESTABLISHED)
    {
        for seconds in [1, 10, 120, 400_000] {
            let ended = Connection {
                tcp: Some(state),
                timeout: Some(Duration::from_secs(seconds)),
                ..open.clone()
            };
            assert_eq!(settled(ended), []);
        }
    }
}

#[test]
fn each_hand_over_refreshes_what_lives_shorter_than_the_host_s_reports_are_apart() {
    let short = |packets| Connection {
        timeout: Some(Duration::from_secs(5)),
        ..with(1, packets)
    };
    let mut core = informed(Settings::default());
    offload_all(&mut core, &[short(0)], &[short(99)]);
    let key = core.held.keys().next().and_then(|id| id.key()).unwrap();
    // An older proof's end may be told after a new one was asked for: what is told then is not the
    // first, and the guest has set its timeout again all the same.
    for (direction, now) in [(Direction::Reply, 2000), (Direction::Original, 3000)] {
        core.told(&handed_over(key.clone(), direction), Moment(now));
        let is_refresh = |request: &KernelRequest| matches!(request, KernelRequest::Refresh(_, _, time) if *time == core.lease * 2);
        assert!(core.requests.iter().any(is_refresh), "{now}");
        settle(&mut core, Moment(now));
    }
}

/// An offloaded connection of TCP, which the host has told of just now.
fn of_tcp(now: Moment) -> (Core, Id, SessionKey) {
    let mut core = informed(Settings::default());
    offload(&mut core, 1..2);
    let id = *core.held.keys().next().unwrap();
    let key = id.key().unwrap();
    for direction in [Direction::Original, Direction::Reply] {
        core.told(&handed_over(key.clone(), direction), now);
    }
    (core, id, key)
}

/// The timeouts that the kernel is told to set.
fn refreshes(core: &mut Core) -> Vec<Duration> {
    let times = core.requests.iter().filter_map(|request| match request {
        KernelRequest::Refresh(_, _, timeout) => Some(*timeout),
        _ => None,
    });
    let times = times.collect();
    settle(core, Moment(0));
    times
}

#[test]
fn each_hand_over_refreshes_tcp_which_may_stand_at_the_timeout_of_what_is_unacknowledged() {
    let full = with(1, 0).timeout.unwrap();
    // Both directions at once need one wish.
    let (mut core, _, key) = of_tcp(Moment(2000));
    assert_eq!(refreshes(&mut core), [full]);
    core.told(&handed_over(key, Direction::Reply), Moment(60_000));
    assert_eq!(refreshes(&mut core), [full]);
}

#[test]
fn a_shorter_timeout_than_was_set_is_seen_in_the_table_and_refreshed_before_it_runs_out() {
    let (mut core, _, key) = of_tcp(Moment(2000));
    refreshes(&mut core);
    let active = |packets| {
        Event::SessionActivity(Sessions {
            element: "r1".to_owned(),
            session: vec![Active {
                key: key.clone(),
                id: 1,
                idle: 0,
                original: Some(Traffic { packets, octets: 0 }),
                reply: None,
            }],
        })
    };
    let stands = |seconds| Connection {
        timeout: Some(Duration::from_secs(seconds)),
        ..with(1, 99)
    };
    // As it was set; then a packet has come to the guest.
    look(&mut core, [stands(431_998)], Moment(4000));
    look(&mut core, [stands(300)], Moment(5000));
    core.told(&active(1), Moment(10_000));
    assert!(refreshes(&mut core).is_empty());
    core.told(&active(2), Moment(290_000));
    assert_eq!(refreshes(&mut core), [with(1, 0).timeout.unwrap()]);
}

/// What becomes of the table from `from` on for so many milliseconds: when news are followed
/// again, and when it is looked at.
fn table_actions(core: &mut Core, from: u64, span: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut follows, mut looks) = (Vec::new(), Vec::new());
    let mut at = from;
    while at < from + span {
        let now = Moment(at);
        for action in core.act(now) {
            match action {
                Action::Follow(true) => follows.push(at),
                Action::Scan => {
                    looks.push(at);
                    core.scan_ended(true, Duration::from_micros(10), now);
                }
                _ => {}
            }
        }
        // As whoever runs it: only when something is due.
        at = core
            .next_deadline()
            .map_or(u64::MAX, |due| due.0.max(at + 1));
    }
    (follows, looks)
}

#[test]
fn once_news_are_followed_again_the_table_is_looked_at_although_nothing_is_held_or_watched() {
    let mut core = informed(Settings::default());
    let opening = Connection {
        tcp: Some(TcpState(1)),
        ..with(1, 0)
    };
    for _ in 0..=Settings::default().news_rate_max {
        core.conntrack(ConntrackEvent::Changed(opening.clone()), Moment(1000));
    }
    let (follows, looks) = table_actions(&mut core, 1000, 60_000);
    let ([again], Some(last)) = (&follows[..], looks.last()) else {
        panic!("{follows:?}, {looks:?}");
    };
    assert!(last >= again, "{last}, {again}");
}

#[test]
fn after_a_loss_of_news_the_table_is_looked_at_although_nothing_is_held_or_watched() {
    let mut core = informed(Settings::default());
    table_actions(&mut core, 0, 10_000);
    core.conntrack(ConntrackEvent::Lost, Moment(10_000));
    let (_, looks) = table_actions(&mut core, 10_000, 10_000);
    assert_eq!(looks.len(), 1);
    core.conntrack(ConntrackEvent::Lost, Moment(looks[0] + 1));
    let (_, looks) = table_actions(&mut core, looks[0] + 1, 10_000);
    assert_eq!(looks.len(), 1);
}

#[test]
fn the_kernel_is_read_again_after_what_changed_during_the_reading() {
    let mut core = Core::new(Settings::default());
    let reads = |core: &mut Core| {
        let actions = core.act(Moment(0));
        actions
            .iter()
            .filter(|action| **action == Action::ReadLinks)
            .count()
    };
    assert_eq!(reads(&mut core), 1);
    let change = crate::agent::network::NetworkChange::Links { gone: None };
    core.network(&change, Moment(0));
    assert_eq!(reads(&mut core), 0);
    core.links(links(), Moment(0));
    assert_eq!(reads(&mut core), 1);
    core.unread(true, false);
    assert_eq!(reads(&mut core), 1);
}

#[test]
fn of_a_neighbour_behind_a_bridge_the_bridge_is_told_too() {
    let (bridge, address) = (IfIndex(10), "10.0.0.9".parse().unwrap());
    let mut core = informed(Settings::default());
    let mut bridged = links();
    let link = crate::agent::network::Link {
        kind: crate::agent::network::LinkKind::Bridge {
            filters_vlans: false,
        },
        ..bridged.0[&LAN].clone()
    };
    bridged.0.insert(bridge, link);
    bridged.0.get_mut(&LAN).unwrap().master = Some(bridge);
    core.links(bridged, Moment(1000));
    let there = Bridged {
        port: LAN,
        vlan: None,
    };
    for (on, port) in [(bridge, Some(there)), (WAN, None)] {
        core.hops.entry((on, address)).or_default();
        core.use_hop(on, address, Moment(1000));
        let wish = KernelRequest::UseNeighbour(on, address, port);
        assert_eq!(core.requests.pop_back(), Some(wish));
    }
}

#[test]
fn sessions_of_others_change_nothing() {
    let mut core = informed(Settings::default());
    offload(&mut core, 1..4);
    let key = "operators-own".parse().unwrap();
    core.told(&closed(key, "withdrawn"), Moment(2000));
    assert_eq!(core.held.len(), 3);
}
