//! The book by itself: many connections, and the order of calls.

use std::time::Duration;

use super::*;
use crate::agent::connection::{ConntrackEvent, Counters};
use crate::agent::core::action::{KernelAnswer, Offered, Outcome};
use crate::agent::core::testing::{LAN, WAN, element, links, tcp};
use crate::agent::network::Route;

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
        KernelRequest::Refresh(id, ..) | KernelRequest::BeLiberal(id, ..) => {
            Some(KernelAnswer::IsThere(id, true))
        }
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
    look(
        core,
        numbers.clone().map(|number| with(number, 0)),
        Moment(0),
    );
    look(core, numbers.map(|number| with(number, 99)), Moment(1000));
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
fn sessions_of_others_change_nothing() {
    let mut core = informed(Settings::default());
    offload(&mut core, 1..4);
    let key: crate::api::SessionKey = "operators-own".parse().unwrap();
    let closed = crate::api::events::Closed {
        key,
        id: 1,
        close_code: "withdrawn".to_owned(),
        age: 1,
        original: None,
        reply: None,
    };
    let event = crate::api::Event::SessionClosed(crate::api::events::Sessions {
        element: "r1".to_owned(),
        session: vec![closed],
    });
    core.told(&event, Moment(2000));
    assert_eq!(core.held.len(), 3);
}
