//! An element's own part of what there is: what it may ask for, and see.
//!
//! *Promises*: nothing here reaches another element; results come in the order of entries,
//! those judged here among those of the backend.
//! *Refuses*: other elements' names (404), entries that [`judge`] denies, and what is beyond
//! the element's rate and number.
//! *Caller's duty*: the element's identity was verified.
//! *Standard*: RFC 8040; `shunt-offload`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use tokio::time::Instant;

use super::audit::{Audit, Record, Refused};
use super::judge::judge;
use super::meter::Meters;
use super::registry::{Bar, Placed, Registry};
use crate::api::control::{Answer, Control, SessionPage};
use crate::api::error::{ApiError, ErrorTag};
use crate::api::offload::{Fault, OffloadInput, OffloadOutput, OffloadResult, OffloadStatus};
use crate::api::session::{Session, SessionKey};
use crate::api::state::{Ports, SessionReport, Statistics, Summary};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput, WithdrawStatus};
use crate::api::{Client, ClientError};

/// Most sessions that are listed at once: a list is held in memory here.
const LISTED_MAX: u32 = 65_536;

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
        let mut judged: Vec<Option<OffloadResult>> = Vec::with_capacity(input.session.len());
        let mut allowed = Vec::new();
        for session in input.session {
            match self.judge(&session) {
                Ok(()) => {
                    judged.push(None);
                    allowed.push(session);
                }
                Err(fault) => judged.push(Some(OffloadResult::fault(
                    session.key,
                    OffloadStatus::AccessDenied,
                    fault,
                ))),
            }
        }
        let mut forwarded = self.forward(allowed).await?.into_iter();
        let result: Option<Vec<OffloadResult>> = judged
            .into_iter()
            .map(|here| here.or_else(|| forwarded.next()))
            .collect();
        // The backend promises a result for each session.
        let result = result.ok_or_else(|| ApiError::failed("the backend left out results"))?;
        let output = OffloadOutput { result };
        self.shared.audit.log(self.record(&output)).await;
        Ok(output)
    }

    /// Judges one session by switches and policy.
    fn judge(&self, session: &Session) -> Result<(), Fault> {
        judge(&self.placed.element, session)?;
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

    /// Results of sessions that are allowed, as far as rate and number allow.
    async fn forward(&self, mut sessions: Vec<Session>) -> Result<Vec<OffloadResult>, ApiError> {
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        let policy = &self.placed.element.policy;
        let meters = &self.shared.meters;
        let room = u64::from(policy.sessions).saturating_sub(self.count().await?);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let beyond = sessions.split_off(room.min(sessions.len()));
        let in_time = meters.pass(
            self.name(),
            policy.requests_per_second,
            sessions.len(),
            Instant::now(),
        );
        let late = sessions.split_off(in_time);
        let mut results = Vec::new();
        if !sessions.is_empty() {
            let input = OffloadInput {
                element: Some(self.name().to_owned()),
                session: sessions,
            };
            results = self
                .backend()
                .offload(input)
                .await
                .map_err(of_backend)?
                .result;
        }
        let new = results
            .iter()
            .filter(|one| one.result == OffloadStatus::Offloaded);
        meters.added(self.name(), new.count() as u64, Instant::now());
        let rate = "more sessions a second than the element's quota: ask later, in larger steps";
        let number = "the element has as many sessions as its quota: withdraw some, or ask later";
        results.extend(late.into_iter().map(|session| quota(session, "rate", rate)));
        results.extend(
            beyond
                .into_iter()
                .map(|session| quota(session, "sessions", number)),
        );
        Ok(results)
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
