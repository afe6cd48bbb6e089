//! What a correct driver may do, in every layout.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::mock::{BORDER, Driver, Features, Guest, Layout};
use super::super::{DirtyLog, RxRing, TxRing, published};
use super::{DATA, FAR, GAP, RINGS, SIZE, World, any_start, frame, world};
use crate::packet::{Burst, Checksum, FRAME_MAX, Gso, GsoKind, Offload, TxFrame};
use crate::port::Armed;

fn features() -> impl Strategy<Value = Features> {
    prop::sample::select(Features::all().collect::<Vec<_>>())
}

fn layout() -> impl Strategy<Value = Layout> {
    (
        prop::collection::vec(1usize..40, 0..6),
        prop::option::of(0usize..4),
    )
        .prop_map(|(cuts, table_after)| Layout { cuts, table_after })
}

fn offload() -> impl Strategy<Value = Offload> {
    let checksum = Checksum::Partial {
        start: 34,
        offset: 16,
    };
    let tcp = Gso {
        kind: GsoKind::Tcp4,
        size: 20,
        ecn: true,
    };
    prop::sample::select(vec![
        Offload::default(),
        Offload {
            checksum,
            gso: Gso::default(),
        },
        Offload { checksum, gso: tcp },
    ])
}

/// A virtio-net header by the table of virtio 1.2 section 5.1.6, independent of ours.
fn header_bytes(offload: &Offload) -> [u8; 12] {
    let mut header = [0; 12];
    if let Checksum::Partial { start, offset } = offload.checksum {
        header[0] = 1;
        header[6] = start as u8;
        header[8] = offset as u8;
    }
    if offload.gso.kind == GsoKind::Tcp4 {
        header[1] = 0x81;
        header[4] = offload.gso.size as u8;
    }
    header
}

/// An IPv4 TCP frame, for which the offloads above are sound.
fn tcp_frame(seed: u8, len: usize) -> Vec<u8> {
    let mut data = frame(seed, len.max(54));
    data[12..15].copy_from_slice(&[8, 0, 0x45]);
    let l3_len = (data.len() - 14) as u16;
    data[16..18].copy_from_slice(&l3_len.to_be_bytes());
    data[20..22].fill(0);
    data[23] = 6;
    data[46] = 0x50;
    data
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_layout_of_a_frame_delivers_the_same_bytes_and_offload(
        features in features(),
        start in any::<u16>(),
        frames in prop::collection::vec((54usize..400, layout(), offload()), 1..12),
    ) {
        let World { guest, mut driver, .. } = super::world_at(features, start);
        let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut heads = Vec::new();
        let mut sent = Vec::new();
        for (seed, (len, layout, offload)) in frames.iter().enumerate() {
            let data = tcp_frame(seed as u8, *len);
            let header = header_bytes(offload);
            let header = &header[..usize::from(features.header_len)];
            // Six buffers a frame at most: stay within the ring.
            if (sent.len() + 1) * 7 <= usize::from(SIZE) {
                heads.push((u32::from(driver.send_with(header, &data, layout)), 0));
                sent.push((data, *offload));
            }
        }
        let mut burst = Burst::new();
        let popped = ring.pop(&mut burst);
        prop_assert_eq!((popped.frames, popped.discarded), (sent.len(), 0));
        for (index, (data, offload)) in sent.iter().enumerate() {
            prop_assert_eq!(burst.frame(index).data, &data[..]);
            prop_assert_eq!(burst.frame(index).offload, *offload);
        }
        prop_assert_eq!(driver.used(), heads);
        prop_assert_eq!(ring.stop(), driver.avail_idx);
    }

    #[test]
    fn frames_arrive_whole_over_any_buffers(
        features in features(),
        start in any::<u16>(),
        offers in prop::collection::vec((prop::collection::vec(1usize..200, 1..4), prop::option::of(0usize..3)), 1..16),
        frames in prop::collection::vec((54usize..500, offload()), 1..10),
    ) {
        let World { guest, mut driver, .. } = super::world_at(features, start);
        let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
        let offers: Vec<_> = offers.iter().map(|(lens, table)| driver.offer(lens, *table)).collect();
        let data: Vec<_> = frames.iter().enumerate().map(|(seed, (len, _))| tcp_frame(seed as u8, *len)).collect();
        let list: Vec<_> = data.iter().zip(&frames).map(|(data, (_, offload))| TxFrame { data, offload: *offload }).collect();
        let before = guest.snapshot();
        let pushed = ring.push(&list);
        let used = driver.used();
        let mut allowed = vec![driver.used_range()];
        // A plain model: what must have happened, from the lengths alone.
        let header_len = usize::from(features.header_len);
        let capacity = |o: &(u16, Vec<(u64, u32)>)| o.1.iter().map(|b| b.1 as usize).sum::<usize>();
        let (mut at, mut consumed, mut too_large, mut bytes) = (0, 0, 0u64, 0);
        for frame in &list {
            let need = header_len + frame.data.len();
            let mut count = 0;
            let mut have = 0;
            while at + count < offers.len() && have < need && (features.mrg_rxbuf || count == 0) {
                have += capacity(&offers[at + count]);
                count += 1;
            }
            if have < need {
                if features.mrg_rxbuf || count == 0 { break; }
                too_large |= 1u64 << consumed;
                consumed += 1;
                continue;
            }
            let mut got = Vec::new();
            for (offer, entry) in offers[at..at + count].iter().zip(&used[at..]) {
                prop_assert_eq!(u32::from(offer.0), entry.0);
                let mut left = entry.1 as usize;
                for &(addr, len) in &offer.1 {
                    let part = left.min(len as usize);
                    got.extend(guest.read(addr, part));
                    allowed.push(addr..addr + part as u64);
                    left -= part;
                }
                prop_assert_eq!(left, 0);
            }
            prop_assert_eq!(&got[header_len..], frame.data);
            prop_assert_eq!(&got[..2], &header_bytes(&frame.offload)[..2]);
            prop_assert_eq!(&got[4..10], &header_bytes(&frame.offload)[4..10]);
            if header_len == 12 {
                prop_assert_eq!(u16::from_le_bytes([got[10], got[11]]), count as u16);
            }
            (at, consumed, bytes) = (at + count, consumed + 1, bytes + frame.data.len() as u64);
        }
        prop_assert_eq!((pushed.consumed, pushed.too_large, pushed.bytes), (consumed, too_large, bytes));
        prop_assert_eq!(used.len(), at);
        prop_assert_eq!(ring.fault(), None);
        guest.assert_unchanged(&before, &allowed);
    }
}

