//! The program `shunt controller`: it knows tenants, hosts and elements, judges what elements
//! ask for, and sends it on to the backend of their host.
//!
//! *Promises*: operators and relays have listeners of their own, and no route in common; what
//! an element asks for is judged by the inventory, and answered entry by entry. It holds no
//! session: an outage of any length ends none.
//! *Refuses*: a configuration or certificates that cannot be used, a store that another
//! process has.
//! *Caller's duty*: logging is set up before.
//! *Standard*: RFC 8040; the models `shunt-inventory` and `shunt-offload`.

mod audit;
pub mod config;
mod drain;
mod hand_back;
mod inside;
mod inventory;
mod listen;
mod meter;
mod operators;
mod registry;
mod relays;
pub mod store;
mod tls;
mod view;

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::api::config::Site;
use crate::api::discovery::{self, Defaults, INVENTORY};
use crate::api::socket::{ControlSocket, SocketError};
use crate::orders::{Order, Orders};
use audit::Audit;
use config::{Config, ConfigError, Files};
pub(crate) use inside::{Inside, Relay};
use inventory::Inventory;
use meter::Meters;
use registry::Registry;
use store::{ArchiveError, Embedded, Store, StoreError, Watch};
use tls::TlsError;
use view::Shared;

/// Threads of the program: it lives beside others.
const THREADS: usize = 2;

