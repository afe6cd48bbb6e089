//! `shunt call`: one request over a serial port.
//!
//! *Promises*: the answer's body on stdout as it comes; any status but 2xx is told on stderr
//! and is no success.
//! *Refuses*: nothing that HTTP can say: what may pass is the relay's to judge.
//! *Caller's duty*: no other process has the port. A request without an answer may have
//! been carried out.
//! *Standard*: `docs/serial.md`, RFC 9113.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use super::Ending;
use super::args::CallArgs;
use super::print::{PrintError, print};
use crate::api::wire::MEDIA_TYPE;
use crate::serial::{Timing, link, port};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The port cannot be opened.
    #[error("cannot open {}: is it a serial port, and no other process at it?", path.display())]
    Open {
        /// The port.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody is at the other end.
    #[error("no relay answers at {}: is it running on the host, with this port?", .0.display())]
    NoRelay(PathBuf),
    /// The line broke.
    #[error("{} was closed at the other end: is another process at it?", .0.display())]
    Gone(PathBuf),
    /// No answer came.
    #[error("no answer within {0} s; the request may have been carried out")]
    Timeout(u32),
    /// The exchange broke.
    #[error("the exchange broke; the request may have been carried out")]
    Broken(#[from] hyper::Error),
    /// The request cannot be put into HTTP.
    #[error("the request cannot be written")]
    Unwritable(#[from] axum::http::Error),
    /// The answer could not be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
    /// stdin cannot be read.
    #[error("cannot read the body from stdin")]
    Body(#[source] io::Error),
}

/// Runs the command.
pub(super) async fn call(given: CallArgs) -> Result<Ending, CallError> {
    let path = given.port.clone();
    let open = |source| CallError::Open {
        path: path.clone(),
        source,
    };
    let request = request(&given)?;
    let line = port::open(&path).await.map_err(open)?;
    let status = exchange(line, request, &given).await?;
    if status.is_success() {
        return Ok(Ending::Done);
    }
    eprintln!("shunt: {status}");
    Ok(Ending::Refused)
}

fn request(given: &CallArgs) -> Result<Request<Body>, CallError> {
    let mut request = Request::builder()
        .method(given.method.clone())
        .uri(format!("http://localhost{}", given.path))
        .header(header::ACCEPT, MEDIA_TYPE);
    let body = match given.body.as_deref() {
        None => None,
        Some("-") => {
            let mut body = Vec::new();
            let read = io::stdin().lock().read_to_end(&mut body);
            read.map_err(CallError::Body)?;
            Some(Bytes::from(body))
        }
        Some(text) => Some(Bytes::from(text.to_owned())),
    };
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, MEDIA_TYPE);
    }
    let mut request = request.body(body.map_or_else(Body::empty, Body::from))?;
    for (name, value) in &given.headers {
        request.headers_mut().insert(name, value.clone());
    }
    Ok(request)
}

/// Sends a request over a line and prints its answer.
async fn exchange(
    line: Box<dyn port::Way>,
    request: Request<Body>,
    given: &CallArgs,
) -> Result<StatusCode, CallError> {
    let patience = Duration::from_secs(u64::from(given.timeout));
    let slow = |_| CallError::Timeout(given.timeout);
    let (driver, mut connections) = link(line, Timing::default());
    let driver = tokio::spawn(driver);
    let stream = timeout(patience, connections.next())
        .await
        .map_err(|_| CallError::NoRelay(given.port.clone()))?
        .ok_or_else(|| CallError::Gone(given.port.clone()))?;
    let ended = stream.ended();
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(CallError::Broken)?;
    tokio::spawn(connection);
    let answer = timeout(patience, sender.send_request(request)).await;
    let answer = answer.map_err(slow)?.map_err(CallError::Broken)?;
    let status = answer.status();
    let mut body: Incoming = answer.into_body();
    while let Some(frame) = timeout(patience, body.frame()).await.map_err(slow)? {
        if let Ok(data) = frame.map_err(CallError::Broken)?.into_data() {
            print(&String::from_utf8_lossy(&data))?;
        }
    }
    drop((sender, body));
    // HTTP ends in order, and with it the connection; its bye goes out when the driver has
    // its turn. Without one the relay would wait for more.
    let _ended = timeout(patience, ended).await;
    tokio::task::yield_now().await;
    driver.abort();
    Ok(status)
}
