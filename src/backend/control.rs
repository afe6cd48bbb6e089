//! What the control socket asks of a running backend.
//!
//! *Promises*: nothing here waits for a worker; sessions are read and written on the keeper's
//! thread, statistics straight from counters.
//! *Refuses*: elements and vNICs that are not in the configuration, and sessions beyond the
//! bounds that it sets, whoever asks.
//! *Caller's duty*: none. *Standard*: RFC 8040 shapes, see [`crate::api`].

use std::collections::HashMap;
use std::sync::Arc;

use super::open::{Names, VnicInfo};
use super::running::Backend;
use super::sync::late;
use crate::api::control::{Answer, Control, SessionPage};
use crate::api::epoch::{OpenEpochInput, OpenEpochOutput};
use crate::api::error::ApiError;
use crate::api::events::EventFeed;
use crate::api::offload::{OffloadInput, OffloadOutput, OffloadResult};
use crate::api::reload::ReloadOutput;
use crate::api::reprove::{ReproveInput, ReproveOutput, ReproveResult, ReproveStatus};
use crate::api::session::SessionKey;
use crate::api::shield::{ShieldInput, ShieldOutput, Shields, UnshieldInput, UnshieldOutput};
use crate::api::state::{
    DeviceReport, ElementSummary, HandOverStatistics, Ports, SessionReport, Statistics, Summary,
    TableStatistics, Traffic, VnicReport, counts,
};
use crate::api::sync::{SyncInput, SyncOutput};
use crate::api::withdraw::{WithdrawInput, WithdrawOutput, WithdrawResult, WithdrawStatus};
use crate::datapath::ElementId;
use crate::datapath::counters::TrafficSnapshot;
use crate::flow::{Claim, CloseCode, Reproof, SessionView};

impl Backend {
    async fn do_offload(&self, input: OffloadInput) -> Result<OffloadOutput, ApiError> {
        let element = self.meant(input.element.as_deref())?;
        let claim = Claim {
            epoch: input.epoch,
            fence: input.fence,
        };
        let requests: Vec<_> = input
            .session
            .into_iter()
            .map(|session| (element.request_of(&session), session.key))
            .collect();
        let result = self
            .ask_book(element.id, move |book, now| {
                book.judge(claim).map_err(late)?;
                let results = requests.into_iter().map(|(request, key)| match request {
                    Ok(request) => OffloadResult::new(key, book.offload(request, now)),
                    Err(refused) => refused,
                });
                Ok::<_, ApiError>(results.collect())
            })
            .await??;
        Ok(OffloadOutput { result })
    }

