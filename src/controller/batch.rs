//! The sessions of one call, as far as they are judged.
//!
//! *Promises*: results come in the order of sessions, those judged here among those of the
//! backend.
//! *Refuses*: a backend's answer that has more or fewer results than it was asked for.
//! *Caller's duty*: [`Batch::take_allowed`] before [`Batch::fill`]. *Standard*: none.

use super::audit::Refused;
use crate::api::error::{ApiError, ErrorTag};
use crate::api::offload::{Fault, OffloadResult, OffloadStatus};
use crate::api::session::Session;

/// See the module.
#[derive(Default)]
pub(super) struct Batch {
    /// What may go on, and where its result stands.
    allowed: Vec<(usize, Session)>,
    results: Vec<Option<OffloadResult>>,
}

impl Batch {
    pub(super) fn add(&mut self, session: Session, denied: Option<Fault>) {
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

    /// How many may go on.
    pub(super) fn len(&self) -> usize {
        self.allowed.len()
    }

    /// Refuses what comes after the first `in_time` entries that are allowed.
    pub(super) fn refuse_after(
        &mut self,
        in_time: usize,
        (app_tag, message): (&'static str, &str),
    ) {
        for (place, session) in self.allowed.split_off(in_time) {
            self.refuse(place, session, (app_tag, message));
        }
    }

    /// Takes what may go on, to judge it further.
    pub(super) fn drain(&mut self) -> Vec<(usize, Session)> {
        std::mem::take(&mut self.allowed)
    }

    /// It may go on.
    pub(super) fn allow(&mut self, place: usize, session: Session) {
        self.allowed.push((place, session));
    }

    /// It may not, for want of quota.
    pub(super) fn refuse(
        &mut self,
        place: usize,
        session: Session,
        (app_tag, message): (&'static str, &str),
    ) {
        let fault = Fault {
            leaf: String::new(),
            tag: ErrorTag::ResourceDenied,
            app_tag,
            message: message.to_owned(),
        };
        self.results[place] = Some(OffloadResult::fault(
            session.key,
            OffloadStatus::Quota,
            fault,
        ));
    }

    /// What the backend is asked; the batch then waits for its results.
    pub(super) fn take_allowed(&mut self) -> Vec<Session> {
        self.drain()
            .into_iter()
            .map(|(_, session)| session)
            .collect()
    }

    /// All results, with those of the backend for what it was asked.
    ///
    /// # Errors
    /// These are not as many.
    pub(super) fn fill<R: From<OffloadResult>>(
        self,
        of_backend: impl IntoIterator<Item = R>,
    ) -> Result<Vec<R>, ApiError> {
        let own = self.results.into_iter().map(|own| own.map(R::from));
        filled(own, of_backend)
    }
}

/// Own results, and between them those of the backend.
///
/// # Errors
/// The backend's are not as many as places for them.
pub(super) fn filled<R>(
    own: impl IntoIterator<Item = Option<R>>,
    of_backend: impl IntoIterator<Item = R>,
) -> Result<Vec<R>, ApiError> {
    let mut of_backend = of_backend.into_iter();
    let own = own.into_iter();
    let all: Option<Vec<R>> = own.map(|own| own.or_else(|| of_backend.next())).collect();
    all.filter(|_| of_backend.next().is_none())
        .ok_or_else(|| ApiError::failed("the backend's results are not those of its entries"))
}

/// What the log says of a refused entry.
pub(super) fn refused(key: String, error: &crate::api::ErrorEntry) -> Refused {
    Refused {
        key,
        leaf: error.error_path.clone().unwrap_or_default(),
        reason: error.error_app_tag.clone().unwrap_or_default(),
    }
}
