//! How connections come to be offloaded, and what becomes of them.

use super::fake::{self, LEASE, World, packets};
use super::*;
use crate::agent::connection::Status;
use crate::agent::core::testing::{tcp, udp};
use crate::agent::core::{Outcome, settings::Mark};
use crate::api::events::Level;

fn busy(world: &Shared, count: u32) {
    for number in 1..=count {
        world.borrow_mut().add(tcp(number), [5, 5]);
    }
}

fn short(world: &Shared, number: u32, timeout: u64, rate: u64) {
    let mut connection = udp(number);
    connection.timeout = Some(seconds(timeout));
    world.borrow_mut().add(connection, [rate, rate]);
}

const fn of(number: u32) -> u32 {
    1000 + number
}

#[tokio::test(start_paused = true)]
async fn what_was_there_before_the_agent_is_offloaded_and_the_guest_sees_no_more_of_it() {
    let world = World::new();
    busy(&world, 3);
    play(&world, Settings::default(), async |stage| {
        stage
            .until(seconds(4), "all are active", |world| world.active() == 3)
            .await;
        let (guest, before) = packets(&world, of(1));
        sleep(seconds(10)).await;
        let (still, fast) = packets(&world, of(1));
        assert_eq!(still, guest);
        assert!(fast >= before + 990);
        assert_eq!(world.borrow().called("epoch").len(), 1);
        let shown = stage.show().await;
        assert_eq!(shown.held.get("active"), Some(&3));
        let line = shown
            .session
            .iter()
            .find(|line| line.original.starts_with("10.0.0.1:"));
        let line = line.unwrap();
        assert_eq!(
            line.guest.original_packets + line.guest.reply_packets,
            guest
        );
        assert!(line.fast.original_packets > 0);
        assert_eq!(line.original_path, "lan > wan");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_is_offloaded_within_seconds_and_its_neighbours_are_kept() {
    story(Settings::default(), async |stage| {
        sleep(seconds(20)).await;
        stage.world.borrow_mut().add(tcp(1), [5, 5]);
        stage
            .until(seconds(4), "it is active", |world| world.active() == 1)
            .await;
        sleep(seconds(200)).await;
        let world = stage.world.borrow();
        // Before it was asked for, and after each proof.
        let proofs = 1 + world.called("reprove").len() as u32;
        assert_eq!(world.conns[&of(1)].liberal, 1 + proofs);
        assert!(world.neighbours.len() >= 10, "{}", world.neighbours.len());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn slow_young_and_marked_connections_are_not_asked_for() {
    let mut settings = Settings::default();
    settings.switches.opt_out = Some(Mark { value: 7, mask: 15 });
    story(settings, async |stage| {
        let world = &stage.world;
        sleep(seconds(2)).await;
        short(world, 1, 120, 0);
        world.borrow_mut().add(tcp(2), [0, 1]);
        let mut marked = tcp(3);
        marked.mark = 0x17;
        world.borrow_mut().add(marked, [5, 5]);
        let mut helped = tcp(4);
        helped.status = Status(helped.status.0 | Status::HELPER.0);
        world.borrow_mut().add(helped, [5, 5]);
        sleep(seconds(60)).await;
        assert_eq!(world.borrow().called("offload"), Vec::<&fake::Call>::new());
        let shown = stage.show().await;
        assert_eq!(shown.left_to_guest.get("opted-out"), Some(&1));
        assert_eq!(shown.left_to_guest.get("helper"), Some(&1));
        assert_eq!(shown.watched, 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_short_connections_a_minute_ask_for_none_and_cost_little() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        sleep(seconds(2)).await;
        for number in 0..10_000_u32 {
            world.borrow_mut().add(tcp(number), [3, 3]);
            if number >= 5 {
                world.borrow_mut().destroy(of(number - 5));
            }
            sleep(Duration::from_millis(6)).await;
        }
        let world = world.borrow();
        assert_eq!(world.called("offload"), Vec::<&fake::Call>::new());
        assert!(world.scans <= 70, "{}", world.scans);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn news_above_the_budget_are_left_and_connections_still_found() {
    let settings = Settings {
        news_rate_max: 50,
        ..Settings::default()
    };
    story(settings, async |stage| {
        sleep(seconds(2)).await;
        for number in 100..200 {
            stage.world.borrow_mut().add(tcp(number), [0, 0]);
        }
        sleep(seconds(1)).await;
        assert!(!stage.world.borrow().follows);
        stage.world.borrow_mut().add(tcp(1), [5, 5]);
        stage.until_active(1).await;
        stage
            .until(seconds(15), "news are followed again", |world| {
                world.follows
            })
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_transfer_outlives_its_timeouts_and_an_idle_one_ends_when_it_should() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        for (number, timeout) in [(1, 8), (2, 30), (3, 120), (4, 600)] {
            short(world, number, timeout, 5);
        }
        stage.until_active(4).await;
        // The world itself fails when one expires while it moves.
        sleep(seconds(700)).await;
        assert_eq!(world.borrow().active(), 4);
        for number in 1..=4 {
            if let Some(conn) = world.borrow_mut().conns.get_mut(&of(number)) {
                conn.rate = [0, 0];
            }
        }
        let start = tokio::time::Instant::now();
        for (number, timeout) in [(1, 8), (2, 30), (3, 120), (4, 600)] {
            let is_gone = |world: &World| !world.conns.contains_key(&of(number));
            stage.until(seconds(timeout + 5), "it ends", is_gone).await;
            let after = start.elapsed();
            assert!(
                after + seconds(3) >= seconds(timeout),
                "{number} after {after:?}"
            );
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_packet_that_came_to_the_guest_as_its_session_ended_keeps_the_entry_alive() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        short(world, 1, 30, 5);
        stage.until_active(1).await;
        if let Some(conn) = world.borrow_mut().conns.get_mut(&of(1)) {
            conn.rate = [0, 0];
        }
        sleep(seconds(15)).await;
        let key = world.borrow().live.keys().next().cloned().unwrap();
        world.borrow_mut().close(&key, "hard-timeout");
        if let Some(conn) = world.borrow_mut().conns.get_mut(&of(1)) {
            conn.expires = tokio::time::Instant::now() + seconds(30);
            conn.connection.timeout = Some(seconds(30));
        }
        sleep(seconds(25)).await;
        assert!(world.borrow().conns.contains_key(&of(1)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn between_hand_overs_refreshes_are_rare_where_the_timeout_is_long() {
    let settings = Settings {
        reprove_every: Duration::ZERO,
        ..Settings::default()
    };
    story(settings, async |stage| {
        busy(&stage.world, 1);
        sleep(seconds(7200)).await;
        // One for the hand-over of each direction.
        assert!(stage.world.borrow().refreshes.len() <= 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_agent_restarted_asks_for_the_same_keys_in_a_new_epoch() {
    let world = World::new();
    busy(&world, 5);
    play(&world, Settings::default(), async |stage| {
        stage.until_active(5).await
    })
    .await;
    let before: Vec<_> = world.borrow().live.keys().cloned().collect();
    play(&world, Settings::default(), async |stage| {
        stage
            .until(seconds(1), "a new epoch", |world| {
                world.called("epoch").len() == 2
            })
            .await;
        stage.until_active(5).await;
    })
    .await;
    let after: Vec<_> = world.borrow().live.keys().cloned().collect();
    assert_eq!(before, after);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_was_lost_and_is_back_ends_nothing_and_is_synced() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 5);
        stage.until_active(5).await;
        world.borrow_mut().set_line(false);
        sleep(seconds(3)).await;
        world.borrow_mut().destroy(of(1));
        sleep(seconds(3)).await;
        world.borrow_mut().set_line(true);
        sleep(seconds(3)).await;
        let world = world.borrow();
        assert_eq!(world.called("epoch").len(), 1);
        let syncs = world.called("sync");
        assert_eq!(syncs.last().map(|call| call.keys.len()), Some(4));
        assert_eq!(world.live.len(), 4);
        assert_eq!(world.called("silent").len(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_restarted_is_given_all_sessions_anew() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 300);
        stage.until_active(300).await;
        world.borrow_mut().restart_backend();
        world
            .borrow()
            .tell_agent(super::super::FromHost::EventsLost);
        stage.until_active(300).await;
        assert_eq!(world.borrow().called("epoch").len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_lost_is_asked_for_again() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        world.borrow_mut().faults.lost.insert("offload");
        busy(world, 2);
        stage
            .until(seconds(10), "it was tried", |world| {
                world.called("offload").len() == 1
            })
            .await;
        world.borrow_mut().destroy(of(2));
        sleep(seconds(1)).await;
        world.borrow_mut().faults.lost.clear();
        stage.until_active(1).await;
        sleep(seconds(5)).await;
        assert_eq!(world.borrow().live.len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_asks_again_later_and_later() {
    story(Settings::default(), async |stage| {
        stage.world.borrow_mut().faults.refuse = Some(Outcome::Refused);
        busy(&stage.world, 3);
        sleep(seconds(600)).await;
        let asked: usize = (stage.world.borrow().called("offload").iter())
            .map(|call| call.keys.len())
            .sum();
        assert!((12..=18).contains(&asked), "{asked}");
        assert_eq!(stage.show().await.left_to_guest.get("refused"), Some(&3));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_table_stops_all_asking_for_a_while_and_room_is_used() {
    story(Settings::default(), async |stage| {
        stage.world.borrow_mut().faults.refuse = Some(Outcome::NoRoom);
        for number in 1..=200 {
            stage.world.borrow_mut().add(tcp(number), [5, 5]);
            sleep(Duration::from_millis(100)).await;
        }
        sleep(seconds(40)).await;
        assert!(stage.world.borrow().called("offload").len() <= 8);
        stage.world.borrow_mut().faults.refuse = None;
        let most = seconds(700);
        stage
            .until(most, "all have room", |world| world.active() == 200)
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn under_pressure_only_the_fastest_are_asked_for() {
    story(Settings::default(), async |stage| {
        sleep(seconds(2)).await;
        stage.world.borrow().press(Level::High);
        stage.world.borrow_mut().add(tcp(1), [5, 5]);
        stage.world.borrow_mut().add(tcp(2), [20, 20]);
        sleep(seconds(10)).await;
        assert_eq!(stage.world.borrow().active(), 1);
        stage.world.borrow().press(Level::Normal);
        stage.until_active(2).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_observes_asks_for_nothing_and_shows_what_it_would() {
    let settings = Settings {
        mode: Mode::Observe,
        ..Settings::default()
    };
    story(settings, async |stage| {
        busy(&stage.world, 3);
        sleep(seconds(30)).await;
        assert_eq!(stage.world.borrow().called("offload").len(), 0);
        assert_eq!(stage.show().await.held.get("observed"), Some(&3));
        stage.set_mode(Mode::On).await;
        stage.until_active(3).await;
        stage.set_mode(Mode::Observe).await;
        stage
            .until(seconds(1), "all are taken back", |world| {
                world.live.is_empty()
            })
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_keeps_what_there_is_and_off_takes_it_back() {
    story(Settings::default(), async |stage| {
        busy(&stage.world, 3);
        stage.until_active(3).await;
        stage.set_mode(Mode::Pause).await;
        stage.world.borrow_mut().add(tcp(9), [5, 5]);
        sleep(seconds(30)).await;
        assert_eq!(stage.world.borrow().active(), 3);
        stage.set_mode(Mode::Off).await;
        stage
            .until(seconds(1), "all are taken back", |world| {
                world.live.is_empty()
            })
            .await;
        sleep(seconds(30)).await;
        assert!(stage.world.borrow().live.is_empty());
        stage.set_mode(Mode::On).await;
        stage.until_active(4).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_told_to_end_takes_everything_back_first() {
    let world = World::new();
    busy(&world, 3);
    let (orders, received) = mpsc::channel(4);
    let agent = drive(
        Core::new(Settings::default()),
        fake::parts(&world),
        received,
    );
    let stage = Stage {
        world: world.clone(),
        orders,
    };
    let script = async {
        stage.until_active(3).await;
        stage.orders.send(Order::End).await.unwrap();
        sleep(seconds(5)).await;
        panic!("it does not end");
    };
    tokio::select! {
        ended = agent => ended.unwrap(),
        () = fake::run(world.clone()) => {}
        () = script => {}
    }
    assert!(world.borrow().live.is_empty());
    assert_eq!(world.borrow().called("withdraw").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_what_the_host_says() {
    story(Settings::default(), async |stage| {
        short(&stage.world, 1, 8, 5);
        stage.until_active(1).await;
        sleep(seconds(30)).await;
        let refreshes = stage.world.borrow().refreshes.clone();
        assert!(refreshes.iter().all(|(_, timeout)| *timeout == LEASE * 2));
        assert!(!refreshes.is_empty());
    })
    .await;
}
