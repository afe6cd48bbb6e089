//! TCP transfers whose every byte is checked.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use super::netns::Netns;
use super::{eventually, eventually_some, now, pause};

const CHUNK: usize = 64 * 1024;
/// A connection that stands still for this long has failed.
const STALL: Duration = Duration::from_secs(60);

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the client to the server.
    Upload,
    /// From the server to the client.
    Download,
}

/// What to move.
#[derive(Clone, Copy, Debug)]
pub struct TcpPlan {
    /// Where the server listens, in its namespace (port 0 takes a free one).
    pub listen: SocketAddr,
    /// Where the client connects to; port 0 stands for the one that the server got.
    pub connect: SocketAddr,
    /// Which way.
    pub direction: Direction,
    /// How many bytes, unless [`TcpTransfer::finish`] ends it before.
    pub bytes: u64,
    /// At most this many bytes a second; none for as fast as it goes.
    pub rate: Option<u64>,
}

/// A transfer under way.
#[derive(Debug)]
pub struct TcpTransfer {
    progress: Arc<Progress>,
    /// With the address that was connected to.
    plan: TcpPlan,
    client: Option<JoinHandle<SocketAddr>>,
    server: Option<JoinHandle<SocketAddr>>,
}

/// What the ends of a transfer tell each other beside the network.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes that have arrived and were right.
    moved: AtomicU64,
    /// Bytes that were sent in all; valid once the writer has shut its side.
    written: AtomicU64,
    /// The writer is to end.
    enough: AtomicBool,
    /// The plan's rate no longer holds.
    unpaced: AtomicBool,
    /// The client's own address.
    client: OnceLock<SocketAddr>,
}

/// What a finished transfer tells.
#[derive(Clone, Copy, Debug)]
pub struct TcpReport {
    /// The client's own address.
    pub client: SocketAddr,
    /// The client's address as the server saw it (after NAT).
    pub seen_by_server: SocketAddr,
}

impl TcpTransfer {
    /// Starts a server in `server`, a client in `client`.
    pub fn start(client: &Netns, server: &Netns, mut plan: TcpPlan) -> Self {
        let listener = server
            .run(|| TcpListener::bind(plan.listen))
            .unwrap_or_else(|error| panic!("listen on {}: {error}", plan.listen));
        if plan.connect.port() == 0 {
            let port = listener.local_addr().unwrap().port();
            plan.connect.set_port(port);
        }
        let progress = Arc::new(Progress::default());
        let serve = {
            let progress = progress.clone();
            move || {
                let (stream, peer) = listener.accept().unwrap();
                match plan.direction {
                    Direction::Upload => read_all(stream, &progress),
                    Direction::Download => write_all(stream, plan, &progress),
                }
                peer
            }
        };
        let stream = Self::connecting(client, plan.connect);
        let ask = {
            let progress = progress.clone();
            move || {
                let stream = stream.join().unwrap();
                let local = stream.local_addr().unwrap();
                progress.client.set(local).unwrap();
                match plan.direction {
                    Direction::Upload => write_all(stream, plan, &progress),
                    Direction::Download => read_all(stream, &progress),
                }
                local
            }
        };
        let server = Some(std::thread::spawn(serve));
        Self {
            progress,
            plan,
            client: Some(std::thread::spawn(ask)),
            server,
        }
    }

    /// Connects on a thread of its own: the caller need not wait for the handshake.
    fn connecting(client: &Netns, to: SocketAddr) -> JoinHandle<TcpStream> {
        client.run(|| {
            // A new thread inherits the namespace of the one that starts it.
            std::thread::spawn(move || {
                TcpStream::connect_timeout(&to, STALL)
                    .unwrap_or_else(|error| panic!("connect to {to}: {error}"))
            })
        })
    }

    /// Bytes that have arrived and were right.
    pub fn moved(&self) -> u64 {
        self.progress.moved.load(Ordering::Acquire)
    }

    /// Where the client connects to.
    pub fn server(&self) -> SocketAddr {
        self.plan.connect
    }

