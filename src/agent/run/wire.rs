//! The real kernel and the real host, and the agent made of them.
//!
//! *Promises*: news are heard before the table is read for the first time, so that nothing that
//! happens in between is missed.
//! *Refuses*: to start where the kernel lacks what is needed.
//! *Caller's duty*: a current-thread tokio runtime in the guest's network namespace.
//! *Standard*: none.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{ConntrackNews, FromHost, Host, HostNews, Kernel, NetworkNews, Order, Parts, drive};
use crate::agent::channel::{self, Channel, ChannelError, ElementView};
use crate::agent::config::{self, Accounting, Config};
use crate::agent::connection::{Connection, ConntrackEvent};
use crate::agent::core::ports::Vnic;
use crate::agent::core::settings::{Mark, Mode, Revocation, Settings, Switches};
use crate::agent::core::{CallError, Core, Element, Offered, Outcome, Reprove};
use crate::agent::kernel::{self, ConntrackEvents, EventMode, Groups, KernelError, NetworkEvents};
use crate::agent::network::{Bridged, Hazard, IfIndex, Links, NetworkChange, Route, RouteQuery};
use crate::agent::service::{self, AgentError};
use crate::agent::status::Ask;
use crate::api::reprove::ReproveStatus;
use crate::api::sync::SyncStatus;
use crate::api::{OffloadStatus, Session, SessionKey};

/// Sessions that a status shows.
const SHOWN: usize = 1_000;

/// Offloads, until it is told to end.
///
/// # Errors
/// What of the kernel is missing, or that it tells no news any more.
pub(crate) async fn offload(parts: service::Parts) -> Result<(), AgentError> {
    let service::Parts {
        config,
        channel,
        from_host,
        asks,
        end,
    } = parts;
    let kernel = kernel::Kernel::open().await?;
    prepare(&kernel, &config);
    let parts = Parts {
        kernel: Rc::new(kernel),
        host: Rc::new(RealHost(channel)),
        conntrack: ConntrackEvents::open(Groups::ALL).map_err(KernelError::from)?,
        network: NetworkEvents::open().await.map_err(KernelError::from)?,
        from_host: HostFeed(from_host),
    };
    let core = Core::new(settings(&config));
    let (orders, received) = mpsc::channel(4);
    tokio::select! {
        ended = drive(core, parts, received) => Ok(ended.map_err(KernelError::from)?),
        () = pass_on(asks, end, orders) => Ok(()),
    }
}

/// People's questions and orders, in the driver's words, for ever.
async fn pass_on(
    mut asks: mpsc::Receiver<Ask>,
    end: oneshot::Receiver<()>,
    orders: mpsc::Sender<Order>,
) {
    let answer = async {
        while let Some(ask) = asks.recv().await {
            // Who asked may have gone; the driver ends with its last order.
            let _gone = match ask {
                Ask::Status(answer) => show(&orders, answer).await,
                Ask::Mode(mode, done) => {
                    orders.send(Order::Mode(self::mode(mode), done)).await.ok()
                }
            };
        }
        std::future::pending().await
    };
    tokio::select! {
        _ended = end => {
            let _gone = orders.send(Order::End).await;
        }
        () = answer => {}
    }
    std::future::pending().await
}

async fn show(
    orders: &mpsc::Sender<Order>,
    answer: oneshot::Sender<serde_json::Value>,
) -> Option<()> {
    let (shown, snapshot) = oneshot::channel();
    orders.send(Order::Show(SHOWN, shown)).await.ok()?;
    let value = serde_json::to_value(snapshot.await.ok()?).ok()?;
    answer.send(value).ok()
}

