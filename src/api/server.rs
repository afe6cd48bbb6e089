//! The HTTP server: RESTCONF-shaped, on a unix socket.
//!
//! *Promises*: bodies are bounded ([`BODY_MAX`]), and so are connections
//! ([`CONNECTIONS_MAX`]), each client's time and the backend's; every refusal has an
//! `ietf-restconf:errors` body.
//! *Refuses*: other paths (404), methods (405), media types (415, 406), unknown query
//! parameters (400).
//! *Caller's duty*: run it on a tokio runtime with I/O and time enabled, away from the
//! packet path.
//! *Standard*: RFC 8040 sections 3 to 5 and 7, RFC 9110, RFC 9112, RFC 9113.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::{Bounds, Connection, converse};
use super::control::{Answer, Control};
use super::discovery::{self, BACKEND_OPERATIONS, OFFLOAD, Own};
use super::epoch::OpenEpochInput;
use super::error::{ApiError, ErrorTag};
use super::offload::{ENTRIES_MAX, OffloadInput, check_count};
use super::path::{self, Resource};
use super::query::Query;
use super::read;
use super::reprove::ReproveInput;
use super::session::SessionKey;
use super::shield::{ShieldInput, UnshieldInput};
use super::sse;
use super::sync::{self, SyncInput};
use super::wire::{self, MEDIA_TYPE};
use super::withdraw::WithdrawInput;

/// Largest body taken, bytes.
pub const BODY_MAX: usize = 4 << 20;
/// Connections served at a time; more wait.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a client may take for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the backend may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests may take when the server ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// The entity tag of the configuration, which is none and does not change.
const CONFIGURATION_TAG: HeaderValue = HeaderValue::from_static("\"none\"");
/// The pause after accepting failed, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The input of an operation that takes none.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoInput {}

/// Serves `control` on `listener` until `shutdown`; requests being answered then have
/// two seconds to end.
pub async fn serve(
    listener: &UnixListener,
    control: Arc<dyn Control>,
    shutdown: impl Future<Output = ()>,
) {
    let app = router(control);
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (ending, is_ending) = watch::channel(false);
    let bounds = Bounds::new(is_ending);
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
                return;
            };
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(converse(stream, app.clone(), bounds.clone(), seat));
                }
                Err(error) => {
                    log::warn!("the control socket cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    ending.send_replace(true);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(SHUTDOWN_GRACE, all_ended).await.is_err() {
        log::warn!("control connections were cut at shutdown");
    }
}

/// The routes over `control`.
pub(crate) fn router(control: Arc<dyn Control>) -> Router {
    let data = || get(read_data).options(data_options);
    let call = || allow("POST, OPTIONS");
    let routes = told(&[OFFLOAD], BACKEND_OPERATIONS)
        .route(
            "/restconf/operations/shunt-offload:open-epoch",
            post(open_epoch).options(call),
        )
        .route(
            "/restconf/operations/shunt-offload:sync",
            post(sync).options(call),
        )
        .route(
            "/restconf/streams/{*path}",
            get(events).options(|| allow("GET, HEAD, OPTIONS")),
        )
        .route(
            "/restconf/operations/shunt-offload:offload",
            post(offload).options(call),
        )
        .route(
            "/restconf/operations/shunt-offload:withdraw",
            post(withdraw).options(call),
        )
        .route(
            "/restconf/operations/shunt-offload:reprove",
            post(reprove).options(call),
        )
        .route(
            "/restconf/operations/shunt-offload:reload",
            post(reload).options(call),
        )
        .route(
            "/restconf/operations/shunt-offload:shield",
            post(shield).options(call),
        )
        .route(
            "/restconf/operations/shunt-offload:unshield",
            post(unshield).options(call),
        )
        .route("/restconf/data", data())
        .route("/restconf/data/{*path}", data())
        .route("/restconf/ds/{*path}", data());
    or_refused(routes).with_state(control)
}

/// With our answers where there is no route, or not by the method.
pub(crate) fn or_refused<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
}

