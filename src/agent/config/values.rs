//! Single values: each is checked where it is read, so that the error has its line.
//!
//! *Promises*: what is returned keeps the limits of `docs/agent.example.toml`.
//! *Refuses*: the rest, with what to write instead.
//! *Caller's duty*: none. *Standard*: unix(7) for the length of socket paths, nft(8) for names.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// The longest path of a unix socket: `sun_path` has 108 bytes with the final NUL.
const SOCKET_PATH_MAX: usize = 107;
/// The longest name of a table or set (`NFT_NAME_MAXLEN`, with its NUL).
const NFT_NAME_MAX: usize = 255;

/// A number of `MIN` to `MAX`.
pub(super) fn within<'de, D, const MIN: u32, const MAX: u32>(from: D) -> Result<u32, D::Error>
where
    D: Deserializer<'de>,
{
    let value = i64::deserialize(from)?;
    u32::try_from(value)
        .ok()
        .filter(|value| (MIN..=MAX).contains(value))
        .ok_or_else(|| D::Error::custom(format!("{value} is out of range: give {MIN} to {MAX}")))
}

/// Seconds of `MIN` to `MAX`, also with a fraction.
pub(super) fn seconds<'de, D, const MIN: u32, const MAX: u32>(from: D) -> Result<Duration, D::Error>
where
    D: Deserializer<'de>,
{
    struct Seconds;
    impl Visitor<'_> for Seconds {
        type Value = f64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number of seconds")
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
            // What is larger than all limits may lose its last bits.
            Ok(value as f64)
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
            Ok(value)
        }
    }
    let value = from.deserialize_any(Seconds)?;
    if (f64::from(MIN)..=f64::from(MAX)).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(D::Error::custom(format!(
            "{value} is out of range: give {MIN} to {MAX} seconds"
        )))
    }
}

/// The absolute path of a socket.
pub(super) fn socket<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.is_absolute() && path.as_os_str().len() <= SOCKET_PATH_MAX {
        Ok(path)
    } else {
        Err(D::Error::custom(format!(
            "`{}` cannot be a socket: give an absolute path of at most {SOCKET_PATH_MAX} bytes",
            path.display()
        )))
    }
}

/// Permissions of a socket: octal, in a text.
pub(super) fn mode<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let text = String::deserialize(from)?;
    let mode = u32::from_str_radix(&text, 8).ok();
    mode.filter(|mode| *mode <= 0o777)
        .ok_or_else(|| D::Error::custom(format!("`{text}` are no permissions: write \"0660\"")))
}

/// The name of a table or set.
pub(super) fn nft_name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    if (1..=NFT_NAME_MAX).contains(&name.len()) && !name.contains('\0') {
        Ok(name)
    } else {
        Err(D::Error::custom(format!("`{name}` is no name of nftables")))
    }
}
