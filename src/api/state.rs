//! What the backend tells: container `state` of `shunt-offload`, per element its
//! sessions, ports and statistics.
//!
//! *Promises*: counters count wire packets and L3 bytes and never go back while the
//! backend runs; they are strings, ages are seconds. Every reason the pipeline knows
//! is listed, also at zero, so that "absent" never means "zero".
//! *Refuses*: nothing; readers ignore leaves they do not know.
//! *Caller's duty*: a session is told between two packets, statistics of different
//! workers at slightly different moments.
//! *Standard*: RFC 8040 section 3.5, RFC 7951 section 6.1.

use serde::{Deserialize, Serialize};

use super::convert::{NotInModel, VnicNames, from_request};
use super::session::Session;
use super::wire::u64_text;
use crate::flow::sessions::{DirectionView, SessionPhase};
use crate::flow::{FlowState, HandOverStats, SessionView};
use crate::packet::MacAddr;

/// What there is, in short: the container `summary`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// The backend's version.
    pub version: String,
    /// Seconds since the backend started.
    pub uptime: u32,
    /// The elements it serves.
    #[serde(default)]
    pub element: Vec<ElementSummary>,
}

/// An element, in short.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ElementSummary {
    /// Its name.
    pub name: String,
    /// Sessions in its table.
    pub sessions: u32,
    /// Sessions its table has room for.
    pub sessions_max: u32,
    /// Its vNICs' names.
    #[serde(default)]
    pub vnic: Vec<String>,
}

/// Where a direction of a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowStatus {
    /// Waits for proof of forwarding; packets go to the guest.
    Pending,
    /// Proved; packets park until the guest's last one is out.
    Draining,
    /// Packets go around the guest.
    Active,
    /// The session ends; packets go to the guest.
    Closing,
}

impl FlowStatus {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Draining => "draining",
            Self::Active => "active",
            Self::Closing => "closing",
        }
    }
}

impl From<FlowState> for FlowStatus {
    fn from(state: FlowState) -> Self {
        match state {
            FlowState::Pending => Self::Pending,
            FlowState::Draining => Self::Draining,
            FlowState::Active => Self::Active,
            FlowState::Closing => Self::Closing,
        }
    }
}

/// One direction of a session, now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlowReport {
    /// Where it stands.
    pub state: FlowStatus,
    /// Wire packets that went around the guest.
    #[serde(with = "u64_text")]
    pub packets: u64,
    /// L3 bytes of those.
    #[serde(with = "u64_text")]
    pub octets: u64,
    /// Next hop's MAC in use, given or learned; absent until known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_mac: Option<MacAddr>,
    /// Source MAC in use, given or learned; absent until known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_mac: Option<MacAddr>,
}

impl From<&DirectionView> for FlowReport {
    fn from(view: &DirectionView) -> Self {
        let known = |mac: MacAddr| (mac != MacAddr::default()).then_some(mac);
        let (destination, source) = view.macs;
        Self {
            state: view.state.into(),
            packets: view.totals.packets,
            octets: view.totals.bytes,
            destination_mac: known(destination),
            source_mac: known(source),
        }
    }
}

/// Where a session stands as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Accepted; its place in the table is not free yet.
    Entering,
    /// In the table.
    Live,
    /// In the table; its packets go to the guest until its flows are replaced.
    Replacing,
    /// It ends; its packets go to the guest.
    Closing,
}

impl From<SessionPhase> for Phase {
    fn from(phase: SessionPhase) -> Self {
        match phase {
            SessionPhase::Entering => Self::Entering,
            SessionPhase::Live => Self::Live,
            SessionPhase::Replacing => Self::Replacing,
            SessionPhase::Closing(_) => Self::Closing,
        }
    }
}

impl Phase {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Entering => "entering",
            Self::Live => "live",
            Self::Replacing => "replacing",
            Self::Closing => "closing",
        }
    }
}

/// A session's status, now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionStatus {
    /// The backend's number for it, unique while the backend runs.
    #[serde(with = "u64_text")]
    pub id: u64,
    /// Where it stands.
    pub phase: Phase,
    /// Why it closes; a close code, present while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_code: Option<String>,
    /// Seconds since it was offloaded.
    pub age: u32,
    /// Seconds since either direction moved.
    pub idle: u32,
    /// The guest's transit time when it was handed over, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit: Option<u32>,
    /// Drains that met a bound.
    pub drain_bounds: u32,
    /// How often a direction was handed over.
    #[serde(default)]
    pub hand_overs: u32,
    /// Of these, at a bound.
    #[serde(default)]
    pub forced: u32,
    /// Packets that may have been overtaken at hand-overs.
    #[serde(default)]
    pub overtaken: u32,
    /// Parked packets that went to the guest at a bound.
    #[serde(default)]
    pub returned: u32,
    /// Parked packets that found no room when they were released.
    #[serde(default)]
    pub lost: u32,
    /// The original direction, if it is offloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<FlowReport>,
    /// The reply direction, if it is offloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<FlowReport>,
}

