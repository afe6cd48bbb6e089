//! What `shunt up` reads besides: the relay and the controller of the same process.
//!
//! *Promises*: the same file starts `shunt backend` alone, which passes these keys over.
//! *Refuses*: unknown keys. *Caller's duty*: none.
//! *Standard*: TOML 1.0; `docs/up.md` describes every key.

use std::path::PathBuf;

use serde::Deserialize;

use super::values;

/// `[up]`: the process's other sockets and files.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct UpConfig {
    /// This host, a DNS name: in the inventory, on the presence socket and in tokens.
    pub host: String,
    /// The socket of local operators of the controller.
    #[serde(deserialize_with = "values::socket")]
    pub controller: PathBuf,
    /// The socket on which the relay tells presence.
    #[serde(deserialize_with = "values::socket")]
    pub presence: PathBuf,
    /// The controller's audit log.
    pub audit: PathBuf,
}

impl Default for UpConfig {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            controller: "/run/shunt/controller.sock".into(),
            presence: "/run/shunt/presence.sock".into(),
            audit: "/var/log/shunt/audit.jsonl".into(),
        }
    }
}

/// `[element.serial]`: the port by which an element asks.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SerialConfig {
    /// The socket of QEMU's chardev.
    #[serde(deserialize_with = "values::socket")]
    pub socket: PathBuf,
    /// Who listens on it.
    #[serde(default)]
    pub mode: SerialMode,
    /// The user that the VM runs as: any other is refused.
    pub uid: u32,
    /// Sessions that it may ask for in a second, 1 to 10,000,000; absent: the controller's
    /// default.
    #[serde(default, deserialize_with = "values::request_rate")]
    pub requests_per_second: Option<u32>,
}

/// Who listens on a serial port's socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SerialMode {
    /// Shunt does; QEMU connects.
    #[default]
    Listen,
    /// QEMU does; Shunt connects, and again after a break.
    Connect,
}

pub(super) fn default_tenant() -> String {
    "local".to_owned()
}
