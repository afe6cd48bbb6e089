//! Broken rings: each stops with its reason, costs nothing else, and is said once.

use super::super::layout::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use super::super::mock::{DATA, Driver, Features, GAP, Layout, with_changes};
use super::super::{RingFault, RxRing, TxRing};
use super::{SIZE, World, any_start, frame, world, world_at};
use crate::packet::{Burst, Checksum, FRAME_MAX, Offload, TxFrame};
use crate::port::Armed;

fn tx(data: &[u8]) -> TxFrame<'_> {
    TxFrame {
        data,
        offload: Offload::default(),
    }
}

/// One broken chain on the guest's transmit queue, behind two good frames and before a
/// third. `good` is how many of the two arrive.
fn rx_stops(
    good: usize,
    poke: impl Fn(&mut Driver),
    expected: impl Fn(&RingFault, &Driver) -> bool,
) {
    for features in Features::all() {
        let World {
            guest,
            mut driver,
            mut neighbour,
        } = world(features);
        let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut beside = RxRing::start(guest.map.clone(), neighbour.config).unwrap();
        let heads = [driver.send(&frame(1, 60)), driver.send(&frame(2, 90))];
        poke(&mut driver);
        driver.send(&frame(3, 60));
        let before = guest.snapshot();
        let mut burst = Burst::new();
        let popped = ring.pop(&mut burst);
        assert_eq!((popped.frames, popped.discarded), (good, 0), "{features:?}");
        assert!(
            expected(ring.fault().unwrap(), &driver),
            "{features:?}: {:?}",
            ring.fault()
        );
        assert!(ring.report_fault().is_some() && ring.report_fault().is_none());
        let back: Vec<u32> = driver.used().iter().map(|entry| entry.0).collect();
        assert_eq!(
            back,
            heads[..good]
                .iter()
                .map(|&h| u32::from(h))
                .collect::<Vec<_>>()
        );
        assert_eq!(ring.pop(&mut burst), Default::default());
        assert_eq!(ring.arm(), Armed::Asleep);
        assert!(driver.used().is_empty());
        neighbour.send(&frame(4, 70));
        guest.assert_unchanged(
            &before,
            &[driver.used_range(), super::FAR..super::FAR + 0x4_0000],
        );
        burst.clear();
        assert_eq!(beside.pop(&mut burst).frames, 1);
        assert_eq!(burst.frame(0).data, frame(4, 70));
        assert_eq!(
            ring.stop(),
            driver.config.next_avail.wrapping_add(good as u16)
        );
    }
}

/// As [`rx_stops`], on the guest's receive queue.
fn tx_stops(
    good: usize,
    poke: impl Fn(&mut Driver),
    expected: impl Fn(&RingFault, &Driver) -> bool,
) {
    for features in Features::all() {
        let World {
            guest,
            mut driver,
            mut neighbour,
        } = world(features);
        let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut beside = TxRing::start(guest.map.clone(), neighbour.config).unwrap();
        let offers = [driver.offer(&[200], None), driver.offer(&[20, 300], None)];
        poke(&mut driver);
        driver.offer(&[200], None);
        neighbour.offer(&[200], None);
        let before = guest.snapshot();
        let data = frame(9, 100);
        let pushed = ring.push(&[tx(&data), tx(&data), tx(&data)]);
        assert_eq!(
            (pushed.consumed, pushed.too_large),
            (good, 0),
            "{features:?}"
        );
        assert!(
            expected(ring.fault().unwrap(), &driver),
            "{features:?}: {:?}",
            ring.fault()
        );
        assert!(ring.report_fault().is_some() && ring.report_fault().is_none());
        let written = 100 + u32::from(features.header_len);
        let back: Vec<_> = offers[..good]
            .iter()
            .map(|o| (u32::from(o.0), written))
            .collect();
        assert_eq!(driver.used(), back);
        assert_eq!(ring.push(&[tx(&data)]), Default::default());
        // The mapped part of a broken buffer may have been written before its end was met.
        let mut allowed = vec![driver.used_range(), GAP - 50..GAP];
        for (addr, len) in offers.iter().flat_map(|offer| &offer.1) {
            allowed.push(*addr..addr + u64::from(*len));
        }
        guest.assert_unchanged(&before, &allowed);
        assert_eq!(beside.push(&[tx(&data)]).consumed, 1);
        assert_eq!(neighbour.used().len(), 1);
    }
}

