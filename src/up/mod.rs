//! The program `shunt up`: backend, relay and controller of one host in one process.
//!
//! *Promises*: everything in the file runs, or nothing does and the error says why. Each
//! part is the program of its name, with all of its checks; it ends with the others, in
//! order: the relay, so that nothing more is asked; the controller; the backend.
//! *Refuses*: a file in which no element has a serial port.
//! *Caller's duty*: logging is set up before. *Standard*: none.
//!
//! Between relay and controller there is no TLS, as there is nothing to keep out: their
//! connections have no address ([`passage`]). Tokens are
//! signed and verified all the same, by a certificate made at the start, whose key is never
//! written down.

mod derive;
mod part;

use std::path::Path;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::CertificateDer;
use tokio::task::JoinError;

use crate::api::identity::{Signer, SignerError};
use crate::api::passage::passage;
use crate::backend::config::Config;
use crate::backend::{self, BackendError};
use crate::controller::{self, ControllerError, Inside};
use crate::orders::Orders;
use crate::relay::{self, Credentials, RelayError};
use part::{Part, oversee};

/// Threads of the control plane: it lives beside the workers.
const THREADS: usize = 2;

/// Why it does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The backend, or the file.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The relay.
    #[error("the relay")]
    Relay(#[from] RelayError),
    /// The controller.
    #[error("the controller")]
    Controller(#[from] ControllerError),
    /// Nobody could ask for anything.
    #[error(
        "no element has a serial port: give one `serial = {{ socket = …, uid = … }}`, or run \
         `shunt backend`"
    )]
    NoPorts,
    /// The values contradict each other for the relay.
    #[error("`[up]` and the serial ports do not go together: {0}")]
    Ports(String),
    /// No certificate can be made.
    #[error("cannot make a certificate for host `{host}`: give a DNS name")]
    Certificate {
        /// The host.
        host: String,
        /// Why.
        source: rcgen::Error,
    },
    /// The certificate made cannot sign.
    #[error("cannot sign for host `{host}`: give a DNS name")]
    Signer {
        /// The host.
        host: String,
        /// Why.
        source: SignerError,
    },
    /// The system refused a thread or a signal.
    #[error("cannot start threads: raise the limits of processes and open files")]
    Threads(#[source] std::io::Error),
    /// A part ended for no reason of its own.
    #[error("the {0} has ended, and nobody told it to")]
    Ended(&'static str),
    /// A part was lost.
    #[error("the {name} broke")]
    Broke {
        /// Which.
        name: &'static str,
        /// How.
        source: JoinError,
    },
}

/// Checks a file without opening anything.
///
/// # Errors
/// What is wrong with it.
pub fn check(path: &Path) -> Result<(), UpError> {
    let config = backend::load(path)?;
    derive::relay(&config)?;
    identity(&config.up.host)?;
    Ok(())
}

/// Runs until SIGTERM or SIGINT. At SIGHUP the backend reads the file again, and the
/// controller opens its audit log anew.
///
/// # Errors
/// A part cannot start, or ended.
pub fn run(path: &Path) -> Result<(), UpError> {
    let config = backend::load(path)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(UpError::Threads)?
        .block_on(async {
            let orders = Orders::of_signals().map_err(UpError::Threads)?;
            oversee(start(path, config)?, orders).await
        })
}

/// The parts, in the order in which they end.
fn start(path: &Path, config: Config) -> Result<Vec<Part>, UpError> {
    let (door, visitors) = passage();
    let (signer, certificate) = identity(&config.up.host)?;
    let of_relay = derive::relay(&config)?;
    let of_controller = derive::controller(&config);
    let inside = Inside {
        inventory: derive::inventory(&config),
        relay: controller::Relay {
            visitors,
            certificate,
        },
    };
    let path = path.to_owned();
    let backend = Part::start("backend", |orders| async move {
        Ok(backend::serve(&path, config, orders).await?)
    });
    let controller = Part::start("controller", |orders| async move {
        Ok(controller::serve(&of_controller, Some(inside), orders).await?)
    });
    let relay = Part::start("relay", |orders| async move {
        let credentials = Credentials::inside(signer, door);
        Ok(relay::serve_with(of_relay, credentials, orders).await?)
    });
    Ok(vec![relay, controller, backend])
}

/// A new key for the relay of `host`, and its certificate.
fn identity(host: &str) -> Result<(Signer, CertificateDer<'static>), UpError> {
    let made = generate_simple_self_signed([host.to_owned()]);
    let CertifiedKey { cert, signing_key } = made.map_err(|source| UpError::Certificate {
        host: host.to_owned(),
        source,
    })?;
    let certificate = cert.der().clone();
    let signer = Signer::new(host, &certificate, signing_key.serialized_der());
    let signer = signer.map_err(|source| UpError::Signer {
        host: host.to_owned(),
        source,
    })?;
    Ok((signer, certificate))
}
