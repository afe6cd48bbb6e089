//! The routes.
//!
//! *Promises*: see the module above.
//! *Refuses*: methods that a resource does not have (405, with `Allow`), bodies that are not
//! one node of the right name.
//! *Caller's duty*: none.
//! *Standard*: RFC 8040 sections 4.1 to 4.7.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};

use super::condition::{self, Conditions, Verdict};
use super::edit::{self, Fault, Operation};
use super::schema::Kind;
use super::target::Target;
use super::tree::{documents, find, id_of, tag_of, tree_of};
use super::{Change, Committed, Datastore, Loaded, Scope, Tag, body, check};
use crate::api::error::{ApiError, ErrorTag};
use crate::api::path::{DATA, no_resource};
use crate::api::query::{Content, Query};
use crate::api::select::Selection;
use crate::api::server::{answer, check_accept, json as to_json, respond, take_body};
use crate::api::wire::{MEDIA_TYPE, malformed};

/// How often an edit is tried where others are quicker.
const ATTEMPTS: usize = 16;

/// What is served.
pub struct Site {
    /// The configuration.
    pub datastore: Arc<dyn Datastore>,
    /// Containers of other modules beside it, by their qualified names.
    pub state: Vec<(&'static str, Told)>,
}

/// What a container has at the moment.
pub type Told = Box<dyn Fn() -> Value + Send + Sync>;

/// The routes of `/restconf/data`.
pub fn routes(site: Arc<Site>) -> Router {
    let data = || {
        get(read)
            .post(write)
            .put(write)
            .patch(write)
            .delete(write)
            .options(options)
    };
    Router::new()
        .route(DATA.trim_end_matches('/'), data())
        .route("/restconf/data/{*path}", data())
        .with_state(site)
}

impl Site {
    fn target(&self, uri: &Uri) -> Result<Target, ApiError> {
        Target::parse(self.datastore.module(), uri.path())
    }

