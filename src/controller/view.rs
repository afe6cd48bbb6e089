//! An element's own part of what there is: what it, or an operator for it, may ask for, and see.
//!
//! *Promises*: nothing here reaches another element; results come in the order of entries,
//! those judged here among those of the backend.
//! *Refuses*: other elements' names (404), entries that [`Bounds::judge`] denies, and what is beyond
//! the element's rate and number. The rate is not an operator's, who also may vouch.
//! *Caller's duty*: the element's identity, or the operator's role, was verified.
//! *Standard*: RFC 8040; `shunt-offload`.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use tokio::time::Instant;

use super::audit::{Audit, Record};
use super::backends::Backends;
use super::batch::{Batch, refused};
use super::config::Role;
use super::feeds::Feeds;
use super::meter::Meters;
use super::registry::{Bar, HandBack, Placed, Registry};
use crate::api::bounds::Bounds;
use crate::api::control::SessionPage;
use crate::api::epoch::{OpenEpochInput, OpenEpochOutput};
use crate::api::error::{ApiError, ErrorEntry, ErrorTag};
use crate::api::identity::Identity;
use crate::api::listen::Peer;
use crate::api::offload::{Fault, OffloadInput, OffloadOutput, OffloadStatus};
use crate::api::session::{Session, SessionKey};
use crate::api::state::Summary;
use crate::api::sync::{SyncInput, SyncOutput, SyncStatus};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput, WithdrawStatus};
use crate::api::{Client, ClientError, no_resource, server, sse, stream_of};

mod control;
mod reprove;
mod shields;

/// Most sessions that are listed at once: a list is held in memory here.
const LISTED_MAX: u32 = 65_536;

/// Where an element's notifications are, whatever its name.
const OWN_STREAM: &str = "/restconf/streams/shunt-offload/json";

/// Why a session is beyond the element's quota: the `error-app-tag`, and in words.
const RATE: (&str, &str) = (
    "rate",
    "more sessions a second than the element's quota: ask later",
);
const NUMBER: (&str, &str) = (
    "sessions",
    "the element has as many sessions as its quota: withdraw some, or ask later",
);

/// What all views share.
pub struct Shared {
    /// The inventory.
    pub registry: Arc<Registry>,
    /// What elements have used.
    pub meters: Meters,
    /// The ways to backends.
    pub backends: Arc<Backends>,
    /// What they tell.
    pub feeds: Arc<Feeds>,
    /// The log.
    pub audit: Arc<Audit>,
}

/// See the module.
pub struct View {
    shared: Arc<Shared>,
    placed: Placed,
    asker: Asker,
}

/// Who asks.
#[derive(Clone, Debug)]
enum Asker {
    Element(Line),
    /// For the element.
    Operator {
        /// The name of the certificate.
        peer: String,
        role: Role,
    },
}

/// The element's connection.
#[derive(Clone, Debug)]
struct Line {
    /// The name of the relay's certificate.
    relay: String,
    /// The number of the connection.
    fence: u64,
    /// When its token ends.
    expires: Instant,
}

impl View {
    /// The view of an element that asks through a relay, as that vouches.
    pub fn new(shared: Arc<Shared>, placed: Placed, identity: Identity) -> Self {
        let left = identity.expires.duration_since(super::wall_clock());
        let line = Line {
            relay: identity.host,
            fence: identity.fence,
            expires: Instant::now() + left.unwrap_or_default(),
        };
        Self {
            shared,
            placed,
            asker: Asker::Element(line),
        }
    }

    /// The view that an operator has of an element.
    pub fn of_operator(shared: Arc<Shared>, placed: Placed, peer: &Peer, role: Role) -> Self {
        let peer = peer.name().to_owned();
        Self {
            shared,
            placed,
            asker: Asker::Operator { peer, role },
        }
    }

    /// The connection's number. An operator's calls come late by none.
    fn fence(&self) -> Option<u64> {
        match &self.asker {
            Asker::Element(line) => Some(line.fence),
            Asker::Operator { .. } => None,
        }
    }

    fn is_of_operator(&self) -> bool {
        matches!(self.asker, Asker::Operator { .. })
    }

    pub(super) fn name(&self) -> &str {
        &self.placed.element.name
    }

    fn backend(&self) -> Client {
        self.shared.backends.client(&self.placed.host.backend)
    }

    /// Refuses the name of an input where it is another's.
    fn meant(&self, name: Option<&str>) -> Result<Option<String>, ApiError> {
        name.map_or(Ok(()), |name| self.own(name))?;
        Ok(Some(self.name().to_owned()))
    }

    /// Refuses every name but the element's own, as if there were no others.
    pub(super) fn own(&self, name: &str) -> Result<(), ApiError> {
        if name == self.name() {
            Ok(())
        } else {
            Err(ApiError::unknown_element(name))
        }
    }

