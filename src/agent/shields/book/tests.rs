//! The book against a host that is played: whatever happens, the host comes to have what is
//! wanted.

use proptest::prelude::*;

use super::*;
use crate::api::shield::{Action, PortMatch, ShieldStatus};

fn key(number: u8) -> SessionKey {
    format!("s{number}").parse().unwrap()
}

fn shield(number: u8, priority: u16) -> Shield {
    Shield {
        name: key(number),
        priority,
        ttl: None,
        ingress_vnic: None,
        source_prefix: None,
        destination_prefix: None,
        protocol: None,
        source_port: PortMatch::default(),
        destination_port: PortMatch::default(),
        tcp_flags: None,
        tcp_flags_mask: None,
        action: Action::Drop,
        police: None,
    }
}

fn entry(number: u8, until: Option<Instant>) -> Entry {
    Entry {
        shield: shield(number, 0),
        until,
    }
}

/// A host: names, what they are, and until when.
#[derive(Default)]
struct Host {
    shields: HashMap<SessionKey, (Shield, Instant)>,
    asked: usize,
}

impl Host {
    /// Carries a plan out; `is_heard`: the answer arrives.
    fn carry_out(&mut self, book: &mut Book, now: Instant, is_heard: bool) {
        let plan = book.plan(now);
        for name in &plan.end {
            self.shields.remove(name);
        }
        book.asking(&plan.ask, now);
        self.asked += plan.ask.len();
        for shield in &plan.ask {
            let ttl = Duration::from_secs(shield.ttl.unwrap().get().into());
            let own = (without_time(shield), now + ttl);
            self.shields.insert(shield.name.clone(), own);
        }
        if is_heard {
            book.ended(&plan.end);
            let of = |shield: &Shield| ShieldResult {
                name: shield.name.clone(),
                result: ShieldStatus::Installed,
                error: None,
            };
            let results: Vec<_> = plan.ask.iter().map(of).collect();
            book.answered(&results, now);
        }
    }

    fn has(&self, now: Instant) -> HashMap<SessionKey, Shield> {
        let live = self.shields.iter().filter(|(_, (_, until))| *until > now);
        live.map(|(name, (shield, _))| (name.clone(), shield.clone()))
            .collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, u16, Option<u64>),
    Remove(u8),
    Mirror(usize, Vec<(u8, Option<u64>)>),
    Pass(u64),
    Lose,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = || proptest::option::of(1u64..4_000);
    let elements = proptest::collection::vec((10u8..20, end()), 0..8);
    let step = prop_oneof![
        (0u8..6, 0u16..3, end()).prop_map(|(name, priority, end)| Step::Add(name, priority, end)),
        (0u8..6).prop_map(Step::Remove),
        (0usize..2, elements).prop_map(|(set, all)| Step::Mirror(set, all)),
        (1u64..900).prop_map(Step::Pass),
        Just(Step::Lose),
        Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a beginning for a clock that is played"
)]
fn beginning() -> Instant {
    Instant::now()
}

proptest! {
    #[test]
    fn the_host_comes_to_have_what_is_wanted_and_nothing_else(steps in steps()) {
        const MAXIMUM: usize = 7;
        let mut now = beginning();
        let mut book = Book::new(Duration::from_secs(600), MAXIMUM, 2);
        let mut host = Host::default();
        // What the oracle wants: commands, then sets, by name; a name of both is the command's.
        let mut own: BTreeMap<SessionKey, Entry> = BTreeMap::new();
        let mut sets = [BTreeMap::new(), BTreeMap::new()];
        for step in steps {
            let at = |seconds: Option<u64>| seconds.map(|end| now + Duration::from_secs(end));
            let mut is_heard = true;
            match step {
                Step::Add(name, priority, end) => {
                    let new = Entry { shield: shield(name, priority), until: at(end) };
                    own.insert(key(name), new.clone());
                    book.add(key(name), new);
                }
                Step::Remove(name) => {
                    own.retain(|_, entry| entry.until.is_none_or(|until| until > now));
                    prop_assert_eq!(book.remove(&key(name)), own.remove(&key(name)).is_some());
                }
                Step::Mirror(set, elements) => {
                    // Sets name their elements apart from each other's.
                    let elements = elements.into_iter().map(|(name, end)| {
                        let number = name + 10 * u8::try_from(set).unwrap();
                        (key(number), entry(number, at(end)))
                    });
                    let elements: BTreeMap<_, _> = elements.collect();
                    sets[set] = elements.clone();
                    book.mirror(set, elements);
                }
                Step::Pass(seconds) => {
                    // As often as the agent looks.
                    for _ in 0..seconds {
                        now += Duration::from_secs(1);
                        host.carry_out(&mut book, now, true);
                    }
                }
                Step::Lose => is_heard = false,
                Step::Restart => {
                    host.shields.clear();
                    book.upheaval();
                }
            }
            host.carry_out(&mut book, now, is_heard);
            let live = |entry: &&Entry| entry.until.is_none_or(|until| until > now);
            let wanted = own.values().chain(sets.iter().flat_map(BTreeMap::values));
            let wanted: HashMap<_, _> = wanted
                .filter(live)
                .take(MAXIMUM)
                .map(|entry| (entry.shield.name.clone(), entry.shield.clone()))
                .collect();
            let mut has = host.has(now);
            // One whose end has just come may outlive it by what a second was rounded up.
            has.retain(|name, _| wanted.contains_key(name) || host.shields[name].1 > now + SLACK);
            prop_assert_eq!(has, wanted);
        }
    }
}

#[test]
fn a_shield_without_an_end_is_asked_for_at_half_its_time_and_no_more_often() {
    let start = beginning();
    let mut book = Book::new(Duration::from_secs(600), 10, 0);
    let mut host = Host::default();
    book.add(key(1), entry(1, None));
    for second in 0..6_000 {
        let now = start + Duration::from_secs(second);
        host.carry_out(&mut book, now, true);
        assert!(host.has(now).contains_key(&key(1)), "{second}");
    }
    assert_eq!(host.asked, 6_000 / 301 + 1);
}

#[test]
fn what_the_host_refuses_is_told_and_asked_for_again_later() {
    let start = beginning();
    let mut book = Book::new(Duration::from_secs(600), 1, 0);
    book.add(key(1), entry(1, None));
    book.add(key(2), entry(2, None));
    let plan = book.plan(start);
    assert_eq!(plan.ask.len(), 1);
    book.asking(&plan.ask, start);
    let refused = ShieldResult {
        name: key(1),
        result: ShieldStatus::TableFull,
        error: None,
    };
    book.answered(&[refused], start);
    let standings: Vec<_> = book
        .standings(start)
        .map(|(_, _, standing)| standing)
        .collect();
    let why = Standing::Refused("table-full".to_owned());
    assert_eq!(standings, [why, Standing::LeftOut]);
    assert_eq!(book.plan(start + RETRY / 2), Plan::default());
    assert_eq!(book.plan(start + RETRY).ask.len(), 1);
    assert!(book.remove(&key(1)));
    assert_eq!(book.plan(start + RETRY).ask[0].name, key(2));
}
