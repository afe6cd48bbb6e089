//! What the agent's owner has set.
//!
//! *Promises*: the defaults are those that `docs/agent.md` names.
//! *Refuses*: nothing: the configuration file's reader judges what may be set.
//! *Caller's duty*: none.
//! *Standard*: none.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::Prefix;
use crate::api::session::HandOver;

/// What the agent does at all.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It offloads.
    #[default]
    On,
    /// It decides and tells what it would offload, and asks for nothing.
    Observe,
    /// It asks for nothing new; what is offloaded stays, and is revoked as ever.
    Pause,
    /// It asks for nothing, and has taken back what was offloaded.
    Off,
}

/// What becomes of sessions when something changes that they may depend on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    /// All of them return to the guest at once, until they are proved again.
    #[default]
    Strict,
    /// They do so one after the other, [`Settings::staged_rate`] a second, so that the guest is
    /// not flooded. Until its turn comes, a connection is forwarded as it was before the change.
    Staged,
}

/// Some bits of a connmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Their value.
    pub value: u32,
    /// Which they are.
    pub mask: u32,
}

impl Mark {
    /// Whether `mark` has them.
    pub const fn is_on(self, mark: u32) -> bool {
        mark & self.mask == self.value & self.mask
    }
}

/// What is switched off, or on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Switches {
    /// Connections with this mark are left alone.
    pub opt_out: Option<Mark>,
    /// Connections with this mark are offloaded although the ruleset has hazards.
    pub opt_in: Option<Mark>,
    /// Only connections with the `opt_in` mark are offloaded.
    pub is_opt_in_only: bool,
    /// The vNICs of interfaces for which neither their place on the bus nor their MAC says it, by
    /// name: interface, vNIC.
    pub vnics: BTreeMap<String, String>,
    /// Interfaces that are left alone, by name; `*` at the end stands for any text.
    pub interfaces_off: Vec<String>,
    /// Connections from or to these addresses, translated or not, are left alone.
    pub prefixes_off: Vec<Prefix>,
    /// If there are some: only connections with an end in one of these.
    pub prefixes_on: Vec<Prefix>,
    /// Connections to these ports are left alone.
    pub ports_off: Vec<u16>,
    /// What of a ruleset is no hazard here: `limit`, `quota`…
    pub hazards_ignored: Vec<String>,
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What the agent does at all.
    pub mode: Mode,
    /// What is switched off, or on.
    pub switches: Switches,
    /// How old a connection is before it is offloaded. The larger of this and what the element's
    /// policy says holds.
    pub age_min: Duration,
    /// How many packets a second it has, both ways together; 0: any. The larger of this and what
    /// the element's policy says holds. Without the kernel's accounting (`nf_conntrack_acct`) nobody
    /// knows, and age alone decides.
    pub rate_min: u32,
    /// How sessions move to the fast path.
    pub hand_over: HandOver,
    /// What becomes of sessions when something changes.
    pub revocation: Revocation,
    /// With [`Revocation::Staged`]: sessions a second that return to the guest.
    pub staged_rate: u32,
    /// Every session is proved again after so long; zero: never.
    pub reprove_every: Duration,
    /// Who is not proved so long after it was asked for is not going the way that was assumed.
    pub proof_timeout: Duration,
    /// Connections that are watched at most; what does not fit is counted.
    pub watched_max: usize,
    /// Connections that are offloaded at most.
    pub sessions_max: usize,
    /// News of connections a second above which the agent looks at the table instead.
    pub news_rate_max: u32,
    /// The share of time that may be spent with looking at the table, in thousandths.
    pub scan_share_permille: u32,
    /// A revocation that is unanswered so long makes the agent fall silent, so that the lease runs
    /// out.
    pub answer_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::On,
            switches: Switches::default(),
            age_min: Duration::from_secs(1),
            rate_min: 20,
            hand_over: HandOver::Ordered,
            revocation: Revocation::Strict,
            staged_rate: 200,
            reprove_every: Duration::from_secs(60),
            proof_timeout: Duration::from_secs(10),
            watched_max: 131_072,
            sessions_max: 65_536,
            news_rate_max: 200,
            scan_share_permille: 30,
            answer_timeout: Duration::from_secs(5),
        }
    }
}

impl Switches {
    /// Whether the interface of that name is left alone.
    pub fn is_interface_off(&self, name: &str) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        self.interfaces_off.iter().any(matches)
    }

    /// Whether a connection of that mark was opted in.
    pub fn is_opted_in(&self, mark: u32) -> bool {
        self.opt_in.is_some_and(|bits| bits.is_on(mark))
    }
}
