//! `shunt show …` and `shunt session show`.

use std::net::IpAddr;

use super::args::Connect;
use super::error::HostError;
use super::{element, print_as};
use crate::api::session::Session;
use crate::api::state::{Count, DeviceReport, FlowReport, HandOverStatistics, Traffic};
use crate::api::{Client, Ports, SessionKey, SessionReport, Sessions, Statistics, Summary};
use crate::cli::Ending;
use crate::cli::table::Table;

pub(super) async fn summary(connect: &Connect) -> Result<Ending, HostError> {
    let mut summary = Client::new(&connect.socket).summary().await?;
    if let Some(name) = &connect.element {
        summary.element.retain(|element| element.name == *name);
    }
    print_as(connect, &summary, summary_table)?;
    Ok(Ending::Done)
}

fn summary_table(summary: &Summary) -> String {
    let mut table = Table::new(&["ELEMENT", "SESSIONS", "ROOM", "VNICS"]);
    for element in &summary.element {
        table.row([
            element.name.clone(),
            element.sessions.to_string(),
            element.sessions_max.to_string(),
            element.vnic.join(" "),
        ]);
    }
    format!(
        "shunt {}, up {}\n\n{}",
        summary.version,
        span(summary.uptime),
        table.text()
    )
}

pub(super) async fn sessions(
    connect: &Connect,
    key: Option<SessionKey>,
) -> Result<Ending, HostError> {
    let client = Client::new(&connect.socket);
    let name = element(&client, connect).await?;
    match key {
        None => print_as(connect, &client.sessions(&name).await?, sessions_table)?,
        Some(key) => match client.session(&name, &key).await? {
            Some(session) => print_as(connect, &session, session_detail)?,
            None => {
                return Err(HostError::NoSession {
                    element: name,
                    key: key.to_string(),
                });
            }
        },
    }
    Ok(Ending::Done)
}

fn sessions_table(sessions: &Sessions) -> String {
    let mut table = Table::new(&[
        "KEY", "PROTO", "FROM", "TO", "IN", "OUT", "STATE", "PACKETS", "AGE", "IDLE",
    ]);
    for report in &sessions.session {
        let (session, status) = (&report.session, &report.status);
        let (from, to) = ends(session);
        let original = &session.original;
        let halves = |of: fn(&FlowReport) -> String| {
            let half = |flow: &Option<FlowReport>| flow.as_ref().map_or("-".to_owned(), of);
            format!("{}/{}", half(&status.original), half(&status.reply))
        };
        table.row([
            session.key.to_string(),
            session.protocol.to_string(),
            from,
            to,
            original.ingress_vnic.clone(),
            original.egress_vnic.clone(),
            halves(|flow| flow.state.name().to_owned()),
            halves(|flow| flow.packets.to_string()),
            span(status.age),
            span(status.idle),
        ]);
    }
    table.text()
}

/// Source and destination of the original direction.
fn ends(session: &Session) -> (String, String) {
    let original = &session.original;
    let source = original.source_port.or(original.identifier);
    (
        endpoint(original.source_address, source),
        endpoint(original.destination_address, original.destination_port),
    )
}

/// The same after translation.
fn new_ends(session: &Session) -> (String, String) {
    let original = &session.original;
    let new = &original.translation;
    let from = endpoint(
        new.source_address.unwrap_or(original.source_address),
        new.source_port
            .or(new.identifier)
            .or(original.source_port)
            .or(original.identifier),
    );
    let to = endpoint(
        new.destination_address
            .unwrap_or(original.destination_address),
        new.destination_port.or(original.destination_port),
    );
    (from, to)
}

fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (address, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    }
}

fn session_detail(report: &SessionReport) -> String {
    let (session, status) = (&report.session, &report.status);
    let (from, to) = ends(session);
    let original = &session.original;
    let phase = match &status.close_code {
        Some(code) => format!("{} ({code})", status.phase.name()),
        None => status.phase.name().to_owned(),
    };
    let mut lines = vec![
        ("key", session.key.to_string()),
        ("phase", phase),
        ("protocol", session.protocol.to_string()),
        ("original", format!("{from} -> {to}")),
    ];
    if !original.translation.is_empty() {
        let (from, to) = new_ends(session);
        lines.push(("translated", format!("{from} -> {to}")));
    }
    let place = |vnic: &str, vlan: u16| match vlan {
        0 => vnic.to_owned(),
        id => format!("{vnic} VLAN {id}"),
    };
    lines.push((
        "path",
        format!(
            "{} -> {}",
            place(&original.ingress_vnic, original.ingress_vlan.get()),
            place(&original.egress_vnic, original.egress_vlan.get())
        ),
    ));
    lines.push((
        "idle",
        format!(
            "{} of {}",
            span(status.idle),
            span(session.idle_timeout.get())
        ),
    ));
    lines.push((
        "age",
        match session.hard_timeout {
            Some(hard) => format!("{} of {}", span(status.age), span(hard.get())),
            None => span(status.age),
        },
    ));
    for (name, flow) in [
        ("original flow", &status.original),
        ("reply flow", &status.reply),
    ] {
        if let Some(flow) = flow {
            lines.push((name, flow_line(flow)));
        }
    }
    pairs(lines)
}

fn flow_line(flow: &FlowReport) -> String {
    let mut line = format!(
        "{}, {} packets, {} octets",
        flow.state.name(),
        flow.packets,
        flow.octets
    );
    if let (Some(source), Some(destination)) = (flow.source_mac, flow.destination_mac) {
        line.push_str(&format!(", MAC {source} -> {destination}"));
    }
    line
}

