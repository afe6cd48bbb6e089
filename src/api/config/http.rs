//! The routes.
//!
//! *Promises*: see the module above.
//! *Refuses*: methods that a resource does not have (405, with `Allow`), bodies that are not
//! one node of the right name.
//! *Caller's duty*: none.
//! *Standard*: RFC 8040 sections 4.1 to 4.7.

use std::collections::BTreeMap;
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
use super::schema::{Kind, Node};
use super::target::{Step, Target};
use super::{Change, Committed, Datastore, DocumentId, Loaded, Scope, Tag, check};
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
    pub state: Vec<(&'static str, Value)>,
}

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
    fn state_at(&self, path: &str) -> Option<&(&'static str, Value)> {
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
    if let Some((name, value)) = site.state_at(uri.path()) {
        if query.content == Content::Config {
            return Err(no_such_content(uri.path(), "state", "nonconfig"));
        }
        let value = wanted.apply(value.clone());
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
        for (name, value) in &site.state {
            if let Some(wanted) = wanted.child(name) {
                all.insert((*name).to_owned(), wanted.apply(value.clone()));
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
        Edit::new(&target, target.clone(), Operation::Remove)?
    } else {
        let body = take_body(&headers, body).await?;
        let body = serde_json::from_slice(&body).map_err(|error| malformed(&error))?;
        Edit::read(&method, &target, &body)?
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
    fn new(asked: &'a Target, place: Target, operation: Operation) -> Result<Self, ApiError> {
        keep_key(&place, &operation)?;
        Ok(Self {
            asked,
            place,
            operation,
        })
    }

    /// From a body.
    fn read(method: &Method, asked: &'a Target, body: &Value) -> Result<Self, ApiError> {
        let (name, value) = only_member(body)?;
        if *method == Method::POST {
            let at = format!("{}/{name}", asked.instance());
            let node = asked.child_node(name).ok_or_else(|| unknown(&at))?;
            let (place, value) = addressed(asked, node, value)?;
            return Self::new(asked, place, Operation::Create(value));
        }
        let value = match asked.node() {
            None if name == "ietf-restconf:data" => whole(asked, value)?,
            None => return Err(misnamed(name, "ietf-restconf:data")),
            Some(node) => {
                let expected = format!("{}:{}", asked.module.name, node.name);
                if name != expected {
                    return Err(misnamed(name, &expected));
                }
                named(asked, node, value)?
            }
        };
        let operation = match *method {
            Method::PUT => Operation::Replace(value),
            _ => Operation::Merge(value),
        };
        Self::new(asked, asked.clone(), operation)
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

/// The one member of a body.
fn only_member(body: &Value) -> Result<(&str, &Value), ApiError> {
    match body.as_object().map(|object| object.iter()) {
        Some(mut members) if members.len() == 1 => members
            .next()
            .map(|(name, value)| (name.as_str(), value))
            .ok_or_else(|| misnamed("", "a node")),
        _ => Err(bad(
            ErrorTag::InvalidValue,
            "a body is a JSON object with one node, under its module's name",
            "/",
        )),
    }
}

/// The place and content of a new child `node` of `parent`.
fn addressed(
    parent: &Target,
    node: &'static Node,
    value: &Value,
) -> Result<(Target, Value), ApiError> {
    let at = format!("{}/{}", parent.child(node, None).instance(), "");
    let at = at.trim_end_matches('/');
    match &node.kind {
        Kind::Container(_) | Kind::Leaf(_) => {
            let value = check::content(node, value, at)?;
            Ok((parent.child(node, None), value))
        }
        Kind::List(list) => {
            let entry = only_entry(value, at)?;
            let key = check::key_of(list, entry, at)?;
            let place = parent.child(node, Some(key));
            let value = check::content(node, entry, &place.instance())?;
            Ok((place, value))
        }
        Kind::LeafList(_) => {
            let value = check::content(node, only_entry(value, at)?, at)?;
            let key = value.as_str().map(ToOwned::to_owned);
            Ok((parent.child(node, key), value))
        }
    }
}

/// The content for `target`, whose key it must have.
fn named(target: &Target, node: &'static Node, value: &Value) -> Result<Value, ApiError> {
    let at = target.instance();
    let key = target.steps.last().and_then(|step| step.key.as_deref());
    let (value, given, at_key) = match &node.kind {
        Kind::Container(_) | Kind::Leaf(_) => return check::content(node, value, &at),
        Kind::List(list) => {
            let entry = only_entry(value, &at)?;
            let given = check::key_of(list, entry, &at)?;
            (entry, given, format!("{at}/{}", list.key))
        }
        Kind::LeafList(_) => {
            let entry = only_entry(value, &at)?;
            let checked = check::content(node, entry, &at)?;
            (
                entry,
                checked.as_str().unwrap_or_default().to_owned(),
                at.clone(),
            )
        }
    };
    if Some(given.as_str()) != key {
        let message = format!(
            "the path says `{}`, the body `{given}`",
            key.unwrap_or_default()
        );
        return Err(bad(ErrorTag::InvalidValue, message, &at_key));
    }
    check::content(node, value, &at)
}

/// The content of `ietf-restconf:data`.
fn whole(target: &Target, value: &Value) -> Result<Value, ApiError> {
    let at = "/ietf-restconf:data";
    let given = value
        .as_object()
        .ok_or_else(|| bad(ErrorTag::BadElement, "this is a JSON object of nodes", at))?;
    let mut content = Map::new();
    for (name, value) in given {
        let node = target
            .child_node(name)
            .ok_or_else(|| unknown(&format!("/{name}")))?;
        let at = target.child(node, None).instance();
        content.insert(node.name.to_owned(), check::content(node, value, &at)?);
    }
    Ok(Value::Object(content))
}

fn only_entry<'a>(value: &'a Value, at: &str) -> Result<&'a Value, ApiError> {
    match value.as_array().map(Vec::as_slice) {
        Some([entry]) => Ok(entry),
        _ => Err(bad(
            ErrorTag::BadElement,
            "this is a JSON array with one entry",
            at,
        )),
    }
}

/// Refuses to change the key of an entry, which is what it is found by.
fn keep_key(place: &Target, operation: &Operation) -> Result<(), ApiError> {
    let [.., entry, leaf] = place.steps.as_slice() else {
        return Ok(());
    };
    let Kind::List(list) = &entry.node.kind else {
        return Ok(());
    };
    if list.key != leaf.node.name {
        return Ok(());
    }
    let is_kept = match operation {
        Operation::Create(value) | Operation::Replace(value) | Operation::Merge(value) => {
            value.as_str() == entry.key.as_deref()
        }
        Operation::Remove => false,
    };
    if is_kept {
        Ok(())
    } else {
        let message = "a key stays as long as its entry: create another entry";
        Err(bad(ErrorTag::InvalidValue, message, &place.instance()))
    }
}

/// Documents as the content of a datastore.
fn tree_of(target: &Target, loaded: &Loaded) -> Map<String, Value> {
    let mut top = Map::new();
    for (id, stored) in &loaded.documents {
        let list = top
            .entry(id.list)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(entries) = list {
            entries.push(stored.content.clone());
        }
    }
    Map::from_iter([(target.module.top.name.to_owned(), Value::Object(top))])
}

/// The reverse of [`tree_of`].
fn documents(top: &'static Node, mut tree: Map<String, Value>) -> BTreeMap<DocumentId, Value> {
    let content = tree
        .remove(top.name)
        .map_or_else(Map::new, edit::into_object);
    let mut documents = BTreeMap::new();
    for (name, entries) in content {
        let Some(node) = top.child(&name) else {
            continue;
        };
        for entry in edit::into_array(entries) {
            if let Some(id) = id_of(node, &entry) {
                documents.insert(id, entry);
            }
        }
    }
    documents
}

fn id_of(node: &'static Node, entry: &Value) -> Option<DocumentId> {
    let Kind::List(list) = &node.kind else {
        return None;
    };
    let key = entry.get(list.key)?.as_str()?.to_owned();
    Some(DocumentId {
        list: node.name,
        key,
    })
}

/// What is at `target`, or holds there by default.
fn find(tree: &Map<String, Value>, target: &Target) -> Option<Value> {
    let Some((last, above)) = target.steps.split_last() else {
        return Some(Value::Object(tree.clone()));
    };
    let mut content = Some(tree);
    for step in above {
        content = match &step.node.kind {
            // Without presence it is there, empty.
            Kind::Container(_) => content.and_then(|content| content.get(step.node.name)),
            _ => Some(entry_of(content?, step)?),
        }
        .and_then(Value::as_object);
    }
    match &last.node.kind {
        Kind::Container(_) => {
            let found = content.and_then(|content| content.get(last.node.name));
            Some(found.cloned().unwrap_or_else(|| json!({})))
        }
        Kind::List(_) | Kind::LeafList(_) => entry_of(content?, last).cloned(),
        Kind::Leaf(leaf) => {
            let found = content.and_then(|content| content.get(last.node.name));
            found.cloned().or_else(|| leaf.default.map(Value::from))
        }
    }
}

fn entry_of<'a>(content: &'a Map<String, Value>, step: &Step) -> Option<&'a Value> {
    let entries = content.get(step.node.name)?.as_array()?;
    let place = edit::place_of(entries, step.node, step.key.as_deref())?;
    entries.get(place)
}

/// The state of what is at `target`: of its document, or of everything.
fn tag_of(target: &Target, loaded: &Loaded) -> Option<Tag> {
    match target.document() {
        Some(id) => loaded.documents.get(&id).map(|stored| stored.tag),
        None => Some(loaded.generation),
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

fn unknown(at: &str) -> ApiError {
    let shown: String = at.chars().take(300).collect();
    bad(
        ErrorTag::UnknownElement,
        "there is no such node here",
        &shown,
    )
}

fn misnamed(found: &str, expected: &str) -> ApiError {
    let shown: String = found.chars().take(64).collect();
    let message = format!("the body's node is `{shown}`: `{expected}` is what the path names");
    bad(ErrorTag::UnknownElement, message, &format!("/{shown}"))
}

fn bad(tag: ErrorTag, message: impl Into<String>, at: &str) -> ApiError {
    ApiError::application(StatusCode::BAD_REQUEST, tag, message).at(at)
}
