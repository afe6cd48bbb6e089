//! What the agent has done, in numbers.
//!
//! *Promises*: counters only rise.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: RFC 7951 is not followed here: these are for the guest's own people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::events::HandedOver;

/// Counters since the agent started.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Statistics {
    /// Looks at the whole table.
    pub scans: u64,
    /// Of these, broken off.
    pub scans_failed: u64,
    /// Milliseconds spent in them.
    pub scan_ms: u64,
    /// News of connections.
    pub news: u64,
    /// How often news were lost.
    pub news_lost: u64,
    /// Sessions asked for.
    pub asked: u64,
    /// Of these, taken by the host.
    pub taken: u64,
    /// Of these, without room at the host.
    pub no_room: u64,
    /// Of these, refused.
    pub refused: u64,
    /// Connections that waited because the agent holds as many as it may, or one of their tuple.
    pub crowded: u64,
    /// Sessions given up because the guest did not forward them as was asked.
    pub unproved: u64,
    /// Sessions given up because their packets went on coming to the guest.
    pub strayed: u64,
    /// Sessions taken back.
    pub withdrawn: u64,
    /// Calls that returned all sessions to the guest until they are proved again.
    pub reproved_all: u64,
    /// Sessions returned so one by one.
    pub reproved: u64,
    /// Changes of network or ruleset that sessions were returned for.
    pub revocations: u64,
    /// Timeouts refreshed.
    pub refreshed: u64,
    /// Timeouts set to what was left after a session ended.
    pub settled: u64,
    /// TCP connections whose windows are not checked any more.
    pub made_liberal: u64,
    /// Epochs opened.
    pub epochs: u64,
    /// Syncs.
    pub syncs: u64,
    /// How often the agent fell silent because a revocation was not answered.
    pub fell_silent: u64,
    /// Sessions that ended, by close code.
    pub closed: BTreeMap<String, u64>,
    /// How connections moved to the fast path.
    pub hand_over: HandOvers,
}

/// How directions of sessions moved to the fast path.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct HandOvers {
    /// How many did.
    pub count: u64,
    /// Of these, at a bound, so that packets may have been reordered.
    pub forced: u64,
    /// Packets that may have been overtaken at that.
    pub overtaken: u64,
    /// Parked packets that were lost at that.
    pub lost: u64,
    /// Of these, with the guest's transit time measured.
    pub measured: u64,
    /// Sum of those times, microseconds.
    pub transit_us_sum: u64,
    /// The longest.
    pub transit_us_max: u32,
    /// The last.
    pub transit_us_last: u32,
}

/// Close codes that are told apart; a host may have newer ones.
const CODES_MAX: usize = 32;

impl Statistics {
    /// A session ended.
    pub fn close(&mut self, code: &str) {
        let is_known = self.closed.contains_key(code);
        let code = if is_known || self.closed.len() < CODES_MAX {
            code
        } else {
            "other"
        };
        *self.closed.entry(code.to_owned()).or_default() += 1;
    }
}

impl HandOvers {
    /// A direction moved.
    pub fn count(&mut self, told: &HandedOver) {
        self.count += 1;
        self.forced += u64::from(told.forced);
        self.overtaken += u64::from(told.overtaken);
        self.lost += u64::from(told.lost);
        if let Some(transit) = told.transit {
            self.measured += 1;
            self.transit_us_sum = self.transit_us_sum.saturating_add(u64::from(transit));
            self.transit_us_max = self.transit_us_max.max(transit);
            self.transit_us_last = transit;
        }
    }
}
