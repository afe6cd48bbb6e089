//! Why a command failed, and how that is told.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::agent::AgentError;
use crate::api::{ApiError, ClientError};
use crate::backend::BackendError;
use crate::controller::ControllerError;
use crate::relay::RelayError;
use crate::up::UpError;

use super::agent::AskError;
use super::call::CallError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// Talking to the backend failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The backend ended with an error.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The relay ended with an error.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The controller ended with an error.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// What runs all in one ended with an error.
    #[error(transparent)]
    Up(#[from] UpError),
    /// A request over a serial port failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The agent ended with an error.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Asking the agent failed.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not the input of `offload`.
    #[error("{} is not an input of `offload`; see `shunt session add --help`", path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Fault,
    },
    /// No element is served.
    #[error("the backend serves no element: add one to its configuration")]
    NoElement,
    /// Several elements are served.
    #[error("say which element is meant with --element: there are {0}")]
    WhichElement(String),
    /// The session is not there.
    #[error("element `{element}` has no session `{key}`: it ended, or was never offloaded")]
    NoSession {
        /// Whose.
        element: String,
        /// Which.
        key: String,
    },
    /// A shield that polices, without a rate.
    #[error("a shield that polices needs --packet-rate or --bit-rate")]
    WhichRate,
    /// A rate for a shield that does not police.
    #[error("--packet-rate, --bit-rate and --burst are for --action police")]
    NoRate,
    /// stdout cannot be written.
    #[error("cannot write to stdout")]
    Output(#[source] io::Error),
    /// An answer cannot be printed.
    #[error("cannot print the answer")]
    Json(#[source] serde_json::Error),
    /// The runtime cannot start.
    #[error("cannot start the I/O runtime")]
    Runtime(#[source] io::Error),
}

/// A fault in an input: its path and what is wrong there.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", path.as_deref().map(|path| format!("{path}: ")).unwrap_or_default(), message)]
pub(super) struct Fault {
    path: Option<String>,
    message: String,
}

impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Self {
        Self {
            path: error.entry.error_path,
            message: error.entry.error_message,
        }
    }
}

/// Prints an error and what caused it, a line each.
pub(super) fn print_chain(error: &dyn Error) {
    eprintln!("shunt: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}