/// A session as it was asked for, and its status. What precedes `status` can be
/// offered again as it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SessionReport {
    /// As asked for; leaves at their default are left out (RFC 6243, trim).
    #[serde(flatten)]
    pub session: Session,
    /// How it goes.
    pub status: SessionStatus,
}

impl SessionStatus {
    /// The status that `view` shows.
    pub fn new(view: &SessionView) -> Self {
        let [original, reply] = &view.directions;
        let number = |value: u128| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            id: view.session.0,
            phase: view.phase.into(),
            close_code: match view.phase {
                SessionPhase::Closing(code) => Some(code.name().to_owned()),
                SessionPhase::Entering | SessionPhase::Live | SessionPhase::Replacing => None,
            },
            age: number(u128::from(view.age.as_secs())),
            idle: number(u128::from(view.idle.as_secs())),
            transit: view.transit.map(|transit| number(transit.as_micros())),
            drain_bounds: view.drain_bounds,
            hand_overs: view.tally.hand_overs,
            forced: view.tally.forced,
            overtaken: view.tally.toll.overtaken,
            returned: view.tally.toll.returned,
            lost: view.tally.toll.lost,
            original: original.as_ref().map(FlowReport::from),
            reply: reply.as_ref().map(FlowReport::from),
        }
    }
}

impl SessionReport {
    /// The report of a session of the element whose vNICs are `vnics`.
    ///
    /// # Errors
    /// The session was not asked for through this model.
    pub fn new(view: &SessionView, vnics: &dyn VnicNames) -> Result<Self, NotInModel> {
        Ok(Self {
            session: from_request(&view.request, vnics)?,
            status: SessionStatus::new(view),
        })
    }
}

/// The sessions of an element.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sessions {
    /// In no particular order.
    #[serde(default)]
    pub session: Vec<SessionReport>,
}

/// One queue pair of a device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Queue {
    /// Its number, from 0.
    pub queue: u16,
    /// Whether both rings run.
    pub running: bool,
    /// Why a ring stopped by fault, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Frames received from the peer.
    #[serde(with = "u64_text")]
    pub rx_frames: u64,
    /// Bytes of those frames.
    #[serde(with = "u64_text")]
    pub rx_octets: u64,
    /// Frames handed to the peer.
    #[serde(with = "u64_text")]
    pub tx_frames: u64,
    /// Bytes of those frames.
    #[serde(with = "u64_text")]
    pub tx_octets: u64,
    /// Frames discarded on receive.
    #[serde(with = "u64_text")]
    pub rx_discarded: u64,
    /// Frames discarded on transmit.
    #[serde(with = "u64_text")]
    pub tx_discarded: u64,
}

/// One device: the guest's side or the uplink of a vNIC.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceReport {
    /// `vhost-user`, `tap` or `xdp`.
    pub kind: String,
    /// Socket path or interface name.
    pub name: String,
    /// Whether a peer is connected (tap and xdp: the link is up).
    pub connected: bool,
    /// Negotiated features.
    #[serde(default)]
    pub feature: Vec<String>,
    /// How often a peer connected.
    #[serde(with = "u64_text")]
    pub connections: u64,
    /// How often a ring was stopped by fault.
    #[serde(with = "u64_text")]
    pub faults: u64,
    /// Frames of a shared device that are no vNIC's.
    #[serde(with = "u64_text")]
    pub unclaimed: u64,
    /// Its queue pairs.
    #[serde(default)]
    pub queue: Vec<Queue>,
}

/// A vNIC: two devices and what lies between them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VnicReport {
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Where the guest sees it on its bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_path: Option<String>,
    /// Its L3 MTU, bytes; backends of the model of 2026-11-23 do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The guest's side.
    pub guest: DeviceReport,
    /// The host's side.
    pub uplink: DeviceReport,
}

/// The ports of an element.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ports {
    /// One entry per vNIC.
    #[serde(default)]
    pub vnic: Vec<VnicReport>,
}

/// Packets and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Wire packets.
    #[serde(with = "u64_text")]
    pub packets: u64,
    /// L3 bytes.
    #[serde(with = "u64_text")]
    pub octets: u64,
}

/// A count under a stable name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Count {
    /// The reason's or the code's name.
    pub name: String,
    /// How many.
    #[serde(with = "u64_text")]
    pub count: u64,
}

