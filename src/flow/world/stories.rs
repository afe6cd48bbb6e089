//! What the hand-over promises, one promise a test.

use super::*;

const MS: Duration = Duration::from_millis(1);
const US: Duration = Duration::from_micros(1);

fn world() -> World {
    World::new(HandOverLimits::default())
}

#[test]
fn ordered_hand_over_never_reorders_a_paced_flow() {
    let mut world = world();
    world.send_paced(0, 10, 50 * US);
    assert!(matches!(world.offload(), Outcome::Offloaded(_)));
    world.send_paced(0, 200, 50 * US);
    assert_eq!(world.state(0), Some(FlowState::Active));
    assert!(world.forwarded > 150, "{}", world.forwarded);
    assert_eq!(world.sessions.stats().hand_overs, 1);
    world.check(true);
}

#[test]
fn a_flow_slower_than_the_guest_becomes_active_without_parking() {
    let mut world = world();
    world.offload();
    world.send_paced(0, 3, MS);
    assert_eq!(world.state(0), Some(FlowState::Active));
    assert_eq!(world.hand_over.stats().parked_frames, 0);
    assert_eq!(world.hand_over.stats().transit_us_last, 300);
    world.check(true);
}

#[test]
fn a_request_alone_moves_nothing_however_long_it_stands() {
    let mut world = world();
    world.request.idle_timeout = Duration::from_secs(3600);
    world.offload();
    world.run(Duration::from_secs(1000));
    assert_eq!(world.state(0), Some(FlowState::Pending));
    assert_eq!(world.hand_over.records(), 0);
}

#[test]
fn a_flow_the_guest_drops_is_never_active_in_prompt_mode_either() {
    for mode in [HandOverMode::Prompt, HandOverMode::Ordered] {
        for act in [Act::Drop, Act::OtherRewrite, Act::OtherRoute] {
            let mut world = world();
            world.request.mode = mode;
            world.guest.act = Box::new(move |_| act);
            world.offload();
            world.send_paced(0, 500, 100 * US);
            assert_eq!(world.state(0), Some(FlowState::Pending), "{mode:?} {act:?}");
            assert_eq!(world.forwarded, 0);
            world.check(true);
        }
    }
}

#[test]
fn prompt_mode_is_active_at_the_proof() {
    let mut world = world();
    world.request.mode = HandOverMode::Prompt;
    world.offload();
    world.send(0);
    world.send(0);
    assert_eq!(world.state(0), Some(FlowState::Pending));
    world.run(300 * US);
    assert_eq!(world.state(0), Some(FlowState::Active));
    world.check(false);
}

#[test]
fn macs_are_learned_from_the_proving_frame() {
    let mut world = world();
    world.offload();
    world.send_paced(0, 3, MS);
    let view = world.sessions.get("ct-1").unwrap();
    assert_eq!(view.directions[0].unwrap().macs, (MAC_DST, MAC_SRC));
}

#[test]
fn a_frame_with_other_macs_than_requested_proves_nothing() {
    let mut world = world();
    let original = world.request.original.as_mut().unwrap();
    original.dst_mac = Some(MacAddr([2, 0, 0, 0, 0, 0x99]));
    world.offload();
    world.send_paced(0, 20, MS);
    assert_eq!(world.state(0), Some(FlowState::Pending));
    assert_eq!(world.hand_over.stats().proved, 0);
}

#[test]
fn parked_frames_go_to_the_guest_in_order_at_the_bound() {
    let mut world = world();
    world.guest.transit = 50 * MS;
    world.send_paced(0, 100, MS);
    world.offload();
    world.send_paced(0, 200, MS);
    let stats = *world.hand_over.stats();
    assert!(stats.drain_bounds > 0 && stats.released_to_guest > 0);
    assert_eq!(stats.activated, 0, "20 ms never see a packet through");
    assert_eq!(
        world.sessions.stats().drain_bounds,
        stats.drain_bounds,
        "every bound is reported"
    );
    world.check(true);
}

