//! Backends of the model's previous revision.
//!
//! *Promises*: who is one is found by what it says of itself.
//! *Refuses*: nothing. *Caller's duty*: bounds the time that this may take.
//! *Standard*: RFC 8525 (YANG library), RFC 9112 (all that such a backend speaks).

use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::discovery::MODULE;

/// Where a server tells its modules.
const LIBRARY: &str = "/restconf/data/ietf-yang-library:yang-library";
/// The longest answer to that, bytes.
const LIBRARY_MAX: usize = 64 << 10;
/// The revision of the model before this one.
const PREVIOUS: &str = "2026-11-23";

/// Whether a backend's YANG library names the previous revision of the model.
pub(super) async fn is_previous(stream: UnixStream) -> bool {
    let asked = async {
        let uri = Uri::from_static(LIBRARY);
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        let answer = ask_single(stream, request).await.ok()?;
        let body = Limited::new(answer.into_body(), LIBRARY_MAX)
            .collect()
            .await;
        let library: Value = serde_json::from_slice(&body.ok()?.to_bytes()).ok()?;
        let modules = library.pointer("/ietf-yang-library:yang-library/module-set/0/module")?;
        let mut modules = modules.as_array()?.iter();
        let own = modules.find(|module| module["name"] == MODULE)?;
        Some(own["revision"] == PREVIOUS)
    };
    asked.await.unwrap_or(false)
}

/// One request of HTTP/1.1; the connection ends with its answer.
pub(super) async fn ask_single(
    stream: UnixStream,
    mut request: Request<Body>,
) -> hyper::Result<Response<Incoming>> {
    let host = HeaderValue::from_static("shunt");
    request.headers_mut().insert(header::HOST, host);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            log::debug!("an exchange with a backend broke: {error}");
        }
    });
    sender.send_request(request).await
}
