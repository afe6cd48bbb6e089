//! The way to the host: the serial port, HTTP/2 over it, and the rpcs of `shunt-offload`.
//!
//! | module | what |
//! |---|---|
//! | [`port`] | which port |
//! | `keep` | the task that has the port: opens it, connects, falls silent |
//! | `call` | one request and its answer |
//! | `events` | the stream of notifications |
//! | [`element`] | what the element is told of itself |
//! | [`reprove`] | the rpc `reprove` |
//!
//! *Promises*: one process has the port; it is opened again and connected again, with bounded
//! pauses, for ever. Every call ends in time. The epoch is kept over connections and put into
//! all calls that have one. What [`ChannelError::is_perhaps_done`] denies was not carried out.
//! Notifications come in order; where some may be missing, [`FromHost::EventsLost`] stands.
//! *Refuses*: calls while there is no connection, and those of an epoch where none is open.
//! *Caller's duty*: takes what [`FromHost`] tells; while nobody does, notifications wait on the
//! host, and are dropped there. Told [`ChannelError::StaleEpoch`], opens an epoch and syncs. A
//! tokio runtime with I/O and time.
//! *Standard*: `docs/serial.md`, `docs/control.md`, RFC 9113.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use serde::Serialize;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::api::events::{Event, RawEvent};
use crate::api::offload::{ENTRIES_MAX, OffloadInput, OffloadOutput, OffloadResult};
use crate::api::reprove::ReproveOutput;
use crate::api::shield::{
    Shield, ShieldInput, ShieldOutput, ShieldResult, Shields, UnshieldInput, UnshieldOutput,
    UnshieldResult,
};
use crate::api::sync::{KEYS_MAX, SyncInput, SyncOutput, SyncPage, SyncResult, SyncStep};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput};
use crate::api::{OpenEpochInput, OpenEpochOutput, Session, SessionKey, SyncStatus};
use crate::serial::Timing;

mod call;
pub mod element;
mod events;
mod keep;
pub mod port;
pub mod reprove;

pub use call::ChannelError;
pub use element::ElementView;
pub use keep::StartError;
pub use port::PortChoice;
pub use reprove::Reprove;

/// What [`FromHost`] may wait for its reader.
const TOLD_MAX: usize = 256;
/// Notifications that wait for another reader.
const RAW_MAX: usize = 1_024;
/// Attempts at a sync that others end.
const SYNC_ATTEMPTS: u32 = 3;
/// How much longer than the lease an agent is silent, so that the lease has surely run out.
const SILENCE_MORE: Duration = Duration::from_secs(2);

/// How the host is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The port.
    pub port: PortChoice,
    /// Times on the line; the relay's must agree.
    pub timing: Timing,
    /// How long a call may take.
    pub call_timeout: Duration,
    /// How long `withdraw` and `reprove` may take.
    pub withdraw_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: PortChoice::default(),
            timing: Timing::default(),
            call_timeout: Duration::from_secs(10),
            withdraw_timeout: Duration::from_secs(5),
        }
    }
}

/// What comes from the host without having been asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromHost {
    /// There is a connection; the host's controller need not answer yet.
    Connected,
    /// There is none any more.
    Disconnected,
    /// A notification; never `events-lost`.
    Event(Event),
    /// Notifications are missing here. Each connection begins with it.
    EventsLost,
}

/// How the way to the host is, for people.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The port, once it was open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PathBuf>,
    /// Whether the relay is heard.
    pub connected: bool,
    /// Connections so far.
    pub connections: u64,
    /// The epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Seconds that the agent may be unseen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<u32>,
    /// Calls sent.
    pub calls: u64,
    /// Calls that the host refused as a whole.
    pub refused: u64,
    /// Calls without an answer.
    pub unanswered: u64,
    /// Notifications that came.
    pub events: u64,
    /// How often some were missing.
    pub events_lost: u64,
    /// How often the agent fell silent so that its lease ran out.
    pub silences: u64,
    /// What is wrong now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// See the module. Clones are the same channel; with the last one it ends.
