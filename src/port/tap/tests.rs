//! Real taps in namespaces of their own; every test says what is promised.

mod frames;
mod full;
mod life;
mod opening;
mod order;
#[allow(dead_code, reason = "integration tests and benches use the rest")]
#[path = "../../../tests/support/refuse.rs"]
mod refuse;
mod ring;
mod world;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::super::{Armed, Device, Port};
use super::port::TapPort;
use super::{Opened, Queue, Shared, State, TapConfig, TapError, open};
use crate::packet::{Burst, Checksum, FRAME_MAX, Frame, Gso, GsoKind, Offload, PeerOffloads};
use world::{Bell, Host, Netns, eventually, frame, ipv4, is_root, ones_sum, receive, tcp, udp};

/// A single-queue tap, created, and attached to a bell.
fn tap(netns: &Netns) -> (Arc<dyn Device>, Box<dyn Port>, Arc<Bell>) {
    let (device, mut ports) = open(&netns.config(1)).unwrap();
    let mut port = ports.remove(0);
    let bell = Bell::new();
    port.attach(bell.poller()).unwrap();
    (device, port, bell)
}

fn plain(data: &[u8]) -> Frame<'_> {
    Frame {
        data,
        offload: Offload::default(),
    }
}

fn refusal(config: &TapConfig) -> TapError {
    match open(config) {
        Err(error) => error,
        Ok(_) => panic!("{config:?} was opened"),
    }
}

/// A port on one end of a datagram pair: the other end plays the driver.
fn port_of_a_pair() -> (Arc<Queue>, TapPort, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let shared = Shared {
        name: "pair".to_owned(),
        if_name: crate::port::ifname::IfName::new("pair").unwrap(),
        control: UnixDatagram::unbound().unwrap(),
        offloads: PeerOffloads {
            uso: false,
            ..PeerOffloads::ALL
        },
        fills_up: false,
        closed: AtomicBool::new(false),
    };
    let queue = Arc::new(Queue::new(OwnedFd::from(ours).into(), State::Running));
    let port = TapPort::new(Arc::new(shared), Arc::clone(&queue));
    (queue, port, theirs)
}
