use super::*;

use proptest::collection::vec;
use proptest::prelude::*;

fn heads() -> impl Strategy<Value = Head> {
    let kinds = prop_oneof![
        Just(Kind::Hello),
        Just(Kind::Ack),
        Just(Kind::Data),
        Just(Kind::Beat),
        Just(Kind::Bye)
    ];
    (kinds, any::<[u32; 4]>()).prop_map(|(kind, [from, to, count, limit])| Head {
        kind,
        from,
        to,
        count,
        limit,
    })
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..600),
        vec(Just(0), 0..600),
        vec(1u8.., 0..600),
        Just(vec![7; PAYLOAD_MAX]),
        Just(vec![0; PAYLOAD_MAX]),
    ]
}

fn encoded(head: Head, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(head, payload, &mut bytes);
    bytes
}

/// All frames and damages in `parts`, given one after another.
fn decode_all(parts: &[&[u8]]) -> Vec<Result<(Head, Vec<u8>), Damage>> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for part in parts {
        let mut rest = *part;
        while let Some(frame) = decoder.next(&mut rest) {
            found.push(frame.map(|frame| (frame.head, frame.payload.to_vec())));
        }
        assert!(rest.is_empty());
    }
    found
}

#[test]
fn a_hello_is_these_bytes() {
    let head = Head {
        kind: Kind::Hello,
        from: 0x0102_0304,
        to: 0,
        count: 0,
        limit: 65_536,
    };
    let expected = [
        0x00, // begins
        0x06, 0x11, 0x01, 0x02, 0x03, 0x04, // version 1 and kind 1, from
        0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, // the zeros of to, count and limit
        0x02, 0x01, 0x01, // rest of the limit: 01 00 00
        0x05, 0xce, 0x08, 0x6c, 0xaf, // CRC-32C of the above before COBS
        0x00, // ends
    ];
    let bytes = encoded(head, &[]);
    assert_eq!(bytes, expected, "{bytes:02x?}");
}

#[test]
fn the_checksum_is_crc32c() {
    // RFC 3720 appendix B.4.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}

proptest! {
    #[test]
    fn a_whole_frame_is_understood_whatever_came_before(
        noise in vec(any::<u8>(), 0..800),
        head in heads(),
        payload in payloads(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut line = noise;
        line.extend(encoded(head, &payload));
        let (one, two) = line.split_at(cut.index(line.len() + 1));
        prop_assert_eq!(decode_all(&[one, two]).pop(), Some(Ok((head, payload))));
    }

    #[test]
    fn a_cut_frame_costs_itself_only(
        heads in (heads(), heads()),
        payload in payloads(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut line = encoded(heads.0, &payload);
        line.truncate(cut.index(line.len() - 1));
        line.extend(encoded(heads.1, &payload));
        let found: Vec<_> = decode_all(&[&line]).into_iter().flatten().collect();
        prop_assert_eq!(found, vec![(heads.1, payload)]);
    }

    #[test]
    fn a_changed_byte_is_found(
        head in heads(),
        payload in payloads(),
        at in any::<prop::sample::Index>(),
        to in any::<u8>(),
    ) {
        let mut line = encoded(head, &payload);
        // The first zero may be anything: what it ends is empty.
        let at = 1 + at.index(line.len() - 2);
        prop_assume!(line[at] != to);
        line[at] = to;
        prop_assert!(decode_all(&[&line]).iter().all(Result::is_err));
    }
}

#[test]
fn other_versions_and_kinds_are_unknown() {
    for byte in [0x10, 0x16, 0x21, 0x01] {
        let mut content = vec![byte];
        content.extend([9; HEAD - 1]);
        content.extend(crc32c(&content).to_be_bytes());
        let mut line = vec![0; 40];
        // What follows the coded form is zeros: its end.
        cobs::encode(&content, &mut line);
        assert_eq!(decode_all(&[&line]), [Err(Damage::Unknown)], "{byte:#x}");
    }
}

#[test]
fn a_gibibyte_of_noise_is_no_frame_and_takes_no_memory() {
    const BLOCK: usize = 1 << 20;
    let mut decoder = Decoder::default();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = vec![0_u8; BLOCK];
    for round in 0..1_024 {
        for word in noise.chunks_exact_mut(8) {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Every fourth block without zeros, as a long run of text would be.
            let without = if round % 4 == 0 {
                0x0101_0101_0101_0101
            } else {
                0
            };
            word.copy_from_slice(&(state | without).to_ne_bytes());
        }
        let mut rest = &noise[..];
        while let Some(frame) = decoder.next(&mut rest) {
            assert!(frame.is_err());
        }
        assert!(decoder.bytes.capacity() <= 2 * ENCODED_MAX);
    }
    let head = Head {
        kind: Kind::Beat,
        from: 1,
        to: 2,
        count: 3,
        limit: 4,
    };
    let line = encoded(head, b"");
    let mut rest = &line[..];
    let mut last = None;
    while let Some(frame) = decoder.next(&mut rest) {
        last = frame.ok().map(|frame| frame.head);
    }
    assert_eq!(last, Some(head));
}
