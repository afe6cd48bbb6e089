//! The file of `shunt controller --config FILE`.
//!
//! *Promises*: unknown keys are refused; an error says the line and what is wrong there.
//! *Refuses*: two roles for one name.
//! *Caller's duty*: certificates are looked at when they are loaded.
//! *Standard*: TOML 1.0; `docs/controller.md` describes every key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::api::tls::Files;

/// Everything in the file.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The process.
    #[serde(default)]
    pub controller: Process,
    /// Where the inventory lies.
    #[serde(default)]
    pub store: StoreConfig,
    /// The log of requests.
    #[serde(default)]
    pub audit: AuditConfig,
    /// Operators from elsewhere.
    pub operators: Option<Operators>,
    /// Relays.
    pub relays: Option<Relays>,
    /// How backends on other machines are reached.
    pub backends: Option<Backends>,
}

/// `[controller]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Process {
    /// The socket of local operators, who are admins: its group says who.
    pub socket: PathBuf,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            socket: "/run/shunt/controller.sock".into(),
        }
    }
}

/// `[store]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreConfig {
    /// The embedded store.
    pub file: PathBuf,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            file: "/var/lib/shunt/controller.redb".into(),
        }
    }
}

/// `[audit]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AuditConfig {
    /// JSON lines are added to it.
    pub file: PathBuf,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            file: "/var/log/shunt/audit.jsonl".into(),
        }
    }
}

/// `[relays]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Relays {
    /// Address and port.
    pub listen: SocketAddr,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of relays.
    pub client_ca: PathBuf,
}

/// `[backends]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Backends {
    /// The controller's own certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of backends.
    pub ca: PathBuf,
}

/// `[operators]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Operators {
    /// Address and port.
    pub listen: SocketAddr,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of operators.
    pub client_ca: PathBuf,
    /// Who may do what.
    #[serde(default, rename = "role")]
    pub roles: Vec<RoleConfig>,
}

/// `[[operators.role]]`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RoleConfig {
    /// A DNS name of the operator's certificate.
    pub certificate: String,
    /// What they may do.
    pub role: Role,
}

/// What an operator may do; each may do what those before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Read.
    ReadOnly,
    /// Write elements, and turn switches.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {}: name an existing file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("the configuration {}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What, and where.
        source: Box<toml::de::Error>,
    },
    /// One name has two roles.
    #[error("the configuration {}: `{name}` has two roles, give it one", path.display())]
    TwoRoles {
        /// The file.
        path: PathBuf,
        /// Whose.
        name: String,
    },
}

impl Relays {
    /// The TLS part.
    pub fn files(&self) -> Files {
        Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authorities: self.client_ca.clone(),
        }
    }
}

impl Backends {
    /// The TLS part.
    pub fn files(&self) -> Files {
        Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authorities: self.ca.clone(),
        }
    }
}

impl Operators {
    /// The TLS part.
    pub fn files(&self) -> Files {
        Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authorities: self.client_ca.clone(),
        }
    }
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
        let roles = config
            .operators
            .iter()
            .flat_map(|operators| &operators.roles);
        let mut seen = std::collections::BTreeSet::new();
        for role in roles {
            if !seen.insert(&role.certificate) {
                return Err(ConfigError::TwoRoles {
                    path: path.to_owned(),
                    name: role.certificate.clone(),
                });
            }
        }
        Ok(config)
    }
}
