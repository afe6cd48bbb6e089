//! Tables of iptables and ip6tables, of the kind that nftables does not know.
//!
//! *Promises*: only tables that are there are read: a question for another would make it.
//! Entries are walked within the bytes that the kernel gave, whatever their lengths say.
//! *Refuses*: nothing.
//! *Caller's duty*: CAP_NET_ADMIN.
//! *Standard*: include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h,
//! netfilter/x_tables.h.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

use super::words::{Danger, Matches, is_log, of_match, of_target, xt_match};
use super::{Outcome, Rule, Ruleset, Seen, Verdict};
use crate::agent::kernel::options;
use crate::agent::kernel::wire::{native16, native32, text};

/// Bytes of a table's name.
const NAME: usize = 32;
/// Bytes of `struct ipt_getinfo`.
const INFO: usize = 84;
/// Bytes of `struct ipt_get_entries` before its entries.
const ENTRIES: usize = 40;
/// `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, and those of IPv6.
const SO_GET_INFO: i32 = 64;
const SO_GET_ENTRIES: i32 = 65;

/// Bytes of `struct xt_entry_match` and `xt_entry_target` before what is theirs.
const EXTENSION: usize = 32;
/// Bytes of a name in them.
const EXTENSION_NAME: usize = 29;

const HOOK_PREROUTING: usize = 0;
const HOOK_FORWARD: usize = 2;
const HOOK_POSTROUTING: usize = 4;

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(in crate::agent::kernel) enum Family {
    /// iptables
    V4,
    /// ip6tables
    V6,
}

/// Where an entry has its fields.
struct Layout {
    /// Flags of addresses and interfaces, and which of them makes a jump a goto.
    flags: usize,
    goto: u8,
    target_offset: usize,
    next_offset: usize,
    /// What changes without a change: `comefrom`, and the counters.
    comefrom: usize,
    counters: usize,
    /// Matches begin here; the target lies behind them.
    elements: usize,
}

impl Family {
    pub(in crate::agent::kernel) const ALL: [Self; 2] = [Self::V4, Self::V6];

    const fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    const fn layout(self) -> Layout {
        match self {
            Self::V4 => Layout {
                flags: 82,
                goto: 0x02,
                target_offset: 88,
                next_offset: 90,
                comefrom: 92,
                counters: 96,
                elements: 112,
            },
            Self::V6 => Layout {
                flags: 131,
                goto: 0x04,
                target_offset: 140,
                next_offset: 142,
                comefrom: 144,
                counters: 152,
                elements: 168,
            },
        }
    }

    /// Socket family and level of options.
    const fn socket(self) -> (i32, i32) {
        match self {
            Self::V4 => (libc::AF_INET, libc::SOL_IP),
            Self::V6 => (libc::AF_INET6, libc::SOL_IPV6),
        }
    }
}

/// Names of the tables that are there.
pub(in crate::agent::kernel) fn names(family: Family) -> Vec<String> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    // Without the module there is no such file.
    let names = fs::read_to_string(path).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

/// A table as the kernel gave it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::agent::kernel) struct Table {
    family: Family,
    name: String,
    /// Where the hooks begin, and their ends, and how many entries there are.
    info: Vec<u8>,
    entries: Vec<u8>,
}

/// How often a table is read anew because it was replaced meanwhile.
const TRIES: usize = 5;

/// Reads a table.
pub(in crate::agent::kernel) fn read(family: Family, name: &str) -> io::Result<Table> {
    let mut table = read_once(family, name);
    for _ in 1..TRIES {
        match table {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            table => return table,
        }
        table = read_once(family, name);
    }
    table
}

fn read_once(family: Family, name: &str) -> io::Result<Table> {
    let (domain, level) = family.socket();
    let socket = options::plain_socket(domain)?;
    let length = name.len().min(NAME - 1);

    let mut info = vec![0; INFO];
    info[..length].copy_from_slice(&name.as_bytes()[..length]);
    options::get(&socket, level, SO_GET_INFO, &mut info)?;
    let size = native32(&info[INFO - 4..]).unwrap_or_default();

    let mut entries = vec![0; ENTRIES + size as usize];
    entries[..length].copy_from_slice(&name.as_bytes()[..length]);
    entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    options::get(&socket, level, SO_GET_ENTRIES, &mut entries)?;
    entries.drain(..ENTRIES);
    Ok(Table {
        family,
        name: name.to_owned(),
        info,
        entries,
    })
}

