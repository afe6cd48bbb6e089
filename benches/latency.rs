//! How much later does a packet come that crosses Shunt, around the guest or through it?
//!
//! *Held constant*: a UDP socket in a client's namespace, one in a server's, 64-byte frames
//! evenly paced by one thread that also takes them (`paced.rs`); one worker with its defaults.
//! *Cases*: `fast`, a session that translates the source address; `slow`, no session: tap,
//! guest's vNIC, a guest that does nothing but send on by its other vNIC, tap. That guest is
//! the same thread, which polls its rings. *Peer*: `kernel-forwarding`, a namespace that
//! forwards between veth devices. *Added* is what is left of a delay after that of a veth pair
//! between the two sockets, its median at the same rate. Paths take turns; a figure is the
//! median over its turns of one turn's percentile. *Expected before measuring*: at 1,000 a
//! second one wake-up of the worker on the fast path, two on the slow one; at 100,000 up to
//! a nap (50 us) for each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod end;
mod paced;
#[allow(dead_code, reason = "another bench uses the rest")]
mod paths;
mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use std::net::UdpSocket;
use std::time::Duration;

use end::End;
use paced::{Run, Tag, Way};
use paths::{CLIENT, Path, SERVER, WAN_MAC};
use report::{Peer, Report, median};
use support::eventually;
use support::netns::Netns;

const TURNS: usize = 5;
const RATES: [u64; 2] = [1_000, 100_000];
/// Long enough for a thousandth of the frames at the lower rate to be several.
const SPAN: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_millis(200);
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
const PARTS: [(&str, f64); 3] = [("median", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
/// The port that there is a session to, and one that there is none to.
const AROUND: u16 = 9000;
const THROUGH: u16 = 9001;

fn main() {
    let shunt = paths::shunt(true, &[], AROUND);
    let kernel = paths::kernel_forwarding();
    let wire = paths::wire();
    let mut fast = Sockets::between(&shunt, AROUND, None);
    let mut slow = Sockets::between(&shunt, THROUGH, Some(Guest::of(&shunt)));
    let mut forwarded = Sockets::between(&kernel, AROUND, None);
    let mut straight = Sockets::between(&wire, AROUND, None);
    let mut report = Report::new("latency");
    for pps in RATES {
        let mut turns: [Vec<Turn>; 4] = Default::default();
        for _ in 0..TURNS {
            let ways = [&mut fast, &mut slow, &mut forwarded, &mut straight];
            for (way, turns) in ways.into_iter().zip(&mut turns) {
                paced::run(way, pps, WARM_UP);
                turns.push(Turn::of(&paced::run(way, pps, SPAN), pps));
            }
        }
        let [fast, slow, kernel, wire] = &turns;
        tell(&mut report, &format!("fast pps={pps}"), fast, kernel, wire);
        tell(&mut report, &format!("slow pps={pps}"), slow, kernel, wire);
    }
}

/// What one turn gave: delays in microseconds, and the share of frames that did not come.
struct Turn {
    delays: [f64; PARTS.len()],
    lost: f64,
}

impl Turn {
    fn of(run: &Run, pps: u64) -> Self {
        assert!(run.received > 0, "nothing came");
        Self {
            delays: PARTS.map(|(_, part)| run.delay(part)),
            lost: 1.0 - run.received as f64 / (pps as f64 * SPAN.as_secs_f64()),
        }
    }
}

/// The lines of one case.
fn tell(report: &mut Report, case: &str, ours: &[Turn], kernel: &[Turn], wire: &[Turn]) {
    let delay =
        |turns: &[Turn], part: usize| median(turns.iter().map(|turn| turn.delays[part]).collect());
    let lost = |turns: &[Turn]| median(turns.iter().map(|turn| turn.lost).collect());
    let name = "kernel-forwarding";
    for (part, (part_name, _)) in PARTS.iter().enumerate() {
        let added = |turns| delay(turns, part) - delay(wire, 0);
        let theirs = added(kernel);
        let case = format!("{case} {part_name}");
        report.line(&case, added(ours), "us added", Some(Peer { name, theirs }));
    }
    if lost(ours) > 0.0 || lost(kernel) > 0.0 {
        let theirs = lost(kernel);
        let case = format!("{case} lost");
        report.line(&case, lost(ours), "of all", Some(Peer { name, theirs }));
    }
}

/// From the client's socket to the server's, with a guest in between where there is one.
struct Sockets {
    from: UdpSocket,
    to: UdpSocket,
    guest: Option<Guest>,
}

impl Sockets {
    fn between(path: &Path, port: u16, guest: Option<Guest>) -> Self {
        let socket = |netns: &Netns, address: (&str, u16)| {
            let socket = netns.run(|| UdpSocket::bind(address).unwrap());
            socket.set_nonblocking(true).unwrap();
            socket
        };
        // Of several cases on one path the client's port says which is meant.
        let from = socket(&path.client, (CLIENT, paths::PORTS.start + port - AROUND));
        let to = socket(&path.server, (SERVER, port));
        from.connect((SERVER, port)).unwrap();
        let mut sockets = Self { from, to, guest };
        eventually(CONNECT_DEADLINE, "frames come through", || {
            paced::run(&mut sockets, 1_000, WARM_UP).received > 0
        });
        sockets
    }
}

impl Way for Sockets {
    fn is_full(&self) -> bool {
        false
    }

    fn send(&mut self, tag: Tag) {
        let mut datagram = [0; 18];
        datagram[..tag.len()].copy_from_slice(&tag);
        // What finds no room counts as lost.
        let _sent = self.from.send(&datagram);
    }

    fn take(&mut self) -> Option<Tag> {
        if let Some(guest) = &mut self.guest {
            guest.forward();
        }
        let mut datagram = [0; 64];
        let len = self.to.recv(&mut datagram).ok()?;
        datagram[..len].first_chunk().copied()
    }
}

/// A router that costs next to nothing.
struct Guest {
    lan: End,
    wan: End,
    /// The server's address and its own, for each frame.
    macs: [u8; 12],
}

impl Guest {
    fn of(path: &Path) -> Self {
        let bytes = |mac: &str| -> Vec<u8> {
            let octets = mac.split(':');
            octets
                .map(|octet| u8::from_str_radix(octet, 16).unwrap())
                .collect()
        };
        let macs = [bytes(&path.server.mac("wan")), bytes(WAN_MAC)].concat();
        let end = |name: &str| End::connect(&path.dir.file(&format!("{name}.sock")));
        Self {
            lan: end("lan"),
            wan: end("wan"),
            macs: macs.try_into().unwrap(),
        }
    }

    /// Sends on what came, as far as there is room.
    fn forward(&mut self) {
        while !self.wan.is_full()
            && let Some(mut frame) = self.lan.take()
        {
            // What else the client's stack sends is nobody's business.
            if frame.get(12..14) == Some(&[8, 0]) {
                frame[..12].copy_from_slice(&self.macs);
                self.wan.send(&frame);
            }
        }
        while self.wan.take().is_some() {}
    }
}
