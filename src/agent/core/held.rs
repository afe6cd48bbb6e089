//! A connection that is asked for, or is to be.
//!
//! *Promises*: plain state; the book decides.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: none.

use std::sync::Arc;
use std::time::Duration;

use super::moment::Moment;
use super::paths::{Path, Search};
use super::reason::Reason;
use super::watch::{History, Known};
use crate::agent::connection::{Connection, Counters};
use crate::api::state::Traffic;

/// Timeouts are whole seconds, and some time goes by between two looks.
pub const SLACK: Duration = Duration::from_secs(2);

/// What becomes of a connection that is not offloaded any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// It is gone.
    Forget,
    /// It is watched again.
    Watch,
    /// It is watched again, and not asked for again soon.
    PutOff(Reason),
    /// Its next way is tried.
    NextWay(Reason),
}

/// Where a connection stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Its ways are asked of the routing tables.
    Searching(Search),
    /// It will be asked for with the next call.
    Ready,
    /// The call is under way.
    Asked,
    /// The host has it.
    Live,
    /// It is to be taken back, or the call is under way; then this.
    Leaving(After),
    /// It would be asked for, were the agent not to observe only.
    Observed,
}

impl Stage {
    /// The word for people.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Searching(_) => "searching",
            Self::Ready => "ready",
            Self::Asked => "asked",
            Self::Live => "live",
            Self::Leaving(_) => "leaving",
            Self::Observed => "observed",
        }
    }
}

/// A connection that is asked for, or is to be.
#[derive(Debug)]
pub struct Held {
    /// As it was seen last.
    pub connection: Arc<Connection>,
    /// How long it lives without packets: the longest timeout seen while the guest had them.
    pub full: Duration,
    /// The way it was asked for.
    pub path: Option<Path>,
    /// How many ways it may take.
    pub ways: u8,
    /// Where it stands, …
    pub stage: Stage,
    /// … since when.
    pub since: Moment,
    /// The host may have it: it was offered since the last epoch was opened.
    pub is_offered: bool,
    /// While a call is under way: what is to become of it afterwards.
    pub doom: Option<After>,
    /// What is remembered.
    pub history: History,
    /// The look at the table that saw it last.
    pub scan: u32,
    /// News of it have come, so its end will be told, too.
    pub is_heard: bool,
    /// When its proof was asked for, …
    pub asked: Moment,
    /// … and what the guest had forwarded of each direction then.
    pub guest_then: [u64; 2],
    /// Which directions were handed over since.
    pub is_over: [bool; 2],
    /// When it is to be proved again.
    pub reprove: Moment,
    /// It waits for the call that proves it again.
    pub is_reproving: bool,
    /// What went around the guest, by the host's count of this session.
    pub fast: [Counters; 2],
    /// When a packet of each direction went around the guest last, at the latest.
    pub moved: [Moment; 2],
    /// The timeout that it was given last, and when.
    pub refreshed: (Moment, Duration),
    /// It moved since its timeout was set: when that is to be made up for, if it does not move on.
    pub trailing: Option<Moment>,
    /// Looks at the table, one after the other, in which the guest had packets of a direction that
    /// should not come to it.
    pub strays: u8,
    /// How long packets took through the guest, microseconds, at the last hand-over.
    pub transit: Option<u32>,
    /// When it is to be looked at next, and the timer that is set (never later).
    pub deadline: Moment,
    /// See `deadline`.
    pub timer: Option<Moment>,
}

impl Held {
    /// A connection whose ways are to be found.
    pub fn new(connection: Connection, known: Known, search: Search, now: Moment) -> Self {
        let Known {
            full,
            given: _,
            is_heard,
            history,
        } = known;
        Self {
            connection: Arc::new(connection),
            full,
            path: None,
            ways: 0,
            stage: Stage::Searching(search),
            since: now,
            is_offered: false,
            doom: None,
            history,
            scan: 0,
            is_heard,
            asked: now,
            guest_then: [0; 2],
            is_over: [false; 2],
            reprove: now,
            is_reproving: false,
            fast: [Counters::default(); 2],
            moved: [now; 2],
            refreshed: (now, full),
            trailing: None,
            strays: 0,
            transit: None,
            deadline: Moment(u64::MAX),
            timer: None,
        }
    }

    /// Changes where it stands.
    pub fn turn(&mut self, stage: Stage, now: Moment) {
        self.stage = stage;
        self.since = now;
    }

    /// Packets of each direction that the guest has counted.
    pub fn guest(&self) -> [u64; 2] {
        let counters = self.connection.counters.unwrap_or_default();
        counters.map(|of| of.packets)
    }

    /// Its proof is asked for from now on.
    pub fn await_proof(&mut self, now: Moment) {
        self.asked = now;
        self.guest_then = self.guest();
        self.is_over = [false; 2];
        self.strays = 0;
    }

    /// Whether packets go around the guest, as far as was told.
    pub fn is_active(&self) -> bool {
        self.stage == Stage::Live && self.is_over.contains(&true)
    }

    /// Whether the guest has had some packets of a direction since its proof was asked for, and
    /// that direction was not handed over.
    pub fn is_unproved(&self, packets_min: u64) -> bool {
        let guest = self.guest();
        (0..2).any(|way| {
            !self.is_over[way] && guest[way].saturating_sub(self.guest_then[way]) >= packets_min
        })
    }

    /// The host's new totals; which directions moved.
    pub fn count(&mut self, told: [Option<Traffic>; 2]) -> [bool; 2] {
        let mut has_moved = [false; 2];
        for (way, traffic) in told.into_iter().enumerate() {
            let Some(Traffic { packets, octets }) = traffic else {
                continue;
            };
            // Fewer than before: the host began another session of this key, and counts anew.
            has_moved[way] = packets != self.fast[way].packets;
            self.fast[way] = Counters { packets, octets };
        }
        has_moved
    }

    /// Takes the timeout that stands in the table. A single packet that comes to the guest, as one
    /// too large for its way does, sets another one than was set here, and that one runs out.
    pub fn doubt_timeout(&mut self, stands: Option<Duration>, now: Moment) {
        let (at, given) = self.refreshed;
        let span = now.since(at);
        if let Some(stands) = stands.filter(|stands| *stands + SLACK < given.saturating_sub(span)) {
            self.refreshed.1 = stands + span;
        }
    }

    /// How long neither direction has moved, around the guest.
    pub fn idle(&self, now: Moment) -> Duration {
        now.since(self.moved[0].max(self.moved[1]))
    }

    /// Ends the host's count of this session: another one begins at zero.
    pub fn settle_counts(&mut self) {
        for (past, now) in self.history.past.iter_mut().zip(&mut self.fast) {
            past.packets = past.packets.saturating_add(now.packets);
            past.octets = past.octets.saturating_add(now.octets);
            *now = Counters::default();
        }
    }
}