/// What every server tells of itself, and of `modules`.
pub(crate) fn told<S: Clone + Send + Sync + 'static>(
    modules: &[Own],
    operations: &'static [&'static str],
) -> Router<S> {
    let fixed = |value: fn(&'static [&'static str]) -> Value| {
        get(move |uri, headers| tell(value(operations), uri, headers))
            .options(|| allow("GET, HEAD, OPTIONS"))
    };
    let file = |kind, content| get(move || text(kind, content));
    let with_module =
        |router: Router<S>, own: &Own| router.route(own.path, file("application/yang", own.text));
    modules
        .iter()
        .fold(Router::new(), with_module)
        .route(
            "/.well-known/host-meta",
            file("application/xrd+xml", discovery::HOST_META),
        )
        .route("/restconf", fixed(|_| discovery::api()))
        .route(
            "/restconf/yang-library-version",
            fixed(|_| discovery::library_version()),
        )
        .route("/restconf/operations", fixed(discovery::operations))
}

async fn not_found(uri: Uri) -> ApiError {
    path::no_resource(uri.path())
}

async fn not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::protocol(
        StatusCode::METHOD_NOT_ALLOWED,
        ErrorTag::OperationNotSupported,
        format!(
            "{method} is not served at {}: operations are POSTed, data are read with GET",
            uri.path()
        ),
    )
}

pub(crate) async fn offload(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    let input: OffloadInput = read_body(&headers, body).await?;
    check_count("session", input.session.len(), ENTRIES_MAX)?;
    let output = answer(control.offload(input)).await?;
    Ok(respond(json(&wire::Output { output })?.into()))
}

pub(crate) async fn withdraw(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    let input: WithdrawInput = read_body(&headers, body).await?;
    check_which(&input.key, input.all)?;
    let output = answer(control.withdraw(input)).await?;
    Ok(respond(json(&wire::Output { output })?.into()))
}

pub(crate) async fn reprove(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    let input: ReproveInput = read_body(&headers, body).await?;
    check_which(&input.key, input.all)?;
    let output = answer(control.reprove(input)).await?;
    Ok(respond(json(&wire::Output { output })?.into()))
}

/// Either keys, not too many, or all.
fn check_which(keys: &[SessionKey], all: bool) -> Result<(), ApiError> {
    check_count("key", keys.len(), ENTRIES_MAX)?;
    if all == keys.is_empty() {
        return Ok(());
    }
    Err(ApiError::application(
        StatusCode::BAD_REQUEST,
        ErrorTag::MissingElement,
        "give either keys or `all`: true",
    )
    .at("/shunt-offload:input/key"))
}

pub(crate) async fn open_epoch(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    let input: OpenEpochInput = read_body(&headers, body).await?;
    let output = answer(control.open_epoch(input)).await?;
    Ok(respond(json(&wire::Output { output })?.into()))
}

pub(crate) async fn sync(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    let input: SyncInput = read_body(&headers, body).await?;
    sync::check(&input)?;
    let output = answer(control.sync(input)).await?;
    Ok(respond(json(&wire::Output { output })?.into()))
}

/// The notifications of the element that the path names.
async fn events(
    State(control): State<Arc<dyn Control>>,
    Extension(connection): Extension<Arc<Connection>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_stream(&uri, &headers)?;
    let element = path::stream_of(uri.path()).ok_or_else(|| path::no_resource(uri.path()))?;
    let feed = answer(control.events(&element)).await?;
    if method == Method::HEAD {
        return Ok(sse::carry(Body::empty()));
    }
    connection.stream(feed)
}

pub(crate) async fn shield(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    let input: ShieldInput = read_body(&headers, body).await?;
    check_count("shield", input.shield.len(), ENTRIES_MAX)?;
    input.check()?;
    let output = answer(control.shield(input)).await?;
    Ok(respond(json(&wire::Output { output })?.into()))
}

pub(crate) async fn unshield(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    let input: UnshieldInput = read_body(&headers, body).await?;
    check_count("name", input.name.len(), ENTRIES_MAX)?;
    input.check()?;
    let output = answer(control.unshield(input)).await?;
    Ok(respond(json(&wire::Output { output })?.into()))
}

/// It has no input, and so may come without a body (RFC 8040 section 4.4.2).
async fn reload(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    if body.size_hint().exact() != Some(0) {
        let _nothing: NoInput = read_body(&headers, body).await?;
    }
    let output = answer(control.reload()).await?;
    Ok(respond(json(&wire::Output { output })?.into()))
}

pub(crate) async fn read_data(
    State(control): State<Arc<dyn Control>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_accept(&headers)?;
    let resource = Resource::parse(uri.path())?;
    let query = Query::of_read(uri.query())?;
    let is_datastore = resource == Resource::Datastore;
    let mut response = respond(read::read(control, resource, &query, uri.path()).await?);
    if is_datastore {
        let headers = response.headers_mut();
        headers.insert(header::ETAG, CONFIGURATION_TAG);
    }
    Ok(response)
}

