//! A guest without a machine: a vhost-user frontend in this process.
//!
//! It polls its own rings and asks for no calls, as DPDK does; it kicks only when the backend
//! asks for that. One frame at a time.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vm_memory::{Bytes, GuestAddress};

use crate::support::frontend::{Guest, RING_SIZE, Vmm};

/// Receive and transmit queue.
const RX: usize = 0;
const TX: usize = 1;
/// VERSION_1, MRG_RXBUF, RING_EVENT_IDX, and vhost's own protocol features.
const FEATURES: u64 = 1 << 32 | 1 << 15 | 1 << 29 | 1 << 30;

/// One port of a backend.
pub struct End {
    guest: Guest,
    _vmm: Vmm,
}

impl End {
    /// A port whose socket the backend listens on.
    pub fn connect(socket: &Path) -> Self {
        Self::over(Frontend::connect(socket, 2).unwrap())
    }

    /// A port whose backend connects to `listener`.
    pub fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        Self::over(Frontend::from_stream(stream, 2))
    }

    fn over(mut frontend: Frontend) -> Self {
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(protocol & wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features(offered & FEATURES).unwrap();
        let mut guest = Guest::new(1);
        let mut vmm = Vmm { frontend };
        vmm.share(&guest);
        for _ in 0..RING_SIZE {
            guest.post(RX);
        }
        for ring in [RX, TX] {
            // No calls: never at an index that comes soon, and never by flag.
            let avail = guest.rings[ring].base + 0x1000;
            let far = 0x8000u16;
            guest.memory.write_obj(1u16, GuestAddress(avail)).unwrap();
            let used_event = avail + 4 + 2 * u64::from(RING_SIZE);
            guest
                .memory
                .write_obj(far, GuestAddress(used_event))
                .unwrap();
            vmm.start(&guest, ring, 0);
        }
        Self { guest, _vmm: vmm }
    }

    /// Sends a frame, and kicks if the backend wants that.
    pub fn send(&mut self, frame: &[u8]) {
        self.guest.send(TX, frame);
        fence(Ordering::SeqCst);
        let ring = &self.guest.rings[TX];
        let event = ring.base + 0x2000 + 4 + 8 * u64::from(RING_SIZE);
        let event: u16 = self.guest.memory.read_obj(GuestAddress(event)).unwrap();
        if event == ring.avail.wrapping_sub(1) {
            ring.kick.write(1).unwrap();
        }
    }

    /// Whether the backend still has as many of our frames as there are places.
    pub fn is_full(&self) -> bool {
        let done = self.guest.used_index(TX);
        self.guest.rings[TX].avail.wrapping_sub(done) >= RING_SIZE
    }

    /// The next frame that came.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let frame = self.guest.take(RX)?;
        self.guest.post(RX);
        Some(frame)
    }
}
