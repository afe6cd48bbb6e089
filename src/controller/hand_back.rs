//! Handing sessions back where an operator, or a move, says so.
//!
//! *Promises*: tried until the backend has done it, or it is not due any more; one backend
//! that does not answer keeps no other waiting.
//! *Refuses*: nothing.
//! *Caller's duty*: what happens while no controller runs is found at the next start for
//! switches; for elements that moved or went, the backend's own file is the guard.
//! *Standard*: rpc `withdraw`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::audit::{Audit, Record};
use super::registry::{HandBack, Registry};
use crate::api::withdraw::WithdrawInput;
use crate::api::{Client, ClientError};

/// The pause before it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Backends talked to at a time.
const AT_ONCE: usize = 32;

/// Hands back what it is told, until nobody tells.
pub async fn keep(
    registry: Arc<Registry>,
    audit: Arc<Audit>,
    mut told: mpsc::UnboundedReceiver<BTreeSet<HandBack>>,
) {
    let mut waiting: BTreeSet<HandBack> = BTreeSet::new();
    loop {
        let new = if waiting.is_empty() {
            told.recv().await
        } else {
            match tokio::time::timeout(AGAIN, told.recv()).await {
                Ok(new) => new,
                Err(_) => Some(BTreeSet::new()),
            }
        };
        let Some(new) = new else { return };
        waiting.extend(new);
        waiting.retain(|one| registry.is_due(one));
        let mut rest: Vec<HandBack> = std::mem::take(&mut waiting).into_iter().collect();
        let mut tries = JoinSet::new();
        while !rest.is_empty() || !tries.is_empty() {
            while tries.len() < AT_ONCE
                && let Some(one) = rest.pop()
            {
                tries.spawn(try_once(audit.clone(), one));
            }
            // A panic there is a bug that was reported; the rest goes on.
            if let Some(Ok(Some(again))) = tries.join_next().await {
                waiting.insert(again);
            }
        }
    }
}

/// Gives back what must be tried again.
async fn try_once(audit: Arc<Audit>, one: HandBack) -> Option<HandBack> {
    let input = WithdrawInput {
        element: Some(one.element.clone()),
        key: Vec::new(),
        all: true,
    };
    let withdrawn = match Client::new(&one.backend).withdraw(input).await {
        Ok(output) => output.withdrawn,
        Err(ClientError::Refused { status, .. }) if status.as_u16() == 404 => 0,
        Err(error) => {
            log::warn!(
                "the sessions of {} cannot be handed back yet: {error}",
                one.element
            );
            return Some(one);
        }
    };
    let record = Record {
        by: "controller",
        peer: one.backend.display().to_string(),
        element: Some(one.element),
        action: "hand-back".to_owned(),
        status: 200,
        results: [("withdrawn", withdrawn)].into(),
        ..Record::default()
    };
    audit.log(record).await;
    None
}