/// Names and values, a line each.
fn pairs(lines: Vec<(&str, String)>) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines
        .iter()
        .map(|(name, value)| format!("{name:<width$}  {value}\n"))
        .collect()
}

pub(super) async fn ports(connect: &Connect) -> Result<Ending, HostError> {
    let client = Client::new(&connect.socket);
    let name = element(&client, connect).await?;
    print_as(connect, &client.ports(&name).await?, ports_table)?;
    Ok(Ending::Done)
}

fn ports_table(ports: &Ports) -> String {
    let mut table = Table::new(&[
        "VNIC",
        "MAC",
        "SIDE",
        "DEVICE",
        "QUEUE",
        "STATE",
        "RX",
        "TX",
        "DISCARDED",
    ]);
    for vnic in &ports.vnic {
        for (side, device) in [("guest", &vnic.guest), ("uplink", &vnic.uplink)] {
            for row in device_rows(device) {
                let head = [vnic.name.clone(), vnic.mac.to_string(), side.to_owned()];
                table.row(head.into_iter().chain(row));
            }
        }
    }
    table.text()
}

/// A row per queue pair, or one for a device that has none yet.
fn device_rows(device: &DeviceReport) -> Vec<[String; 6]> {
    let name = format!("{} {}", device.kind, device.name);
    if device.queue.is_empty() {
        let state = if device.connected {
            "connected"
        } else {
            "down"
        };
        let none = String::new;
        return vec![[
            name,
            "-".to_owned(),
            state.to_owned(),
            none(),
            none(),
            none(),
        ]];
    }
    let state = |queue: &crate::api::state::Queue| match &queue.fault {
        Some(fault) => format!("stopped: {fault}"),
        None if queue.running => "running".to_owned(),
        None if device.connected => "waiting".to_owned(),
        None => "down".to_owned(),
    };
    device
        .queue
        .iter()
        .map(|queue| {
            [
                name.clone(),
                queue.queue.to_string(),
                state(queue),
                queue.rx_frames.to_string(),
                queue.tx_frames.to_string(),
                (queue.rx_discarded.saturating_add(queue.tx_discarded)).to_string(),
            ]
        })
        .collect()
}

pub(super) async fn statistics(connect: &Connect) -> Result<Ending, HostError> {
    let client = Client::new(&connect.socket);
    let name = element(&client, connect).await?;
    print_as(connect, &client.statistics(&name).await?, statistics_table)?;
    Ok(Ending::Done)
}

/// The counters; reasons that did not occur are left to `--json`.
fn statistics_table(statistics: &Statistics) -> String {
    let table = &statistics.table;
    let traffic =
        |traffic: &Traffic| format!("{} packets, {} octets", traffic.packets, traffic.octets);
    let sum = |counts: &[Count]| {
        let total = counts
            .iter()
            .fold(0u64, |sum, count| sum.saturating_add(count.count));
        format!("{total} packets")
    };
    let mut lines = vec![
        ("from uplinks", traffic(&statistics.from_uplink)),
        ("from guest", traffic(&statistics.from_guest)),
        ("forwarded", traffic(&statistics.forwarded)),
        ("punted", sum(&statistics.punted)),
        ("dropped", sum(&statistics.dropped)),
        ("CPU time", cpu_time(statistics.cpu_time)),
        (
            "sessions",
            format!(
                "{} of {}, {} refused (full)",
                table.sessions, table.sessions_max, table.refused_full
            ),
        ),
    ];
    lines.extend(hand_over_lines(&statistics.hand_over));
    let mut text = pairs(lines);
    for (title, counts) in [
        ("PUNTED", &statistics.punted),
        ("DROPPED", &statistics.dropped),
        ("CLOSED", &statistics.closed),
    ] {
        let mut table = Table::new(&[title, "COUNT"]);
        for count in counts.iter().filter(|count| count.count > 0) {
            table.row([count.name.clone(), count.count.to_string()]);
        }
        if counts.iter().any(|count| count.count > 0) {
            text.push('\n');
            text.push_str(&table.text());
        }
    }
    text
}

fn hand_over_lines(hand_over: &HandOverStatistics) -> [(&'static str, String); 4] {
    [
        (
            "hand-over",
            format!(
                "{} proved, {} activated, {} disproved, {} at bound, {} forced",
                hand_over.proved,
                hand_over.activated,
                hand_over.disproved,
                hand_over.drain_bounds,
                hand_over.forced
            ),
        ),
        (
            "parked",
            format!(
                "{} frames, {} to egress, {} to guest, {} lost",
                hand_over.parked_frames,
                hand_over.released_to_egress,
                hand_over.released_to_guest,
                hand_over.released_lost
            ),
        ),
        (
            "overtaken",
            format!("{} packets at most", hand_over.overtaken),
        ),
        (
            "guest transit",
            format!(
                "{} us last, {} us smoothed, {} us min, {} us mean, {} us max, {} times",
                hand_over.transit_last,
                hand_over.transit_smoothed,
                hand_over.transit_min,
                hand_over.transit_mean,
                hand_over.transit_max,
                hand_over.transits
            ),
        ),
    ]
}

/// Nanoseconds of CPU time, to the millisecond.
fn cpu_time(nanos: u64) -> String {
    let millis = nanos / 1_000_000;
    format!("{}.{:03}s", millis / 1_000, millis % 1_000)
}

/// A time in seconds, in words: `42s`, `3m07s`, `2h05m`, `9d03h`.
fn span(seconds: u32) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d{:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_shows_its_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (187, "3m07s"),
            (7_500, "2h05m"),
            (788_400, "9d03h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
