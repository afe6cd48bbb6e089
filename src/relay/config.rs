//! The configuration of `shunt relay --config FILE`.
//!
//! *Promises*: a [`Config`] has been checked whole: values within their limits, names and
//! sockets used once, no header listed that only the relay may send.
//! *Refuses*: unknown keys, so that a misspelt one does not silently keep its default.
//! *Caller's duty*: none. Whether files and directories exist shows when they are opened.
//! *Standard*: TOML 1.0. Every key is described in `docs/relay.md`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::HeaderName;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::path;
use crate::serial::Timing;

mod values;

#[cfg(test)]
mod tests;

pub use values::{Headers, Prefix, Url};

/// Everything in the file.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The process and whom it speaks for.
    pub relay: RelayConfig,
    /// Where requests go.
    pub upstream: UpstreamConfig,
    /// What may pass.
    pub allow: AllowConfig,
    /// How much may pass, for each port.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Times on the serial lines.
    #[serde(default)]
    pub serial: SerialConfig,
    /// The elements' ports, at least one.
    #[serde(default, rename = "port")]
    pub ports: Vec<PortConfig>,
}

/// `[relay]`: the process and whom it speaks for.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RelayConfig {
    /// This host, as a DNS name of the certificate says it.
    pub host: String,
    /// The relay's certificate and those between it and the authority, PEM.
    pub certificate: PathBuf,
    /// Its private key: P-256, PKCS #8, PEM.
    pub key: PathBuf,
    /// The socket on which presence is told.
    #[serde(default = "default_presence", deserialize_with = "values::socket")]
    pub presence: PathBuf,
}

/// `[upstream]`: where requests go.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpstreamConfig {
    /// `https://HOST[:PORT]` or `unix:PATH`.
    pub url: Url,
    /// Authorities that may have signed the upstream's certificate, PEM.
    pub ca: Option<PathBuf>,
    /// Milliseconds a connection may take to be made, 1 to 60,000.
    #[serde(
        default = "default_connect",
        deserialize_with = "values::within::<_, 1, 60_000>"
    )]
    pub connect_timeout_ms: u32,
    /// Milliseconds until the head of an answer, 1 to 600,000.
    #[serde(
        default = "default_response",
        deserialize_with = "values::within::<_, 1, 600_000>"
    )]
    pub response_timeout_ms: u32,
}

/// `[allow]`: what may pass.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AllowConfig {
    /// Paths at or below which everything passes.
    pub paths: Vec<Prefix>,
    /// Request headers that pass; all others are left out.
    #[serde(default = "default_request_headers")]
    pub request_headers: Headers,
    /// Headers of answers that pass; all others are left out.
    #[serde(default = "default_response_headers")]
    pub response_headers: Headers,
}

/// `[limits]`: how much may pass, for each port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitsConfig {
    /// Bytes of a request's body, up to 1 GiB.
    #[serde(deserialize_with = "values::within::<_, 0, 1_073_741_824>")]
    pub body_bytes: u32,
    /// Requests at a time, 1 to 1,024.
    #[serde(deserialize_with = "values::within::<_, 1, 1_024>")]
    pub streams: u32,
    /// Requests a second in the long run, 1 to 1,000,000.
    #[serde(deserialize_with = "values::within::<_, 1, 1_000_000>")]
    pub requests_per_second: u32,
    /// Requests at once after a pause, 1 to 1,000,000.
    #[serde(deserialize_with = "values::within::<_, 1, 1_000_000>")]
    pub burst: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            streams: 32,
            requests_per_second: 2_000,
            burst: 2_000,
        }
    }
}

/// `[serial]`: times on the lines; the agents' must agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SerialConfig {
    /// Milliseconds from beat to beat, 10 to 60,000.
    #[serde(deserialize_with = "values::within::<_, 10, 60_000>")]
    pub beat_ms: u32,
    /// Milliseconds of silence after which a guest is gone; at least three beats.
    #[serde(deserialize_with = "values::within::<_, 30, 600_000>")]
    pub silence_ms: u32,
    /// Milliseconds after which a guest that takes nothing is given up.
    #[serde(deserialize_with = "values::within::<_, 100, 600_000>")]
    pub stall_ms: u32,
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self {
            beat_ms: 1_000,
            silence_ms: 5_000,
            stall_ms: 30_000,
        }
    }
}

