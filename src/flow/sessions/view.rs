//! What a session looks like from outside.

use std::time::Duration;

use super::{Entry, SessionPhase, Sessions, Totals};
use crate::flow::request::SessionRequest;
use crate::flow::{FlowCounters, FlowState, SessionId};
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
    /// Destination and source MAC on egress; zero until they are learned.
    pub macs: (MacAddr, MacAddr),
}

/// A session as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionView<'a> {
    /// Which.
    pub session: SessionId,
    /// What was asked for.
    pub request: &'a SessionRequest,
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
    pub fn iter(&self) -> impl Iterator<Item = SessionView<'_>> {
        self.iter_from(0).map(|(_, view)| view)
    }

    /// The sessions at place `start` and later, each with its place. A session keeps its
    /// place as long as it lives.
    pub fn iter_from(&self, start: u64) -> impl Iterator<Item = (u64, SessionView<'_>)> {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let entries = self.entries.iter().enumerate().skip(start);
        entries.filter_map(|(place, entry)| {
            entry
                .as_deref()
                .map(|entry| (place as u64, self.view(entry)))
        })
    }

    /// The session of that client key.
    pub fn get(&self, key: &str) -> Option<SessionView<'_>> {
        let slot = *self.by_key.get(key)?;
        self.entry(slot).map(|entry| self.view(entry))
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> SessionView<'a> {
        let mut directions = [None, None];
        for (place, view) in directions.iter_mut().enumerate() {
            let asked = entry.request.directions()[place].is_some();
            *view = entry
                .pair
                .filter(|_| asked)
                .and_then(|pair| self.writer.flow(pair[place]))
                .map(|flow| {
                    let mut totals = entry.carried[place];
                    totals.add(&flow.counters());
                    DirectionView {
                        state: flow.state(),
                        totals,
                        macs: flow.macs(),
                    }
                });
        }
        SessionView {
            session: entry.id,
            request: &entry.request,
            phase: entry.phase,
            directions,
            age: self.now.since(entry.born),
            idle: self.idle(entry),
            transit: entry.transit,
            drain_bounds: entry.drain_bounds,
        }
    }

    /// Since either direction moved. Flows store milliseconds that wrap after 49 days, a
    /// timeout is at most 7: the difference is what counts.
    pub(super) fn idle(&self, entry: &Entry) -> Duration {
        let now = self.now.millis() as u32;
        let mut idle = self.now.since(entry.touched);
        for flow in entry.pair.into_iter().flatten() {
            if let Some(flow) = self.writer.flow(flow) {
                let age = now.wrapping_sub(flow.counters().last_seen_ms);
                let ahead = age > u32::MAX - AHEAD_MAX_MS;
                let age = if ahead { 0 } else { u64::from(age) };
                idle = idle.min(Duration::from_millis(age));
            }
        }
        idle
    }
}