/// Sysctls that decide how well the agent sees.
fn prepare(kernel: &kernel::Kernel, config: &Config) {
    let settings = kernel.settings();
    if !settings.accounting {
        let enabled = match config.offload.accounting {
            Accounting::Enable => kernel.enable_accounting(),
            Accounting::Leave => Err(io::Error::other("`accounting` is \"leave\"")),
        };
        match enabled {
            Ok(()) => log::info!("connections that begin from now on are counted"),
            Err(error) => log::warn!(
                "the kernel does not count packets ({error}), so connections are offloaded by age \
                 alone: set net.netfilter.nf_conntrack_acct=1"
            ),
        }
    }
    if settings.events == EventMode::Never {
        log::warn!(
            "the kernel tells no news of connections, so ends are noticed late: set \
             net.netfilter.nf_conntrack_events=1"
        );
    }
    if !settings.forwarding4 && !settings.forwarding6 {
        log::warn!("this guest forwards nothing: set net.ipv4.ip_forward=1");
    }
}

/// The owner's settings, as the core takes them.
fn settings(config: &Config) -> Settings {
    let Config {
        offload,
        switches,
        revocation,
        ..
    } = config;
    let bits = |of: config::Mark| Mark {
        value: of.value,
        mask: of.mask,
    };
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Settings {
        mode: mode(config.agent.mode),
        switches: Switches {
            opt_out: switches.opt_out.map(bits),
            opt_in: switches.opt_in.map(bits),
            is_opt_in_only: switches.opt_in_only,
            vnics: config.interfaces.clone(),
            interfaces_off: switches.interfaces_off.clone(),
            prefixes_off: switches.prefixes_off.clone(),
            prefixes_on: switches.prefixes_on.clone(),
            ports_off: switches.ports_off.clone(),
            hazards_ignored: offload.ignore_hazards.clone(),
        },
        age_min: offload.minimum_age,
        rate_min: offload.minimum_rate,
        hand_over: offload.hand_over,
        revocation: match revocation.mode {
            config::Revocation::Strict => Revocation::Strict,
            config::Revocation::Staged => Revocation::Staged,
        },
        staged_rate: revocation.rate,
        reprove_every: revocation.backstop,
        proof_timeout: revocation.proof_timeout,
        watched_max: count(offload.watched),
        sessions_max: count(offload.sessions),
        answer_timeout: Duration::from_millis(config.serial.withdraw_timeout_ms.into()),
        ..Settings::default()
    }
}

const fn mode(mode: config::Mode) -> Mode {
    match mode {
        config::Mode::On => Mode::On,
        config::Mode::Observe => Mode::Observe,
        config::Mode::Pause => Mode::Pause,
        config::Mode::Off => Mode::Off,
    }
}

impl Kernel for kernel::Kernel {
    async fn connections(&self, each: impl FnMut(Connection)) -> io::Result<()> {
        self.connections(each).await
    }

    async fn connection(&self, of: &Connection) -> io::Result<Option<Connection>> {
        self.connection(of).await
    }

    async fn refresh(&self, of: &Connection, timeout: Duration) -> io::Result<bool> {
        self.refresh(of, timeout).await
    }

    async fn be_liberal(&self, of: &Connection) -> io::Result<bool> {
        self.be_liberal(of).await
    }

    async fn links(&self) -> io::Result<Links> {
        self.links().await
    }

    async fn route(&self, query: &RouteQuery) -> io::Result<Route> {
        self.route(query).await
    }

    async fn use_neighbour(
        &self,
        on: IfIndex,
        address: IpAddr,
        bridged: Option<Bridged>,
    ) -> io::Result<()> {
        self.use_neighbour(on, address).await?;
        match bridged {
            Some(bridged) => self.use_bridged(on, address, bridged).await,
            None => Ok(()),
        }
    }

    async fn hazards(&self) -> io::Result<Vec<Hazard>> {
        self.hazards().await
    }
}

impl ConntrackNews for ConntrackEvents {
    async fn next(&mut self) -> io::Result<ConntrackEvent> {
        self.next().await
    }

    fn follow(&mut self, follow: bool) -> io::Result<()> {
        self.set_groups(Groups {
            new: follow,
            update: follow,
            destroy: true,
        })
    }
}

impl NetworkNews for NetworkEvents {
    async fn next(&mut self) -> io::Result<NetworkChange> {
        self.next().await
    }
}

/// The channel's news.
struct HostFeed(mpsc::Receiver<channel::FromHost>);

