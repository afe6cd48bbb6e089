//! What controllers on other machines reach.
//!
//! *Promises*: the same as on the control socket, to controllers that the configuration names.
//! *Refuses*: every other certificate (403).
//! *Caller's duty*: each connection has a [`Peer`]. *Standard*: RFC 8040 section 2.5.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};

use super::running::Backend;
use crate::api::error::{ApiError, ErrorTag};
use crate::api::listen::Peer;
use crate::api::server;

type Names = Arc<BTreeSet<String>>;

/// The routes, for certificates that have one of `names`.
pub(super) fn routes(backend: Arc<Backend>, names: &[String]) -> Router {
    let names: Names = Arc::new(names.iter().cloned().collect());
    server::router(backend).layer(middleware::from_fn_with_state(names, judged))
}

async fn judged(
    State(names): State<Names>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let is_known = match &peer {
        Peer::Certificate { names: of_peer, .. } => of_peer.iter().any(|name| names.contains(name)),
        Peer::Local => false,
    };
    if is_known {
        return next.run(request).await;
    }
    log::warn!("{} is no controller of this host", peer.name());
    let message = "the certificate is no controller's: its name is added to `controllers` of \
                   [control-tls]";
    ApiError::protocol(StatusCode::FORBIDDEN, ErrorTag::AccessDenied, message)
        .app_tag("controller")
        .into_response()
}
