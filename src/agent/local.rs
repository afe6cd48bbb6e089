//! HTTP on a unix socket, for programs in the guest.
//!
//! *Promises*: the file's group and mode say who may connect, from the moment its name exists;
//! connections and the time of their heads are bounded; the socket's directory is made if it is
//! not there.
//! *Refuses*: more than [`CONNECTIONS_MAX`] connections at a time: more wait.
//! *Caller's duty*: bounds what an answer costs.
//! *Standard*: RFC 9112, RFC 9457, unix(7), group(5).

use std::convert::Infallible;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::api::{ControlSocket, SocketError};

/// Connections at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// How long the head of a request may take, and a connection be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after accepting failed, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A group of the system.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
pub enum Group {
    /// By its number.
    Number(u32),
    /// By its name.
    Name(String),
}

impl FromStr for Group {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let number = text.parse().map(Self::Number);
        Ok(number.unwrap_or_else(|_| Self::Name(text.to_owned())))
    }
}

impl Group {
    /// Its number. Groups of a directory service are not looked for: a static binary cannot.
    fn id(&self) -> Option<u32> {
        match self {
            Self::Number(id) => Some(*id),
            Self::Name(name) => number_of(&std::fs::read_to_string("/etc/group").ok()?, name),
        }
    }
}

/// The number of the group `name` in a text as group(5) says.
fn number_of(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        fields.nth(1)?.parse().ok().filter(|_| is_it)
    })
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// There is no such group.
    #[error("there is no group `{0}` in /etc/group")]
    NoGroup(String),
    /// It cannot be given to its group.
    #[error("cannot set owner and mode of {}", path.display())]
    Owner {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct Local(ControlSocket);

impl Local {
    /// Listens at `path`, for `group` with `mode`.
    ///
    /// # Errors
    /// See [`LocalError`].
    pub async fn bind(path: &Path, mode: u32, group: Option<&Group>) -> Result<Self, LocalError> {
        let group = match group {
            Some(group) => match (group.id(), group) {
                (Some(id), _) => Some(id),
                (None, Group::Name(name)) => return Err(LocalError::NoGroup(name.clone())),
                (None, Group::Number(_)) => None,
            },
            None => None,
        };
        if let Some(directory) = path.parent() {
            // Where that fails, the socket's error says so.
            let _later = std::fs::DirBuilder::new().mode(0o755).create(directory);
        }
        let socket = ControlSocket::bind(path).await?;
        let owned = chown(path, None, group)
            .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)));
        owned.map_err(|source| LocalError::Owner {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self(socket))
    }

    /// Answers requests, for ever.
    pub async fn serve<A, F>(&self, answer: A) -> Infallible
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let seat = Arc::clone(&seats).acquire_owned().await;
            while connections.try_join_next().is_some() {}
            match (self.0.listener().accept().await, seat) {
                (Ok((stream, _)), Ok(seat)) => {
                    connections.spawn(converse(stream, answer.clone(), seat));
                }
                (Err(error), _) => {
                    let path = self.0.path().display();
                    log::warn!("{path} cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                // Seats are never closed.
                (Ok(_), Err(_)) => {}
            }
        }
    }
}

async fn converse<A, F>(stream: UnixStream, answer: A, _seat: OwnedSemaphorePermit)
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        log::debug!("a local connection broke: {error}");
    }
}

/// An answer of the agent's own that is no success. `is_perhaps_done`: the host may have carried
/// the request out.
pub fn problem(status: StatusCode, detail: &str, is_perhaps_done: bool) -> Response<Body> {
    let body = json!({
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "detail": detail,
        "side": "agent",
        "applied": if is_perhaps_done { "unknown" } else { "no" },
    });
    let mut response = json_answer(status, &body);
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// An answer with a body.
pub fn json_answer(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_a_number_or_a_name_of_etc_group() {
        let groups = "root:x:0:\nadm:x:4:syslog,me\n\nbroken\nadmin:x:x:\n";
        assert_eq!(number_of(groups, "adm"), Some(4));
        assert_eq!(number_of(groups, "admin"), None);
        assert_eq!(number_of(groups, "broken"), None);
        assert_eq!(number_of(groups, "me"), None);
        assert_eq!("17".parse(), Ok(Group::Number(17)));
        assert_eq!("root".parse::<Group>().map(|group| group.id()), Ok(Some(0)));
    }

    #[tokio::test]
    async fn a_socket_has_the_mode_that_was_set_and_a_second_agent_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/s.sock");
        let local = Local::bind(&path, 0o600, None).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = Local::bind(&path, 0o600, None).await.unwrap_err();
        assert!(second.to_string().contains("another process"), "{second}");
        drop(local);
        let nobody = Group::Name("no such group".to_owned());
        let error = Local::bind(&path, 0o600, Some(&nobody)).await.unwrap_err();
        assert!(matches!(error, LocalError::NoGroup(_)));
    }
}
