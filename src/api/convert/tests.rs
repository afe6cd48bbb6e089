use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::api::session::HandOver;
use crate::packet::MacAddr;

const NAMES: [&str; 3] = ["lan", "wan", "dmz"];

struct Names;

impl VnicNames for Names {
    fn id(&self, name: &str) -> Option<VnicId> {
        let place = NAMES.iter().position(|known| *known == name)?;
        u16::try_from(place).ok().map(VnicId)
    }

    fn name(&self, id: VnicId) -> Option<&str> {
        NAMES.get(usize::from(id.0)).copied()
    }
}

fn session(json: &str) -> Session {
    serde_json::from_str(json).unwrap()
}

fn nat() -> Session {
    session(
        r#"{"key":"c1","protocol":"udp","idle-timeout":60,"hard-timeout":3600,
            "original":{"ingress-vnic":"lan","ingress-vlan":5,
              "source-address":"10.0.0.2","source-port":40000,
              "destination-address":"192.0.2.9","destination-port":53,
              "translation":{"source-address":"198.51.100.1","source-port":1024},
              "egress-vnic":"wan","egress-vlan":7,"destination-mac":"52:54:00:00:00:01",
              "source-mac":"52:54:00:00:00:02","l3-mtu":1500,"dscp":10}}"#,
    )
}

#[test]
fn the_reply_is_the_mirror_of_the_original_unless_it_says_otherwise() {
    let request = to_request(&nat(), &Names).unwrap();
    let (original, reply) = (request.original.unwrap(), request.reply.unwrap());
    assert_eq!(original.translation.src.to_string(), "198.51.100.1");
    assert_eq!(
        (original.translation.src_port, original.translation.dst_port),
        (1024, 53)
    );
    assert_eq!(
        (reply.ingress, reply.egress),
        (original.egress, original.ingress)
    );
    assert_eq!(reply.ingress_vlan, original.egress_vlan);
    assert_eq!(reply.egress_vlan, original.ingress_vlan);
    assert_eq!(reply.tuple, original.translation.reversed());
    assert_eq!(reply.translation, original.tuple.reversed());
    // L2 does not follow: it is learned, or said.
    assert_eq!(
        (reply.dst_mac, reply.src_mac, reply.l3_mtu, reply.dscp),
        (None, None, None, None)
    );

    let mut other = nat();
    other.reply.egress_vlan = Some(Vlan::UNTAGGED);
    other.reply.egress_vnic = Some("dmz".to_owned());
    let reply = to_request(&other, &Names).unwrap().reply.unwrap();
    assert_eq!((reply.egress, reply.egress_vlan), (VnicId(2), None));
}

#[test]
fn an_echo_session_has_an_identifier_and_its_reply_the_other_type() {
    for (protocol, source, destination, kinds) in [
        ("icmp", "10.0.0.2", "192.0.2.9", (8, 0)),
        ("icmpv6", "2001:db8::2", "2001:db8::9", (128, 129)),
    ] {
        let echo = session(&format!(
            r#"{{"key":"p","protocol":"{protocol}","original":{{"ingress-vnic":"lan",
                "egress-vnic":"wan","source-address":"{source}",
                "destination-address":"{destination}","identifier":77,
                "translation":{{"identifier":78}}}}}}"#
        ));
        let request = to_request(&echo, &Names).unwrap();
        let (original, reply) = (request.original.unwrap(), request.reply.unwrap());
        assert_eq!(
            (original.tuple.src_port, original.tuple.dst_port),
            (77, kinds.0)
        );
        assert_eq!((reply.tuple.src_port, reply.tuple.dst_port), (78, kinds.1));
        assert_eq!(reply.translation.src_port, 77);
    }
}

