//! What operators reach: the inventory, what happens to elements, and what is asked for them.
//!
//! *Promises*: who may not do something is refused before it is looked at; each edit, each
//! call and each refusal is in the audit log.
//! *Refuses*: certificates without a role, and what a role may not (403).
//! *Caller's duty*: each connection has a [`Peer`].
//! *Standard*: RFC 8040; roles are coarse ones after NACM, RFC 8341.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::audit::{Audit, Record};
use super::config::{Operators, Role};
use super::inventory::ELEMENT;
use super::on_behalf;
use super::view::Shared;
use crate::api::config::{self, Site, document_at};
use crate::api::discovery::{INVENTORY, OFFLOAD, OPERATOR_OPERATIONS};
use crate::api::error::{ApiError, ErrorEntry, ErrorTag};
use crate::api::inventory::MODULE;
use crate::api::listen::Peer;
use crate::api::{no_resource, server, sse, stream_of};

/// Leaves that operators may write wherever they are.
const SWITCHES: [&str; 3] = ["kill", "observe-only", "drain"];

/// Who may do what, and where that is logged.
struct Guard {
    roles: HashMap<String, Role>,
    audit: Arc<Audit>,
}

/// The routes.
pub fn routes(inventory: Arc<Site>, configured: Option<&Operators>, shared: Arc<Shared>) -> Router {
    let roles = configured.iter().flat_map(|operators| &operators.roles);
    let guard = Guard {
        roles: roles
            .map(|one| (one.certificate.clone(), one.role))
            .collect(),
        audit: shared.audit.clone(),
    };
    let streams = Router::new().route("/restconf/streams/{*path}", get(events));
    let routes = server::told(&[INVENTORY, OFFLOAD], OPERATOR_OPERATIONS)
        .merge(config::routes(inventory))
        .merge(on_behalf::routes(shared.clone()))
        .merge(streams.with_state(shared));
    server::or_refused(routes).layer(middleware::from_fn_with_state(Arc::new(guard), judged))
}

impl Guard {
    /// The highest role of a peer.
    fn role(&self, peer: &Peer) -> Option<Role> {
        match peer {
            Peer::Local => Some(Role::Admin),
            Peer::Certificate { names, .. } => names
                .iter()
                .filter_map(|name| self.roles.get(name))
                .max()
                .copied(),
        }
    }
}

/// The role that a request needs.
fn needed(method: &Method, path: &str) -> Role {
    if [Method::GET, Method::HEAD, Method::OPTIONS].contains(method) {
        return Role::ReadOnly;
    }
    if on_behalf::is_call(path) {
        return Role::Operator;
    }
    match document_at(&MODULE, path) {
        Some((id, _)) if id.list == ELEMENT => Role::Operator,
        Some((_, Some(leaf))) if SWITCHES.contains(&leaf) => Role::Operator,
        _ => Role::Admin,
    }
}

/// The notifications of one element.
async fn events(
    State(shared): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    server::check_stream(&uri, &headers)?;
    let placed = stream_of(uri.path()).and_then(|name| shared.registry.placed(&name));
    let placed = placed.ok_or_else(|| no_resource(uri.path()))?;
    let reader = shared.feeds.watch(&placed).await?;
    Ok(sse::carry(Body::new(reader)))
}

async fn judged(
    State(guard): State<Arc<Guard>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let role = guard.role(&peer);
    let needed = needed(&method, &path);
    let response = match role {
        Some(role) if role >= needed => {
            request.extensions_mut().insert(role);
            next.run(request).await
        }
        Some(role) => denied(&format!(
            "the role {} may not: this needs {}",
            role.name(),
            needed.name()
        )),
        None => denied("the certificate has no role here: ask an admin for one"),
    };
    let status = response.status();
    let is_told = on_behalf::is_call(&path) && status.is_success();
    if !is_told && (needed > Role::ReadOnly || status == StatusCode::FORBIDDEN) {
        let error = response.extensions().get::<ErrorEntry>();
        let record = Record {
            by: "operator",
            peer: peer.name().to_owned(),
            role: role.map(Role::name),
            action: method.to_string(),
            path: Some(path),
            status: status.as_u16(),
            error: error.map(|entry| entry.error_message.clone()),
            ..Record::default()
        };
        guard.audit.log(record).await;
    }
    response
}

fn denied(message: &str) -> Response {
    ApiError::protocol(StatusCode::FORBIDDEN, ErrorTag::AccessDenied, message)
        .app_tag("role")
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_needed_that_fits_what_is_changed() {
        let top = "/restconf/data/shunt-inventory:inventory";
        for (method, rest, role) in [
            (Method::GET, "", Role::ReadOnly),
            (Method::OPTIONS, "/element=a", Role::ReadOnly),
            (Method::PUT, "/element=a", Role::Operator),
            (Method::DELETE, "/element=a/vnic=b", Role::Operator),
            (Method::PUT, "/tenant=t/kill", Role::Operator),
            (Method::DELETE, "/host=h/drain", Role::Operator),
            (Method::PUT, "/host=h/backend", Role::Admin),
            (Method::PATCH, "/tenant=t", Role::Admin),
            (Method::POST, "", Role::Admin),
            (Method::PUT, "", Role::Admin),
            (Method::PUT, "/nothing/kill", Role::Admin),
        ] {
            assert_eq!(
                needed(&method, &format!("{top}{rest}")),
                role,
                "{method} {rest}"
            );
        }
        assert_eq!(needed(&Method::PUT, "/restconf/data"), Role::Admin);
        let call = "/restconf/operations/shunt-offload:offload";
        assert_eq!(needed(&Method::POST, call), Role::Operator);
    }
}
