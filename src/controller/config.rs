//! The file of `shunt controller --config FILE`.
//!
//! *Promises*: unknown keys are refused; an error says the line and what is wrong there.
//! *Refuses*: two roles for one name; a store that is two, or none.
//! *Caller's duty*: certificates are looked at when they are loaded.
//! *Standard*: TOML 1.0; `docs/controller.md` describes every key.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::store::{self, Settings};
use crate::api::listen::Limits;
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

/// `[store]`: a file, or etcd.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreConfig {
    /// The embedded store.
    pub file: Option<PathBuf>,
    /// URLs of members of an etcd cluster, those to prefer first.
    pub etcd: Option<Vec<String>>,
    /// What etcd's keys begin with.
    pub prefix: Option<String>,
    /// The authorities of etcd's members.
    pub ca: Option<PathBuf>,
    /// Our certificate for etcd.
    pub certificate: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// etcd's own `--max-txn-ops`.
    pub max_txn_ops: Option<NonZeroU16>,
    /// What the names of hosts begin with whose elements are served; none: of all hosts.
    pub hosts: Vec<String>,
}

impl StoreConfig {
    /// The embedded store's file.
    pub fn file(&self) -> &Path {
        let default = || Path::new("/var/lib/shunt/controller.redb");
        self.file.as_deref().unwrap_or_else(default)
    }

    /// Where etcd is, if that is the store.
    pub fn etcd(&self) -> Option<Settings> {
        let own = self.certificate.clone().zip(self.key.clone());
        Some(Settings {
            members: self.etcd.clone()?,
            files: self.ca.clone().map(|ca| store::Files { ca, own }),
            prefix: self.prefix.clone().unwrap_or_else(|| "/shunt/".to_owned()),
            operations_max: self.max_txn_ops.map_or(128, |max| max.get().into()),
        })
    }

    /// What is wrong, if anything.
    fn fault(&self) -> Option<&'static str> {
        let Some(members) = &self.etcd else {
            let for_etcd = [&self.ca, &self.certificate, &self.key];
            let is_for_etcd = for_etcd.iter().any(|one| one.is_some())
                || self.prefix.is_some()
                || self.max_txn_ops.is_some();
            return is_for_etcd.then_some("only `file` and `hosts` are used without `etcd`");
        };
        let all = |scheme| members.iter().all(|url| url.starts_with(scheme));
        if self.file.is_some() {
            Some("`file` and `etcd` are two stores, name one")
        } else if members.is_empty() {
            Some("`etcd` needs a URL for each member, at least one")
        } else if self.prefix.as_ref().is_some_and(String::is_empty) {
            Some("`prefix` must not be empty")
        } else if self.certificate.is_some() != self.key.is_some() {
            Some("`certificate` and `key` go together")
        } else if self.ca.is_none() && (self.key.is_some() || !all("http://")) {
            Some("members with TLS, `https://…`, need `ca`; those without are `http://…`")
        } else if self.ca.is_some() && !all("https://") {
            Some("with `ca`, every member must be `https://…`")
        } else {
            None
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
    /// Connections at a time, 4096.
    #[serde(default = "default_connections")]
    pub max_connections: NonZeroU32,
    /// Of these, of one relay, 1024.
    #[serde(default = "default_connections_per_peer")]
    pub max_connections_per_peer: NonZeroU32,
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
    /// Connections at a time, 4096.
    #[serde(default = "default_connections")]
    pub max_connections: NonZeroU32,
    /// Of these, of one operator, 1024.
    #[serde(default = "default_connections_per_peer")]
    pub max_connections_per_peer: NonZeroU32,
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
    /// `[store]` does not fit together.
    #[error("the configuration {}: [store]: {fault}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: &'static str,
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

fn default_connections() -> NonZeroU32 {
    Limits::default().max_connections
}

fn default_connections_per_peer() -> NonZeroU32 {
    Limits::default().max_connections_per_peer
}

impl Relays {
    /// How many connections it takes.
    pub fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
        }
    }

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
    /// How many connections it takes.
    pub fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
        }
    }

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
        if let Some(fault) = config.store.fault() {
            let path = path.to_owned();
            return Err(ConfigError::Store { path, fault });
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn store(text: &str) -> StoreConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_store_is_a_file_or_etcd_with_all_that_its_urls_need() {
        let tls = "ca = 'a'\ncertificate = 'c'\nkey = 'k'\n";
        for sound in [
            "",
            "file = 'f'",
            "hosts = ['rack7-']",
            "etcd = ['http://e:2379']\nprefix = 'p'\nmax-txn-ops = 512",
            "etcd = ['https://e:2379', 'https://f:2379']\nca = 'a'",
            &format!("{tls}etcd = ['https://e:2379']"),
        ] {
            assert_eq!(store(sound).fault(), None, "{sound}");
        }
        for unsound in [
            "etcd = []",
            "etcd = ['e:2379']",
            "etcd = ['https://e:2379']",
            "etcd = ['http://e:2379']\nca = 'a'",
            "etcd = ['http://e:2379']\nprefix = ''",
            "etcd = ['http://e:2379']\nfile = 'f'",
            "etcd = ['https://e:2379']\nca = 'a'\nkey = 'k'",
            tls,
            "file = 'f'\nprefix = 'p'",
        ] {
            assert!(store(unsound).fault().is_some(), "{unsound}");
        }
    }
}
