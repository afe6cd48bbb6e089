//! What the server asks of a backend.
//!
//! *Promises*: the server calls with checked input (at most
//! [`ENTRIES_MAX`](super::offload::ENTRIES_MAX) entries), any number of calls at a time,
//! and drops a call's future when it has waited too long.
//! *Refuses*: to know what stands behind.
//! *Caller's duty* (the implementer's): every future ends soon; a full command queue is
//! [`ApiError::busy`], not a wait; a future that is dropped may still be carried out.
//! *Standard*: none.

use std::future::Future;
use std::pin::Pin;

use super::epoch::{OpenEpochInput, OpenEpochOutput};
use super::error::ApiError;
use super::events::EventFeed;
use super::offload::{OffloadInput, OffloadOutput};
use super::reload::ReloadOutput;
use super::reprove::{ReproveInput, ReproveOutput};
use super::session::SessionKey;
use super::shield::{ShieldInput, ShieldOutput, Shields, UnshieldInput, UnshieldOutput};
use super::state::{Ports, SessionReport, Statistics, Summary};
use super::sync::{SyncInput, SyncOutput};
use super::withdraw::{WithdrawInput, WithdrawOutput};

/// A future answer of a [`Control`].
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// Some sessions of an element, and where to go on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<SessionReport>,
    /// The cursor of the next page; `None` after the last one.
    pub next: Option<u64>,
}

/// A backend, as the server sees it.
pub trait Control: Send + Sync + 'static {
    /// Carries out `open-epoch`.
    fn open_epoch(&self, _input: OpenEpochInput) -> Answer<'_, OpenEpochOutput> {
        Box::pin(async { Err(ApiError::not_offered()) })
    }

    /// Carries out `sync`; to a page one result per key and session, in order.
    fn sync(&self, _input: SyncInput) -> Answer<'_, SyncOutput> {
        Box::pin(async { Err(ApiError::not_offered()) })
    }

    /// The notifications of `element` from now on. A reader that does not take them loses some,
    /// and is told so among them.
    fn events<'a>(&'a self, _element: &'a str) -> Answer<'a, EventFeed> {
        Box::pin(async { Err(ApiError::not_offered()) })
    }

    /// What there is, in short.
    fn summary(&self) -> Answer<'_, Summary>;

    /// Carries out `offload`; one result per session, in order.
    fn offload(&self, input: OffloadInput) -> Answer<'_, OffloadOutput>;

    /// Carries out `withdraw`; one result per key, in order.
    fn withdraw(&self, input: WithdrawInput) -> Answer<'_, WithdrawOutput>;

    /// Carries out `reprove`; one result per key, in order.
    fn reprove(&self, _input: ReproveInput) -> Answer<'_, ReproveOutput> {
        Box::pin(async { Err(ApiError::not_offered()) })
    }

    /// Carries out `reload`.
    fn reload(&self) -> Answer<'_, ReloadOutput>;

    /// At most `limit` sessions of `element`, from `cursor` on: 0 at first, then
    /// [`SessionPage::next`]. A session that stays from the first page to the last is
    /// told once; others may be missing.
    fn sessions<'a>(
        &'a self,
        element: &'a str,
        cursor: u64,
        limit: usize,
    ) -> Answer<'a, SessionPage>;

    /// One session, if it is there.
    fn session<'a>(
        &'a self,
        element: &'a str,
        key: &'a SessionKey,
    ) -> Answer<'a, Option<SessionReport>>;

    /// The ports of `element`.
    fn ports<'a>(&'a self, element: &'a str) -> Answer<'a, Ports>;

    /// The counters of `element`.
    fn statistics<'a>(&'a self, element: &'a str) -> Answer<'a, Statistics>;

    /// Carries out `shield`; one result per shield, in order.
    fn shield(&self, input: ShieldInput) -> Answer<'_, ShieldOutput>;

    /// Carries out `unshield`; one result per name, in order.
    fn unshield(&self, input: UnshieldInput) -> Answer<'_, UnshieldOutput>;

    /// The shields of `element`.
    fn shields<'a>(&'a self, element: &'a str) -> Answer<'a, Shields>;
}