/// An answer that is always the same.
async fn tell(told: Value, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    check_request(&uri, &headers)?;
    Ok(respond(json(&told)?.into()))
}

async fn text(kind: &'static str, text: &'static str) -> Response {
    let mut response = respond(text.into());
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn data_options(uri: Uri) -> Result<Response, ApiError> {
    Resource::parse(uri.path())?;
    Ok(allow("GET, HEAD, OPTIONS").await)
}

pub(crate) async fn allow(methods: &'static str) -> Response {
    let mut response = respond(Body::empty());
    let methods = HeaderValue::from_static(methods);
    response.headers_mut().insert(header::ALLOW, methods);
    response.headers_mut().remove(header::CONTENT_TYPE);
    response
}

/// What is asked of a request for a stream: no query, and a reader that takes streams.
pub(crate) fn check_stream(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    Query::none(uri.query())?;
    sse::check_accept(headers)
}

/// What is asked of every request but a read of data: no query, and an answer in our encoding.
fn check_request(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    Query::none(uri.query())?;
    check_accept(headers)
}

pub(super) fn check_accept(headers: &HeaderMap) -> Result<(), ApiError> {
    accepts(headers, "application/*", MEDIA_TYPE)
}

/// Refuses a client that does not take `kind`, which lies in `range`.
pub(super) fn accepts(headers: &HeaderMap, range: &str, kind: &str) -> Result<(), ApiError> {
    let accepted = headers.get_all(header::ACCEPT);
    let is_acceptable = accepted.iter().next().is_none()
        || accepted
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(essence)
            .any(|taken| ["*/*", range, kind].contains(&taken.as_str()));
    if is_acceptable {
        Ok(())
    } else {
        Err(ApiError::protocol(
            StatusCode::NOT_ACCEPTABLE,
            ErrorTag::InvalidValue,
            format!("answers are {kind}: accept that"),
        ))
    }
}

/// A media type without its parameters.
fn essence(value: &str) -> String {
    let end = value.find(';').unwrap_or(value.len());
    value[..end].trim().to_ascii_lowercase()
}

async fn read_body<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, ApiError> {
    wire::read_input(&take_body(headers, body).await?)
}

/// A whole body of our media type.
pub(super) async fn take_body(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(essence);
    if kind.as_deref() != Some(MEDIA_TYPE) {
        return Err(ApiError::protocol(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorTag::InvalidValue,
            format!("send the header `Content-Type: {MEDIA_TYPE}`"),
        ));
    }
    let too_big = || {
        ApiError::protocol(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorTag::TooBig,
            format!("a body has at most {BODY_MAX} bytes: send fewer entries a call"),
        )
    };
    // A length that is told beforehand is judged before the body is asked for.
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(too_big());
    }
    match timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_big()),
        Ok(Err(error)) => Err(ApiError::protocol(
            StatusCode::BAD_REQUEST,
            ErrorTag::MalformedMessage,
            format!("the body broke off: {error}"),
        )),
        Err(_) => Err(ApiError::protocol(
            StatusCode::REQUEST_TIMEOUT,
            ErrorTag::OperationFailed,
            format!("the body did not come within {} s", BODY_TIMEOUT.as_secs()),
        )),
    }
}

/// Waits for the backend, within bounds.
pub(super) async fn answer<T>(asked: Answer<'_, T>) -> Result<T, ApiError> {
    timeout(ANSWER_TIMEOUT, asked).await.unwrap_or_else(|_| {
        Err(ApiError::failed(format!(
            "the backend did not answer within {} s; the request may still be carried out, \
             and asking again is safe",
            ANSWER_TIMEOUT.as_secs()
        ))
        .app_tag("timeout"))
    })
}

/// JSON of one of our own types.
pub(super) fn json<T: Serialize>(value: &T) -> Result<String, ApiError> {
    serde_json::to_string(value)
        .map_err(|error| ApiError::failed(format!("the answer cannot be written as JSON: {error}")))
}

pub(super) fn respond(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // An error body is made of texts and fixed names: it has a JSON form.
        let mut response = respond(json(&self.body()).unwrap_or_default().into());
        *response.status_mut() = self.status;
        // For whoever logs refusals on the way out.
        response.extensions_mut().insert(*self.entry);
        response
    }
}
