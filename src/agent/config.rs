//! The configuration of `shunt agent`, a file that need not be there.
//!
//! *Promises*: a [`Config`] has been checked whole; what is left out has the default that
//! `docs/agent.example.toml` names.
//! *Refuses*: unknown keys, so that a misspelt one does not silently keep its default; values
//! outside their limits.
//! *Caller's duty*: none. Whether interfaces, sets and sockets exist shows when they are used.
//! *Standard*: TOML 1.0.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::channel::{Options, PortChoice};
use super::local::Group;
use crate::api::Prefix;
use crate::api::session::HandOver;
use crate::api::shield::{Action, Police};
use crate::serial::Timing;

mod values;

#[cfg(test)]
mod tests;

/// Where the file is looked for, if no other is named.
pub const FILE: &str = "/etc/shunt/agent.toml";

/// Everything in the file.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The agent as a whole.
    pub agent: AgentConfig,
    /// The way to the host.
    pub serial: SerialConfig,
    /// What is offloaded.
    pub offload: OffloadConfig,
    /// What is left alone.
    pub switches: SwitchesConfig,
    /// How sessions return to the guest.
    pub revocation: RevocationConfig,
    /// The vNIC of interfaces for which bus path and MAC do not say it: interface = vNIC.
    pub interfaces: BTreeMap<String, String>,
    /// Shields that the agent keeps.
    pub shields: ShieldsConfig,
    /// The port as a local HTTP socket; none if absent.
    pub proxy: Option<ProxyConfig>,
    /// Where status is told and orders are taken.
    pub status: StatusConfig,
}

/// What the agent does at all.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It offloads.
    #[default]
    On,
    /// It decides and tells what it would offload, and asks for nothing.
    Observe,
    /// It asks for nothing new; what is offloaded stays, and is revoked as ever.
    Pause,
    /// It asks for nothing, and takes back what is offloaded.
    Off,
}

/// `[agent]`: the agent as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentConfig {
    /// What it does at the start.
    pub mode: Mode,
}

/// `[serial]`: the way to the host. Times on the line are the relay's, too.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SerialConfig {
    /// The port's device, or a unix socket that leads to it; found by its name if absent.
    pub port: Option<PathBuf>,
    /// Milliseconds from beat to beat, 10 to 60,000.
    #[serde(deserialize_with = "values::within::<_, 10, 60_000>")]
    pub beat_ms: u32,
    /// Milliseconds of silence after which the host is gone; at least three beats.
    #[serde(deserialize_with = "values::within::<_, 30, 600_000>")]
    pub silence_ms: u32,
    /// Milliseconds after which a host that takes nothing is given up.
    #[serde(deserialize_with = "values::within::<_, 100, 600_000>")]
    pub stall_ms: u32,
    /// Milliseconds that a call may take.
    #[serde(deserialize_with = "values::within::<_, 100, 120_000>")]
    pub call_timeout_ms: u32,
    /// Milliseconds without an answer after which the agent falls silent, so that the lease of
    /// what it cannot take back runs out.
    #[serde(deserialize_with = "values::within::<_, 100, 120_000>")]
    pub withdraw_timeout_ms: u32,
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self {
            port: None,
            beat_ms: 1_000,
            silence_ms: 5_000,
            stall_ms: 30_000,
            call_timeout_ms: 10_000,
            withdraw_timeout_ms: 5_000,
        }
    }
}

impl SerialConfig {
    /// As the channel takes it.
    pub fn options(&self) -> Options {
        let time = |ms: u32| Duration::from_millis(ms.into());
        Options {
            port: self.port.clone().map_or(PortChoice::Named, PortChoice::At),
            timing: Timing {
                beat: time(self.beat_ms),
                silence: time(self.silence_ms),
                stall: time(self.stall_ms),
                ..Timing::default()
            },
            call_timeout: time(self.call_timeout_ms),
            withdraw_timeout: time(self.withdraw_timeout_ms),
        }
    }
}

/// What becomes of the kernel's accounting, without which there are no rates.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accounting {
    /// It is turned on, if it is off.
    Enable,
    /// It is left as it is.
    #[default]
    Leave,
}

