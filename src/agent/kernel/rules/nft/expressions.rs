//! Expressions of a rule, in turn.
//!
//! *Promises*: see [`super`].
//! *Refuses*: nothing.
//! *Caller's duty*: the elements of the sets that [`sets_needed`] names.
//! *Standard*: include/uapi/linux/netfilter/nf_tables.h.

use super::{DATA_VALUE, LIST_ELEMENT, Set, Sets, verdict};
use crate::agent::kernel::rules::words::{
    Danger, Matches, is_log, of_expression, of_match, of_target, xt_match,
};
use crate::agent::kernel::rules::{Outcome, Rule, Seen, Verdict};
use crate::agent::kernel::wire::{attribute, attributes, native32, nested, network32, text};

const NAME: u16 = 1;
const DATA: u16 = 2;

const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const BITWISE_SREG: u16 = 1;
const BITWISE_DREG: u16 = 2;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const BITWISE_OP: u16 = 6;
const CMP_SREG: u16 = 1;
const CMP_OP: u16 = 2;
const CMP_DATA: u16 = 3;
const LOOKUP_SET: u16 = 1;
const LOOKUP_SREG: u16 = 2;
const LOOKUP_DREG: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
const IMMEDIATE_DREG: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DYNSET_EXPRESSION: u16 = 7;
const DYNSET_EXPRESSIONS: u16 = 10;
const OBJREF_TYPE: u16 = 1;
const OBJREF_SET: u16 = 4;
const XT_NAME: u16 = 1;
const XT_REVISION: u16 = 2;
const XT_INFO: u16 = 3;

/// The register of verdicts.
const VERDICT_REGISTER: u32 = 0;

const CT_STATE: u32 = 0;
/// Packets, bytes and their mean, which conntrack does not count on the fast path.
const CT_COUNTS: [u32; 3] = [14, 15, 16];

/// Expressions that write or answer, if the attribute (a source register) is there.
const WRITERS: [(&str, u16); 4] = [("meta", 3), ("ct", 4), ("payload", 5), ("exthdr", 7)];

/// Expressions that neither match nor do anything to the packet.
const SILENT: [&str; 4] = ["counter", "log", "last", "flow_offload"];

/// Named objects by their type: those that need to see every packet.
pub(super) fn object(kind: u32) -> Option<&'static str> {
    match kind {
        2 => Some("quota"),
        4 => Some("limit"),
        5 => Some("connlimit"),
        10 => Some("synproxy"),
        _ => None,
    }
}

/// What one expression needs to see.
pub(super) fn hazards_of(expression: &[u8]) -> Option<String> {
    let name = attribute(expression, NAME).and_then(text)?;
    of_expression(name).map(|_| name.to_owned())
}

fn list(bytes: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    attributes(bytes)
        .filter(|(kind, _)| *kind == LIST_ELEMENT)
        .filter_map(|(_, expression)| {
            let name = attribute(expression, NAME).and_then(text)?;
            Some((name, attribute(expression, DATA).unwrap_or_default()))
        })
}

/// The sets whose elements must be known: maps to verdicts, and sets of conntrack's states.
pub(super) fn sets_needed(bytes: &[u8]) -> impl Iterator<Item = &str> {
    let mut state = None;
    list(bytes).filter_map(move |(name, data)| {
        let is_of_state = state.is_some() && number(data, LOOKUP_SREG) == state;
        if name == "ct" {
            state = state_register(data);
        }
        let is_map = number(data, LOOKUP_DREG) == Some(VERDICT_REGISTER);
        (name == "lookup" && (is_map || is_of_state))
            .then(|| attribute(data, LOOKUP_SET).and_then(text))?
    })
}

/// Reads a rule of that table.
pub(super) fn read_rule(table: &str, bytes: &[u8], sets: &Sets) -> Rule {
    let mut reader = Reader {
        table,
        sets,
        state: None,
        matches: [Matches::All; 2],
        verdicts: [vec![], vec![]],
        counting: Vec::new(),
        hazards: Vec::new(),
        does_something: false,
    };
    for (name, data) in list(bytes) {
        reader.take(name, data);
    }
    reader.rule()
}

/// Where conntrack's state is, and what was done to it: `state & mask ^ xor`.
#[derive(Clone, Copy)]
struct State {
    register: u32,
    mask: u32,
    xor: u32,
}