/// Why the controller does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The socket of local operators cannot be served.
    #[error("the socket of local operators")]
    Socket(#[from] SocketError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: is it this machine's, and free?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The audit log cannot be opened.
    #[error("cannot open the audit log {}: its directory must exist", path.display())]
    Audit {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Backup or restore failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The backup's file cannot be opened.
    #[error("cannot open {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The system refused a thread or a signal.
    #[error("cannot start threads: raise the limits of processes and open files")]
    Threads(#[source] std::io::Error),
    /// The inventory that a file describes is not of the model.
    #[error("the inventory that the configuration describes was refused: {0}")]
    Inventory(String),
    /// The store ended by itself.
    #[error("the store has ended; its log line says why")]
    StoreEnded,
}

/// The time of day: of documents, tokens and log lines.
#[expect(
    clippy::disallowed_methods,
    reason = "tokens and documents have wall-clock times by their standards"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Checks a configuration file and the certificates it names.
///
/// # Errors
/// What is wrong with them.
pub fn check(config: &Path) -> Result<(), ControllerError> {
    let config = Config::load(config)?;
    for files in listeners(&config) {
        tls::load(&files)?;
    }
    Ok(())
}

fn listeners(config: &Config) -> Vec<Files> {
    let operators = config.operators.iter().map(config::Operators::files);
    let relays = config.relays.iter().map(config::Relays::files);
    operators.chain(relays).collect()
}

/// Writes the store to `file`, which must not exist; gives how many documents that were.
///
/// # Errors
/// The store is in use, or the file cannot be written.
pub fn backup(config: &Path, file: &Path) -> Result<usize, ControllerError> {
    let config = Config::load(config)?;
    let store = Embedded::open(&config.store.file)?;
    let out = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(of_file(file))?;
    let count = block_on(store::backup(&store, BufWriter::new(&out)))??;
    out.sync_all().map_err(of_file(file))?;
    Ok(count)
}

/// Fills a new store from `file`; gives how many documents that were.
///
/// # Errors
/// The store is in use or not empty, or the file is no backup.
pub fn restore(config: &Path, file: &Path) -> Result<usize, ControllerError> {
    let config = Config::load(config)?;
    let input = File::open(file).map_err(of_file(file))?;
    let store = Embedded::open(&config.store.file)?;
    Ok(block_on(store::restore(&store, BufReader::new(input)))??)
}

fn of_file(path: &Path) -> impl FnOnce(std::io::Error) -> ControllerError {
    let path = path.to_owned();
    |source| ControllerError::File { path, source }
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, ControllerError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(ControllerError::Threads)?;
    Ok(runtime.block_on(work))
}

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration, the certificates or the store cannot be used, or the store ended.
pub fn run(config: &Path) -> Result<(), ControllerError> {
    let config = Config::load(config)?;
    block_on(async {
        let orders = Orders::of_signals().map_err(ControllerError::Threads)?;
        serve(&config, None, orders).await
    })?
}

/// Serves `config`, beside the relay of the same process if there is one, until it is
/// ordered to end.
///
/// # Errors
/// See [`run`].
pub(crate) async fn serve(
    config: &Config,
    inside: Option<Inside>,
    orders: Orders,
) -> Result<(), ControllerError> {
    let (audit, writer) =
        Audit::open(&config.audit.file).map_err(|source| ControllerError::Audit {
            path: config.audit.file.clone(),
            source,
        })?;
    let outcome = serve_with(config, inside, orders, Arc::new(audit)).await;
    // The last line's sender is gone with what was served.
    if tokio::task::spawn_blocking(|| writer.finish())
        .await
        .is_err()
    {
        log::error!("the audit log was not ended in order");
    }
    outcome
}

async fn serve_with(
    config: &Config,
    inside: Option<Inside>,
    orders: Orders,
    audit: Arc<Audit>,
) -> Result<(), ControllerError> {
    let store: Arc<dyn Store> = Arc::new(match &inside {
        Some(_) => Embedded::in_memory()?,
        None => Embedded::open(&config.store.file)?,
    });
    let inventory = Inventory::open(store.clone()).await?;
    let registry = Arc::new(Registry::default());
    let (hand_back, handed_back) = mpsc::unbounded_channel();

    let site = Arc::new(Site {
        datastore: Arc::new(inventory),
        state: vec![
            (
                "ietf-yang-library:yang-library",
                discovery::yang_library(INVENTORY, "running"),
            ),
            (
                "ietf-restconf-monitoring:restconf-state",
                discovery::restconf_state(Defaults::Explicit),
            ),
        ],
    });
    let relay = match inside {
        Some(inside) => Some(inside.fill(site.clone()).await?),
        None => None,
    };
    let mut watch = store.watch("").await?;
    // The first event is everything: served is what is known.
    let first = watch.next().await.ok_or(ControllerError::StoreEnded)?;
    let _kept = hand_back.send(registry.apply(first));
    let shared = Arc::new(Shared {
        registry: registry.clone(),
        meters: Meters::default(),
        audit: audit.clone(),
    });
    let operators = operators::routes(site.clone(), config.operators.as_ref(), audit.clone());
    let relays = relays::routes(shared, site);

    let (end, ending) = watch::channel(false);
    let (hangup, hung_up) = watch::channel(0);
    let mut parts = JoinSet::new();
    let socket = ControlSocket::bind(&config.controller.socket).await?;
    if let Some(listener) = &config.operators {
        let of = Tls::bind(listener.listen, listener.files(), hung_up.clone()).await?;
        parts.spawn(of.serve(operators.clone(), ending.clone()));
    }
    if let Some(listener) = &config.relays {
        let of = Tls::bind(listener.listen, listener.files(), hung_up).await?;
        parts.spawn(of.serve(relays.clone(), ending.clone()));
    }
    if let Some(relay) = relay {
        parts.spawn(listen::inside(relay, relays, ending.clone()));
    }
    log::info!("serving operators on {}", socket.path().display());
    parts.spawn(async move { listen::local(socket.listener(), operators, ending).await });
    tokio::spawn(hand_back::keep(
        registry.clone(),
        audit.clone(),
        handed_back,
    ));

    let outcome = tokio::select! {
        () = obey(orders, &hangup, &audit) => Ok(()),
        () = follow(watch, &registry, &hand_back) => Err(ControllerError::StoreEnded),
    };
    log::info!("ending");
    end.send_replace(true);
    while parts.join_next().await.is_some() {}
    outcome
}

/// Applies what the store tells.
async fn follow(
    mut watch: Watch,
    registry: &Registry,
    hand_back: &mpsc::UnboundedSender<std::collections::BTreeSet<registry::HandBack>>,
) {
    while let Some(event) = watch.next().await {
        let due = registry.apply(event);
        if !due.is_empty() && hand_back.send(due).is_err() {
            return;
        }
    }
}

/// Reads again what it is ordered to, until it is to end.
async fn obey(mut orders: Orders, hangup: &watch::Sender<u64>, audit: &Audit) {
    while orders.next().await == Order::Renew {
        hangup.send_modify(|count| *count += 1);
        audit.reopen().await;
    }
}

/// A listener with mutual TLS.
struct Tls {
    listener: TcpListener,
    current: watch::Receiver<Arc<rustls::ServerConfig>>,
}

impl Tls {
    async fn bind(
        address: SocketAddr,
        files: Files,
        hangup: watch::Receiver<u64>,
    ) -> Result<Self, ControllerError> {
        let (sender, current) = watch::channel(tls::load(&files)?);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ControllerError::Listen { address, source })?;
        if let Ok(address) = listener.local_addr() {
            log::info!("serving on {address}, {}", files.certificate.display());
        }
        tokio::spawn(tls::keep(files, sender, hangup));
        Ok(Self { listener, current })
    }

    async fn serve(self, app: Router, ending: watch::Receiver<bool>) {
        listen::mutual(&self.listener, self.current, app, ending).await;
    }
}
