//! Why a command for hosts failed.

use std::io;
use std::path::PathBuf;

use crate::api::{ApiError, ClientError};
use crate::backend::BackendError;
use crate::cli::print::PrintError;
use crate::cli::shield_flags::FlagsError;
use crate::controller::ControllerError;
use crate::relay::RelayError;
use crate::up::UpError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum HostError {
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
    /// Flags that make no shield.
    #[error(transparent)]
    Flags(#[from] FlagsError),
    /// The answer could not be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
}

/// A fault in an input: its path and what is wrong there.
#[derive(Debug, thiserror::Error)]
#[error("{}{}", path.as_deref().map(|path| format!("{path}: ")).unwrap_or_default(), message)]
pub(in crate::cli) struct Fault {
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
