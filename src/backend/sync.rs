//! Epochs and syncs of an element, as the control socket asks for them.
//!
//! *Promises*: a call is judged and carried out in one piece on the keeper's thread, so that no
//! other comes between.
//! *Refuses*: what comes too late, whole (409).
//! *Caller's duty*: none. *Standard*: see [`crate::api::epoch`] and [`crate::api::sync`].

use super::running::Backend;
use super::wall_milliseconds;
use crate::api::epoch::{OpenEpochInput, OpenEpochOutput};
use crate::api::error::ApiError;
use crate::api::offload::OffloadResult;
use crate::api::sync::{SyncInput, SyncOutput, SyncPage, SyncResult, SyncStep};
use crate::flow::{Claim, CloseCode, Late, Moment, Sessions};

/// What refuses a call that comes too late.
pub(super) fn late(late: Late) -> ApiError {
    match late {
        Late::Epoch => ApiError::stale_epoch(),
        Late::Fence => ApiError::fenced(),
    }
}

impl Backend {
    pub(super) async fn do_open_epoch(
        &self,
        input: OpenEpochInput,
    ) -> Result<OpenEpochOutput, ApiError> {
        let element = self.meant(input.element.as_deref())?;
        let clock = wall_milliseconds();
        let claim = Claim {
            epoch: None,
            fence: input.fence,
        };
        let epoch = self
            .ask_book(element.id, move |book, now| {
                book.judge(claim).map_err(late)?;
                Ok::<_, ApiError>(book.open_epoch(CloseCode::Withdrawn, clock, now))
            })
            .await??;
        log::info!("element {}: epoch {epoch} begins", element.name);
        let lease = self.leases.as_ref().map(|leases| {
            leases.begin(&element.name);
            leases.seconds()
        });
        Ok(OpenEpochOutput { epoch, lease })
    }

    pub(super) async fn do_sync(&self, input: SyncInput) -> Result<SyncOutput, ApiError> {
        let element = self.meant(input.element.as_deref())?;
        let claim = Claim {
            epoch: input.epoch,
            fence: input.fence,
        };
        let clock = wall_milliseconds();
        let step = Step::new(input.step()?, |session| element.request_of(session));
        self.ask_book(element.id, move |book, now| {
            book.judge(claim).map_err(late)?;
            step.take(book, clock, now)
        })
        .await?
    }
}

type Request = Result<crate::flow::SessionRequest, OffloadResult>;

/// A step whose sessions are requests to the flow table.
enum Step {
    Begin,
    Page {
        sync: u64,
        keys: Vec<crate::api::SessionKey>,
        sessions: Vec<(crate::api::SessionKey, Request)>,
    },
    End(u64),
}

impl Step {
    fn new(step: SyncStep, request: impl Fn(&crate::api::Session) -> Request) -> Self {
        match step {
            SyncStep::Begin => Self::Begin,
            SyncStep::Page(SyncPage { sync, key, session }) => Self::Page {
                sync,
                keys: key,
                sessions: session
                    .into_iter()
                    .map(|session| (session.key.clone(), request(&session)))
                    .collect(),
            },
            SyncStep::End(sync) => Self::End(sync),
        }
    }

    fn take(self, book: &mut Sessions, clock: u64, now: Moment) -> Result<SyncOutput, ApiError> {
        match self {
            Self::Begin => Ok(SyncOutput {
                sync: Some(book.begin_sync(clock)),
                ..SyncOutput::default()
            }),
            Self::Page {
                sync,
                keys,
                sessions,
            } => {
                if !book.is_syncing(sync) {
                    return Err(ApiError::stale_sync());
                }
                let mut result = Vec::with_capacity(keys.len() + sessions.len());
                for key in keys {
                    let is_there = book.keep(key.as_str());
                    result.push(SyncResult::of_key(key, is_there));
                }
                for (key, request) in sessions {
                    let of_session = match request {
                        Ok(request) => OffloadResult::new(key, book.offload(request, now)),
                        Err(refused) => refused,
                    };
                    result.push(of_session.into());
                }
                Ok(SyncOutput {
                    result,
                    ..SyncOutput::default()
                })
            }
            Self::End(sync) => {
                let swept = book.end_sync(sync, now).ok_or_else(ApiError::stale_sync)?;
                Ok(SyncOutput {
                    swept: Some(swept.withdrawn),
                    sessions: Some(swept.left),
                    ..SyncOutput::default()
                })
            }
        }
    }
}
