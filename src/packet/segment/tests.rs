use super::*;
use crate::packet::testing::{Sample, guarded, unguarded};
use crate::packet::{Gso, VnicId, parse};
use proptest::prelude::*;

/// All segments of a frame; bursts start out full of 0xa5, so a byte not written shows.
fn segments(data: &[u8], offload: Offload) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut burst = Burst::new();
    for _ in 0..4 {
        burst.push(&[0xa5; 65_000], Offload::default());
    }
    burst.clear();
    let mut segments = Segments::new(Frame { data, offload })?;
    let mut all = Vec::new();
    while segments.fill(&mut burst) > 0 {
        for index in 0..burst.len() {
            let frame = burst.frame(index);
            assert_eq!(frame.offload, Offload::default());
            all.push(frame.data.to_vec());
        }
        burst.clear();
    }
    assert!(segments.is_done());
    Ok(all)
}

/// What the wire shall carry, each packet built from scratch.
fn expected(sample: &Sample, size: usize) -> Vec<Vec<u8>> {
    let count = sample.payload.len().div_ceil(size);
    let build = |(index, payload): (usize, &[u8])| {
        let mut segment = sample.clone();
        segment.payload = payload.to_vec();
        segment.seq = sample.seq.wrapping_add((index * size) as u32);
        segment.id = sample.id.wrapping_add(index as u16);
        if index + 1 < count {
            segment.flags &= !0x09;
        }
        if index > 0 {
            segment.flags &= !0x80;
        }
        segment.build()
    };
    sample.payload.chunks(size).enumerate().map(build).collect()
}

