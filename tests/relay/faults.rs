//! Guests, lines, relays and upstreams that break. Each has a clear outcome.

use std::time::Duration;

use axum::http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::net::UnixListener;

use super::guest::{Guest, Wire, request};
use super::rig::{Rig, config, eventually, start};
use super::run;
use super::support::Dir;
use super::upstream::Upstream;

/// Bytes of noise on a real socket; the codec itself meets a gibibyte in its own test.
const NOISE: usize = 8 << 20;

fn noise(mut state: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_ne_bytes());
    }
    bytes
}

#[test]
fn noise_and_cut_frames_are_passed_over() {
    run(async {
        let rig = Rig::start().await;
        let wire = rig.wire("a").await;
        wire.write_raw(&noise(1, NOISE)).await;
        // Text without a zero, far longer than a frame.
        wire.write_raw(&vec![b'x'; 100_000]).await;
        let mut guest = Guest::boot(&wire);
        let http = guest.http().await;
        assert_eq!(http.call("GET", "/restconf/x", "").await.text, "a GET ");

        // In mid-connection: whoever else holds the port writes half a frame and noise.
        wire.write_raw(&[0, 6, 0x13, 1, 2]).await;
        wire.write_raw(&noise(2, 50_000)).await;
        assert_eq!(http.call("GET", "/restconf/y", "").await.text, "a GET ");
        assert_eq!(rig.upstream.seen().len(), 2);
    });
}

#[test]
fn a_guest_that_reboots_in_mid_request_comes_back_with_a_higher_fence() {
    run(async {
        let rig = Rig::start().await;
        let mut presence = rig.presence().await;
        assert_eq!(presence.line().await["type"], "snapshot");
        let wire = rig.wire("a").await;
        let mut guest = Guest::boot(&wire);
        let http = guest.http().await;
        let first = presence.change("a", true).await;
        let pending = tokio::spawn(async move { http.call("POST", "/restconf/silent", "x").await });
        eventually(|| rig.upstream.begun() == 1).await;

        pending.abort();
        drop(guest);
        // A frame that the crash has cut.
        wire.write_raw(&[0, 9, 0x13, 7, 7]).await;
        let mut guest = Guest::boot(&wire);
        let http = guest.http().await;
        assert_eq!(presence.change("a", false).await["fence"], first["fence"]);
        let second = presence.change("a", true).await;
        assert!(second["fence"].as_u64() > first["fence"].as_u64());
        assert_ne!(second["epoch"], first["epoch"]);
        eventually(|| rig.upstream.cancelled() == 1).await;
        assert_eq!(http.call("GET", "/restconf/x", "").await.text, "a GET ");
        let seen = rig.upstream.seen();
        let fence = seen[0].identity.clone().unwrap().fence;
        assert_eq!(Some(fence), second["fence"].as_u64());
    });
}

#[test]
fn a_guest_that_falls_silent_is_gone_after_its_time() {
    run(async {
        let rig = Rig::start_with(&[("stall-ms = 1500", "silence-ms = 800")]).await;
        let mut presence = rig.presence().await;
        let wire = rig.wire("a").await;
        let (guest, _http) = {
            let mut guest = Guest::boot(&wire);
            let http = guest.http().await;
            (guest, http)
        };
        presence.change("a", true).await;
        drop(guest);
        presence.change("a", false).await;
        // The socket is still open, and so is the way back.
        let mut guest = Guest::boot(&wire);
        let _http = guest.http().await;
        presence.change("a", true).await;
    });
}

#[test]
fn a_guest_that_never_reads_costs_its_own_port_only() {
    run(async {
        let rig = Rig::start().await;
        let mut presence = rig.presence().await;
        let wire = rig.wire("a").await;
        let mut deaf = Guest::boot(&wire);
        let http = deaf.http().await;
        let first = presence.change("a", true).await;
        // Answers without end, and nobody who reads them.
        for _ in 0..4 {
            let endless = http.send(request("GET", "/restconf/endless", "")).await;
            drop(tokio::spawn(endless.unwrap().into_body().collect()));
        }
        wire.be_deaf(true);
        let (_other, b) = rig.guest("b").await;
        for _ in 0..100 {
            assert_eq!(b.call("GET", "/restconf/x", "").await.text, "b GET ");
        }
        // It beats, but it does not read: given up, and said so.
        let gone = presence.change("a", false).await;
        assert_eq!(gone["fence"], first["fence"]);
        eventually(|| rig.relay.log().contains("the peer does not read")).await;
        wire.be_deaf(false);
        drop(deaf);
        let mut guest = Guest::boot(&wire);
        assert_eq!(
            guest.http().await.call("GET", "/restconf/x", "").await.text,
            "a GET "
        );
        assert!(resident_kilobytes(rig.relay.id()) < 100_000);
    });
}

/// Memory of a process.
fn resident_kilobytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let text = line.unwrap().trim().trim_end_matches(" kB");
    text.parse().unwrap()
}

#[test]
fn a_relay_killed_in_mid_request_is_noticed_on_both_sides_and_started_again() {
    run(async {
        let mut rig = Rig::start().await;
        let (mut guest, http) = rig.guest("a").await;
        assert_eq!(
            http.call("GET", "/restconf/x", "").await.status,
            StatusCode::OK
        );
        let pending =
            tokio::spawn(async move { http.send(request("GET", "/restconf/silent", "")).await });
        eventually(|| rig.upstream.begun() == 2).await;

        rig.restart();
        assert!(pending.await.unwrap().is_err(), "the guest hears of it");
        assert!(guest.is_cut_off().await);
        eventually(|| rig.upstream.cancelled() == 1).await;

        let (_guest, http) = rig.guest("a").await;
        assert_eq!(
            http.call("GET", "/restconf/x", "").await.status,
            StatusCode::OK
        );
        let fences: Vec<_> = rig
            .upstream
            .seen()
            .into_iter()
            .map(|seen| seen.identity.unwrap().fence)
            .collect();
        assert!(fences[0] < fences[1], "{fences:?}");
    });
}

