//! What is asked over the port, and what comes back, with `shunt up` at the other end.

use std::time::Duration;

use shunt::agent::channel::{ChannelError, FromHost};
use shunt::api::events::Event;
use shunt::api::offload::OffloadStatus;
use shunt::api::{ENTRIES_MAX, SyncStatus};

use super::support::shunt::Shunt;
use super::support::{Dir, eventually};
use super::{CONFIG, SOON, channel, connected, keys, session, sessions, told};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_offloaded_withdrawn_and_synced_and_events_arrive() {
    let dir = Dir::new();
    let up = Shunt::up(&dir, CONFIG);
    let (channel, mut from) = channel(&dir, "port").await;
    connected(&mut from).await;
    // What was before nobody knows.
    told(&mut from, |what| *what == FromHost::EventsLost).await;

    let element = channel.element().await.unwrap();
    assert_eq!(element.name, "router1");
    let vnics: Vec<_> = element
        .vnics
        .iter()
        .map(|vnic| vnic.name.as_str())
        .collect();
    assert_eq!(vnics, ["lan", "wan"]);
    assert_eq!(element.vnics[1].mac.to_string(), "52:54:00:00:00:02");
    assert_eq!(element.policy.minimum_rate, 0);
    assert_eq!(element.policy.requests_per_second, Some(1_000_000));

    let before = channel.offload(sessions(1..3)).await;
    assert_eq!(before, Err(ChannelError::StaleEpoch), "no epoch is open");
    let epoch = channel.open_epoch().await.unwrap();
    assert_eq!(channel.report().epoch, Some(epoch.epoch));
    let results = channel.offload(sessions(1..4)).await.unwrap();
    let new = results
        .iter()
        .all(|one| one.result == OffloadStatus::Offloaded);
    assert!(new, "{results:?}");
    let mut again = sessions(3..5);
    again[1].original.translation.source_address = Some("203.0.113.1".parse().unwrap());
    let results = channel.offload(again).await.unwrap();
    assert_eq!(results[0].result, OffloadStatus::Unchanged);
    assert_eq!(results[1].result, OffloadStatus::AccessDenied);

    let taken = vec![session(2).key, session(9).key];
    assert_eq!(channel.withdraw(taken).await, Ok(1));
    let closed = |what: &FromHost| match what {
        FromHost::Event(Event::SessionClosed(closed)) => closed
            .session
            .iter()
            .any(|one| one.key == session(2).key && one.close_code == "withdrawn"),
        _ => false,
    };
    told(&mut from, closed).await;

    let results = channel.sync(&sessions([1, 5])).await.unwrap();
    let statuses: Vec<_> = results.iter().map(|one| one.result).collect();
    let offloaded = SyncStatus::Offload(OffloadStatus::Offloaded);
    assert_eq!(statuses, [SyncStatus::Kept, offloaded]);
    eventually(SOON, "what was not named is gone", || keys(&up) == [1, 5]);

    // More than a call may have.
    let many = u16::try_from(ENTRIES_MAX).unwrap() + 100;
    let results = channel.offload(sessions(1..many)).await.unwrap();
    assert_eq!(results.len(), usize::from(many) - 1);
    let results = channel.sync(&sessions(50..many + 1_200)).await.unwrap();
    let kept = results
        .iter()
        .filter(|one| one.result == SyncStatus::Kept)
        .count();
    assert_eq!(
        (kept, results.len()),
        (usize::from(many) - 50, usize::from(many) + 1_150)
    );
    assert!(results.iter().all(|one| one.error.is_none()));
    let expected: Vec<u16> = (50..many + 1_200).collect();
    eventually(SOON, "the sync holds", || keys(&up) == expected);
    assert_eq!(channel.withdraw_all().await, Ok(expected.len() as u64));
    eventually(SOON, "all are gone", || keys(&up).is_empty());
    let report = channel.report();
    assert!(
        report.connected && report.trouble.is_none() && report.unanswered == 0,
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_host_the_epoch_is_stale_and_a_sync_brings_all_back() {
    let dir = Dir::new();
    let mut up = Shunt::up(&dir, CONFIG);
    let (channel, mut from) = channel(&dir, "port").await;
    connected(&mut from).await;
    channel.open_epoch().await.unwrap();
    channel.offload(sessions(1..10)).await.unwrap();

    up.restart();
    told(&mut from, |what| *what == FromHost::Disconnected).await;
    connected(&mut from).await;
    told(&mut from, |what| *what == FromHost::EventsLost).await;
    let stale = channel.offload(sessions(1..2)).await;
    assert_eq!(stale, Err(ChannelError::StaleEpoch));
    assert_eq!(channel.report().epoch, None);
    channel.open_epoch().await.unwrap();
    channel.sync(&sessions(1..10)).await.unwrap();
    assert_eq!(keys(&up), (1..10).collect::<Vec<_>>());

    // While the host is away calls end at once.
    up.kill9();
    told(&mut from, |what| *what == FromHost::Disconnected).await;
    let away = channel.offload(sessions(1..2)).await;
    assert_eq!(away, Err(ChannelError::NotConnected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_falls_silent_loses_its_sessions_with_the_lease_and_comes_back() {
    let dir = Dir::new();
    let lease = "[lease]\nsocket = \"{dir}/presence.sock\"\ntimeout-ms = 1500\n";
    let up = Shunt::up(&dir, &format!("{lease}{CONFIG}"));
    let (channel, mut from) = channel(&dir, "port").await;
    connected(&mut from).await;
    let epoch = channel.open_epoch().await.unwrap();
    assert!(epoch.lease.is_some_and(|lease| lease <= 2), "{epoch:?}");
    channel.offload(sessions(1..4)).await.unwrap();
    assert_eq!(keys(&up), [1, 2, 3]);

    channel.fall_silent();
    told(&mut from, |what| *what == FromHost::Disconnected).await;
    assert_eq!(channel.open_epoch().await, Err(ChannelError::NotConnected));
    eventually(SOON, "the lease has run out", || keys(&up).is_empty());
    connected(&mut from).await;
    let late = channel.offload(sessions(1..2)).await;
    assert_eq!(late, Err(ChannelError::StaleEpoch));
    channel.open_epoch().await.unwrap();
    channel.sync(&sessions(1..3)).await.unwrap();
    assert_eq!(keys(&up), [1, 2]);
    assert_eq!(channel.report().silences, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_agents_at_one_port_one_goes_on_and_the_other_is_told() {
    let dir = Dir::new();
    let _up = Shunt::up(&dir, CONFIG);
    let (first, mut from) = channel(&dir, "port").await;
    connected(&mut from).await;
    first.open_epoch().await.unwrap();
    let (second, _from) = channel(&dir, "port").await;
    eventually(SOON, "the second is told", || {
        let trouble = second.report().trouble;
        trouble.is_some_and(|trouble| trouble.contains("is another process at it"))
    });
    assert_eq!(second.open_epoch().await, Err(ChannelError::NotConnected));
    first.offload(sessions(1..2)).await.unwrap();
    assert_eq!(first.report().connections, 1);
    // The first one gone, the second has its turn.
    drop((first, from));
    let until = tokio::time::Instant::now() + SOON;
    while second.open_epoch().await.is_err() {
        assert!(tokio::time::Instant::now() < until, "it has no turn");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
