//! An element's lanes, one on each worker that serves it.
//!
//! *Promises*: queue pair q of every vNIC, both sides, is lane q modulo their number; what bounds
//! the element (punt rate, parked frames) bounds all of its lanes together.
//! *Refuses*: nothing. *Caller's duty*: each lane goes to a worker of its own.
//! *Standard*: none.

use std::io;
use std::sync::Arc;

use super::ElementId;
use super::counters::{CrewCounters, ElementCounters};
use super::lane::{Lane, Vnic};
use super::mates::Mates;
use super::punt_meter::{PuntMeter, PuntRate};
use crate::flow::route::QUEUES_MAX;
use crate::flow::{ElementSignals, HandOver, HandOverLimits, TableReader};

/// An element that is to be served.
pub struct Crew {
    /// Its number.
    pub id: ElementId,
    /// Its vNICs, whole.
    pub vnics: Vec<Vnic>,
    /// What it shares with its book.
    pub signals: Arc<ElementSignals>,
    /// What all its lanes together may park.
    pub limits: HandOverLimits,
    /// What its guest is handed at most, in wire packets a second.
    pub punt_rate: Option<u32>,
}

/// How many lanes an element has that is served by `workers` workers.
pub fn lanes_of(vnics: &[Vnic], workers: usize) -> usize {
    let queues = vnics.iter().map(Vnic::queue_pairs).max();
    queues.unwrap_or(1).min(workers).clamp(1, QUEUES_MAX)
}

impl Crew {
    /// Its lanes, one for each reader of its table, and their counters.
    ///
    /// # Errors
    /// The system refused a descriptor.
    pub fn lanes(self, readers: Vec<TableReader>) -> io::Result<(Vec<Box<Lane>>, CrewCounters)> {
        let count = readers.len();
        let mates: Vec<Option<Mates>> = match count {
            0 | 1 => vec![None],
            _ => Mates::all(count)?.into_iter().map(Some).collect(),
        };
        let mut parts: Vec<Vec<Vnic>> = (0..count).map(|_| Vec::new()).collect();
        for vnic in self.vnics {
            let shares = vnic.split(count);
            parts
                .iter_mut()
                .zip(shares)
                .for_each(|(part, share)| part.push(share));
        }
        let rate = PuntRate::new(self.punt_rate);
        let limits = self.limits.shared_by(count);
        let mut all = Vec::new();
        let places = readers.into_iter().zip(parts).zip(mates);
        let lanes = places.map(|((reader, vnics), mates)| {
            let counters = Arc::new(ElementCounters::default());
            all.push(counters.clone());
            let signals = self.signals.clone();
            let hand_over = HandOver::new(limits);
            let mut lane = Lane::new(self.id, reader, hand_over, vnics, counters, signals, None);
            lane.pipe.meter = PuntMeter::new(rate.clone());
            lane.pipe.mates = mates;
            Box::new(lane)
        });
        Ok((lanes.collect(), CrewCounters::new(all)))
    }
}
