use super::*;
use crate::agent::kernel::wire::Request;

/// `ct state established accept`, as Linux 6.18 gave it.
#[rustfmt::skip]
const ESTABLISHED_ACCEPT: [u8; 200] = [
    0x20, 0, 1, 0, 7, 0, 1, 0, b'c', b't', 0, 0, 0x14, 0, 2, 0,
    8, 0, 2, 0, 0, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 1,
    0x4c, 0, 1, 0, 0xc, 0, 1, 0, b'b', b'i', b't', b'w', b'i', b's', b'e', 0, 0x3c, 0, 2, 0,
    8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 1, 8, 0, 3, 0, 0, 0, 0, 4,
    8, 0, 6, 0, 0, 0, 0, 0, 0xc, 0, 4, 0, 8, 0, 1, 0, 2, 0, 0, 0,
    0xc, 0, 5, 0, 8, 0, 1, 0, 0, 0, 0, 0,
    0x2c, 0, 1, 0, 8, 0, 1, 0, b'c', b'm', b'p', 0, 0x20, 0, 2, 0,
    8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 1, 0xc, 0, 3, 0, 8, 0, 1, 0, 0, 0, 0, 0,
    0x30, 0, 1, 0, 0xe, 0, 1, 0, b'i', b'm', b'm', b'e', b'd', b'i', b'a', b't', b'e', 0, 0, 0,
    0x1c, 0, 2, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0x10, 0, 2, 0, 0xc, 0, 2, 0, 8, 0, 1, 0, 0, 0, 0, 1,
];

fn rule(bytes: &[u8]) -> Rule {
    read_rule("inet t", bytes, &Sets::new())
}

fn sure(verdict: Verdict) -> Option<Outcome> {
    Some(Outcome {
        is_sure: true,
        verdicts: vec![verdict],
    })
}

fn one(name: &str, data: impl FnOnce(Request) -> Request) -> Vec<u8> {
    let name = [name.as_bytes(), b"\0"].concat();
    let request = Request::new(0, &[]).with_nest(LIST_ELEMENT, |element| {
        element.with(NAME, &name).with_nest(DATA, data)
    });
    request.numbered(0, 0)[16..].to_vec()
}

fn accept() -> Vec<u8> {
    one("immediate", |data| {
        data.with(IMMEDIATE_DREG, &[0; 4])
            .with_nest(IMMEDIATE_DATA, |value| {
                value.with_nest(2, |verdict| verdict.with(1, &1_u32.to_be_bytes()))
            })
    })
}

fn state(mask: u32) -> Vec<u8> {
    let mut bytes = ESTABLISHED_ACCEPT[..152].to_vec();
    // The value in `NFTA_BITWISE_MASK`.
    bytes[92..96].copy_from_slice(&mask.to_ne_bytes());
    bytes
}

#[test]
fn established_accept_surely_ends_and_only_after_conntrack() {
    let rule = rule(&ESTABLISHED_ACCEPT);
    assert!(rule.hazards.is_empty());
    assert_eq!(rule.outcomes, [None, sure(Verdict::End)]);
}

#[test]
fn a_limit_for_new_connections_only_is_never_reached() {
    let limit = one("limit", |data| data);
    let of = |mask| rule(&[state(mask), limit.clone(), accept()].concat());
    // New; invalid and untracked.
    assert_eq!(of(8).outcomes[1], None);
    assert_eq!(of(1 | 64).outcomes[1], None);
    assert!(of(8 | 2).outcomes[1].is_some());
    assert_eq!(of(8 | 2).hazards, ["limit"]);
}

#[test]
fn a_limit_for_a_logs_sake_is_none() {
    let limit = one("limit", |data| data);
    let log = one("log", |data| data);
    assert!(
        rule(&[limit.clone(), log.clone()].concat())
            .hazards
            .is_empty()
    );
    let drops = [limit, log, accept()].concat();
    assert_eq!(rule(&drops).hazards, ["limit"]);
}