#[derive(Clone, Debug)]
pub struct Channel {
    shared: Arc<Shared>,
    _keeper: Arc<Keeping>,
}

/// The task that has the port.
#[derive(Debug)]
struct Keeping(JoinHandle<()>);

impl Drop for Keeping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What calls and the task share.
#[derive(Debug)]
struct Shared {
    options: Options,
    /// The present connection.
    current: watch::Sender<Option<Current>>,
    epoch: watch::Sender<Option<OpenEpochOutput>>,
    /// Until when nothing is said on the line.
    silent_until: watch::Sender<Option<Instant>>,
    report: watch::Sender<Report>,
    /// Counts what may have changed what the host has: connections, lost notifications.
    upheavals: watch::Sender<u64>,
    /// Notifications as they came, for others; `None` where some may be missing.
    raw: broadcast::Sender<Option<RawEvent>>,
}

/// A connection.
#[derive(Clone, Debug)]
struct Current {
    sender: SendRequest<Body>,
    /// Asks for another one.
    renew: Arc<Notify>,
}

impl Channel {
    /// Opens the port and keeps it. A port that is not there yet is waited for.
    ///
    /// # Errors
    /// Another process has the port, and keeps it.
    pub async fn start(options: Options) -> Result<(Self, mpsc::Receiver<FromHost>), StartError> {
        let line = keep::first(&options.port).await?;
        let shared = Arc::new(Shared {
            options,
            current: watch::Sender::new(None),
            epoch: watch::Sender::new(None),
            silent_until: watch::Sender::new(None),
            report: watch::Sender::default(),
            upheavals: watch::Sender::default(),
            raw: broadcast::Sender::new(RAW_MAX),
        });
        let (told, from_host) = mpsc::channel(TOLD_MAX);
        let keeper = tokio::spawn(keep::keep(Arc::clone(&shared), told, line));
        let channel = Self {
            shared,
            _keeper: Arc::new(Keeping(keeper)),
        };
        Ok((channel, from_host))
    }

    /// Begins an epoch, which all later calls belong to: the element's sessions are withdrawn.
    ///
    /// # Errors
    /// See [`ChannelError`], here and below.
    pub async fn open_epoch(&self) -> Result<OpenEpochOutput, ChannelError> {
        let input = OpenEpochInput::default();
        let output: OpenEpochOutput = self.call("open-epoch", &input).await?;
        self.shared.epoch.send_replace(Some(output.clone()));
        Ok(output)
    }

    /// Offers sessions, in calls as large as they may be. A result for each, in their order.
    ///
    /// After an error an earlier part may have been taken: offering all again is harmless.
    pub async fn offload(
        &self,
        mut sessions: Vec<Session>,
    ) -> Result<Vec<OffloadResult>, ChannelError> {
        let mut results = Vec::with_capacity(sessions.len());
        while !sessions.is_empty() {
            let later = sessions.split_off(sessions.len().min(ENTRIES_MAX));
            let input = OffloadInput {
                epoch: Some(self.epoch()?),
                session: std::mem::replace(&mut sessions, later),
                ..OffloadInput::default()
            };
            let wanted = input.session.len();
            let output: OffloadOutput = self.call("offload", &input).await?;
            results.extend(counted(output.result, wanted)?);
        }
        Ok(results)
    }

    /// Takes sessions back. How many were there.
    pub async fn withdraw(&self, keys: Vec<SessionKey>) -> Result<u64, ChannelError> {
        let mut withdrawn = 0;
        for keys in keys.chunks(ENTRIES_MAX) {
            let input = WithdrawInput {
                epoch: Some(self.epoch()?),
                key: keys.to_vec(),
                ..WithdrawInput::default()
            };
            withdrawn += self.take_back(&input).await?;
        }
        Ok(withdrawn)
    }

    /// Takes every session of the element back. How many there were.
    pub async fn withdraw_all(&self) -> Result<u64, ChannelError> {
        let input = WithdrawInput {
            epoch: Some(self.epoch()?),
            all: true,
            ..WithdrawInput::default()
        };
        self.take_back(&input).await
    }

