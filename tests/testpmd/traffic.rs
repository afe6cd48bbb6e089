//! Datagrams that are compared byte by byte, and streams of them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::{IpHeaders, IpNumber, Ipv4Header, PacketBuilder, VlanId};

use crate::support::frames::{Capture, Frame, RawSocket};
use crate::support::netns::Netns;
use crate::support::{eventually, pause};

pub type Mac = [u8; 6];

/// Before the number in a payload.
const MAGIC: &[u8; 8] = b"shunt-t ";
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;

/// A UDP datagram in its frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    pub destination: Mac,
    pub source: Mac,
    pub vlan: Option<u16>,
    pub ttl: u8,
    pub dscp: u8,
    pub from: (Ipv4Addr, u16),
    pub to: (Ipv4Addr, u16),
    /// Tells it from all others.
    pub number: u64,
    /// Bytes of the frame without a VLAN tag.
    pub length: usize,
}

impl Datagram {
    /// The frame, all checksums computed from its content.
    pub fn bytes(&self) -> Vec<u8> {
        let mut payload = MAGIC.to_vec();
        payload.extend(self.number.to_be_bytes());
        payload.extend((payload.len()..self.length - HEADERS).map(|at| (at * 7) as u8));
        let mut header = Ipv4Header::new(
            0,
            self.ttl,
            IpNumber::UDP,
            self.from.0.octets(),
            self.to.0.octets(),
        )
        .unwrap();
        header.dscp = self.dscp.try_into().unwrap();
        let header = IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default());
        let ethernet = PacketBuilder::ethernet2(self.source, self.destination);
        let udp = match self.vlan {
            Some(id) => ethernet
                .single_vlan(VlanId::try_new(id).unwrap())
                .ip(header)
                .udp(self.from.1, self.to.1),
            None => ethernet.ip(header).udp(self.from.1, self.to.1),
        };
        let mut bytes = Vec::new();
        udp.write(&mut bytes, &payload).unwrap();
        bytes
    }
}

/// The number in a frame of ours.
pub fn number_of(bytes: &[u8]) -> Option<u64> {
    let at = bytes.windows(MAGIC.len()).position(|part| part == MAGIC)? + MAGIC.len();
    let number = bytes.get(at..at + 8)?;
    Some(u64::from_be_bytes(number.try_into().unwrap()))
}

/// The host side of an uplink: where a test sends and sees frames.
#[derive(Debug)]
pub struct Wire {
    socket: RawSocket,
    capture: Capture,
}

impl Wire {
    pub fn open(netns: &Netns, interface: &str) -> Self {
        Self {
            socket: RawSocket::open(netns, interface),
            capture: Capture::start(netns, interface),
        }
    }

    pub fn send(&self, datagram: &Datagram) {
        self.socket.send(&datagram.bytes());
    }

    /// Our frames that arrived here, in order.
    pub fn arrived(&self) -> Vec<Vec<u8>> {
        let frames = self.capture.frames().into_iter();
        frames.filter_map(ours).collect()
    }

    /// Waits until all of `expected` arrived, byte by byte, each once.
    pub fn expect(&self, expected: &[Datagram], what: &str) {
        let expected: Vec<Vec<u8>> = expected.iter().map(Datagram::bytes).collect();
        let missing = || {
            let arrived = self.arrived();
            expected
                .iter()
                .filter(|bytes| !arrived.contains(bytes))
                .count()
        };
        let started = crate::support::now();
        while missing() > 0 {
            assert!(
                started.elapsed() < crate::SOON,
                "{what}: {} of {} did not come; the last that came: {:02x?}, expected {:02x?}",
                missing(),
                expected.len(),
                self.arrived().last(),
                expected.last(),
            );
            pause(Duration::from_millis(5));
        }
        let arrived = self.arrived();
        for bytes in &expected {
            let number = number_of(bytes);
            let times = arrived.iter().filter(|other| number_of(other) == number);
            assert_eq!(times.count(), 1, "{what}: {number:?} came more than once");
        }
    }

    /// Waits for `datagram`, whatever its number, with a number above `after`.
    pub fn expect_after(&self, datagram: &Datagram, after: u64, what: &str) {
        eventually(crate::SOON, what, || {
            self.arrived().iter().rev().any(|bytes| {
                number_of(bytes).is_some_and(|number| {
                    number > after
                        && *bytes
                            == Datagram {
                                number,
                                ..datagram.clone()
                            }
                            .bytes()
                })
            })
        });
    }
}

fn ours(frame: Frame) -> Option<Vec<u8>> {
    (!frame.outgoing && number_of(&frame.bytes).is_some()).then_some(frame.bytes)
}

/// Sends a datagram again and again, numbered.
#[derive(Debug)]
pub struct Stream {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// One every `gap`, from number 1.
    pub fn start(netns: &Netns, interface: &str, datagram: Datagram, gap: Duration) -> Self {
        let socket = RawSocket::open(netns, interface);
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (sent, stop) = (sent.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Acquire) {
                    let number = sent.load(Ordering::Acquire) + 1;
                    let numbered = Datagram {
                        number,
                        ..datagram.clone()
                    };
                    socket.send(&numbered.bytes());
                    sent.store(number, Ordering::Release);
                    pause(gap);
                }
            }
        });
        Self {
            sent,
            stop,
            thread: Some(thread),
        }
    }

    /// The number that was sent last.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed where it happened.
            let _ = thread.join();
        }
    }
}
