//! Rules of nftables, as netlink tells them.
//!
//! *Promises*: every rule that packets of established connections could come to is looked at;
//! what is not understood may match.
//! *Refuses*: nothing. A kernel without nftables has no rules.
//! *Caller's duty*: CAP_NET_ADMIN.
//! *Standard*: include/uapi/linux/netfilter/nf_tables.h, nf_tables_compat.h; nft(8).

mod expressions;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use expressions::{hazards_of, read_rule, sets_needed};

use super::{Ruleset, Seen, Verdict};
use crate::agent::kernel::socket::table;
use crate::agent::kernel::wire::{Request, attribute, attributes, nested, network32, split, text};

/// The subsystem (`NFNL_SUBSYS_NFTABLES`), where a message's type has it.
const SUBSYSTEM: u16 = 10 << 8;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;
const NEWSET: u16 = SUBSYSTEM | 9;
const GETSET: u16 = SUBSYSTEM | 10;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const GETSETELEM: u16 = SUBSYSTEM | 13;
/// `NFT_MSG_NEWGEN`: a ruleset was loaded, or changed.
pub(in crate::agent::kernel) const NEWGEN: u16 = SUBSYSTEM | 15;

/// In messages of all kinds the table's name is the first attribute.
const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_OBJECTS: u16 = 15;
const SET_EXPRESSION: u16 = 17;
const SET_EXPRESSIONS: u16 = 18;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
/// An element of a list (`NFTA_LIST_ELEM`).
const LIST_ELEMENT: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// `NFT_SET_INTERVAL`
const INTERVAL: u32 = 4;

/// Up to this priority conntrack has not seen a packet (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;

/// Families, by number, name, and the hooks that packets come to which are forwarded.
const FAMILIES: [(u8, &str, &[u32]); 5] = [
    // Prerouting, forward, postrouting; the ingress of `inet` is the sixth.
    (1, "inet", &[0, 2, 4, 5]),
    (2, "ip", &[0, 2, 4]),
    (10, "ip6", &[0, 2, 4]),
    // What is routed comes in to a bridge's own interface, or goes out by it.
    (7, "bridge", &[0, 1, 2, 3, 4]),
    // Ingress and egress of devices.
    (5, "netdev", &[0, 1]),
];

/// A set: what of it rules depend on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Set {
    /// What its elements, or the objects it maps to, need to see.
    hazards: Vec<String>,
    /// Its elements are ranges.
    has_ranges: bool,
    /// Keys and verdicts, if they were asked for.
    elements: Option<Vec<(Vec<u8>, Option<Verdict>)>>,
}

/// Sets by table (`inet filter`) and name.
type Sets = BTreeMap<(String, String), Set>;

/// A rule as it came: chain (`inet filter forward`), table, and its expressions.
type RawRule = (String, String, Vec<u8>);

/// Adds all rules to `ruleset`.
pub(in crate::agent::kernel) async fn add_all(ruleset: &mut Ruleset) -> io::Result<()> {
    let chains = list(GETCHAIN, NEWCHAIN, read_chain).await?;
    if chains.is_empty() {
        return Ok(());
    }
    for (name, bases) in chains {
        for seen in bases {
            ruleset.bases.insert((name.clone(), seen));
        }
        ruleset.chains.entry(name).or_default();
    }
    let mut sets: Sets = list(GETSET, NEWSET, read_set).await?.into_iter().collect();
    let rules = list(GETRULE, NEWRULE, read_raw).await?;
    let needed: BTreeSet<_> = rules
        .iter()
        .flat_map(|(_, table, bytes)| sets_needed(bytes).map(|set| (table.clone(), set.to_owned())))
        .collect();
    for (table, name) in needed {
        let elements = read_elements(&table, &name).await?;
        if let Some(set) = sets.get_mut(&(table, name)) {
            set.elements = Some(elements);
        }
    }
    for (chain, table, bytes) in rules {
        let rule = read_rule(&table, &bytes, &sets);
        ruleset.chains.entry(chain).or_default().push(rule);
    }
    Ok(())
}

async fn list<T>(
    ask: u16,
    answer: u16,
    mut read: impl FnMut(u8, &[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    let request = Request::new(ask, &[libc::AF_UNSPEC as u8, 0, 0, 0]);
    let found = table(libc::NETLINK_NETFILTER, &request, |message| {
        let (header, bytes) = split::<4>(message.payload)?;
        (message.kind == answer).then(|| read(header[0], bytes))?
    })
    .await;
    match found {
        // The kernel, or the namespace, has no nftables.
        Err(error) if is_unknown(&error) => Ok(Vec::new()),
        found => found,
    }
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)
    )
}

/// `inet filter`
fn table_name(family: u8, bytes: &[u8]) -> Option<String> {
    let (_, family, _) = FAMILIES.iter().find(|(number, _, _)| *number == family)?;
    Some(format!(
        "{family} {}",
        attribute(bytes, TABLE).and_then(text)?
    ))
}

/// A chain, and as what it sees packets that are forwarded.
fn read_chain(family: u8, bytes: &[u8]) -> Option<(String, Vec<Seen>)> {
    let table = table_name(family, bytes)?;
    let name = attribute(bytes, CHAIN_NAME).and_then(text)?;
    let is_nat = attribute(bytes, CHAIN_TYPE).and_then(text) == Some("nat");
    let bases = match attribute(bytes, CHAIN_HOOK) {
        Some(hook) if !is_nat => seen_at(family, hook),
        _ => Vec::new(),
    };
    Some((format!("{table} {name}"), bases))
}