    async fn take_back(&self, input: &WithdrawInput) -> Result<u64, ChannelError> {
        let patience = self.shared.options.withdraw_timeout;
        let output: WithdrawOutput = self.shared.rpc("withdraw", input, patience).await?;
        Ok(output.withdrawn)
    }

    /// Has sessions proved again.
    pub async fn reprove(&self, which: Reprove) -> Result<ReproveOutput, ChannelError> {
        let mut all = ReproveOutput::default();
        for input in reprove::inputs(which, self.epoch()?) {
            let patience = self.shared.options.withdraw_timeout;
            let output: ReproveOutput = self.shared.rpc("reprove", &input, patience).await?;
            all.reproved += output.reproved;
            all.result.extend(output.result);
        }
        Ok(all)
    }

    /// Makes the element's sessions those of `wanted`, whose keys differ. A result for each, in
    /// their order: what is there under its key is `kept` as it was last offered, and what is
    /// not, is offered.
    pub async fn sync(&self, wanted: &[Session]) -> Result<Vec<SyncResult>, ChannelError> {
        for _ in 1..SYNC_ATTEMPTS {
            match self.try_sync(wanted).await {
                Err(ChannelError::StaleSync) => {}
                outcome => return outcome,
            }
        }
        self.try_sync(wanted).await
    }

    async fn try_sync(&self, wanted: &[Session]) -> Result<Vec<SyncResult>, ChannelError> {
        let begun = self.sync_step(SyncStep::Begin).await?;
        let sync = begun.sync.ok_or(ChannelError::Unreadable)?;
        // Keys are not counted against the rate at which sessions may be asked for.
        let mut results = Vec::with_capacity(wanted.len());
        for sessions in wanted.chunks(KEYS_MAX) {
            let page = SyncPage {
                sync,
                key: sessions.iter().map(|session| session.key.clone()).collect(),
                session: Vec::new(),
            };
            let output = self.sync_step(SyncStep::Page(page)).await?;
            results.extend(counted(output.result, sessions.len())?);
        }
        let absent: Vec<usize> = results
            .iter()
            .enumerate()
            .filter(|(_, result): &(_, &SyncResult)| result.result == SyncStatus::Absent)
            .map(|(place, _)| place)
            .collect();
        for places in absent.chunks(ENTRIES_MAX) {
            let page = SyncPage {
                sync,
                key: Vec::new(),
                session: places
                    .iter()
                    .filter_map(|place| wanted.get(*place).cloned())
                    .collect(),
            };
            let output = self.sync_step(SyncStep::Page(page)).await?;
            let offered = counted(output.result, places.len())?;
            for (place, result) in places.iter().zip(offered) {
                if let Some(own) = results.get_mut(*place) {
                    *own = result;
                }
            }
        }
        self.sync_step(SyncStep::End(sync)).await?;
        Ok(results)
    }

    async fn sync_step(&self, step: SyncStep) -> Result<SyncOutput, ChannelError> {
        let input = SyncInput {
            epoch: Some(self.epoch()?),
            ..SyncInput::of(step)
        };
        self.call("sync", &input).await
    }

    /// Asks for shields. A result for each, in their order.
    ///
    /// Shields live in no epoch: they survive the lease.
    pub async fn shield(
        &self,
        mut shields: Vec<Shield>,
    ) -> Result<Vec<ShieldResult>, ChannelError> {
        let mut results = Vec::with_capacity(shields.len());
        while !shields.is_empty() {
            let later = shields.split_off(shields.len().min(ENTRIES_MAX));
            let input = ShieldInput {
                shield: std::mem::replace(&mut shields, later),
                ..ShieldInput::default()
            };
            let wanted = input.shield.len();
            let output: ShieldOutput = self.call("shield", &input).await?;
            results.extend(counted(output.result, wanted)?);
        }
        Ok(results)
    }

