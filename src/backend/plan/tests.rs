//! Steps from one configuration to another.

use proptest::prelude::*;

use super::*;

/// What a configuration of the tests has.
#[derive(Clone, Debug)]
struct Shape {
    /// Shared uplinks by name, with their MTU.
    shared: Vec<(u8, u16)>,
    elements: Vec<ElementShape>,
}

/// Name, quota, punt rate (and that of a shield), vNICs, and a number that its bounds follow
/// from, and whether the guest's places of its vNICs are told; of each vNIC its name, MTU and
/// whether it is on the first shared uplink.
type ElementShape = (u8, u32, Option<u32>, Vec<(u8, u16, bool)>, u8);

impl Shape {
    fn config(&self) -> Config {
        let mut text = String::new();
        for (name, mtu) in &self.shared {
            text += &format!(
                "[[shared-uplink]]\nname = 's{name}'\nmtu = {mtu}\n\
                 device = {{ type = 'tap', name = 'trunk{name}' }}\n"
            );
        }
        for (element, quota, rate, vnics, bounds) in &self.elements {
            text += &format!("[[element]]\nname = 'e{element}'\nsessions = {quota}\n");
            for (bit, key) in [(1, "source"), (2, "translation")] {
                if bounds & bit != 0 {
                    text += &format!("{key}-prefixes = ['10.0.0.0/8']\n");
                }
            }
            if let Some(rate) = rate {
                text += &format!(
                    "punt-rate = {rate}\n[[element.shield]]\nname = 's'\naction = 'police'\n\
                     packet-rate = {rate}\n"
                );
            }
            for (vnic, mtu, on_shared) in vnics {
                let uplink = match self.shared.first() {
                    Some((shared, most)) if *on_shared && most >= mtu => format!(
                        "{{ type = 'shared', device = 's{shared}', vlan = {} }}",
                        1 + element * 10 + vnic
                    ),
                    _ => format!("{{ type = 'tap', name = 't{element}-{vnic}' }}"),
                };
                text += &format!(
                    "[[element.vnic]]\nname = 'v{vnic}'\nsocket = '/run/{element}-{vnic}'\n\
                     mac = '52:54:00:00:00:{vnic:02x}'\nmtu = {mtu}\nuplink = {uplink}\n"
                );
                if bounds & 4 != 0 {
                    text += "source-prefixes = ['10.0.0.0/9']\n";
                }
                if bounds & 8 != 0 {
                    text += &format!("bus-path = '0000:00:{vnic:02x}.0'\n");
                }
            }
        }
        Config::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let names = |most: u8| proptest::sample::subsequence((0..most).collect::<Vec<_>>(), 1..3);
    let mtu = prop_oneof![Just(1500u16), Just(3000)];
    let vnics = (
        names(4),
        proptest::collection::vec((mtu.clone(), any::<bool>()), 3),
    );
    let vnics = vnics.prop_map(|(names, rest)| {
        let all = names.into_iter().zip(rest);
        all.map(|(name, (mtu, shared))| (name, mtu, shared))
            .collect::<Vec<_>>()
    });
    let element = (
        prop_oneof![Just(10u32), Just(20)],
        proptest::option::of(5u32..7),
        vnics,
        0u8..16,
    );
    let elements = (names(4), proptest::collection::vec(element, 3)).prop_map(|(names, rest)| {
        let all = names.into_iter().zip(rest);
        all.map(|(name, (quota, rate, vnics, bounds))| (name, quota, rate, vnics, bounds))
            .collect()
    });
    let shared = (names(3), proptest::collection::vec(mtu, 3))
        .prop_map(|(names, rest)| names.into_iter().zip(rest).collect());
    (shared, elements).prop_map(|(shared, elements)| Shape { shared, elements })
}

/// The same, in an order that does not depend on how it came about.
fn sorted(mut config: Config) -> Config {
    config.shared_uplinks.sort_by(|a, b| a.name.cmp(&b.name));
    config.elements.sort_by(|a, b| a.name.cmp(&b.name));
    for element in &mut config.elements {
        element.vnics.sort_by(|a, b| a.name.cmp(&b.name));
    }
    config
}

fn device(uplink: &UplinkConfig) -> Option<&str> {
    match uplink {
        UplinkConfig::Shared { device, .. } => Some(device),
        _ => None,
    }
}

proptest! {
    #[test]
    fn the_steps_lead_from_any_configuration_to_any_other(from in shape(), to in shape()) {
        let (from, to) = (from.config(), to.config());
        let mut runs = from.clone();
        for step in Plan::between(&from, &to).unwrap().steps {
            step.note(&mut runs);
            // On the way nothing is used twice, and no device is taken from under a vNIC.
            let vnics = runs.elements.iter().flat_map(|element| &element.vnics);
            let mut sockets: Vec<_> = vnics.clone().map(|vnic| &vnic.socket).collect();
            sockets.sort();
            prop_assert!(sockets.windows(2).all(|pair| pair[0] != pair[1]));
            for name in vnics.filter_map(|vnic| device(&vnic.uplink)) {
                let count = runs.shared_uplinks.iter().filter(|one| one.name == name).count();
                prop_assert_eq!(count, 1);
            }
        }
        prop_assert_eq!(sorted(runs), sorted(to));
    }

    #[test]
    fn the_same_configuration_in_another_order_asks_for_nothing(of in shape()) {
        let mut turned = of.config();
        turned.elements.reverse();
        turned.shared_uplinks.reverse();
        for element in &mut turned.elements {
            element.vnics.reverse();
        }
        prop_assert_eq!(Plan::between(&of.config(), &turned).unwrap(), Plan::default());
    }
}

#[test]
fn what_is_read_at_the_start_only_is_refused_by_name() {
    let shape = Shape {
        shared: Vec::new(),
        elements: vec![(0, 10, None, vec![(0, 1500, false)], 0)],
    };
    let runs = shape.config();
    let mut wanted = runs.clone();
    wanted.backend.workers = 2;
    let refused = Plan::between(&runs, &wanted).unwrap_err().to_string();
    assert!(
        refused.starts_with("`backend.workers` has changed"),
        "{refused}"
    );
    let mut wanted = runs.clone();
    wanted.hand_over.forced = true;
    let refused = Plan::between(&runs, &wanted).unwrap_err().to_string();
    assert!(refused.starts_with("`hand-over` has changed"), "{refused}");
}
