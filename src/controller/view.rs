//! An element's own part of what there is: what it may ask for, and see.
//!
//! *Promises*: nothing here reaches another element; results come in the order of entries,
//! those judged here among those of the backend.
//! *Refuses*: other elements' names (404), entries that [`Bounds::judge`] denies, and what is beyond
//! the element's rate and number.
//! *Caller's duty*: the element's identity was verified.
//! *Standard*: RFC 8040; `shunt-offload`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use tokio::time::Instant;

use super::audit::{Audit, Record, Refused};
use super::meter::Meters;
use super::registry::{Bar, HandBack, Placed, Registry};
use crate::api::bounds::Bounds;
use crate::api::control::{Answer, Control, SessionPage};
use crate::api::error::{ApiError, ErrorTag};
use crate::api::offload::{Fault, OffloadInput, OffloadOutput, OffloadResult, OffloadStatus};
use crate::api::reload::ReloadOutput;
use crate::api::session::{Session, SessionKey};
use crate::api::state::{Ports, SessionReport, Statistics, Summary};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput, WithdrawStatus};
use crate::api::{Client, ClientError};

/// Most sessions that are listed at once: a list is held in memory here.
const LISTED_MAX: u32 = 65_536;

const RATE: &str = "more sessions a second than the element's quota: ask later";
const NUMBER: &str = "the element has as many sessions as its quota: withdraw some, or ask later";

/// The entries of an `offload`, as far as they are judged.
#[derive(Default)]
struct Batch {
    /// What may go on, and where its result stands.
    allowed: Vec<(usize, Session)>,
    results: Vec<Option<OffloadResult>>,
}

impl Batch {
    fn add(&mut self, session: Session, denied: Option<Fault>) {
        let denied_with = OffloadStatus::AccessDenied;
        let result = match denied {
            Some(fault) => Some(OffloadResult::fault(session.key, denied_with, fault)),
            None => {
                self.allowed.push((self.results.len(), session));
                None
            }
        };
        self.results.push(result);
    }

    /// Refuses what comes after the first `in_time` entries that are allowed.
    fn refuse_after(&mut self, in_time: usize) {
        for (place, session) in self.allowed.split_off(in_time) {
            self.results[place] = Some(quota(session, "rate", RATE));
        }
    }
}

/// What all views share.
pub struct Shared {
    /// The inventory.
    pub registry: Arc<Registry>,
    /// What elements have used.
    pub meters: Meters,
    /// The log.
    pub audit: Arc<Audit>,
}

/// See the module.
pub struct View {
    shared: Arc<Shared>,
    placed: Placed,
    /// The name of the relay's certificate.
    relay: String,
}