    /// Ends shields.
    pub async fn unshield(
        &self,
        names: Vec<SessionKey>,
    ) -> Result<Vec<UnshieldResult>, ChannelError> {
        let mut results = Vec::with_capacity(names.len());
        for names in names.chunks(ENTRIES_MAX) {
            let input = UnshieldInput {
                name: names.to_vec(),
                ..UnshieldInput::default()
            };
            let output: UnshieldOutput = self.call("unshield", &input).await?;
            results.extend(counted(output.result, names.len())?);
        }
        Ok(results)
    }

    /// The shields of the element, operators' too.
    pub async fn shields(&self) -> Result<Shields, ChannelError> {
        element::shields(&self.shared).await
    }

    /// What the element is told of itself.
    pub async fn element(&self) -> Result<ElementView, ChannelError> {
        element::read(&self.shared).await
    }

    /// Sends any request, and gives its answer once the head is there. How long that takes, the
    /// relay bounds; a stream lasts as long as it lasts.
    pub async fn forward(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, ChannelError> {
        self.shared.forward(request).await
    }

    /// Says nothing on the line for so long that the lease has run out, then connects anew. The
    /// epoch is forgotten: its sessions have ended.
    pub fn fall_silent(&self) {
        self.shared.fall_silent();
    }

    /// Notifications as they come, for another reader; `None` where some may be missing. The host
    /// has one stream for the element, which is the channel's own.
    pub fn raw_events(&self) -> broadcast::Receiver<Option<RawEvent>> {
        self.shared.raw.subscribe()
    }

    /// The element's name.
    pub async fn name(&self) -> Result<String, ChannelError> {
        element::name(&self.shared).await
    }

    /// Changes whenever the host may have lost what it was asked to keep.
    pub fn upheavals(&self) -> watch::Receiver<u64> {
        self.shared.upheavals.subscribe()
    }

    /// How it is.
    pub fn report(&self) -> Report {
        let epoch = self.shared.epoch.borrow().clone();
        Report {
            connected: self.shared.current.borrow().is_some(),
            lease: epoch.as_ref().and_then(|epoch| epoch.lease),
            epoch: epoch.map(|epoch| epoch.epoch),
            ..self.shared.report.borrow().clone()
        }
    }

    fn epoch(&self) -> Result<u64, ChannelError> {
        let epoch = self.shared.epoch.borrow();
        epoch
            .as_ref()
            .map(|epoch| epoch.epoch)
            .ok_or(ChannelError::StaleEpoch)
    }

    async fn call<I: Serialize, O: serde::de::DeserializeOwned>(
        &self,
        rpc: &str,
        input: &I,
    ) -> Result<O, ChannelError> {
        let patience = self.shared.options.call_timeout;
        self.shared.rpc(rpc, input, patience).await
    }
}

impl Shared {
    fn fall_silent(&self) {
        let lease = self.epoch.send_replace(None).and_then(|epoch| epoch.lease);
        let lease = Duration::from_secs(lease.unwrap_or(0).into());
        // The relay notices first, then the lease runs.
        let time = self.options.timing.silence + lease + SILENCE_MORE;
        self.silent_until.send_replace(Some(Instant::now() + time));
        self.report.send_modify(|report| report.silences += 1);
        log::error!(
            "the host does not take sessions back: silent for {} s, so that their lease runs out",
            time.as_secs()
        );
    }

    /// Something is wrong, or nothing any more. Each trouble is told once.
    fn trouble(&self, trouble: Option<String>) {
        let is_new = self.report.send_if_modified(|report| {
            let before = std::mem::replace(&mut report.trouble, trouble.clone());
            before != trouble
        });
        if is_new && let Some(trouble) = trouble {
            log::warn!("{trouble}");
        }
    }
}

/// The results of a call, which are as many as were `wanted`.
fn counted<T>(results: Vec<T>, wanted: usize) -> Result<Vec<T>, ChannelError> {
    if results.len() == wanted {
        Ok(results)
    } else {
        Err(ChannelError::Unreadable)
    }
}
