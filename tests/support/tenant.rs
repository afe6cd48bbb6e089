//! A guest that sends and receives frames as a test tells it, behind one vNIC.

use std::path::Path;
use std::time::Duration;

use super::eventually_some;
use super::frontend::{Guest, Vmm};

const SOON: Duration = Duration::from_secs(20);
const RX: usize = 0;
const TX: usize = 1;
/// Receive buffers offered at a time.
const BUFFERS: usize = 32;

/// A guest behind one vNIC.
pub struct Tenant {
    guest: Guest,
    _vmm: Vmm,
}

impl Tenant {
    /// Connects to the vNIC's socket and offers buffers.
    pub fn connect(socket: &Path) -> Self {
        let mut guest = Guest::new(1);
        let vmm = Vmm::bring_up(socket, &guest);
        for _ in 0..BUFFERS {
            guest.post(RX);
        }
        guest.rings[RX].kick.write(1).unwrap();
        Self { guest, _vmm: vmm }
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        self.guest.send(TX, frame);
        self.guest.rings[TX].kick.write(1).unwrap();
    }

    /// The next frame must be this one.
    pub fn expect(&mut self, frame: &[u8], what: &str) {
        let taken = eventually_some(SOON, what, || self.guest.take(RX));
        assert_eq!(taken, frame, "{what}");
        self.guest.post(RX);
    }
}
