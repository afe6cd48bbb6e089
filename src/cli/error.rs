//! Why a command failed, and how that is told.

use std::error::Error;
use std::io;

use super::call::CallError;
#[cfg(feature = "host")]
use super::host::HostError;
use super::print::PrintError;

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