#[test]
fn drains_that_fail_become_rare() {
    let mut world = world();
    world.guest.transit = 50 * MS;
    world.offload();
    world.send_paced(0, 10_000, MS);
    let bounds = world.hand_over.stats().drain_bounds;
    assert!((5..=20).contains(&bounds), "{bounds} in ten seconds");
    world.check(true);
}

#[test]
fn forced_activates_at_the_bound_and_is_counted() {
    let mut world = World::new(HandOverLimits {
        forced: true,
        ..HandOverLimits::default()
    });
    world.guest.transit = 50 * MS;
    world.offload();
    world.send_paced(0, 200, MS);
    assert_eq!(world.state(0), Some(FlowState::Active));
    assert_eq!(world.hand_over.stats().forced, 1);
    assert_eq!(world.sessions.stats().forced, 1);
    let tally = world.sessions.get("ct-1").unwrap().tally;
    assert_eq!((tally.hand_overs, tally.forced), (1, 1));
    assert!(tally.toll.overtaken > 0, "{tally:?}");
    assert_eq!(
        u64::from(tally.toll.overtaken),
        world.hand_over.stats().overtaken
    );
    world.check(false);
}

#[test]
fn no_more_is_parked_than_the_limits_allow() {
    let frames = HandOverLimits {
        frames: 5,
        ..HandOverLimits::default()
    };
    let bytes = HandOverLimits {
        bytes: 599,
        ..HandOverLimits::default()
    };
    for limits in [frames, bytes] {
        let mut world = World::new(limits);
        world.guest.transit = MS;
        world.offload();
        for _ in 0..2000 {
            world.send_paced(0, 1, 20 * US);
            assert!(world.hand_over.parked_frames() <= 5);
        }
        assert!(world.hand_over.stats().drain_bounds > 0);
        world.check(true);
    }
}

/// A world whose original direction has parked frames.
fn draining() -> World {
    let mut world = world();
    world.guest.transit = 5 * MS;
    world.send_paced(0, 20, MS);
    world.offload();
    world.send_paced(0, 4, MS);
    assert_eq!(world.state(0), Some(FlowState::Draining));
    assert!(world.hand_over.parked_frames() > 0);
    world
}

#[test]
fn fin_while_draining_releases_parked_frames_to_the_guest_first() {
    let mut world = draining();
    let fin = Marker::Tcp {
        seq_end: 1_000_000,
        ack: 1,
    };
    world.send_as(0, fin, true);
    assert_eq!(world.hand_over.parked_frames(), 0);
    world.send_paced(0, 10, MS);
    assert_eq!(world.forwarded, 0);
    let closed = world.sessions.take_closed().unwrap();
    assert_eq!(closed.code, CloseCode::Fin);
    world.check(true);
}

#[test]
fn withdraw_while_draining_hands_parked_frames_to_the_guest_before_later_packets() {
    let mut world = draining();
    assert!(world.sessions.withdraw("ct-1", world.now));
    assert!(
        !world.sessions.withdraw("ct-1", world.now),
        "already ending"
    );
    world.send_paced(0, 10, 100 * US);
    assert_eq!(world.forwarded, 0);
    let closed = world.sessions.take_closed().unwrap();
    assert_eq!(closed.code, CloseCode::Withdrawn);
    assert!(world.sessions.is_empty());
    world.check(true);
}

#[test]
fn a_new_request_while_draining_keeps_the_order() {
    for other_key in [false, true] {
        let mut world = draining();
        if other_key {
            world.request.key = "another".to_owned();
        } else {
            world.request.original.as_mut().unwrap().dscp = Some(10);
        }
        let outcome = world.offload();
        assert_eq!(matches!(outcome, Outcome::Superseded(_)), other_key);
        assert_eq!(matches!(outcome, Outcome::Replaced(_)), !other_key);
        world.send_paced(0, 100, MS);
        assert_eq!(world.state(0), Some(FlowState::Active));
        world.check(true);
    }
}

