//! Frames parked while a flow drains (DESIGN section 4, hand-over).
//!
//! *Promises*: frames of a flow come out in the order they went in; buffers and queues are
//! used again, so that a steady hand-over of ordinary frames allocates nothing.
//! *Refuses*: nothing: how much may be parked is decided by [`crate::flow::HandOver`] before.
//! *Caller's duty*: every parked flow is released once, by [`Parking::take`].

use std::collections::{HashMap, VecDeque};

use super::counters::Wire;
use crate::flow::FlowId;
use crate::packet::{Frame, Offload};

/// Buffers kept for the next hand-over, at most this many and none above this size.
const SPARE_BUFFERS: usize = 256;
const SPARE_BYTES: usize = 2048;
/// Emptied queues kept.
const SPARE_QUEUES: usize = 64;

/// One parked frame.
#[derive(Debug)]
pub(super) struct Parked {
    data: Vec<u8>,
    offload: Offload,
    /// What it counts as.
    pub(super) wire: Wire,
    /// The vNIC and uplink queue it came in by.
    pub(super) ingress: (usize, usize),
}

impl Parked {
    /// The frame as it came in.
    pub(super) fn frame(&self) -> Frame<'_> {
        Frame {
            data: &self.data,
            offload: self.offload,
        }
    }
}

/// An element's parked frames by flow.
#[derive(Debug, Default)]
pub(super) struct Parking {
    flows: HashMap<FlowId, VecDeque<Parked>>,
    spare: Vec<Vec<u8>>,
    spare_queues: Vec<VecDeque<Parked>>,
    packets: u64,
}

impl Parking {
    /// Parks a copy of `frame` behind the flow's others.
    pub(super) fn park(
        &mut self,
        flow: FlowId,
        frame: Frame<'_>,
        wire: Wire,
        ingress: (usize, usize),
    ) {
        let mut data = self.spare.pop().unwrap_or_default();
        data.extend_from_slice(frame.data);
        let parked = Parked {
            data,
            offload: frame.offload,
            wire,
            ingress,
        };
        self.packets += u64::from(wire.packets);
        let fresh = || self.spare_queues.pop().unwrap_or_default();
        self.flows
            .entry(flow)
            .or_insert_with(fresh)
            .push_back(parked);
    }

    /// Takes all frames of `flow`, oldest first. Give them back with [`Parking::recycle`].
    pub(super) fn take(&mut self, flow: FlowId) -> VecDeque<Parked> {
        let frames = self.flows.remove(&flow).unwrap_or_default();
        self.packets -= frames
            .iter()
            .map(|f| u64::from(f.wire.packets))
            .sum::<u64>();
        frames
    }

    /// Keeps the buffers of released frames for later ones.
    pub(super) fn recycle(&mut self, mut frames: VecDeque<Parked>) {
        for mut parked in frames.drain(..) {
            if self.spare.len() < SPARE_BUFFERS && parked.data.capacity() <= SPARE_BYTES {
                parked.data.clear();
                self.spare.push(parked.data);
            }
        }
        if frames.capacity() > 0 && self.spare_queues.len() < SPARE_QUEUES {
            self.spare_queues.push(frames);
        }
    }

    /// Wire packets parked now.
    pub(super) fn packets(&self) -> u64 {
        self.packets
    }
}
