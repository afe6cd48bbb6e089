//! Connections between two programs of one process.
//!
//! *Promises*: whoever comes through a [`Door`] was let in by this process: there is no
//! socket that another could open.
//! *Refuses*: nothing. *Caller's duty*: a door is given to one program only, whose identity
//! its [`Visitors`] then have. *Standard*: none.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

/// Bytes on their way in each direction.
const BUFFER: usize = 64 * 1_024;
/// Connections that wait to be accepted.
const QUEUE: usize = 64;

/// The side that connects.
#[derive(Clone, Debug)]
pub struct Door(mpsc::Sender<DuplexStream>);

/// The side that accepts.
#[derive(Debug)]
pub struct Visitors(mpsc::Receiver<DuplexStream>);

/// A new way from one program to another.
pub fn passage() -> (Door, Visitors) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Door(sender), Visitors(receiver))
}

impl Door {
    /// A new connection.
    ///
    /// # Errors
    /// The other program has ended.
    pub async fn connect(&self) -> io::Result<DuplexStream> {
        let (near, far) = duplex(BUFFER);
        let sent = self.0.send(far).await;
        sent.map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(near)
    }
}

impl Visitors {
    /// The next connection; never ready once no door is left.
    pub fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<DuplexStream>> {
        match ready!(self.0.poll_recv(context)) {
            Some(stream) => Poll::Ready(Ok(stream)),
            None => Poll::Pending,
        }
    }
}