    /// A container of another module.
    fn state_at(&self, path: &str) -> Option<&(&'static str, Told)> {
        let name = path.strip_prefix(DATA)?;
        self.state.iter().find(|(known, _)| *known == name)
    }
}

async fn options(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, ApiError> {
    if site.state_at(uri.path()).is_some() {
        return Ok(allowed("GET, HEAD, OPTIONS", respond(Body::empty())));
    }
    let target = site.target(&uri)?;
    let mut response = allowed(target.methods(), respond(Body::empty()));
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert("accept-patch", HeaderValue::from_static(MEDIA_TYPE));
    Ok(response)
}

fn allowed(methods: &'static str, mut response: Response) -> Response {
    let methods = HeaderValue::from_static(methods);
    response.headers_mut().insert(header::ALLOW, methods);
    response
}

async fn read(
    State(site): State<Arc<Site>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_accept(&headers)?;
    let query = Query::of_read(uri.query())?;
    let wanted = &query.selection;
    if let Some((name, told)) = site.state_at(uri.path()) {
        if query.content == Content::Config {
            return Err(no_such_content(uri.path(), "state", "nonconfig"));
        }
        let value = wanted.apply(told());
        return Ok(respond(to_json(&json!({ *name: value }))?.into()));
    }
    let target = site.target(&uri)?;
    if query.content == Content::Nonconfig && target.node().is_some() {
        return Err(no_such_content(uri.path(), "configuration", "config"));
    }
    let conditions = Conditions::read(&headers)?;
    let scope = target
        .document()
        .map_or(Scope::All, |id| Scope::Some(vec![id]));
    let loaded = answer(site.datastore.load(scope)).await?;
    let tree = tree_of(&target, &loaded);
    let found = find(&tree, &target).ok_or_else(|| absent(&target))?;
    let tag = tag_of(&target, &loaded).ok_or_else(|| absent(&target))?;
    let mut response = match conditions.judge(Some(tag), true)? {
        Verdict::Go => respond(to_json(&shown(&site, &target, found, &query))?.into()),
        Verdict::NotModified => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
    };
    condition::tell(response.headers_mut(), tag);
    Ok(response)
}

/// The body of a read.
fn shown(site: &Site, target: &Target, found: Value, query: &Query) -> Value {
    let wanted = &query.selection;
    let Some(node) = target.node() else {
        return json!({ "ietf-restconf:data": datastore(site, found, query, wanted) });
    };
    let name = format!("{}:{}", target.module.name, node.name);
    let value = match &node.kind {
        Kind::List(_) | Kind::LeafList(_) => Value::Array(vec![found]),
        Kind::Container(_) | Kind::Leaf(_) => found,
    };
    json!({ name: wanted.apply(value) })
}

fn datastore(site: &Site, found: Value, query: &Query, wanted: &Selection) -> Value {
    let module = site.datastore.module();
    let mut all = Map::new();
    if query.content != Content::Nonconfig {
        for (name, value) in edit::into_object(found) {
            if let Some(wanted) = wanted.child(&name) {
                all.insert(format!("{}:{name}", module.name), wanted.apply(value));
            }
        }
    }
    if query.content != Content::Config {
        for (name, told) in &site.state {
            if let Some(wanted) = wanted.child(name) {
                all.insert((*name).to_owned(), wanted.apply(told()));
            }
        }
    }
    Value::Object(all)
}

async fn write(
    State(site): State<Arc<Site>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if site.state_at(uri.path()).is_some() {
        let refused = not_allowed(&method, uri.path(), "GET, HEAD, OPTIONS").into_response();
        return Ok(allowed("GET, HEAD, OPTIONS", refused));
    }
    let target = site.target(&uri)?;
    if !target.methods().split(", ").any(|known| known == method) {
        let refused = not_allowed(&method, uri.path(), target.methods()).into_response();
        return Ok(allowed(target.methods(), refused));
    }
    Query::none(uri.query())?;
    check_accept(&headers)?;
    let conditions = Conditions::read(&headers)?;
    let edit = if method == Method::DELETE {
        Edit::new(&target, body::removal(&target)?)
    } else {
        let body = take_body(&headers, body).await?;
        let body = serde_json::from_slice(&body).map_err(|error| malformed(&error))?;
        Edit::new(&target, body::read(&method, &target, &body)?)
    };
    for _ in 0..ATTEMPTS {
        if let Some(response) = edit.attempt(&*site.datastore, &conditions).await? {
            return Ok(response);
        }
    }
    Err(ApiError::busy())
}

/// A checked edit.
struct Edit<'a> {
    /// What was asked, which conditions are about.
    asked: &'a Target,
    /// What is changed: for POST a child of it.
    place: Target,
    operation: Operation,
}

impl<'a> Edit<'a> {
    fn new(asked: &'a Target, (place, operation): (Target, Operation)) -> Self {
        Self {
            asked,
            place,
            operation,
        }
    }

    /// The documents that can change.
    fn scope(&self) -> Scope {
        if let Some(id) = self.place.document() {
            return Scope::Some(vec![id]);
        }
        let Operation::Merge(value) = &self.operation else {
            return Scope::All;
        };
        let top = &self.place.module.top;
        let content = match self.place.node() {
            None => value.get(top.name),
            Some(_) => Some(value),
        };
        let ids = top.nodes().iter().flat_map(|node| {
            let entries = content.and_then(|content| content.get(node.name));
            let entries = entries.and_then(Value::as_array);
            entries
                .into_iter()
                .flatten()
                .filter_map(|entry| id_of(node, entry))
        });
        Scope::Some(ids.collect())
    }

    /// Tries once; `None`: somebody else was quicker.
    async fn attempt(
        &self,
        datastore: &dyn Datastore,
        conditions: &Conditions,
    ) -> Result<Option<Response>, ApiError> {
        let loaded = answer(datastore.load(self.scope())).await?;
        let mut tree = tree_of(&self.place, &loaded);
        let found = find(&tree, self.asked).and(tag_of(self.asked, &loaded));
        conditions.judge(found, false)?;
        let was_there = self.carry_out(&mut tree)?;
        let changes = self.changes(&loaded, tree)?;
        let mut tag = tag_of(self.asked, &loaded);
        if !changes.is_empty() {
            let own = self.asked.document();
            let is_touched = own.is_none_or(|id| changes.iter().any(|change| change.id == id));
            match answer(datastore.commit(loaded.generation, changes)).await? {
                Committed::Done(new) if is_touched => tag = Some(new),
                Committed::Done(_) => {}
                Committed::Raced => return Ok(None),
            }
        }
        Ok(Some(self.done(was_there, tag)))
    }

