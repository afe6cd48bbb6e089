//! Accepting connections and answering requests on them.
//!
//! *Promises*: handshakes, heads and connections are bounded in time and number; each request
//! carries who its peer is ([`Peer`]).
//! *Refuses*: nothing else.
//! *Caller's duty*: judge the peer.
//! *Standard*: RFC 9112, RFC 9113.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
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

use super::drain::drained;
use super::inside::Relay;
use super::tls;

/// Connections of a listener at a time; more wait.
const CONNECTIONS_MAX: usize = 1_024;
/// Requests at a time on one connection of HTTP/2.
const STREAMS_MAX: u32 = 128;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer of HTTP/2 that does not answer is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long requests may take once their connection is to end.
const GRACE: Duration = Duration::from_secs(2);
/// The pause after accepting failed, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
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
    serve(accept, ending, |stream, seat, ending| {
        let app = app.clone();
        async move {
            let never = std::future::pending();
            converse(stream, Version::One, app, Peer::Local, ending, never).await;
            drop(seat);
        }
    })
    .await;
}

/// Serves `app` over mutual TLS until `ending`.
pub async fn mutual(
    listener: &TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    app: Router,
    ending: watch::Receiver<bool>,
) {
    let accept = |context: &mut Context<'_>| {
        let accepted = listener.poll_accept(context);
        accepted.map(|accepted| accepted.map(|(stream, _)| stream))
    };
    serve(accept, ending, |stream, seat, ending| {
        let (app, tls) = (app.clone(), tls.clone());
        async move {
            secure(stream, tls, app, ending).await;
            drop(seat);
        }
    })
    .await;
}

/// Serves `app` to the relay of this process until `ending`.
pub async fn inside(relay: Relay, app: Router, ending: watch::Receiver<bool>) {
    let Relay {
        mut visitors,
        certificate,
    } = relay;
    let peer = Peer::of(&certificate);
    let accept = move |context: &mut Context<'_>| visitors.poll_accept(context);
    serve(accept, ending, |stream, seat, ending| {
        let (app, peer) = (app.clone(), peer.clone());
        async move {
            let never = std::future::pending();
            converse(stream, Version::Two, app, peer, ending, never).await;
            drop(seat);
        }
    })
    .await;
}

async fn serve<S, F: Future<Output = ()> + Send + 'static>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<S>>,
    mut ending: watch::Receiver<bool>,
    converse: impl Fn(S, OwnedSemaphorePermit, watch::Receiver<bool>) -> F,
) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
    mut tls: watch::Receiver<Arc<ServerConfig>>,
    app: Router,
    ending: watch::Receiver<bool>,
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
    let session = stream.get_ref().1;
    let Some(peer) = session
        .peer_certificates()
        .and_then(<[_]>::first)
        .map(Peer::of)
    else {
        return;
    };
    let version = match session.alpn_protocol() {
        Some(b"h2") => Version::Two,
        Some(_) => Version::One,
        None => Version::Either,
    };
    let rotated = async move {
        // Without a sender the listener ends anyway.
        let _gone = tls.changed().await;
    };
    converse(stream, version, app, peer, ending, rotated).await;
}

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    One,
    Two,
    /// Its first bytes will tell.
    Either,
}

/// One connection, to its end.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    version: Version,
    app: Router,
    peer: Peer,
    mut ending: watch::Receiver<bool>,
    rotated: impl Future<Output = ()>,
) {
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
    let builder = match version {
        Version::One => builder.http1_only(),
        Version::Two => builder.http2_only(),
        Version::Either => builder,
    };
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
