//! Connections too short to gain.

use std::time::Duration;

use crate::rig::{Rig, SERVER, SOON, number};
use crate::support::process::needs;
use crate::support::{eventually, now};

const PORT: u16 = 8_000;
/// 10,000 a minute.
const RATE: usize = 167;
const CONNECTIONS: usize = 30 * RATE;
/// What the agent may take of the guest's only CPU.
const CPU_MAX: f64 = 0.10;
/// Linux's USER_HZ.
const TICKS: f64 = 100.0;

/// Ten thousand short connections a minute: none fails, the agent takes little of the guest's
/// CPU, and asks for none of them.
pub fn short_connections_are_left_alone(rig: &mut Rig) {
    needs("nghttpd", "nghttp2-server");
    needs("h2load", "nghttp2-client");
    rig.dir.write("page", &"x".repeat(4_000));
    let port = PORT.to_string();
    let argv = [
        "nghttpd",
        "--no-tls",
        "--address",
        SERVER,
        "--htdocs",
        rig.dir.path().to_str().unwrap(),
        &port,
    ];
    let mut server = rig.server.spawn(&argv, &rig.dir.file("nghttpd.log"));
    let url = format!("http://{SERVER}:{PORT}/page");
    eventually(SOON, "the HTTP server answers", || {
        server.assert_running();
        let argv = ["h2load", "-n", "1", "-c", "1", &url];
        succeeded(&String::from_utf8_lossy(&rig.client.exec(&argv).stdout)) == 1
    });

    let asked_before = asked(rig);
    let (cpu, began) = (agent_cpu(rig), now());
    let (connections, rate) = (CONNECTIONS.to_string(), RATE.to_string());
    let argv = [
        "h2load",
        "-n",
        &connections,
        "-c",
        &connections,
        "-r",
        &rate,
        "--connection-inactivity-timeout=20",
        &url,
    ];
    let said = rig.client.succeed(&argv);
    let took = began.elapsed().as_secs_f64();
    let share = (agent_cpu(rig) - cpu) / took;
    assert_eq!(succeeded(&said), CONNECTIONS, "{said}");
    assert!(took < 2.0 * CONNECTIONS as f64 / RATE as f64, "{took} s");
    eprintln!("  the agent took {:.1} % of the guest's CPU", share * 100.0);
    assert!(share < CPU_MAX, "the agent took {share} of the guest's CPU");
    let asked = asked(rig) - asked_before;
    assert!(asked < CONNECTIONS as u64 / 100, "{asked} were asked for");
    server.terminate(Duration::from_secs(10));
}

/// Requests that succeeded, as h2load says: `requests: 5 total, … 5 succeeded, 0 failed, …`.
fn succeeded(said: &str) -> usize {
    let line = said.lines().find(|line| line.starts_with("requests:"));
    let mut parts = line.unwrap_or_default().split(", ");
    let count = parts.find_map(|part| part.strip_suffix(" succeeded"));
    count.map_or(0, |count| count.parse().unwrap())
}

/// Sessions that were ever there.
fn asked(rig: &Rig) -> u64 {
    let statistics = rig.statistics();
    let closed = statistics["closed"].as_array().unwrap().iter();
    let ended: u64 = closed.map(|entry| number(&entry["count"])).sum();
    ended + rig.sessions().len() as u64
}

/// CPU time of the agent so far, in the guest's seconds.
fn agent_cpu(rig: &mut Rig) -> f64 {
    let stat = rig.guest.succeed("cat /proc/$(pidof shunt)/stat");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / TICKS
}
