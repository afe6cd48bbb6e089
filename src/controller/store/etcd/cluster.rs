//! The members of an etcd cluster, and the connection to one of them.
//!
//! *Promises*: one member is talked to as long as it answers; one that does not is left for
//! the next, and dialled anew, with the certificates as they are then, when its turn comes.
//! A question is asked until it is answered or [`PATIENCE`] is over; a change is tried again
//! only where it certainly did not arrive.
//! *Refuses*: members without a leader.
//! *Caller's duty*: what was asked may be asked twice; a change that ended with another
//! failure may have been carried out.
//! *Standard*: etcd's API v3; gRPC status codes.

use std::error::Error as _;
use std::future::Future;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, Identity, KvClient, TlsOptions, WatchClient,
    WatchOptions, WatchStream,
};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

/// How long a member may take for one answer.
const TRY: Duration = Duration::from_millis(1_500);
/// How long a member may take to be connected to.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a question is asked again.
const PATIENCE: Duration = Duration::from_secs(3);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// How long after [`PATIENCE`] ran out it is known that it will.
const REST: Duration = Duration::from_secs(1);
/// A member that does not answer a ping within five seconds is gone. etcd refuses clients
/// that ping more often than every five.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Largest answer.
const ANSWER_MAX: usize = 64 << 20;

/// gRPC's numbers of what went wrong.
const INVALID_ARGUMENT: i32 = 3;
const OUT_OF_RANGE: i32 = 11;
/// What etcd says, before it looks at a request, on a member that knows no leader.
const NO_LEADER: &str = "etcdserver: no leader";

/// Files for TLS, PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The authorities of members.
    pub ca: PathBuf,
    /// Our certificate, and its private key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It said so, or the connection broke.
    #[error("etcd at {member}: {source}")]
    Etcd {
        /// Which member.
        member: String,
        /// What.
        source: Error,
    },
    /// It said nothing.
    #[error("etcd at {0} does not answer in time")]
    Silent(String),
    /// A file for TLS cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Failed {
    fn code(&self) -> Option<i32> {
        match self {
            Self::Etcd {
                source: Error::GRpcStatus(status),
                ..
            } => Some(status.code().into()),
            _ => None,
        }
    }

    /// Whether more was asked for than an answer takes, or than is kept.
    pub fn is_out_of_range(&self) -> bool {
        self.code() == Some(OUT_OF_RANGE)
    }

    /// Whether another member would say the same.
    fn is_final(&self) -> bool {
        matches!(self.code(), Some(INVALID_ARGUMENT | OUT_OF_RANGE))
    }

    /// Whether what was sent certainly did not arrive.
    fn is_unsent(&self) -> bool {
        match self {
            Self::File { .. } => true,
            Self::Silent(_) => false,
            Self::Etcd { source, .. } => match source {
                Error::GRpcStatus(status) if status.message() == NO_LEADER => true,
                Error::GRpcStatus(status) => {
                    let mut cause = status.source();
                    while let Some(error) = cause {
                        // Only connecting ends so.
                        if let Some(error) = error.downcast_ref::<std::io::Error>()
                            && error.kind() == ErrorKind::ConnectionRefused
                        {
                            return true;
                        }
                        cause = error.source();
                    }
                    false
                }
                _ => false,
            },
        }
    }
}

/// See the module.
pub struct Cluster {
    members: Vec<String>,
    files: Option<Files>,
    current: Mutex<Current>,
    begun: Instant,
    /// Until when nothing need be asked, in milliseconds from `begun`.
    resting: AtomicU64,
}

struct Current {
    /// Counts connections; by it the next member follows from the last.
    number: usize,
    connection: Option<Connection>,
}

#[derive(Clone)]
struct Connection {
    number: usize,
    member: String,
    kv: KvClient,
    watch: WatchClient,
}

impl Cluster {
    /// `members` are URLs, at least one. Nothing is connected to yet.
    pub fn new(members: Vec<String>, files: Option<Files>) -> Self {
        Self {
            members,
            files,
            current: Mutex::new(Current {
                number: 0,
                connection: None,
            }),
            begun: Instant::now(),
            resting: AtomicU64::new(0),
        }
    }