    async fn do_withdraw(&self, input: WithdrawInput) -> Result<WithdrawOutput, ApiError> {
        let id = self.meant(input.element.as_deref())?.id;
        let claim = Claim {
            epoch: input.epoch,
            fence: input.fence,
        };
        self.ask_book(id, move |book, now| {
            book.judge(claim).map_err(late)?;
            if input.all {
                let withdrawn = book.len() as u64;
                book.close_all(CloseCode::Withdrawn, now);
                return Ok(WithdrawOutput {
                    withdrawn,
                    result: Vec::new(),
                });
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
            Ok(WithdrawOutput {
                withdrawn: gone.count() as u64,
                result,
            })
        })
        .await?
    }

    async fn do_reprove(&self, input: ReproveInput) -> Result<ReproveOutput, ApiError> {
        let id = self.meant(input.element.as_deref())?.id;
        let claim = Claim {
            epoch: input.epoch,
            fence: input.fence,
        };
        self.ask_book(id, move |book, now| {
            book.judge(claim).map_err(late)?;
            if input.all {
                return Ok(ReproveOutput {
                    reproved: book.reprove_all(now),
                    result: Vec::new(),
                });
            }
            let mut output = ReproveOutput::default();
            for key in input.key {
                let reproof = book.reprove(key.as_str(), now);
                output.reproved += u64::from(reproof == Some(Reproof::Sent));
                let result = match reproof {
                    Some(Reproof::Sent | Reproof::Waits) => ReproveStatus::Pending,
                    Some(Reproof::Vouched) => ReproveStatus::Vouched,
                    None => ReproveStatus::Absent,
                };
                output.result.push(ReproveResult { key, result });
            }
            Ok(output)
        })
        .await?
    }

    async fn do_sessions(
        &self,
        element: &str,
        cursor: u64,
        limit: usize,
    ) -> Result<SessionPage, ApiError> {
        let (id, names) = self.told(element)?;
        self.ask_book(id, move |book, _| {
            let mut page = SessionPage::default();
            for (place, view) in book.iter_from(cursor) {
                if page.sessions.len() == limit {
                    page.next = Some(place);
                    break;
                }
                page.sessions.push(report(&view, &names)?);
            }
            Ok(page)
        })
        .await?
    }

    /// What is needed to tell of an element's sessions. Its devices are none of it: an answer
    /// that takes its time keeps none of them open.
    fn told(&self, element: &str) -> Result<(ElementId, Arc<Names>), ApiError> {
        let element = self.element(element)?;
        Ok((element.id, element.names.clone()))
    }

    async fn do_session(
        &self,
        element: &str,
        key: &SessionKey,
    ) -> Result<Option<SessionReport>, ApiError> {
        let (id, names) = self.told(element)?;
        let key = key.clone();
        self.ask_book(id, move |book, _| {
            book.get(key.as_str())
                .map(|view| report(&view, &names))
                .transpose()
        })
        .await?
    }

    async fn do_summary(&self) -> Result<Summary, ApiError> {
        let counts = self
            .ask(|books, _| {
                let counts = books.iter().map(|(id, book)| (*id, book.len()));
                counts.collect::<HashMap<_, _>>()
            })
            .await?;
        let elements = self.elements();
        let element = elements.iter().map(|element| ElementSummary {
            name: element.name.clone(),
            sessions: counts.get(&element.id).map_or(0, |count| *count as u32),
            sessions_max: element.sessions_max,
            vnic: element.vnics().map(|vnic| vnic.name.clone()).collect(),
        });
        let element = element.collect();
        let uptime = (self.clock.now().millis() / 1000) as u32;
        Ok(Summary {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime,
            element,
        })
    }

    async fn do_statistics(&self, element: &str) -> Result<Statistics, ApiError> {
        let (id, sessions_max, counters) = {
            let element = self.element(element)?;
            (element.id, element.sessions_max, element.counters.clone())
        };
        let (stats, sessions) = self
            .ask_book(id, |book, _| (*book.stats(), book.len() as u32))
            .await?;
        let counters = counters.snapshot();
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
                sessions_max,
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

    fn open_epoch(&self, input: OpenEpochInput) -> Answer<'_, OpenEpochOutput> {
        Box::pin(self.do_open_epoch(input))
    }

    fn sync(&self, input: SyncInput) -> Answer<'_, SyncOutput> {
        Box::pin(self.do_sync(input))
    }

    fn events<'a>(&'a self, element: &'a str) -> Answer<'a, EventFeed> {
        Box::pin(self.do_events(element))
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

    fn reload(&self) -> Answer<'_, ReloadOutput> {
        Box::pin(self.reload())
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
            let element = self.element(element)?;
            Ok(Ports {
                vnic: element.vnics().map(vnic_report).collect(),
            })
        })
    }

    fn statistics<'a>(&'a self, element: &'a str) -> Answer<'a, Statistics> {
        Box::pin(self.do_statistics(element))
    }

    fn shield(&self, input: ShieldInput) -> Answer<'_, ShieldOutput> {
        Box::pin(self.do_shield(input))
    }

    fn unshield(&self, input: UnshieldInput) -> Answer<'_, UnshieldOutput> {
        Box::pin(self.do_unshield(input))
    }

    fn shields<'a>(&'a self, element: &'a str) -> Answer<'a, Shields> {
        Box::pin(self.do_shields(element))
    }
}

fn report(view: &SessionView, names: &Names) -> Result<SessionReport, ApiError> {
    SessionReport::new(view, names).map_err(|error| ApiError::failed(error.to_string()))
}

fn traffic(counted: TrafficSnapshot) -> Traffic {
    Traffic {
        packets: counted.packets,
        octets: counted.bytes,
    }
}

fn vnic_report(vnic: &VnicInfo) -> VnicReport {
    VnicReport {
        name: vnic.name.clone(),
        mac: vnic.mac,
        bus_path: vnic.bus_path.clone(),
        mtu: Some(vnic.mtu),
        guest: DeviceReport::from(&vnic.guest.status()),
        uplink: DeviceReport::from(&vnic.uplink.status()),
    }
}
