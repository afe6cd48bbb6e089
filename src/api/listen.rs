//! Accepting connections and answering requests on them.
//!
//! *Promises*: handshakes, first bytes, heads and connections are bounded in time and number;
//! who has not shown a certificate takes nobody's place who has, and no peer all places. Each
//! request carries who its peer is ([`Peer`]).
//! *Refuses*: more connections than its [`Limits`], in all or of one peer; what is no HTTP.
//! *Caller's duty*: judge the peer.
//! *Standard*: RFC 9112, RFC 9113.

#![expect(
    clippy::disallowed_types,
    reason = "guards counters for an instant, among control tasks; no worker takes it"
)]

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use axum::middleware;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection::{Bounds, Connection, Use};
use super::drain::drained;
use super::passage::Visitors;
use super::preface;
use super::tls::{self, Files, TlsError};

/// Connections of a local listener at a time.
const LOCAL_MAX: usize = 4_096;
/// Handshakes at a time; more wait.
pub const HANDSHAKES_MAX: usize = 256;
/// Requests at a time on one connection of HTTP/2.
const STREAMS_MAX: u32 = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer of HTTP/2 that does not answer is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long requests may take once their connection is to end.
const GRACE: Duration = Duration::from_secs(2);
/// The pause after accepting failed, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections a listener with TLS takes at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// In all.
    pub max_connections: NonZeroU32,
    /// Of one certificate.
    pub max_connections_per_peer: NonZeroU32,
}

impl Default for Limits {
    fn default() -> Self {
        let [all, of_peer] = [4_096, 1_024].map(NonZeroU32::new);
        Self {
            max_connections: all.unwrap_or(NonZeroU32::MIN),
            max_connections_per_peer: of_peer.unwrap_or(NonZeroU32::MIN),
        }
    }
}

/// Who sends a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A local process that may use the socket.
    Local,
    /// Whoever has the key of this certificate.
    Certificate {
        /// Its DER.
        der: Arc<[u8]>,
        /// Its DNS names.
        names: Arc<[String]>,
    },
}

impl Peer {
    /// What logs call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Local => "local",
            Self::Certificate { names, .. } => names.first().map_or("unnamed", String::as_str),
        }
    }

    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self::Certificate {
            der: certificate.as_ref().into(),
            names: tls::names(certificate).into(),
        }
    }
}

/// Serves `app` on a unix socket until `ending`.
pub async fn local(listener: &UnixListener, app: Router, ending: watch::Receiver<bool>) {
    let accept = |context: &mut Context<'_>| {
        let accepted = listener.poll_accept(context);
        accepted.map(|accepted| accepted.map(|(stream, _)| stream))
    };
    serve(LOCAL_MAX, accept, ending, |stream, seat, ending| {
        let app = app.clone();
        async move {
            let never = std::future::pending();
            converse(stream, app, Peer::Local, ending, never).await;
            drop(seat);
        }
    })
    .await;
}

/// Serves `app` to another program of this process until `ending`: who comes as `visitors` is
/// the owner of `certificate`.
pub async fn inside(
    mut visitors: Visitors,
    certificate: CertificateDer<'static>,
    app: Router,
    ending: watch::Receiver<bool>,
) {
    let peer = Peer::of(&certificate);
    let accept = move |context: &mut Context<'_>| visitors.poll_accept(context);
    serve(LOCAL_MAX, accept, ending, |stream, seat, ending| {
        let (app, peer) = (app.clone(), peer.clone());
        async move {
            let never = std::future::pending();
            converse(stream, app, peer, ending, never).await;
            drop(seat);
        }
    })
    .await;
}

/// Why nothing is listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot.
    #[error("cannot listen on {address}: is it this machine's, and free?")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A listener with mutual TLS.
pub struct Mutual {
    listener: TcpListener,
    current: watch::Receiver<Arc<ServerConfig>>,
    limits: Limits,
}

impl Mutual {
    /// Listens on `address`; `hangup` is told when `files` are to be read again.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub async fn bind(
        address: SocketAddr,
        files: Files,
        hangup: watch::Receiver<u64>,
    ) -> Result<Self, ListenError> {
        let (sender, current) = watch::channel(tls::server(&files)?);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ListenError::Address { address, source })?;
        if let Ok(address) = listener.local_addr() {
            log::info!("serving on {address}, {}", files.certificate.display());
        }
        tokio::spawn(tls::keep(files, tls::server, sender, hangup));
        Ok(Self {
            listener,
            current,
            limits: Limits::default(),
        })
    }

    /// With other limits than the default ones.
    #[must_use]
    pub fn within(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Serves `app` until `ending`.
    pub async fn serve(self, app: Router, ending: watch::Receiver<bool>) {
        let Self {
            listener,
            current,
            limits,
        } = self;
        let guests = Guests::within(limits);
        let bounds = Bounds::new(ending.clone());
        let accept = |context: &mut Context<'_>| {
            let accepted = listener.poll_accept(context);
            accepted.map(|accepted| accepted.map(|(stream, _)| stream))
        };
        serve(HANDSHAKES_MAX, accept, ending, |stream, seat, ending| {
            let (own, uses) = Connection::new(bounds.clone());
            let app = app.clone().layer(Extension(own));
            let (tls, guests) = (current.clone(), guests.clone());
            secure(stream, (seat, guests), tls, app, (ending, uses))
        })
        .await;
    }
}