    fn carry_out(&self, tree: &mut Map<String, Value>) -> Result<bool, ApiError> {
        let top = std::slice::from_ref(&self.place.module.top);
        let was_there = match (&self.operation, self.place.steps.as_slice()) {
            (Operation::Replace(value), []) => {
                *tree = edit::into_object(value.clone());
                true
            }
            (Operation::Merge(value), []) => {
                edit::merge(top, tree, value.clone());
                true
            }
            (operation, steps) => {
                edit::apply(tree, steps, operation).map_err(|fault| match fault {
                    Fault::Absent => absent(&self.place),
                    Fault::Present => present(&self.place),
                })?
            }
        };
        edit::tidy(top, tree);
        Ok(was_there)
    }

    /// What is different from what was loaded, each document complete.
    fn changes(&self, loaded: &Loaded, tree: Map<String, Value>) -> Result<Vec<Change>, ApiError> {
        let module = self.place.module;
        let mut after = documents(&module.top, tree);
        let mut changes = Vec::new();
        for (id, stored) in &loaded.documents {
            let now = after.remove(id);
            if now.as_ref() != Some(&stored.content) {
                changes.push(Change {
                    id: id.clone(),
                    before: Some(stored.clone()),
                    after: now,
                });
            }
        }
        changes.extend(after.into_iter().map(|(id, content)| Change {
            id,
            before: None,
            after: Some(content),
        }));
        for change in &changes {
            let list = module.top.child(change.id.list);
            if let (Some(content), Some(node)) = (&change.after, list)
                && let Kind::List(list) = &node.kind
            {
                let key = check::predicate(list.key, &change.id.key);
                let at = format!("/{}:{}/{}{key}", module.name, module.top.name, node.name);
                check::complete(list.nodes, content, &at)?;
            }
        }
        Ok(changes)
    }

    fn done(&self, was_there: bool, tag: Option<Tag>) -> Response {
        let mut response = respond(Body::empty());
        let is_created = match self.operation {
            Operation::Create(_) => true,
            Operation::Replace(_) => !was_there,
            Operation::Merge(_) | Operation::Remove => false,
        };
        *response.status_mut() = if is_created {
            StatusCode::CREATED
        } else {
            StatusCode::NO_CONTENT
        };
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        // Percent-encoded, so always a header's value.
        if is_created && let Ok(path) = HeaderValue::from_str(&self.place.path()) {
            headers.insert(header::LOCATION, path);
        }
        if let Some(tag) = tag.filter(|_| self.operation != Operation::Remove) {
            condition::tell(headers, tag);
        }
        response
    }
}

fn absent(target: &Target) -> ApiError {
    ApiError::application(
        StatusCode::NOT_FOUND,
        ErrorTag::InvalidValue,
        no_resource(&target.path()).entry.error_message,
    )
    .app_tag("data-missing")
    .at(target.instance())
}

fn present(target: &Target) -> ApiError {
    ApiError::application(
        StatusCode::CONFLICT,
        ErrorTag::DataExists,
        "it is there already: change it with PUT or PATCH",
    )
    .at(target.instance())
}

fn no_such_content(path: &str, kind: &str, content: &str) -> ApiError {
    ApiError::protocol(
        StatusCode::NOT_FOUND,
        ErrorTag::InvalidValue,
        format!("{path} is {kind}: ask with content={content} or all"),
    )
}

fn not_allowed(method: &Method, path: &str, methods: &str) -> ApiError {
    ApiError::protocol(
        StatusCode::METHOD_NOT_ALLOWED,
        ErrorTag::OperationNotSupported,
        format!("{method} is not served at {path}: it takes {methods}"),
    )
}
