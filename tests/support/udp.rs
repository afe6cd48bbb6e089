//! Paced UDP with sequence numbers: what was lost, doubled, overtaken.

use std::collections::{BTreeSet, HashSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::netns::Netns;
use super::{now, pause};

/// How long a receiving thread blocks before it looks whether to stop.
const TICK: Duration = Duration::from_millis(20);
/// Datagrams that a sender is behind at most, to send them at once.
const CATCH_UP_MAX: u32 = 32;
/// The sequence number.
const SIZE_MIN: usize = 8;

/// What became of a numbered stream, as its receiver sees it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    seen: HashSet<u64>,
    highest: Option<u64>,
    /// Datagrams that came a second time.
    pub duplicated: u64,
    /// Datagrams that came after one with a higher number.
    pub reordered: u64,
    /// Datagrams whose bytes were not those that were sent.
    pub corrupted: u64,
    /// Where they came from.
    pub sources: BTreeSet<SocketAddr>,
}

impl Tally {
    /// Different datagrams that came.
    pub fn received(&self) -> u64 {
        self.seen.len() as u64
    }

    /// How many of the first `sent` never came.
    pub fn lost(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.received())
    }

    fn take(&mut self, datagram: &[u8], source: SocketAddr) {
        let Some(number) = number(datagram) else {
            self.corrupted += 1;
            return;
        };
        self.sources.insert(source);
        if !self.seen.insert(number) {
            self.duplicated += 1;
        } else if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
    }
}

/// Each byte after the number follows from it, so that damage shows.
fn fill(datagram: &mut [u8], number: u64) {
    let (head, body) = datagram.split_at_mut(SIZE_MIN);
    head.copy_from_slice(&number.to_be_bytes());
    for (position, byte) in body.iter_mut().enumerate() {
        *byte = (number as usize).wrapping_add(position) as u8;
    }
}

fn number(datagram: &[u8]) -> Option<u64> {
    let (head, body) = datagram.split_first_chunk::<SIZE_MIN>()?;
    let number = u64::from_be_bytes(*head);
    let intact = body
        .iter()
        .enumerate()
        .all(|(position, byte)| *byte == (number as usize).wrapping_add(position) as u8);
    intact.then_some(number)
}

/// Whether a receiver answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// It only counts.
    Silent,
    /// It sends each datagram back to where it came from.
    Echo,
}

/// Counts a numbered stream on a thread of its own.
#[derive(Debug)]
pub struct UdpReceiver {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    thread: Option<JoinHandle<()>>,
}

impl UdpReceiver {
    /// Listens on `address` inside `netns` (port 0 takes a free one).
    pub fn start(netns: &Netns, address: SocketAddr, reply: Reply) -> Self {
        let socket = bind(netns, address);
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let thread = std::thread::spawn({
            let (stop, tally) = (stop.clone(), tally.clone());
            move || {
                let echo = reply == Reply::Echo;
                receive(&socket, &stop, &tally, echo);
            }
        });
        Self {
            address,
            stop,
            tally,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has come so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }
}

impl Drop for UdpReceiver {
    fn drop(&mut self) {
        join(&self.stop, &mut self.thread);
    }
}

/// Sends a numbered stream on a thread of its own, and counts what is echoed.
#[derive(Debug)]
pub struct UdpSender {
    stop: Arc<AtomicBool>,
    deaf: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    replies: Arc<Mutex<Tally>>,
    sender: Option<JoinHandle<()>>,
    listener: Option<JoinHandle<()>>,
}

impl UdpSender {
    /// Sends datagrams of `size` bytes (at least 8) from `from` inside `netns` to `to`,
    /// one each `gap`, until it is stopped. Late ones are caught up, a few: a sender that
    /// waited long for a CPU must not overrun a queue.
    pub fn start(
        netns: &Netns,
        from: SocketAddr,
        to: SocketAddr,
        size: usize,
        gap: Duration,
    ) -> Self {
        assert!(size >= SIZE_MIN, "{size} bytes have no room for the number");
        let socket = bind(netns, from);
        let stop = Arc::new(AtomicBool::new(false));
        let deaf = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let replies = Arc::new(Mutex::new(Tally::default()));
        let listener = std::thread::spawn({
            let (socket, deaf, replies) =
                (socket.try_clone().unwrap(), deaf.clone(), replies.clone());
            move || receive(&socket, &deaf, &replies, false)
        });
        let sender = std::thread::spawn({
            let (stop, sent) = (stop.clone(), sent.clone());
            move || send(&socket, to, size, gap, &stop, &sent)
        });
        Self {
            stop,
            deaf,
            sent,
            replies,
            sender: Some(sender),
            listener: Some(listener),
        }
    }

    /// How many it has sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// What has come back so far.
    pub fn replies(&self) -> Tally {
        self.replies.lock().unwrap().clone()
    }

    /// Stops sending, goes on counting replies; gives how many it sent.
    pub fn stop(&mut self) -> u64 {
        self.stop.store(true, Ordering::Release);
        if let Some(sender) = self.sender.take() {
            sender.join().unwrap();
        }
        self.sent()
    }
}

impl Drop for UdpSender {
    fn drop(&mut self) {
        join(&self.stop, &mut self.sender);
        join(&self.deaf, &mut self.listener);
    }
}

fn bind(netns: &Netns, address: SocketAddr) -> UdpSocket {
    let socket = netns
        .run(|| UdpSocket::bind(address))
        .unwrap_or_else(|error| panic!("bind {address} in {}: {error}", netns.name()));
    socket.set_read_timeout(Some(TICK)).unwrap();
    socket
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, tally: &Mutex<Tally>, echo: bool) {
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, source)) => {
                tally.lock().unwrap().take(&buffer[..length], source);
                if echo {
                    // A reply that the network refuses is a lost reply.
                    let _ = socket.send_to(&buffer[..length], source);
                }
            }
            // A quiet tick, or an ICMP error about something that was sent.
            Err(_) if stop.load(Ordering::Acquire) => return,
            Err(_) => {}
        }
    }
}

fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    size: usize,
    gap: Duration,
    stop: &AtomicBool,
    sent: &AtomicU64,
) {
    let mut datagram = vec![0; size];
    let mut started = now();
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        fill(&mut datagram, number);
        // An ICMP error about an earlier one is reported here once: this one is then
        // not sent, and is tried again.
        if socket.send_to(&datagram, to).is_ok() {
            number += 1;
            sent.store(number, Ordering::Release);
        } else {
            pause(gap);
        }
        let due = gap * u32::try_from(number).unwrap();
        let elapsed = started.elapsed();
        if let Some(wait) = due.checked_sub(elapsed) {
            pause(wait);
        } else if let Some(slip) = (elapsed - due).checked_sub(gap * CATCH_UP_MAX) {
            started += slip;
        }
    }
}

fn join(stop: &AtomicBool, thread: &mut Option<JoinHandle<()>>) {
    stop.store(true, Ordering::Release);
    if let Some(thread) = thread.take() {
        // Its panic was printed where it happened.
        let _ = thread.join();
    }
}
