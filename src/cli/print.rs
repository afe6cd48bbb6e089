//! What a command prints to stdout.

use std::io::{self, ErrorKind, Write as _};

/// Why a command's answer could not be printed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrintError {
    /// stdout cannot be written.
    #[error("cannot write to stdout")]
    Output(#[source] io::Error),
    /// It cannot be said in JSON.
    #[error("cannot print the answer")]
    Json(#[source] serde_json::Error),
}

/// Prints text at once. A reader that went away (`| head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), PrintError> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes());
    match printed.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(PrintError::Output(error)),
        _ => Ok(()),
    }
}

/// Prints JSON for machines.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), PrintError> {
    let mut text = serde_json::to_string_pretty(value).map_err(PrintError::Json)?;
    text.push('\n');
    print(&text)
}