impl HostNews for HostFeed {
    async fn next(&mut self) -> Option<FromHost> {
        Some(match self.0.recv().await? {
            channel::FromHost::Connected => FromHost::Line(true),
            channel::FromHost::Disconnected => FromHost::Line(false),
            channel::FromHost::Event(event) => FromHost::Event(Box::new(event)),
            channel::FromHost::EventsLost => FromHost::EventsLost,
        })
    }
}

/// The host at the other end of the channel.
struct RealHost(Channel);

impl From<ChannelError> for CallError {
    fn from(error: ChannelError) -> Self {
        log::debug!("a call came to nothing: {error}");
        match error {
            ChannelError::StaleEpoch => Self::StaleEpoch,
            ChannelError::Refused { status: 501, .. } => Self::NotOffered,
            _ if error.is_perhaps_done() => Self::Lost,
            _ => Self::Refused,
        }
    }
}

impl From<ElementView> for Element {
    fn from(view: ElementView) -> Self {
        let vnics = view.vnics.into_iter().map(|vnic| Vnic {
            name: vnic.name,
            mac: vnic.mac,
            bus_path: vnic.bus_path,
            mtu: vnic.mtu,
        });
        Self {
            name: view.name,
            vnics: vnics.collect(),
            rate_min: Some(view.policy.minimum_rate),
            age_min: Some(Duration::from_secs(view.policy.minimum_age.into())),
            sessions_max: view.policy.sessions,
            asks_per_second: view.policy.requests_per_second,
        }
    }
}

/// What an answer about a session means.
const fn outcome(status: OffloadStatus) -> Outcome {
    match status {
        OffloadStatus::Offloaded | OffloadStatus::Replaced | OffloadStatus::Superseded => {
            Outcome::Taken
        }
        OffloadStatus::Unchanged => Outcome::Unchanged,
        OffloadStatus::TableFull | OffloadStatus::Quota => Outcome::NoRoom,
        OffloadStatus::Invalid | OffloadStatus::AccessDenied => Outcome::Refused,
    }
}

impl Host for RealHost {
    async fn open_epoch(&self) -> Result<Option<Duration>, CallError> {
        let opened = self.0.open_epoch().await?;
        Ok(opened
            .lease
            .map(|seconds| Duration::from_secs(seconds.into())))
    }

    async fn element(&self) -> Result<Element, CallError> {
        Ok(self.0.element().await?.into())
    }

    async fn offload(&self, sessions: Vec<Session>) -> Result<Vec<Offered>, CallError> {
        let results = self.0.offload(sessions).await?;
        let offered = results.into_iter().map(|of| {
            if let Some(error) = &of.error {
                log::debug!("{} was refused: {}", of.key, error.error_message);
            }
            Offered {
                outcome: outcome(of.result),
                key: of.key,
            }
        });
        Ok(offered.collect())
    }

    async fn withdraw(&self, keys: Vec<SessionKey>) -> Result<(), CallError> {
        self.0.withdraw(keys).await?;
        Ok(())
    }

    async fn reprove(&self, which: Reprove) -> Result<Vec<SessionKey>, CallError> {
        let which = match which {
            Reprove::All => channel::Reprove::All,
            Reprove::Keys(keys) => channel::Reprove::Keys(keys),
        };
        let results = self.0.reprove(which).await?.result;
        let is_absent = |status| status == ReproveStatus::Absent;
        let absent = results.into_iter().filter(|of| is_absent(of.result));
        Ok(absent.map(|of| of.key).collect())
    }

    async fn sync(&self, wanted: Vec<Session>) -> Result<Vec<Offered>, CallError> {
        let results = self.0.sync(&wanted).await?;
        let offered = results.into_iter().map(|of| Offered {
            outcome: match of.result {
                SyncStatus::Kept => Outcome::Unchanged,
                // Named as there, and gone before it could be offered.
                SyncStatus::Absent => Outcome::NoRoom,
                SyncStatus::Offload(status) => outcome(status),
            },
            key: of.key,
        });
        Ok(offered.collect())
    }

    fn fall_silent(&self) {
        self.0.fall_silent();
    }
}