impl Table {
    /// A number that differs if rules differ; what packets count is left out.
    pub(in crate::agent::kernel) fn digest(mut self) -> u64 {
        let layout = self.family.layout();
        let mut at = 0;
        while let Some(length) = entry_length(&self.entries, at, &layout) {
            for (start, bytes) in [(layout.comefrom, 4), (layout.counters, 16)] {
                if let Some(changing) = self.entries.get_mut(at + start..at + start + bytes) {
                    changing.fill(0);
                }
            }
            at += length;
        }
        let mut hasher = DefaultHasher::new();
        (self.family, self.name, self.info, self.entries).hash(&mut hasher);
        hasher.finish()
    }

    /// Its rules for what is forwarded.
    pub(in crate::agent::kernel) fn add_to(&self, ruleset: &mut Ruleset) {
        // Only a connection's first packet comes to `nat`.
        if self.name == "nat" {
            return;
        }
        let label = |chain: &str| format!("{} {} {chain}", self.family.program(), self.name);
        let hooks = self.hooks();
        let layout = self.family.layout();

        // Chains by where they begin, as jumps name them; base chains stand at their hooks.
        let mut chains: BTreeMap<usize, String> = BTreeMap::new();
        let mut at = 0;
        while let Some(length) = entry_length(&self.entries, at, &layout) {
            let entry = &self.entries[at..at + length];
            if let Some((_, _, name)) = hooks.iter().find(|(_, start, _)| *start == at) {
                chains.insert(at, label(name));
            } else if let Some(name) = chain_name(entry, &layout) {
                chains.insert(at + length, label(name));
            }
            at += length;
        }
        self.add_rules(&chains, ruleset);
        for (hook, start, _) in &hooks {
            let Some(name) = chains.get(start) else {
                continue;
            };
            let is_before = *hook == HOOK_PREROUTING && self.name == "raw";
            let seen = match (is_forwarding(*hook), is_before) {
                (false, _) => continue,
                (true, true) => Seen::BeforeConntrack,
                (true, false) => Seen::Established,
            };
            ruleset.bases.insert((name.clone(), seen));
        }
    }

    fn add_rules(&self, chains: &BTreeMap<usize, String>, ruleset: &mut Ruleset) {
        let layout = self.family.layout();
        let mut at = 0;
        while let Some(length) = entry_length(&self.entries, at, &layout) {
            let entry = &self.entries[at..at + length];
            if let Some((_, chain)) = chains.range(..=at).next_back()
                && chain_name(entry, &layout).is_none()
            {
                let rule = read_rule(entry, at + length, &layout, chains);
                ruleset.chains.entry(chain.clone()).or_default().push(rule);
            }
            at += length;
        }
    }

    /// The valid hooks: number, where they begin, name.
    fn hooks(&self) -> Vec<(usize, usize, &'static str)> {
        let word = |at: usize| self.info.get(at..at + 4).and_then(native32);
        let valid = word(NAME).unwrap_or_default();
        ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]
            .into_iter()
            .enumerate()
            .filter(|(hook, _)| valid & 1 << hook != 0)
            .filter_map(|(hook, name)| Some((hook, word(NAME + 4 + 4 * hook)? as usize, name)))
            .collect()
    }
}

fn is_forwarding(hook: usize) -> bool {
    [HOOK_PREROUTING, HOOK_FORWARD, HOOK_POSTROUTING].contains(&hook)
}

/// Bytes of the entry at `at`, if there is a whole one.
fn entry_length(entries: &[u8], at: usize, layout: &Layout) -> Option<usize> {
    let next = at + layout.next_offset;
    let length = usize::from(native16(entries.get(next..next + 2)?)?);
    (length >= layout.elements && at + length <= entries.len()).then_some(length)
}

/// A match or a target: name, revision, and what is its own.
type Extension<'a> = (&'a str, u8, &'a [u8]);

/// The extension at the start of `bytes`, and its length.
fn extension(bytes: &[u8]) -> Option<(Extension<'_>, usize)> {
    let length = usize::from(native16(bytes.get(..2)?)?);
    let own = bytes.get(EXTENSION..length)?;
    let name = text(&bytes[2..2 + EXTENSION_NAME])?;
    Some(((name, bytes[EXTENSION - 1], own), length))
}