/// `[offload]`: what is offloaded.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct OffloadConfig {
    /// How old a connection is before, seconds, also `0.5`.
    #[serde(deserialize_with = "values::seconds::<_, 0, 604_800>")]
    pub minimum_age: Duration,
    /// How many packets a second it has, both ways together; 0: any.
    pub minimum_rate: u32,
    /// How sessions move to the fast path.
    pub hand_over: HandOver,
    /// Connections that are offloaded at most.
    #[serde(deserialize_with = "values::within::<_, 0, 4_194_304>")]
    pub sessions: u32,
    /// Connections that are watched at most.
    #[serde(deserialize_with = "values::within::<_, 1, 16_777_216>")]
    pub watched: u32,
    /// What becomes of `nf_conntrack_acct`.
    pub accounting: Accounting,
    /// What of a ruleset is no reason to stay away: `limit`, `quota`…
    pub ignore_hazards: Vec<String>,
}

impl Default for OffloadConfig {
    fn default() -> Self {
        Self {
            minimum_age: Duration::from_secs(1),
            minimum_rate: 20,
            hand_over: HandOver::Ordered,
            sessions: 65_536,
            watched: 131_072,
            accounting: Accounting::Leave,
            ignore_hazards: Vec::new(),
        }
    }
}

/// Some bits of a connmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mark {
    /// Their value.
    pub value: u32,
    /// Which they are; all if left out.
    #[serde(default = "all_bits")]
    pub mask: u32,
}

fn all_bits() -> u32 {
    u32::MAX
}

/// `[switches]`: what is left alone.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SwitchesConfig {
    /// Connections with this mark are left alone.
    pub opt_out: Option<Mark>,
    /// Connections with this mark are offloaded although the ruleset has hazards.
    pub opt_in: Option<Mark>,
    /// Only connections with the mark `opt-in` are offloaded.
    pub opt_in_only: bool,
    /// Interfaces that are left alone, by name; `*` at the end stands for any text.
    pub interfaces_off: Vec<String>,
    /// Connections from or to these, translated or not, are left alone.
    pub prefixes_off: Vec<Prefix>,
    /// If there are some: only connections with an end in one of these.
    pub prefixes_on: Vec<Prefix>,
    /// Connections to these ports are left alone.
    pub ports_off: Vec<u16>,
}

/// What becomes of sessions when something changes that they may depend on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    /// All of them return to the guest at once, until they are proved again.
    #[default]
    Strict,
    /// They do so one after the other, so that the guest is not flooded.
    Staged,
}

/// `[revocation]`: how sessions return to the guest.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RevocationConfig {
    /// When something changes.
    pub mode: Revocation,
    /// With `staged`: sessions a second.
    #[serde(deserialize_with = "values::within::<_, 1, 1_000_000>")]
    pub rate: u32,
    /// Every session is proved again after so long, seconds; 0: never.
    #[serde(deserialize_with = "values::seconds::<_, 0, 604_800>")]
    pub backstop: Duration,
    /// Who is not proved so long after it was asked for goes another way, seconds.
    #[serde(deserialize_with = "values::seconds::<_, 1, 3_600>")]
    pub proof_timeout: Duration,
}

impl Default for RevocationConfig {
    fn default() -> Self {
        Self {
            mode: Revocation::Strict,
            rate: 200,
            backstop: Duration::from_secs(60),
            proof_timeout: Duration::from_secs(10),
        }
    }
}

/// `[shields]`: shields that the agent keeps.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ShieldsConfig {
    /// Seconds for which shields without an end are asked for, again and again; so long they
    /// outlive the agent.
    #[serde(deserialize_with = "values::seconds::<_, 10, 604_800>")]
    pub ttl: Duration,
    /// How many at most, of commands and sets together.
    #[serde(deserialize_with = "values::within::<_, 1, 65_536>")]
    pub maximum: u32,
    /// Seconds from one look at the sets to the next.
    #[serde(deserialize_with = "values::seconds::<_, 0, 3_600>")]
    pub interval: Duration,
    /// The sets that are mirrored.
    pub set: Vec<SetConfig>,
}

impl Default for ShieldsConfig {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(600),
            maximum: 1_000,
            interval: Duration::from_secs(1),
            set: Vec::new(),
        }
    }
}

