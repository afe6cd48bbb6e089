use super::*;
use crate::packet::PeerOffloads;
use crate::packet::testing::Sample;
use proptest::prelude::*;

/// The header's fields in the order of virtio 1.2 section 5.1.6.
fn header(flags: u8, gso_type: u8, hdr_len: u16, size: u16, start: u16, offset: u16) -> [u8; LEN] {
    let mut bytes = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    bytes[2..4].copy_from_slice(&hdr_len.to_le_bytes());
    bytes[4..6].copy_from_slice(&size.to_le_bytes());
    bytes[6..8].copy_from_slice(&start.to_le_bytes());
    bytes[8..10].copy_from_slice(&offset.to_le_bytes());
    bytes
}

#[test]
fn offloads_survive_a_round_trip_and_hdr_len_is_the_frames_own() {
    let mut tcp6 = Sample::tcp6(&[0; 5000]);
    (tcp6.options, tcp6.flags) = (vec![1; 12], 0x90);
    for (sample, gso_type, hdr_len) in [
        (Sample::tcp4(&[0; 5000]), 1, 54),
        (tcp6, 0x84, 86),
        (Sample::udp4(&[0; 5000]), 5, 42),
        (Sample::udp6(&[0; 5000]), 5, 62),
    ] {
        let (mut frame, mut offload) = sample.build_gso(1400);
        let start = sample.l4() as u16;
        let offset = (sample.check().unwrap() - sample.l4()) as u16;
        let bytes = encode(&offload, &frame);
        assert_eq!(bytes, header(1, gso_type, hdr_len, 1400, start, offset));
        for sender in [Sender::Guest, Sender::Host] {
            assert_eq!(decode(&bytes, frame.len(), sender), Ok(offload));
            assert_eq!(
                decode(&bytes[..LEN_LEGACY], frame.len(), sender),
                Ok(offload)
            );
        }
        // Behind a pushed tag everything lies four bytes further.
        frame.splice(12..12, [0x81, 0, 0, 7]);
        offload.checksum = Checksum::Partial {
            start: start + 4,
            offset,
        };
        assert_eq!(
            encode(&offload, &frame),
            header(1, gso_type, hdr_len + 4, 1400, start + 4, offset)
        );
    }
}

#[test]
fn a_frame_of_wire_bytes_has_an_empty_header() {
    let frame = Sample::udp4(&[]).build();
    assert_eq!(
        encode(&Offload::default(), &frame),
        header(0, 0, 0, 0, 0, 0)
    );
    assert_eq!(
        decode(&[0; LEN_LEGACY], 0, Sender::Guest),
        Ok(Offload::default())
    );
}

#[test]
fn only_the_host_is_believed_that_a_checksum_is_valid() {
    let bytes = header(F_DATA_VALID, 0, 0, 0, 0, 0);
    let checksum = |sender| decode(&bytes, 60, sender).unwrap().checksum;
    assert_eq!(checksum(Sender::Host), Checksum::Valid);
    assert_eq!(checksum(Sender::Guest), Checksum::Unchecked);
    let valid = Offload {
        checksum: Checksum::Valid,
        gso: Gso::default(),
    };
    assert_eq!(encode(&valid, &[0; 60]), bytes);
}

#[test]
fn unknown_flags_are_ignored() {
    assert_eq!(
        decode(&header(0xfc, 0, 0, 9, 9, 9), 60, Sender::Host),
        Ok(Offload::default())
    );
}

#[test]
fn lies_are_refused() {
    let refused = |bytes: [u8; LEN], len| decode(&bytes, len, Sender::Guest).unwrap_err();
    // CVE-2024-11614: csum_start past the packet.
    for (start, offset) in [(59, 0), (0, 59), (54, 16), (u16::MAX, u16::MAX)] {
        let error = refused(header(1, 0, 0, 0, start, offset), 60);
        assert_eq!(
            error,
            InvalidVnetHdr::ChecksumOutside {
                start,
                offset,
                frame_len: 60
            }
        );
    }
    for gso_type in [2, 6, 0x7f, 0x80, 0x83, 0x85, 0xff] {
        let error = refused(header(1, gso_type, 0, 100, 34, 6), 60);
        assert_eq!(error, InvalidVnetHdr::GsoType(gso_type));
    }
    for size in [0, 0xffff] {
        assert_eq!(
            refused(header(1, 1, 0, size, 34, 16), 60),
            InvalidVnetHdr::GsoSize(size)
        );
    }
    assert_eq!(
        refused(header(0, 1, 0, 9, 34, 16), 60),
        InvalidVnetHdr::GsoWithoutChecksum(1)
    );
    assert_eq!(
        decode(&[0; 9], 60, Sender::Guest),
        Err(InvalidVnetHdr::Short(9))
    );
}

#[test]
fn a_checksum_among_the_addresses_is_not_passed_on() {
    for (sample, first) in [
        (Sample::tcp4(&[0; 40]), 34u16),
        (Sample::tcp6(&[0; 40]), 54),
    ] {
        let frame = sample.build();
        for start in 0..first {
            let checksum = Checksum::Partial { start, offset: 0 };
            let offload = Offload {
                checksum,
                gso: Gso::default(),
            };
            assert_eq!(
                encode(&offload, &frame),
                header(0, 0, 0, 0, 0, 0),
                "start {start}"
            );
        }
        let checksum = Checksum::Partial {
            start: first,
            offset: 16,
        };
        let offload = Offload {
            checksum,
            gso: Gso::default(),
        };
        assert_eq!(encode(&offload, &frame)[0], F_NEEDS_CSUM);
    }
}

#[test]
fn a_gso_kind_that_the_headers_contradict_is_not_passed_on() {
    let (frame, offload) = Sample::tcp4(&[0; 3000]).build_gso(1000);
    for kind in [GsoKind::Tcp6, GsoKind::UdpL4, GsoKind::Ufo] {
        let gso = Gso {
            kind,
            ..offload.gso
        };
        let bytes = encode(&Offload { gso, ..offload }, &frame);
        assert_eq!(bytes, header(F_NEEDS_CSUM, 0, 0, 0, 34, 16), "{kind:?}");
    }
}

proptest! {
    #[test]
    fn what_is_decoded_keeps_the_promise_of_offload(
        bytes in any::<[u8; LEN]>(), flags in 0u8..4, gso_type in 0u8..8, frame_len in 0usize..70_000, keep in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if keep {
            (bytes[0], bytes[1]) = (flags, gso_type);
        }
        if let Ok(offload) = decode(&bytes, frame_len, Sender::Guest) {
            prop_assert_ne!(offload.checksum, Checksum::Valid);
            if let Checksum::Partial { start, offset } = offload.checksum {
                prop_assert!(usize::from(start) + usize::from(offset) + 2 <= frame_len);
            }
            if offload.gso.kind != GsoKind::None {
                prop_assert!(offload.gso.size != 0);
            }
            let _ = crate::packet::segment::fits(&offload, &PeerOffloads::default());
        }
    }
}