#[test]
fn a_guest_that_changes_its_mind_while_draining_gets_the_frames() {
    let mut world = draining();
    world.guest.act = Box::new(|_| Act::OtherRewrite);
    world.send_paced(0, 20, MS);
    assert_eq!(world.hand_over.stats().disproved, 1);
    assert_eq!(world.state(0), Some(FlowState::Pending));
    world.check(true);
}

#[test]
fn merged_segments_carry_the_marker_out() {
    let mut world = world();
    let mut turn = 0;
    world.guest.act = Box::new(move |_| {
        turn += 1;
        if turn % 4 == 0 {
            Act::Forward
        } else {
            Act::Merge
        }
    });
    world.offload();
    world.send_paced(0, 400, 50 * US);
    assert_eq!(world.state(0), Some(FlowState::Active));
    world.check(true);
}

#[test]
fn a_marker_the_guest_drops_only_delays_the_hand_over() {
    let mut world = world();
    world.guest.transit = 5 * MS;
    world.offload();
    world.send_paced(0, 8, MS);
    world.guest.act = Box::new(|_| Act::Drop);
    world.send_paced(0, 20, MS);
    assert_ne!(world.state(0), Some(FlowState::Active));
    world.guest.act = Box::new(|_| Act::Forward);
    world.send_paced(0, 300, MS);
    assert_eq!(world.state(0), Some(FlowState::Active));
    world.check(true);
}

#[test]
fn repeated_acks_end_no_drain_early() {
    let mut world = world();
    world.guest.transit = 5 * MS;
    let ack = |ack| Marker::Tcp { seq_end: 7, ack };
    for _ in 0..10 {
        world.send_as(0, ack(100), false);
        world.run(MS);
    }
    world.offload();
    for number in 0..200 {
        world.send_as(0, ack(100 + number / 10), false);
        world.run(MS);
    }
    assert_eq!(world.state(0), Some(FlowState::Active));
    world.check(true);
}

#[test]
fn packets_that_are_all_equal_are_handed_over_after_a_run() {
    let mut world = world();
    world.offload();
    for _ in 0..100 {
        world.send_as(0, Marker::Other { len: 64, hash: 5 }, false);
        world.run(100 * US);
    }
    assert_eq!(world.state(0), Some(FlowState::Active));
    world.check(false);
}

#[test]
fn both_directions_move_independently_and_a_close_takes_both_back() {
    let mut world = world();
    world.offload();
    world.send_paced(0, 5, MS);
    assert_eq!(world.state(0), Some(FlowState::Active));
    assert_eq!(world.state(1), Some(FlowState::Pending));
    world.send_paced(1, 5, MS);
    assert_eq!(world.state(1), Some(FlowState::Active));
    world.sessions.close_all(CloseCode::LeaseExpired, world.now);
    let before = world.forwarded;
    world.send_paced(0, 5, MS);
    world.send_paced(1, 5, MS);
    assert_eq!(world.forwarded, before);
    let closed = world.sessions.take_closed().unwrap();
    assert_eq!(closed.totals.map(|totals| totals.packets), [3, 3]);
    world.check(true);
}

#[test]
fn a_clock_that_goes_backwards_changes_nothing() {
    let mut world = draining();
    let parked = world.hand_over.parked_frames();
    let deadlines = (
        world.hand_over.next_deadline(),
        world.sessions.next_deadline(),
    );
    let pin = world.reader.pin();
    let past = Moment(1);
    world
        .hand_over
        .expire(&pin, past, |_| panic!("nothing is due"));
    drop(pin);
    world.sessions.advance(past);
    world.sessions.event(
        FlowEvent::DrainBound {
            flow: FlowId {
                index: 9,
                generation: 9,
            },
            toll: Toll::default(),
        },
        past,
    );
    assert_eq!(world.hand_over.parked_frames(), parked);
    assert_eq!(
        (
            world.hand_over.next_deadline(),
            world.sessions.next_deadline()
        ),
        deadlines
    );
    let now = std::mem::replace(&mut world.now, past);
    world.send(0);
    assert_eq!(world.hand_over.parked_frames(), parked + 1);
    assert_eq!(world.hand_over.next_deadline(), deadlines.0);
    world.now = now;
    world.check(true);
}