#[test]
fn buffers_and_tables_over_adjacent_regions_are_used_whole() {
    for features in Features::all() {
        for before_border in [1, 11, 13, 40] {
            let guest = Guest::new();
            let buffers = BORDER - before_border..GAP;
            let mut driver =
                Driver::new(&guest, RINGS, buffers.clone(), SIZE, any_start(), features);
            let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
            let layout = Layout {
                cuts: vec![],
                table_after: Some(0),
            };
            let data = frame(5, 100);
            let header = [0; 12];
            let header = &header[..usize::from(features.header_len)];
            driver.send_with(header, &data, &Layout::default());
            if features.indirect {
                // The next allocation is the table's data, then the table: put it across.
                let addr = driver.alloc(200);
                guest.write(addr, &[header, &data[..]].concat());
                let len = (header.len() + data.len()) as u32;
                driver.poke_desc_at(BORDER + 0x1000 - 8, addr, len, 0, 0);
                driver.publish_raw(BORDER + 0x1000 - 8, 16, 4, 0);
            }
            let mut burst = Burst::new();
            let expected = 1 + usize::from(features.indirect);
            assert_eq!(ring.pop(&mut burst).frames, expected, "{layout:?}");
            assert_eq!(burst.frame(expected - 1).data, data);
            assert_eq!(burst.frame(0).data, data);

            let mut driver = Driver::new(&guest, FAR, buffers, SIZE, any_start(), features);
            let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
            let (_, offered) = driver.offer(&[150], None);
            let out = TxFrame {
                data: &data,
                offload: Offload::default(),
            };
            assert_eq!(ring.push(&[out]).consumed, 1);
            let written = guest.read(offered[0].0, 150);
            assert_eq!(written[header.len()..][..100], data);
            assert_eq!(
                written[header.len() + 100..],
                guest.read(offered[0].0, 150)[header.len() + 100..]
            );
        }
    }
}

