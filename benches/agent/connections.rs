//! Short TCP connections, one after another on many threads.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::rig::{Rig, SERVER};
use crate::support::{now, pause};

const CLIENTS: usize = 16;
const SERVERS: usize = 4;
const WARM_UP: Duration = Duration::from_millis(500);
const SAMPLE: Duration = Duration::from_secs(3);
/// How long an end waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections a second.
pub fn rate(rig: &mut Rig) -> f64 {
    let to = rig.free(&rig.server, SERVER);
    let listener = Arc::new(rig.server.run(|| TcpListener::bind(to).unwrap()));
    let stop = Arc::new(AtomicBool::new(false));
    let servers: Vec<_> = (0..SERVERS)
        .map(|_| {
            let (listener, stop) = (listener.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    let (stream, _) = listener.accept().unwrap();
                    // A client that gives up says so at its own end.
                    let _ = serve(stream);
                }
            })
        })
        .collect();
    let rate = rig.client.run(|| {
        let rate = measure(to);
        stop.store(true, Ordering::Release);
        // Whoever waits for a client gets a last one.
        while !servers.iter().all(JoinHandle::is_finished) {
            drop(TcpStream::connect_timeout(&to, PATIENCE));
        }
        rate
    });
    for server in servers {
        server.join().unwrap();
    }
    rate
}

/// The same, to be run where the client is. Whoever has been begun with is served to the end.
fn measure(to: SocketAddr) -> f64 {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Threads inherit the namespace of the one that starts them.
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    ask(to).unwrap_or_else(|error| panic!("a connection failed: {error}"));
                    done.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        pause(WARM_UP);
        let (began, before) = (now(), done.load(Ordering::Acquire));
        pause(SAMPLE);
        let count = done.load(Ordering::Acquire) - before;
        let rate = count as f64 / began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Release);
        rate
    })
}

fn ask(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[7; 64])?;
    // To the end, which is the server's: its port is not one of those that run out.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    assert_eq!(answer.len(), 512);
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; 64];
    stream.read_exact(&mut request)?;
    stream.write_all(&[9; 512])
}
