//! How many small UDP packets a second get through: numbered datagrams of one flow.
//!
//! Sending and counting cost little, so that on two CPUs the path under test is what is
//! measured, not its ends. The client's kernel cuts many datagrams out of one system call,
//! before its tap, which takes no trains (`World::start`): each crosses as a frame of its
//! own. The server counts what arrives, addresses and ports as the session has them, where
//! it enters its stack: a tap's writer, here the backend, would otherwise spend its time
//! in the server's sockets. That packets arrive unharmed at a socket is shown by paced runs.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;

use crate::support::netns::Netns;
use crate::support::{now, pause, stop_if_interrupted};

/// Bytes that make an Ethernet frame of 64 with its checksum.
pub const PAYLOAD: usize = 18;
/// Datagrams of one system call at most; the kernel cuts no more than 64 out of one buffer.
const BATCH: usize = 64;
/// The sender looks this often how many datagrams are due, and sends them all.
const STEP: Duration = Duration::from_micros(300);
/// How often what arrived is read.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Nothing came for so long: what is missing is lost.
const QUIET: Duration = Duration::from_millis(300);
/// Rates with more loss than this do not count.
const LOSS_MAX: f64 = 0.01;
/// A sender that reaches less of the rate it was told shows its own limit.
const PACE_MIN: f64 = 0.9;
const RATE_MIN: f64 = 100.0;

/// How long and how closely is searched.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Of one rate.
    pub trial: Duration,
    /// Halvings of the interval between a rate that gets through and one that does not.
    pub halvings: usize,
}

/// A sender and a sink of one UDP flow.
#[derive(Debug)]
pub struct Blaster {
    sender: UdpSocket,
    sink: Sink,
    sent: u64,
}

impl Blaster {
    /// Sends from `from` in `client`; counts what comes through `interface` of `server`
    /// from `seen` to `to`.
    pub fn new(
        (client, from): (&Netns, SocketAddr),
        (server, interface): (&Rc<Netns>, &str),
        (seen, to): (SocketAddr, SocketAddr),
    ) -> Self {
        Self {
            sender: sender(client, from, to),
            sink: Sink::open(server, interface, seen, to),
            sent: 0,
        }
    }

    /// The highest rate, packets a second, with under 1 % loss. Starts at `rate`.
    pub fn highest_rate(&mut self, mut rate: f64, effort: Effort) -> f64 {
        let mut best = None;
        let mut too_much = None;
        // Out of the interval's reach first, then into the middle of it.
        let mut halvings = 0;
        while halvings < effort.halvings {
            match self.gets_through(rate, effort.trial) {
                Some(reached) => {
                    best = Some(reached);
                    if reached < rate * PACE_MIN {
                        break;
                    }
                }
                None => too_much = Some(rate),
            }
            rate = match (best, too_much) {
                (Some(low), Some(high)) => {
                    halvings += 1;
                    (low * high).sqrt()
                }
                (_, None) => rate * 2.0,
                (None, _) => rate / 2.0,
            };
            assert!(
                rate > RATE_MIN,
                "not even {RATE_MIN} packets a second get through"
            );
        }
        best.unwrap_or_default()
    }

    /// The rate that was reached, if it was with little loss; a rate that fails is tried
    /// three times, since a loaded machine loses a time slice now and then.
    fn gets_through(&mut self, rate: f64, time: Duration) -> Option<f64> {
        (0..3).find_map(|_| {
            let trial = self.trial(rate, time);
            (trial.loss() < LOSS_MAX).then_some(trial.rate)
        })
    }

    /// Sends at `rate` for `time`, and waits for what comes.
    pub fn trial(&mut self, rate: f64, time: Duration) -> Trial {
        let before = self.sink.received();
        let started = now();
        let mut sent = 0;
        while started.elapsed() < time {
            stop_if_interrupted();
            let due = (started.elapsed().as_secs_f64() * rate) as u64;
            self.send(due - sent);
            sent = due;
            pause(STEP);
        }
        let rate = sent as f64 / started.elapsed().as_secs_f64();
        let received = self.sink.settled(before + sent) - before;
        Trial {
            rate,
            sent,
            received,
        }
    }

    /// Sends `count` datagrams. What the client's own kernel refuses is lost as well.
    fn send(&mut self, count: u64) {
        let mut train = [0; BATCH * PAYLOAD];
        let end = self.sent + count;
        while self.sent < end {
            let batch = (end - self.sent).min(BATCH as u64);
            let train = &mut train[..batch as usize * PAYLOAD];
            for (number, payload) in (self.sent..).zip(train.chunks_exact_mut(PAYLOAD)) {
                payload[..8].copy_from_slice(&number.to_be_bytes());
            }
            let _ = self.sender.send(train);
            self.sent += batch;
        }
    }
}

/// What came of sending at one rate.
#[derive(Debug)]
pub struct Trial {
    /// The rate that was reached.
    pub rate: f64,
    /// Packets sent.
    pub sent: u64,
    /// Packets that came.
    pub received: u64,
}

impl Trial {
    fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent as f64
    }
}

/// A rule at an interface's entry that counts a flow's packets and ends their way.
#[derive(Debug)]
struct Sink {
    netns: Rc<Netns>,
}

impl Sink {
    fn open(netns: &Rc<Netns>, interface: &str, from: SocketAddr, to: SocketAddr) -> Self {
        let flow = format!(
            "ip saddr {} udp sport {} ip daddr {} udp dport {}",
            from.ip(),
            from.port(),
            to.ip(),
            to.port()
        );
        netns.succeed(&[
            "nft",
            &format!(
                "table netdev sink {{ counter received {{ }}; chain entry {{ \
                 type filter hook ingress device {interface} priority 0; \
                 {flow} counter name received drop; }}; }}"
            ),
        ]);
        let netns = netns.clone();
        Self { netns }
    }

    fn received(&self) -> u64 {
        let listing = self
            .netns
            .succeed(&["nft", "-j", "list", "counter", "netdev", "sink", "received"]);
        let listing: Value = serde_json::from_str(&listing).unwrap();
        let entries = listing["nftables"].as_array().unwrap();
        let count = entries
            .iter()
            .find_map(|entry| entry["counter"]["packets"].as_u64());
        count.expect("nft lists the counter")
    }

    /// How many came, once `wanted` did or no more do.
    fn settled(&self, wanted: u64) -> u64 {
        let mut last = (self.received(), now());
        while last.0 < wanted && last.1.elapsed() < QUIET {
            pause(LOOK_EVERY);
            let received = self.received();
            if received != last.0 {
                last = (received, now());
            }
        }
        last.0
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // Without it the namespace's end would remove the rule.
        let _ = self
            .netns
            .exec(&["nft", "delete", "table", "netdev", "sink"]);
    }
}

/// A socket whose datagrams the kernel cuts out of larger ones.
fn sender(netns: &Netns, own: SocketAddr, peer: SocketAddr) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind(own)?;
        socket.connect(peer)?;
        cut(&socket, PAYLOAD as libc::c_int)?;
        Ok(socket)
    };
    netns
        .run(open)
        .unwrap_or_else(|error: io::Error| panic!("UDP {own} to {peer}: {error}"))
}

/// Has what is sent at once cut into datagrams of `bytes` (udp(7), UDP_SEGMENT).
fn cut(socket: &UdpSocket, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: UDP_SEGMENT takes an int by pointer and size, which the kernel only reads
    // during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
