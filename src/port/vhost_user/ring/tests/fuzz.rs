//! Random rings and memory: whatever they say, nothing panics, every call ends, and
//! only buffers that the guest made writable are written.

use std::ops::Range;

use proptest::prelude::*;

use super::super::layout::{DESC_INDIRECT, DESC_WRITE};
use super::super::mock::{BORDER, DATA, Driver, Features, GAP, Guest, RINGS};
use super::super::{RxRing, TxRing};
use super::frame;
use crate::packet::{Burst, FRAME_MAX, Offload, TxFrame};

const SIZE: u16 = 16;

#[derive(Clone, Debug)]
struct Raw {
    features: Features,
    start: u16,
    ahead: u16,
    heads: Vec<u16>,
    descriptors: Vec<(u64, u32, u16, u16)>,
    tables: Vec<(u64, u32, u16, u16)>,
    memory: Vec<u8>,
}

/// Where tables lie; buffers may be anywhere from here on.
const TABLES: u64 = DATA;
const TABLES_LEN: u64 = 0x1000;

fn descriptor(low: u64) -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![
        8 => low..GAP,
        2 => Just(BORDER - 30),
        1 => GAP - 100..GAP + 100,
        1 => u64::MAX - 100..u64::MAX,
    ];
    let len = prop_oneof![8 => 1u32..300, 2 => 60_000u32..80_000, 1 => Just(0), 1 => any::<u32>()];
    let flags = prop_oneof![12 => 0u16..4, 1 => any::<u16>()];
    (addr, len, flags, 0..SIZE + 1)
}

fn top() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let table =
        (TABLES..TABLES + TABLES_LEN - 256, 0u32..9, 0u16..12).prop_map(|(addr, count, odd)| {
            (
                addr & !15,
                count * 16 + u32::from(odd == 0),
                DESC_INDIRECT,
                0,
            )
        });
    prop_oneof![3 => descriptor(TABLES + TABLES_LEN), 1 => table]
}

fn raw() -> impl Strategy<Value = Raw> {
    (
        prop::sample::select(Features::all().collect::<Vec<_>>()),
        any::<u16>(),
        prop_oneof![12 => 0..=SIZE, 1 => any::<u16>()],
        prop::collection::vec(
            prop_oneof![20 => 0..SIZE, 1 => any::<u16>()],
            usize::from(SIZE),
        ),
        prop::collection::vec(top(), usize::from(SIZE)),
        prop::collection::vec(descriptor(TABLES + TABLES_LEN), (TABLES_LEN / 16) as usize),
        prop::collection::vec(any::<u8>(), 64),
    )
        .prop_map(
            |(features, start, ahead, heads, descriptors, tables, memory)| Raw {
                features,
                start,
                ahead,
                heads,
                descriptors,
                tables,
                memory,
            },
        )
}

/// The guest with all of this in its memory, `write` set where a plain flag would be
/// wrong half the time.
fn setup(raw: &Raw, write: u16) -> (Guest, Driver, Vec<Range<u64>>) {
    let guest = Guest::new();
    let driver = Driver::new(&guest, RINGS, DATA..GAP, SIZE, raw.start, raw.features);
    for at in 0..2048 {
        guest.write(TABLES + TABLES_LEN + at * 64, &raw.memory);
    }
    let mut writable = Vec::new();
    let mut add = |(addr, len, flags, _): (u64, u32, u16, u16)| {
        if flags & DESC_WRITE != 0 {
            writable.push(addr..addr.saturating_add(u64::from(len)));
        }
    };
    let sway = |(addr, len, flags, next): (u64, u32, u16, u16)| {
        let turned = if len % 7 == 0 {
            flags
        } else {
            flags & !DESC_WRITE | write
        };
        (addr, len, turned, next)
    };
    for (index, &fields) in (0..).zip(&raw.tables) {
        let (addr, len, flags, next) = sway(fields);
        add((addr, len, flags, next));
        driver.poke_desc_at(TABLES + index * 16, addr, len, flags, next);
    }
    for (index, &fields) in (0..).zip(&raw.descriptors) {
        let (addr, len, flags, next) = sway(fields);
        if flags & DESC_INDIRECT == 0 {
            add((addr, len, flags, next));
        }
        driver.poke_desc(index, addr, len, flags, next);
    }
    for (slot, &head) in (0..).zip(&raw.heads) {
        guest.set_word(driver.config.avail + 4 + slot * 2, head);
    }
    driver.poke_avail_idx(raw.start.wrapping_add(raw.ahead));
    (guest, driver, writable)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn popping_a_random_ring_writes_the_used_ring_only(raw in raw()) {
        let (guest, mut driver, _) = setup(&raw, 0);
        let before = guest.snapshot();
        let mut ring = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut burst = Burst::new();
        let mut all = 0;
        for _ in 0..usize::from(SIZE) + 1 {
            burst.clear();
            let popped = ring.pop(&mut burst);
            prop_assert_eq!(popped.frames, burst.len());
            all += popped.frames + popped.discarded;
            ring.needs_call();
            ring.arm();
        }
        prop_assert_eq!(driver.used().len(), all);
        let expected = if raw.ahead > SIZE { 0 } else { usize::from(raw.ahead) };
        prop_assert!(all == expected || ring.fault().is_some());
        guest.assert_unchanged(&before, &[driver.used_range()]);
    }

    #[test]
    fn pushing_into_a_random_ring_writes_writable_buffers_only(raw in raw()) {
        let (guest, mut driver, mut allowed) = setup(&raw, DESC_WRITE);
        let before = guest.snapshot();
        let mut ring = TxRing::start(guest.map.clone(), driver.config).unwrap();
        let data = [frame(1, 60), frame(2, 300), frame(3, 5000), frame(4, FRAME_MAX)];
        let frames = data.each_ref().map(|data| TxFrame { data, offload: Offload::default() });
        for _ in 0..8 {
            let pushed = ring.push(&frames);
            prop_assert!(pushed.too_large <= pushed.consumed && pushed.consumed <= 4);
            ring.needs_call();
        }
        prop_assert!(driver.used().len() <= usize::from(SIZE));
        allowed.push(driver.used_range());
        guest.assert_unchanged(&before, &allowed);
    }

    #[test]
    fn rings_and_buffers_on_top_of_each_other_end_without_a_panic(
        words in prop::collection::vec((RINGS..RINGS + 0x400, prop_oneof![any::<u16>(), 0u16..20]), 0..300),
        start in any::<u16>(),
        features in prop::sample::select(Features::all().collect::<Vec<_>>()),
    ) {
        let guest = Guest::new();
        let driver = Driver::new(&guest, RINGS, DATA..GAP, SIZE, start, features);
        for index in 0..SIZE {
            driver.poke_desc(index, RINGS + u64::from(index) * 40, 100, index & 3, index + 1);
        }
        driver.poke_avail_idx(start.wrapping_add(SIZE));
        for (place, word) in words {
            guest.set_word(place, word);
        }
        let mut rx = RxRing::start(guest.map.clone(), driver.config).unwrap();
        let mut tx = TxRing::start(guest.map.clone(), driver.config).unwrap();
        let data = frame(1, 90);
        let out = TxFrame { data: &data, offload: Offload::default() };
        let mut burst = Burst::new();
        for _ in 0..20 {
            burst.clear();
            rx.pop(&mut burst);
            tx.push(&[out; 3]);
            rx.arm();
            rx.needs_call();
            tx.needs_call();
        }
    }
}
