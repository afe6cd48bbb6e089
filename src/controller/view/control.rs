//! What is asked of a view, by name.
//!
//! *Promises*: see [`View`].
//! *Refuses*: `reload`, which is the host's own.
//! *Caller's duty*: see [`Control`]. *Standard*: `shunt-offload`.

use axum::http::StatusCode;

use super::{View, of_backend};
use crate::api::control::{Answer, Control, SessionPage};
use crate::api::epoch::{OpenEpochInput, OpenEpochOutput};
use crate::api::error::{ApiError, ErrorTag};
use crate::api::offload::{OffloadInput, OffloadOutput};
use crate::api::reload::ReloadOutput;
use crate::api::reprove::{ReproveInput, ReproveOutput};
use crate::api::session::SessionKey;
use crate::api::shield::{ShieldInput, ShieldOutput, Shields, UnshieldInput, UnshieldOutput};
use crate::api::state::{Ports, SessionReport, Statistics, Summary};
use crate::api::sync::{SyncInput, SyncOutput};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput};

impl Control for View {
    fn open_epoch(&self, input: OpenEpochInput) -> Answer<'_, OpenEpochOutput> {
        Box::pin(self.do_open_epoch(input))
    }

    fn sync(&self, input: SyncInput) -> Answer<'_, SyncOutput> {
        Box::pin(self.do_sync(input))
    }

    fn summary(&self) -> Answer<'_, Summary> {
        Box::pin(self.do_summary())
    }

    fn offload(&self, input: OffloadInput) -> Answer<'_, OffloadOutput> {
        Box::pin(self.do_offload(input))
    }

    fn withdraw(&self, input: WithdrawInput) -> Answer<'_, WithdrawOutput> {
        Box::pin(self.do_withdraw(input))
    }

    fn reprove(&self, input: ReproveInput) -> Answer<'_, ReproveOutput> {
        Box::pin(self.do_reprove(input))
    }

    /// No element's business; there is no route to it.
    fn reload(&self) -> Answer<'_, ReloadOutput> {
        not_served("the host's configuration is read again by who runs it: `shunt reload` there")
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

    fn shield(&self, input: ShieldInput) -> Answer<'_, ShieldOutput> {
        Box::pin(self.do_shield(input))
    }

    fn unshield(&self, input: UnshieldInput) -> Answer<'_, UnshieldOutput> {
        Box::pin(self.do_unshield(input))
    }

    fn shields<'a>(&'a self, element: &'a str) -> Answer<'a, Shields> {
        Box::pin(async move {
            self.own(element)?;
            self.backend().shields(element).await.map_err(of_backend)
        })
    }
}

/// What has no route for elements.
fn not_served<'a, T: 'a>(message: &'static str) -> Answer<'a, T> {
    let refused = ApiError::application(StatusCode::FORBIDDEN, ErrorTag::AccessDenied, message);
    Box::pin(async { Err(refused) })
}
