//! How many small UDP packets a second get through: numbered datagrams, sent and received
//! in batches of system calls, each datagram a frame of its own (no segmentation offload).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::raw::{BATCH, Ends, Sender};
use crate::support::netns::Netns;
use crate::support::{now, pause, stop_if_interrupted};

/// Bytes that make an Ethernet frame of 64 with its checksum.
pub const PAYLOAD: usize = 18;
/// The sender looks this often how many datagrams are due.
const STEP: Duration = Duration::from_micros(200);
/// The receiver looks this often. It does not block: waking it for each datagram would
/// cost the path under test more than the datagram itself.
const LOOK_EVERY: Duration = Duration::from_micros(500);
/// Nothing came for so long: what is missing is lost.
const QUIET: Duration = Duration::from_millis(300);
/// The receiver's socket keeps this much while its thread waits for a CPU.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;
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

/// A sender and a receiver of one UDP flow.
#[derive(Debug)]
pub struct Blaster {
    sender: Sender,
    /// Keeps the sender's port from being given away.
    _port: UdpSocket,
    receiver: Receiver,
    trials: u64,
}

impl Blaster {
    /// Sends on `interface` of `client`, receives in `server`, which sees it come from `seen`.
    pub fn new(
        (client, interface): (&Netns, &str),
        ends: Ends,
        server: &Netns,
        seen: SocketAddr,
    ) -> Self {
        let receiver = Receiver::start(server, ends.to, seen);
        let port = socket(client, ends.from, ends.to);
        let sender = Sender::open(client, interface, ends, PAYLOAD);
        Self {
            sender,
            _port: port,
            receiver,
            trials: 0,
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

    fn trial(&mut self, rate: f64, time: Duration) -> Trial {
        self.trials += 1;
        self.receiver.begin(self.trials);
        let started = now();
        let mut sent = 0;
        while started.elapsed() < time {
            stop_if_interrupted();
            let due = (started.elapsed().as_secs_f64() * rate) as u64;
            if due <= sent {
                pause(STEP);
                continue;
            }
            let count = (due - sent).min(BATCH as u64) as usize;
            sent += send_batch(&self.sender, self.trials, sent, count);
        }
        let rate = sent as f64 / started.elapsed().as_secs_f64();
        let received = self.receiver.settled(sent);
        Trial {
            rate,
            sent,
            received,
        }
    }
}

#[derive(Debug)]
struct Trial {
    rate: f64,
    sent: u64,
    received: u64,
}

impl Trial {
    fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent as f64
    }
}

/// Counts datagrams of one trial on a thread of its own.
#[derive(Debug)]
struct Receiver {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    trial: AtomicU64,
    received: AtomicU64,
    stop: AtomicBool,
}

impl Receiver {
    fn start(netns: &Netns, address: SocketAddr, peer: SocketAddr) -> Self {
        let socket = socket(netns, address, peer);
        enlarge_buffer(&socket);
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                while !shared.stop.load(Ordering::Acquire) {
                    let trial = shared.trial.load(Ordering::Acquire);
                    let batch = receive_batch(&socket, trial);
                    shared.received.fetch_add(batch.of_trial, Ordering::Release);
                    if batch.is_last {
                        pause(LOOK_EVERY);
                    }
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    fn begin(&self, trial: u64) {
        self.shared.trial.store(trial, Ordering::Release);
        // A batch that counts for the trial before may be under way.
        pause(20 * LOOK_EVERY);
        self.shared.received.store(0, Ordering::Release);
    }

    /// How many came, once all did or no more do.
    fn settled(&self, sent: u64) -> u64 {
        let mut last = (self.shared.received.load(Ordering::Acquire), now());
        while last.0 < sent && last.1.elapsed() < QUIET {
            pause(Duration::from_millis(5));
            let received = self.shared.received.load(Ordering::Acquire);
            if received != last.0 {
                last = (received, now());
            }
        }
        last.0
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

/// A socket in `netns`, connected: the kernel finds a connected one without a look at its
/// routes.
fn socket(netns: &Netns, own: SocketAddr, peer: SocketAddr) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind(own)?;
        socket.connect(peer)?;
        Ok(socket)
    };
    netns
        .run(open)
        .unwrap_or_else(|error: io::Error| panic!("UDP {own} to {peer}: {error}"))
}

fn enlarge_buffer(socket: &UdpSocket) {
    // SAFETY: SO_RCVBUFFORCE takes an int by pointer and size, which the kernel only reads
    // during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&RECEIVE_BUFFER).cast(),
            size_of_val(&RECEIVE_BUFFER) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "setsockopt: {}", io::Error::last_os_error());
}

/// Headers for a batch, one buffer each.
fn headers(
    buffers: &mut [[u8; PAYLOAD]; BATCH],
    parts: &mut [libc::iovec; BATCH],
) -> [libc::mmsghdr; BATCH] {
    for (part, buffer) in parts.iter_mut().zip(buffers) {
        part.iov_base = buffer.as_mut_ptr().cast();
        part.iov_len = PAYLOAD;
    }
    let first = parts.as_mut_ptr();
    std::array::from_fn(|index| {
        // SAFETY: mmsghdr is integers and pointers, for which zero is a value.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_iov = first.wrapping_add(index);
        header.msg_hdr.msg_iovlen = 1;
        header
    })
}

const NO_PART: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Sends `count` datagrams numbered from `first`; says how many went.
fn send_batch(sender: &Sender, trial: u64, first: u64, count: usize) -> u64 {
    let mut payloads = [[0; PAYLOAD]; BATCH];
    for (number, payload) in (first..).zip(&mut payloads) {
        payload[..8].copy_from_slice(&trial.to_be_bytes());
        payload[8..16].copy_from_slice(&number.to_be_bytes());
    }
    sender.send(&payloads[..count.min(BATCH)])
}

/// What one look found.
struct Batch {
    of_trial: u64,
    /// No more were there.
    is_last: bool,
}

/// Takes what has come.
fn receive_batch(socket: &UdpSocket, trial: u64) -> Batch {
    let mut buffers = [[0; PAYLOAD]; BATCH];
    let mut parts = [NO_PART; BATCH];
    let mut headers = headers(&mut buffers, &mut parts);
    // SAFETY: as in `send_batch`; the kernel writes at most PAYLOAD bytes into each buffer.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            BATCH as libc::c_uint,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).unwrap_or(0);
    let own = trial.to_be_bytes();
    let of_trial = buffers[..received].iter().filter(|bytes| bytes[..8] == own);
    Batch {
        of_trial: of_trial.count() as u64,
        is_last: received < BATCH,
    }
}
