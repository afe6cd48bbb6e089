//! A controller that shares its process with the relay of its only host.
//!
//! *Promises*: the inventory given is judged as an operator's edit is; requests of the relay
//! are judged as any relay's are, by token and certificate. Only the TLS around them is
//! missing: nobody else can have the other end of these connections.
//! *Refuses*: an inventory that is not of the model.
//! *Caller's duty*: the key of [`Relay::certificate`] is the relay's alone.
//! *Standard*: RFC 8040 section 4.5.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, header};
use http_body_util::BodyExt as _;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tower::ServiceExt as _;

use super::ControllerError;
use crate::api::config::{self, Site};
use crate::api::error::ErrorBody;
use crate::api::passage::Visitors;
use crate::api::wire::MEDIA_TYPE;

/// Where all of the inventory is.
const INVENTORY: &str = "/restconf/data/shunt-inventory:inventory";

/// What such a controller begins with.
pub struct Inside {
    /// The content of `shunt-inventory:inventory`.
    pub inventory: Value,
    /// Its relay.
    pub relay: Relay,
}

/// The relay of this process.
pub struct Relay {
    /// Its connections.
    pub visitors: Visitors,
    /// What it signs its tokens with.
    pub certificate: CertificateDer<'static>,
}

impl Inside {
    /// Fills the store behind `site`, which is empty.
    pub(super) async fn fill(self, site: Arc<Site>) -> Result<Relay, ControllerError> {
        let body = serde_json::json!({ "shunt-inventory:inventory": self.inventory });
        let refused = |why: &dyn std::fmt::Display| ControllerError::Inventory(why.to_string());
        let request = Request::builder()
            .method(Method::PUT)
            .uri(INVENTORY)
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .body(Body::from(body.to_string()))
            .map_err(|error| refused(&error))?;
        let Ok(answer) = config::routes(site).oneshot(request).await;
        let status = answer.status();
        if status.is_success() {
            return Ok(self.relay);
        }
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| refused(&error))?.to_bytes();
        let told: ErrorBody = serde_json::from_slice(&body).map_err(|_| refused(&status))?;
        let told = told.errors.error.into_iter().map(|error| {
            let path = error.error_path.unwrap_or_default();
            format!("{path}: {}", error.error_message)
        });
        Err(refused(&told.collect::<Vec<_>>().join("; ")))
    }
}
