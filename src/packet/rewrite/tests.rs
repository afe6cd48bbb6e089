use std::net::IpAddr;

use super::*;
use crate::packet::MacAddr;
use crate::packet::testing::{DST_MAC, SRC_MAC, Sample, guarded, parsed, unguarded};
use crate::packet::{Offload, VnicId, parse, segment};
use proptest::prelude::*;

const NEW_DST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xd]);
const NEW_SRC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xc]);

/// A rewrite with the keys it is of.
struct Prepared {
    rewrite: Rewrite,
    from: FlowKey,
    to: FlowKey,
}

impl Prepared {
    fn new(from: &Sample, to: &Sample, decrement: bool, dscp: Option<u8>) -> Self {
        let (from, to) = (from.key(), to.key());
        let rewrite = Rewrite::new(&from, &to, decrement, dscp).unwrap();
        Self { rewrite, from, to }
    }

    fn apply(&self, frame: &mut FrameMut<'_>, parsed: &Parsed) -> bool {
        let macs = [NEW_DST.0, NEW_SRC.0].concat().try_into().unwrap();
        let (from, to) = (self.from.words(), self.to.words());
        let (from_ports, to_ports) = (from[5] as u32, to[5] as u32);
        if self.from.is_ipv4() {
            let change = Narrow {
                from: [from[1] | from[3] >> 32],
                to: [to[1] | to[3] >> 32],
                from_ports,
                to_ports,
            };
            self.rewrite.apply(&change, frame, parsed, &macs)
        } else {
            let addresses = |words: &[u64; 6]| *words[1..5].first_chunk().unwrap();
            let change = Wide {
                from: addresses(from),
                to: addresses(to),
                from_ports,
                to_ports,
            };
            self.rewrite.apply(&change, frame, parsed, &macs)
        }
    }
}

/// What a rewrite makes of `frame`.
fn rewritten(rewrite: &Prepared, frame: &[u8], offload: Offload) -> (Vec<u8>, Offload) {
    let parsed = parse(frame, &offload, VnicId(1)).unwrap();
    let mut burst = guarded(frame, offload);
    assert!(rewrite.apply(&mut burst.frame_mut(1), &parsed));
    (unguarded(&burst).to_vec(), burst.frame(1).offload)
}

/// A flow's packet before and after, each built from scratch.
#[derive(Clone, Debug)]
struct Case {
    from: Sample,
    to: Sample,
    decrement: bool,
    dscp: Option<u8>,
}

impl Case {
    fn rewrite(&self) -> Prepared {
        Prepared::new(&self.from, &self.to, self.decrement, self.dscp)
    }
}

const PROTOCOLS: [u8; 7] = [
    protocol::TCP,
    protocol::UDP,
    protocol::ICMP,
    protocol::SCTP,
    protocol::GRE,
    50,
    4,
];

fn sample(
    ipv4: bool,
    number: u8,
    tag: Option<u16>,
    reply: bool,
    payload: Vec<u8>,
    options: usize,
) -> Sample {
    let mut sample = match (ipv4, number) {
        (true, _) => Sample::v4(number, &payload),
        (false, protocol::ICMP) => Sample::v6(protocol::ICMPV6, &payload),
        (false, _) => Sample::v6(number, &payload),
    };
    if reply && matches!(number, protocol::ICMP | protocol::ICMPV6) {
        sample.tuple.dst_port = if ipv4 { 0 } else { 129 };
    }
    sample.options = vec![1; options * 4];
    sample.tag = tag;
    sample
}

fn tag() -> impl Strategy<Value = Option<u16>> {
    prop_oneof![
        Just(None),
        (any::<u16>(), prop_oneof![Just(0u16), 1u16..4095])
            .prop_map(|(tci, id)| Some(tci & 0xf000 | id)),
    ]
}

prop_compose! {
    fn case_of(protocols: &'static [u8])(
        ipv4 in any::<bool>(),
        number in prop::sample::select(protocols),
        tag in tag(),
        reply in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 0..120),
        options in 0usize..10,
        (dscp, ecn, flow_label, ttl, seq) in (0u8..64, 0u8..4, 0u32..1 << 20, 2u8.., any::<u32>()),
        (nat_src, nat_dst, nat_ports) in any::<(bool, bool, bool)>(),
        (src, dst) in any::<(u128, u128)>(),
        ports in any::<(u16, u16)>(),
        vlan in prop_oneof![Just(0u16), 1u16..4095],
        decrement in any::<bool>(),
        new_dscp in prop::option::of(0u8..64),
    ) -> Case {
        let mut from = sample(ipv4, number, tag, reply, payload, options);
        (from.dscp, from.ecn, from.flow_label, from.ttl, from.seq) = (dscp, ecn, flow_label, ttl, seq);
        let mut to = from.clone();
        (to.dst_mac, to.src_mac) = (NEW_DST, NEW_SRC);
        let address = |bits: u128| match ipv4 {
            true => IpAddr::V4((bits as u32).into()),
            false => IpAddr::V6(bits.into()),
        };
        if nat_src {
            to.tuple.src = address(src);
        }
        if nat_dst {
            to.tuple.dst = address(dst);
        }
        if nat_ports {
            match number {
                protocol::TCP | protocol::UDP => (to.tuple.src_port, to.tuple.dst_port) = ports,
                protocol::ICMP => to.tuple.src_port = ports.0,
                _ => {}
            }
        }
        to.ttl -= u8::from(decrement);
        to.dscp = new_dscp.unwrap_or(to.dscp);
        to.tag = (vlan != 0).then(|| tag.unwrap_or(0) & 0xf000 | vlan);
        Case { from, to, decrement, dscp: new_dscp }
    }
}

