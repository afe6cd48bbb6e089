//! One TCP connection that carries as much as it can.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::netns::Netns;
use crate::support::{at, now, pause};
use crate::world::{SERVER, Session};

const CHUNK: usize = 256 * 1024;
/// How long a blocked end waits before it looks whether to stop.
const TICK: Duration = Duration::from_millis(100);

/// A connection from the client to the server, full all the time; it ends when dropped.
#[derive(Debug)]
pub struct Stream {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    port: u16,
}

impl Stream {
    /// Connects to the server's port `to` and begins to send.
    pub fn start(client: &Netns, server: &Netns, to: u16) -> Self {
        let address = at(&format!("{SERVER}:{to}"));
        let listener = server
            .run(|| TcpListener::bind(address))
            .unwrap_or_else(|error| panic!("listen on {address}: {error}"));
        let connected =
            client.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(20)));
        let near = connected.unwrap_or_else(|error| panic!("connect to {address}: {error}"));
        let (far, _) = listener.accept().unwrap();
        let port = near.local_addr().unwrap().port();
        near.set_write_timeout(Some(TICK)).unwrap();
        far.set_read_timeout(Some(TICK)).unwrap();
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let send = {
            let stop = stop.clone();
            move || send(near, &stop)
        };
        let receive = {
            let (stop, received) = (stop.clone(), received.clone());
            move || receive(far, &stop, &received)
        };
        Self {
            received,
            stop,
            threads: vec![std::thread::spawn(send), std::thread::spawn(receive)],
            port,
        }
    }

    /// The session that this connection is.
    pub fn session(&self, key: &'static str, to: u16) -> Session {
        Session {
            key,
            protocol: "tcp",
            from: self.port,
            to,
        }
    }

    /// Bits a second that arrive during `time`.
    pub fn rate(&self, time: Duration) -> f64 {
        let before = self.received.load(Ordering::Acquire);
        let started = now();
        while started.elapsed() < time {
            pause(TICK.min(time));
            assert!(
                !self.threads.iter().any(JoinHandle::is_finished),
                "the TCP connection broke"
            );
        }
        let moved = self.received.load(Ordering::Acquire) - before;
        moved as f64 * 8.0 / started.elapsed().as_secs_f64()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // What went wrong in it was told there.
            let _ = thread.join();
        }
    }
}

fn send(mut stream: TcpStream, stop: &AtomicBool) {
    let chunk = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Acquire) {
        match stream.write(&chunk) {
            Ok(_) => {}
            Err(error) if is_tick(error.kind()) => {}
            // Either end may go first.
            Err(_) if stop.load(Ordering::Acquire) => return,
            Err(error) => panic!("TCP send: {error}"),
        }
    }
}

fn receive(mut stream: TcpStream, stop: &AtomicBool, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while !stop.load(Ordering::Acquire) {
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => {
                received.fetch_add(count as u64, Ordering::Release);
            }
            Err(error) if is_tick(error.kind()) => {}
            Err(_) if stop.load(Ordering::Acquire) => return,
            Err(error) => panic!("TCP receive: {error}"),
        }
    }
}

fn is_tick(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
