//! The configuration of `shunt backend --config FILE`.
//!
//! *Promises*: a [`Config`] has been checked whole: numbers within their limits, names and
//! sockets used once. An error says the line, what is wrong there and what to do.
//! *Refuses*: unknown keys, so that a misspelt one does not silently keep its default.
//! *Caller's duty*: [`check_memory`] before the tables are made. Whether a tap or a
//! socket's directory exists shows when it is opened.
//! *Standard*: TOML 1.0. Every key is described in `docs/config.md`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::api::bounds::{Bounds, VnicBounds};
use crate::api::config::Prefix;
use crate::api::tls::Files;
use crate::datapath::pace::Polling;
use crate::packet::{MacAddr, VlanId};
use crate::port::xdp::CopyMode;

mod check;
mod error;
mod inside;
mod memory;
#[cfg(test)]
mod shared_tests;
mod shield;
#[cfg(test)]
mod shield_tests;
#[cfg(test)]
mod tests;
mod values;

pub use error::{ConfigError, Place, Problem};
pub use inside::{SerialConfig, SerialMode, UpConfig};
pub use memory::check_memory;
pub use shield::ShieldConfig;

/// Everything in the file.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The process.
    #[serde(default)]
    pub backend: BackendConfig,
    /// Controllers on other machines.
    pub control_tls: Option<ControlTls>,
    /// How packets are kept in order while a session moves to the fast path.
    #[serde(default)]
    pub hand_over: HandOverConfig,
    /// How long sessions outlive their element's presence; for ever if absent.
    pub lease: Option<LeaseConfig>,
    /// Devices that several vNICs have as their uplink.
    #[serde(default, rename = "shared-uplink")]
    pub shared_uplinks: Vec<SharedUplinkConfig>,
    /// What `shunt up` runs beside the backend.
    #[serde(default)]
    pub up: UpConfig,
    /// The elements served, at least one.
    #[serde(default, rename = "element")]
    pub elements: Vec<ElementConfig>,
}

/// `[backend]`: the process.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BackendConfig {
    /// The socket that the command line and the controller dial.
    #[serde(deserialize_with = "values::socket")]
    pub control: PathBuf,
    /// Worker threads, 1 to 64.
    #[serde(deserialize_with = "values::within::<_, u16, 1, 64>")]
    pub workers: u16,
    /// How workers wait for frames.
    pub polling: Polling,
}

impl Default for BackendConfig {
    fn default() -> Self {
        Self {
            control: PathBuf::from("/run/shunt/backend.sock"),
            workers: 1,
            polling: Polling::Adaptive,
        }
    }
}

/// `[control-tls]`: a listener with mutual TLS for controllers on other machines.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ControlTls {
    /// Address and port.
    pub listen: SocketAddr,
    /// The backend's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of controllers.
    pub client_ca: PathBuf,
    /// DNS names of certificates that may ask.
    pub controllers: Vec<String>,
}

impl ControlTls {
    /// The TLS part.
    pub fn files(&self) -> Files {
        Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authorities: self.client_ca.clone(),
        }
    }
}

/// `[hand-over]`: the bounds, per element, of the ordered hand-over's parking
/// (`docs/architecture.md`, hand-over). At the first that is reached the parked frames go to
/// the guest, in order, and the flow tries again later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HandOverConfig {
    /// Parked frames, 1 to 65,536.
    #[serde(deserialize_with = "values::within::<_, u32, 1, 65_536>")]
    pub park_frames: u32,
    /// Bytes of parked frames, 65,597 (one of the largest) to 1 GiB.
    #[serde(
        deserialize_with = "values::within::<_, u32, { crate::packet::FRAME_MAX as u64 }, 1_073_741_824>"
    )]
    pub park_bytes: u32,
    /// Milliseconds the oldest frame is parked, 1 to 1,000.
    #[serde(deserialize_with = "values::within::<_, u32, 1, 1_000>")]
    pub park_time_ms: u32,
    /// Move the flow at the bound anyway, at the price of order (counted).
    pub forced: bool,
}

impl Default for HandOverConfig {
    fn default() -> Self {
        Self {
            park_frames: 1_024,
            park_bytes: 4 * 1_024 * 1_024,
            park_time_ms: 20,
            forced: false,
        }
    }
}

/// `[lease]`: sessions live while their element's agent is seen on this host.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LeaseConfig {
    /// Where the relay tells presence.
    #[serde(deserialize_with = "values::socket")]
    pub socket: PathBuf,
    /// Milliseconds without presence, 1,500 to 3,600,000: the relay tells it every second.
    #[serde(deserialize_with = "values::within::<_, u32, 1_500, 3_600_000>")]
    pub timeout_ms: u32,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/shunt/presence.sock"),
            timeout_ms: 10_000,
        }
    }
}

