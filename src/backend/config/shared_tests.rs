//! Shared uplinks in the configuration: what is taken, and the answers to what is not.

use super::{Config, ConfigError, UplinkConfig};
use crate::packet::{MacAddr, VlanId};

/// Two elements on one device; tests change a line of it. Line numbers matter.
const GOOD: &str = r#"[[shared-uplink]]
name = "phys0"
mtu = 3000
device = { type = "tap", name = "trunk", queues = 2 }
[[shared-uplink]]
name = "phys1"
device = { type = "vhost-user", socket = "/run/shunt/phys1.sock" }
[[element]]
name = "red"
[[element.vnic]]
name = "lan"
socket = "/run/shunt/red.sock"
mac = "52:54:00:00:00:01"
mtu = 3000
uplink = { type = "shared", device = "phys0", vlan = 20, extra-macs = ["00:00:5e:00:01:07"] }
[[element]]
name = "blue"
[[element.vnic]]
name = "lan"
socket = "/run/shunt/blue.sock"
mac = "52:54:00:00:00:02"
uplink = { type = "shared", device = "phys0" }
"#;

fn with_line(number: usize, line: &str) -> String {
    let mut lines: Vec<_> = GOOD.lines().collect();
    lines[number - 1] = line;
    lines.join("\n")
}

#[test]
fn a_shared_uplink_and_its_vnics_are_read_as_written() {
    let config = Config::parse(GOOD).unwrap();
    let shared = &config.shared_uplinks[0];
    assert_eq!((shared.name.as_str(), shared.mtu), ("phys0", 3000));
    assert_eq!(shared.device.queue_pairs(shared.queue_pairs), 2);
    assert_eq!(config.shared_uplinks[1].mtu, 1500);
    let uplink = |element: usize| config.elements[element].vnics[0].uplink.clone();
    let expected = UplinkConfig::Shared {
        device: "phys0".to_owned(),
        vlan: VlanId::try_from(20).ok(),
        extra_macs: vec![MacAddr([0, 0, 0x5e, 0, 1, 7])],
    };
    assert_eq!(uplink(0), expected);
    let expected = UplinkConfig::Shared {
        device: "phys0".to_owned(),
        vlan: None,
        extra_macs: Vec::new(),
    };
    assert_eq!(uplink(1), expected);
}

#[test]
fn addresses_may_be_the_same_in_another_vlan_and_on_another_device() {
    let other_vlan = with_line(21, "mac = '52:54:00:00:00:01'");
    Config::parse(&other_vlan).unwrap();
    let other_device = other_vlan.replace(
        "uplink = { type = \"shared\", device = \"phys0\" }",
        "uplink = { type = \"shared\", device = \"phys1\", vlan = 20 }",
    );
    Config::parse(&other_device).unwrap();
}

#[test]
fn what_cannot_be_shared_is_refused_at_its_line() {
    let uplink = |keys: &str| format!("uplink = {{ type = 'shared', {keys} }}");
    for (number, line, words) in [
        (
            6,
            "name = 'phys0'".to_owned(),
            "another shared uplink `phys0`",
        ),
        (
            7,
            "device = { type = 'shared', device = 'phys0' }".to_owned(),
            "needs a device of its own",
        ),
        (
            7,
            "device = { type = 'tap', name = 'trunk' }".to_owned(),
            "tap `trunk` is the uplink of shared uplink `phys0`",
        ),
        (7, "devices = 1".to_owned(), "unknown field `devices`"),
        (14, "mtu = 3001".to_owned(), "which has 3000"),
        (
            22,
            uplink("device = 'phys2'"),
            "no [[shared-uplink]] named `phys2`",
        ),
        (
            22,
            uplink("vlan = 20"),
            "type shared needs the key `device`",
        ),
        (
            22,
            uplink("device = 'phys0', vlan = 4095"),
            "4095 is not a VLAN id",
        ),
        (
            22,
            uplink("device = 'phys0', vlan = 0"),
            "0 is not a VLAN id",
        ),
        (
            22,
            uplink("device = 'phys0', name = 'x'"),
            "type shared has no key `name`",
        ),
        (
            22,
            uplink("device = 'phys0', extra-macs = ['01:00:5e:00:00:01']"),
            "is a group address",
        ),
        (
            22,
            uplink("device = 'phys0', vlan = 20, extra-macs = ['00:00:5e:00:01:07']"),
            "00:00:5e:00:01:07 is vNIC `lan` of element `red`'s address in the same VLAN",
        ),
    ] {
        match Config::parse(&with_line(number, &line)) {
            Err(ConfigError::Invalid { place, problem }) => {
                let text = problem.to_string();
                assert!(text.contains(words), "{line}: {text}");
                assert_eq!(place.line, number, "{line}: {text}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
}
