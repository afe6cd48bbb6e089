//! The lanes of a worker: each at a place that stays its own while others come and go.
//!
//! *Promises*: a lane's place, its token in the worker's epoll set, does not change; a place
//! is used again only after its lane has left. What leaves is given back whole, to be dropped
//! where that may take time.
//! *Refuses*: nothing.
//! *Caller's duty*: calls come from the worker's own thread, between rounds
//! ([`Worker::submit`](super::worker::Worker::submit)); a vNIC's sessions are closed before it
//! is unplugged. *Standard*: none.

use std::io;
use std::sync::Arc;

use super::ElementId;
use super::lane::{Lane, Vnic};
use super::poller::EpollSet;
use super::punt_meter::{PuntMeter, PuntRate};
use crate::flow::ShieldSet;
use crate::packet::VnicId;

/// A worker's lanes.
pub struct Lanes {
    places: Vec<Option<Box<Lane>>>,
    set: Arc<EpollSet>,
}

impl Lanes {
    /// None yet; their ports will be watched in `set`.
    pub(super) fn new(set: Arc<EpollSet>) -> Self {
        Self {
            places: Vec::new(),
            set,
        }
    }

    /// Takes a lane in and has its ports watched.
    ///
    /// # Errors
    /// A descriptor cannot be watched; the lane is dropped.
    pub fn admit(&mut self, mut lane: Box<Lane>) -> io::Result<()> {
        let free = self.places.iter().position(Option::is_none);
        let place = free.unwrap_or(self.places.len());
        lane.attach(&self.set, place as u64)?;
        match self.places.get_mut(place) {
            Some(empty) => *empty = Some(lane),
            None => self.places.push(Some(lane)),
        }
        Ok(())
    }

    /// Gives an element's lane back, with what it had parked.
    pub fn dismiss(&mut self, element: ElementId) -> Option<Box<Lane>> {
        let place = self.place_of(element)?;
        let mut lane = self.places.get_mut(place)?.take()?;
        lane.detach();
        Some(lane)
    }

    /// Gives an element a vNIC at a place that is empty, or behind its last one.
    ///
    /// # Errors
    /// A descriptor cannot be watched; the vNIC is dropped.
    pub fn plug(&mut self, element: ElementId, at: VnicId, vnic: Vnic) -> io::Result<()> {
        let Some(place) = self.place_of(element) else {
            return Ok(());
        };
        let Some(Some(lane)) = self.places.get_mut(place) else {
            return Ok(());
        };
        lane.plug(usize::from(at.0), vnic, &self.set, place as u64)
    }

    /// Takes a vNIC from an element and gives it back; its place stays empty.
    pub fn unplug(&mut self, element: ElementId, at: VnicId) -> Option<Vnic> {
        let place = self.place_of(element)?;
        let lane = self.places.get_mut(place)?.as_mut()?;
        lane.unplug(usize::from(at.0))
    }

    /// Limits what an element's guest is handed.
    pub fn set_punt_rate(&mut self, element: ElementId, rate: PuntRate) {
        let place = self.place_of(element);
        if let Some(lane) = place.and_then(|place| self.at(place)) {
            lane.pipe.meter = PuntMeter::new(rate);
        }
    }

    /// Gives an element's lane its shields. What it had, to be dropped where that may take time.
    pub fn set_shields(
        &mut self,
        element: ElementId,
        shields: Option<Arc<ShieldSet>>,
    ) -> Option<Arc<ShieldSet>> {
        let place = self.place_of(element)?;
        self.at(place)?.set_shields(shields)
    }

    /// The lane at a place.
    pub(super) fn at(&mut self, place: usize) -> Option<&mut Lane> {
        self.places.get_mut(place)?.as_deref_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.places.iter().flatten().map(|lane| &**lane)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.places.iter_mut().flatten().map(|lane| &mut **lane)
    }

    fn place_of(&self, element: ElementId) -> Option<usize> {
        let is_its =
            |lane: &Option<Box<Lane>>| lane.as_ref().is_some_and(|lane| lane.pipe.id == element);
        self.places.iter().position(is_its)
    }
}