#[test]
fn what_contradicts_itself_is_refused_with_its_leaf() {
    type Change = fn(&mut Session);
    let cases: &[(Change, &str)] = &[
        (
            |s| s.original.ingress_vnic = "lna".into(),
            "original/ingress-vnic",
        ),
        (
            |s| s.original.egress_vnic = "".into(),
            "original/egress-vnic",
        ),
        (
            |s| s.reply.egress_vnic = Some("x".into()),
            "reply/egress-vnic",
        ),
        (|s| s.original.source_port = None, "original/source-port"),
        (|s| s.original.identifier = Some(1), "original/identifier"),
        (
            |s| s.original.translation.identifier = Some(1),
            "original/translation/identifier",
        ),
        (|s| s.protocol = Protocol(47), "original/source-port"),
        (
            |s| s.original.destination_address = "2001:db8::1".parse().unwrap(),
            "original/destination-address",
        ),
        (
            |s| s.original.translation.source_address = "2001:db8::1".parse().ok(),
            "original/translation/source-address",
        ),
        (
            |s| {
                s.protocol = Protocol(58);
                s.original.source_port = None;
                s.original.destination_port = None;
                s.original.translation.source_port = None;
                s.original.identifier = Some(1);
            },
            "protocol",
        ),
        (
            |s| {
                s.directions = Directions::Original;
                s.reply.dscp = Dscp::try_from(1).ok();
            },
            "reply",
        ),
        (
            |s| s.directions = Directions::Reply,
            "original/destination-mac",
        ),
    ];
    for (change, leaf) in cases {
        let mut session = nat();
        change(&mut session);
        assert_eq!(to_request(&session, &Names).unwrap_err().leaf, *leaf);
    }
}

fn mac() -> impl Strategy<Value = Option<MacAddr>> {
    option::of((0u64..1 << 40).prop_map(MacAddr::from_u64))
}

fn vlan() -> impl Strategy<Value = Vlan> {
    (0u64..=4094).prop_map(|id| Vlan::try_from(id).unwrap())
}

fn vnic() -> impl Strategy<Value = String> {
    proptest::sample::select(&NAMES[..]).prop_map(str::to_owned)
}

fn side() -> impl Strategy<Value = Reply> {
    let ends = (
        option::of(vnic()),
        option::of(vlan()),
        option::of(vnic()),
        option::of(vlan()),
    );
    let rest = (
        option::of(68u64..=65535),
        any::<bool>(),
        option::of(0u64..64),
    );
    (ends, mac(), mac(), mac(), rest).prop_map(
        |((ingress, ingress_vlan, egress, egress_vlan), a, b, c, (mtu, ttl, dscp))| Reply {
            ingress_vnic: ingress,
            ingress_vlan,
            ingress_mac: a,
            egress_vnic: egress,
            egress_vlan,
            destination_mac: b,
            source_mac: c,
            l3_mtu: mtu.map(|bytes| Mtu::try_from(bytes).unwrap()),
            decrement_ttl: ttl,
            dscp: dscp.map(|value| Dscp::try_from(value).unwrap()),
        },
    )
}

/// Addresses of one family: match and, perhaps, translation.
fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr, Option<IpAddr>, Option<IpAddr>)> {
    fn of<A: Into<IpAddr> + std::fmt::Debug>(
        one: impl Strategy<Value = A> + Clone,
    ) -> impl Strategy<Value = (IpAddr, IpAddr, Option<IpAddr>, Option<IpAddr>)> {
        (
            one.clone(),
            one.clone(),
            option::of(one.clone()),
            option::of(one),
        )
            .prop_map(|(a, b, c, d)| (a.into(), b.into(), c.map(Into::into), d.map(Into::into)))
    }
    prop_oneof![
        of(any::<std::net::Ipv4Addr>()),
        of(any::<std::net::Ipv6Addr>())
    ]
}

