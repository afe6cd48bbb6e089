//! How long does it take until an agent and its backend agree again about a million sessions?
//!
//! *Held constant*: one element on one backend of one worker without traffic; a client on the
//! control socket that asks one call at a time, a connection each, 4096 keys a page (1024
//! sessions an `offload`). *Peer*: none; the bound is 10 s. *Expected before measuring*: a page
//! is 0.1 MB of JSON each way and 4096 look-ups of 0.3 us on a cold table, so some 5 ms, and
//! 245 pages a second or two; the end, half of all to be withdrawn, as long again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use report::Report;
use shunt::api::sync::KEYS_MAX;
use shunt::api::{
    Client, ENTRIES_MAX, OffloadInput, OpenEpochInput, Session, SyncInput, SyncPage, SyncStatus,
    SyncStep,
};
use support::shunt::{Shunt, idle_router};
use support::{Dir, now};

const SESSIONS: usize = 1_000_000;

fn key(number: usize) -> String {
    format!("ct-{number:08x}")
}

/// Sessions as a gateway has them: one address for each 50,000, source NAT.
fn session(number: usize) -> Session {
    let (address, port) = (number / 50_000, 1024 + number % 50_000);
    let json = serde_json::json!({
        "key": key(number), "protocol": "udp", "idle-timeout": 3600,
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": format!("10.0.0.{address}"), "source-port": port,
            "destination-address": "192.0.2.9", "destination-port": 53,
            "translation": { "source-address": format!("198.51.100.{address}") }
        }
    });
    serde_json::from_value(json).unwrap()
}

async fn run(client: &Client, report: &mut Report) {
    let opened = client.open_epoch(OpenEpochInput::default()).await.unwrap();
    let epoch = Some(opened.epoch);
    let inputs: Vec<_> = (0..SESSIONS)
        .step_by(ENTRIES_MAX)
        .map(|from| OffloadInput {
            epoch,
            session: (from..(from + ENTRIES_MAX).min(SESSIONS))
                .map(session)
                .collect(),
            ..OffloadInput::default()
        })
        .collect();
    let start = now();
    for input in inputs {
        let output = client.offload(input).await.unwrap();
        assert!(output.result.iter().all(|one| !one.result.is_refused()));
    }
    let rate = SESSIONS as f64 / start.elapsed().as_secs_f64();
    report.line("offload", rate, "sessions/s", None);
    sync(client, report, epoch, "sync-all", SESSIONS).await;
    sync(client, report, epoch, "sync-half", SESSIONS / 2).await;
}

/// Names the first `wanted` sessions; the others are withdrawn.
async fn sync(client: &Client, report: &mut Report, epoch: Option<u64>, case: &str, wanted: usize) {
    let step = async |step| {
        let input = SyncInput {
            epoch,
            ..SyncInput::of(step)
        };
        client.sync(input).await.unwrap()
    };
    let start = now();
    let sync = step(SyncStep::Begin).await.sync.unwrap();
    for from in (0..wanted).step_by(KEYS_MAX) {
        let keys = from..(from + KEYS_MAX).min(wanted);
        let page = SyncPage {
            sync,
            key: keys.map(|number| key(number).parse().unwrap()).collect(),
            session: Vec::new(),
        };
        let output = step(SyncStep::Page(page)).await;
        assert!(
            output
                .result
                .iter()
                .all(|one| one.result == SyncStatus::Kept)
        );
    }
    let named = start.elapsed();
    let output = step(SyncStep::End(sync)).await;
    assert_eq!(output.sessions, Some(wanted as u32));
    report.line(case, start.elapsed().as_secs_f64(), "s", None);
    let end = start.elapsed() - named;
    report.line(&format!("{case}-end"), end.as_secs_f64(), "s", None);
}

fn main() {
    let dir = Dir::new();
    let _shunt = Shunt::start(&dir, &idle_router(SESSIONS as u32 + 1024));
    let client = Client::new(&dir.file("control.sock"));
    let mut report = Report::new("sync");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(&client, &mut report));
}
