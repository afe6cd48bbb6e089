//! Shields of elements that run: rpcs, configuration, and what becomes of them with time.
//!
//! *Promises*: all lanes of an element come to have the same set, the last one compiled: if a
//! worker could not be told, it is told within [`LOOK_AFTER`](super::LOOK_AFTER). What was asked
//! for ends at most that long after its time.
//! *Refuses*: what [`ShieldBook`] refuses, vNICs that the element does not have, and calls that come
//! too late.
//! *Caller's duty*: [`Backend::look_after_shields`] now and then; [`Backend::shields_follow`]
//! before a vNIC comes and after one has gone. *Standard*: none.

use std::time::Duration;

use super::config::{ElementConfig, ShieldConfig};
use super::open::{ElementInfo, Names};
use super::plan::ShieldsOf;
use super::running::{Backend, let_go};
use super::sync::late;
use crate::api::convert::VnicNames;
use crate::api::error::ApiError;
use crate::api::shield::{
    ShieldInput, ShieldOutput, ShieldReport, ShieldResult, ShieldStatus, Shields, UnshieldInput,
    UnshieldOutput, UnshieldResult, UnshieldStatus,
};
use crate::datapath::lane::Lane;
use crate::datapath::lanes::Lanes;
use crate::datapath::told::Told;
use crate::flow::shield::{Asked, Hits, Shield};
use crate::flow::{Claim, ShieldBook};

/// The book of an element that is being opened; its lanes have its set from the start.
pub(super) fn open(
    config: &ElementConfig,
    slots: usize,
    lanes: &mut [Box<Lane>],
    names: &Names,
) -> ShieldBook {
    let quota = config.shield_quota as usize;
    let mut book = ShieldBook::new(lanes.len(), slots, quota);
    book.configure(written(&config.shields), quota);
    let set = book.compile(|name| names.id(name));
    for lane in lanes {
        // It had none.
        let _none = lane.set_shields(set.clone());
    }
    book.note_delivered();
    book
}

fn written(shields: &[ShieldConfig]) -> impl Iterator<Item = Shield> {
    shields.iter().map(|ShieldConfig(shield)| shield.clone())
}

impl Backend {
    pub(super) async fn do_shield(&self, input: ShieldInput) -> Result<ShieldOutput, ApiError> {
        let element = self.meant(input.element.as_deref())?;
        let mut book = element.shields.lock().await;
        // As it is now that nobody else changes it.
        let element = self.element(&element.name)?;
        self.in_time(&element, (input.epoch, input.fence)).await?;
        let now = self.clock.now();
        let result = input.shield.into_iter().map(|asked| {
            let ttl = asked.ttl.map_or(0, |ttl| u64::from(ttl.get()));
            match asked.to_shield(&*element.names) {
                Ok(shield) => {
                    let ttl = Duration::from_secs(ttl);
                    ShieldResult::new(asked.name, book.install(Asked { shield, ttl }, now))
                }
                Err(fault) => ShieldResult::fault(asked.name, ShieldStatus::Invalid, fault),
            }
        });
        let result = result.collect();
        self.deliver(&element, &mut book).await?;
        Ok(ShieldOutput { result })
    }

    pub(super) async fn do_unshield(
        &self,
        input: UnshieldInput,
    ) -> Result<UnshieldOutput, ApiError> {
        let element = self.meant(input.element.as_deref())?;
        let mut book = element.shields.lock().await;
        let element = self.element(&element.name)?;
        self.in_time(&element, (input.epoch, input.fence)).await?;
        let mut output = UnshieldOutput::default();
        if input.all {
            output.removed = book.remove_all() as u64;
        }
        for name in input.name {
            let result = match book.remove(name.as_str()) {
                true => UnshieldStatus::Removed,
                false => UnshieldStatus::Absent,
            };
            output.removed += u64::from(result == UnshieldStatus::Removed);
            output.result.push(UnshieldResult { name, result });
        }
        self.deliver(&element, &mut book).await?;
        Ok(output)
    }

    /// Refuses a call that comes too late. Whoever comes later waits for the element's shields.
    async fn in_time(
        &self,
        element: &ElementInfo,
        (epoch, fence): (Option<u64>, Option<u64>),
    ) -> Result<(), ApiError> {
        let claim = Claim { epoch, fence };
        let judged = self.ask_book(element.id, move |book, _| book.judge(claim));
        judged.await?.map_err(late)
    }

    pub(super) async fn do_shields(&self, element: &str) -> Result<Shields, ApiError> {
        let (book, names) = {
            let element = self.element(element)?;
            (element.shields.clone(), element.names.clone())
        };
        let book = book.lock().await;
        let reports = book.iter(self.clock.now());
        let shield = reports.filter_map(|view| ShieldReport::new(&view, &*names));
        Ok(Shields {
            shield: shield.collect(),
        })
    }

    /// An operator's shields and quota are these from now on.
    pub(super) async fn configure_shields(&self, of: &ShieldsOf) -> Result<(), ApiError> {
        let element = self.element(&of.element)?;
        let mut book = element.shields.lock().await;
        book.configure(written(&of.shields), of.quota as usize);
        self.deliver(&element, &mut book).await
    }

    /// The element's vNICs are those of `element` now. Where workers cannot be told at once, they
    /// are when shields are looked after.
    pub(super) async fn shields_follow(&self, element: &ElementInfo) {
        let mut book = element.shields.lock().await;
        book.revise();
        self.deliver_or_warn(element, &mut book).await;
    }

    /// Ends shields whose time is over, and tells workers what they could not be told before.
    pub(super) async fn look_after_shields(&self) {
        let now = self.clock.now();
        for element in self.elements().iter() {
            let mut book = element.shields.lock().await;
            let is_due = book.next_end().is_some_and(|end| end <= now);
            if is_due {
                book.expire(now);
            }
            self.deliver_or_warn(element, &mut book).await;
            let hits = book.new_hits();
            drop(book);
            if !hits.is_empty() {
                self.tell_hits(element, hits).await;
            }
        }
    }

    async fn tell_hits(&self, element: &ElementInfo, hits: Vec<Hits>) {
        let id = element.id;
        let told = self.ask(move |books, now| books.tell(&id, Told::Hit(hits), now));
        if let Err(error) = told.await {
            log::warn!(
                "shields of {} that matched are not told: {error}",
                element.name
            );
        }
    }

    async fn deliver_or_warn(&self, element: &ElementInfo, book: &mut ShieldBook) {
        if let Err(error) = self.deliver(element, book).await {
            log::warn!("shields of {}, to be tried again: {error}", element.name);
        }
    }

    /// Gives the element's lanes the set that the book has come to, if it has changed.
    async fn deliver(&self, element: &ElementInfo, book: &mut ShieldBook) -> Result<(), ApiError> {
        if !book.is_changed() {
            return Ok(());
        }
        let set = book.compile(|name| element.names.id(name));
        let id = element.id;
        let orders = (0..element.lanes).map(|_| {
            let set = set.clone();
            move |lanes: &mut Lanes| lanes.set_shields(id, set)
        });
        let old = self.order_all(id, orders).await?;
        book.note_delivered();
        let_go((old, set)).await;
        Ok(())
    }
}