    /// Asks until there is an answer.
    pub async fn ask<T, F>(&self, ask: impl Fn(KvClient) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let outcome = self.persist(ask, |failed| !failed.is_final()).await;
        if outcome.as_ref().is_err_and(|failed| !failed.is_final()) {
            let until = (self.begun.elapsed() + REST).as_millis();
            let until = u64::try_from(until).unwrap_or(u64::MAX);
            self.resting.store(until, Ordering::Relaxed);
        }
        outcome
    }

    /// Whether asking has just failed for so long that it would again.
    pub fn is_resting(&self) -> bool {
        let until = Duration::from_millis(self.resting.load(Ordering::Relaxed));
        self.begun.elapsed() < until
    }

    /// Asks for a change, once it can be asked for.
    pub async fn change<T, F>(&self, ask: impl Fn(KvClient) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.persist(ask, Failed::is_unsent).await
    }

    /// A watch of what `key` and `options` say.
    pub async fn watch(&self, key: &str, options: WatchOptions) -> Result<WatchStream, Failed> {
        let connection = self.connection().await?;
        let mut watch = connection.watch.clone();
        self.judged(&connection, watch.watch(key, Some(options)))
            .await
    }

    async fn persist<T, F>(
        &self,
        ask: impl Fn(KvClient) -> F,
        may_again: impl Fn(&Failed) -> bool,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let begun = Instant::now();
        loop {
            let outcome = match self.connection().await {
                Ok(connection) => self.judged(&connection, ask(connection.kv.clone())).await,
                Err(failed) => Err(failed),
            };
            match outcome {
                Err(failed) if may_again(&failed) && begun.elapsed() < PATIENCE => {
                    log::debug!("once more: {failed}");
                    sleep(PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// What an answer over `connection` is; without one the next goes over another.
    async fn judged<T>(
        &self,
        connection: &Connection,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failed> {
        let member = connection.member.clone();
        let failed = match timeout(TRY, answer).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(source)) => Failed::Etcd { member, source },
            Err(_) => Failed::Silent(member),
        };
        if !failed.is_final() {
            let mut current = self.current.lock().await;
            // Others may have left it already.
            if current.number == connection.number {
                current.number = current.number.wrapping_add(1);
                current.connection = None;
            }
        }
        Err(failed)
    }

    async fn connection(&self) -> Result<Connection, Failed> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok(connection.clone());
        }
        let number = current.number;
        let index = number.checked_rem(self.members.len()).unwrap_or_default();
        let member = self.members.get(index).cloned().unwrap_or_default();
        let options = self.options()?;
        // It says what is wrong with the URL; members are dialled by the first request.
        let client = Client::connect([&member], Some(options))
            .await
            .map_err(|source| Failed::Etcd {
                member: member.clone(),
                source,
            })?;
        let connection = Connection {
            number,
            member,
            kv: client.kv_client().max_decoding_message_size(ANSWER_MAX),
            watch: client.watch_client().max_decoding_message_size(ANSWER_MAX),
        };
        current.connection = Some(connection.clone());
        Ok(connection)
    }

    /// How to connect; reads the certificates.
    fn options(&self) -> Result<ConnectOptions, Failed> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING.0, PING.1)
            .with_require_leader(true);
        Ok(match &self.files {
            Some(files) => options.with_tls(tls(files)?),
            None => options,
        })
    }

    /// Whether the files for TLS can be read.
    ///
    /// # Errors
    /// [`Failed::File`].
    pub fn check(&self) -> Result<(), Failed> {
        self.options().map(drop)
    }
}

fn tls(files: &Files) -> Result<TlsOptions, Failed> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| Failed::File {
            path: path.clone(),
            source,
        })
    };
    let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&files.ca)?));
    if let Some((certificate, key)) = &files.own {
        options = options.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(options)
}
