//! What goes wrong on the line and behind it.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use shunt::agent::channel::{Channel, ChannelError, FromHost, Options, PortChoice, Reprove};
use shunt::api::reprove::ReproveStatus;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::host::{Answer, Host};
use super::pki::{HOST, Pki};
use super::support::process::Process;
use super::support::shunt::{Shunt, binary};
use super::support::{Dir, eventually};
use super::{CONFIG, SOON, channel, connected, session, sessions, told};

/// `shunt relay` in front of a backend.
fn relay(dir: &Dir) -> Process {
    let text = format!(
        "[relay]\nhost = '{HOST}'\ncertificate = '{{dir}}/relay.pem'\nkey = '{{dir}}/relay.key'\n\
         presence = '{{dir}}/presence'\n[upstream]\nurl = 'unix:{{dir}}/control.sock'\n\
         [allow]\npaths = ['/restconf']\n[[port]]\nname = 'router1'\nsocket = '{{dir}}/line'\nuid = 0\n"
    );
    let text = text.replace("{dir}", dir.path().to_str().unwrap());
    let config = dir.write("relay.toml", &text);
    let mut command = Command::new(binary());
    command
        .args(["relay", "--config"])
        .arg(config)
        .stdin(Stdio::null());
    Process::start(command, &dir.file("relay.log"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_and_comes_back_changes_nothing_about_the_epoch() {
    let dir = Dir::new();
    Pki::new().write(dir.path());
    let up = Shunt::up(&dir, CONFIG);
    let mut first = relay(&dir);
    let (channel, mut from) = channel(&dir, "line").await;
    connected(&mut from).await;
    channel.open_epoch().await.unwrap();
    channel.offload(sessions(1..4)).await.unwrap();

    first.kill9();
    told(&mut from, |what| *what == FromHost::Disconnected).await;
    let _second = relay(&dir);
    connected(&mut from).await;
    let results = channel.sync(&sessions(1..5)).await.unwrap();
    let names: Vec<_> = results.iter().map(|one| one.result.name()).collect();
    assert_eq!(names, ["kept", "kept", "kept", "offloaded"]);
    assert_eq!(super::keys(&up), [1, 2, 3, 4]);
    assert_eq!(channel.report().connections, 2);
}

/// Carries bytes between the agent and a port, and throws `dirt` in both ways when told to.
async fn middle(near: UnixListener, far: std::path::PathBuf, throw: Arc<Notify>) {
    let mut seed = 1u32;
    while let Ok((mut agent, _)) = near.accept().await {
        let Ok(mut port) = UnixStream::connect(&far).await else {
            continue;
        };
        let (mut up, mut down) = (vec![0; 4_096], vec![0; 4_096]);
        loop {
            tokio::select! {
                read = agent.read(&mut up) => match read {
                    Ok(read) if read > 0 => port.write_all(&up[..read]).await.unwrap(),
                    _ => break,
                },
                read = port.read(&mut down) => match read {
                    Ok(read) if read > 0 => agent.write_all(&down[..read]).await.unwrap(),
                    _ => break,
                },
                () = throw.notified() => {
                    let dirt: Vec<u8> = (0..50_000)
                        .map(|_| {
                            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            (seed >> 24) as u8
                        })
                        .collect();
                    agent.write_all(&dirt).await.unwrap();
                    port.write_all(&dirt).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn garbage_on_the_line_costs_at_most_a_connection() {
    let dir = Dir::new();
    let up = Shunt::up(&dir, CONFIG);
    let near = UnixListener::bind(dir.file("near")).unwrap();
    let throw = Arc::new(Notify::new());
    let carried = tokio::spawn(middle(near, dir.file("port"), Arc::clone(&throw)));
    let (channel, mut from) = channel(&dir, "near").await;
    connected(&mut from).await;
    channel.open_epoch().await.unwrap();
    for round in 1..6 {
        throw.notify_one();
        let until = tokio::time::Instant::now() + SOON;
        // What comes while a connection is lost is not answered, and asked again.
        while let Err(error) = channel.offload(sessions(1..round + 1)).await {
            assert_ne!(error, ChannelError::StaleEpoch);
            assert!(tokio::time::Instant::now() < until, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(super::keys(&up), [1, 2, 3, 4, 5]);
    carried.abort();
}

/// A channel to a host that is played.
async fn to(host: &Host) -> (Channel, tokio::sync::mpsc::Receiver<FromHost>) {
    let options = Options {
        port: PortChoice::At(host.path()),
        call_timeout: Duration::from_millis(500),
        withdraw_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    Channel::start(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_an_answer_ends_in_time_and_others_go_on() {
    let dir = Dir::new();
    let host = Host::start(&dir, |path| match path {
        "open-epoch" => Answer::json(r#"{"shunt-offload:output":{"epoch":"7","lease":1}}"#),
        "withdraw" => Answer::Never,
        "reprove" => Answer::json(
            r#"{"shunt-offload:output":{"reproved":"1","result":[
                {"key":"ct-1","result":"pending"},{"key":"ct-2","result":"absent"}]}}"#,
        ),
        // Fewer results than sessions.
        "offload" => Answer::json(r#"{"shunt-offload:output":{"result":[]}}"#),
        "streams" => Answer::Stream(&[]),
        _ => Answer::status(503),
    })
    .await;
    let (channel, mut from) = to(&host).await;
    connected(&mut from).await;
    let epoch = channel.open_epoch().await.unwrap();
    assert_eq!((epoch.epoch, epoch.lease), (7, Some(1)));
    let unanswered = channel.withdraw(vec![session(1).key]).await.unwrap_err();
    assert!(unanswered.is_perhaps_done(), "{unanswered}");
    assert_eq!(channel.report().unanswered, 1);
    let keys = vec![session(1).key, session(2).key];
    let reproved = channel.reprove(Reprove::Keys(keys)).await.unwrap();
    assert_eq!(reproved.reproved, 1);
    assert_eq!(reproved.result[1].result, ReproveStatus::Absent);
    assert!(
        host.asked()
            .iter()
            .any(|body| body.contains(r#""epoch":"7","key":["ct-1","ct-2"]"#))
    );
    let few = channel.offload(sessions(1..2)).await;
    assert_eq!(few, Err(ChannelError::Unreadable));
    let away = channel.element().await.unwrap_err();
    assert!(
        matches!(away, ChannelError::NotNow(_)) && !away.is_perhaps_done(),
        "{away:?}"
    );
    assert_eq!(channel.report().connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_fenced_connects_anew_and_keeps_the_epoch() {
    let dir = Dir::new();
    let host = Host::start(&dir, |path| match path {
        "open-epoch" => Answer::json(r#"{"shunt-offload:output":{"epoch":"7"}}"#),
        "streams" => Answer::Stream(&[]),
        _ => Answer::refusal(403, "fenced"),
    })
    .await;
    let (channel, mut from) = to(&host).await;
    connected(&mut from).await;
    channel.open_epoch().await.unwrap();
    let fenced = channel.withdraw(vec![session(1).key]).await;
    assert_eq!(fenced, Err(ChannelError::Fenced));
    told(&mut from, |what| *what == FromHost::Disconnected).await;
    connected(&mut from).await;
    assert_eq!(channel.report().epoch, Some(7));
}

const CLOSED: &str = r#"data: {"ietf-restconf:notification":{"eventTime":"2026-11-23T10:00:00Z","shunt-offload:table-pressure":{"element":"r1","level":"high","sessions":9,"sessions-max":10}}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ends_in_order_goes_on_and_one_that_breaks_is_told() {
    let dir = Dir::new();
    // Each stream has two notifications, the second in two pieces; some break off behind them.
    let host = Host::start(&dir, |path| match path {
        "streams" => Answer::Stream(&[CLOSED, "\n\n: x\n\ndata: {}\n\n", CLOSED, "\n\n"]),
        _ => Answer::status(404),
    })
    .await;
    host.break_streams(true);
    let (channel, mut from) = to(&host).await;
    connected(&mut from).await;
    let is_event = |what: &FromHost| matches!(what, FromHost::Event(_));
    told(&mut from, is_event).await;
    told(&mut from, is_event).await;
    told(&mut from, |what| *what == FromHost::EventsLost).await;
    host.break_streams(false);
    let lost = channel.report().events_lost;
    // One may still be under way that breaks.
    for _ in 0..6 {
        told(&mut from, is_event).await;
    }
    assert!(channel.report().events_lost <= lost + 1);
    eventually(SOON, "streams are opened again and again", || {
        host.streams() > 4
    });
    assert_eq!(channel.report().connections, 1);
}
