//! What the agent shows of itself.
//!
//! *Promises*: what `shunt agent status --json` prints is this, field by field.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: none; the guest's counters are conntrack's, which leave out what went around the
//! guest: both sums are shown, and added up they are the connection's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::book::Core;
use super::held::{Held, Stage};
use super::identity::Id;
use super::moment::Moment;
use super::settings::Mode;
use super::statistics::Statistics;
use crate::agent::connection::{Counters, Ports, Tuple};

/// Packets and bytes of both directions.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sums {
    /// Packets of the original direction.
    pub original_packets: u64,
    /// Bytes of the original direction.
    pub original_octets: u64,
    /// Packets of the answers.
    pub reply_packets: u64,
    /// Bytes of the answers.
    pub reply_octets: u64,
}

impl Sums {
    fn new(counters: [Counters; 2]) -> Self {
        let [original, reply] = counters;
        Self {
            original_packets: original.packets,
            original_octets: original.octets,
            reply_packets: reply.packets,
            reply_octets: reply.octets,
        }
    }
}

/// A connection that is asked for, or is to be.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionLine {
    /// The key of its session.
    pub key: String,
    /// IP protocol number.
    pub protocol: u8,
    /// As its first packet came: `10.0.0.1:40000 > 192.0.2.9:443`.
    pub original: String,
    /// As answers come.
    pub reply: String,
    /// Conntrack zone.
    pub zone: u16,
    /// The interfaces of the original direction: `lan > wan`.
    pub original_path: String,
    /// The same of the answers.
    pub reply_path: String,
    /// `searching`, `ready`, `asked`, `pending`, `active`, `leaving` or `observed`.
    pub state: String,
    /// Seconds since that is so.
    pub since: u64,
    /// Which directions go around the guest: original, answers.
    pub active: [bool; 2],
    /// Seconds since either moved around the guest, if one ever did.
    pub idle: Option<u64>,
    /// Seconds that it lives without packets.
    pub timeout: u64,
    /// What the guest has counted of it.
    pub guest: Sums,
    /// What went around the guest.
    pub fast: Sums,
    /// How often a direction was handed over.
    pub hand_overs: u32,
    /// Of these, at a bound.
    pub forced: u32,
    /// How long packets took through the guest at the last hand-over, microseconds.
    pub transit: Option<u32>,
}

/// All that the core knows.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Snapshot {
    /// What the agent does at all.
    pub mode: Mode,
    /// The element's name, as the host told.
    pub element: String,
    /// Whether the host can be reached.
    pub connected: bool,
    /// Seconds since the agent started.
    pub uptime: u64,
    /// Connections that may be offloaded once they are worth it.
    pub watched: u64,
    /// Looks at connections that found no place to be watched at.
    pub unwatched: u64,
    /// Connections that are asked for, or are to be, by state.
    pub held: BTreeMap<String, u64>,
    /// Connections that are left to the guest, by reason, as the last look at the table found.
    pub left_to_guest: BTreeMap<String, u64>,
    /// What of the ruleset must see every packet: `limit (inet filter forward)`.
    pub hazards: Vec<String>,
    /// Interfaces, and which vNIC and VLAN they are, or why they are none.
    pub interfaces: BTreeMap<String, String>,
    /// Whether news of new connections are followed, or the table is looked at instead.
    pub follows_news: bool,
    /// Counters.
    pub statistics: Statistics,
    /// The connections.
    pub session: Vec<SessionLine>,
}

impl Core {
    /// All that is known, with at most `sessions_max` connections, those that are held longest
    /// first.
    pub fn snapshot(&self, sessions_max: usize, now: Moment) -> Snapshot {
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        for of in self.sessions().map(|(_, held)| held) {
            *held.entry(state(of).to_owned()).or_default() += 1;
        }
        let mut session: Vec<(Moment, Id)> = (self.sessions())
            .map(|(id, held)| (held.since, *id))
            .collect();
        session.sort_unstable();
        session.truncate(sessions_max);
        let line = |id: &Id| self.session(*id).map(|held| self.line_of(*id, held, now));
        Snapshot {
            mode: self.mode(),
            connected: self.is_up(),
            uptime: now.0 / 1000,
            held,
            left_to_guest: (self.last_reasons().by_word())
                .map(|(word, count)| (word.to_owned(), count))
                .collect(),
            session: session.iter().filter_map(|(_, id)| line(id)).collect(),
            ..self.summary()
        }
    }

    fn line_of(&self, id: Id, held: &Held, now: Moment) -> SessionLine {
        let connection = &held.connection;
        let mut fast = held.fast;
        for (sum, past) in fast.iter_mut().zip(held.history.past) {
            sum.packets = sum.packets.saturating_add(past.packets);
            sum.octets = sum.octets.saturating_add(past.octets);
        }
        let paths = held.path.map(|path| {
            path.legs().map(|leg| {
                let name = |index| self.interface_name(index);
                format!("{} > {}", name(leg.ingress), name(leg.exit.by))
            })
        });
        let [original_path, reply_path] = paths.unwrap_or_default();
        SessionLine {
            key: id.key().map(String::from).unwrap_or_default(),
            protocol: connection.original.protocol,
            original: text(&connection.original),
            reply: text(&connection.reply),
            zone: connection.zone,
            original_path,
            reply_path,
            state: state(held).to_owned(),
            since: now.since(held.since).as_secs(),
            active: held.is_over,
            idle: (held.history.hand_overs > 0).then(|| held.idle(now).as_secs()),
            timeout: held.full.as_secs(),
            guest: Sums::new(connection.counters.unwrap_or_default()),
            fast: Sums::new(fast),
            hand_overs: held.history.hand_overs,
            forced: held.history.forced,
            transit: held.transit,
        }
    }
}

/// The word for where a connection stands: what the host has is pending or active.
fn state(held: &Held) -> &'static str {
    match held.stage {
        Stage::Live if held.is_active() => "active",
        Stage::Live => "pending",
        ref other => other.word(),
    }
}

/// `10.0.0.1:40000 > 192.0.2.9:443`.
fn text(tuple: &Tuple) -> String {
    let (source, destination) = (tuple.source, tuple.destination);
    match tuple.ports {
        Ports::Ports(from, to) => {
            let end = |address, port| std::net::SocketAddr::new(address, port);
            format!("{} > {}", end(source, from), end(destination, to))
        }
        Ports::Icmp { id, .. } => format!("{source} > {destination} id {id}"),
        Ports::None => format!("{source} > {destination}"),
    }
}
