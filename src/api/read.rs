//! Reading data: from a resource and a selection to an answer's parts.
//!
//! *Promises*: nodes that are not wanted are not asked of the backend, as far as that spares
//! work; sessions are told page by page.
//! *Refuses*: what [`Control`] refuses.
//! *Caller's duty*: none.
//! *Standard*: RFC 8040 sections 3.5 and 4.3, RFC 7951.

use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;

use super::control::Control;
use super::discovery::{self, Defaults};
use super::error::{ApiError, ErrorTag};
use super::path::Resource;
use super::query::{Content, Query};
use super::select::Selection;
use super::server::{answer, json};
use super::stream::{self, Part};

/// The answer to a GET of `resource` at `path`.
pub(super) async fn read(
    control: Arc<dyn Control>,
    resource: Resource,
    query: &Query,
    path: &str,
) -> Result<Body, ApiError> {
    if query.content == Content::Config && resource != Resource::Datastore {
        return Err(no_configuration(path));
    }
    let wanted = &query.selection;
    let mut out = Builder::default();
    out.open('{');
    match resource {
        Resource::Datastore => {
            out.name("ietf-restconf:data");
            datastore(&*control, query, &mut out).await?;
        }
        Resource::YangLibrary => {
            out.name("ietf-yang-library:yang-library");
            out.value(
                &discovery::yang_library(&[discovery::OFFLOAD], "operational"),
                wanted,
            )?;
        }
        Resource::RestconfState => {
            out.name("ietf-restconf-monitoring:restconf-state");
            out.value(&restconf_state(&*control).await?, wanted)?;
        }
        Resource::State => {
            out.name("shunt-offload:state");
            state(&*control, wanted, &mut out).await?;
        }
        Resource::Summary => {
            out.name("shunt-offload:summary");
            out.value(&answer(control.summary()).await?, wanted)?;
        }
        Resource::Element(element) => {
            out.name("shunt-offload:element");
            out.open('[');
            out.entry();
            self::element(&*control, &element, wanted, &mut out).await?;
            out.close(']');
        }
        Resource::Sessions(element) => {
            out.name("shunt-offload:sessions");
            sessions(&element, wanted, &mut out);
        }
        Resource::Session(element, key) => {
            let Some(session) = answer(control.session(&element, &key)).await? else {
                return Err(no_session(&element, key.as_str(), path));
            };
            out.name("shunt-offload:session");
            out.value(&[session], wanted)?;
        }
        Resource::Ports(element) => {
            out.name("shunt-offload:ports");
            out.value(&answer(control.ports(&element)).await?, wanted)?;
        }
        Resource::Statistics(element) => {
            out.name("shunt-offload:statistics");
            out.value(&answer(control.statistics(&element)).await?, wanted)?;
        }
        Resource::Shields(element) => {
            out.name("shunt-offload:shields");
            out.value(&answer(control.shields(&element)).await?, wanted)?;
        }
    }
    out.close('}');
    stream::start(control, out.finish()).await
}

async fn datastore(
    control: &dyn Control,
    query: &Query,
    out: &mut Builder,
) -> Result<(), ApiError> {
    out.open('{');
    if query.content != Content::Config {
        if let Some(wanted) = query.selection.child("state") {
            out.name("shunt-offload:state");
            state(control, &wanted, out).await?;
        }
        if let Some(wanted) = query.selection.child("yang-library") {
            out.name("ietf-yang-library:yang-library");
            out.value(
                &discovery::yang_library(&[discovery::OFFLOAD], "operational"),
                &wanted,
            )?;
        }
        if let Some(wanted) = query.selection.child("restconf-state") {
            out.name("ietf-restconf-monitoring:restconf-state");
            out.value(&restconf_state(control).await?, &wanted)?;
        }
    }
    out.close('}');
    Ok(())
}

async fn restconf_state(control: &dyn Control) -> Result<Value, ApiError> {
    let summary = answer(control.summary()).await?;
    let names = summary.element.iter().map(|element| element.name.as_str());
    Ok(discovery::restconf_state_with(Defaults::Trim, names))
}