fn target<'a>(entry: &'a [u8], layout: &Layout) -> Option<Extension<'a>> {
    let at = native16(entry.get(layout.target_offset..layout.target_offset + 2)?)?;
    Some(extension(entry.get(usize::from(at)..)?)?.0)
}

/// The name of the chain that begins behind an entry: `ERROR` stands before each.
fn chain_name<'a>(entry: &'a [u8], layout: &Layout) -> Option<&'a str> {
    match target(entry, layout)? {
        ("ERROR", _, name) => text(name),
        _ => None,
    }
}

fn read_rule(entry: &[u8], next: usize, layout: &Layout, chains: &BTreeMap<usize, String>) -> Rule {
    let matches = matches(entry, layout);
    let (name, _, own) = target(entry, layout).unwrap_or_default();
    let verdict = match name {
        "" => standard(own, next, is_goto(entry, layout), chains),
        "REJECT" | "TPROXY" | "SYNPROXY" | "NFQUEUE" => Verdict::End,
        _ => Verdict::Continue,
    };
    let does_something = verdict != Verdict::Continue || !(name.is_empty() || is_log(name));
    let mut hazards: Vec<String> = of_target(name)
        .map(|_| name.to_owned())
        .into_iter()
        .collect();
    // -4 is the verdict QUEUE.
    if name.is_empty() && own.get(..4).and_then(native32) == Some(-4_i32 as u32) {
        hazards.push("QUEUE".to_owned());
    }
    hazards.extend(
        matches
            .iter()
            .filter(|(name, _, _)| does_something && of_match(name) == Some(Danger::Counts))
            .map(|(name, _, _)| (*name).to_owned()),
    );
    let is_any = entry[..layout.flags].iter().all(|byte| *byte == 0)
        && entry[layout.flags] & !layout.goto == 0
        && entry[layout.flags + 1] == 0;
    let outcomes = Seen::ALL.map(|seen| {
        let own = if is_any { Matches::All } else { Matches::Some };
        let how = matches.iter().fold(own, |how, (name, revision, info)| {
            how.and(xt_match(name, *revision, info, seen))
        });
        (how != Matches::None).then(|| Outcome {
            is_sure: how == Matches::All,
            verdicts: vec![verdict.clone()],
        })
    });
    Rule { hazards, outcomes }
}

fn matches<'a>(entry: &'a [u8], layout: &Layout) -> Vec<Extension<'a>> {
    let end = entry
        .get(layout.target_offset..layout.target_offset + 2)
        .and_then(native16)
        .unwrap_or_default();
    let mut found = Vec::new();
    let mut rest = entry
        .get(layout.elements..usize::from(end))
        .unwrap_or_default();
    while let Some((extension, length)) = extension(rest) {
        found.push(extension);
        rest = &rest[length..];
    }
    found
}

fn is_goto(entry: &[u8], layout: &Layout) -> bool {
    entry[layout.flags] & layout.goto != 0
}

/// The standard target: a verdict below 0, or where it jumps to.
fn standard(own: &[u8], next: usize, is_goto: bool, chains: &BTreeMap<usize, String>) -> Verdict {
    let number = own.get(..4).and_then(native32).unwrap_or_default() as i32;
    match usize::try_from(number) {
        // `XT_RETURN`
        Err(_) if number == -5 => Verdict::Return,
        Err(_) => Verdict::End,
        Ok(to) if to == next => Verdict::Continue,
        Ok(to) => match chains.get(&to) {
            Some(chain) if is_goto => Verdict::Goto(chain.clone()),
            Some(chain) => Verdict::Jump(chain.clone()),
            None => Verdict::Continue,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_rules_or_none(
            v6: bool,
            info in prop::collection::vec(any::<u8>(), 0..100),
            mut entries in prop::collection::vec(any::<u8>(), 0..800),
            lengths in prop::collection::vec((0_usize..800, 0_u16..300), 0..8),
        ) {
            // Some lengths that could be.
            for (at, length) in lengths {
                if let Some(place) = entries.get_mut(at..at + 2) {
                    place.copy_from_slice(&length.to_ne_bytes());
                }
            }
            let family = if v6 { Family::V6 } else { Family::V4 };
            let table = Table { family, name: "filter".to_owned(), info, entries };
            let mut ruleset = Ruleset::default();
            table.add_to(&mut ruleset);
            ruleset.hazards();
            table.digest();
        }
    }
}
