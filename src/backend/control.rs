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

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::open::{ElementInfo, Running, VnicInfo};
use crate::api::control::{Answer, Control, SessionPage};
use crate::api::convert::{VnicNames, to_request};
use crate::api::error::ApiError;
use crate::api::offload::{OffloadInput, OffloadOutput, OffloadResult};
use crate::api::session::SessionKey;
use crate::api::state::{
    DeviceReport, ElementSummary, HandOverStatistics, Ports, SessionReport, Statistics, Summary,
    TableStatistics, Traffic, VnicReport, counts,
};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput, WithdrawResult, WithdrawStatus};
use crate::datapath::clock::Clock;
use crate::datapath::counters::TrafficSnapshot;
use crate::datapath::keeper::{Books, Keeper};
use crate::datapath::worker::Worker;
use crate::flow::{CloseCode, Moment, SessionView, Sessions};
use crate::packet::VnicId;

/// A running backend behind the control socket.
pub(super) struct Backend {
    // Fields drop in this order: workers end before the keeper and the devices they use.
    workers: Vec<Worker>,
    keeper: Mutex<Keeper>,
    elements: Vec<Arc<ElementInfo>>,
    clock: Clock,
}

impl Backend {
    pub(super) fn new(running: Running) -> Self {
        let Running {
            workers,
            keeper,
            elements,
            clock,
        } = running;
        Self {
            workers,
            keeper: Mutex::new(keeper),
            elements,
            clock,
        }
    }

    /// Whether the keeper and all workers run.
    pub(super) fn is_sound(&self) -> bool {
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.is_alive() && self.workers.iter().all(Worker::is_alive)
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
        answered
            .await
            .map_err(|_| ApiError::failed("the backend is ending"))
    }