/// The same fault on both kinds of ring; `poke` gets the flag its buffers need.
fn both_stop(poke: impl Fn(&mut Driver, u16), expected: impl Fn(&RingFault, &Driver) -> bool) {
    rx_stops(2, |driver| poke(driver, 0), &expected);
    tx_stops(2, |driver| poke(driver, DESC_WRITE), &expected);
}

/// A chain whose one descriptor is an indirect table of `len` bytes with these entries.
fn table(driver: &mut Driver, flags: u16, len: u32, entries: &[(u64, u32, u16, u16)]) {
    let place = driver.alloc(entries.len() * 16);
    for (index, &(addr, len, flags, next)) in entries.iter().enumerate() {
        driver.poke_desc_at(place + index as u64 * 16, addr, len, flags, next);
    }
    driver.publish_raw(place, len, DESC_INDIRECT | flags, 0);
}

#[test]
fn ring_stops_when_avail_jumps_past_its_size() {
    let expected =
        |fault: &RingFault, _: &Driver| matches!(fault, RingFault::AvailJump { size: SIZE, .. });
    // `send` publishes one more behind the jump.
    let jump = |driver: &mut Driver| driver.avail_idx = driver.avail_idx.wrapping_add(SIZE);
    rx_stops(0, jump, expected);
    tx_stops(0, jump, expected);
    let back = |driver: &mut Driver| driver.avail_idx = driver.avail_idx.wrapping_sub(4);
    rx_stops(0, back, expected);
    tx_stops(0, back, expected);
}

#[test]
fn ring_stops_at_a_head_outside_it_when_that_head_is_due() {
    for head in [SIZE, u16::MAX] {
        both_stop(
            |driver, _| driver.publish(head),
            |fault, _| matches!(fault, RingFault::HeadOutOfRange { head: h, .. } if *h == head),
        );
    }
}

#[test]
fn ring_stops_at_a_next_outside_it() {
    both_stop(
        |driver, write| {
            driver.publish_raw(DATA, 4, write | DESC_NEXT, SIZE);
        },
        |fault, _| matches!(fault, RingFault::NextOutOfRange { next: SIZE, .. }),
    );
}

#[test]
fn ring_stops_at_a_loop() {
    both_stop(
        |driver, write| {
            let head = driver.alloc_desc();
            driver.poke_desc(head, DATA, 1, write | DESC_NEXT, head);
            driver.publish(head);
        },
        |fault, _| matches!(fault, RingFault::ChainTooLong { limit: 64, .. }),
    );
}

#[test]
fn ring_stops_at_an_empty_buffer_even_at_a_bad_address() {
    for addr in [DATA, GAP, u64::MAX] {
        both_stop(
            |driver, write| {
                driver.publish_raw(addr, 0, write, 0);
            },
            |fault, _| matches!(fault, RingFault::EmptyBuffer { .. }),
        );
    }
}

#[test]
fn ring_stops_at_an_unmapped_buffer() {
    for addr in [GAP, GAP - 50, 0, u64::MAX - 40, u64::MAX] {
        both_stop(
            |driver, write| {
                driver.publish_raw(addr, 400, write, 0);
            },
            |fault, _| matches!(fault, RingFault::BufferUnmapped { .. }),
        );
    }
}

#[test]
fn ring_stops_at_a_buffer_of_the_other_direction() {
    both_stop(
        |driver, write| {
            driver.publish_raw(DATA, 400, write ^ DESC_WRITE, 0);
        },
        |fault, _| matches!(fault, RingFault::Direction { .. }),
    );
    both_stop(
        |driver, write| {
            let (first, second) = (driver.alloc_desc(), driver.alloc_desc());
            driver.poke_desc(first, DATA, 20, write | DESC_NEXT, second);
            driver.poke_desc(second, DATA, 400, write ^ DESC_WRITE, 0);
            driver.publish(first);
        },
        |fault, _| matches!(fault, RingFault::Direction { .. }),
    );
}

#[test]
fn ring_stops_at_an_indirect_table_that_was_not_negotiated_or_cannot_be() {
    let refused = |driver: &Driver| !driver.config.indirect;
    for (len, flags) in [(0, 0), (24, 0), (15, 0), (u32::MAX, 0), (16, DESC_NEXT)] {
        both_stop(
            |driver, write| {
                let entry = (DATA, 400, write, 0);
                table(driver, flags, len, &[entry]);
            },
            |fault, driver| match fault {
                RingFault::IndirectRefused { .. } => refused(driver),
                RingFault::IndirectLength { len: found, .. } => *found == len,
                RingFault::IndirectNotLast { .. } => flags == DESC_NEXT,
                _ => false,
            },
        );
    }
}

