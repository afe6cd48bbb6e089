//! What the control socket asks of a running backend.
//!
//! *Promises*: nothing here waits for a worker; sessions are read and written on the keeper's
//! thread, statistics straight from counters.
//! *Refuses*: elements and vNICs that are not in the configuration.
//! *Caller's duty*: none. *Standard*: RFC 8040 shapes, see [`crate::api`].

#![expect(
    clippy::disallowed_types,
    reason = "guards the command queue's sending end among control tasks; no worker takes it"
)]

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use super::open::{ElementInfo, Running, VnicInfo};
use crate::api::control::{Answer, Control, SessionPage};
use crate::api::convert::{VnicNames, from_request, to_request};
use crate::api::error::ApiError;
use crate::api::offload::{OffloadInput, OffloadOutput, OffloadResult};
use crate::api::session::SessionKey;
use crate::api::state::{
    DeviceReport, ElementSummary, FlowReport, Ports, SessionReport, SessionStatus, Statistics,
    Summary, VnicReport, statistics,
};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput, WithdrawResult, WithdrawStatus};
use crate::datapath::clock::Clock;
use crate::datapath::keeper::{Books, Keeper};
use crate::datapath::worker::Worker;
use crate::flow::{CloseCode, DirectionView, FlowState, Moment, SessionView, Sessions};
use crate::packet::{MacAddr, VnicId};

/// A running backend behind the control socket.
pub(super) struct Backend {
    // Fields drop in this order: workers end before the keeper and the devices they use.
    workers: Vec<Worker>,
    keeper: Mutex<Keeper>,
    elements: Vec<ElementInfo>,
    clock: Clock,
}

impl Backend {
    pub(super) fn new(running: Running) -> Self {
        let Running { workers, keeper, elements, clock } = running;
        Self { workers, keeper: Mutex::new(keeper), elements, clock }
    }

    /// Whether all workers run.
    pub(super) fn is_sound(&self) -> bool {
        self.workers.iter().all(Worker::is_alive)
    }

    /// Runs `question` on the keeper's thread.
    async fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Books, Moment) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        let (answer, answered) = oneshot::channel();
        self.keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .submit(move |books, now| {
                // Whoever asked may have gone away meanwhile.
                let _gone = answer.send(question(books, now));
            })
            .map_err(|_busy| ApiError::busy())?;
        answered.await.map_err(|_| ApiError::failed("the backend is ending"))
    }

    /// The same for one element's book.
    async fn ask_book<R: Send + 'static>(
        &self,
        element: usize,
        question: impl FnOnce(&mut Sessions, Moment) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        let asked = move |books: &mut Books, now| {
            books.get_mut(element).map(|book| question(book, now))
        };
        self.ask(asked).await?.ok_or_else(|| ApiError::failed("the element is gone"))
    }

    fn element(&self, name: &str) -> Result<(usize, &ElementInfo), ApiError> {
        let found = self.elements.iter().enumerate().find(|(_, element)| element.name == name);
        found.ok_or_else(|| ApiError::unknown_element(name))
    }

    /// The element that a request means: the one it names, or the only one.
    fn meant(&self, name: Option<&str>) -> Result<(usize, &ElementInfo), ApiError> {
        match (name, self.elements.as_slice()) {
            (Some(name), _) => self.element(name),
            (None, [only]) => Ok((0, only)),
            (None, _) => Err(ApiError::element_needed()),
        }
    }

    async fn do_offload(&self, input: OffloadInput) -> Result<OffloadOutput, ApiError> {
        let (index, element) = self.meant(input.element.as_deref())?;
        let requests: Vec<_> = input
            .session
            .into_iter()
            .map(|session| to_request(&session, element).map_err(|fault| (session.key.clone(), fault)).map(|request| (session.key, request)))
            .collect();
        let result = self
            .ask_book(index, move |book, now| {
                requests
                    .into_iter()
                    .map(|request| match request {
                        Ok((key, request)) => OffloadResult::new(key, book.offload(request, now)),
                        Err((key, fault)) => OffloadResult::invalid(key, fault),
                    })
                    .collect()
            })
            .await?;
        Ok(OffloadOutput { result })
    }

    async fn do_withdraw(&self, input: WithdrawInput) -> Result<WithdrawOutput, ApiError> {
        let (index, _) = self.meant(input.element.as_deref())?;
        self.ask_book(index, move |book, now| {
            if input.all {
                let withdrawn = book.len() as u64;
                book.close_all(CloseCode::Withdrawn, now);
                return WithdrawOutput { withdrawn, result: Vec::new() };
            }
            let result: Vec<_> = input
                .key
                .into_iter()
                .map(|key| match book.withdraw(key.as_str(), now) {
                    true => WithdrawResult { key, result: WithdrawStatus::Withdrawn },
                    false => WithdrawResult { key, result: WithdrawStatus::Absent },
                })
                .collect();
            let gone = result.iter().filter(|one| one.result == WithdrawStatus::Withdrawn);
            WithdrawOutput { withdrawn: gone.count() as u64, result }
        })
        .await
    }
}

impl VnicNames for ElementInfo {
    fn id(&self, name: &str) -> Option<VnicId> {
        self.vnics.iter().position(|vnic| vnic.name == name).map(|place| VnicId(place as u16))
    }

    fn name(&self, id: VnicId) -> Option<&str> {
        self.vnics.get(usize::from(id.0)).map(|vnic| vnic.name.as_str())
    }
}

fn vnic_report(vnic: &VnicInfo) -> VnicReport {
    VnicReport {
        name: vnic.name.clone(),
        mac: vnic.mac,
        guest: DeviceReport::from(&vnic.guest.status()),
        uplink: DeviceReport::from(&vnic.uplink.status()),
    }
}

fn flow_report(view: &DirectionView) -> FlowReport {
    let known = |mac: MacAddr| (mac != MacAddr::default()).then_some(mac);
    FlowReport {
        state: view.state.into(),
        packets: view.totals.packets,
        octets: view.totals.bytes,
        destination_mac: known(view.macs.0),
        source_mac: known(view.macs.1),
    }
}
