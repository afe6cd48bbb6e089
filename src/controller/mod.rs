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
mod backends;
mod batch;
pub mod config;
mod feeds;
mod hand_back;
mod inside;
mod inventory;
mod meter;
mod on_behalf;
mod operators;
mod registry;
mod relays;
pub mod store;
mod view;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::api::config::Site;
use crate::api::discovery::{self, Defaults, INVENTORY, OFFLOAD};
use crate::api::link::Credentials;
use crate::api::listen::{self, ListenError, Mutual};
use crate::api::socket::{ControlSocket, SocketError};
use crate::api::tls::{self, Files, TlsError};
use crate::orders::{Order, Orders};
use audit::Audit;
use backends::Backends;
use config::{Config, ConfigError};
use feeds::Feeds;
pub(crate) use inside::{Inside, Relay};
use inventory::Inventory;
use meter::Meters;
use registry::{Due, Registry};
use store::{ArchiveError, Embedded, Etcd, Store, StoreError, Watch};
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
    /// A listener cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The socket of local operators cannot be served.
    #[error("the socket of local operators")]
    Socket(#[from] SocketError),
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
        tls::server(&files)?;
    }
    if let Some(backends) = &config.backends {
        tls::client(&backends.files())?;
    }
    if let Some(settings) = config.store.etcd() {
        Etcd::new(settings)?;
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
    let store = store::open(&config.store)?;
    let out = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(of_file(file))?;
    let count = block_on(store::backup(store.as_ref(), BufWriter::new(&out)))??;
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
    let store = store::open(&config.store)?;
    Ok(block_on(store::restore(
        store.as_ref(),
        BufReader::new(input),
    ))??)
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
    let store: Arc<dyn Store> = match &inside {
        Some(_) => Arc::new(Embedded::in_memory()?),
        None => store::open(&config.store)?,
    };
    let inventory = Inventory::open(store.clone()).await?;
    let registry = Arc::new(Registry::default());
    let (hangup, hung_up) = watch::channel(0);
    let backends = Arc::new(Backends::new(credentials(config, hung_up.clone())?));
    let (hand_back, handed_back) = mpsc::unbounded_channel();

    let named = registry.clone();
    let site = Arc::new(Site {
        datastore: Arc::new(inventory),
        state: vec![
            (
                "ietf-yang-library:yang-library",
                Box::new(|| discovery::yang_library(&[INVENTORY, OFFLOAD], "running")),
            ),
            (
                "ietf-restconf-monitoring:restconf-state",
                Box::new(move || {
                    let names = named.names();
                    let names = names.iter().map(String::as_str);
                    discovery::restconf_state_with(Defaults::Explicit, names)
                }),
            ),
        ],
    });
    let relay = match inside {
        Some(inside) => Some(inside.fill(site.clone()).await?),
        None => None,
    };
    let mut watches = Vec::new();
    for prefix in inventory::watched(&config.store.hosts) {
        let mut watch = store.watch(&prefix).await?;
        // The first event is everything: served is what is known.
        let first = watch.next().await.ok_or(ControllerError::StoreEnded)?;
        let _kept = hand_back.send(registry.apply(first));
        watches.push(watch);
    }
    let watch = Watch::merged(watches);
    let shared = Arc::new(Shared {
        registry: registry.clone(),
        meters: Meters::default(),
        backends: backends.clone(),
        feeds: Arc::new(Feeds::new(registry.clone(), backends.clone())),
        audit: audit.clone(),
    });
    let operators = operators::routes(site.clone(), config.operators.as_ref(), shared.clone());
    let relays = relays::routes(shared, site);

    let (end, ending) = watch::channel(false);
    let mut parts = JoinSet::new();
    let socket = ControlSocket::bind(&config.controller.socket).await?;
    if let Some(listener) = &config.operators {
        let of = Mutual::bind(listener.listen, listener.files(), hung_up.clone()).await?;
        let of = of.within(listener.limits());
        parts.spawn(of.serve(operators.clone(), ending.clone()));
    }
    if let Some(listener) = &config.relays {
        let of = Mutual::bind(listener.listen, listener.files(), hung_up).await?;
        let of = of.within(listener.limits());
        parts.spawn(of.serve(relays.clone(), ending.clone()));
    }
    if let Some(Relay {
        visitors,
        certificate,
    }) = relay
    {
        parts.spawn(listen::inside(
            visitors,
            certificate,
            relays,
            ending.clone(),
        ));
    }
    log::info!("serving operators on {}", socket.path().display());
    parts.spawn(async move { listen::local(socket.listener(), operators, ending).await });
    let means = hand_back::Means {
        registry: registry.clone(),
        audit: audit.clone(),
        backends,
    };
    tokio::spawn(hand_back::keep(means, handed_back));

    let outcome = tokio::select! {
        () = obey(orders, &hangup, &audit) => Ok(()),
        () = follow(watch, &registry, &hand_back) => Err(ControllerError::StoreEnded),
    };
    log::info!("ending");
    end.send_replace(true);
    while parts.join_next().await.is_some() {}
    outcome
}

/// What backends on other machines are reached with.
fn credentials(
    config: &Config,
    hangup: watch::Receiver<u64>,
) -> Result<Option<Credentials>, TlsError> {
    let Some(backends) = &config.backends else {
        return Ok(None);
    };
    let files = backends.files();
    let (sender, current) = watch::channel(tls::client(&files)?);
    tokio::spawn(tls::keep(files, tls::client, sender, hangup));
    Ok(Some(current))
}

/// Applies what the store tells.
async fn follow(
    mut watch: Watch,
    registry: &Registry,
    hand_back: &mpsc::UnboundedSender<BTreeSet<Due>>,
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