fn seen_at(family: u8, hook: &[u8]) -> Vec<Seen> {
    let number = nested(hook, &[HOOK_NUMBER]).and_then(network32);
    let priority = nested(hook, &[HOOK_PRIORITY]).and_then(network32);
    let is_forwarding = FAMILIES
        .iter()
        .any(|(of, _, hooks)| *of == family && number.is_some_and(|hook| hooks.contains(&hook)));
    if !is_forwarding {
        return Vec::new();
    }
    let is_early = priority.unwrap_or_default() as i32 <= CONNTRACK;
    match (family, number) {
        // Whether conntrack works in a bridge is a module's matter.
        (7, _) => Seen::ALL.to_vec(),
        (5, Some(0)) | (1, Some(5)) => vec![Seen::BeforeConntrack],
        (_, Some(0)) if family != 5 && is_early => vec![Seen::BeforeConntrack],
        _ => vec![Seen::Established],
    }
}

fn read_set(family: u8, bytes: &[u8]) -> Option<((String, String), Set)> {
    let table = table_name(family, bytes)?;
    let name = attribute(bytes, SET_NAME).and_then(text)?;
    let flags = attribute(bytes, SET_FLAGS).and_then(network32);
    let mut set = Set {
        has_ranges: flags.unwrap_or_default() & INTERVAL != 0,
        ..Set::default()
    };
    for (kind, value) in attributes(bytes) {
        match kind {
            SET_EXPRESSION => set.hazards.extend(hazards_of(value)),
            SET_EXPRESSIONS => {
                let expressions = attributes(value).filter(|(kind, _)| *kind == LIST_ELEMENT);
                set.hazards
                    .extend(expressions.flat_map(|(_, expression)| hazards_of(expression)));
            }
            SET_OBJECTS => set.hazards.extend(
                network32(value)
                    .and_then(expressions::object)
                    .map(str::to_owned),
            ),
            _ => {}
        }
    }
    Some(((table, name.to_owned()), set))
}

fn read_raw(family: u8, bytes: &[u8]) -> Option<RawRule> {
    let table = table_name(family, bytes)?;
    let chain = attribute(bytes, RULE_CHAIN).and_then(text)?;
    let expressions = attribute(bytes, RULE_EXPRESSIONS).unwrap_or_default();
    Some((format!("{table} {chain}"), table, expressions.to_vec()))
}

/// The elements of a set, which may be gone by now.
async fn read_elements(of: &str, set: &str) -> io::Result<Vec<(Vec<u8>, Option<Verdict>)>> {
    let (family, name) = of.split_once(' ').unwrap_or_default();
    let number = FAMILIES
        .iter()
        .find_map(|(number, of, _)| (*of == family).then_some(*number));
    let request = Request::new(GETSETELEM, &[number.unwrap_or_default(), 0, 0, 0])
        .with(TABLE, &terminated(name))
        .with(ELEMENTS_SET, &terminated(set));
    let pieces = table(libc::NETLINK_NETFILTER, &request, |message| {
        let (_, bytes) = split::<4>(message.payload)?;
        (message.kind == NEWSETELEM).then(|| elements(of, bytes))
    })
    .await;
    match pieces {
        Err(error) if is_unknown(&error) => Ok(Vec::new()),
        pieces => Ok(pieces?.into_iter().flatten().collect()),
    }
}

fn elements(table: &str, bytes: &[u8]) -> Vec<(Vec<u8>, Option<Verdict>)> {
    let list = attribute(bytes, ELEMENTS).unwrap_or_default();
    attributes(list)
        .filter(|(kind, _)| *kind == LIST_ELEMENT)
        .map(|(_, element)| {
            let key = nested(element, &[ELEMENT_KEY, DATA_VALUE]).unwrap_or_default();
            let verdict = attribute(element, ELEMENT_DATA).and_then(|data| verdict(table, data));
            (key.to_vec(), verdict)
        })
        .collect()
}

/// A verdict in `NFTA_DATA_…`.
fn verdict(table: &str, data: &[u8]) -> Option<Verdict> {
    let inside = attribute(data, DATA_VERDICT)?;
    let code = attribute(inside, VERDICT_CODE).and_then(network32)? as i32;
    let chain = || {
        let name = attribute(inside, VERDICT_CHAIN).and_then(text);
        format!("{table} {}", name.unwrap_or_default())
    };
    Some(match code {
        // `NFT_CONTINUE`, `NFT_BREAK`, `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN`
        -1 | -2 => Verdict::Continue,
        -3 => Verdict::Jump(chain()),
        -4 => Verdict::Goto(chain()),
        -5 => Verdict::Return,
        _ => Verdict::End,
    })
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_chains_sets_and_rules_or_none(
            family in prop::sample::select(vec![0_u8, 1, 2, 5, 7, 10]),
            bytes: Vec<u8>,
        ) {
            read_chain(family, &bytes);
            read_set(family, &bytes);
            read_raw(family, &bytes);
            elements("inet t", &bytes);
            read_rule("inet t", &bytes, &Sets::new());
            sets_needed(&bytes).count();
        }
    }
}