prop_compose! {
    fn sound()(
        key in "[!#-&(-~]{1,64}",
        (source, destination, new_source, new_destination) in addresses(),
        kind in 0usize..3,
        number in proptest::sample::select(&[6u8, 17, 132][..]),
        other in proptest::sample::select(&[47u8, 50, 89, 255][..]),
        ports in any::<(u16, u16, u16)>(),
        new_ports in any::<(Option<u16>, Option<u16>, Option<u16>)>(),
        (idle, hard) in (1u64..=604_800, option::of(1u64..=604_800)),
        (prompt, vouched, directions) in (any::<bool>(), any::<bool>(), 0usize..3),
        original in side(),
        ends in (vnic(), vlan(), vnic(), vlan()),
        reply in side(),
    ) -> Session {
        let (ports_of, echo_of) = (kind == 0, kind == 1);
        let echo = if source.is_ipv4() { 1 } else { 58 };
        let directions = [Directions::Both, Directions::Original, Directions::Reply][directions];
        let original = match directions {
            Directions::Reply => Reply::default(),
            Directions::Both | Directions::Original => original,
        };
        Session {
            key: key.parse().unwrap(),
            protocol: Protocol([number, echo, other][kind]),
            idle_timeout: Seconds::try_from(idle).unwrap(),
            hard_timeout: hard.map(|hard| Seconds::try_from(hard).unwrap()),
            hand_over: if prompt { HandOver::Prompt } else { HandOver::Ordered },
            vouched,
            directions,
            original: Original {
                ingress_vnic: ends.0,
                ingress_vlan: ends.1,
                ingress_mac: original.ingress_mac,
                source_address: source,
                destination_address: destination,
                source_port: ports_of.then_some(ports.0),
                destination_port: ports_of.then_some(ports.1),
                identifier: echo_of.then_some(ports.2),
                translation: Translation {
                    source_address: new_source,
                    destination_address: new_destination,
                    source_port: new_ports.0.filter(|_| ports_of),
                    destination_port: new_ports.1.filter(|_| ports_of),
                    identifier: new_ports.2.filter(|_| echo_of),
                },
                egress_vnic: ends.2,
                egress_vlan: ends.3,
                destination_mac: original.destination_mac,
                source_mac: original.source_mac,
                l3_mtu: original.l3_mtu,
                decrement_ttl: original.decrement_ttl,
                dscp: original.dscp,
            },
            reply: match directions {
                Directions::Original => Reply::default(),
                Directions::Both | Directions::Reply => reply,
            },
        }
    }
}

proptest! {
    #[test]
    fn json_gives_back_the_session_it_was_made_of(session in sound()) {
        let json = serde_json::to_string(&session).unwrap();
        prop_assert_eq!(serde_json::from_str::<Session>(&json).unwrap(), session);
    }

    #[test]
    fn a_request_read_back_means_the_same_request(session in sound()) {
        let request = to_request(&session, &Names).unwrap();
        let read = from_request(&request, &Names).unwrap();
        prop_assert_eq!(to_request(&read, &Names).unwrap(), request.clone());
        // And reading back is stable: what was normalised stays as it is.
        prop_assert_eq!(from_request(&request, &Names).unwrap(), read);
    }

    #[test]
    fn both_directions_of_a_request_mirror_each_other(session in sound()) {
        let request = to_request(&session, &Names).unwrap();
        prop_assert_eq!(request.original.is_some(), session.directions != Directions::Reply);
        prop_assert_eq!(request.reply.is_some(), session.directions != Directions::Original);
        if let (Some(original), Some(reply)) = (request.original, request.reply) {
            prop_assert_eq!(reply.tuple, original.translation.reversed());
            prop_assert_eq!(reply.translation, original.tuple.reversed());
        }
    }
}

#[test]
fn a_request_that_the_model_cannot_say_is_not_said_wrongly() {
    let request = to_request(&nat(), &Names).unwrap();
    let mut neither = request.clone();
    (neither.original, neither.reply) = (None, None);
    assert_eq!(from_request(&neither, &Names), Err(NotInModel::NoDirection));
    let mut crossed = request.clone();
    if let Some(reply) = &mut crossed.reply {
        reply.tuple.src_port += 1;
    }
    assert_eq!(from_request(&crossed, &Names), Err(NotInModel::NotMirrored));
    let mut foreign = request;
    if let Some(original) = &mut foreign.original {
        original.egress = VnicId(9);
    }
    assert_eq!(
        from_request(&foreign, &Names),
        Err(NotInModel::UnnamedVnic(9))
    );
}
