//! Single values: each is checked where it is read, so that the error has its line.
//!
//! *Promises*: what is returned keeps the limits of `docs/relay.md`.
//! *Refuses*: the rest, with what to write instead.
//! *Caller's duty*: none. *Standard*: unix(7) for the length of socket paths.

use std::path::{Path, PathBuf};

use axum::http::HeaderName;
use axum::http::uri::{Scheme, Uri};
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::{is_prefix, is_reserved};

/// The longest path of a unix socket: `sun_path` has 108 bytes with the final NUL.
const SOCKET_PATH_MAX: usize = 107;

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

/// A name of an element.
pub(super) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (1..=32).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err(D::Error::custom(format!(
            "`{name}` is no name: give 1 to 32 of the characters a-z, A-Z, 0-9, `_`, `.` and `-`"
        )))
    }
}

/// The absolute path of a socket.
pub(super) fn socket<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    checked_socket(PathBuf::deserialize(from)?).map_err(D::Error::custom)
}

fn checked_socket(path: PathBuf) -> Result<PathBuf, String> {
    if path.is_absolute() && path.as_os_str().len() <= SOCKET_PATH_MAX {
        Ok(path)
    } else {
        Err(format!(
            "`{}` cannot be a socket: give an absolute path of at most {SOCKET_PATH_MAX} bytes",
            path.display()
        ))
    }
}

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum Url {
    /// A controller, by mTLS.
    Https {
        /// DNS name or address; also what its certificate must name.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A server on this host.
    Unix(PathBuf),
    /// The controller of this process; no file can say so.
    Inside,
}

impl TryFrom<String> for Url {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return checked_socket(Path::new(path).to_owned()).map(Self::Unix);
        }
        let wrong = || format!("`{text}` is no upstream: give https://HOST[:PORT] or unix:PATH");
        let url: Uri = text.parse().map_err(|_| wrong())?;
        let host = url.host().unwrap_or_default();
        let is_bare = url.scheme() == Some(&Scheme::HTTPS)
            && url.path_and_query().is_none_or(|path| path == "/")
            && url
                .authority()
                .is_some_and(|all| !all.as_str().contains('@'));
        if host.is_empty() || !is_bare {
            return Err(wrong());
        }
        Ok(Self::Https {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: url.port_u16().unwrap_or(443),
        })
    }
}

/// A path, everything at or below which passes.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Prefix(String);

impl Prefix {
    /// Whether `path` is this one or below it, segment by segment.
    pub fn covers(&self, path: &str) -> bool {
        let below = path.strip_prefix(self.0.trim_end_matches('/'));
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if is_prefix(&text) {
            Ok(Self(text))
        } else {
            Err(format!(
                "`{text}` is no path: give one as `/restconf`, without a slash at its end"
            ))
        }
    }
}

/// Names of headers.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Headers(Vec<HeaderName>);

impl Headers {
    /// The headers of these names, which are lower case.
    pub(super) fn of(names: &[&'static str]) -> Self {
        Self(names.iter().copied().map(HeaderName::from_static).collect())
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter()
    }
}

impl TryFrom<Vec<String>> for Headers {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        let check = |text: String| match HeaderName::try_from(&text) {
            Ok(name) if !is_reserved(&name) => Ok(name),
            Ok(_) => Err(format!("`{text}` is the relay's own: it cannot be listed")),
            Err(_) => Err(format!("`{text}` is no name of a header")),
        };
        names
            .into_iter()
            .map(check)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}