struct Reader<'a> {
    table: &'a str,
    sets: &'a Sets,
    state: Option<State>,
    /// By [`Seen`].
    matches: [Matches; 2],
    /// By [`Seen`]; empty: on to the next rule.
    verdicts: [Vec<Verdict>; 2],
    /// Hazards if the rule does something.
    counting: Vec<String>,
    hazards: Vec<String>,
    does_something: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, name: &str, data: &[u8]) {
        match name {
            "ct" => return self.conntrack(data),
            "bitwise" => return self.bitwise(data),
            "cmp" => return self.compare(data),
            "lookup" => return self.lookup(data),
            "immediate" => return self.immediate(data),
            _ if SILENT.contains(&name) => return,
            _ => {}
        }
        self.state = None;
        self.does_something |= is_writer(name, data);
        match of_expression(name) {
            Some(Danger::Acts) => self.act(name),
            Some(Danger::Counts) => self.counting.push(name.to_owned()),
            None => {}
        }
        match name {
            "dynset" => self.dynamic_set(data),
            "objref" => self.object_reference(data),
            "match" => return self.xt_match(data),
            "target" => self.xt_target(data),
            _ => {}
        }
        if [
            "reject", "queue", "tproxy", "synproxy", "masq", "nat", "redir",
        ]
        .contains(&name)
        {
            self.does_something = true;
            self.decide(&Verdict::End);
        } else if !is_writer(name, data) {
            self.narrow(Matches::Some);
        }
    }

    fn conntrack(&mut self, data: &[u8]) {
        self.does_something |= is_writer("ct", data);
        if number(data, CT_KEY).is_some_and(|key| CT_COUNTS.contains(&key)) {
            self.counting.push("ct bytes".to_owned());
        }
        self.state = state_register(data).map(|register| State {
            register,
            mask: u32::MAX,
            xor: 0,
        });
    }

    fn bitwise(&mut self, data: &[u8]) {
        let value = |kind| nested(data, &[kind, DATA_VALUE]).and_then(native32);
        let is_of_state = self.state.is_some_and(|state| {
            number(data, BITWISE_SREG) == Some(state.register)
                && number(data, BITWISE_DREG) == Some(state.register)
                && number(data, BITWISE_OP).unwrap_or_default() == 0
        });
        self.state = match (self.state, value(BITWISE_MASK), value(BITWISE_XOR)) {
            (Some(state), Some(mask), Some(xor)) if is_of_state => Some(State {
                register: state.register,
                mask: state.mask & mask,
                xor: (state.xor & mask) ^ xor,
            }),
            _ => None,
        };
    }

    fn compare(&mut self, data: &[u8]) {
        let value = nested(data, &[CMP_DATA, DATA_VALUE]).and_then(native32);
        let state = self
            .state
            .filter(|state| number(data, CMP_SREG) == Some(state.register));
        let (Some(state), Some(value)) = (state, value) else {
            return self.narrow(Matches::Some);
        };
        self.narrow_by(|seen| {
            let is_equal = state.of(seen) == value;
            match number(data, CMP_OP) {
                Some(0) => Matches::wholly(is_equal),
                Some(1) => Matches::wholly(!is_equal),
                _ => Matches::Some,
            }
        });
    }

    fn lookup(&mut self, data: &[u8]) {
        let name = attribute(data, LOOKUP_SET).and_then(text);
        let set = name.and_then(|name| self.set(name));
        self.counting
            .extend(set.iter().flat_map(|set| set.hazards.iter().cloned()));
        let is_map = number(data, LOOKUP_DREG) == Some(VERDICT_REGISTER);
        self.does_something |= is_map;
        let elements = set.and_then(|set| set.elements.as_deref());
        let state = self
            .state
            .filter(|state| number(data, LOOKUP_SREG) == Some(state.register))
            .filter(|_| set.is_some_and(Set::is_of_single_numbers));
        let is_inverted = number(data, LOOKUP_FLAGS).unwrap_or_default() & 1 != 0;
        for seen in Seen::ALL {
            let fitting: Vec<_> = elements
                .unwrap_or_default()
                .iter()
                .filter(|(key, _)| match state {
                    // Without a key it stands for all others.
                    Some(state) => key.is_empty() || native32(key) == Some(state.of(seen)),
                    None => true,
                })
                .collect();
            let how = match (state, elements) {
                (Some(_), Some(_)) => Matches::wholly(fitting.is_empty() == is_inverted),
                _ => Matches::Some,
            };
            self.matches[seen as usize] = self.matches[seen as usize].and(how);
            if is_map {
                let verdicts = fitting
                    .into_iter()
                    .filter_map(|(_, verdict)| verdict.clone());
                self.verdicts[seen as usize].extend(verdicts);
            }
        }
    }

    fn immediate(&mut self, data: &[u8]) {
        if number(data, IMMEDIATE_DREG) != Some(VERDICT_REGISTER) {
            self.state = None;
            return;
        }
        let verdict = attribute(data, IMMEDIATE_DATA).and_then(|data| verdict(self.table, data));
        self.does_something = true;
        self.decide(&verdict.unwrap_or(Verdict::Continue));
    }

    /// Adds to a set, with expressions that each element has.
    fn dynamic_set(&mut self, data: &[u8]) {
        let one = attribute(data, DYNSET_EXPRESSION);
        let several = attribute(data, DYNSET_EXPRESSIONS).unwrap_or_default();
        let several = attributes(several)
            .filter_map(|(kind, expression)| (kind == LIST_ELEMENT).then_some(expression));
        self.counting
            .extend(one.into_iter().chain(several).filter_map(hazards_of));
    }

    fn object_reference(&mut self, data: &[u8]) {
        let kind = number(data, OBJREF_TYPE).and_then(object);
        let set = attribute(data, OBJREF_SET).and_then(text);
        let of_set = set.and_then(|set| self.set(set)).map(|set| &set.hazards);
        let found = of_set.into_iter().flatten().map(String::as_str);
        for what in found.chain(kind) {
            // It answers by itself; the others only match.
            self.does_something |= what == "synproxy";
            self.counting.push(what.to_owned());
        }
    }

    fn xt_match(&mut self, data: &[u8]) {
        let name = attribute(data, XT_NAME).and_then(text).unwrap_or_default();
        let revision = number(data, XT_REVISION).unwrap_or_default() as u8;
        let info = attribute(data, XT_INFO).unwrap_or_default();
        if of_match(name).is_some() {
            self.counting.push(name.to_owned());
        }
        self.narrow_by(|seen| xt_match(name, revision, info, seen));
    }

    fn xt_target(&mut self, data: &[u8]) {
        let name = attribute(data, XT_NAME).and_then(text).unwrap_or_default();
        self.does_something |= !is_log(name);
        if of_target(name).is_some() {
            self.act(name);
        }
    }

    fn act(&mut self, name: &str) {
        self.hazards.push(name.to_owned());
    }

    fn decide(&mut self, verdict: &Verdict) {
        for verdicts in &mut self.verdicts {
            verdicts.push(verdict.clone());
        }
    }

    fn narrow(&mut self, how: Matches) {
        self.narrow_by(|_| how);
    }

    fn narrow_by(&mut self, how: impl Fn(Seen) -> Matches) {
        for seen in Seen::ALL {
            let matches = &mut self.matches[seen as usize];
            *matches = matches.and(how(seen));
        }
    }

    fn set(&self, name: &str) -> Option<&'a Set> {
        self.sets.get(&(self.table.to_owned(), name.to_owned()))
    }

    fn rule(mut self) -> Rule {
        if self.does_something {
            self.hazards.append(&mut self.counting);
        }
        let [before, after] = self.verdicts.map(|mut verdicts| {
            if verdicts.is_empty() {
                verdicts.push(Verdict::Continue);
            }
            verdicts
        });
        let outcome = |how: Matches, verdicts| {
            (how != Matches::None).then_some(Outcome {
                is_sure: how == Matches::All,
                verdicts,
            })
        };
        Rule {
            hazards: self.hazards,
            outcomes: [
                outcome(self.matches[0], before),
                outcome(self.matches[1], after),
            ],
        }
    }
}

impl Set {
    /// Whether its elements can be compared with a state; those without a key stand for the rest.
    fn is_of_single_numbers(&self) -> bool {
        let mut keys = self.elements.iter().flatten().map(|(key, _)| key.len());
        !self.has_ranges && keys.all(|length| length == 0 || length == 4)
    }
}

impl State {
    fn of(self, seen: Seen) -> u32 {
        (seen.bit() & self.mask) ^ self.xor
    }
}

fn state_register(data: &[u8]) -> Option<u32> {
    (number(data, CT_KEY) == Some(CT_STATE)).then(|| number(data, CT_DREG))?
}

fn is_writer(name: &str, data: &[u8]) -> bool {
    WRITERS
        .iter()
        .any(|(writer, source)| *writer == name && attribute(data, *source).is_some())
}

fn number(data: &[u8], kind: u16) -> Option<u32> {
    attribute(data, kind).and_then(network32)
}

#[cfg(test)]
#[path = "expressions_tests.rs"]
mod tests;
