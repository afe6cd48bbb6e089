//! The backend program. This file is a placeholder of branch `api`; the backend's own replaces it.

use std::path::Path;

/// Why the backend ended.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Not wired.
    #[error("this build has no backend")]
    Absent,
}

/// Runs the backend until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration or a device cannot be used.
pub fn run(_config: &Path) -> Result<(), BackendError> {
    Err(BackendError::Absent)
}

/// Checks a configuration file without opening any device.
///
/// # Errors
/// What is wrong with the file.
pub fn check(_config: &Path) -> Result<(), BackendError> {
    Err(BackendError::Absent)
}
