//! What is taken back, or proved again, and how soon.

use std::io;

use super::super::Parts;
use super::fake::{self, Call, World};
use super::*;
use crate::agent::connection::{ConntrackEvent, Status};
use crate::agent::core::settings::Revocation;
use crate::agent::core::testing::{LAN, SERVER, WAN, device, tcp};
use crate::agent::network::{Hazard, IfIndex, NetworkChange};

fn busy(world: &Shared, count: u32) {
    for number in 1..=count {
        world.borrow_mut().add(tcp(number), [5, 5]);
    }
}

const fn of(number: u32) -> u32 {
    1000 + number
}

/// Nothing is told of time going by.
fn without_backstop() -> Settings {
    Settings {
        reprove_every: Duration::ZERO,
        ..Settings::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_ruleset_returns_all_sessions_with_one_call_at_once() {
    story(without_backstop(), async |stage| {
        let world = &stage.world;
        busy(world, 1000);
        stage.until_active(1000).await;
        let calls = world.borrow().calls.len();
        if let Some(conn) = world.borrow_mut().conns.get_mut(&of(1)) {
            conn.is_blocked = true;
        }
        world.borrow().tell_network(NetworkChange::Ruleset);
        sleep(Duration::from_millis(20)).await;
        {
            let world = world.borrow();
            let kinds: Vec<_> = world.calls[calls..].iter().map(|call| call.kind).collect();
            assert_eq!(kinds, ["reprove-all"]);
            assert_eq!(world.active(), 0);
        }
        stage.until_active(999).await;
        // What the new rule blocks is never proved again, and given up.
        stage
            .until(seconds(30), "it is given up", |world| {
                world.live.len() == 999
            })
            .await;
    })
    .await;
}

/// Finds a change of the ruleset by a look that takes long, as at large sets, and begins anew if
/// it is given up.
struct Looking(Option<Duration>);

impl NetworkNews for Looking {
    async fn next(&mut self) -> io::Result<NetworkChange> {
        match self.0 {
            Some(time) => sleep(time).await,
            None => std::future::pending().await,
        }
        self.0 = None;
        Ok(NetworkChange::Ruleset)
    }
}

#[tokio::test(start_paused = true)]
async fn what_takes_a_long_look_is_heard_though_other_news_come_all_the_time() {
    let world = World::new();
    let parts = fake::parts(&world);
    let parts = Parts {
        kernel: parts.kernel,
        host: parts.host,
        conntrack: parts.conntrack,
        network: Looking(Some(seconds(5))),
        from_host: parts.from_host,
    };
    play_with(&world, without_backstop(), parts, async |stage| {
        let world = &stage.world;
        busy(world, 3);
        for number in 10..600 {
            world.borrow_mut().add(tcp(number), [0, 0]);
            world.borrow_mut().destroy(of(number));
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.borrow().called("reprove-all").len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_while_the_call_is_under_way_are_one_more_call() {
    story(without_backstop(), async |stage| {
        let world = &stage.world;
        busy(world, 3);
        stage.until_active(3).await;
        world.borrow_mut().faults.delay = seconds(1);
        for change in [
            NetworkChange::Ruleset,
            NetworkChange::Routes,
            NetworkChange::Xfrm,
            NetworkChange::Ruleset,
        ] {
            world.borrow().tell_network(change);
            sleep(Duration::from_millis(50)).await;
        }
        sleep(seconds(4)).await;
        assert_eq!(world.borrow().called("reprove-all").len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn staged_sessions_return_one_after_the_other() {
    let settings = Settings {
        revocation: Revocation::Staged,
        staged_rate: 50,
        ..without_backstop()
    };
    story(settings, async |stage| {
        let world = &stage.world;
        busy(world, 200);
        stage.until_active(200).await;
        world.borrow().tell_network(NetworkChange::Ruleset);
        sleep(seconds(10)).await;
        let world = world.borrow();
        assert_eq!(world.called("reprove-all").len(), 0);
        let calls = world.called("reprove");
        let all: usize = calls.iter().map(|call| call.keys.len()).sum();
        assert_eq!(all, 200);
        assert!(calls.iter().all(|call| call.keys.len() <= 5));
        let took = calls[calls.len() - 1].at - calls[0].at;
        assert!((seconds(3)..=seconds(5)).contains(&took), "{took:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_session_is_proved_again_in_turn() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 100);
        stage.until_active(100).await;
        let start = world.borrow().start.elapsed();
        sleep(seconds(125)).await;
        let world = world.borrow();
        let calls = world.called("reprove");
        let mut turns: std::collections::BTreeMap<&str, Vec<Duration>> = Default::default();
        for Call { at, keys, .. } in calls {
            assert!(keys.len() < 30, "{} at once", keys.len());
            for key in keys {
                turns.entry(key).or_default().push(*at);
            }
        }
        assert_eq!(turns.len(), 100);
        for times in turns.values() {
            assert!(times[0] <= start + seconds(61));
            for pair in times.windows(2) {
                let span = pair[1] - pair[0];
                assert!((seconds(29)..=seconds(62)).contains(&span), "{span:?}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_conntrack_destroys_is_withdrawn_at_once_also_all_of_it() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 3000);
        stage
            .until(seconds(60), "all are live", |world| {
                world.live.len() == 3000
            })
            .await;
        world.borrow_mut().destroy(of(1));
        sleep(Duration::from_millis(50)).await;
        assert_eq!(world.borrow().live.len(), 2999);
        world.borrow_mut().faults.delay = Duration::from_millis(5);
        for number in 2..=3000 {
            world.borrow_mut().destroy(of(number));
        }
        stage
            .until(seconds(1), "none is left", |world| world.live.is_empty())
            .await;
        assert!(world.borrow().called("withdraw").len() < 10);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn news_that_were_lost_are_made_up_for_by_a_look_at_the_table() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 20);
        stage.until_active(20).await;
        world.borrow_mut().faults.deaf = true;
        for number in 1..=10 {
            world.borrow_mut().destroy(of(number));
        }
        world.borrow_mut().faults.deaf = false;
        world.borrow().tell_conntrack(ConntrackEvent::Lost);
        stage
            .until(Duration::from_millis(500), "they are withdrawn", |world| {
                world.live.len() == 10
            })
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_becomes_ineligible_is_withdrawn() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 3);
        stage.until_active(3).await;
        world.borrow_mut().spoil(of(1), |connection| {
            connection.status.0 |= Status::HELPER.0;
        });
        sleep(Duration::from_millis(50)).await;
        assert_eq!(world.borrow().live.len(), 2);
        // Without news: the next look at the table.
        world.borrow_mut().follows = false;
        world.borrow_mut().spoil(of(2), |connection| {
            connection.status.0 |= Status::SEQ_ADJUST.0;
        });
        sleep(seconds(9)).await;
        assert_eq!(world.borrow().live.len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_hazard_of_the_ruleset_takes_everything_back() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 5);
        stage.until_active(5).await;
        world.borrow_mut().hazards = vec![Hazard {
            what: "queue".to_owned(),
            chain: "inet filter forward".to_owned(),
        }];
        world.borrow().tell_network(NetworkChange::Ruleset);
        sleep(Duration::from_millis(50)).await;
        assert!(world.borrow().live.is_empty());
        sleep(seconds(10)).await;
        assert!(world.borrow().live.is_empty());
        let shown = stage.show().await;
        assert_eq!(shown.hazards, ["queue (inet filter forward)"]);
        assert_eq!(shown.left_to_guest.get("ruleset"), Some(&5));
        world.borrow_mut().hazards.clear();
        world.borrow().tell_network(NetworkChange::Ruleset);
        stage.until_active(5).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_goes_down_takes_its_sessions_and_brings_them_back() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 5);
        stage.until_active(5).await;
        let set = |is_up| {
            world.borrow_mut().links.0.get_mut(&WAN).unwrap().is_up = is_up;
            let gone = (!is_up).then_some(WAN);
            world.borrow().tell_network(NetworkChange::Links { gone });
        };
        set(false);
        sleep(Duration::from_millis(50)).await;
        assert!(world.borrow().live.is_empty());
        sleep(seconds(5)).await;
        assert_eq!(stage.show().await.left_to_guest.get("down"), Some(&5));
        set(true);
        stage.until_active(5).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_sessions_do_not_use_only_has_them_proved_again() {
    story(without_backstop(), async |stage| {
        let world = &stage.world;
        busy(world, 5);
        stage.until_active(5).await;
        let other = IfIndex(9);
        world
            .borrow_mut()
            .links
            .0
            .insert(other, device("dmz", "0000:00:09.0", 9));
        world
            .borrow()
            .tell_network(NetworkChange::Links { gone: None });
        sleep(Duration::from_millis(50)).await;
        assert_eq!(world.borrow().live.len(), 5);
        assert_eq!(world.borrow().called("reprove-all").len(), 1);
        assert_eq!(world.borrow().called("withdraw").len(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_failed_has_those_proved_again_that_go_to_it() {
    story(without_backstop(), async |stage| {
        let world = &stage.world;
        busy(world, 5);
        stage.until_active(5).await;
        let tell = |on, address| {
            world
                .borrow()
                .tell_network(NetworkChange::Neighbour { on, address });
        };
        tell(
            LAN,
            std::net::IpAddr::V4(crate::agent::core::testing::client(3)),
        );
        sleep(Duration::from_millis(50)).await;
        assert_eq!(world.borrow().called("reprove")[0].keys.len(), 1);
        tell(WAN, std::net::IpAddr::V4(SERVER));
        // One waits for its proof already, and is asked for it once more: that is no harm.
        sleep(Duration::from_millis(50)).await;
        assert_eq!(world.borrow().called("reprove")[1].keys.len(), 5);
        tell(WAN, "203.0.113.77".parse().unwrap());
        sleep(Duration::from_millis(50)).await;
        assert_eq!(world.borrow().called("reprove").len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_withdrawal_without_an_answer_makes_the_agent_silent_and_then_begin_anew() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 3);
        stage.until_active(3).await;
        world.borrow_mut().faults.mute.insert("withdraw");
        let start = tokio::time::Instant::now();
        world.borrow_mut().destroy(of(1));
        stage
            .until(seconds(7), "it falls silent", |world| {
                world.silent_until.is_some()
            })
            .await;
        assert!(
            start.elapsed() >= Duration::from_millis(4900),
            "{:?}",
            start.elapsed()
        );
        stage
            .until(seconds(13), "the lease is out", |world| {
                world.silent_until.is_none()
            })
            .await;
        world.borrow_mut().faults.mute.clear();
        stage.until_active(2).await;
        assert_eq!(world.borrow().called("epoch").len(), 2);
        assert_eq!(world.borrow().called("silent").len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_proof_that_cannot_be_asked_for_again_makes_the_agent_silent() {
    story(without_backstop(), async |stage| {
        let world = &stage.world;
        busy(world, 3);
        stage.until_active(3).await;
        world.borrow_mut().faults.mute.insert("reprove-all");
        world.borrow().tell_network(NetworkChange::Ruleset);
        stage
            .until(seconds(7), "it falls silent", |world| {
                world.silent_until.is_some()
            })
            .await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_has_no_proof_anew_is_asked_to_give_sessions_back() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 3);
        stage.until_active(3).await;
        world.borrow_mut().faults.missing = ["reprove-all", "reprove"].into();
        world.borrow().tell_network(NetworkChange::Ruleset);
        sleep(Duration::from_millis(50)).await;
        assert_eq!(world.borrow().called("withdraw")[0].keys.len(), 3);
        assert!(world.borrow().live.is_empty());
        stage.until_active(3).await;
        let address = std::net::IpAddr::V4(crate::agent::core::testing::client(3));
        let change = NetworkChange::Neighbour { on: LAN, address };
        world.borrow().tell_network(change);
        sleep(Duration::from_millis(50)).await;
        assert_eq!(world.borrow().called("withdraw")[1].keys.len(), 1);
        stage.until_active(3).await;
        assert_eq!(world.borrow().called("silent").len(), 0);
    })
    .await;
}

/// An interface more, as the host knows it, too.
fn add_dmz(world: &Shared, other: IfIndex) {
    let mut world = world.borrow_mut();
    world
        .links
        .0
        .insert(other, device("dmz", "0000:00:09.0", 9));
    let mut vnic = world.element.vnics[0].clone();
    vnic.name = format!("v-{}", other.0);
    vnic.bus_path = Some("0000:00:09.0".to_owned());
    world.element.vnics.push(vnic);
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_answers_come_in_elsewhere_finds_its_way() {
    let other = IfIndex(9);
    let world = World::new();
    add_dmz(&world, other);
    busy(&world, 1);
    if let Some(conn) = world.borrow_mut().conns.get_mut(&of(1)) {
        conn.way = [(LAN, WAN), (other, LAN)];
    }
    play(&world, Settings::default(), async |stage| {
        stage
            .until(seconds(120), "all goes around", |world| {
                let live = world.live.values().next();
                live.is_some_and(|live| live.fast.iter().all(|packets| *packets > 0))
            })
            .await;
        let shown = stage.show().await;
        assert_eq!(shown.session[0].reply_path, "dmz > lan");
        assert_eq!(shown.statistics.strayed, 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_of_several_equal_routes_is_found_by_trying() {
    let other = IfIndex(9);
    let world = World::new();
    add_dmz(&world, other);
    busy(&world, 1);
    if let Some(conn) = world.borrow_mut().conns.get_mut(&of(1)) {
        conn.way = [(LAN, other), (other, LAN)];
    }
    play(&world, Settings::default(), async |stage| {
        stage
            .until(seconds(240), "all goes around", |world| world.active() == 1)
            .await;
        let shown = stage.show().await;
        assert_eq!(shown.session[0].original_path, "lan > dmz");
        assert!(shown.statistics.unproved >= 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_the_guest_drops_is_given_up_and_tried_seldom() {
    let world = World::new();
    busy(&world, 1);
    if let Some(conn) = world.borrow_mut().conns.get_mut(&of(1)) {
        conn.is_blocked = true;
    }
    play(&world, Settings::default(), async |stage| {
        sleep(seconds(3600)).await;
        let asked = stage.world.borrow().called("offload").len();
        assert!(asked <= 50, "{asked}");
        let shown = stage.show().await;
        assert_eq!(shown.held.get("active"), None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_waits_for_its_proof_without_being_given_up() {
    story(Settings::default(), async |stage| {
        let world = &stage.world;
        busy(world, 1);
        stage.until_active(1).await;
        let set = |rate| world.borrow_mut().conns.get_mut(&of(1)).unwrap().rate = [rate, rate];
        set(0);
        sleep(seconds(300)).await;
        assert_eq!(world.borrow().called("withdraw").len(), 0);
        assert_eq!(world.borrow().active(), 0, "the backstop has returned it");
        set(5);
        stage
            .until(seconds(1), "it is active again", |world| {
                world.active() == 1
            })
            .await;
    })
    .await;
}
