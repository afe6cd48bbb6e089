use super::*;
use crate::flow::shield::{Action, Flags, Ports, Rate, Unit};

const ELEMENT: &str = "[[element]]\nname = 'r'\n[[element.vnic]]\nname = 'wan'\n\
                       socket = '/run/r.sock'\nmac = '52:54:00:00:00:01'\n\
                       uplink = { type = 'tap', name = 'tap0' }\n";

fn parse(shields: &str) -> Result<Config, ConfigError> {
    Config::parse(&format!("{ELEMENT}{shields}"))
}

fn refused(shields: &str) -> String {
    parse(shields).unwrap_err().to_string()
}

#[test]
fn every_key_of_a_shield_is_taken() {
    let text = "[[element.shield]]\nname = 's'\npriority = 5\ningress-vnic = 'wan'\n\
                source-prefix = '10.0.0.0/8'\ndestination-prefix = '192.0.2.9/32'\n\
                protocol = 'tcp'\nsource-port = '1024-65535'\ndestination-port = 443\n\
                tcp-flags = 'syn'\ntcp-flags-mask = 'syn ack'\n\
                action = 'police'\nbit-rate = 1000000\nburst = 10000\n\
                [[element.shield]]\nname = 't'\nprotocol = 47\naction = 'drop'\n";
    let config = parse(text).unwrap();
    let element = &config.elements[0];
    assert_eq!((element.shield_quota, element.shields.len()), (1024, 2));
    let ShieldConfig(shield) = &element.shields[0];
    assert_eq!((shield.priority, shield.vnic.as_deref()), (5, Some("wan")));
    let matches = &shield.matches;
    assert_eq!(matches.source, Some(([10, 0, 0, 0].into(), 8)));
    assert_eq!(matches.source_ports.low, 1024);
    assert_eq!(matches.destination_ports, Ports::of(443));
    assert_eq!(matches.flags, Some(Flags::of(Some(0x02), Some(0x12))));
    let rate = Rate {
        unit: Unit::Bits,
        rate: 1_000_000,
        burst: 80_000,
    };
    assert_eq!(shield.action, Action::Police(rate));
    assert_eq!(element.shields[1].0.matches.protocol, Some(47));
}

#[test]
fn what_cannot_be_is_refused_at_its_line() {
    let drop = "[[element.shield]]\nname = 's'\naction = 'drop'\n";
    for (more, line, part) in [
        ("tcp-flags = 'fun'\n", 11, "cwr ece urg"),
        ("source-prefix = '10.0.0.0'\n", 11, "192.0.2.0/24"),
        ("source-port = '9-1'\n", 11, "lower one first"),
        ("colour = 'red'\n", 11, "unknown field"),
        ("ingress-vnic = 'lan'\n", 11, "has no vNIC `lan`"),
        ("packet-rate = 5\n", 8, "are for the action"),
        ("source-port = 53\n", 8, "`source-port`: only TCP"),
        (
            "[[element.shield]]\nname = 's'\naction = 'punt'\n",
            12,
            "another shield `s`",
        ),
        (
            "[[element.shield]]\nname = 't'\naction = 'police'\n",
            8,
            "shield `t`: give either packet-rate or bit-rate",
        ),
    ] {
        let text = refused(&format!("{drop}{more}"));
        assert!(text.contains(part), "{more}: {text}");
        assert!(text.starts_with(&format!("line {line}:")), "{more}: {text}");
    }
    let text = Config::parse(&ELEMENT.replace("name = 'r'", "name = 'r'\nshield-quota = 4097"));
    assert!(text.unwrap_err().to_string().contains("0 to 4096"));
}