async fn state(
    control: &dyn Control,
    wanted: &Selection,
    out: &mut Builder,
) -> Result<(), ApiError> {
    let summary = answer(control.summary()).await?;
    out.open('{');
    if let Some(wanted) = wanted.child("summary") {
        out.name("summary");
        out.value(&summary, &wanted)?;
    }
    if let Some(wanted) = wanted.child("element") {
        out.name("element");
        out.open('[');
        for one in &summary.element {
            out.entry();
            element(control, &one.name, &wanted, out).await?;
        }
        out.close(']');
    }
    out.close('}');
    Ok(())
}

/// An element's list entry; its sessions come last, since they may be many.
async fn element(
    control: &dyn Control,
    name: &str,
    wanted: &Selection,
    out: &mut Builder,
) -> Result<(), ApiError> {
    // Also where no more is wanted than the name: an unknown one is refused.
    let ports = answer(control.ports(name)).await?;
    out.open('{');
    if let Some(wanted) = wanted.child("name") {
        out.name("name");
        out.value(&name, &wanted)?;
    }
    if let Some(wanted) = wanted.child("ports") {
        out.name("ports");
        out.value(&ports, &wanted)?;
    }
    if let Some(wanted) = wanted.child("statistics") {
        out.name("statistics");
        out.value(&answer(control.statistics(name)).await?, &wanted)?;
    }
    if let Some(wanted) = wanted.child("shields") {
        out.name("shields");
        out.value(&answer(control.shields(name)).await?, &wanted)?;
    }
    if let Some(wanted) = wanted.child("sessions") {
        out.name("sessions");
        sessions(name, &wanted, out);
    }
    out.close('}');
    Ok(())
}

fn sessions(element: &str, wanted: &Selection, out: &mut Builder) {
    out.open('{');
    if let Some(wanted) = wanted.child("session") {
        out.name("session");
        out.open('[');
        out.sessions(element, wanted);
        out.close(']');
    }
    out.close('}');
}

fn no_session(element: &str, key: &str, path: &str) -> ApiError {
    ApiError::application(
        StatusCode::NOT_FOUND,
        ErrorTag::InvalidValue,
        format!("element `{element}` has no session `{key}`: it ended, or was never offloaded"),
    )
    .app_tag("unknown-session")
    .at(path)
}

fn no_configuration(path: &str) -> ApiError {
    ApiError::protocol(
        StatusCode::NOT_FOUND,
        ErrorTag::InvalidValue,
        format!("{path} is state, and has no configuration: ask with content=nonconfig or all"),
    )
}

/// JSON text, with the sessions left to be filled in.
#[derive(Default)]
struct Builder {
    parts: Vec<Part>,
    text: String,
    /// Nothing stands behind the last opening bracket yet.
    at_first: bool,
}

impl Builder {
    fn open(&mut self, bracket: char) {
        self.text.push(bracket);
        self.at_first = true;
    }

    fn close(&mut self, bracket: char) {
        self.text.push(bracket);
        self.at_first = false;
    }

    /// Begins a list's entry.
    fn entry(&mut self) {
        if !std::mem::take(&mut self.at_first) {
            self.text.push(',');
        }
    }

    /// Begins a member; names need no escaping.
    fn name(&mut self, name: &str) {
        self.entry();
        self.text.push('"');
        self.text.push_str(name);
        self.text.push_str("\":");
    }

    fn value<T: Serialize>(&mut self, value: &T, wanted: &Selection) -> Result<(), ApiError> {
        self.text.push_str(&selected(value, wanted)?);
        Ok(())
    }

    fn sessions(&mut self, element: &str, wanted: Selection) {
        let text = std::mem::take(&mut self.text);
        self.parts.push(Part::Text(text));
        self.parts.push(Part::Sessions(element.to_owned(), wanted));
    }

    fn finish(mut self) -> Vec<Part> {
        self.parts.push(Part::Text(self.text));
        self.parts
    }
}

/// JSON of what is wanted of one of our own types.
pub(super) fn selected<T: Serialize>(value: &T, wanted: &Selection) -> Result<String, ApiError> {
    if wanted.is_whole() {
        return json(value);
    }
    let value: Value = serde_json::to_value(value).map_err(|error| {
        ApiError::failed(format!("the answer cannot be written as JSON: {error}"))
    })?;
    json(&wanted.apply(value))
}
