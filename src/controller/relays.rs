//! What relays reach: their elements' own sessions and policy, and nothing of operators.
//!
//! *Promises*: each request is of the element that its token names, placed on a host whose
//! relay may use the connection's certificate; everything else is refused and logged.
//! *Refuses*: requests without a valid token (401), of elements that are not there, and of
//! connections that a newer one has taken the place of (403).
//! *Caller's duty*: mutual TLS, so that each connection has a [`Peer`].
//! *Standard*: RFC 6750 section 3, RFC 8040.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tokio::time::Instant;
use tower::ServiceExt;

use super::audit::Record;
use super::inventory::ELEMENT;
use super::view::{Shared, View};
use crate::api::config::{self, Site, document_at};
use crate::api::discovery::{ELEMENT_OPERATIONS, OFFLOAD};
use crate::api::error::{ApiError, ErrorTag};
use crate::api::identity::{self, TokenError};
use crate::api::inventory::MODULE;
use crate::api::listen::Peer;
use crate::api::{no_resource, server};

/// What an element may know of itself: not where it runs, and for whom.
const OWN_PART: &str = "name;vnic;policy";

/// What the routes share.
struct Relays {
    shared: Arc<Shared>,
    /// The inventory, to read single elements of.
    inventory: Router,
}

/// The routes.
pub fn routes(shared: Arc<Shared>, inventory: Arc<Site>) -> Router {
    let relays = Relays {
        shared,
        inventory: config::routes(inventory),
    };
    let routes = server::told(&[OFFLOAD], ELEMENT_OPERATIONS)
        .route(
            "/restconf/operations/shunt-offload:open-epoch",
            call("open-epoch", |view, uri, headers, body| {
                Box::pin(server::open_epoch(State(view), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:offload",
            call("offload", |view, uri, headers, body| {
                Box::pin(server::offload(State(view), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:withdraw",
            call("withdraw", |view, uri, headers, body| {
                Box::pin(server::withdraw(State(view), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:reprove",
            call("reprove", |view, uri, headers, body| {
                Box::pin(server::reprove(State(view), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:sync",
            call("sync", |view, uri, headers, body| {
                Box::pin(server::sync(State(view), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:shield",
            call("shield", |view, uri, headers, body| {
                Box::pin(server::shield(State(view), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:unshield",
            call("unshield", |view, uri, headers, body| {
                Box::pin(server::unshield(State(view), uri, headers, body))
            }),
        )
        .route("/restconf/streams/{*path}", get(events))
        .route("/restconf/data", get(read))
        .route("/restconf/data/{*path}", get(read));
    server::or_refused(routes).with_state(Arc::new(relays))
}

impl Relays {
    /// The view of the element that a request is of.
    async fn identify(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
        action: &str,
    ) -> Result<Arc<View>, Box<Response>> {
        let refused = match self.believe(peer, headers) {
            Ok(view) => return Ok(Arc::new(view)),
            Err(refused) => refused,
        };
        let record = Record {
            by: "relay",
            peer: peer.name().to_owned(),
            element: refused.port,
            action: action.to_owned(),
            status: refused.error.status.as_u16(),
            error: Some(refused.error.entry.error_message.clone()),
            ..Record::default()
        };
        self.shared.audit.log(record).await;
        let is_unknown = refused.error.status == StatusCode::UNAUTHORIZED;
        let mut response = refused.error.into_response();
        if is_unknown {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        Err(Box::new(response))
    }

    fn believe(&self, peer: &Peer, headers: &HeaderMap) -> Result<View, NotBelieved> {
        let Peer::Certificate { der, .. } = peer else {
            return Err(TokenError::Certificate.into());
        };
        let token = identity::bearer(headers)?;
        let identity = identity::verify(token, der, super::wall_clock())?;
        let denied = |app_tag, message: &str| NotBelieved {
            error: ApiError::protocol(StatusCode::FORBIDDEN, ErrorTag::AccessDenied, message)
                .app_tag(app_tag),
            port: Some(identity.element.clone()),
        };
        let placed = self
            .shared
            .registry
            .on_port(&identity.host, &identity.element)
            .ok_or_else(|| {
                denied(
                    "not-placed",
                    "the inventory has no element on this port of this host: ask the operator",
                )
            })?;
        let (name, now) = (&placed.element.name, Instant::now());
        if !self.shared.meters.is_newest(name, identity.fence, now) {
            let message = "a newer connection of the element has taken the place of this one";
            return Err(denied("fenced", message));
        }
        self.shared.feeds.fence(name, identity.fence);
        Ok(View::new(self.shared.clone(), placed, identity))
    }
}

/// Why a request is nobody's.
struct NotBelieved {
    error: ApiError,
    port: Option<String>,
}

impl From<TokenError> for NotBelieved {
    fn from(error: TokenError) -> Self {
        let error = ApiError::protocol(
            StatusCode::UNAUTHORIZED,
            ErrorTag::AccessDenied,
            error.to_string(),
        );
        Self {
            error: error.app_tag("token"),
            port: None,
        }
    }
}

/// An operation of the model, carried out by a view.
type Operation = fn(Arc<View>, Uri, HeaderMap, Body) -> Pending;
type Pending = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;

/// Where an element calls `operation`.
fn call(name: &'static str, operation: Operation) -> MethodRouter<Arc<Relays>> {
    post(
        async move |State(relays): State<Arc<Relays>>,
                    Extension(peer): Extension<Peer>,
                    uri: Uri,
                    headers: HeaderMap,
                    body: Body| {
            let view = match relays.identify(&peer, &headers, name).await {
                Ok(view) => view,
                Err(refused) => return *refused,
            };
            let outcome = operation(view.clone(), uri, headers, body).await;
            relays.logged(&view, name, None, outcome).await
        },
    )
    .options(|| server::allow("POST, OPTIONS"))
}

/// The element's own notifications.
async fn events(
    State(relays): State<Arc<Relays>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let view = match relays.identify(&peer, &headers, "events").await {
        Ok(view) => view,
        Err(refused) => return *refused,
    };
    let path = uri.path().to_owned();
    let outcome = view.stream(&uri, &headers).await;
    relays.logged(&view, "events", Some(path), outcome).await
}

async fn read(
    State(relays): State<Arc<Relays>>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let view = match relays.identify(&peer, &headers, "read").await {
        Ok(view) => view,
        Err(refused) => return *refused,
    };
    let path = uri.path().to_owned();
    // An element reads its own policy and vNICs as operators do, and nothing else.
    let outcome = match document_at(&MODULE, &path) {
        Some((id, below)) if id.list == ELEMENT && id.key == view.name() => {
            match (below, uri.query()) {
                (Some("policy" | "vnic"), _) => relays.read_inventory(uri, headers).await,
                (None, None) => relays.read_own_part(&path, headers).await,
                _ => Err(no_resource(&path)),
            }
        }
        Some(_) => Err(no_resource(&path)),
        None => server::read_data(State(view.clone()), uri, headers).await,
    };
    relays.logged(&view, "read", Some(path), outcome).await
}

impl Relays {
    /// Of a whole element what itself may know.
    async fn read_own_part(&self, path: &str, headers: HeaderMap) -> Result<Response, ApiError> {
        let own = Uri::try_from(format!("{path}?fields={OWN_PART}"));
        let own = own.map_err(|_| no_resource(path))?;
        self.read_inventory(own, headers).await
    }

    async fn read_inventory(&self, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let Ok(response) = self.inventory.clone().oneshot(request).await;
        Ok(response)
    }

    /// Logs a request that was refused as a whole; others were logged with their results.
    async fn logged(
        &self,
        view: &View,
        action: &str,
        path: Option<String>,
        outcome: Result<Response, ApiError>,
    ) -> Response {
        let error = match outcome {
            Ok(response) => return response,
            Err(error) => error,
        };
        let record = Record {
            status: error.status.as_u16(),
            path,
            error: Some(error.entry.error_message.clone()),
            ..view.line(action)
        };
        self.shared.audit.log(record).await;
        error.into_response()
    }
}