    async fn do_open_epoch(&self, input: OpenEpochInput) -> Result<OpenEpochOutput, ApiError> {
        let input = OpenEpochInput {
            element: self.meant(input.element.as_deref())?,
            fence: self.told_fence().await?,
        };
        let output = self.backend().open_epoch(input).await.map_err(of_backend)?;
        self.shared.meters.forget(self.name(), Instant::now());
        self.shared.audit.log(self.line("open-epoch")).await;
        Ok(output)
    }

    async fn do_offload(&self, input: OffloadInput) -> Result<OffloadOutput, ApiError> {
        let element = self.meant(input.element.as_deref())?;
        let fence = self.fence_beside(input.epoch).await?;
        let mut batch = self.judged(input.session).await?;
        let input = OffloadInput {
            element,
            fence,
            session: batch.take_allowed(),
            ..input
        };
        let mut output = OffloadOutput::default();
        if !input.session.is_empty() {
            output = self.backend().offload(input).await.map_err(of_backend)?;
            let statuses = output.result.iter().map(|one| one.result);
            self.added(statuses);
        }
        output.result = batch.fill(output.result)?;
        self.undo_if_late().await;
        let entries = output.result.iter();
        let entries = entries.map(|one| (&one.key, one.result.name(), one.error.as_ref()));
        self.shared.audit.log(self.record("offload", entries)).await;
        Ok(output)
    }

    /// A page's sessions are judged as those of `offload` are.
    async fn do_sync(&self, mut input: SyncInput) -> Result<SyncOutput, ApiError> {
        input.element = self.meant(input.element.as_deref())?;
        input.fence = self.told_fence().await?;
        let mut batch = Batch::default();
        let mut keys = 0;
        if let Some(page) = &mut input.page {
            batch = self.judged(std::mem::take(&mut page.session)).await?;
            page.session = batch.take_allowed();
            keys = page.key.len();
        }
        let mut output = self.backend().sync(input).await.map_err(of_backend)?;
        let of_sessions = output.result.split_off(keys.min(output.result.len()));
        let statuses = of_sessions.iter().filter_map(|one| match one.result {
            SyncStatus::Offload(status) => Some(status),
            SyncStatus::Kept | SyncStatus::Absent => None,
        });
        self.added(statuses);
        output.result.extend(batch.fill(of_sessions)?);
        if output.swept.is_some() {
            self.shared.meters.forget(self.name(), Instant::now());
        }
        self.undo_if_late().await;
        let entries = output.result.iter();
        let entries = entries.map(|one| (&one.key, one.result.name(), one.error.as_ref()));
        self.shared.audit.log(self.record("sync", entries)).await;
        Ok(output)
    }

    /// The sessions of a call, judged by everything that is known here.
    async fn judged(&self, sessions: Vec<Session>) -> Result<Batch, ApiError> {
        let policy = &self.placed.element.policy;
        let mut batch = Batch::default();
        let bounds = Bounds {
            may_vouch: self.is_of_operator(),
            ..self.placed.element.bounds()
        };
        for session in sessions {
            let denied = self.judge(&bounds, &session).err();
            batch.add(session, denied);
        }
        if !self.is_of_operator() {
            let (rate, wanted) = (policy.requests_per_second, batch.len());
            let meters = &self.shared.meters;
            let in_time = meters.pass(self.name(), rate, wanted, Instant::now());
            batch.refuse_after(in_time, RATE);
        }
        if batch.len() > 0 {
            let room = u64::from(policy.sessions).saturating_sub(self.count().await?);
            if batch.len() as u64 > room {
                self.refuse_beyond(&mut batch, room).await?;
            }
        }
        Ok(batch)
    }

    /// Counts sessions that are new at the backend.
    fn added(&self, statuses: impl Iterator<Item = OffloadStatus>) {
        let new = statuses.filter(|status| *status == OffloadStatus::Offloaded);
        let meters = &self.shared.meters;
        meters.added(self.name(), new.count() as u64, Instant::now());
    }

    /// Hands back where a switch was turned, or the element moved, while its sessions were on
    /// their way: the hand-back that followed from that may have come before them.
    async fn undo_if_late(&self) {
        let one = HandBack {
            backend: self.placed.host.backend.clone(),
            element: self.name().to_owned(),
        };
        if !self.shared.registry.is_due(&one) {
            return;
        }
        if let Err(error) = self
            .backend()
            .withdraw(WithdrawInput::all_of(self.name()))
            .await
        {
            log::error!(
                "late sessions of {} cannot be handed back: {error}",
                self.name()
            );
        }
    }

    /// Refuses what is new beyond `room` sessions; what is there already may be offered again.
    async fn refuse_beyond(&self, batch: &mut Batch, mut room: u64) -> Result<(), ApiError> {
        for (place, session) in batch.drain() {
            let found = self.backend().session(self.name(), &session.key).await;
            let is_there = found.map_err(of_backend)?.is_some();
            if is_there || room > 0 {
                room -= u64::from(!is_there);
                batch.allow(place, session);
            } else {
                batch.refuse(place, session, NUMBER);
            }
        }
        Ok(())
    }