fn case() -> impl Strategy<Value = Case> {
    case_of(&PROTOCOLS)
}

/// The one's-complement distance of two checksums.
fn distance(a: u16, b: u16) -> u16 {
    checksum::add(a, !b) % 0xffff
}

fn field(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_valid_frame_becomes_the_frame_built_from_scratch(case in case(), padding in 0usize..20) {
        let mut frame = case.from.build();
        let mut expected = case.to.build();
        // Padding is not the packet's, and survives.
        frame.resize(frame.len() + padding, 0xa5);
        expected.resize(expected.len() + padding, 0xa5);
        let (after, offload) = rewritten(&case.rewrite(), &frame, Offload::default());
        prop_assert_eq!(after, expected);
        prop_assert_eq!(offload, Offload::default());
    }

    #[test]
    fn an_invalid_frame_stays_invalid_by_the_same_difference(
        case in case(), l4_error in 1u16..0xffff, ip_error in 1u16..0xffff,
    ) {
        let (mut frame, expected) = (case.from.build(), case.to.build());
        if let Some(at) = case.from.check() {
            let wrong = checksum::add(field(&frame, at), l4_error);
            // A UDP checksum of zero is no checksum, and no wrong one.
            prop_assume!(case.from.tuple.protocol != protocol::UDP || wrong != 0);
            put(&mut frame, at, wrong);
        }
        let ip_at = |sample: &Sample| sample.is_ipv4().then(|| sample.l3() + 10);
        if let Some(at) = ip_at(&case.from) {
            let wrong = checksum::add(field(&frame, at), ip_error);
            put(&mut frame, at, wrong);
        }
        let (mut after, _) = rewritten(&case.rewrite(), &frame, Offload::default());
        let mut expected = expected;
        for (at, error) in [(case.to.check(), l4_error), (ip_at(&case.to), ip_error)] {
            if let Some(at) = at {
                prop_assert_eq!(distance(field(&after, at), field(&expected, at)), error % 0xffff);
                put(&mut after, at, 0);
                put(&mut expected, at, 0);
            }
        }
        prop_assert_eq!(after, expected);
    }

    #[test]
    fn a_partial_checksum_completes_to_the_frame_built_from_scratch(case in case_of(&PROTOCOLS[..3])) {
        let (frame, offload) = case.from.build_partial();
        let parsed = parse(&frame, &offload, VnicId(1)).unwrap();
        let mut burst = guarded(&frame, offload);
        prop_assert!(case.rewrite().apply(&mut burst.frame_mut(1), &parsed));
        prop_assert_eq!(burst.frame(1).data, &case.to.build_partial().0[..]);
        prop_assert_eq!(burst.frame(1).offload, case.to.build_partial().1);
        segment::complete(&mut burst.frame_mut(1)).unwrap();
        prop_assert_eq!(unguarded(&burst), &case.to.build()[..]);
        prop_assert_eq!(burst.frame(1).offload, Offload::default());
    }

    #[test]
    fn an_absent_udp_checksum_stays_absent(case in case_of(&[protocol::UDP])) {
        let (mut frame, mut expected) = (case.from.build(), case.to.build());
        put(&mut frame, case.from.check().unwrap(), 0);
        put(&mut expected, case.to.check().unwrap(), 0);
        prop_assert_eq!(rewritten(&case.rewrite(), &frame, Offload::default()).0, expected);
    }

    #[test]
    fn a_rewrite_matches_its_own_work(case in case()) {
        let rewrite = case.rewrite();
        let after = rewritten(&rewrite, &case.from.build(), Offload::default()).0;
        if let Ok(parsed) = parse(&after, &Offload::default(), VnicId(1)) {
            prop_assert_eq!(parsed.key, case.to.key());
            prop_assert!(rewrite.rewrite.matches(&after, &parsed));
            let mut other = case.to.clone();
            other.dscp ^= 1;
            prop_assert_eq!(rewrite.rewrite.matches(&other.build(), &parsed), case.dscp.is_none());
        }
    }

    #[test]
    fn the_marker_survives_every_rewrite(case in case()) {
        let (from, to) = (case.from.build(), case.to.build());
        let marker = crate::packet::Marker::of(&from, &parsed(&from));
        if let Ok(after) = parse(&to, &Offload::default(), VnicId(1)) {
            prop_assert_eq!(crate::packet::Marker::of(&to, &after), marker);
        }
    }

    #[test]
    fn no_bytes_make_a_rewrite_panic(
        case in case(),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        len in any::<prop::sample::Index>(),
        (start, offset) in any::<(u16, u16)>(),
    ) {
        let frame = case.from.build();
        let honest = parsed(&frame);
        let mut frame = frame;
        for (at, byte) in noise {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        frame.truncate(len.index(frame.len() + 1));
        let offload = Offload { checksum: Checksum::Partial { start, offset }, ..Offload::default() };
        for offload in [Offload::default(), offload] {
            let own = parse(&frame, &offload, VnicId(1)).unwrap_or(honest);
            // Of this frame or of another: false or true, but never a panic.
            for parsed in [own, honest] {
                let mut burst = guarded(&frame, offload);
                let done = case.rewrite().apply(&mut burst.frame_mut(1), &parsed);
                let after = unguarded(&burst);
                prop_assert!(done || after == frame);
            }
        }
    }
}

#[test]
fn a_source_nat_changes_these_bytes_and_no_other() {
    // The shape of a DNS query; etherparse supplies headers and checksums.
    let query =
        Sample::udp4(b"\x1b\x2a\x01\x20\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01");
    let frame = query.build();
    let mut to = query.clone();
    to.tuple.src = "203.0.113.7".parse().unwrap();
    to.tuple.src_port = 1024;
    let rewrite = Prepared::new(&query, &to, true, None);
    let (after, _) = rewritten(&rewrite, &frame, Offload::default());
    assert_eq!(after[..12], [NEW_DST.0, NEW_SRC.0].concat());
    assert_eq!(after[22], 63);
    assert_eq!(after[26..34], [203, 0, 113, 7, 198, 51, 100, 2]);
    assert_eq!(after[34..38], [4, 0, 1, 187]);
    assert_eq!(after[42..], frame[42..]);
}

#[test]
fn a_published_header_keeps_its_checksum_when_the_ttl_shrinks() {
    // The header computed step by step in Wikipedia's "Internet checksum" (IPv4 header):
    // 4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7.
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];
    let mut frame = [DST_MAC.0, SRC_MAC.0].concat();
    frame.extend([0x08, 0x00]);
    frame.extend(header);
    frame.extend([0x9c, 0x40, 0x00, 0x35, 0x00, 0x5f, 0x00, 0x00]);
    frame.resize(14 + 0x73, 0);
    let key = parsed(&frame).key;
    let rewrite = Prepared {
        rewrite: Rewrite::new(&key, &key, true, None).unwrap(),
        from: key,
        to: key,
    };
    let (after, _) = rewritten(&rewrite, &frame, Offload::default());
    // TTL 0x40 to 0x3f: the checksum grows by 0x0100.
    assert_eq!(after[22..26], [0x3f, 0x11, 0xb9, 0x61]);
    assert_eq!(checksum::sum(&after[14..34]), 0xffff);
}

