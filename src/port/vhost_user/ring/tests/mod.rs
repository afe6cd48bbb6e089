//! Tests of the rings against a driver that may do anything.

mod fuzz;
mod hostile;
mod legal;
mod notifications;

use std::hash::{BuildHasher, Hasher, RandomState};

use super::mock::{BORDER, DATA, Driver, FAR, Features, GAP, Guest, RINGS};

/// Entries of the rings under test.
pub(super) const SIZE: u16 = 64;

/// A guest with the ring under test and a neighbour of the same kind.
pub(super) struct World {
    pub guest: Guest,
    pub driver: Driver,
    pub neighbour: Driver,
}

/// Any start index, so that every run wraps somewhere else. Printed when a test fails.
pub(super) fn any_start() -> u16 {
    let start = RandomState::new().build_hasher().finish() as u16;
    eprintln!("start index {start}");
    start
}

pub(super) fn world(features: Features) -> World {
    world_at(features, any_start())
}

pub(super) fn world_at(features: Features, start: u16) -> World {
    let guest = Guest::new();
    World {
        driver: Driver::new(&guest, RINGS, DATA..GAP, SIZE, start, features),
        neighbour: Driver::new(
            &guest,
            FAR,
            FAR + 0x1_0000..FAR + 0x4_0000,
            SIZE,
            any_start(),
            features,
        ),
        guest,
    }
}

/// A frame of `len` bytes, recognisable by `seed`.
pub(super) fn frame(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

#[test]
fn the_two_data_regions_are_adjacent() {
    assert_eq!(BORDER - DATA, GAP - BORDER);
}