impl SerialConfig {
    /// As the line takes it.
    pub fn timing(&self) -> Timing {
        let time = |ms| Duration::from_millis(u64::from(ms));
        Timing {
            beat: time(self.beat_ms),
            silence: time(self.silence_ms),
            stall: time(self.stall_ms),
            ..Timing::default()
        }
    }
}

/// `[[port]]`: the serial port of an element.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PortConfig {
    /// The element's name, unique in the file: what the controller is told.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// The socket of QEMU's chardev.
    #[serde(deserialize_with = "values::socket")]
    pub socket: PathBuf,
    /// Who listens on it.
    #[serde(default)]
    pub mode: PortMode,
    /// The user that the VM runs as: any other is refused.
    pub uid: u32,
}

/// Who listens on a port's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortMode {
    /// The relay does; QEMU connects.
    #[default]
    Listen,
    /// QEMU does; the relay connects, and again after a break.
    Connect,
}

fn default_presence() -> PathBuf {
    PathBuf::from("/run/shunt/presence.sock")
}

fn default_connect() -> u32 {
    2_000
}

fn default_response() -> u32 {
    30_000
}

fn default_request_headers() -> Headers {
    Headers::of(&[
        "accept",
        "content-type",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-unmodified-since",
        "last-event-id",
    ])
}

fn default_response_headers() -> Headers {
    Headers::of(&[
        "accept-patch",
        "allow",
        "cache-control",
        "content-length",
        "content-type",
        "date",
        "etag",
        "last-modified",
        "location",
        "retry-after",
    ])
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
    #[error("{} is no configuration of a relay", path.display())]
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
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
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

    /// That of a relay beside its controller, in one process: its credentials are in no
    /// file, and `/restconf` is all there is.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn inside(host: &str, presence: PathBuf, ports: Vec<PortConfig>) -> Result<Self, String> {
        let config = Self {
            relay: RelayConfig {
                host: host.to_owned(),
                certificate: PathBuf::new(),
                key: PathBuf::new(),
                presence,
            },
            upstream: UpstreamConfig {
                url: Url::Inside,
                ca: None,
                connect_timeout_ms: default_connect(),
                response_timeout_ms: default_response(),
            },
            allow: AllowConfig {
                paths: vec![Prefix::try_from("/restconf".to_owned())?],
                request_headers: default_request_headers(),
                response_headers: default_response_headers(),
            },
            limits: LimitsConfig::default(),
            serial: SerialConfig::default(),
            ports,
        };
        config.find_problem().map_or(Ok(config), Err)
    }

    /// What contradicts what.
    fn find_problem(&self) -> Option<String> {
        if self.ports.is_empty() {
            return Some("no [[port]]: name at least one".to_owned());
        }
        if ServerName::try_from(self.relay.host.as_str()).is_err() {
            return Some(format!("`{}` is no DNS name of a host", self.relay.host));
        }
        if matches!(self.upstream.url, Url::Https { .. }) && self.upstream.ca.is_none() {
            return Some("an https upstream needs `ca`, the authorities to believe".to_owned());
        }
        if self.allow.paths.is_empty() {
            return Some("`paths` lists nothing, so nothing would pass".to_owned());
        }
        if self.serial.silence_ms < self.serial.beat_ms.saturating_mul(3) {
            return Some("`silence-ms` is less than three `beat-ms`".to_owned());
        }
        let mut names = HashSet::new();
        let mut sockets = HashSet::from([self.relay.presence.as_path()]);
        if let Url::Unix(path) = &self.upstream.url {
            sockets.insert(path);
        }
        for port in &self.ports {
            if !names.insert(port.name.as_str()) {
                return Some(format!("two ports are named `{}`", port.name));
            }
            if !sockets.insert(port.socket.as_path()) {
                return Some(format!("{} is used twice", port.socket.display()));
            }
        }
        None
    }

    /// Pairs of ports that one user may open both of.
    pub fn shared_uids(&self) -> impl Iterator<Item = (&PortConfig, &PortConfig)> {
        self.ports.iter().enumerate().flat_map(|(at, port)| {
            let others = self.ports.iter().take(at);
            others
                .filter(|other| other.uid == port.uid)
                .map(move |other| (other, port))
        })
    }
}

/// Whether only the relay may send a request header, or HTTP/2 knows no such header.
fn is_reserved(name: &HeaderName) -> bool {
    const RESERVED: [&str; 17] = [
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-real-ip",
    ];
    RESERVED.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-")
}

/// Whether `text` can be a prefix of paths.
fn is_prefix(text: &str) -> bool {
    path::is_canonical(text) && (text == "/" || !text.ends_with('/'))
}