#[test]
fn an_echo_reply_of_zeros_gets_the_other_zero() {
    let mut from = Sample::echo4(&[0; 9]);
    from.tuple.dst_port = 0;
    from.seq = 0;
    let mut to = from.clone();
    to.tuple.src_port = 0;
    (to.dst_mac, to.src_mac) = (NEW_DST, NEW_SRC);
    let rewrite = Prepared::new(&from, &to, false, None);
    let (after, _) = rewritten(&rewrite, &from.build(), Offload::default());
    assert_eq!(field(&after, 36), 0xffff);
    assert_eq!(after, to.build());
    let back = Prepared::new(&to, &from, false, None);
    let (restored, _) = rewritten(&back, &after, Offload::default());
    assert_eq!(restored[14..], from.build()[14..]);
}

#[test]
fn a_computed_udp_zero_becomes_all_ones() {
    let from = Sample::udp4(&[0, 0]);
    let mut to = from.clone();
    (to.dst_mac, to.src_mac) = (NEW_DST, NEW_SRC);
    // Choose the port that makes the rest of the sum come out as all ones.
    to.tuple.src_port = 0;
    let check = field(&to.build(), 40);
    to.tuple.src_port = check;
    let expected = to.build();
    assert_eq!(field(&expected, 40), 0xffff);
    let rewrite = Prepared::new(&from, &to, false, None);
    assert_eq!(
        rewritten(&rewrite, &from.build(), Offload::default()).0,
        expected
    );
}