    /// The same for one element's book.
    async fn ask_book<R: Send + 'static>(
        &self,
        element: usize,
        question: impl FnOnce(&mut Sessions, Moment) -> R + Send + 'static,
    ) -> Result<R, ApiError> {
        let asked =
            move |books: &mut Books, now| books.get_mut(element).map(|book| question(book, now));
        self.ask(asked)
            .await?
            .ok_or_else(|| ApiError::failed("the element is gone"))
    }

    fn element(&self, name: &str) -> Result<(usize, &Arc<ElementInfo>), ApiError> {
        let found = self
            .elements
            .iter()
            .enumerate()
            .find(|(_, element)| element.name == name);
        found.ok_or_else(|| ApiError::unknown_element(name))
    }

    /// The element that a request means: the one it names, or the only one.
    fn meant(&self, name: Option<&str>) -> Result<(usize, &Arc<ElementInfo>), ApiError> {
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
            .map(|session| (to_request(&session, &**element), session.key))
            .collect();
        let result = self
            .ask_book(index, move |book, now| {
                requests
                    .into_iter()
                    .map(|(request, key)| match request {
                        Ok(request) => OffloadResult::new(key, book.offload(request, now)),
                        Err(fault) => OffloadResult::invalid(key, fault),
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
                return WithdrawOutput {
                    withdrawn,
                    result: Vec::new(),
                };
            }
            let result: Vec<_> = input
                .key
                .into_iter()
                .map(|key| match book.withdraw(key.as_str(), now) {
                    true => WithdrawResult {
                        key,
                        result: WithdrawStatus::Withdrawn,
                    },
                    false => WithdrawResult {
                        key,
                        result: WithdrawStatus::Absent,
                    },
                })
                .collect();
            let gone = result
                .iter()
                .filter(|one| one.result == WithdrawStatus::Withdrawn);
            WithdrawOutput {
                withdrawn: gone.count() as u64,
                result,
            }
        })
        .await
    }

    async fn do_sessions(
        &self,
        element: &str,
        cursor: u64,
        limit: usize,
    ) -> Result<SessionPage, ApiError> {
        let (index, element) = self.element(element)?;
        let element = element.clone();
        self.ask_book(index, move |book, _| {
            let mut page = SessionPage::default();
            for (place, view) in book.iter_from(cursor) {
                if page.sessions.len() == limit {
                    page.next = Some(place);
                    break;
                }
                page.sessions.push(report(&view, &element)?);
            }
            Ok(page)
        })
        .await?
    }

    async fn do_session(
        &self,
        element: &str,
        key: &SessionKey,
    ) -> Result<Option<SessionReport>, ApiError> {
        let (index, element) = self.element(element)?;
        let (element, key) = (element.clone(), key.clone());
        self.ask_book(index, move |book, _| {
            book.get(key.as_str())
                .map(|view| report(&view, &element))
                .transpose()
        })
        .await?
    }

    async fn do_summary(&self) -> Result<Summary, ApiError> {
        let counts = self
            .ask(|books, _| books.iter().map(Sessions::len).collect::<Vec<_>>())
            .await?;
        let element = self
            .elements
            .iter()
            .zip(counts)
            .map(|(element, sessions)| ElementSummary {
                name: element.name.clone(),
                sessions: sessions as u32,
                sessions_max: element.sessions_max,
                vnic: element.vnics.iter().map(|vnic| vnic.name.clone()).collect(),
            })
            .collect();
        let uptime = (self.clock.now().millis() / 1000) as u32;
        Ok(Summary {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime,
            element,
        })
    }

    async fn do_statistics(&self, element: &str) -> Result<Statistics, ApiError> {
        let (index, element) = self.element(element)?;
        let (stats, sessions) = self
            .ask_book(index, |book, _| (*book.stats(), book.len() as u32))
            .await?;
        let counters = element.counters.snapshot();
        let closed = CloseCode::ALL
            .iter()
            .map(|code| (code.name(), stats.closed[code.index()]));
        Ok(Statistics {
            from_uplink: traffic(counters.from_uplink),
            from_guest: traffic(counters.from_guest),
            forwarded: traffic(counters.forwarded),
            passed: traffic(counters.passed),
            parked: counters.parked,
            busy_time: counters.busy_ns,
            cpu_time: counters.cpu_ns,
            punted: counts(
                counters
                    .punts
                    .iter()
                    .map(|(reason, count)| (reason.name(), *count)),
            ),
            dropped: counts(
                counters
                    .drops
                    .iter()
                    .map(|(reason, count)| (reason.name(), *count)),
            ),
            closed: counts(closed),
            table: TableStatistics {
                sessions,
                sessions_max: element.sessions_max,
                refused_full: stats.table_full,
            },
            hand_over: HandOverStatistics::from(&counters.hand_over),
        })
    }
}

impl Control for Backend {
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
        cursor: u64,
        limit: usize,
    ) -> Answer<'a, SessionPage> {
        Box::pin(self.do_sessions(element, cursor, limit))
    }

    fn session<'a>(
        &'a self,
        element: &'a str,
        key: &'a SessionKey,
    ) -> Answer<'a, Option<SessionReport>> {
        Box::pin(self.do_session(element, key))
    }

    fn ports<'a>(&'a self, element: &'a str) -> Answer<'a, Ports> {
        Box::pin(async move {
            let (_, element) = self.element(element)?;
            Ok(Ports {
                vnic: element.vnics.iter().map(vnic_report).collect(),
            })
        })
    }

    fn statistics<'a>(&'a self, element: &'a str) -> Answer<'a, Statistics> {
        Box::pin(self.do_statistics(element))
    }
}

fn report(view: &SessionView, element: &ElementInfo) -> Result<SessionReport, ApiError> {
    SessionReport::new(view, element).map_err(|error| ApiError::failed(error.to_string()))
}

fn traffic(counted: TrafficSnapshot) -> Traffic {
    Traffic {
        packets: counted.packets,
        octets: counted.bytes,
    }
}

impl VnicNames for ElementInfo {
    fn id(&self, name: &str) -> Option<VnicId> {
        self.vnics
            .iter()
            .position(|vnic| vnic.name == name)
            .map(|place| VnicId(place as u16))
    }

    fn name(&self, id: VnicId) -> Option<&str> {
        self.vnics
            .get(usize::from(id.0))
            .map(|vnic| vnic.name.as_str())
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