impl View {
    /// The view of an element that asks through `relay`.
    pub fn new(shared: Arc<Shared>, placed: Placed, relay: String) -> Self {
        Self {
            shared,
            placed,
            relay,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.placed.element.name
    }

    fn backend(&self) -> Client {
        Client::new(&self.placed.host.backend)
    }

    /// Refuses every name but the element's own, as if there were no others.
    fn own(&self, name: &str) -> Result<(), ApiError> {
        if name == self.name() {
            Ok(())
        } else {
            Err(ApiError::unknown_element(name))
        }
    }

    async fn do_offload(&self, input: OffloadInput) -> Result<OffloadOutput, ApiError> {
        if let Some(name) = &input.element {
            self.own(name)?;
        }
        let policy = &self.placed.element.policy;
        let mut batch = Batch::default();
        let bounds = self.placed.element.bounds();
        for session in input.session {
            let denied = self.judge(&bounds, &session).err();
            batch.add(session, denied);
        }
        let rate = policy.requests_per_second;
        let wanted = batch.allowed.len();
        let in_time = self
            .shared
            .meters
            .pass(self.name(), rate, wanted, Instant::now());
        batch.refuse_after(in_time);
        if !batch.allowed.is_empty() {
            let room = u64::from(policy.sessions).saturating_sub(self.count().await?);
            if batch.allowed.len() as u64 > room {
                self.refuse_beyond(&mut batch, room).await?;
            }
        }
        let output = self.forward(batch).await?;
        self.undo_if_late().await;
        self.shared.audit.log(self.record(&output)).await;
        Ok(output)
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
        for (place, session) in std::mem::take(&mut batch.allowed) {
            let found = self.backend().session(self.name(), &session.key).await;
            let is_there = found.map_err(of_backend)?.is_some();
            if is_there || room > 0 {
                room -= u64::from(!is_there);
                batch.allowed.push((place, session));
            } else {
                batch.results[place] = Some(quota(session, "sessions", NUMBER));
            }
        }
        Ok(())
    }

    /// Sends on what is left of a batch.
    async fn forward(&self, batch: Batch) -> Result<OffloadOutput, ApiError> {
        let Batch {
            allowed,
            mut results,
        } = batch;
        let (places, sessions): (Vec<usize>, Vec<Session>) = allowed.into_iter().unzip();
        if !sessions.is_empty() {
            let input = OffloadInput {
                element: Some(self.name().to_owned()),
                session: sessions,
                ..OffloadInput::default()
            };
            let output = self.backend().offload(input).await.map_err(of_backend)?;
            let new = output.result.iter();
            let new = new
                .filter(|one| one.result == OffloadStatus::Offloaded)
                .count();
            let meters = &self.shared.meters;
            meters.added(self.name(), new as u64, Instant::now());
            for (place, one) in places.into_iter().zip(output.result) {
                results[place] = Some(one);
            }
        }
        // The backend promises a result for each session.
        let result: Option<Vec<OffloadResult>> = results.into_iter().collect();
        let result = result.ok_or_else(|| ApiError::failed("the backend left out results"))?;
        Ok(OffloadOutput { result })
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
        if let Some(name) = &input.element {
            self.own(name)?;
        }
        let input = WithdrawInput {
            element: Some(self.name().to_owned()),
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

    pub(super) fn line(&self, action: &str) -> Record {
        Record {
            by: "relay",
            peer: self.relay.clone(),
            element: Some(self.name().to_owned()),
            action: action.to_owned(),
            status: 200,
            ..Record::default()
        }
    }

    fn record(&self, output: &OffloadOutput) -> Record {
        let mut results = BTreeMap::new();
        for one in &output.result {
            *results.entry(one.result.name()).or_insert(0) += 1;
        }
        let refused = output.result.iter().filter_map(|one| {
            let error = one.error.as_ref()?;
            Some(Refused {
                key: one.key.to_string(),
                leaf: error.error_path.clone().unwrap_or_default(),
                reason: error.error_app_tag.clone().unwrap_or_default(),
            })
        });
        Record {
            results,
            refused: refused.collect(),
            ..self.line("offload")
        }
    }
}

impl Control for View {
    fn summary(&self) -> Answer<'_, Summary> {
        Box::pin(self.do_summary())
    }

    fn offload(&self, input: OffloadInput) -> Answer<'_, OffloadOutput> {
        Box::pin(self.do_offload(input))
    }

    fn withdraw(&self, input: WithdrawInput) -> Answer<'_, WithdrawOutput> {
        Box::pin(self.do_withdraw(input))
    }

    /// No element's business; there is no route to it.
    fn reload(&self) -> Answer<'_, ReloadOutput> {
        let text = "the host's configuration is read again by who runs it: `shunt reload` there";
        let refused = ApiError::application(StatusCode::FORBIDDEN, ErrorTag::AccessDenied, text);
        Box::pin(async { Err(refused) })
    }

    fn sessions<'a>(
        &'a self,
        element: &'a str,
        _cursor: u64,
        _limit: usize,
    ) -> Answer<'a, SessionPage> {
        Box::pin(self.do_sessions(element))
    }

    fn session<'a>(
        &'a self,
        element: &'a str,
        key: &'a SessionKey,
    ) -> Answer<'a, Option<SessionReport>> {
        Box::pin(async move {
            self.own(element)?;
            self.backend()
                .session(element, key)
                .await
                .map_err(of_backend)
        })
    }

    fn ports<'a>(&'a self, element: &'a str) -> Answer<'a, Ports> {
        Box::pin(async move {
            self.own(element)?;
            self.backend().ports(element).await.map_err(of_backend)
        })
    }

    fn statistics<'a>(&'a self, element: &'a str) -> Answer<'a, Statistics> {
        Box::pin(async move {
            self.own(element)?;
            self.backend().statistics(element).await.map_err(of_backend)
        })
    }
}

fn quota(session: Session, app_tag: &'static str, message: &str) -> OffloadResult {
    let fault = Fault {
        leaf: String::new(),
        tag: ErrorTag::ResourceDenied,
        app_tag,
        message: message.to_owned(),
    };
    OffloadResult::fault(session.key, OffloadStatus::Quota, fault)
}

/// What a backend's refusal, or its silence, is to an element.
fn of_backend(error: ClientError) -> ApiError {
    match error {
        ClientError::Refused { status, mut errors } if !errors.is_empty() => ApiError {
            status,
            entry: Box::new(errors.swap_remove(0)),
        },
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
