//! The program `shunt relay`: carries HTTP/2 between guests and the controller, and says
//! whose requests they are.
//!
//! *Promises*: everything in the configuration runs, or nothing does and the error says
//! why. What a guest sends reaches the upstream as that guest's, by the socket it came
//! through, or not at all; a guest that misbehaves costs itself. It understands nothing of
//! what it carries.
//! *Refuses*: what `docs/relay.md` lists.
//! *Caller's duty*: logging is set up before; SIGHUP after certificates were renewed.
//! *Standard*: RFC 9113, RFC 9110, `docs/serial.md`; identity: [`crate::api::identity`].

mod body;
mod carry;
pub mod config;
mod credentials;
mod head;
mod path;
mod port;
mod presence;
mod rate;
mod refusal;
mod upstream;

use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::api::{ControlSocket, SocketError};
use crate::orders::{Order, Orders};
use carry::Carrier;
use config::{Config, ConfigError, PortConfig, PortMode};
pub(crate) use credentials::Credentials;
pub use credentials::CredentialsError;
use port::Port;
use presence::Presence;

/// Why the relay does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificate, key or authorities cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The presence socket cannot be served.
    #[error("presence cannot be told")]
    Presence(#[source] SocketError),
    /// A port's socket cannot be served.
    #[error("port {name}")]
    Port {
        /// The element's name.
        name: String,
        /// Why.
        #[source]
        source: SocketError,
    },
    /// A port's socket cannot be given to the VM's user.
    #[error("port {name}: cannot give {} to user {uid}: run the relay as root, or as that user", path.display())]
    Owner {
        /// The element's name.
        name: String,
        /// Its socket.
        path: PathBuf,
        /// The VM's user.
        uid: u32,
        /// Why.
        source: io::Error,
    },
    /// The system refused a descriptor or a signal handler.
    #[error("cannot start: raise the limit of open files")]
    Start(#[source] io::Error),
    /// A task ended that never does.
    #[error("a port has ended; its log line says why")]
    Ended,
}

/// Checks a configuration file, and the certificates that it names, without opening a
/// socket.
///
/// # Errors
/// What is wrong.
pub fn check(path: &Path) -> Result<(), RelayError> {
    let config = Config::load(path)?;
    Credentials::load(&config)?;
    Ok(())
}

/// Runs the relay until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration, a certificate or a socket cannot be used.
pub fn run(path: &Path) -> Result<(), RelayError> {
    let config = Config::load(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RelayError::Start)?;
    runtime.block_on(async {
        let mut orders = Orders::of_signals().map_err(RelayError::Start)?;
        let relay = Relay::open(config).await?;
        let ended = async {
            while orders.next().await == Order::Renew {
                match relay.renew() {
                    Ok(()) => log::info!("the certificate was read again"),
                    Err(error) => log::error!(
                        "the old certificate stays in use: {}",
                        upstream::chain(&error)
                    ),
                }
            }
        };
        tokio::select! {
            () = ended => Ok(()),
            error = relay.serve() => Err(error),
        }
    })
}

/// Runs a relay with `credentials` that are not in files, until it is ordered to end.
///
/// # Errors
/// See [`RelayError`].
pub(crate) async fn serve_with(
    config: Config,
    credentials: Credentials,
    mut orders: Orders,
) -> Result<(), RelayError> {
    let relay = Relay::open_with(config, credentials).await?;
    // There is nothing to read again.
    let ended = async { while orders.next().await == Order::Renew {} };
    tokio::select! {
        () = ended => Ok(()),
        error = relay.serve() => Err(error),
    }
}

/// A relay whose sockets are open.
pub struct Relay {
    config: Arc<Config>,
    credentials: watch::Sender<Arc<Credentials>>,
    presence: Arc<Presence>,
    told_on: ControlSocket,
    /// In the ports' order; none for a port whose socket QEMU listens on.
    sockets: Vec<Option<Arc<ControlSocket>>>,
}

impl Relay {
    /// Loads the certificates and opens all sockets.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub async fn open(config: Config) -> Result<Self, RelayError> {
        let credentials = Credentials::load(&config)?;
        Self::open_with(config, credentials).await
    }

    async fn open_with(config: Config, credentials: Credentials) -> Result<Self, RelayError> {
        let credentials = watch::Sender::new(Arc::new(credentials));
        for (one, other) in config.shared_uids() {
            log::warn!(
                "ports {} and {} belong to one user: a process of his can speak for both",
                one.name,
                other.name
            );
        }
        let told_on = ControlSocket::bind(&config.relay.presence)
            .await
            .map_err(RelayError::Presence)?;
        let mut sockets = Vec::new();
        for port in &config.ports {
            sockets.push(match port.mode {
                PortMode::Listen => Some(Arc::new(bind(port).await?)),
                PortMode::Connect => None,
            });
        }
        let names = config.ports.iter().map(|port| port.name.clone());
        let presence = Presence::new(&config.relay.host, names, wall_milliseconds());
        Ok(Self {
            presence: Arc::new(presence),
            config: Arc::new(config),
            credentials,
            told_on,
            sockets,
        })
    }

    /// Reads certificate, key and authorities again; new requests go over new connections.
    ///
    /// # Errors
    /// They cannot be used: the old ones stay.
    pub fn renew(&self) -> Result<(), CredentialsError> {
        let credentials = Credentials::load(&self.config)?;
        self.credentials.send_replace(Arc::new(credentials));
        Ok(())
    }

    /// Serves all ports, for ever.
    pub async fn serve(&self) -> RelayError {
        let mut ports = JoinSet::new();
        for (index, (own, socket)) in self.config.ports.iter().zip(&self.sockets).enumerate() {
            let port = Port::new(
                Arc::clone(&self.config),
                (index, own.clone()),
                Arc::clone(&self.presence),
                Carrier::new(
                    Arc::clone(&self.config),
                    &own.name,
                    self.credentials.subscribe(),
                ),
            );
            match socket {
                Some(socket) => {
                    let socket = Arc::clone(socket);
                    ports.spawn(async move { port.listen(&socket).await })
                }
                None => ports.spawn(async move { port.connect().await }),
            };
        }
        tokio::select! {
            _ = ports.join_next() => RelayError::Ended,
            () = presence::tell(Arc::clone(&self.presence), &self.told_on) => RelayError::Ended,
        }
    }
}

/// Listens on a port's socket, which its VM's user then owns.
async fn bind(port: &PortConfig) -> Result<ControlSocket, RelayError> {
    let socket = ControlSocket::bind(&port.socket)
        .await
        .map_err(|source| RelayError::Port {
            name: port.name.clone(),
            source,
        })?;
    let is_owned = std::fs::metadata(socket.path()).is_ok_and(|found| found.uid() == port.uid);
    if !is_owned {
        chown(socket.path(), Some(port.uid), None).map_err(|source| RelayError::Owner {
            name: port.name.clone(),
            path: port.socket.clone(),
            uid: port.uid,
            source,
        })?;
    }
    Ok(socket)
}

/// The wall clock: for tokens, fences and what people read.
#[expect(
    clippy::disallowed_methods,
    reason = "tokens and fences are compared on other machines and after restarts"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Milliseconds since 1970.
fn wall_milliseconds() -> u64 {
    wall_clock()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