    /// Judges one session by switches and policy.
    fn judge(&self, bounds: &Bounds, session: &Session) -> Result<(), Fault> {
        bounds.judge(session)?;
        let (app_tag, message) = match self.placed.bar() {
            None => return Ok(()),
            Some(Bar::Kill) => ("killed", "an operator has turned offloads off: ask later"),
            Some(Bar::Drain) => ("draining", "the host is being drained: ask later"),
            Some(Bar::Observe) => (
                "observe-only",
                "the element is only observed; it would be allowed",
            ),
        };
        Err(Fault {
            leaf: String::new(),
            tag: ErrorTag::AccessDenied,
            app_tag,
            message: message.to_owned(),
        })
    }

    /// How many sessions the element has.
    async fn count(&self) -> Result<u64, ApiError> {
        if let Some(count) = self.shared.meters.sessions(self.name(), Instant::now()) {
            return Ok(count);
        }
        let summary = self.backend().summary().await.map_err(of_backend)?;
        let own = summary.element.iter().find(|one| one.name == self.name());
        let count = own.map_or(0, |one| u64::from(one.sessions));
        self.shared
            .meters
            .counted(self.name(), count, Instant::now());
        Ok(count)
    }

    async fn do_withdraw(&self, input: WithdrawInput) -> Result<WithdrawOutput, ApiError> {
        let input = WithdrawInput {
            element: self.meant(input.element.as_deref())?,
            fence: self.fence_beside(input.epoch).await?,
            ..input
        };
        let output = self.backend().withdraw(input).await.map_err(of_backend)?;
        self.shared.meters.forget(self.name(), Instant::now());
        let absent = output
            .result
            .iter()
            .filter(|one| one.result == WithdrawStatus::Absent);
        let results = [
            ("withdrawn", output.withdrawn),
            ("absent", absent.count() as u64),
        ];
        let record = Record {
            results: results
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .collect(),
            ..self.line("withdraw")
        };
        self.shared.audit.log(record).await;
        Ok(output)
    }

    async fn do_summary(&self) -> Result<Summary, ApiError> {
        let mut summary = self.backend().summary().await.map_err(of_backend)?;
        summary.element.retain(|one| one.name == self.name());
        Ok(summary)
    }

    async fn do_sessions(&self, element: &str) -> Result<SessionPage, ApiError> {
        self.own(element)?;
        let summary = self.do_summary().await?;
        if summary.element.iter().any(|one| one.sessions > LISTED_MAX) {
            return Err(ApiError::application(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorTag::ResourceDenied,
                format!(
                    "a list of more than {LISTED_MAX} sessions is not served: read single ones"
                ),
            ));
        }
        let sessions = self.backend().sessions(element).await.map_err(of_backend)?;
        Ok(SessionPage {
            sessions: sessions.session,
            next: None,
        })
    }

    /// The answer that carries the element's notifications.
    pub(super) async fn stream(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Response, ApiError> {
        server::check_stream(uri, headers)?;
        let path = uri.path();
        match stream_of(path) {
            Some(name) => self.own(&name)?,
            None if path == OWN_STREAM => {}
            None => return Err(no_resource(path)),
        }
        let Asker::Element(line) = &self.asker else {
            return Err(no_resource(path));
        };
        let feeds = &self.shared.feeds;
        let reader = feeds.open(&self.placed, line.fence, line.expires).await?;
        self.shared.audit.log(self.line("events")).await;
        Ok(sse::carry(Body::new(reader)))
    }

    pub(super) fn line(&self, action: &str) -> Record {
        let (by, peer, role) = match &self.asker {
            Asker::Element(line) => ("relay", &line.relay, None),
            Asker::Operator { peer, role } => ("operator", peer, Some(role.name())),
        };
        Record {
            by,
            peer: peer.clone(),
            role,
            element: Some(self.name().to_owned()),
            action: action.to_owned(),
            status: 200,
            ..Record::default()
        }
    }

    /// What the log says of a call, and of its entries: key, result and why not.
    fn record<'a>(
        &self,
        action: &str,
        entries: impl Iterator<Item = (&'a SessionKey, &'static str, Option<&'a ErrorEntry>)>,
    ) -> Record {
        let mut record = self.line(action);
        for (key, result, error) in entries {
            *record.results.entry(result).or_insert(0) += 1;
            if let Some(error) = error {
                record.refused.push(refused(key.to_string(), error));
            }
        }
        record
    }
}

/// What a backend's refusal, or its silence, is to an element.
pub(super) fn of_backend(error: ClientError) -> ApiError {
    match error {
        // Of a whole call, 401 and 403 are about the controller and not about the element.
        ClientError::Refused { status, mut errors }
            if !errors.is_empty()
                && ![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) =>
        {
            ApiError {
                status,
                entry: Box::new(errors.swap_remove(0)),
            }
        }
        error => {
            log::warn!("a backend: {error}");
            ApiError::application(
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorTag::ResourceDenied,
                "the backend of the host does not answer; asking again is safe",
            )
            .app_tag("backend")
        }
    }
}