/// How many connections each peer has, and may have.
#[derive(Clone)]
struct Guests {
    counts: Arc<Mutex<HashMap<Arc<[u8]>, u32>>>,
    limits: Limits,
}

/// A connection's place among them.
struct Place {
    guests: Guests,
    peer: Arc<[u8]>,
}

impl Guests {
    fn within(limits: Limits) -> Self {
        let counts = Arc::default();
        Self { counts, limits }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Arc<[u8]>, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of the certificate `peer`, if there is one.
    fn admit(&self, peer: &Arc<[u8]>) -> Option<Place> {
        let mut counts = self.counts();
        let all: u32 = counts.values().sum();
        let own = counts.get(peer).copied().unwrap_or_default();
        let Limits {
            max_connections,
            max_connections_per_peer,
        } = self.limits;
        if all >= max_connections.get() || own >= max_connections_per_peer.get() {
            return None;
        }
        counts.insert(peer.clone(), own + 1);
        Some(Place {
            guests: self.clone(),
            peer: peer.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.guests.counts();
        match counts.get_mut(&self.peer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.peer)),
        }
    }
}

async fn serve<S, F: Future<Output = ()> + Send + 'static>(
    seats: usize,
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>,
    mut ending: watch::Receiver<bool>,
    converse: impl Fn(S, OwnedSemaphorePermit, watch::Receiver<bool>) -> F,
) {
    let seats = Arc::new(Semaphore::new(seats));
    let mut connections = JoinSet::new();
    let of_connections = ending.clone();
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(seat) = seats.clone().acquire_owned().await {
            while connections.try_join_next().is_some() {}
            match poll_fn(&mut accept).await {
                Ok(stream) => {
                    connections.spawn(converse(stream, seat, of_connections.clone()));
                }
                Err(error) => {
                    log::warn!("a connection cannot be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        _ = ending.wait_for(|ending| *ending) => {}
    }
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(GRACE * 2, all_ended).await.is_err() {
        log::warn!("connections were cut at shutdown");
    }
}

async fn secure(
    stream: TcpStream,
    (seat, guests): (OwnedSemaphorePermit, Guests),
    mut tls: watch::Receiver<Arc<ServerConfig>>,
    app: Router,
    (ending, mut uses): (watch::Receiver<bool>, watch::Receiver<Use>),
) {
    // Answers are small and wanted at once.
    if let Err(error) = stream.set_nodelay(true) {
        log::debug!("a connection cannot be set up: {error}");
    }
    let acceptor = TlsAcceptor::from(tls.borrow_and_update().clone());
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            log::debug!("a handshake failed: {error}");
            return;
        }
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let Some(peer) = certificates.and_then(<[_]>::first).map(Peer::of) else {
        return;
    };
    let place = match &peer {
        Peer::Certificate { der, .. } => guests.admit(der),
        Peer::Local => None,
    };
    let Some(_place) = place else {
        log::warn!("{} has too many connections: one is refused", peer.name());
        return;
    };
    // The next handshake may begin.
    drop(seat);
    let rotated = async move {
        // Without a sender the listener ends anyway.
        let _gone = tls.changed().await;
    };
    tokio::select! {
        () = converse(stream, app, peer, ending, rotated) => {}
        _ = uses.wait_for(|used| *used == Use::Stalled) => {
            log::debug!("a connection was cut: the reader of its stream takes nothing");
        }
    }
}

/// What serves connections of that version of HTTP.
pub(super) fn http(is_two: bool) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE);
    match is_two {
        true => builder.http2_only(),
        false => builder.http1_only(),
    }
}

/// One connection, to its end.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    app: Router,
    peer: Peer,
    mut ending: watch::Receiver<bool>,
    rotated: impl Future<Output = ()>,
) {
    // Also where ALPN has said it: a peer must begin to speak to stay.
    let (is_two, stream) = match preface::look(stream).await {
        Ok(found) => found,
        Err(error) => {
            log::debug!("a connection did not begin: {error}");
            return;
        }
    };
    let builder = http(is_two);
    let service = TowerToHyperService::new(
        app.layer(Extension(peer))
            .layer(middleware::from_fn(drained)),
    );
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = async {
            tokio::select! {
                _ = ending.wait_for(|ending| *ending) => {}
                () = rotated => {}
            }
        } => {
            connection.as_mut().graceful_shutdown();
            match timeout(GRACE, connection).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        log::debug!("a connection broke: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_peer_takes_all_places_and_a_place_comes_back() {
        let few = Limits {
            max_connections: NonZeroU32::new(5).unwrap(),
            max_connections_per_peer: NonZeroU32::new(3).unwrap(),
        };
        for limits in [few, Limits::default()] {
            let guests = Guests::within(limits);
            let (one, other): (Arc<[u8]>, Arc<[u8]>) = ([1].into(), [2].into());
            let of_peer = limits.max_connections_per_peer.get();
            let mut places: Vec<_> = (0..of_peer).map(|_| guests.admit(&one)).collect();
            assert!(places.iter().all(Option::is_some));
            assert!(guests.admit(&one).is_none());
            assert!(guests.admit(&other).is_some());
            places.pop();
            assert!(guests.admit(&one).is_some());
            let all = limits.max_connections.get();
            places.extend((of_peer - 1..all).map(|peer| guests.admit(&peer.to_be_bytes().into())));
            assert!(places.iter().all(Option::is_some));
            assert!(guests.admit(&other).is_none(), "no place for anybody");
            drop(places);
            assert!(guests.counts().is_empty());
        }
    }
}
