//! Messages as Linux 6.18 wrote them, beside what `conntrack -L -o extended,id` said then.

use proptest::prelude::*;

use super::*;
use crate::agent::kernel::wire::{messages, nested};

/// Bytes of hexadecimal digits.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn v4(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `tcp 6 431999 ESTABLISHED src=127.0.0.1 dst=127.0.0.1 sport=35892 dport=46201 packets=4
/// bytes=221 src=127.0.0.1 dst=127.0.0.1 sport=46201 dport=35892 packets=3 bytes=166 [ASSURED]
/// mark=0 use=1 id=738719573`
const TCP: &str = "
    020000003400018014000180080001007f000001080002007f0000011c00028005000100
    06000000060002008c34000006000300b47900003400028014000180080001007f000001
    080002007f0000011c000280050001000600000006000200b4790000060003008c340000
    080003000000000e080008000000000008000c002c07f75508000b000000000108000700
    0006977f300004802c0001800500010003000000050002000a000000050003000a000000
    060004002300000006000500230000001c0009800c00010000000000000000040c000200
    00000000000000dd1c000a800c00010000000000000000030c00020000000000000000a6";

/// `icmpv6 58 29 src=::1 dst=::1 type=128 code=0 id=9190 packets=1 bytes=104 src=::1 dst=::1
/// type=129 code=0 id=9190 packets=1 bytes=104 mark=0 use=1 id=3090730426`
const ECHO6: &str = "
    0a000000540001802c000180140003000000000000000000000000000000000114000400
    0000000000000000000000000000000124000280050001003a0000000600070023e60000
    05000800800000000500090000000000540002802c000180140003000000000000000000
    000000000000000114000400000000000000000000000000000000012400028005000100
    3a0000000600070023e6000005000800810000000500090000000000080003000000000a
    080008000000000008000c00b838cdba08000b0000000001080007000000001d1c000980
    0c00010000000000000000010c00020000000000000000681c000a800c00010000000000
    000000010c0002000000000000000068";

#[test]
fn a_tcp_connection_is_read_as_conntrack_shows_it() {
    let local = v4("127.0.0.1");
    let tuple = |source, destination| Tuple {
        source: local,
        destination: local,
        protocol: 6,
        ports: Ports::Ports(source, destination),
    };
    assert_eq!(
        read(&hex(TCP)).unwrap(),
        Connection {
            id: 738_719_573,
            original: tuple(35892, 46201),
            reply: tuple(46201, 35892),
            zone: 0,
            status: Status(Status::SEEN_REPLY.0 | Status::ASSURED.0 | Status::CONFIRMED.0),
            mark: 0,
            timeout: Some(Duration::from_secs(431_999)),
            tcp: Some(TcpState::ESTABLISHED),
            counters: Some([
                Counters {
                    packets: 4,
                    octets: 221
                },
                Counters {
                    packets: 3,
                    octets: 166
                },
            ]),
            helper: None,
            has_master: false,
            shifts_sequence: false,
        }
    );
}

#[test]
fn an_echo_of_ipv6_is_read_as_conntrack_shows_it() {
    let read = read(&hex(ECHO6)).unwrap();
    assert_eq!(read.id, 3_090_730_426);
    assert_eq!(read.original.source, v4("::1"));
    assert_eq!(read.original.protocol, 58);
    let echo = |kind| Ports::Icmp {
        kind,
        code: 0,
        id: 9190,
    };
    assert_eq!(read.original.ports, echo(128));
    assert_eq!(read.reply.ports, echo(129));
    assert_eq!(read.tcp, None);
}

#[test]
fn what_keeps_a_connection_from_being_offloaded_is_seen() {
    let plain = hex(TCP);
    let with = |more: Request| {
        let mut bytes = plain.clone();
        bytes.extend_from_slice(&more.numbered(0, 0)[16..]);
        read(&bytes).unwrap()
    };
    let empty = || Request::new(0, &[]);
    let helped = with(empty().with_nest(CTA_HELP, |help| help.with(CTA_HELP_NAME, b"ftp\0")));
    assert_eq!(helped.helper.as_deref(), Some("ftp"));
    let child = with(empty().with_nest(CTA_TUPLE_MASTER, |tuple| tuple));
    assert!(child.has_master);
    for kind in [CTA_SEQ_ADJ_ORIG, CTA_SEQ_ADJ_REPLY, CTA_SYNPROXY] {
        assert!(with(empty().with_nest(kind, |inside| inside)).shifts_sequence);
    }
    assert_eq!(with(empty().with(CTA_MARK, &[0, 0, 1, 2])).mark, 0x102);
    assert_eq!(with(empty().with(CTA_ZONE, &[0, 7])).zone, 7);
}

#[test]
fn a_zone_of_the_original_direction_only_is_the_connections_zone() {
    let original = read(&hex(TCP)).unwrap().original;
    let message = Request::new(NEW, &[2, 0, 0, 0])
        .with_nest(CTA_TUPLE_ORIG, |tuple| {
            write_tuple(tuple, &original).with(CTA_TUPLE_ZONE, &[0, 9])
        })
        .with_nest(CTA_TUPLE_REPLY, |tuple| write_tuple(tuple, &original))
        .with(CTA_ID, &[0, 0, 0, 1])
        .numbered(0, 0);
    assert_eq!(read(&message[16..]).unwrap().zone, 9);
}

#[test]
fn liberal_is_set_and_the_highest_acknowledgement_cleared_in_both_directions() {
    let wish = set_liberal(&read(&hex(TCP)).unwrap()).numbered(1, 0);
    for direction in [4, 5] {
        let path = [CTA_PROTOINFO, CTA_PROTOINFO_TCP, direction];
        assert_eq!(nested(&wish[20..], &path), Some(&[0x08, 0x28][..]));
    }
    // Nothing says which state it is in: that stays.
    let path = [CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE];
    assert_eq!(nested(&wish[20..], &path), None);
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    let addresses = prop_oneof![
        any::<[[u8; 4]; 2]>().prop_map(|pair| pair.map(IpAddr::from)),
        any::<[[u8; 16]; 2]>().prop_map(|pair| pair.map(IpAddr::from)),
    ];
    let ports = prop_oneof![
        Just(Ports::None),
        any::<(u16, u16)>().prop_map(|(source, destination)| Ports::Ports(source, destination)),
        any::<(u8, u8, u16)>().prop_map(|(kind, code, id)| Ports::Icmp { kind, code, id }),
    ];
    (addresses, any::<u8>(), ports).prop_map(|([source, destination], protocol, ports)| Tuple {
        source,
        destination,
        protocol,
        ports,
    })
}

proptest! {
    #[test]
    fn a_tuple_that_is_written_reads_back(tuple in any_tuple()) {
        let bytes = write_tuple(Request::new(0, &[]), &tuple).numbered(0, 0);
        prop_assert_eq!(read_tuple(&bytes[16..]), Some(tuple));
    }

    #[test]
    fn any_bytes_are_a_connection_or_none(bytes: Vec<u8>) {
        read(&bytes);
    }

    #[test]
    fn a_message_with_any_bytes_changed_is_a_connection_or_none(
        changes in prop::collection::vec((0_usize..300, any::<u8>()), 1..9),
        cut in 0_usize..300,
    ) {
        let mut bytes = hex(TCP);
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(cut);
        read(&bytes);
        messages(&bytes).count();
    }
}