/// Counts by name, in their order.
pub fn counts(named: impl IntoIterator<Item = (&'static str, u64)>) -> Vec<Count> {
    let count = |(name, count): (&str, u64)| Count {
        name: name.to_owned(),
        count,
    };
    named.into_iter().map(count).collect()
}

/// The flow table of an element.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TableStatistics {
    /// Sessions in it.
    pub sessions: u32,
    /// Sessions it has room for.
    pub sessions_max: u32,
    /// Requests refused because it was full.
    #[serde(with = "u64_text")]
    pub refused_full: u64,
}

/// How flows moved to the fast path, since the backend started.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HandOverStatistics {
    /// Proofs of forwarding seen.
    #[serde(with = "u64_text")]
    pub proved: u64,
    /// Flows that became active.
    #[serde(with = "u64_text")]
    pub activated: u64,
    /// Draining flows that the guest sent otherwise than requested.
    #[serde(with = "u64_text")]
    pub disproved: u64,
    /// Drains that met a bound of frames, bytes or time.
    #[serde(with = "u64_text")]
    pub drain_bounds: u64,
    /// Of these, flows that became active all the same, where configured.
    #[serde(with = "u64_text")]
    pub forced: u64,
    /// Frames parked.
    #[serde(with = "u64_text")]
    pub parked_frames: u64,
    /// Of these, released to the egress uplink.
    #[serde(with = "u64_text")]
    pub released_to_egress: u64,
    /// Of these, released to the guest.
    #[serde(with = "u64_text")]
    pub released_to_guest: u64,
    /// Of those released, lost for want of room.
    #[serde(default, with = "u64_text")]
    pub released_lost: u64,
    /// Packets that may have been overtaken.
    #[serde(default, with = "u64_text")]
    pub overtaken: u64,
    /// How often the guest's transit time was measured.
    #[serde(default, with = "u64_text")]
    pub transits: u64,
    /// The shortest, microseconds.
    #[serde(default, with = "u64_text")]
    pub transit_min: u64,
    /// The mean of all.
    #[serde(default, with = "u64_text")]
    pub transit_mean: u64,
    /// The guest's transit time as measured last, from markers, microseconds.
    #[serde(with = "u64_text")]
    pub transit_last: u64,
    /// The same, smoothed over about eight measurements.
    #[serde(with = "u64_text")]
    pub transit_smoothed: u64,
    /// The longest.
    #[serde(with = "u64_text")]
    pub transit_max: u64,
}

impl From<&HandOverStats> for HandOverStatistics {
    fn from(stats: &HandOverStats) -> Self {
        Self {
            proved: stats.proved,
            activated: stats.activated,
            disproved: stats.disproved,
            drain_bounds: stats.drain_bounds,
            forced: stats.forced,
            parked_frames: stats.parked_frames,
            released_to_egress: stats.released_to_egress,
            released_to_guest: stats.released_to_guest,
            released_lost: stats.released_lost,
            overtaken: stats.overtaken,
            transits: stats.transits,
            transit_min: stats.transit_us_min,
            transit_mean: stats
                .transit_us_sum
                .checked_div(stats.transits)
                .unwrap_or(0),
            transit_last: stats.transit_us_last,
            transit_smoothed: stats.transit_us_ewma,
            transit_max: stats.transit_us_max,
        }
    }
}

/// The counters of an element. Hits, punts and drops of frames from uplinks are
/// disjoint and add up to `from-uplink`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Statistics {
    /// What its uplinks brought.
    pub from_uplink: Traffic,
    /// What the guest sent.
    pub from_guest: Traffic,
    /// What went around the guest.
    pub forwarded: Traffic,
    /// What the guest sent and its paired uplinks took.
    pub passed: Traffic,
    /// Packets parked now, while their flows drain.
    #[serde(with = "u64_text")]
    pub parked: u64,
    /// Nanoseconds its worker spent on rounds that moved its frames.
    #[serde(default, with = "u64_text")]
    pub busy_time: u64,
    /// CPU time of workers spent on the element, nanoseconds.
    #[serde(default, with = "u64_text")]
    pub cpu_time: u64,
    /// Packets handed to the guest, by reason.
    #[serde(default)]
    pub punted: Vec<Count>,
    /// Packets lost, by reason.
    #[serde(default)]
    pub dropped: Vec<Count>,
    /// Sessions ended, by close code.
    #[serde(default)]
    pub closed: Vec<Count>,
    /// The flow table.
    pub table: TableStatistics,
    /// How flows moved to the fast path.
    pub hand_over: HandOverStatistics,
}
