//! `make bench-control`: how many sessions does a backend take over its control socket, and how soon
//! does it answer for one?
//!
//! *Held constant*: one element on a backend of one worker without traffic, a client on the control
//! socket with one connection of HTTP/2, as controllers have; sessions as an agent asks for them (source
//! NAT, MACs to be learned), no two alike. *Cases*: `batch=1000`: calls of a thousand sessions, four on
//! their way at a time, from the first byte encoded to the last result read; `single`: calls of one
//! session in an open loop, 10,000 a second: a call is made when its time has come, whatever became of
//! those before, and its delay counts from that time; the client, which looks at the clock all the
//! while, has one CPU and the backend another. *Peer*: `ovs-ofctl add-flows` of as many rules as
//! the sessions have directions, each with the same match and rewrite, into Open vSwitch with DPDK
//! (`ovs-dpdk`), without ports, so that no poll-mode thread takes a CPU from it; by turns.
//! *Expected before measuring*: a session is 300 bytes of JSON, which take 3 us to be read and checked
//! and 0.5 us to be inserted, on two threads: some 300,000 a second; a call of its own is 50 us of HTTP
//! on each side, half of a CPU at that rate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::VecDeque;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use report::{Peer, Report, cpu_seconds, median};
use shunt::api::link::{Address, Link};
use shunt::api::{Client, OffloadInput, OffloadOutput, OffloadStatus, Session};
use support::hugepages::Hugepages;
use support::ovs::{self, Ovs};
use support::process::pin;
use support::shunt::{Shunt, idle_router};
use support::{Dir, now};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

const ROUNDS: usize = 3;
const BATCH: usize = 1_000;
/// Batches of a round.
const BATCHES: usize = 64;
/// Calls on their way at a time.
const IN_FLIGHT: usize = 4;

const RATE: u32 = 10_000;
const WARM_UP: usize = RATE as usize;
/// Calls of a round.
const REQUESTS: usize = 5 * RATE as usize;

fn main() {
    let mut report = Report::new("control");
    batches(&mut report);
    singles(&mut report);
}