#[test]
fn an_upstream_that_is_away_is_said_so_at_once() {
    run(async {
        let mut rig = Rig::start_with(&[("timeout-ms = 30000", "timeout-ms = 700")]).await;
        let (_guest, http) = rig.guest("a").await;
        let slow = http.call("GET", "/restconf/silent", "").await;
        assert_eq!(slow.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(slow.problem()["applied"], "unknown");

        // It dies while it has a request.
        let asked = http.clone();
        let pending =
            tokio::spawn(async move { asked.call("POST", "/restconf/silent", "x").await });
        eventually(|| rig.upstream.begun() == 2).await;
        let address = dead_upstream(&mut rig).await;
        let answer = pending.await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.problem()["side"], "upstream");

        let started = tokio::time::Instant::now();
        for _ in 0..20 {
            let answer = http.call("GET", "/restconf/x", "").await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(answer.problem()["applied"], "no");
            assert_eq!(answer.headers["retry-after"], "1");
        }
        assert!(started.elapsed() < Duration::from_secs(5));

        // It is found again.
        rig.upstream = Upstream::tls(&rig.pki, address).await;
        loop {
            let answer = http.call("GET", "/restconf/x", "").await;
            if answer.status == StatusCode::OK {
                break;
            }
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// Ends the upstream, with all its connections; where it was.
async fn dead_upstream(rig: &mut Rig) -> std::net::SocketAddr {
    let text = std::fs::read_to_string(rig.dir.file("relay.toml")).unwrap();
    let port = text.split("localhost:").nth(1).unwrap();
    let port: u16 = port.split('"').next().unwrap().parse().unwrap();
    let elsewhere = Upstream::tls(&rig.pki, super::upstream::free_address()).await;
    std::mem::replace(&mut rig.upstream, elsewhere).end().await;
    ([127, 0, 0, 1], port).into()
}

#[test]
fn an_upstream_that_another_authority_vouches_for_gets_nothing() {
    run(async {
        let rig = Rig::start().await;
        let dir = Dir::new();
        super::pki::Pki::new().write(dir.path());
        std::fs::copy(dir.file("ca.pem"), rig.dir.file("ca.pem")).unwrap();
        let mut rig = rig;
        rig.restart();
        let (_guest, http) = rig.guest("a").await;
        let answer = http.call("GET", "/restconf/x", "").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        eventually(|| rig.relay.log().contains("TLS failed")).await;
        assert_eq!(rig.upstream.begun(), 0);
    });
}

#[test]
fn presence_is_told_as_a_snapshot_changes_and_beats() {
    run(async {
        let mut rig = Rig::start().await;
        let mut early = rig.presence().await;
        let snapshot = early.line().await;
        assert_eq!(snapshot["type"], "snapshot");
        assert_eq!(snapshot["host"], super::pki::HOST);
        let names: Vec<_> = snapshot["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| {
                (
                    port["name"].as_str().unwrap(),
                    port["present"].as_bool().unwrap(),
                )
            })
            .collect();
        assert_eq!(names, [("a", false), ("b", false)]);
        assert_eq!(early.line().await, serde_json::json!({"type": "beat"}));

        let (guest, _http) = rig.guest("b").await;
        let arrived = early.change("b", true).await;
        assert!(arrived["epoch"].as_u64().unwrap() > 0);
        let mut late = rig.presence().await;
        assert_eq!(late.line().await["ports"][1], arrived);

        // The fence rises over a restart.
        rig.restart();
        drop(guest);
        let (_guest, _http) = rig.guest("b").await;
        let mut again = rig.presence().await;
        let mut now: Value = again.line().await["ports"][1].take();
        if now["present"] == false {
            now = again.change("b", true).await;
        }
        assert!(now["fence"].as_u64() > arrived["fence"].as_u64());
    });
}

#[test]
fn a_port_whose_socket_the_vmm_listens_on_is_connected_to_again_and_again() {
    run(async {
        let (dir, pki) = (Dir::new(), super::pki::Pki::new());
        pki.write(dir.path());
        let address = super::upstream::free_address();
        let _upstream = Upstream::tls(&pki, address).await;
        let connect = ("uid = 0", "uid = 0\nmode = \"connect\"");
        let config = config(&dir, address.port(), &[connect]);
        let _relay = start(&config, &dir);
        for _ in 0..2 {
            let listener = UnixListener::bind(dir.file("a")).unwrap();
            let (socket, _) = listener.accept().await.unwrap();
            let mut guest = Guest::boot(&Wire::of(socket));
            let http = guest.http().await;
            assert_eq!(http.call("GET", "/restconf/x", "").await.text, "a GET ");
            std::fs::remove_file(dir.file("a")).unwrap();
        }
    });
}

#[test]
fn a_second_process_on_a_port_is_turned_away() {
    run(async {
        let rig = Rig::start().await;
        let (_guest, http) = rig.guest("a").await;
        let mut second = Guest::boot(&rig.wire("a").await);
        assert!(second.is_cut_off().await);
        assert_eq!(http.call("GET", "/restconf/x", "").await.text, "a GET ");
    });
}