#[test]
fn the_largest_frame_passes_both_ways() {
    for features in Features::all() {
        let World {
            guest,
            mut driver,
            mut neighbour,
        } = world(features);
        let mut rx = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut tx = TxRing::start(guest.map.clone(), neighbour.config).unwrap();
        let data = tcp_frame(3, FRAME_MAX);
        driver.send(&data);
        let mut burst = Burst::new();
        assert_eq!(rx.pop(&mut burst).frames, 1);
        let lens: &[usize] = if features.mrg_rxbuf {
            &[1526]
        } else {
            &[FRAME_MAX + 12]
        };
        let need = if features.mrg_rxbuf { 43 } else { 1 };
        let out = [burst.frame(0)];
        for _ in 1..need {
            neighbour.offer(lens, None);
        }
        assert_eq!(
            tx.push(&out),
            Default::default(),
            "one buffer short: not consumed"
        );
        neighbour.offer(lens, None);
        assert_eq!(tx.push(&out).bytes, FRAME_MAX as u64);
        assert_eq!(neighbour.used().len(), need);
    }
}

#[test]
fn a_buffer_too_small_for_one_frame_waits_for_the_next() {
    for features in Features::all().filter(|f| !f.mrg_rxbuf) {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
        let (head, _) = driver.offer(&[10, 90], None);
        let (big, small) = (frame(1, 500), frame(2, 60));
        let frames = [&big, &small].map(|data| TxFrame {
            data,
            offload: Offload::default(),
        });
        let pushed = ring.push(&frames);
        assert_eq!(
            (pushed.consumed, pushed.too_large, pushed.bytes),
            (2, 1, 60)
        );
        assert_eq!(
            driver.used(),
            [(u32::from(head), 60 + u32::from(features.header_len))]
        );
        // No buffer left: whether it would fit is not known.
        assert_eq!(ring.push(&frames), Default::default());
    }
}

#[test]
fn a_frame_that_no_full_ring_can_hold_does_not_block_those_behind() {
    for features in Features::all().filter(|f| f.mrg_rxbuf) {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
        for _ in 0..SIZE {
            driver.offer(&[20], None);
        }
        let (big, small) = (frame(1, 2000), frame(2, 60));
        let frames = [&big, &small].map(|data| TxFrame {
            data,
            offload: Offload::default(),
        });
        let pushed = ring.push(&frames);
        assert_eq!(
            (pushed.consumed, pushed.too_large, pushed.bytes),
            (2, 1, 60)
        );
        assert_eq!(driver.used().len(), 4);
    }
}

#[test]
fn a_full_burst_leaves_frames_where_they_are_and_arm_says_so() {
    let World {
        guest, mut driver, ..
    } = world(Features::all().next().unwrap());
    let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
    for _ in 0..6 {
        driver.send(&vec![1; FRAME_MAX]);
    }
    let mut burst = Burst::new();
    assert_eq!(ring.pop(&mut burst).frames, 4);
    assert_eq!(ring.arm(), Armed::Ready);
    burst.clear();
    assert_eq!(ring.pop(&mut burst).frames, 2);
    assert_eq!(ring.arm(), Armed::Asleep);
    assert_eq!(driver.used().len(), 6);
}

#[test]
fn a_stopped_ring_resumes_where_it_was_and_in_new_memory() {
    for features in Features::all() {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut burst = Burst::new();
        for round in 0..200u8 {
            burst.clear();
            driver.send(&frame(round, 60));
            assert_eq!(ring.pop(&mut burst).frames, 1);
            assert_eq!(burst.frame(0).data, frame(round, 60));
            driver.used();
            if round % 3 == 0 {
                let next = ring.stop();
                assert_eq!(published(guest.map.clone(), &driver.config), Ok(next));
                driver.config.next_avail = next;
                driver.config.used_idx = next;
                ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
            } else if round % 3 == 1 {
                ring.remap(guest.map.clone()).unwrap();
            }
        }
        let elsewhere = super::super::GuestMap::from_memory(
            Arc::new(
                vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(
                    vm_memory::GuestAddress(DATA),
                    4096,
                )])
                .unwrap(),
            ),
            None,
        );
        assert!(ring.remap(Arc::new(elsewhere.unwrap())).is_err());
        assert!(ring.report_fault().is_some() && ring.report_fault().is_none());
        driver.send(&frame(1, 60));
        assert_eq!(ring.pop(&mut burst), Default::default());
    }
}