#[test]
fn ring_stops_at_a_broken_entry_of_an_indirect_table() {
    type Entries = fn(u16) -> Vec<(u64, u32, u16, u16)>;
    let cases: [(Entries, &str); 6] = [
        (|_| vec![(DATA, 16, DESC_INDIRECT, 0)], "IndirectNested"),
        (|w| vec![(DATA, 1, w | DESC_NEXT, 1); 2], "ChainTooLong"),
        (|w| vec![(DATA, 1, w | DESC_NEXT, 2); 2], "NextOutOfRange"),
        (|w| vec![(DATA, 0, w, 0)], "EmptyBuffer"),
        (|w| vec![(GAP, 400, w, 0)], "BufferUnmapped"),
        (|w| vec![(DATA, 400, w ^ DESC_WRITE, 0)], "Direction"),
    ];
    for (entries, name) in cases {
        both_stop(
            |driver, write| {
                let entries = entries(write);
                table(driver, 0, entries.len() as u32 * 16, &entries);
            },
            |fault, driver| {
                let name = if driver.config.indirect {
                    name
                } else {
                    "IndirectRefused"
                };
                format!("{fault:?}").starts_with(name)
            },
        );
    }
}

#[test]
fn ring_stops_at_an_indirect_table_outside_the_memory() {
    for addr in [GAP, GAP - 8, u64::MAX - 15, u64::MAX] {
        both_stop(
            |driver, _| {
                driver.publish_raw(addr, 32, DESC_INDIRECT, 0);
            },
            |fault, driver| match fault {
                RingFault::BufferUnmapped { .. } => driver.config.indirect,
                RingFault::IndirectRefused { .. } => !driver.config.indirect,
                _ => false,
            },
        );
    }
}

#[test]
fn ring_stops_at_a_chain_without_room_for_a_header() {
    rx_stops(
        2,
        |driver| {
            let header_len = u32::from(driver.config.header_len);
            driver.publish_raw(DATA, header_len - 1, 0, 0);
        },
        |fault, _| matches!(fault, RingFault::HeaderMissing { .. }),
    );
}

