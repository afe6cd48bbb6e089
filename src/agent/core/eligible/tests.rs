//! What is left to the guest, and what is not.

use std::net::Ipv6Addr;

use super::super::testing::{NAT, SERVER, client, tcp, tuple, udp};
use super::*;
use crate::agent::core::settings::Mark;

fn verdict(connection: &Connection) -> Result<(), Reason> {
    judge(connection, &Settings::default(), &Rules::default())
}

fn with(change: impl FnOnce(&mut Connection)) -> Result<(), Reason> {
    let mut connection = tcp(1);
    change(&mut connection);
    verdict(&connection)
}

fn icmp(protocol: u8, kind: u8, back: u8) -> Connection {
    let mut echo = udp(1);
    echo.original.protocol = protocol;
    echo.reply.protocol = protocol;
    let ports = |kind| Ports::Icmp {
        kind,
        code: 0,
        id: 77,
    };
    echo.original.ports = ports(kind);
    echo.reply.ports = ports(back);
    echo
}

#[test]
fn an_established_tcp_and_a_confirmed_udp_connection_are_eligible() {
    assert_eq!(verdict(&tcp(1)), Ok(()));
    let mut one_way = udp(1);
    one_way.status = Status::CONFIRMED;
    assert_eq!(verdict(&one_way), Ok(()));
}

#[test]
fn each_status_that_stands_against_offload_has_its_reason() {
    for (bits, reason) in [
        (Status::EXPECTED, Reason::Master),
        (Status::SEQ_ADJUST, Reason::Sequence),
        (Status::DYING, Reason::Dying),
        (Status::FIXED_TIMEOUT, Reason::FixedTimeout),
        (Status::TEMPLATE, Reason::Template),
        (Status::NAT_CLASH, Reason::NatClash),
        (Status::HELPER, Reason::Helper),
        (Status::OFFLOAD, Reason::KernelOffload),
        (Status::HW_OFFLOAD, Reason::KernelOffload),
    ] {
        assert_eq!(with(|of| of.status.0 |= bits.0), Err(reason));
    }
    for (bits, reason) in [
        (Status::CONFIRMED, Reason::Unconfirmed),
        (Status::ASSURED, Reason::Unassured),
    ] {
        assert_eq!(with(|of| of.status.0 &= !bits.0), Err(reason));
    }
    assert_eq!(with(|of| of.has_master = true), Err(Reason::Master));
    assert_eq!(with(|of| of.shifts_sequence = true), Err(Reason::Sequence));
    let ftp = Some("ftp".to_owned());
    assert_eq!(with(|of| of.helper = ftp), Err(Reason::Helper));
}

#[test]
fn tcp_is_eligible_in_no_state_but_established() {
    for state in (0..=255).map(TcpState) {
        let expected = match state {
            TcpState::ESTABLISHED => Ok(()),
            _ => Err(Reason::TcpState),
        };
        assert_eq!(with(|of| of.tcp = Some(state)), expected);
    }
    assert_eq!(with(|of| of.tcp = None), Err(Reason::TcpState));
}

#[test]
fn of_icmp_only_echo_is_eligible() {
    assert_eq!(verdict(&icmp(1, 8, 0)), Ok(()));
    for (kind, back) in [(0, 8), (13, 14), (15, 16), (17, 18), (3, 3)] {
        assert_eq!(verdict(&icmp(1, kind, back)), Err(Reason::Icmp));
    }
    let mut ports = icmp(1, 8, 0);
    ports.original.ports = Ports::Ports(1, 2);
    assert_eq!(verdict(&ports), Err(Reason::Icmp));
}

#[test]
fn protocols_that_the_fast_path_does_not_key_are_left_alone() {
    let other = |number: u8, ports: Ports| {
        let mut connection = udp(1);
        for tuple in [&mut connection.original, &mut connection.reply] {
            tuple.protocol = number;
            tuple.ports = ports;
        }
        verdict(&connection)
    };
    assert_eq!(other(50, Ports::None), Ok(()));
    for (number, ports) in [
        (47, Ports::None),
        (47, Ports::Ports(1, 2)),
        (136, Ports::Ports(1, 2)),
        (33, Ports::Ports(1, 2)),
        (44, Ports::None),
        (6, Ports::None),
    ] {
        assert!(other(number, ports).is_err(), "{number} {ports:?}");
    }
    // SCTP: a checksum over all forbids other ports.
    let mut sctp = udp(1);
    sctp.original.protocol = 132;
    sctp.reply.protocol = 132;
    assert_eq!(verdict(&sctp), Err(Reason::Protocol));
    sctp.reply.ports = Ports::Ports(443, 40_000);
    assert_eq!(verdict(&sctp), Ok(()));
}