/// `[[shared-uplink]]`: a device for several vNICs, also of different elements.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SharedUplinkConfig {
    /// Its name, unique in the file.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// Its queue pairs, 1 to 8, unless `device` says otherwise.
    #[serde(
        default = "default_queue_pairs",
        deserialize_with = "values::within::<_, u16, 1, 8>"
    )]
    pub queue_pairs: u16,
    /// L3 MTU in bytes, the most its vNICs can have; limits as a vNIC's.
    #[serde(
        default = "default_mtu",
        deserialize_with = "values::within::<_, u16, 68, 65_535>"
    )]
    pub mtu: u16,
    /// The device; not a shared one.
    pub device: UplinkConfig,
}

/// `[[element]]`: a VM and its vNICs.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ElementConfig {
    /// Its name, unique in the file.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// Quota of its table in sessions, 1 to 4,194,304.
    #[serde(
        default = "default_sessions",
        deserialize_with = "values::within::<_, u32, 1, 4_194_304>"
    )]
    pub sessions: u32,
    /// Wire packets a second that its guest is handed by uplinks, 1 to 100,000,000; absent:
    /// unlimited.
    #[serde(default, deserialize_with = "values::punt_rate")]
    pub punt_rate: Option<u32>,
    /// Sources of packets that leave untranslated, by vNICs that have none of their own.
    pub source_prefixes: Option<Vec<Prefix>>,
    /// Addresses that translations may use.
    pub translation_prefixes: Option<Vec<Prefix>>,
    /// The most shields that can be asked for, 0 to [`SHIELDS_MAX`].
    #[serde(
        default = "default_shield_quota",
        deserialize_with = "values::within::<_, u32, 0, { SHIELDS_MAX as u64 }>"
    )]
    pub shield_quota: u32,
    /// For `shunt up`: who it belongs to.
    #[serde(default = "inside::default_tenant", deserialize_with = "values::name")]
    pub tenant: String,
    /// For `shunt up`: its serial port; without one it can ask for nothing.
    pub serial: Option<SerialConfig>,
    /// Its vNICs, 1 to [`VNICS_MAX`].
    #[serde(default, rename = "vnic")]
    pub vnics: Vec<VnicConfig>,
    /// Operators' shields, at most [`SHIELDS_MAX`].
    #[serde(default, rename = "shield")]
    pub shields: Vec<ShieldConfig>,
}

/// The most shields of an element that an operator configures, and the most asked for.
pub const SHIELDS_MAX: usize = 4_096;

/// The most vNICs of an element.
pub const VNICS_MAX: usize = 256;

/// `[[element.vnic]]`: a vhost-user-net device of an element and its uplink.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VnicConfig {
    /// Its name, unique in the element.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// The vhost-user socket.
    #[serde(deserialize_with = "values::socket")]
    pub socket: PathBuf,
    /// Who listens on it.
    #[serde(default)]
    pub mode: SocketMode,
    /// Queue pairs offered, 1 to 8.
    #[serde(
        default = "default_queue_pairs",
        deserialize_with = "values::within::<_, u16, 1, 8>"
    )]
    pub queue_pairs: u16,
    /// The address the VMM gives the vNIC, unique in the element.
    #[serde(deserialize_with = "values::mac")]
    pub mac: MacAddr,
    /// Where the guest sees it on its bus, unique in the element.
    #[serde(default, deserialize_with = "values::bus_path")]
    pub bus_path: Option<String>,
    /// L3 MTU in bytes, 68 to 65,535 (with a tap as uplink 65,521, with AF_XDP 3,818).
    #[serde(
        default = "default_mtu",
        deserialize_with = "values::within::<_, u16, 68, 65_535>"
    )]
    pub mtu: u16,
    /// Sources of packets that leave by it untranslated; none: those of the element.
    pub source_prefixes: Option<Vec<Prefix>>,
    /// Its host side.
    pub uplink: UplinkConfig,
}

impl ElementConfig {
    /// What its sessions may use; `None`: the file does not bound them.
    pub fn bounds(&self) -> Option<Bounds> {
        let of_vnics = self.vnics.iter().map(|vnic| &vnic.source_prefixes);
        let mut given = of_vnics.chain([&self.source_prefixes, &self.translation_prefixes]);
        if given.all(Option::is_none) {
            return None;
        }
        let all = |given: &Option<Vec<Prefix>>| given.clone().unwrap_or_default();
        let vnics = self.vnics.iter().map(|vnic| VnicBounds {
            name: vnic.name.clone(),
            macs: vnic.macs(),
            sources: all(&vnic.source_prefixes),
        });
        let mut vnics: Vec<_> = vnics.collect();
        // The same whatever their order in the file.
        vnics.sort_by(|one, other| one.name.cmp(&other.name));
        Some(Bounds {
            vnics,
            sources: all(&self.source_prefixes),
            translations: all(&self.translation_prefixes),
            // Whoever may use the socket of this file is an operator.
            may_vouch: true,
        })
    }
}