#[test]
fn a_partial_checksum_inside_a_tunnel_moves_with_the_tag() {
    let mut inner = Sample::tcp4(&[3; 40]);
    let mut from = Sample::v4(protocol::GRE, &inner.build_partial().0[14..]);
    let mut to = from.clone();
    to.tuple.dst = "203.0.113.9".parse().unwrap();
    to.tag = Some(7);
    (to.dst_mac, to.src_mac) = (NEW_DST, NEW_SRC);
    let offload = Offload {
        checksum: Checksum::Partial {
            start: 34 + 4 + 20,
            offset: 16,
        },
        ..Offload::default()
    };
    let rewrite = Prepared::new(&from, &to, false, None);
    let (after, offload) = rewritten(&rewrite, &from.build(), offload);
    assert_eq!(
        offload.checksum,
        Checksum::Partial {
            start: 62,
            offset: 16
        }
    );
    let mut burst = guarded(&after, offload);
    segment::complete(&mut burst.frame_mut(1)).unwrap();
    inner.id = 0x1234;
    to.payload = inner.build()[14..].to_vec();
    assert_eq!(unguarded(&burst), to.build());
    from.tag = Some(7);
    assert_eq!(rewrite.rewrite.vlan().map(VlanId::get), Some(7));
}

#[test]
fn without_headroom_a_tag_is_not_pushed_and_nothing_changes() {
    let from = Sample::udp4(&[1]);
    let mut to = from.clone();
    to.tag = Some(9);
    let rewrite = Prepared::new(&from, &to, true, None);
    let frame = from.build();
    let mut burst = guarded(&frame, Offload::default());
    while burst.frame_mut(1).grow_front(1) {}
    let grown = burst.frame(1).data.len() - frame.len();
    burst.frame_mut(1).data()[..frame.len()].copy_from_slice(&frame);
    assert!(!rewrite.apply(&mut burst.frame_mut(1), &parsed(&frame)));
    assert_eq!(burst.frame(1).data[..frame.len()], frame);
    assert_eq!(grown, crate::packet::HEADROOM);
}

#[test]
fn what_cannot_be_rewritten_is_refused_with_the_way_out() {
    let refused =
        |from: &Sample, to: &Sample| Rewrite::new(&from.key(), &to.key(), true, None).unwrap_err();
    let changed = |from: &Sample, change: fn(&mut Tuple)| {
        let mut to = from.clone();
        change(&mut to.tuple);
        refused(from, &to)
    };
    use crate::packet::Tuple;
    let (tcp4, tcp6) = (Sample::tcp4(&[]), Sample::tcp6(&[]));
    assert_eq!(refused(&tcp4, &tcp6), InvalidRewrite::MixedFamilies);
    let mixed = changed(&tcp4, |tuple| tuple.src = "2001:db8::1".parse().unwrap());
    assert_eq!(mixed, InvalidRewrite::MixedFamilies);
    let other = changed(&tcp4, |tuple| tuple.protocol = 17);
    assert_eq!(other, InvalidRewrite::ProtocolChange { from: 6, to: 17 });
    let echo = changed(&Sample::echo4(&[]), |tuple| tuple.dst_port = 0);
    assert_eq!(echo, InvalidRewrite::EchoTypeChange { from: 8, to: 0 });
    let sctp = changed(&Sample::v4(protocol::SCTP, &[]), |tuple| {
        tuple.src_port += 1
    });
    assert_eq!(sctp, InvalidRewrite::SctpPorts);
    assert!(sctp.to_string().contains("translate SCTP addresses only"));
    let esp = changed(&Sample::v4(50, &[]), |tuple| tuple.dst_port = 5);
    assert_eq!(esp, InvalidRewrite::Portless(50));
    for number in [33, 51, 112, 136] {
        let moved = changed(&Sample::v4(number, &[]), |tuple| {
            tuple.src = [9, 9, 9, 9].into()
        });
        assert_eq!(moved, InvalidRewrite::AddressesProtected(number));
        let key = Sample::v4(number, &[]).key();
        assert!(Rewrite::new(&key, &key, true, None).is_ok());
    }
    let key = tcp4.key();
    assert_eq!(
        Rewrite::new(&key, &key, true, Some(64)),
        Err(InvalidRewrite::Dscp(64))
    );
    let far = FlowKey::new(VnicId(1), 4095, &tcp4.tuple);
    assert_eq!(
        Rewrite::new(&key, &far, true, None),
        Err(InvalidRewrite::Vlan(4095))
    );
}

#[test]
fn a_rewrite_fits_beside_a_flow() {
    assert!(size_of::<Rewrite>() <= 72, "{}", size_of::<Rewrite>());
}
