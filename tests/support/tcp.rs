//! TCP transfers whose every byte is checked.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::netns::Netns;
use super::{eventually, now, pause};

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
    /// How many bytes.
    pub bytes: u64,
    /// At most this many bytes a second; none for as fast as it goes.
    pub rate: Option<u64>,
}

/// A transfer under way.
#[derive(Debug)]
pub struct TcpTransfer {
    moved: Arc<AtomicU64>,
    unpaced: Arc<AtomicBool>,
    plan: TcpPlan,
    client: Option<JoinHandle<SocketAddr>>,
    server: Option<JoinHandle<SocketAddr>>,
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
    pub fn start(client: &Netns, server: &Netns, plan: TcpPlan) -> Self {
        let listener = server
            .run(|| TcpListener::bind(plan.listen))
            .unwrap_or_else(|error| panic!("listen on {}: {error}", plan.listen));
        let mut connect = plan.connect;
        if connect.port() == 0 {
            connect.set_port(listener.local_addr().unwrap().port());
        }
        let moved = Arc::new(AtomicU64::new(0));
        let unpaced = Arc::new(AtomicBool::new(false));
        let serve = {
            let (moved, unpaced) = (moved.clone(), unpaced.clone());
            move || {
                let (stream, peer) = listener.accept().unwrap();
                match plan.direction {
                    Direction::Upload => read_all(stream, plan.bytes, &moved),
                    Direction::Download => write_all(stream, plan, &unpaced),
                }
                peer
            }
        };
        let stream = Self::connecting(client, connect);
        let ask = {
            let (moved, unpaced) = (moved.clone(), unpaced.clone());
            move || {
                let stream = stream.join().unwrap();
                let local = stream.local_addr().unwrap();
                match plan.direction {
                    Direction::Upload => write_all(stream, plan, &unpaced),
                    Direction::Download => read_all(stream, plan.bytes, &moved),
                }
                local
            }
        };
        let server = Some(std::thread::spawn(serve));
        Self {
            moved,
            unpaced,
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
        self.moved.load(Ordering::Acquire)
    }

    /// Lifts the plan's rate: the rest goes as fast as it can.
    pub fn unpace(&self) {
        self.unpaced.store(true, Ordering::Release);
    }

    /// Waits until `bytes` have arrived.
    pub fn wait_moved(&mut self, bytes: u64, deadline: Duration) {
        let what = format!("{bytes} bytes arrive");
        eventually(deadline, &what, || {
            let failed = [&self.client, &self.server]
                .iter()
                .any(|end| end.as_ref().is_some_and(JoinHandle::is_finished));
            assert!(
                !failed || self.moved() >= bytes,
                "the transfer ended at {}",
                self.moved()
            );
            self.moved() >= bytes
        });
    }

    /// Waits for the end; panics if a byte was wrong or missing.
    pub fn wait(mut self, deadline: Duration) -> TcpReport {
        let bytes = self.plan.bytes;
        self.wait_moved(bytes, deadline);
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

/// A piece of the whole: as long as is left, a chunk at most.
fn next_chunk(left: u64) -> usize {
    usize::try_from(left.min(CHUNK as u64)).unwrap()
}

fn write_all(mut stream: TcpStream, plan: TcpPlan, unpaced: &AtomicBool) {
    stream.set_write_timeout(Some(STALL)).unwrap();
    stream.set_read_timeout(Some(STALL)).unwrap();
    let started = now();
    let (mut pattern, mut chunk, mut done) = (Pattern::new(), vec![0; CHUNK], 0);
    while done < plan.bytes {
        let piece = &mut chunk[..next_chunk(plan.bytes - done)];
        pattern.fill(piece);
        stream
            .write_all(piece)
            .unwrap_or_else(|error| panic!("write at {done}: {error}"));
        done += piece.len() as u64;
        if let Some(rate) = plan.rate
            && !unpaced.load(Ordering::Acquire)
        {
            let due = Duration::from_secs_f64(done as f64 / rate as f64);
            pause(due.saturating_sub(started.elapsed()));
        }
    }
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

fn read_all(mut stream: TcpStream, bytes: u64, moved: &AtomicU64) {
    stream.set_read_timeout(Some(STALL)).unwrap();
    let (mut pattern, mut done) = (Pattern::new(), 0);
    let (mut got, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    while done < bytes {
        let length = next_chunk(bytes - done);
        pattern.fill(&mut wanted[..length]);
        let mut have = 0;
        while have < length {
            match stream.read(&mut got[have..length]) {
                Ok(0) => panic!("the connection ended at byte {}", done + have as u64),
                Ok(count) => have += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("read at {}: {error}", done + have as u64),
            }
        }
        assert!(
            got[..length] == wanted[..length],
            "wrong bytes in {done}+{length}"
        );
        done += length as u64;
        moved.store(done, Ordering::Release);
    }
    assert_eq!(stream.read(&mut got).unwrap(), 0, "more came than was sent");
}
