//! What a session looks like from outside.

use std::time::Duration;

use super::{Entry, SessionPhase, Sessions, Tally, Totals};
use crate::flow::request::SessionRequest;
use crate::flow::{FlowCounters, FlowRef, FlowState, SessionId};
use crate::packet::MacAddr;

/// How far a worker's reading of the clock may be ahead of the book's.
const AHEAD_MAX_MS: u32 = 60_000;

/// One direction of a session in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectionView {
    /// Where its flow stands.
    pub state: FlowState,
    /// What it has forwarded, flows that were replaced included.
    pub totals: Totals,
    /// Destination and source MAC on egress; zero until they are learned, and while they are to
    /// be learned anew.
    pub macs: (MacAddr, MacAddr),
}

/// A session as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionView {
    /// Which.
    pub session: SessionId,
    /// What was asked for.
    pub request: SessionRequest,
    /// Where it stands.
    pub phase: SessionPhase,
    /// Original and reply, if asked for and in the table.
    pub directions: [Option<DirectionView>; 2],
    /// Since the request.
    pub age: Duration,
    /// Since either direction moved.
    pub idle: Duration,
    /// The guest's transit time when it was handed over.
    pub transit: Option<Duration>,
    /// Drains that met a bound.
    pub drain_bounds: u32,
    /// What its hand-overs came to.
    pub tally: Tally,
}

impl Totals {
    pub(super) fn add(&mut self, counters: &FlowCounters) {
        self.packets += counters.packets;
        self.bytes += counters.bytes;
        self.tcp = counters.tcp.or(self.tcp);
    }
}

impl Sessions {
    /// Every session, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = SessionView> {
        self.iter_from(0).map(|(_, view)| view)
    }

    /// The sessions at place `start` and later, each with its place. A session keeps its
    /// place as long as it lives.
    pub fn iter_from(&self, start: u64) -> impl Iterator<Item = (u64, SessionView)> {
        let start = u32::try_from(start).unwrap_or(u32::MAX);
        (start..self.book.end()).filter_map(|place| Some((place.into(), self.at(place)?)))
    }

    /// The session of that client key.
    pub fn get(&self, key: &str) -> Option<SessionView> {
        self.at(self.book.by_key(key)?)
    }

    pub(super) fn at(&self, slot: u32) -> Option<SessionView> {
        let entry = self.entry(slot)?;
        let view = self.view(&entry, entry.request.clone());
        Some(view)
    }

    fn view(&self, entry: &Entry, request: SessionRequest) -> SessionView {
        let mut directions = [None, None];
        for (place, view) in directions.iter_mut().enumerate() {
            let asked = entry.request.directions()[place].is_some();
            *view = entry
                .pair
                .filter(|_| asked)
                .and_then(|pair| {
                    let flow = self.writer.flow(pair[place])?;
                    Some((flow, self.writer.counters(pair[place])?))
                })
                .map(|(flow, counters)| {
                    let mut totals = entry.carried[place];
                    totals.add(&counters);
                    DirectionView {
                        state: flow.state(),
                        totals,
                        macs: flow.macs_known(),
                    }
                });
        }
        SessionView {
            session: entry.id,
            request,
            phase: entry.phase,
            directions,
            age: self.now.since(entry.born),
            idle: self.idle(entry),
            transit: entry.transit,
            drain_bounds: entry.drain_bounds,
            tally: entry.tally,
        }
    }

    /// Since either direction moved. Flows store milliseconds that wrap after 49 days, a
    /// timeout is at most 7: the difference is what counts.
    pub(super) fn idle(&self, entry: &Entry) -> Duration {
        let mut idle = self.now.since(entry.touched);
        for flow in entry.pair.into_iter().flatten() {
            if let Some(flow) = self.writer.flow(flow) {
                idle = idle.min(self.age(flow));
            }
        }
        idle
    }

    /// Since a flow moved.
    pub(super) fn age(&self, flow: FlowRef<'_>) -> Duration {
        let now = self.now.millis() as u32;
        let age = now.wrapping_sub(flow.last_seen_ms());
        let ahead = age > u32::MAX - AHEAD_MAX_MS;
        Duration::from_millis(if ahead { 0 } else { age.into() })
    }
}
