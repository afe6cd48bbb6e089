//! Whether the tables that the quotas promise fit into memory.
//!
//! *Promises*: sums do not overflow: too much is an answer, not a small number.
//! *Refuses*: nothing. Limits of a control group and what others take later are not seen.
//! *Caller's duty*: the table's true size per session.
//! *Standard*: proc_meminfo(5).

use std::io;

use super::ConfigError;

/// Checks the memory of new tables for `sessions` in all, at `bytes_per_session`, against what
/// the host has available now (`MemAvailable`). Limits of a control group are not seen.
///
/// # Errors
/// [`ConfigError::Memory`] with both numbers, or [`ConfigError::MemoryUnknown`].
pub fn check_memory(sessions: u64, bytes_per_session: u64) -> Result<(), ConfigError> {
    let available = std::fs::read_to_string("/proc/meminfo")
        .and_then(|text| {
            available_bytes(&text)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemAvailable"))
        })
        .map_err(|source| ConfigError::MemoryUnknown { source })?;
    check_memory_of(sessions, bytes_per_session, available)
}

pub(super) fn check_memory_of(
    sessions: u64,
    bytes_per_session: u64,
    available: u64,
) -> Result<(), ConfigError> {
    let needed = sessions.saturating_mul(bytes_per_session);
    if needed <= available {
        return Ok(());
    }
    Err(ConfigError::Memory {
        sessions,
        needed,
        available,
    })
}

/// `MemAvailable` of a `/proc/meminfo`, in bytes.
pub(super) fn available_bytes(meminfo: &str) -> Option<u64> {
    let rest = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1_024)
}