fn batches(report: &mut Report) {
    let dir = Dir::new();
    let _hugepages = Hugepages::free(ovs::MEMORY_MIB);
    let mut ovs = Ovs::start(&dir, 1, 0);
    ovs.rest();
    let room = (ROUNDS + 1) * BATCHES * BATCH;
    let mut shunt = Shunt::start(&dir, &idle_router(room as u32));
    let (backend, client) = (shunt.process().id(), client(&shunt));
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    // The first round of each warms up; a round begins where the one before ended.
    let mut numbers = 0..0;
    let (mut ours, mut costs, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=ROUNDS {
        numbers = numbers.end..numbers.end + BATCHES * BATCH;
        let count = numbers.len() as f64;
        let spent = cpu_seconds(backend);
        ours.push(count / offload(&runtime, &client, numbers.clone()).as_secs_f64());
        costs.push((cpu_seconds(backend) - spent) * 1e6 / count);
        let rules = rules(numbers.clone());
        ovs.resume();
        let begun = now();
        ovs.add_flows(&rules);
        theirs.push(count / begun.elapsed().as_secs_f64());
        ovs.rest();
    }
    ovs.resume();
    let peer = Peer {
        name: "ovs-dpdk",
        theirs: median(theirs.split_off(1)),
    };
    let case = format!("batch={BATCH}");
    report.line(&case, median(ours.split_off(1)), "sessions/s", Some(peer));
    let case = format!("batch={BATCH} backend");
    report.line(&case, median(costs.split_off(1)), "us/session", None);
}

/// As controllers have it.
fn client(shunt: &Shunt) -> Client {
    let address = Address::Socket(shunt.socket().to_owned());
    Client::over(Arc::new(Link::new(address, None)))
}

/// How long it takes until all of these sessions are accepted.
fn offload(runtime: &Runtime, client: &Client, numbers: Range<usize>) -> Duration {
    let mut inputs: Vec<VecDeque<_>> = (0..IN_FLIGHT).map(|_| VecDeque::new()).collect();
    for (number, from) in numbers.step_by(BATCH).enumerate() {
        inputs[number % IN_FLIGHT].push_back(input(from..from + BATCH));
    }
    let begun = now();
    runtime.block_on(async {
        let tasks = inputs.into_iter().map(|mut inputs| {
            let client = client.clone();
            tokio::spawn(async move {
                while let Some(input) = inputs.pop_front() {
                    check(&client.offload(input).await.unwrap(), BATCH);
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
    begun.elapsed()
}

fn input(numbers: Range<usize>) -> OffloadInput {
    OffloadInput {
        session: numbers.map(session).collect(),
        ..OffloadInput::default()
    }
}

fn check(output: &OffloadOutput, count: usize) {
    assert_eq!(output.result.len(), count);
    for one in &output.result {
        assert_eq!(one.result, OffloadStatus::Offloaded, "{one:?}");
    }
}

/// Address and port of a session's inside.
fn inside(number: usize) -> (usize, usize) {
    (number / 50_000, 1024 + number % 50_000)
}

/// Sessions as a gateway has them: one address for each 50,000, source NAT.
fn session(number: usize) -> Session {
    let (address, port) = inside(number);
    let json = serde_json::json!({
        "key": format!("ct-{number:08x}"), "protocol": "udp", "idle-timeout": 3600,
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": format!("10.0.0.{address}"), "source-port": port,
            "destination-address": "192.0.2.9", "destination-port": 53,
            "translation": { "source-address": format!("198.51.100.{address}") }
        }
    });
    serde_json::from_value(json).unwrap()
}

/// The same as OpenFlow rules, one for each direction.
fn rules(numbers: Range<usize>) -> String {
    let mut text = String::new();
    for number in numbers {
        let (address, port) = inside(number);
        let macs = |own, next| {
            format!("mod_dl_src:52:54:00:00:00:0{own},mod_dl_dst:02:00:00:00:00:0{next}")
        };
        writeln!(
            text,
            "in_port=1,dl_dst=52:54:00:00:00:01,udp,nw_src=10.0.0.{address},tp_src={port},\
             nw_dst=192.0.2.9,tp_dst=53,actions={},mod_nw_src:198.51.100.{address},dec_ttl,output:2\n\
             in_port=2,dl_dst=52:54:00:00:00:02,udp,nw_src=192.0.2.9,tp_src=53,\
             nw_dst=198.51.100.{address},tp_dst={port},actions={},mod_nw_dst:10.0.0.{address},\
             dec_ttl,output:1",
            macs(2, 2),
            macs(1, 1),
        )
        .unwrap();
    }
    text
}

fn singles(report: &mut Report) {
    let dir = Dir::new();
    let room = WARM_UP + ROUNDS * REQUESTS;
    let mut shunt = Shunt::start(&dir, &idle_router(room as u32));
    let (backend, client) = (shunt.process().id(), client(&shunt));
    pin(backend, "1");
    pin(std::process::id(), "0");
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(open_loop(&client, 0..WARM_UP));
    let spent = cpu_seconds(backend);
    let rounds: Vec<Vec<f64>> = (WARM_UP..room)
        .step_by(REQUESTS)
        .map(|from| runtime.block_on(open_loop(&client, from..from + REQUESTS)))
        .collect();
    for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        let of = |delays: &Vec<f64>| delays[((delays.len() - 1) as f64 * part) as usize];
        let case = format!("single rate={RATE} {name}");
        report.line(&case, median(rounds.iter().map(of).collect()), "ms", None);
    }
    let cost = (cpu_seconds(backend) - spent) * 1e6 / (ROUNDS * REQUESTS) as f64;
    report.line(
        &format!("single rate={RATE} backend"),
        cost,
        "us/session",
        None,
    );
}

/// Delays of calls for these sessions, milliseconds, ascending.
async fn open_loop(client: &Client, numbers: Range<usize>) -> Vec<f64> {
    let inputs: Vec<_> = numbers.map(|number| input(number..number + 1)).collect();
    let begun = now();
    let mut calls = Vec::with_capacity(inputs.len());
    for (number, input) in (0..).zip(inputs) {
        let due = begun + Duration::from_secs(1) * number / RATE;
        while now() < due {
            yield_now().await;
        }
        let client = client.clone();
        calls.push(tokio::spawn(async move {
            check(&client.offload(input).await.unwrap(), 1);
            due.elapsed()
        }));
    }
    let mut delays = Vec::with_capacity(calls.len());
    for call in calls {
        delays.push(call.await.unwrap().as_secs_f64() * 1e3);
    }
    delays.sort_by(f64::total_cmp);
    delays
}
