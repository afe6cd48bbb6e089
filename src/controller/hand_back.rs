//! Handing sessions back where an operator, or a move, says so.
//!
//! *Promises*: tried until the backend has done it, or it is not due any more; a backend that
//! does not answer costs the others one of [`AT_ONCE`] places for a while. What happened while
//! no controller ran is found by looking at each backend when the controller starts, or a host
//! is new: elements that have sessions there, and should not, are handed back.
//! *Refuses*: nothing.
//! *Caller's duty*: a backend in the inventory is the controllers' alone.
//! *Standard*: rpc `withdraw`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::audit::{Audit, Record};
use super::backends::Backends;
use super::registry::{Due, HandBack, Registry};
use crate::api::ClientError;
use crate::api::link::Address;
use crate::api::withdraw::WithdrawInput;

/// The pause before it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Backends talked to at a time.
const AT_ONCE: usize = 32;

/// What it works with.
#[derive(Clone)]
pub struct Means {
    /// What is due.
    pub registry: Arc<Registry>,
    /// The log.
    pub audit: Arc<Audit>,
    /// The ways to backends.
    pub backends: Arc<Backends>,
}

/// Does what it is told is due, until nobody tells.
pub async fn keep(means: Means, mut told: mpsc::UnboundedReceiver<BTreeSet<Due>>) {
    let mut waiting: BTreeSet<Due> = BTreeSet::new();
    let mut failed: BTreeSet<Due> = BTreeSet::new();
    let mut tries = JoinSet::new();
    let mut again = tokio::time::interval(AGAIN);
    loop {
        tokio::select! {
            new = told.recv() => match new {
                Some(new) => waiting.extend(new),
                None => return,
            },
            // A panic there is a bug that was reported; the rest goes on.
            Some(Ok(tried)) = tries.join_next() => match tried {
                Ok(found) => waiting.extend(found),
                Err(again) => drop(failed.insert(again)),
            },
            _ = again.tick(), if !failed.is_empty() => waiting.append(&mut failed),
        }
        while tries.len() < AT_ONCE
            && let Some(one) = waiting.pop_first()
        {
            tries.spawn(means.clone().try_once(one));
        }
    }
}

impl Means {
    /// Gives what was found to be due, or back what must be tried again.
    async fn try_once(self, due: Due) -> Result<BTreeSet<Due>, Due> {
        let outcome = match &due {
            Due::HandBack(one) if self.registry.is_due(one) => self.hand_back(one).await,
            Due::Compare(address) if self.registry.has_backend(address) => {
                self.compare(address).await
            }
            Due::HandBack(_) | Due::Compare(_) => return Ok(BTreeSet::new()),
        };
        outcome.map_err(|error| {
            log::warn!("{due:?} is not done yet: {error}");
            due
        })
    }

    /// Hands an element's sessions back.
    async fn hand_back(&self, one: &HandBack) -> Result<BTreeSet<Due>, ClientError> {
        let input = WithdrawInput::all_of(&one.element);
        let withdrawn = match self.backends.client(&one.backend).withdraw(input).await {
            Ok(output) => output.withdrawn,
            Err(ClientError::Refused { status, .. }) if status.as_u16() == 404 => 0,
            Err(error) => return Err(error),
        };
        let record = Record {
            by: "controller",
            peer: one.backend.to_string(),
            element: Some(one.element.clone()),
            action: "hand-back".to_owned(),
            status: 200,
            results: [("withdrawn", withdrawn)].into(),
            ..Record::default()
        };
        self.audit.log(record).await;
        Ok(BTreeSet::new())
    }

    /// Finds the elements that have sessions at a backend and should not.
    async fn compare(&self, address: &Address) -> Result<BTreeSet<Due>, ClientError> {
        let summary = self.backends.client(address).summary().await?;
        let with_sessions = summary.element.into_iter().filter(|one| one.sessions > 0);
        let found = with_sessions.map(|one| HandBack {
            backend: address.clone(),
            element: one.name,
        });
        let due = found.filter(|one| self.registry.is_due(one));
        Ok(due.map(Due::HandBack).collect())
    }
}
