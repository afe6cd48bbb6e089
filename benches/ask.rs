//! How long from a request at the guest's end of the serial port until its session is installed
//! in the backend, and the guest knows it?
//!
//! *Held constant*: relay, controller and backend as processes of their own on this machine, mTLS
//! between them as in production, policy and audit log included; a process in the guest's
//! place asks for one new session a request, in an open loop: a request is sent when its time
//! has come, whatever became of those before, and its delay counts from that time; a thread keeps
//! it, whose sleep is finer than the runtime's milliseconds. *Peer*: the
//! same request straight at the backend's socket (`self-socket`), over one kept connection of
//! HTTP/2: what the way through relay and controller adds. *Expected before measuring*: three
//! hops of about 0.2 ms, of which signing and verifying the token are the largest part.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt, and uses a part of the tests' helpers"
)]

#[path = "../tests/relay/guest.rs"]
mod guest;
#[path = "../tests/controller/lab.rs"]
mod lab;
mod report;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/controller/world.rs"]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use report::{Peer, Report};
use serde_json::json;
use shunt::api::link::{Address, Link};
use shunt::api::{Client, OffloadInput, OffloadStatus, Session};
use support::{now, pause};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use world::{World, call, results, session};

const LOCAL: &str = r#"
[controller]
socket = "{dir}/controller.sock"
[store]
file = "{dir}/store.redb"
[audit]
file = "{dir}/audit.jsonl"
"#;

const RATE: u32 = 1_000;
const WARM_UP: u32 = 1_000;
const REQUESTS: u32 = 10_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let world = World::start();
    let mut report = Report::new("ask");
    let (_guest_a, a) = world.guest(0).await;
    let (_guest_b, b) = world.guest(1).await;
    let socket = world.backend[0].socket().to_owned();
    let client = Client::over(Arc::new(Link::new(Address::Socket(socket), None)));
    let direct = open_loop(|number| {
        let client = client.clone();
        async move {
            let session: Session = serde_json::from_value(numbered("a", "direct", number)).unwrap();
            let input = OffloadInput {
                element: Some("a".to_owned()),
                session: vec![session],
                ..OffloadInput::default()
            };
            let output = client.offload(input).await.unwrap();
            assert_eq!(output.result[0].result, OffloadStatus::Offloaded);
        }
    })
    .await;
    for (case, element, guest) in [("socket", "a", &a), ("tls", "b", &b)] {
        let delays = open_loop(|number| {
            let guest = guest.clone();
            async move {
                let session = numbered(element, "asked", number);
                let answer = call(&guest, "offload", json!({ "session": [session] })).await;
                assert_eq!(results(&answer)[0].0, "offloaded", "{answer:?}");
            }
        })
        .await;
        for percent in [50, 99] {
            let peer = Peer {
                name: "self-socket",
                theirs: quantile(&direct, percent),
            };
            let case = format!("backend={case} rate={RATE} p{percent}");
            report.line(&case, quantile(&delays, percent), "ms", Some(peer));
        }
    }
}

/// A session that no other request is for.
fn numbered(element: &str, key: &str, number: u32) -> serde_json::Value {
    let mut session = session(
        element,
        &format!("{key}-{number}"),
        (number % 60_000) as u16 + 1,
    );
    let last = if key == "asked" { 9 } else { 10 };
    session["original"]["destination-address"] = json!(format!("192.0.2.{last}"));
    session
}

/// Delays of requests, milliseconds, in order.
async fn open_loop<F: Future<Output = ()> + Send + 'static>(ask: impl Fn(u32) -> F) -> Vec<f64> {
    let mut ticks = ticks();
    let mut asked = JoinSet::new();
    while let Some((number, due)) = ticks.recv().await {
        let answered = ask(number);
        asked.spawn(async move {
            answered.await;
            (number, due.elapsed())
        });
    }
    let mut delays = Vec::new();
    while let Some(done) = asked.join_next().await {
        let (number, delay) = done.unwrap();
        if number >= WARM_UP {
            delays.push(delay.as_secs_f64() * 1_000.0);
        }
    }
    delays.sort_by(f64::total_cmp);
    delays
}

/// The requests' numbers, each when it is due.
fn ticks() -> UnboundedReceiver<(u32, Instant)> {
    let (sender, ticks) = unbounded_channel();
    let begun = now();
    std::thread::spawn(move || {
        for number in 0..WARM_UP + REQUESTS {
            let due = begun + Duration::from_secs(1) * number / RATE;
            pause(due.saturating_duration_since(now()));
            // Without a reader the bench has failed.
            if sender.send((number, due)).is_err() {
                return;
            }
        }
    });
    ticks
}

fn quantile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}
