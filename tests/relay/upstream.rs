//! The server behind the relay: HTTP/2 over mTLS, or on a unix socket. It notes what it
//! sees and checks each token against the peer's certificate.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::SystemTime;

use axum::http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use shunt::api::identity::{self, Identity, TokenError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::pki::Pki;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub identity: Result<Identity, TokenError>,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// Which of the connections it came over.
    pub connection: usize,
}

#[derive(Default)]
struct Notes {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    /// Requests begun, and given up before their answer.
    begun: AtomicUsize,
    cancelled: AtomicUsize,
}

/// A running server; it and its connections end when dropped.
pub struct Upstream {
    notes: Arc<Notes>,
    accepting: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An address that is free now.
pub fn free_address() -> SocketAddr {
    let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

impl Upstream {
    /// Serves mTLS at `address`.
    pub async fn tls(pki: &Pki, address: SocketAddr) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(pki.certificate()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .unwrap();
        let (certificate, key) = pki.server("localhost");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(address).await.unwrap();
        Self::serve(async move || {
            let (io, _) = listener.accept().await.unwrap();
            let io = acceptor.accept(io).await.ok()?;
            let peer = io.get_ref().1.peer_certificates()?.first()?.to_vec();
            Some((io, peer))
        })
    }

    /// Serves HTTP/2 on a unix socket; `certificate` is the relay's, known beforehand.
    pub fn unix(path: &Path, certificate: Vec<u8>) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        Self::serve(async move || {
            let (io, _) = listener.accept().await.unwrap();
            Some((io, certificate.clone()))
        })
    }

    fn serve<I, A>(accept: A) -> Self
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
        A: AsyncFn() -> Option<(I, Vec<u8>)> + 'static,
    {
        let notes = Arc::<Notes>::default();
        let accepting = {
            let notes = Arc::clone(&notes);
            // Local tasks end with the set that they are in, and so with this task.
            tokio::task::spawn_local(async move {
                let mut all = tokio::task::JoinSet::new();
                loop {
                    if let Some((io, peer)) = accept().await {
                        all.spawn_local(converse(io, peer, Arc::clone(&notes)));
                    }
                }
            })
        };
        Self { notes, accepting }
    }

    /// Ends it and all its connections.
    pub async fn end(mut self) {
        self.accepting.abort();
        let _aborted = (&mut self.accepting).await;
    }

    /// All requests that arrived whole.
    pub fn seen(&self) -> Vec<Seen> {
        self.notes.seen.lock().unwrap().clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.notes.connections.load(Ordering::SeqCst)
    }

    /// Requests whose head has arrived.
    pub fn begun(&self) -> usize {
        self.notes.begun.load(Ordering::SeqCst)
    }

    /// Requests that were given up before their answer.
    pub fn cancelled(&self) -> usize {
        self.notes.cancelled.load(Ordering::SeqCst)
    }
}

async fn converse<I: AsyncRead + AsyncWrite + Unpin + 'static>(
    io: I,
    peer: Vec<u8>,
    notes: Arc<Notes>,
) {
    let connection = notes.connections.fetch_add(1, Ordering::SeqCst);
    let service = service_fn(|request| {
        let (notes, peer) = (Arc::clone(&notes), peer.clone());
        async move { answer(request, &peer, connection, &notes).await }
    });
    let _broken = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
}

/// Counts a request that is dropped before it is done.
struct Begun<'a>(&'a Notes, bool);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: &[u8],
    connection: usize,
    notes: &Notes,
) -> Result<Response<AnswerBody>, Infallible> {
    notes.begun.fetch_add(1, Ordering::SeqCst);
    let mut begun = Begun(notes, false);
    let (head, body) = request.into_parts();
    let identity = identity::bearer(&head.headers)
        .and_then(|token| identity::verify(token, peer, SystemTime::now()));
    let element = identity
        .as_ref()
        .map_or_else(ToString::to_string, |identity| identity.element.clone());
    if head.uri.path().ends_with("/silent") {
        std::future::pending::<()>().await;
    }
    let Ok(body) = body.collect().await else {
        return Ok(Response::new(AnswerBody::default()));
    };
    let body = body.to_bytes().to_vec();
    let text = format!(
        "{element} {} {}",
        head.method,
        String::from_utf8_lossy(&body)
    );
    let made = Response::builder()
        .header("content-type", "text/plain")
        .header("server", "inside")
        .header("set-cookie", "inside=1")
        .header("location", "https://inside:1/restconf/made?x");
    let answer = match head.uri.path().rsplit('/').next() {
        Some("events") => made.body(stream(Some("data: first\n\n"), false)),
        Some("endless") => made.body(stream(None, true)),
        Some("created") => made
            .status(StatusCode::CREATED)
            .body(Full::from(text).boxed_unsync()),
        _ => made.body(Full::from(text).boxed_unsync()),
    };
    notes.seen.lock().unwrap().push(Seen {
        identity,
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        body,
        connection,
    });
    begun.1 = true;
    Ok(answer.unwrap())
}

type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// A body that says `first` and then nothing, or never ends.
fn stream(first: Option<&'static str>, is_endless: bool) -> AnswerBody {
    Unending(first, is_endless).boxed_unsync()
}

struct Unending(Option<&'static str>, bool);

impl Body for Unending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.0.take() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(first.as_bytes())))));
        }
        if self.1 {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 16_384])))));
        }
        Poll::Pending
    }
}
