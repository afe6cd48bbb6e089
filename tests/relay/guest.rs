//! A guest: its end of the serial port, and HTTP/2 over it.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use shunt::serial::{Connections, Timing, link};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// A body of a request.
pub type GuestBody = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is all there.
pub fn whole(text: impl Into<Bytes>) -> GuestBody {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// QEMU's side of the socket, which outlives the guest.
#[derive(Clone)]
pub struct Wire {
    socket: Arc<UnixStream>,
    /// Whoever is in the guest does not read.
    is_deaf: Arc<AtomicBool>,
}

impl Wire {
    /// Connects as QEMU would, as soon as the relay listens.
    pub async fn connect(path: &Path) -> Self {
        let socket = loop {
            match UnixStream::connect(path).await {
                Ok(socket) => break socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        Self::of(socket)
    }

    pub fn of(socket: UnixStream) -> Self {
        Self {
            socket: Arc::new(socket),
            is_deaf: Arc::default(),
        }
    }

    pub fn be_deaf(&self, is_deaf: bool) {
        self.is_deaf.store(is_deaf, Ordering::SeqCst);
    }

    /// Writes bytes as they are.
    pub async fn write_raw(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.socket.writable().await.unwrap();
            match self.socket.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_deaf.load(Ordering::SeqCst) {
            // It is asked again at the next beat.
            return Poll::Pending;
        }
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A guest that has booted. Dropped it is gone without a word, as in a crash.
pub struct Guest {
    driver: JoinHandle<io::Error>,
    connections: Connections,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Guest {
    /// Opens the serial port.
    pub fn boot(wire: &Wire) -> Self {
        let timing = Timing {
            beat: Duration::from_millis(200),
            ..Timing::default()
        };
        let (driver, connections) = link(wire.clone(), timing);
        Self {
            driver: tokio::spawn(driver),
            connections,
        }
    }

    /// HTTP over the next connection.
    pub async fn http(&mut self) -> Http {
        let stream = self.connections.next().await.expect("the line is gone");
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 30)
            .initial_connection_window_size(1 << 30)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Http(sender)
    }

    /// Whether QEMU has lost its relay.
    pub async fn is_cut_off(&mut self) -> bool {
        self.connections.next().await.is_none()
    }
}

/// A client in the guest.
#[derive(Clone)]
pub struct Http(SendRequest<GuestBody>);

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// What a refusal says.
    pub fn problem(&self) -> serde_json::Value {
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{self:?}"
        );
        serde_json::from_str(&self.text).unwrap()
    }
}

impl Http {
    /// Sends a request; the answer once its head is there.
    pub async fn send(&self, request: Request<GuestBody>) -> hyper::Result<Response<Incoming>> {
        self.0.clone().send_request(request).await
    }

    /// Sends a request; the whole answer.
    pub async fn ask(&self, request: Request<GuestBody>) -> Answer {
        let (head, body) = self.send(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status,
            headers: head.headers,
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// Method, path, body.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask(request(method, path, body)).await
    }
}

/// A request, ready to be sent or changed.
pub fn request(method: &str, path: &str, body: &str) -> Request<GuestBody> {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://relay{path}"));
    request.body(whole(body.to_owned())).unwrap()
}