#[test]
fn groups_link_local_addresses_and_nat64_are_left_alone() {
    let set = |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let results = [
            with(|of| of.original.source = address),
            with(|of| of.original.destination = address),
            with(|of| of.reply.source = address),
            with(|of| of.reply.destination = address),
        ];
        assert!(results.iter().all(|result| *result == results[0]));
        results[0]
    };
    for address in ["224.0.0.251", "255.255.255.255", "239.1.1.1"] {
        assert_eq!(set(address), Err(Reason::Group));
    }
    for address in ["127.0.0.1", "169.254.1.1", "0.0.0.0"] {
        assert_eq!(set(address), Err(Reason::LinkLocal));
    }
    for address in [
        "2001:db8::1",
        "ff02::1",
        "fe80::1",
        "::1",
        "::ffff:10.0.0.1",
    ] {
        assert_eq!(set(address), Err(Reason::Families), "{address}");
    }
    let v6 = |last| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
    let mut six = tcp(1);
    (six.original.source, six.original.destination) = (v6(1), v6(2));
    (six.reply.source, six.reply.destination) = (v6(2), v6(1));
    assert_eq!(verdict(&six), Ok(()));
    for (address, reason) in [("ff02::1", Reason::Group), ("fe80::1", Reason::LinkLocal)] {
        let mut bad = six.clone();
        bad.original.source = address.parse().unwrap();
        assert_eq!(verdict(&bad), Err(reason));
    }
}

#[test]
fn marks_prefixes_and_ports_switch_off() {
    let judge_with = |connection: &Connection, change: &dyn Fn(&mut Switches)| {
        let mut settings = Settings::default();
        change(&mut settings.switches);
        judge(connection, &settings, &Rules::default())
    };
    let mut marked = tcp(1);
    marked.mark = 0x12;
    let bits = Mark {
        value: 0x10,
        mask: 0x30,
    };
    let out = |switches: &mut Switches| switches.opt_out = Some(bits);
    assert_eq!(judge_with(&marked, &out), Err(Reason::OptedOut));
    assert_eq!(judge_with(&tcp(1), &out), Ok(()));
    let only = |switches: &mut Switches| {
        switches.opt_in = Some(bits);
        switches.is_opt_in_only = true;
    };
    assert_eq!(judge_with(&marked, &only), Ok(()));
    assert_eq!(judge_with(&tcp(1), &only), Err(Reason::NotOptedIn));

    // The NAT's address is an end, too.
    for prefix in ["10.0.0.0/8", "192.0.2.9/32", "198.51.100.0/24"] {
        let off = |switches: &mut Switches| {
            switches.prefixes_off = vec![prefix.parse().unwrap()];
        };
        let on = |switches: &mut Switches| {
            switches.prefixes_on = vec![prefix.parse().unwrap()];
        };
        assert_eq!(judge_with(&tcp(1), &off), Err(Reason::Prefix));
        assert_eq!(judge_with(&tcp(1), &on), Ok(()));
    }
    let elsewhere = |switches: &mut Switches| {
        switches.prefixes_on = vec!["203.0.113.0/24".parse().unwrap()];
    };
    assert_eq!(judge_with(&tcp(1), &elsewhere), Err(Reason::Prefix));

    // A forwarded port: as the client and as the server know it.
    let mut forwarded = tcp(1);
    forwarded.original = tuple(6, (client(1), 40_000), (NAT, 80));
    forwarded.reply = tuple(6, (SERVER, 8080), (client(1), 40_000));
    for (port, expected) in [
        (80, Err(Reason::Port)),
        (8080, Err(Reason::Port)),
        (40_000, Ok(())),
    ] {
        let off = |switches: &mut Switches| switches.ports_off = vec![port];
        assert_eq!(judge_with(&forwarded, &off), expected, "{port}");
    }
}

#[test]
fn a_hazard_of_the_ruleset_stops_all_but_those_opted_in_unless_it_is_ignored() {
    let hazard = Hazard {
        what: "limit".to_owned(),
        chain: "inet filter forward".to_owned(),
    };
    let mut settings = Settings::default();
    let rules = |settings: &Settings| Rules::new(vec![hazard.clone()], &settings.switches);
    assert_eq!(
        judge(&tcp(1), &settings, &rules(&settings)),
        Err(Reason::Ruleset)
    );
    settings.switches.opt_in = Some(Mark { value: 1, mask: 1 });
    let mut marked = tcp(1);
    marked.mark = 1;
    assert_eq!(judge(&marked, &settings, &rules(&settings)), Ok(()));
    settings.switches.hazards_ignored = vec!["limit".to_owned()];
    assert_eq!(judge(&tcp(1), &settings, &rules(&settings)), Ok(()));
}