/// A family of nftables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Both of IP.
    #[default]
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Of devices.
    Netdev,
    /// Of bridges.
    Bridge,
}

impl Family {
    /// As nft says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
        }
    }
}

/// Which addresses of packets the elements of a set are.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where they come from.
    #[default]
    Source,
    /// Where they go.
    Destination,
}

/// `[[shields.set]]`: a set of nftables whose elements are shields.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SetConfig {
    /// The table's family.
    #[serde(default)]
    pub family: Family,
    /// The table.
    #[serde(deserialize_with = "values::nft_name")]
    pub table: String,
    /// The set, of type `ipv4_addr` or `ipv6_addr`.
    #[serde(deserialize_with = "values::nft_name")]
    pub set: String,
    /// Which addresses its elements are.
    #[serde(default, rename = "match")]
    pub side: Side,
    /// What becomes of the packets.
    #[serde(default = "drop_them")]
    pub action: Action,
    /// How much of each element's passes, if the action polices.
    pub police: Option<Police>,
    /// The vNIC whose uplink brings the packets; any if left out.
    pub ingress_vnic: Option<String>,
    /// Higher ones rule before lower ones.
    #[serde(default)]
    pub priority: u16,
}

fn drop_them() -> Action {
    Action::Drop
}

/// `[proxy]`: the serial port as a local HTTP socket.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProxyConfig {
    /// The socket.
    #[serde(deserialize_with = "values::socket")]
    pub socket: PathBuf,
    /// Its permissions, as `"0660"`.
    #[serde(deserialize_with = "values::mode")]
    pub mode: u32,
    /// Its group.
    pub group: Option<Group>,
    /// Requests at a time; more are refused with 503.
    #[serde(deserialize_with = "values::within::<_, 1, 24>")]
    pub requests: u32,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            socket: "/run/shunt/api.sock".into(),
            mode: 0o660,
            group: None,
            requests: 8,
        }
    }
}

/// `[status]`: where status is told and orders are taken.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StatusConfig {
    /// The socket.
    #[serde(deserialize_with = "values::socket")]
    pub socket: PathBuf,
    /// Its group: who may give orders beside root.
    pub group: Option<Group>,
}

impl Default for StatusConfig {
    fn default() -> Self {
        Self {
            socket: "/run/shunt/agent.sock".into(),
            group: None,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value in it is wrong.
    #[error("{} is no configuration of an agent", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// Values contradict each other.
    #[error("{}: {problem}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// Which, and what to do.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file; without one named, [`FILE`] if it is there.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => {
                let path = path.to_owned();
                return Err(ConfigError::Read { path, source });
            }
        };
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Invalid {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        match config.find_problem() {
            None => Ok(config),
            Some(problem) => Err(ConfigError::Contradiction {
                path: path.to_owned(),
                problem,
            }),
        }
    }

    /// What contradicts what.
    fn find_problem(&self) -> Option<String> {
        if self.serial.silence_ms < self.serial.beat_ms.saturating_mul(3) {
            return Some("[serial]: `silence-ms` is less than three `beat-ms`".to_owned());
        }
        if self.switches.opt_in_only && self.switches.opt_in.is_none() {
            return Some("[switches]: `opt-in-only` needs the mark `opt-in`".to_owned());
        }
        let proxy = self.proxy.as_ref().map(|proxy| &proxy.socket);
        if proxy == Some(&self.status.socket) {
            let socket = self.status.socket.display();
            return Some(format!("{socket} is used twice"));
        }
        let mut sets = HashSet::new();
        for set in &self.shields.set {
            let SetConfig {
                table, set: name, ..
            } = set;
            let family = set.family.name();
            let problem = match (set.action, set.police) {
                _ if !sets.insert((set.family, table, name)) => "it is mirrored twice",
                (Action::Police, None) => "the action `police` needs `police`, a rate",
                (Action::Drop | Action::Punt, Some(_)) => "`police` is for the action `police`",
                _ => continue,
            };
            return Some(format!(
                "[[shields.set]] {family} {table} {name}: {problem}"
            ));
        }
        None
    }
}