prop_compose! {
    fn gso()(
        (ipv4, tcp) in any::<(bool, bool)>(),
        len in prop_oneof![1usize..300, 1usize..20_000],
        size in prop_oneof![32u16..200, 32u16..9000],
        tag in prop::option::of(any::<u16>()),
        seq in any::<u32>(),
        id in any::<u16>(),
        flags in any::<u8>(),
        options in 0usize..10,
        fill in any::<u8>(),
    ) -> (Sample, u16) {
        let payload: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(7) ^ fill).collect();
        let mut sample = match (ipv4, tcp) {
            (true, true) => Sample::tcp4(&payload),
            (true, false) => Sample::udp4(&payload),
            (false, true) => Sample::tcp6(&payload),
            (false, false) => Sample::udp6(&payload),
        };
        (sample.tag, sample.seq, sample.id, sample.flags) = (tag, seq, id, flags);
        sample.options = vec![1; options * 4];
        (sample, size)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn segments_equal_packets_built_from_scratch((sample, size) in gso()) {
        let (frame, offload) = sample.build_gso(size);
        let made = segments(&frame, offload).unwrap();
        prop_assert_eq!(&made, &expected(&sample, size.into()));
        // And the counters told the truth about them.
        let parsed = parse(&frame, &offload, VnicId(1)).unwrap();
        let bytes: usize = made.iter().map(|segment| segment.len() - sample.l3()).sum();
        prop_assert_eq!(parsed.wire_count(&offload), (made.len() as u64, bytes as u64));
        let longest = made.iter().map(|segment| segment.len() - sample.l3()).max();
        prop_assert_eq!(Some(parsed.wire_l3_max(&offload) as usize), longest);
    }

    #[test]
    fn no_frame_and_no_offload_panic(
        (sample, size) in gso(),
        noise in prop::collection::vec((0usize..100, any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        (start, offset) in (0u16..120, 0u16..24),
        lie in any::<bool>(),
    ) {
        let (mut frame, mut offload) = sample.build_gso(size);
        for (at, byte) in noise {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame.truncate(cut.index(frame.len() + 1));
        if lie {
            offload.checksum = Checksum::Partial { start, offset };
        }
        let _ = segments(&frame, offload);
        offload.gso = Gso::default();
        let _ = segments(&frame, offload);
        let mut burst = guarded(&frame, offload);
        let done = complete(&mut burst.frame_mut(1)).is_ok();
        prop_assert!(done || unguarded(&burst) == frame);
    }
}

#[test]
fn a_64_kib_frame_fills_several_bursts() {
    let payload: Vec<u8> = (0..65_000u32).map(|n| n as u8).collect();
    let sample = Sample::tcp4(&payload);
    let (frame, offload) = sample.build_gso(100);
    let made = segments(&frame, offload).unwrap();
    assert_eq!(made.len(), 650);
    assert_eq!(made, expected(&sample, 100));
}

#[test]
fn a_gso_frame_without_payload_is_one_packet() {
    let sample = Sample::tcp4(&[]);
    let (frame, offload) = sample.build_gso(100);
    assert_eq!(segments(&frame, offload).unwrap(), [sample.build()]);
}

#[test]
fn a_partial_checksum_alone_is_completed_in_a_copy() {
    for sample in [
        Sample::tcp6(&[1; 33]),
        Sample::udp4(&[2; 5]),
        Sample::v6(58, &[3; 8]),
    ] {
        let (frame, offload) = sample.build_partial();
        assert_eq!(segments(&frame, offload).unwrap(), [sample.build()]);
    }
    let valid = Offload {
        checksum: Checksum::Valid,
        gso: Gso::default(),
    };
    let frame = Sample::udp4(&[2; 5]).build();
    assert_eq!(segments(&frame, valid).unwrap(), [frame]);
}

#[test]
fn options_extension_headers_and_two_tags_are_repeated() {
    let sample = Sample::tcp6(&[7; 250]);
    let whole = |sample: &Sample| {
        let mut frame = sample.build();
        // Destination options (RFC 8200 section 4.6) of 8 bytes: PadN.
        frame.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
        frame[20] = 60;
        let len = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        frame.splice(12..12, [0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]);
        frame
    };
    let (partial, mut offload) = sample.build_gso(100);
    let mut frame = whole(&sample);
    frame[86..88].copy_from_slice(&partial[70..72]);
    offload.checksum = Checksum::Partial {
        start: 70,
        offset: 16,
    };
    let made = segments(&frame, offload).unwrap();
    let expected: Vec<_> = sample
        .payload
        .chunks(100)
        .enumerate()
        .map(|(n, payload)| {
            let mut segment = sample.clone();
            segment.payload = payload.to_vec();
            segment.seq += n as u32 * 100;
            whole(&segment)
        })
        .collect();
    assert_eq!(made, expected);
}

#[test]
fn what_headers_do_not_allow_is_unsegmentable() {
    let (frame, offload) = Sample::udp4(&[0; 3000]).build_gso(1000);
    let refused = |frame: &[u8], offload: Offload| {
        assert_eq!(
            segments(frame, offload),
            Err(DropReason::Unsegmentable),
            "{offload:?}"
        );
    };
    for kind in [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Ufo] {
        refused(
            &frame,
            Offload {
                gso: Gso {
                    kind,
                    ..offload.gso
                },
                ..offload
            },
        );
    }
    // A share of time without bound: 3000 segments of one byte.
    refused(
        &frame,
        Offload {
            gso: Gso {
                size: 1,
                ..offload.gso
            },
            ..offload
        },
    );
    refused(
        &frame,
        Offload {
            gso: Gso {
                size: 0,
                ..offload.gso
            },
            ..offload
        },
    );
    refused(
        &frame,
        Offload {
            checksum: Checksum::Unchecked,
            ..offload
        },
    );
    let elsewhere = Checksum::Partial {
        start: 35,
        offset: 6,
    };
    refused(
        &frame,
        Offload {
            checksum: elsewhere,
            ..offload
        },
    );
    let among_addresses = Checksum::Partial {
        start: 14,
        offset: 12,
    };
    refused(
        &frame,
        Offload {
            checksum: among_addresses,
            gso: Gso::default(),
        },
    );
    let mut fragment = frame.clone();
    fragment[20] = 0x20;
    refused(&fragment, offload);
    refused(&vec![0; crate::packet::FRAME_MAX + 1], Offload::default());
    // One segment of more than an IPv4 packet can be.
    let mut large = frame;
    large.resize(crate::packet::FRAME_MAX, 0);
    refused(
        &large,
        Offload {
            gso: Gso {
                size: 65_534,
                ..offload.gso
            },
            ..offload
        },
    );
}

#[test]
fn a_peer_takes_what_it_said_it_takes() {
    let all = PeerOffloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        uso: true,
    };
    let none = PeerOffloads::default();
    let partial = Checksum::Partial {
        start: 34,
        offset: 16,
    };
    let offload = |checksum, kind, ecn| Offload {
        checksum,
        gso: Gso { kind, size: 9, ecn },
    };
    assert!(fits(&Offload::default(), &none));
    assert!(!fits(
        &offload(Checksum::Valid, GsoKind::None, false),
        &none
    ));
    assert!(!fits(&offload(partial, GsoKind::None, false), &none));
    for (kind, peer) in [
        (GsoKind::Tcp4, PeerOffloads { tso4: false, ..all }),
        (GsoKind::Tcp6, PeerOffloads { tso6: false, ..all }),
        (GsoKind::UdpL4, PeerOffloads { uso: false, ..all }),
    ] {
        assert!(fits(&offload(partial, kind, false), &all));
        assert!(!fits(&offload(partial, kind, false), &peer));
        assert!(!fits(
            &offload(partial, kind, false),
            &PeerOffloads {
                checksum: false,
                ..all
            }
        ));
    }
    assert!(!fits(&offload(partial, GsoKind::Ufo, false), &all));
    assert!(fits(&offload(partial, GsoKind::Tcp4, true), &all));
    assert!(!fits(
        &offload(partial, GsoKind::Tcp4, true),
        &PeerOffloads { ecn: false, ..all }
    ));
}
