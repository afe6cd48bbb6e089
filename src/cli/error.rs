//! Why a command failed, and how that is told.

use std::error::Error;
use std::io;

#[cfg(feature = "agent")]
use crate::agent::AgentError;

#[cfg(feature = "agent")]
use super::agent::AskError;
use super::call::CallError;
#[cfg(feature = "host")]
use super::host::HostError;
use super::print::PrintError;
#[cfg(feature = "agent")]
use super::shield_flags::FlagsError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// Of what runs on hosts.
    #[cfg(feature = "host")]
    #[error(transparent)]
    Host(#[from] HostError),
    /// A request over a serial port failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The agent ended with an error.
    #[cfg(feature = "agent")]
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Asking the agent failed.
    #[cfg(feature = "agent")]
    #[error(transparent)]
    Ask(#[from] AskError),
    /// Flags that make no shield.
    #[cfg(feature = "agent")]
    #[error(transparent)]
    Flags(#[from] FlagsError),
    /// The answer could not be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
    /// The runtime cannot start.
    #[error("cannot start the I/O runtime")]
    Runtime(#[source] io::Error),
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