#[test]
fn bad_frames_are_discarded_and_counted_and_the_ring_goes_on() {
    for features in Features::all() {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let header_len = usize::from(features.header_len);
        let whole = Layout::default();
        let mut send = |header: [u8; 10], data: &[u8]| {
            let header = [&header[..], &[0, 0]].concat();
            driver.send_with(&header[..header_len], data, &whole);
        };
        let plain = [0; 10];
        let data = frame(1, 60);
        send(plain, &[]);
        send(plain, &data[..13]);
        send([1, 0, 0, 0, 0, 0, 59, 0, 0, 0], &data);
        send([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &data);
        send([1, 1, 0, 0, 0, 0, 34, 0, 16, 0], &data);
        send([1, 0x42, 0, 0, 9, 0, 34, 0, 16, 0], &data);
        send(plain, &vec![0; FRAME_MAX + 1]);
        send([2, 0, 0, 0, 0, 0, 0, 0, 0, 0], &data);
        send([1, 1, 0, 0, 9, 0, 34, 0, 16, 0], &data);
        let mut burst = Burst::new();
        let popped = ring.pop(&mut burst);
        assert_eq!((popped.frames, popped.discarded, popped.bytes), (2, 7, 120));
        assert_eq!(ring.fault(), None);
        assert_eq!(driver.used().len(), 9);
        let first = burst.frame(0);
        assert_eq!(
            (first.data, first.offload.checksum),
            (&data[..], Checksum::Unchecked)
        );
        let second = burst.frame(1).offload;
        assert_eq!(
            second.checksum,
            Checksum::Partial {
                start: 34,
                offset: 16
            }
        );
        assert_eq!(second.gso.size, 9);
    }
}

#[test]
fn a_start_is_refused_with_its_reason() {
    let features = Features::all().next().unwrap();
    let World { guest, driver, .. } = world(features);
    let good = driver.config;
    let start = |config| RxRing::start(guest.map.clone(), config).map(drop);
    assert_eq!(start(good), Ok(()));
    for size in [0, 3, 100, 32_769, 65_535] {
        let mut config = good;
        config.size = size;
        assert_eq!(start(config), Err(RingFault::Size { size }));
    }
    let mut odd = [good; 3];
    odd[0].desc += 8;
    odd[1].avail += 1;
    odd[2].used += 2;
    for config in odd {
        assert!(matches!(start(config), Err(RingFault::Misaligned { .. })));
    }
    let mut outside = [good; 4];
    outside[0].desc = GAP - 16;
    outside[1].avail = GAP;
    outside[2].used = u64::MAX - 3;
    // Over the border of two regions: their mappings need not be adjacent.
    outside[3].desc = DATA - 16;
    for config in outside {
        assert!(matches!(start(config), Err(RingFault::AreaUnmapped { .. })));
    }
    for (header_len, mrg_rxbuf) in [(0, false), (11, false), (255, true), (10, true)] {
        let config = super::super::RingConfig {
            header_len,
            mrg_rxbuf,
            ..good
        };
        assert_eq!(
            start(config),
            Err(RingFault::HeaderLength { len: header_len })
        );
    }
}

#[test]
fn what_the_guest_changes_after_our_read_changes_nothing() {
    for features in Features::all() {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let data = frame(7, 80);
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
        let header = &header[..usize::from(features.header_len)];
        let head = driver.send_with(header, &data, &Layout::default());
        let place = driver.config.desc + u64::from(head) * 16;
        let buffer = u64::from_le_bytes(guest.read(place, 8).try_into().unwrap());
        let (memory, config, index) = (guest.clone(), driver.config, driver.avail_idx);
        // The reads are: index, head, descriptor, header and frame in one.
        let change = move |read| match read {
            1 => memory.set_word(config.avail + 2, index.wrapping_add(9)),
            2 => memory.write(config.avail + 4, &[0xff; 2 * SIZE as usize]),
            3 => memory.write(place, &[0xff; 16]),
            _ => {}
        };
        let mut burst = Burst::new();
        let (popped, reads) = with_changes(change, || ring.pop(&mut burst));
        assert_eq!((popped.frames, reads), (1, 4), "{features:?}");
        guest.write(buffer, &[0xff; 64]);
        assert_eq!(burst.frame(0).data, data);
        let checksum = Checksum::Partial {
            start: 34,
            offset: 6,
        };
        assert_eq!(burst.frame(0).offload.checksum, checksum);
        assert_eq!(driver.used(), [(u32::from(head), 0)]);
    }
}

#[test]
fn a_buffer_looked_at_in_advance_is_used_as_it_was_then() {
    for features in Features::all() {
        let World {
            guest, mut driver, ..
        } = world(features);
        let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
        let offers = [driver.offer(&[200], None), driver.offer(&[200], None)];
        let data = frame(9, 100);
        assert_eq!(ring.push(&[tx(&data)]).consumed, 1);
        // Between bursts: the second buffer is now nowhere, and its head another.
        let (head, buffers) = &offers[1];
        driver.poke_desc(*head, u64::MAX - 64, 4096, DESC_NEXT, SIZE);
        let entry = driver.config.avail
            + 4
            + 2 * u64::from(driver.avail_idx.wrapping_sub(1) & driver.mask());
        guest.set_word(entry, u16::MAX);
        let pushed = ring.push(&[tx(&data)]);
        assert_eq!(pushed.consumed, 1, "{features:?}: {:?}", ring.fault());
        let written = 100 + u32::from(features.header_len);
        assert_eq!(driver.used()[1], (u32::from(*head), written));
        let at = buffers[0].0 + u64::from(features.header_len);
        assert_eq!(guest.read(at, 100), data);
        assert_eq!(ring.push(&[tx(&data)]).consumed, 0);
        assert!(ring.fault().is_none());
    }
}

#[test]
fn a_change_before_any_read_stops_the_ring_at_most() {
    for features in Features::all() {
        let mut reads = 1;
        let mut at = 0;
        while at < reads {
            let World {
                guest, mut driver, ..
            } = world_at(features, any_start());
            let mut rx = RxRing::start(guest.map.clone(), driver.config).unwrap();
            for seed in 0..3 {
                let layout = Layout {
                    cuts: vec![5, 20],
                    table_after: Some(1),
                };
                let header = [0; 12];
                let header = &header[..usize::from(features.header_len)];
                driver.send_with(header, &frame(seed, 60), &layout);
            }
            let (memory, place) = (guest.clone(), driver.config.desc);
            let scribble = move |read| {
                if read == at {
                    memory.write(place, &[0x5a; SIZE as usize * 16]);
                    memory.write(DATA, &[0x5a; 512]);
                }
            };
            let mut burst = Burst::new();
            let (popped, count) = with_changes(scribble, || rx.pop(&mut burst));
            reads = count;
            at += 1;
            let all = popped.frames + popped.discarded;
            assert_eq!(driver.used().len(), all);
            assert!(all == 3 || rx.fault().is_some());
        }
        assert!(reads > 1);
    }
}