/// A world whose original direction goes around the guest.
fn active(mode: HandOverMode) -> World {
    let mut world = world();
    world.request.mode = mode;
    world.offload();
    world.send_paced(0, 20, 100 * US);
    assert_eq!(world.state(0), Some(FlowState::Active));
    world
}

const MODES: [HandOverMode; 2] = [HandOverMode::Ordered, HandOverMode::Prompt];

#[test]
fn a_reproved_flow_goes_through_the_guest_until_that_has_forwarded_it_again() {
    for mode in MODES {
        let mut world = active(mode);
        let before = world.sessions.get("ct-1").unwrap();
        let forwarded = world.forwarded;
        assert_eq!(world.reprove(), 1);
        assert_eq!(world.state(0), Some(FlowState::Pending));
        world.send(0);
        assert_eq!(world.forwarded, forwarded, "it punts at once");
        world.run(MS);
        world.send_paced(0, 20, 100 * US);
        assert_eq!(world.state(0), Some(FlowState::Active), "{mode:?}");
        assert!(world.forwarded > forwarded + 5);
        let after = world.sessions.get("ct-1").unwrap();
        assert_eq!(after.session, before.session, "the same session");
        let packets = after.directions[0].unwrap().totals.packets;
        assert_eq!(packets, world.forwarded, "its counters go on");
        assert!(after.age > before.age);
        assert_eq!(world.sessions.stats().hand_overs, 2);
        assert!(world.sessions.take_closed().is_none());
        world.check(mode == HandOverMode::Ordered);
    }
}

#[test]
fn what_the_guest_does_otherwise_after_a_reprove_is_not_offloaded_again() {
    for mode in MODES {
        for act in [Act::Drop, Act::OtherRewrite, Act::OtherRoute] {
            let mut world = active(mode);
            let forwarded = world.forwarded;
            world.guest.act = Box::new(move |_| act);
            world.reprove();
            world.send_paced(0, 500, 100 * US);
            assert_eq!(world.state(0), Some(FlowState::Pending), "{mode:?} {act:?}");
            assert_eq!(world.forwarded, forwarded);
            world.check(mode == HandOverMode::Ordered);
        }
    }
}

#[test]
fn what_was_in_the_guest_at_a_reprove_proves_nothing() {
    for mode in MODES {
        let mut world = world();
        world.request.mode = mode;
        world.guest.transit = 10 * MS;
        world.offload();
        // Punted before; the guest lets go of them after it.
        for _ in 0..5 {
            world.send(0);
        }
        assert_eq!(world.reprove(), 0, "nothing was around the guest");
        world.run(MS);
        let mut passes = 5;
        world.guest.act = Box::new(move |_| {
            passes -= 1;
            if passes >= 0 { Act::Forward } else { Act::Drop }
        });
        world.send_paced(0, 100, MS);
        assert_eq!(world.forwarded, 0, "{mode:?}");
        assert_ne!(world.state(0), Some(FlowState::Active));
        world.check(true);
    }
}

#[test]
fn a_reprove_while_draining_hands_parked_frames_to_the_guest_before_later_packets() {
    let mut world = draining();
    let parked = u64::from(world.hand_over.parked_frames());
    assert_eq!(world.reprove(), 1);
    assert_eq!(world.state(0), Some(FlowState::Pending));
    world.send(0);
    assert_eq!(world.hand_over.parked_frames(), 0);
    assert_eq!(world.hand_over.stats().released_to_guest, parked);
    world.send_paced(0, 100, MS);
    assert_eq!(world.state(0), Some(FlowState::Active));
    world.check(true);
}

