//! Rulesets, as far as they need to see every packet of a connection.
//!
//! | module | what |
//! |---|---|
//! | [`nft`] | nftables' rules |
//! | [`iptables`] | iptables' rules (the older way, not through nftables) |
//! | [`words`] | what needs every packet, and how matches of conntrack's state are read |
//!
//! A ruleset is not evaluated: nothing here says whether a packet passes. It is only asked
//! which rules packets of *established* connections could come to: the one match that counts
//! is that of conntrack's state, all others may match or not.
//!
//! *Promises*: a rule that needs to see packets is found, if packets of established connections
//! can come to it from a base chain of forwarding; after `ct state established accept` they do
//! not.
//! *Refuses*: chains of type `nat`, which see the first packet of a connection only; input and
//! output.
//! *Caller's duty*: none.
//! *Standard*: nft(8), iptables-extensions(8).

pub(super) mod iptables;
pub(super) mod nft;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use crate::agent::network::Hazard;

/// How packets of established connections look to a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Seen {
    /// Before conntrack saw them: as if they were invalid.
    BeforeConntrack,
    /// As established.
    Established,
}

impl Seen {
    const ALL: [Self; 2] = [Self::BeforeConntrack, Self::Established];

    /// The bit of matches by state: `NF_CT_STATE_INVALID_BIT`, `NF_CT_STATE_BIT` of
    /// `IP_CT_ESTABLISHED`; xtables has the same ones.
    const fn bit(self) -> u32 {
        match self {
            Self::BeforeConntrack => 1,
            Self::Established => 2,
        }
    }
}

/// What a rule does with a packet that it matches.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Verdict {
    /// On to the next rule.
    Continue,
    /// No rule of this hook sees it any more.
    End,
    /// Back to the rule after the jump.
    Return,
    /// To a chain, and back.
    Jump(String),
    /// To a chain, and back to where this one came from.
    Goto(String),
}

/// What a rule can do to packets that look alike.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Outcome {
    /// It matches them all.
    is_sure: bool,
    /// One of these happens.
    verdicts: Vec<Verdict>,
}

/// A rule.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Rule {
    /// What in it needs to see every packet, as the ruleset calls it.
    hazards: Vec<String>,
    /// By [`Seen`]. `None`: it matches none.
    outcomes: [Option<Outcome>; 2],
}

/// Chains by name, and those where packets that are forwarded come in.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Ruleset {
    chains: BTreeMap<String, Vec<Rule>>,
    bases: BTreeSet<(String, Seen)>,
}

impl Ruleset {
    /// What packets of established connections come to.
    pub(super) fn hazards(&self) -> BTreeSet<Hazard> {
        let mut walk = Walk {
            ruleset: self,
            ends: BTreeMap::new(),
            found: BTreeSet::new(),
        };
        for (chain, seen) in &self.bases {
            walk.chain(chain, *seen);
        }
        walk.found
    }
}

/// A walk from the base chains; each chain is walked once for each way of being seen.
struct Walk<'a> {
    ruleset: &'a Ruleset,
    /// Chains that no packet gets past.
    ends: BTreeMap<(&'a str, Seen), bool>,
    found: BTreeSet<Hazard>,
}

impl<'a> Walk<'a> {
    /// Whether no packet comes back from that chain.
    fn chain(&mut self, name: &str, seen: Seen) -> bool {
        let Some((name, rules)) = self.ruleset.chains.get_key_value(name) else {
            return false;
        };
        if let Some(ends) = self.ends.get(&(name.as_str(), seen)) {
            return *ends;
        }
        // Should chains ever jump in a circle, this one is taken for one that comes back.
        self.ends.insert((name, seen), false);
        let ends = self.rules(name, rules, seen);
        self.ends.insert((name, seen), ends);
        ends
    }