#[test]
fn what_takes_packets_is_found_whatever_else_the_rule_does() {
    for name in ["queue", "tproxy", "synproxy", "dup", "fwd"] {
        assert_eq!(rule(&one(name, |data| data)).hazards, [name]);
    }
    let target =
        |name: &'static [u8]| rule(&one("target", |data| data.with(XT_NAME, name))).hazards;
    assert_eq!(target(b"NFQUEUE\0"), ["NFQUEUE"]);
    assert!(target(b"LOG\0").is_empty());
    let matched = [
        one("match", |data| data.with(XT_NAME, b"hashlimit\0")),
        accept(),
    ];
    assert_eq!(rule(&matched.concat()).hazards, ["hashlimit"]);
}

#[test]
fn limits_in_sets_objects_and_elements_are_found() {
    let limit = |request: Request| {
        request.with_nest(DYNSET_EXPRESSION, |expression| {
            expression.with(NAME, b"limit\0")
        })
    };
    let update = [one("dynset", limit), accept()].concat();
    assert_eq!(rule(&update).hazards, ["limit"]);

    let object = one("objref", |data| {
        data.with(OBJREF_TYPE, &2_u32.to_be_bytes())
    });
    assert_eq!(rule(&[object, accept()].concat()).hazards, ["quota"]);

    // It answers without a verdict of the rule's.
    let object = one("objref", |data| {
        data.with(OBJREF_TYPE, &10_u32.to_be_bytes())
    });
    assert_eq!(rule(&object).hazards, ["synproxy"]);

    let set = Set {
        hazards: vec!["limit".to_owned()],
        ..Set::default()
    };
    let sets = [(("inet t".to_owned(), "s".to_owned()), set)].into();
    let lookup = one("lookup", |data| {
        data.with(LOOKUP_SET, b"s\0")
            .with(LOOKUP_SREG, &1_u32.to_be_bytes())
    });
    let rule = read_rule("inet t", &[lookup, accept()].concat(), &sets);
    assert_eq!(rule.hazards, ["limit"]);
}

#[test]
fn a_map_of_states_gives_established_packets_their_own_verdict() {
    let load = &ESTABLISHED_ACCEPT[..32];
    let lookup = one("lookup", |data| {
        data.with(LOOKUP_SET, b"m\0")
            .with(LOOKUP_SREG, &1_u32.to_be_bytes())
            .with(LOOKUP_DREG, &[0; 4])
    });
    let bytes = [load, &lookup].concat();
    assert_eq!(sets_needed(&bytes).collect::<Vec<_>>(), ["m"]);

    let jump = Verdict::Jump("inet t new".to_owned());
    let element = |key: u32, verdict: &Verdict| (key.to_ne_bytes().to_vec(), Some(verdict.clone()));
    let set = Set {
        elements: Some(vec![element(2, &Verdict::End), element(8, &jump)]),
        ..Set::default()
    };
    let sets = [(("inet t".to_owned(), "m".to_owned()), set)].into();
    let rule = read_rule("inet t", &bytes, &sets);
    assert_eq!(rule.outcomes, [None, sure(Verdict::End)]);

    // Keys of more than a state: it may match, or not.
    let wide = Set {
        elements: Some(vec![(vec![0; 20], Some(jump.clone()))]),
        ..Set::default()
    };
    let sets = [(("inet t".to_owned(), "m".to_owned()), wide)].into();
    let outcome = read_rule("inet t", &bytes, &sets).outcomes[1]
        .clone()
        .unwrap();
    assert_eq!((outcome.is_sure, outcome.verdicts), (false, vec![jump]));
}

#[test]
fn a_comparison_of_something_else_may_match() {
    let other = one("meta", |data| data.with(1, &1_u32.to_be_bytes()));
    let compare = &ESTABLISHED_ACCEPT[108..152];
    let rule = rule(&[&other, compare, &accept()].concat());
    let outcome = rule.outcomes[1].as_ref().unwrap();
    assert!(!outcome.is_sure);
}
