//! An element's sessions that are to be proved again; and how old a call may be.
//!
//! *Promises*: results come in the order of keys.
//! *Refuses*: with 501 what the backend of the element's host is too old for.
//! *Caller's duty*: none. *Standard*: rpc `reprove`.

use super::{View, of_backend};
use crate::api::error::ApiError;
use crate::api::reprove::{ReproveInput, ReproveOutput};

impl View {
    /// The fence that a call tells, beside its epoch: none to a backend that knows of neither, which
    /// never opened an epoch.
    pub(super) async fn fence_beside(&self, epoch: Option<u64>) -> Result<Option<u64>, ApiError> {
        if self.backend().knows_epochs().await.map_err(of_backend)? {
            return Ok(self.fence());
        }
        match epoch {
            None => Ok(None),
            Some(_) => Err(ApiError::stale_epoch()),
        }
    }

    /// The fence, of a call that only backends take which know of it.
    pub(super) async fn told_fence(&self) -> Result<Option<u64>, ApiError> {
        if self.backend().knows_epochs().await.map_err(of_backend)? {
            return Ok(self.fence());
        }
        Err(ApiError::of_older_backend())
    }

    pub(super) async fn do_reprove(&self, input: ReproveInput) -> Result<ReproveOutput, ApiError> {
        let input = ReproveInput {
            element: self.meant(input.element.as_deref())?,
            fence: self.told_fence().await?,
            ..input
        };
        let all = input.all;
        let output = self.backend().reprove(input).await.map_err(of_backend)?;
        let entries = output.result.iter();
        let entries = entries.map(|one| (&one.key, one.result.name(), None));
        let mut record = self.record("reprove", entries);
        if all {
            record.results.insert("pending", output.reproved);
        }
        self.shared.audit.log(record).await;
        Ok(output)
    }
}
