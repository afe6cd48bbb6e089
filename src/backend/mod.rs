//! The program `shunt backend`: the daemon that serves elements.
//!
//! *Promises*: everything in the configuration runs, or nothing does and the error says
//! why; SIGTERM and SIGINT end it in order, sockets removed.
//! *Refuses*: a configuration that contradicts itself, tables larger than memory, devices
//! and sockets that others use.
//! *Caller's duty*: logging is set up before. *Standard*: none.

pub mod config;
mod control;
mod controllers;
mod events;
mod lease;
mod open;
mod plan;
mod reload;
mod running;
mod shields;
mod sync;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::api::listen::{ListenError, Mutual};
use crate::api::socket::{ControlSocket, SocketError};
use crate::api::tls;
use crate::flow::{book_memory_bytes, table_memory_bytes};
use crate::orders::{Order, Orders};
use config::{Config, ConfigError, check_memory};
use lease::Leases;
pub use open::DeviceError;
pub use plan::NeedsRestart;
use reload::Applied;
use running::Backend;

/// How often the workers are looked after.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Why the backend does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A device of a vNIC cannot be opened.
    #[error("element {element}, vNIC {vnic}")]
    Device {
        /// Element's name.
        element: String,
        /// vNIC's name.
        vnic: String,
        /// Why.
        #[source]
        source: Box<DeviceError>,
    },
    /// The device of a shared uplink cannot be opened.
    #[error("shared uplink {name}")]
    SharedUplink {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: Box<DeviceError>,
    },
    /// The control socket cannot be served.
    #[error("the control socket")]
    Control(#[from] SocketError),
    /// Controllers cannot be served.
    #[error("the listener for controllers")]
    Listen(#[from] ListenError),
    /// The system refused a thread or a descriptor.
    #[error("cannot start threads: raise the limits of processes and open files")]
    Threads {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration was read again and cannot be followed.
    #[error(transparent)]
    Restart(#[from] NeedsRestart),
    /// A worker or the keeper ended by itself.
    #[error("a worker or keeper thread has ended; its log line says why")]
    WorkerEnded,
}

/// Checks a configuration file without opening any device.
///
/// # Errors
/// What is wrong with the file.
pub fn check(config: &Path) -> Result<(), BackendError> {
    if let Some(listener) = load(config)?.control_tls {
        tls::server(&listener.files()).map_err(ListenError::from)?;
    }
    Ok(())
}

/// Runs the backend until SIGTERM or SIGINT; SIGHUP has it read its configuration again.
///
/// # Errors
/// The configuration or a device cannot be used, or a worker ended.
pub fn run(path: &Path) -> Result<(), BackendError> {
    let config = load(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| BackendError::Threads { source })?;
    runtime.block_on(async {
        let orders = Orders::of_signals().map_err(|source| BackendError::Threads { source })?;
        serve(path, config, orders).await
    })
}

pub(crate) fn load(path: &Path) -> Result<Config, BackendError> {
    let config = Config::load(path)?;
    check_memory(config.sessions(), bytes_per_session())?;
    Ok(config)
}

/// What table and book take for each session of a quota, if all are IPv6's.
fn bytes_per_session() -> u64 {
    let flows = 1 << 20;
    let sessions = flows / open::FLOWS_A_SESSION;
    let (narrow, wide) = table_memory_bytes(flows);
    let bytes = narrow + wide + book_memory_bytes(sessions);
    bytes.div_ceil(u64::from(sessions))
}

/// An error and what caused it, in one line.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time of events, and what epochs start from"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Milliseconds since 1970.
fn wall_milliseconds() -> u64 {
    let since = wall_clock().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Serves `config`, read from `path`, until it is ordered to end.
///
/// # Errors
/// See [`run`].
pub(crate) async fn serve(
    path: &Path,
    config: Config,
    mut orders: Orders,
) -> Result<(), BackendError> {
    let socket = ControlSocket::bind(&config.backend.control).await?;
    let (hung_up, hangups) = tokio::sync::watch::channel(0_u64);
    let controllers = match &config.control_tls {
        Some(of) => Some((
            Mutual::bind(of.listen, of.files(), hangups).await?,
            of.clone(),
        )),
        None => None,
    };
    let (reloads, mut wishes) = tokio::sync::mpsc::channel(1);
    let (running, shared) = open::open(&config)?;
    let (leases, keeping) = config.lease.as_ref().map(Leases::new).unzip();
    let backend = Arc::new(Backend::new(running, reloads, leases));
    log::info!(
        "serving {} elements on {} workers, control on {}",
        config.elements.len(),
        config.backend.workers,
        socket.path().display()
    );
    let mut applied = Applied::new(path.to_owned(), config, shared);
    let kept = async {
        match keeping {
            Some(keeping) => keeping.keep(backend.clone()).await,
            None => std::future::pending().await,
        }
    };
    let ended = async {
        loop {
            tokio::select! {
                order = orders.next() => match order {
                    Order::End => return Ok(()),
                    Order::Renew => {
                        hung_up.send_modify(|count| *count += 1);
                        if let Err(error) = applied.reload(&backend).await {
                            log::error!("nothing is changed: {}", chain_of(&error));
                        }
                    }
                },
                Some(wish) = wishes.recv() => wish.carry_out(&mut applied, &backend).await,
                () = tokio::time::sleep(LOOK_AFTER) => {
                    if !backend.is_sound() {
                        return Err(BackendError::WorkerEnded);
                    }
                }
            }
            backend.look_after_shields().await;
        }
    };
    let (end, mut ending) = tokio::sync::watch::channel(false);
    let ended = async {
        let outcome = tokio::select! {
            outcome = ended => outcome,
            () = kept => Ok(()),
        };
        end.send_replace(true);
        outcome
    };
    let remote = ending.clone();
    let remote = async {
        if let Some((listener, of)) = controllers {
            let routes = controllers::routes(backend.clone(), &of.controllers);
            listener.serve(routes, remote).await;
        }
    };
    let shutdown = async {
        let _ended = ending.wait_for(|ending| *ending).await;
    };
    let (outcome, (), ()) = tokio::join!(
        ended,
        remote,
        crate::api::serve(socket.listener(), backend.clone(), shutdown)
    );
    log::info!("ending");
    outcome
}
