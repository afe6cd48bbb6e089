//! The program `shunt backend`: the daemon that serves elements.
//!
//! *Promises*: everything in the configuration runs, or nothing does and the error says
//! why; SIGTERM and SIGINT end it in order, sockets removed.
//! *Refuses*: a configuration that contradicts itself, tables larger than memory, devices
//! and sockets that others use.
//! *Caller's duty*: logging is set up before. *Standard*: none.

pub mod config;
mod control;
mod open;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::api::socket::{ControlSocket, SocketError};
use crate::flow::{book_memory_bytes, table_memory_bytes};
use config::{Config, ConfigError};
pub use open::DeviceError;

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
    /// The system refused a thread or a descriptor.
    #[error("cannot start threads: raise the limits of processes and open files")]
    Threads {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A table was made without a reader.
    #[error("a flow table has no reader")]
    Reader,
    /// A worker or the keeper ended by itself.
    #[error("a worker or keeper thread has ended; its log line says why")]
    WorkerEnded,
}

/// Checks a configuration file without opening any device.
///
/// # Errors
/// What is wrong with the file.
pub fn check(config: &Path) -> Result<(), BackendError> {
    load(config).map(|_| ())
}

/// Runs the backend until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration or a device cannot be used, or a worker ended.
pub fn run(config: &Path) -> Result<(), BackendError> {
    let config = load(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| BackendError::Threads { source })?;
    runtime.block_on(serve(&config))
}

fn load(path: &Path) -> Result<Config, BackendError> {
    let config = Config::load(path)?;
    let flows = 1 << 20;
    let (narrow, wide) = table_memory_bytes(flows);
    let sessions = flows / open::FLOWS_A_SESSION;
    let bytes = narrow + wide + book_memory_bytes(sessions);
    config.check_memory(bytes.div_ceil(u64::from(sessions)))?;
    Ok(config)
}

async fn serve(config: &Config) -> Result<(), BackendError> {
    let threads = |source| BackendError::Threads { source };
    let mut terminate = signal(SignalKind::terminate()).map_err(threads)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(threads)?;
    let socket = ControlSocket::bind(&config.backend.control).await?;
    let backend = Arc::new(control::Backend::new(open::open(config)?));
    log::info!(
        "serving {} elements on {} workers, control on {}",
        config.elements.len(),
        config.backend.workers,
        socket.path().display()
    );
    let ended = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                () = tokio::time::sleep(LOOK_AFTER) => {
                    if !backend.is_sound() {
                        return Err(BackendError::WorkerEnded);
                    }
                }
            }
        }
    };
    let (end, ending) = tokio::sync::oneshot::channel();
    let ended = async {
        let outcome = ended.await;
        // The server may have ended before; then nobody listens.
        let _nobody = end.send(());
        outcome
    };
    let shutdown = async {
        let _ended = ending.await;
    };
    let (outcome, ()) = tokio::join!(
        ended,
        crate::api::serve(socket.listener(), backend.clone(), shutdown)
    );
    log::info!("ending");
    outcome
}