#[expect(clippy::disallowed_types, reason = "a test's log, on no packet path")]
type Marks = std::sync::Mutex<Vec<(u64, u64)>>;

#[derive(Default)]
struct Log(Marks);

impl DirtyLog for Log {
    fn mark(&self, guest_addr: u64, len: u64) {
        self.0.lock().unwrap().push((guest_addr, guest_addr + len));
    }
}

#[test]
fn every_byte_written_is_logged_for_a_migration() {
    for features in Features::all() {
        let log = Arc::new(Log::default());
        let guest = Guest::with_log(Some(log.clone()));
        let mut driver = Driver::new(&guest, RINGS, DATA..GAP, SIZE, any_start(), features);
        let mut other = Driver::new(
            &guest,
            FAR,
            FAR + 0x1_0000..FAR + 0x2_0000,
            SIZE,
            65_530,
            features,
        );
        driver.offer(&[100, 100], None);
        other.send(&frame(1, 60));
        let before = guest.snapshot();
        let mut tx = TxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut rx = RxRing::start(guest.map.clone(), other.config).unwrap();
        let data = frame(1, 150);
        assert_eq!(
            tx.push(&[TxFrame {
                data: &data,
                offload: Offload::default()
            }])
            .consumed,
            1
        );
        assert_eq!(rx.pop(&mut Burst::new()).frames, 1);
        rx.arm();
        rx.stop();
        let marked: Vec<_> = log
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|&(from, to)| from..to)
            .collect();
        guest.assert_unchanged(&before, &marked);
    }
}

#[test]
fn frames_of_every_short_length_are_copied_whole_both_ways() {
    for features in [(10, false), (12, true)].map(|(header_len, mrg_rxbuf)| Features {
        event_idx: true,
        indirect: true,
        in_order: false,
        mrg_rxbuf,
        header_len,
    }) {
        let header_len = usize::from(features.header_len);
        for len in 14..=200 {
            let data = frame(len as u8, len);
            let World {
                guest, mut driver, ..
            } = world(features);
            let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
            driver.send(&data);
            let mut burst = Burst::new();
            assert_eq!(ring.pop(&mut burst).frames, 1);
            assert_eq!(burst.frame(0).data, data);

            let World {
                guest, mut driver, ..
            } = world(features);
            let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
            let (_, buffers) = driver.offer(&[header_len + len + 9], None);
            let (addr, room) = buffers[0];
            guest.write(addr, &vec![0xa5; room as usize]);
            let offload = Offload::default();
            let data = &data[..];
            assert_eq!(ring.push(&[TxFrame { data, offload }]).consumed, 1);
            let mut expected = header_bytes(&offload)[..header_len].to_vec();
            if header_len == 12 {
                expected[10] = 1;
            }
            expected.extend_from_slice(data);
            expected.extend_from_slice(&[0xa5; 9]);
            assert_eq!(guest.read(addr, room as usize), expected);
        }
    }
}

/// Headers and used entries that are right already are not written: whatever stood there.
#[test]
fn what_stood_in_the_rings_memory_before_makes_no_difference() {
    let features = Features {
        event_idx: false,
        indirect: false,
        in_order: false,
        mrg_rxbuf: true,
        header_len: 12,
    };
    for before in [0x00, 0xff] {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
        let entries = driver.used_range().start + 4;
        guest.write(entries, &[before; 8 * SIZE as usize]);
        let data = &frame(7, 60)[..];
        let offload = Offload::default();
        for lap in 0..3 * SIZE {
            let (head, buffers) = driver.offer(&[80], None);
            let (addr, room) = buffers[0];
            // In turn what is right, what is not, and what nearly is.
            let mut old = [1, 0xff, 0][usize::from(lap) % 3];
            guest.write(addr, &vec![old; room as usize]);
            if old == 0 {
                guest.write(addr + 10, &[1, 0]);
                old = 1;
            }
            assert_eq!(ring.push(&[TxFrame { data, offload }]).consumed, 1);
            let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
            assert_eq!(guest.read(addr, 12), header, "after {old}");
            assert_eq!(guest.read(addr + 12, 60), data);
            assert_eq!(driver.used(), vec![(u32::from(head), 72)]);
        }
    }
}
