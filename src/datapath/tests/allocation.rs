//! Nothing on the packet path allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::world::*;
use crate::datapath::lane::Vnic;
use crate::packet::{Burst, Offload, PeerOffloads, TxFrame};
use crate::port::{Armed, Poller, Port, TxReport};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator; counts by thread, since tests run side by side.
struct Counting;

// SAFETY: every call goes to `System` with the caller's own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps `GlobalAlloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Receives the same frames for ever and takes whatever it is given.
struct Endless {
    frames: Vec<Vec<u8>>,
}

impl Port for Endless {
    fn attach(&mut self, _: Poller) -> std::io::Result<()> {
        Ok(())
    }

    fn is_running(&self) -> bool {
        true
    }

    fn peer(&self) -> PeerOffloads {
        ALL_OFFLOADS
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        let fits = |frame: &&Vec<u8>| burst.push(frame, Offload::default());
        self.frames.iter().take_while(fits).count()
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        TxReport {
            consumed: frames.len(),
            ..TxReport::default()
        }
    }

    fn arm(&mut self) -> Armed {
        Armed::Ready
    }

    fn disarm(&mut self) {}
}

fn vnic(mac: crate::packet::MacAddr, uplink: Vec<Vec<u8>>, guest: Vec<Vec<u8>>) -> Vnic {
    Vnic::new(
        mac,
        vec![Box::new(Endless { frames: guest })],
        vec![Box::new(Endless { frames: uplink })],
    )
}

#[test]
fn hits_misses_and_the_guests_frames_allocate_nothing() {
    let mut world = World::new();
    world.offload(vouched("s", UDP));
    let miss = udp((CLIENT_MAC, LAN_MAC), (CLIENT.0, 1), SERVER, 64, b"miss");
    let mixed = vec![datagram(1), miss, datagram(2), vec![0xff; 60]];
    let sent = udp((WAN_MAC, SERVER_MAC), (OUTSIDE.0, 7), SERVER, 63, b"sent");
    world.lane.pipe.vnics = vec![
        vnic(LAN_MAC, mixed, Vec::new()),
        vnic(WAN_MAC, Vec::new(), vec![sent; 8]),
    ];
    world.round();
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..100 {
        world.round();
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    let counters = world.counters();
    assert_eq!(
        (counters.forwarded.packets, counters.passed.packets),
        (202, 808)
    );
    world.assert_conserved();
}