    fn rules(&mut self, chain: &str, rules: &'a [Rule], seen: Seen) -> bool {
        for rule in rules {
            let Some(outcome) = &rule.outcomes[seen as usize] else {
                continue;
            };
            self.found.extend(rule.hazards.iter().map(|what| Hazard {
                what: what.clone(),
                chain: chain.to_owned(),
            }));
            let mut all_end = true;
            let mut none_goes_on = true;
            for verdict in &outcome.verdicts {
                let (ends, goes_on) = match verdict {
                    Verdict::Continue => (false, true),
                    Verdict::End => (true, false),
                    Verdict::Return => (false, false),
                    Verdict::Jump(to) => {
                        let ends = self.chain(to, seen);
                        (ends, !ends)
                    }
                    Verdict::Goto(to) => (self.chain(to, seen), false),
                };
                all_end &= ends;
                none_goes_on &= !goes_on;
            }
            if outcome.is_sure && none_goes_on {
                return all_end;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(is_sure: bool, verdicts: &[Verdict], hazards: &[&str]) -> Rule {
        let outcome = Some(Outcome {
            is_sure,
            verdicts: verdicts.to_vec(),
        });
        Rule {
            hazards: hazards.iter().map(|&what| what.to_owned()).collect(),
            outcomes: [outcome.clone(), outcome],
        }
    }

    fn found(chains: &[(&str, Vec<Rule>)]) -> Vec<String> {
        let ruleset = Ruleset {
            chains: chains
                .iter()
                .map(|(name, rules)| ((*name).to_owned(), rules.clone()))
                .collect(),
            bases: [("base".to_owned(), Seen::Established)].into(),
        };
        ruleset
            .hazards()
            .into_iter()
            .map(|hazard| format!("{} in {}", hazard.what, hazard.chain))
            .collect()
    }

    fn jump(to: &str) -> Verdict {
        Verdict::Jump(to.to_owned())
    }

    #[test]
    fn what_lies_behind_a_sure_end_is_not_reached() {
        let limit = rule(false, &[Verdict::End], &["limit"]);
        let maybe = rule(false, &[Verdict::End], &[]);
        let sure = rule(true, &[Verdict::End], &[]);
        let base = |first: &Rule| [("base", vec![first.clone(), limit.clone()])];
        assert_eq!(found(&base(&maybe)), ["limit in base"]);
        assert!(found(&base(&sure)).is_empty());
    }

    #[test]
    fn an_end_in_a_chain_that_is_surely_jumped_to_ends_the_caller() {
        let limit = rule(false, &[Verdict::End], &["limit"]);
        let ends = vec![rule(true, &[Verdict::End], &[])];
        let with = |is_sure| {
            found(&[
                (
                    "base",
                    vec![rule(is_sure, &[jump("a")], &[]), limit.clone()],
                ),
                ("a", ends.clone()),
            ])
        };
        assert!(with(true).is_empty());
        assert_eq!(with(false), ["limit in base"]);
    }

    #[test]
    fn a_goto_does_not_come_back_to_its_chain_but_to_the_caller() {
        let limit = rule(false, &[Verdict::End], &["limit"]);
        let quota = rule(false, &[Verdict::End], &["quota"]);
        let goto = rule(true, &[Verdict::Goto("b".to_owned())], &[]);
        assert_eq!(
            found(&[
                ("base", vec![rule(true, &[jump("a")], &[]), limit]),
                ("a", vec![goto, quota]),
                ("b", vec![rule(false, &[Verdict::End], &[])]),
            ]),
            ["limit in base"]
        );
    }

    #[test]
    fn chains_that_nobody_jumps_to_and_circles_do_no_harm() {
        let queue = rule(false, &[Verdict::End], &["queue"]);
        assert_eq!(
            found(&[
                ("base", vec![rule(false, &[jump("a"), Verdict::End], &[])]),
                ("a", vec![rule(true, &[jump("base")], &["dup"])]),
                ("input", vec![queue]),
            ]),
            ["dup in a"]
        );
    }
}
