//! Frames at a given rate through a backend: a vhost-user frontend in this process, since no
//! packet generator at hand keeps a low rate evenly.
//!
//! It polls its own rings and asks for no calls, as DPDK does; it kicks only when the backend
//! asks for that. One direction, one frame at a time.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vm_memory::{Bytes, GuestAddress};

use crate::load;
use crate::support::frontend::{Guest, RING_SIZE, Vmm};
use crate::support::now;

/// Receive and transmit queue.
const RX: usize = 0;
const TX: usize = 1;
/// VERSION_1, MRG_RXBUF, RING_EVENT_IDX, and vhost's own protocol features.
const FEATURES: u64 = 1 << 32 | 1 << 15 | 1 << 29 | 1 << 30;
/// Where a frame's number is: behind Ethernet, IPv4 and UDP.
const NUMBER: usize = 42;
/// How long the last frames of a run are waited for.
const TAIL: Duration = Duration::from_millis(20);

/// One port of a backend.
pub struct End {
    guest: Guest,
    _vmm: Vmm,
    runs: u8,
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
        Self {
            guest,
            _vmm: vmm,
            runs: 0,
        }
    }

    /// Sends a frame, and kicks if the backend wants that.
    fn send(&mut self, frame: &[u8]) {
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
    fn is_full(&self) -> bool {
        let done = self.guest.used_index(TX);
        self.guest.rings[TX].avail.wrapping_sub(done) >= RING_SIZE
    }

    /// The next frame that came.
    fn take(&mut self) -> Option<Vec<u8>> {
        let frame = self.guest.take(RX)?;
        self.guest.post(RX);
        Some(frame)
    }
}

/// What a run found.
pub struct Run {
    /// Frames that came out.
    pub received: usize,
    /// From the one to the other, in microseconds, ascending.
    pub delays: Vec<f64>,
}

impl Run {
    /// The delay that this part of all frames did not exceed.
    pub fn delay(&self, part: f64) -> f64 {
        let last = self.delays.len() - 1;
        self.delays[(last as f64 * part).round() as usize]
    }
}

/// Sends `pps` frames a second into `from` for `span`, evenly, and takes what comes at `to`.
pub fn run(from: &mut End, to: &mut End, pps: u64, span: Duration) -> Run {
    let count = (pps as f64 * span.as_secs_f64()) as u64;
    let mut sent: Vec<Instant> = Vec::with_capacity(count as usize);
    let mut delays = Vec::with_capacity(count as usize);
    let began = now();
    let mut frame = frame();
    // Frames of an earlier run may still come.
    from.runs = from.runs.wrapping_add(1);
    frame[NUMBER + 4] = from.runs;
    while now().duration_since(began) < span + TAIL {
        let elapsed = began.elapsed().as_nanos() as u64;
        let due = (u128::from(elapsed) * u128::from(pps) / 1_000_000_000) as usize;
        if due.min(count as usize) > sent.len() && !from.is_full() {
            frame[NUMBER..NUMBER + 4].copy_from_slice(&(sent.len() as u32).to_be_bytes());
            sent.push(now());
            from.send(&frame);
        }
        while let Some(came) = to.take() {
            if came.get(NUMBER + 4) != Some(&from.runs) {
                continue;
            }
            let number = came.get(NUMBER..NUMBER + 4).unwrap();
            let number = u32::from_be_bytes(number.try_into().unwrap()) as usize;
            delays.push(sent[number].elapsed().as_nanos() as f64 / 1e3);
        }
    }
    delays.sort_by(f64::total_cmp);
    Run {
        received: delays.len(),
        delays,
    }
}

/// What `load::offload` has a session for, with room for a number.
fn frame() -> Vec<u8> {
    let to = load::destination(0).octets();
    let mac = [0x00, 0x01, 0x02, 0x03, 0x04, 0x01];
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xa], mac)
        .ipv4([10, 254, 0, 0], to, 64)
        .udp(1000, 1001)
        .write(&mut frame, &[0; 18])
        .unwrap();
    frame
}
