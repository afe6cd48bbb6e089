//! Handing sessions back where an operator, or a move, says so.
//!
//! *Promises*: tried until the backend has done it, or it is not due any more; a backend that
//! does not answer costs the others one of [`AT_ONCE`] places for a while.
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
    let mut failed: BTreeSet<HandBack> = BTreeSet::new();
    let mut tries = JoinSet::new();
    let mut again = tokio::time::interval(AGAIN);
    loop {
        tokio::select! {
            new = told.recv() => match new {
                Some(new) => waiting.extend(new),
                None => return,
            },
            // A panic there is a bug that was reported; the rest goes on.
            Some(tried) = tries.join_next() => failed.extend(tried.ok().flatten()),
            _ = again.tick(), if !failed.is_empty() => waiting.append(&mut failed),
        }
        while tries.len() < AT_ONCE
            && let Some(one) = waiting.pop_first()
        {
            if registry.is_due(&one) {
                tries.spawn(try_once(audit.clone(), one));
            }
        }
    }
}

/// Gives back what must be tried again.
async fn try_once(audit: Arc<Audit>, one: HandBack) -> Option<HandBack> {
    let input = WithdrawInput::all_of(&one.element);
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
