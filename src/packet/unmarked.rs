//! Partial checksums that nothing marks.
//!
//! A host's own packet on a veth leaves its TCP or UDP checksum to hardware that is not
//! there: the field holds the pseudo-header's sum, and only the kernel's own buffer says
//! so. A reader of the bare bytes (AF_XDP) sees what looks like a wrong checksum.
//!
//! *Promises*: a frame that [`partial`] takes for one becomes, completed, what its sender
//! meant. That holds also where a complete and right checksum happens to equal the
//! pseudo-header's sum: completing sums the same words, and gives the same value again.
//! Only a checksum that is wrong *and* equals that sum is made right, one wrong in 65,536;
//! so this is for links that cannot harm a frame, not for wires.
//! *Refuses*: `None` for everything else: fragments, other protocols (SCTP's checksum is of
//! another kind), UDP without a checksum, and inner headers of tunnels.
//! *Caller's duty*: to ask only where frames come from the same host.
//! *Standard*: RFC 9293 section 3.1, RFC 768, RFC 8200 section 8.1.

use super::Checksum;
use super::checksum::{pseudo_ipv4, pseudo_ipv6};
use super::headers::{self, be16};
use super::key::protocol;

/// The partial checksum of a frame whose checksum field holds just the pseudo-header's sum.
pub fn partial(data: &[u8]) -> Option<Checksum> {
    let outline = headers::walk(data)?;
    if !matches!(outline.protocol, protocol::TCP | protocol::UDP) {
        return None;
    }
    let offset = headers::checksum_offset(outline.protocol)?;
    let segment = data.get(outline.l4..)?;
    let at = usize::from(offset);
    let field = u16::from_be_bytes(*segment.get(at..at + 2)?.first_chunk()?);
    let (end, sum) = if outline.ipv4 {
        let header = data.get(outline.l3..)?.first_chunk::<{ headers::IPV4 }>()?;
        let end = outline.l3 + usize::from(be16(header, 2));
        let len = u16::try_from(end.checked_sub(outline.l4)?).ok()?;
        let (src, dst) = header[12..20].split_first_chunk::<4>()?;
        let sum = pseudo_ipv4(*src, *dst.first_chunk()?, outline.protocol, len);
        (end, sum)
    } else {
        let header = data.get(outline.l3..)?.first_chunk::<{ headers::IPV6 }>()?;
        let end = outline.l3 + headers::IPV6 + usize::from(be16(header, 4));
        let len = u32::try_from(end.checked_sub(outline.l4)?).ok()?;
        let (src, dst) = header[8..40].split_first_chunk::<16>()?;
        let sum = pseudo_ipv6(src, dst.first_chunk()?, outline.protocol, len);
        (end, sum)
    };
    // Whoever completes it sums to the frame's end: padding must not matter.
    let padding = data.get(end..)?;
    if field != sum || padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    let start = u16::try_from(outline.l4).ok()?;
    Some(Checksum::Partial { start, offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::{Zero, complete};
    use crate::packet::testing::Sample;
    use proptest::prelude::*;

    /// `sample` as its sender's stack leaves it for hardware, and as that would send it.
    fn unfinished(sample: &Sample) -> (Vec<u8>, Vec<u8>) {
        let whole = sample.build();
        let mut frame = whole.clone();
        let l4 = sample.l4();
        let len = frame.len() - l4;
        let protocol = sample.tuple.protocol;
        let sum = if sample.is_ipv4() {
            let (src, dst) = (&frame[l4 - 8..l4 - 4], &frame[l4 - 4..l4]);
            let (src, dst) = (src.try_into().unwrap(), dst.try_into().unwrap());
            pseudo_ipv4(src, dst, protocol, len as u16)
        } else {
            let (src, dst) = (&frame[l4 - 32..l4 - 16], &frame[l4 - 16..l4]);
            let (src, dst) = (src.try_into().unwrap(), dst.try_into().unwrap());
            pseudo_ipv6(src, dst, protocol, len as u32)
        };
        let check = sample.check().unwrap();
        frame[check..check + 2].copy_from_slice(&sum.to_be_bytes());
        (frame, whole)
    }

    fn finish(frame: &mut [u8]) {
        let Some(Checksum::Partial { start, offset }) = partial(frame) else {
            panic!("not recognised");
        };
        let zero = if offset == 6 {
            Zero::AllOnes
        } else {
            Zero::AsIs
        };
        assert!(complete(frame, start.into(), offset.into(), zero));
    }

    fn samples(payload: &[u8]) -> Vec<Sample> {
        let mut all = Vec::new();
        for tag in [None, Some(0x2064)] {
            for mut sample in [
                Sample::tcp4(payload),
                Sample::tcp6(payload),
                Sample::udp4(payload),
                Sample::udp6(payload),
            ] {
                sample.tag = tag;
                all.push(sample);
            }
        }
        all
    }

    proptest! {
        #[test]
        fn an_unmarked_partial_checksum_is_recognised_and_completed_as_meant(
            payload in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            for sample in samples(&payload) {
                let (mut frame, whole) = unfinished(&sample);
                finish(&mut frame);
                prop_assert_eq!(&frame, &whole);
            }
        }

        #[test]
        fn what_is_recognised_in_a_complete_frame_stays_as_it_is(
            payload in proptest::collection::vec(any::<u8>(), 2..60)
        ) {
            for sample in samples(&payload) {
                let whole = sample.build();
                let is_whole = partial(&whole).is_none() || {
                    let mut frame = whole.clone();
                    finish(&mut frame);
                    frame == whole
                };
                prop_assert!(is_whole);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = partial(&data);
        }
    }

    #[test]
    fn a_right_checksum_that_equals_the_pseudo_headers_sum_comes_out_the_same() {
        for number in 0..=u16::MAX {
            let sample = Sample::udp4(&number.to_be_bytes());
            let whole = sample.build();
            if partial(&whole).is_some() {
                let mut frame = whole.clone();
                finish(&mut frame);
                assert_eq!(frame, whole);
                return;
            }
        }
        panic!("two bytes reach every sum");
    }

    #[test]
    fn fragments_other_protocols_and_no_checksum_are_left_alone() {
        let (frame, _) = unfinished(&Sample::udp4(b"abc"));
        let mut fragment = frame.clone();
        fragment[20] |= 0x20;
        assert_eq!(partial(&fragment), None);
        let mut sctp = frame.clone();
        sctp[23] = protocol::SCTP;
        assert_eq!(partial(&sctp), None);
        let mut unused = frame.clone();
        unused[40..42].fill(0);
        assert_eq!(partial(&unused), None);
        assert_eq!(partial(&Sample::echo4(b"abc").build()), None);
    }

    #[test]
    fn padding_of_zeros_is_no_hindrance_and_any_other_is() {
        let (mut frame, _) = unfinished(&Sample::udp4(b"a"));
        frame.resize(60, 0);
        assert!(partial(&frame).is_some());
        frame[59] = 1;
        assert_eq!(partial(&frame), None);
    }
}