    /// The client's own address, once it is connected.
    pub fn client(&self) -> SocketAddr {
        eventually_some(STALL, "the client connects", || {
            self.progress.client.get().copied()
        })
    }

    /// Lifts the plan's rate: the rest goes as fast as it can.
    pub fn unpace(&self) {
        self.progress.unpaced.store(true, Ordering::Release);
    }

    /// Waits until `bytes` have arrived.
    pub fn wait_moved(&mut self, bytes: u64, deadline: Duration) {
        let what = format!("{bytes} bytes arrive");
        eventually(deadline, &what, || {
            assert!(
                !self.ended().contains(&true) || self.moved() >= bytes,
                "the transfer ended at {}",
                self.moved()
            );
            self.moved() >= bytes
        });
    }

    /// Waits for the end; panics if a byte was wrong or missing.
    pub fn wait(mut self, deadline: Duration) -> TcpReport {
        self.wait_moved(self.plan.bytes, deadline);
        self.join(deadline)
    }

    /// Ends it where it is; panics if a byte was wrong or missing.
    pub fn finish(self, deadline: Duration) -> TcpReport {
        self.progress.enough.store(true, Ordering::Release);
        self.join(deadline)
    }

    /// Whether client and server are through, or have failed.
    fn ended(&self) -> [bool; 2] {
        [&self.client, &self.server].map(|end| end.as_ref().is_none_or(JoinHandle::is_finished))
    }

    fn join(mut self, deadline: Duration) -> TcpReport {
        eventually(deadline, "the transfer ends", || {
            self.ended() == [true, true]
        });
        let client = self.client.take().unwrap().join().unwrap();
        let seen_by_server = self.server.take().unwrap().join().unwrap();
        TcpReport {
            client,
            seen_by_server,
        }
    }
}

/// The bytes of every transfer (xorshift64*): a piece out of place is noticed.
struct Pattern(u64);

impl Pattern {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        for piece in chunk.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }
}

fn write_all(mut stream: TcpStream, plan: TcpPlan, progress: &Progress) {
    stream.set_write_timeout(Some(STALL)).unwrap();
    stream.set_read_timeout(Some(STALL)).unwrap();
    let started = now();
    let (mut pattern, mut chunk, mut done) = (Pattern::new(), vec![0; CHUNK], 0);
    while done < plan.bytes && !progress.enough.load(Ordering::Acquire) {
        let left = plan.bytes - done;
        let piece = &mut chunk[..usize::try_from(left.min(CHUNK as u64)).unwrap()];
        pattern.fill(piece);
        stream
            .write_all(piece)
            .unwrap_or_else(|error| panic!("write at {done}: {error}"));
        done += piece.len() as u64;
        if let Some(rate) = plan.rate
            && !progress.unpaced.load(Ordering::Acquire)
        {
            let due = Duration::from_secs_f64(done as f64 / rate as f64);
            pause(due.saturating_sub(started.elapsed()));
        }
    }
    progress.written.store(done, Ordering::Release);
    stream.shutdown(Shutdown::Write).unwrap();
    // The reader closes once it has checked everything: until then the connection
    // must stand.
    assert_eq!(
        stream
            .read(&mut chunk)
            .unwrap_or_else(|error| panic!("{error}")),
        0
    );
}

fn read_all(mut stream: TcpStream, progress: &Progress) {
    stream.set_read_timeout(Some(STALL)).unwrap();
    let (mut pattern, mut done) = (Pattern::new(), 0);
    let (mut got, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        pattern.fill(&mut wanted);
        let mut have = 0;
        while have < CHUNK {
            match stream.read(&mut got[have..]) {
                Ok(0) => break,
                Ok(count) => have += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("read at {}: {error}", done + have as u64),
            }
        }
        assert!(
            got[..have] == wanted[..have],
            "wrong bytes in {done}+{have}"
        );
        done += have as u64;
        progress.moved.store(done, Ordering::Release);
        if have < CHUNK {
            break;
        }
    }
    let written = progress.written.load(Ordering::Acquire);
    assert_eq!(done, written, "the connection ended early");
}
