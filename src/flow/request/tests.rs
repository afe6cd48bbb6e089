use super::*;
use crate::flow::world::{request, shape};
use crate::packet::key::protocol;

fn refused(change: impl FnOnce(&mut SessionRequest)) -> RequestError {
    let mut asked = request(1);
    change(&mut asked);
    asked.check(&shape(), SessionId(1)).unwrap_err()
}

fn original(asked: &mut SessionRequest) -> &mut DirectionRequest {
    asked.original.as_mut().unwrap()
}

#[test]
fn a_sound_request_becomes_two_flows() {
    let checked = request(1).check(&shape(), SessionId(9)).unwrap();
    let [Some(original), Some(reply)] = checked.flows else {
        panic!("both directions");
    };
    assert_eq!(original.egress_key.tuple(), reply.key.tuple().reversed());
    assert_eq!((original.session, original.l3_mtu), (SessionId(9), 1500));
    assert_eq!(original.ingress_mac, shape().vnic(VnicId(0)).unwrap().mac);
    assert_eq!(reply.ingress_mac, shape().vnic(VnicId(1)).unwrap().mac);
    assert!(original.rewrite.decrements_ttl());
}

#[test]
fn one_direction_is_enough_and_none_is_not() {
    let mut asked = request(1);
    asked.reply = None;
    assert!(asked.check(&shape(), SessionId(1)).is_ok());
    let error = refused(|asked| {
        asked.original = None;
        asked.reply = None;
    });
    assert_eq!(error.leaf, "original");
}

#[test]
fn every_fault_names_its_leaf() {
    let second = Duration::from_secs(1);
    let leaf = |change: &dyn Fn(&mut SessionRequest)| refused(change).leaf;
    assert_eq!(leaf(&|asked| asked.key.clear()), "key");
    assert_eq!(leaf(&|asked| asked.key = "a".repeat(65)), "key");
    assert_eq!(leaf(&|asked| asked.key = "a\n".to_owned()), "key");
    assert_eq!(
        leaf(&|asked| asked.idle_timeout = second / 2),
        "idle-timeout"
    );
    assert_eq!(
        leaf(&|asked| asked.hard_timeout = Some(TIMEOUT_MAX + second)),
        "hard-timeout"
    );
    assert_eq!(
        leaf(&|asked| original(asked).ingress = VnicId(2)),
        "original/ingress"
    );
    assert_eq!(
        leaf(&|asked| original(asked).egress = VnicId(7)),
        "original/egress"
    );
    assert_eq!(
        leaf(&|asked| original(asked).tuple.protocol = protocol::UDP),
        "original/match"
    );
    assert_eq!(
        leaf(&|asked| original(asked).translation.src_port += 1),
        "reply/match"
    );
    assert_eq!(
        leaf(&|asked| original(asked).tuple.src_port += 1),
        "reply/translation"
    );
    assert_eq!(
        leaf(&|asked| original(asked).l3_mtu = Some(1501)),
        "original/l3-mtu"
    );
    assert_eq!(
        leaf(&|asked| original(asked).l3_mtu = Some(67)),
        "original/l3-mtu"
    );
    assert_eq!(
        leaf(&|asked| original(asked).dscp = Some(64)),
        "original/dscp"
    );
    assert_eq!(leaf(&|asked| asked.vouched = true), "original/dst-mac");
    let group = Some(MacAddr([1, 0, 0, 0, 0, 1]));
    assert_eq!(
        leaf(&|asked| original(asked).dst_mac = group),
        "original/dst-mac"
    );
    assert_eq!(
        leaf(&|asked| original(asked).src_mac = Some(MacAddr::default())),
        "original/src-mac"
    );
    assert_eq!(
        leaf(&|asked| original(asked).ingress_mac = group),
        "original/ingress-mac"
    );
}

#[test]
fn addresses_that_always_go_to_the_guest_are_refused() {
    for address in [
        "224.0.0.5",
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "169.254.3.4",
    ] {
        let error = refused(|asked| original(asked).tuple.dst = address.parse().unwrap());
        assert_eq!(error.leaf, "original/match");
        assert!(error.text.contains(address), "{error}");
    }
    for address in ["ff02::1", "::1", "::", "fe80::1"] {
        let error = refused(|asked| {
            original(asked).tuple.src = "2001:db8::1".parse().unwrap();
            original(asked).tuple.dst = address.parse().unwrap();
        });
        assert_eq!(error.leaf, "original/match");
    }
}

#[test]
fn ip_versions_are_not_mixed() {
    let v6 = "2001:db8::1".parse().unwrap();
    let error = refused(|asked| original(asked).tuple.src = v6);
    assert_eq!(error.leaf, "original/match");
    let error = refused(|asked| {
        let translation = &mut original(asked).translation;
        (translation.src, translation.dst) = (v6, "2001:db8::2".parse().unwrap());
    });
    assert_eq!(error.leaf, "original/translation");
}

#[test]
fn sctp_ports_are_not_translated() {
    let error = refused(|asked| {
        asked.protocol = protocol::SCTP;
        asked.reply = None;
        original(asked).tuple.protocol = protocol::SCTP;
        original(asked).translation.protocol = protocol::SCTP;
    });
    assert_eq!(error.leaf, "original/translation");
}

#[test]
fn of_icmp_only_echo_is_accepted() {
    let icmp = |kind: u16| {
        let mut asked = request(1);
        asked.protocol = protocol::ICMP;
        asked.reply = None;
        let direction = original(&mut asked);
        (direction.tuple.protocol, direction.translation.protocol) =
            (protocol::ICMP, protocol::ICMP);
        (direction.tuple.dst_port, direction.translation.dst_port) = (kind, kind);
        asked.check(&shape(), SessionId(1))
    };
    assert!(icmp(8).is_ok());
    assert!(icmp(0).is_ok());
    assert_eq!(icmp(3).unwrap_err().leaf, "original/match");
    assert_eq!(icmp(128).unwrap_err().leaf, "original/match");
}

#[test]
fn protocols_without_ports_have_none() {
    let error = refused(|asked| {
        asked.protocol = protocol::GRE;
        original(asked).tuple.protocol = protocol::GRE;
        original(asked).translation.protocol = protocol::GRE;
    });
    assert_eq!(error.leaf, "original/match");
}
