//! What operators ask for elements, and see of them: the controller's part of `shunt-offload`.
//!
//! *Promises*: a call is judged by the element's switches and policy as its own would be, but for
//! its rate, and goes to the backend of its host. It is in the audit log with the operator's name.
//! *Refuses*: `open-epoch` and `sync`, which are between an element's agent and its backend, and what
//! is about all elements at once.
//! *Caller's duty*: each request has a [`Peer`] and the [`Role`] that it may act by.
//! *Standard*: RFC 8040; `shunt-offload`.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};

use super::config::Role;
use super::view::{Shared, View};
use crate::api::control::{Answer, Control, SessionPage};
use crate::api::error::ApiError;
use crate::api::listen::Peer;
use crate::api::offload::{OffloadInput, OffloadOutput};
use crate::api::reload::ReloadOutput;
use crate::api::reprove::{ReproveInput, ReproveOutput};
use crate::api::server;
use crate::api::session::SessionKey;
use crate::api::shield::{ShieldInput, ShieldOutput, Shields, UnshieldInput, UnshieldOutput};
use crate::api::state::{Ports, SessionReport, Statistics, Summary};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput};

/// Where operations are.
const OPERATIONS: &str = "/restconf/operations/";

/// The routes.
pub fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(
            "/restconf/operations/shunt-offload:offload",
            call(|control, uri, headers, body| {
                Box::pin(server::offload(State(control), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:withdraw",
            call(|control, uri, headers, body| {
                Box::pin(server::withdraw(State(control), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:reprove",
            call(|control, uri, headers, body| {
                Box::pin(server::reprove(State(control), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:shield",
            call(|control, uri, headers, body| {
                Box::pin(server::shield(State(control), uri, headers, body))
            }),
        )
        .route(
            "/restconf/operations/shunt-offload:unshield",
            call(|control, uri, headers, body| {
                Box::pin(server::unshield(State(control), uri, headers, body))
            }),
        )
        .route(
            "/restconf/data/shunt-offload:state/{*path}",
            get(read).options(|| server::allow("GET, HEAD, OPTIONS")),
        )
        .with_state(shared)
}

/// Whether `path` is where such a call goes. One that is carried out is logged here.
pub fn is_call(path: &str) -> bool {
    path.starts_with(OPERATIONS)
}

type Operation = fn(Arc<dyn Control>, Uri, HeaderMap, Body) -> Pending;
type Pending = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;

fn call(operation: Operation) -> MethodRouter<Arc<Shared>> {
    post(
        move |State(shared): State<Arc<Shared>>,
              Extension(peer): Extension<Peer>,
              Extension(role): Extension<Role>,
              uri: Uri,
              headers: HeaderMap,
              body: Body| {
            operation(
                Arc::new(OnBehalf { shared, peer, role }),
                uri,
                headers,
                body,
            )
        },
    )
    .options(|| server::allow("POST, OPTIONS"))
}

async fn read(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    Extension(role): Extension<Role>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let control = Arc::new(OnBehalf { shared, peer, role });
    server::read_data(State(control), uri, headers).await
}

/// An operator.
struct OnBehalf {
    shared: Arc<Shared>,
    peer: Peer,
    role: Role,
}

impl OnBehalf {
    /// The view of the element that is named; it need not be where there is only one.
    fn view(&self, name: Option<&str>) -> Result<View, ApiError> {
        let registry = &self.shared.registry;
        let name = name.map(str::to_owned).or_else(|| registry.only_name());
        let name = name.ok_or_else(ApiError::element_needed)?;
        let placed = registry.placed(&name);
        let placed = placed.ok_or_else(|| ApiError::unknown_element(&name))?;
        let shared = self.shared.clone();
        Ok(View::of_operator(shared, placed, &self.peer, self.role))
    }
}

impl Control for OnBehalf {
    fn summary(&self) -> Answer<'_, Summary> {
        Box::pin(async { Err(ApiError::not_offered()) })
    }

    fn offload(&self, input: OffloadInput) -> Answer<'_, OffloadOutput> {
        Box::pin(async move {
            let view = self.view(input.element.as_deref())?;
            view.offload(input).await
        })
    }

    fn withdraw(&self, input: WithdrawInput) -> Answer<'_, WithdrawOutput> {
        Box::pin(async move {
            let view = self.view(input.element.as_deref())?;
            view.withdraw(input).await
        })
    }

    fn reprove(&self, input: ReproveInput) -> Answer<'_, ReproveOutput> {
        Box::pin(async move {
            let view = self.view(input.element.as_deref())?;
            view.reprove(input).await
        })
    }

    fn reload(&self) -> Answer<'_, ReloadOutput> {
        Box::pin(async { Err(ApiError::not_offered()) })
    }

    fn sessions<'a>(
        &'a self,
        element: &'a str,
        cursor: u64,
        limit: usize,
    ) -> Answer<'a, SessionPage> {
        Box::pin(async move {
            let view = self.view(Some(element))?;
            view.sessions(element, cursor, limit).await
        })
    }

    fn session<'a>(
        &'a self,
        element: &'a str,
        key: &'a SessionKey,
    ) -> Answer<'a, Option<SessionReport>> {
        Box::pin(async move { self.view(Some(element))?.session(element, key).await })
    }

    fn ports<'a>(&'a self, element: &'a str) -> Answer<'a, Ports> {
        Box::pin(async move { self.view(Some(element))?.ports(element).await })
    }

    fn statistics<'a>(&'a self, element: &'a str) -> Answer<'a, Statistics> {
        Box::pin(async move { self.view(Some(element))?.statistics(element).await })
    }

    fn shield(&self, input: ShieldInput) -> Answer<'_, ShieldOutput> {
        Box::pin(async move {
            let view = self.view(input.element.as_deref())?;
            view.shield(input).await
        })
    }

    fn unshield(&self, input: UnshieldInput) -> Answer<'_, UnshieldOutput> {
        Box::pin(async move {
            let view = self.view(input.element.as_deref())?;
            view.unshield(input).await
        })
    }

    fn shields<'a>(&'a self, element: &'a str) -> Answer<'a, Shields> {
        Box::pin(async move { self.view(Some(element))?.shields(element).await })
    }
}
