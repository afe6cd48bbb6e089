//! `make bench-shield`: what shields cost those frames that none of them matches.
//!
//! *Held constant*: one worker on a CPU of its own, ports in memory (`benches/endless.rs`), so what
//! is measured is the datapath: 64-byte frames of both directions of 4,096 vouched sessions, NAT of
//! each; or frames that no session concerns, handed to the guest. 1,024 shields of 32 different
//! masks (prefix lengths, with and without ports), none of which matches. Of the cases with TCP
//! flags, 32 shields, one a mask, match the frames in all but the flags. Case `… syn`: all wait for SYN
//! without ACK; case `… ack`: these 32 wait for ACK and URG, and the others for ACK, which each
//! frame has; case `… ack psh`: of the others half wait for ACK without PSH and half for both, and
//! a session's frames have now the one and now the other.
//! *Peer*: the same element at the same load without shields, second by second in turn.
//! *Expected before measuring*: a cell read more for sessions, 3 ns of 70, and an answer that all
//! share where flags are waited for; 32 look-ups, 160 ns, for each frame that is searched for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod endless;
mod report;

use std::net::Ipv4Addr;
use std::sync::Arc;

use endless::{Part, Traffic, slots};
use report::{Peer, Report, median};
use shunt::flow::shield::{Action, Flags, Matches, Ports, Shield, ShieldBook, ShieldSet};

const ROUNDS: usize = 7;
const MASKS: u8 = 32;
const SHIELDS: u32 = 1024;

/// What the shields look at besides addresses and ports.
#[derive(Clone, Copy)]
enum Looks {
    /// UDP.
    Udp,
    /// TCP with flags: those of the shields, one a mask, that match the frames in all else, and
    /// those of the others by turns.
    Tcp(Flags, [Flags; 2]),
}

fn main() {
    let syn = Flags::of(Some(0x02), Some(0x12));
    let (urgent, ack) = (Flags::of(Some(0x30), None), Flags::of(Some(0x10), None));
    let by_psh = [0x10, 0x18].map(|value| Flags::of(Some(value), Some(0x18)));
    let (tcp, pushes) = (Traffic::Tcp, Traffic::TcpPushes);
    let mut report = Report::new("shield");
    for (case, traffic, looks) in [
        ("shields=32masks", Traffic::Udp, Looks::Udp),
        ("shields=32masks syn", tcp, Looks::Tcp(syn, [syn; 2])),
        ("shields=32masks ack", tcp, Looks::Tcp(urgent, [ack; 2])),
        (
            "shields=32masks ack psh",
            pushes,
            Looks::Tcp(urgent, by_psh),
        ),
        ("shields=32masks miss", Traffic::Misses, Looks::Udp),
    ] {
        let set = shields(looks);
        assert_eq!(set.masks(), usize::from(MASKS));
        let mut running = endless::start(Part {
            workers: 1,
            first: 1,
            traffic,
        });
        let (mut ours, mut without) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            running.set_shields(Some(&set));
            ours.push(running.rate());
            running.set_shields(None);
            without.push(running.rate());
        }
        let peer = Peer {
            name: "self-none",
            theirs: median(without),
        };
        report.line(case, median(ours), "packets/s", Some(peer));
    }
}

/// A thousand shields, as many of each mask.
fn shields(looks: Looks) -> Arc<ShieldSet> {
    let mut book = ShieldBook::new(1, slots(), 0);
    book.configure((0..SHIELDS).map(|number| shield(number, looks)), 0);
    book.compile(|_: &str| None).expect("shields")
}

fn shield(number: u32, looks: Looks) -> Shield {
    let mask = (number % u32::from(MASKS)) as u8;
    let turn = number / u32::from(MASKS);
    // Lengths of 9 to 24, and ports besides where those come again.
    let length = 9 + mask % 16;
    let (protocol, flags) = match looks {
        Looks::Udp => (17, None),
        Looks::Tcp(near, _) if turn == 0 => (6, Some(near)),
        Looks::Tcp(_, others) => (6, Some(others[turn as usize % 2])),
    };
    let is_near = flags.is_some() && turn == 0;
    let source = match (is_near, mask % 2) {
        // Of both directions.
        (true, 0) => Ipv4Addr::new(192, 0, 2, 0),
        (true, _) => Ipv4Addr::new(10, 0, 0, 0),
        // No two of a length begin alike, and none like the frames.
        (false, _) => Ipv4Addr::from_bits(0x2c00_0000 + (turn << 23)),
    };
    let port = if is_near { 5_000 } else { 6_000 };
    Shield {
        name: format!("shield-{number}"),
        priority: 0,
        vnic: None,
        matches: Matches {
            source: Some((source.into(), length)),
            protocol: Some(protocol),
            destination_ports: match mask < 16 {
                true => Ports::ANY,
                false => Ports::of(port),
            },
            flags,
            ..Matches::default()
        },
        action: Action::Drop,
    }
}