impl UplinkConfig {
    /// Queue pairs of the uplink: `queue_pairs` of the vNIC or the shared uplink that has it,
    /// unless a tap or an interface was given its own number.
    pub fn queue_pairs(&self, queue_pairs: u16) -> u16 {
        match self {
            Self::Tap { queues, .. } | Self::Xdp { queues, .. } => queues.unwrap_or(queue_pairs),
            Self::VhostUser { .. } | Self::Shared { .. } => queue_pairs,
        }
    }
}

impl VnicConfig {
    /// The addresses of its guest.
    fn macs(&self) -> Vec<MacAddr> {
        let mut macs = vec![self.mac];
        if let UplinkConfig::Shared { extra_macs, .. } = &self.uplink {
            macs.extend(extra_macs);
        }
        macs
    }

    /// Whether the same devices serve it.
    pub fn is_served_as(&self, other: &Self) -> bool {
        let bare = |vnic: &Self| Self {
            source_prefixes: None,
            bus_path: None,
            ..vnic.clone()
        };
        bare(self) == bare(other)
    }

    /// Queue pairs of its uplink.
    pub fn uplink_queue_pairs(&self) -> u16 {
        self.uplink.queue_pairs(self.queue_pairs)
    }
}

/// Who listens on a vhost-user socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketMode {
    /// Shunt listens, the VMM connects.
    #[default]
    Server,
    /// The VMM listens, Shunt connects (and again, after a break).
    Client,
}

/// `[element.vnic.uplink]`: the host side of a vNIC.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "values::RawUplink")]
pub enum UplinkConfig {
    /// The host's own network stack.
    Tap {
        /// Interface name, 1 to 15 bytes.
        name: String,
        /// Network namespace by its name under `/run/netns`.
        netns: Option<String>,
        /// Queue pairs, 1 to 8; see [`UplinkConfig::queue_pairs`].
        queues: Option<u16>,
        /// Bytes that the host may have in work; no bound if absent.
        send_buffer: Option<u32>,
    },
    /// Another VM or a DPDK process as the physical side.
    VhostUser {
        /// The vhost-user socket.
        socket: PathBuf,
        /// Who listens on it.
        mode: SocketMode,
    },
    /// A network card or a veth, by AF_XDP.
    Xdp {
        /// Interface name, 1 to 15 bytes.
        interface: String,
        /// Network namespace by its name under `/run/netns`.
        netns: Option<String>,
        /// Receive queues, 1 to 8; see [`UplinkConfig::queue_pairs`].
        queues: Option<u16>,
        /// Whether frames are copied.
        mode: CopyMode,
    },
    /// A part of a device that several vNICs share.
    Shared {
        /// Name of the [`SharedUplinkConfig`].
        device: String,
        /// The vNIC's VLAN there; untagged frames if absent.
        vlan: Option<VlanId>,
        /// Addresses of the guest besides the vNIC's own (VRRP).
        extra_macs: Vec<MacAddr>,
    },
}

fn default_sessions() -> u32 {
    4_096
}

fn default_shield_quota() -> u32 {
    1_024
}

fn default_queue_pairs() -> u16 {
    1
}

fn default_mtu() -> u16 {
    1_500
}

impl Config {
    /// All quotas together, in sessions.
    pub fn sessions(&self) -> u64 {
        let quotas = self.elements.iter();
        quotas.map(|element| u64::from(element.sessions)).sum()
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError::Read`], or [`ConfigError::Invalid`] with the file and line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse_at(&text, Some(path))
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the line.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::parse_at(text, None)
    }

    /// The elements with serial ports, whom `shunt up` has its relay and controller serve.
    pub fn with_ports(&self) -> impl Iterator<Item = (&ElementConfig, &SerialConfig)> {
        let elements = self.elements.iter();
        elements.filter_map(|element| Some((element, element.serial.as_ref()?)))
    }

    fn parse_at(text: &str, file: Option<&Path>) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(text, file, &error))?;
        match check::find_problem(&config) {
            None => Ok(config),
            Some((key, problem)) => Err(ConfigError::at_key(text, file, &key, problem)),
        }
    }
}