#[test]
fn a_worker_that_meets_a_reproved_drain_before_it_is_told_gives_the_frames_back_too() {
    for by_guest in [false, true] {
        let mut world = draining();
        world.reprove();
        // As if the number were not seen yet.
        world.revisit = world.signals.revisit.load(Ordering::Relaxed);
        if by_guest {
            world.run(2 * MS);
        } else {
            world.send(0);
        }
        assert_eq!(world.hand_over.parked_frames(), 0, "{by_guest}");
        assert_eq!(world.state(0), Some(FlowState::Pending));
        world.send_paced(0, 100, MS);
        assert_eq!(world.state(0), Some(FlowState::Active));
        world.check(true);
    }
}

#[test]
fn macs_that_were_learned_are_learned_anew_and_those_given_stay() {
    let other = MacAddr([2, 0, 0, 0, 0, 0xe]);
    for given in [None, Some(MAC_DST)] {
        let mut world = world();
        world.request.original.as_mut().unwrap().dst_mac = given;
        world.offload();
        world.send_paced(0, 20, 100 * US);
        let macs = |world: &World| {
            let view = world.sessions.get("ct-1").unwrap();
            view.directions[0].unwrap().macs
        };
        assert_eq!(macs(&world), (MAC_DST, MAC_SRC));
        world.reprove();
        let unknown = MacAddr::default();
        assert_eq!(macs(&world), (given.unwrap_or_default(), unknown));
        world.next_hop = other;
        world.send_paced(0, 50, 100 * US);
        let (state, known) = match given {
            None => (FlowState::Active, (other, MAC_SRC)),
            Some(given) => (FlowState::Pending, (given, unknown)),
        };
        assert_eq!(world.state(0), Some(state));
        assert_eq!(macs(&world), known);
        world.check(true);
    }
}

#[test]
fn a_flow_can_be_reproved_as_often_as_one_likes() {
    let mut world = active(HandOverMode::Ordered);
    for round in 0..200 {
        assert_eq!(world.reprove(), 1, "{round}");
        world.send_paced(0, 6, 400 * US);
        assert_eq!(world.state(0), Some(FlowState::Active), "{round}");
    }
    world.check(true);
}

/// How many packets of a direction arrived after later ones.
fn overtaken(world: &World, direction: usize) -> u32 {
    let mut latest = 0;
    let behind = world.arrived[direction].iter().filter(|&&number| {
        let is_behind = number < latest;
        latest = latest.max(number);
        is_behind
    });
    behind.count() as u32
}

#[test]
fn a_prompt_hand_over_tells_how_many_packets_it_put_after_later_ones() {
    for transit in [MS / 2, 5 * MS] {
        let mut world = world();
        world.request.mode = HandOverMode::Prompt;
        world.guest.transit = transit;
        world.sessions.listen(true);
        world.offload();
        world.send_paced(0, 20, MS);
        let told = world.sessions.take_handed_over().unwrap();
        world.run(10 * MS);
        assert_eq!(told.toll.overtaken, overtaken(&world, 0), "{transit:?}");
        assert_eq!(told.toll.overtaken > 0, transit > MS);
        let tally = world.sessions.get("ct-1").unwrap().tally;
        assert_eq!((tally.hand_overs, tally.toll), (1, told.toll));
        world.check(false);
    }
}

#[test]
fn a_session_remembers_what_its_hand_overs_came_to_however_it_is_kept() {
    let mut world = world();
    world.guest.transit = 50 * MS;
    world.offload();
    world.send_paced(0, 120, MS);
    let failed = world.sessions.get("ct-1").unwrap();
    assert!(failed.drain_bounds > 0 && failed.tally.toll.returned > 0);
    assert_eq!(failed.tally.hand_overs, 0);
    world.guest.transit = 300 * US;
    world.send_paced(0, 2000, MS);
    assert_eq!(world.state(0), Some(FlowState::Active));
    let first = world.sessions.get("ct-1").unwrap().tally;
    for times in 1..5 {
        let tally = world.sessions.get("ct-1").unwrap().tally;
        assert_eq!(tally.hand_overs, times);
        assert_eq!(tally.toll, first.toll, "nothing more was returned");
        world.reprove();
        world.send_paced(0, 10, MS);
    }
    world.check(true);
}
