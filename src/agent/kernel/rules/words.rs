//! What needs to see every packet, by its name, and matches of conntrack's state.
//!
//! *Promises*: a match of the state that is not fully understood is one that may match.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: nft(8), iptables-extensions(8); include/uapi/linux/netfilter/xt_conntrack.h,
//! xt_state.h.

use super::Seen;
use crate::agent::kernel::wire::{native16, native32};

/// How a word is dangerous.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Danger {
    /// It takes or copies the packet, or answers it.
    Acts,
    /// It matches by how many packets there were, or by what is in them: dangerous if the rule
    /// then does something (a limit for a log's sake is none).
    Counts,
}

/// Of expressions of nftables.
pub(super) fn of_expression(name: &str) -> Option<Danger> {
    match name {
        "queue" | "tproxy" | "synproxy" | "dup" | "fwd" => Some(Danger::Acts),
        "limit" | "quota" | "connlimit" | "numgen" => Some(Danger::Counts),
        _ => None,
    }
}

/// Of targets of xtables.
pub(super) fn of_target(name: &str) -> Option<Danger> {
    match name {
        "NFQUEUE" | "QUEUE" | "TPROXY" | "SYNPROXY" | "TEE" | "RATEEST" => Some(Danger::Acts),
        _ => None,
    }
}

/// Of matches of xtables. Contents and per-packet chance are like limits: the guest must look.
pub(super) fn of_match(name: &str) -> Option<Danger> {
    match name {
        "limit" | "hashlimit" | "quota" | "quota2" | "connlimit" | "connbytes" | "rateest"
        | "statistic" | "string" | "layer7" | "ndpi" => Some(Danger::Counts),
        _ => None,
    }
}

/// Targets of xtables that only write down.
pub(super) fn is_log(target: &str) -> bool {
    matches!(target, "LOG" | "NFLOG" | "ULOG")
}

/// Whether packets match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Matches {
    /// None of them.
    None,
    /// Some, perhaps.
    Some,
    /// All of them.
    All,
}

impl Matches {
    /// All or none.
    pub(super) fn wholly(matches: bool) -> Self {
        if matches { Self::All } else { Self::None }
    }

    /// Both must match.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::All, Self::All) => Self::All,
            _ => Self::Some,
        }
    }
}

/// Only the state is matched (`XT_CONNTRACK_STATE`).
const STATE: u16 = 1 << 0;
/// It was written as `-m state` (`XT_CONNTRACK_STATE_ALIAS`), which changes nothing.
const ALIAS: u16 = 1 << 13;
/// Translation is matched among the states (`XT_CONNTRACK_STATE_SNAT`, `…_DNAT`).
const TRANSLATED: u32 = 1 << 6 | 1 << 7;
/// Where `struct xt_conntrack_mtinfo1` (and 2, 3) has its flags, their inversion and the states.
const FLAGS: usize = 146;
const INVERTED: usize = 148;
const STATES: usize = 150;

/// How a match of xtables looks on packets.
pub(super) fn xt_match(name: &str, revision: u8, info: &[u8], seen: Seen) -> Matches {
    let found = match name {
        "comment" => Some(Matches::All),
        "state" => info
            .get(..4)
            .and_then(native32)
            .map(|mask| Matches::wholly(mask & seen.bit() != 0)),
        "conntrack" => xt_conntrack(revision, info, seen),
        _ => None,
    };
    found.unwrap_or(Matches::Some)
}

fn xt_conntrack(revision: u8, info: &[u8], seen: Seen) -> Option<Matches> {
    let number = |at: usize| info.get(at..at + 2).and_then(native16);
    let flags = number(FLAGS)? & !ALIAS;
    if flags & STATE == 0 {
        return None;
    }
    let mask = match revision {
        1 => u32::from(*info.get(STATES)?),
        2 | 3 => u32::from(number(STATES)?),
        _ => return None,
    };
    let is_inverted = number(INVERTED)? & STATE != 0;
    if mask & TRANSLATED != 0 && mask & seen.bit() == 0 {
        return None;
    }
    let matches = (mask & seen.bit() != 0) != is_inverted;
    Some(match (matches, flags == STATE) {
        (false, _) => Matches::None,
        (true, true) => Matches::All,
        (true, false) => Matches::Some,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conntrack(flags: u16, inverted: u16, states: u16) -> Vec<u8> {
        let mut info = vec![0; 164];
        info[FLAGS..FLAGS + 2].copy_from_slice(&flags.to_ne_bytes());
        info[INVERTED..INVERTED + 2].copy_from_slice(&inverted.to_ne_bytes());
        info[STATES..STATES + 2].copy_from_slice(&states.to_ne_bytes());
        info
    }

    #[test]
    fn ctstate_new_matches_no_packet_of_an_established_connection() {
        let looks = |info: &[u8]| xt_match("conntrack", 3, info, Seen::Established);
        assert_eq!(looks(&conntrack(STATE, 0, 8)), Matches::None);
        assert_eq!(looks(&conntrack(STATE, STATE, 8)), Matches::All);
        assert_eq!(looks(&conntrack(STATE, 0, 2 | 4)), Matches::All);
        assert_eq!(looks(&conntrack(STATE | ALIAS, 0, 2)), Matches::All);
        assert_eq!(looks(&conntrack(STATE | 2, 0, 2)), Matches::Some);
        assert_eq!(looks(&conntrack(2, 0, 0)), Matches::Some);
        assert_eq!(looks(&conntrack(STATE, 0, 1 << 7)), Matches::Some);
        assert_eq!(looks(&[]), Matches::Some);
    }

    #[test]
    fn before_conntrack_all_packets_are_invalid() {
        let state = |mask: u32| xt_match("state", 0, &mask.to_ne_bytes(), Seen::BeforeConntrack);
        assert_eq!(state(2), Matches::None);
        assert_eq!(state(1), Matches::All);
    }
}
