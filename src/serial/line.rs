//! One connection at a time over the frames of a line.
//!
//! Each end picks an epoch when it opens the line and a new one after each connection. A
//! hello tells the own epoch; every other frame names both. A frame that names the
//! receiver's present epoch proves that its sender has heard of it: that opens the
//! connection. So nothing that was sent before can open, feed or end it.
//!
//! *Promises*: no I/O, no clock, bounded memory: [`WINDOW`] bytes each way and a frame.
//! *Refuses*: payload beyond the window, a gap in the numbers: either ends the connection
//! and begins a new one.
//! *Caller's duty*: feed [`Line::receive`], send what [`Line::transmit`] gives in order,
//! call [`Line::on_timeout`] when [`Line::timeout`] has come.
//! *Standard*: `docs/serial.md`, "Connections".

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::frame::{self, Decoder, Frame, Head, Kind, PAYLOAD_MAX};

mod connection;

use connection::Connection;

/// Bytes that an end takes before its reader has read any; also what it keeps unsent.
pub const WINDOW: u32 = 64 * 1_024;

/// How long things take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// From one sign of life to the next, if there is nothing else to send.
    pub beat: Duration,
    /// A peer that was not heard for so long is gone. At least three beats.
    pub silence: Duration,
    /// A peer that has not taken waiting bytes for so long never will.
    pub stall: Duration,
    /// From the first hello to the second; then doubled up to `silence`.
    pub hello: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(1),
            silence: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            hello: Duration::from_millis(100),
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum End {
    /// The peer said hello again.
    #[error("the peer has opened the line anew")]
    PeerOpened,
    /// The peer said bye.
    #[error("the peer has ended the connection")]
    PeerClosed,
    /// Frames are missing.
    #[error("frames were lost on the line")]
    Gap,
    /// More came than was allowed.
    #[error("the peer has sent more than it may")]
    Overrun,
    /// Nothing came.
    #[error("the peer has fallen silent")]
    Silence,
    /// Nothing was taken.
    #[error("the peer does not read")]
    Stall,
    /// Ended at this end.
    #[error("the connection was closed here")]
    Closed,
    /// The line itself is gone.
    #[error("the line is gone")]
    Line,
}

/// What a line has been through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Connections opened.
    pub opened: u64,
    /// Connections ended.
    pub ended: u64,
    /// Why the last one ended.
    pub end: Option<End>,
    /// The line is gone.
    pub is_lost: bool,
}

/// An end of a line.
pub struct Line {
    timing: Timing,
    epochs: Box<dyn FnMut() -> NonZeroU32 + Send>,
    decoder: Decoder,
    /// The own epoch.
    own: u32,
    /// The peer's epoch, 0 if unknown.
    peer: u32,
    connection: Option<Connection>,
    progress: Progress,
    damaged: u64,
    hello_at: Instant,
    hello_wait: Duration,
    /// What must be sent before anything else: an acknowledgement of `peer`'s hello, …
    owes_ack: bool,
    /// … and the end of an earlier connection: its epochs.
    owes_bye: Option<(u32, u32)>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line")
            .field("own", &self.own)
            .field("peer", &self.peer)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl Line {
    /// An end that has just opened the line. `epochs` gives a random number at each call.
    pub fn new(
        timing: Timing,
        mut epochs: impl FnMut() -> NonZeroU32 + Send + 'static,
        now: Instant,
    ) -> Self {
        Self {
            timing,
            own: epochs().get(),
            epochs: Box::new(epochs),
            decoder: Decoder::default(),
            peer: 0,
            connection: None,
            progress: Progress::default(),
            damaged: 0,
            hello_at: now,
            hello_wait: timing.hello,
            owes_ack: false,
            owes_bye: None,
        }
    }

    /// Connections so far. The number of the present one is `opened`, if `ended` is less.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Frames that came damaged.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// The epochs of the present connection: the own and the peer's.
    pub fn epochs(&self) -> Option<(u32, u32)> {
        self.connection.is_some().then_some((self.own, self.peer))
    }

    /// Takes what came from the line.
    pub fn receive(&mut self, mut bytes: &[u8], now: Instant) {
        // Lent out so that a frame, which lies in it, can be handled by the rest.
        let mut decoder = std::mem::take(&mut self.decoder);
        while let Some(frame) = decoder.next(&mut bytes) {
            match frame {
                Ok(frame) => self.take(frame, now),
                Err(_) => self.damaged += 1,
            }
        }
        self.decoder = decoder;
    }

    fn take(&mut self, Frame { head, payload }: Frame<'_>, now: Instant) {
        if head.kind == Kind::Hello {
            return self.take_hello(head.from, now);
        }
        if head.to != self.own || head.from == 0 {
            return;
        }
        let connection = match &mut self.connection {
            Some(connection) if head.from == self.peer => connection,
            // Not the peer that this epoch was shared with.
            Some(_) => return,
            None => {
                self.peer = head.from;
                self.progress.opened += 1;
                self.connection.insert(Connection::new(now))
            }
        };
        if head.kind == Kind::Bye {
            return self.end(End::PeerClosed, now);
        }
        if let Err(end) = connection.take(head, payload, now) {
            self.end(end, now);
        }
    }

    fn take_hello(&mut self, from: u32, now: Instant) {
        if from == 0 {
            return;
        }
        if from != self.peer {
            if self.connection.is_some() {
                self.end(End::PeerOpened, now);
            }
            self.peer = from;
        }
        self.owes_ack = true;
    }

    /// Ends the connection, if there is one, and begins the next.
    fn end(&mut self, end: End, now: Instant) {
        if self.connection.take().is_none() {
            return;
        }
        self.progress.ended = self.progress.opened;
        self.progress.end = Some(end);
        self.own = (self.epochs)().get();
        self.peer = 0;
        self.owes_ack = false;
        self.hello_at = now;
        self.hello_wait = self.timing.hello;
    }

    /// Ends connection `number` from this side, if it is the present one.
    pub fn close(&mut self, number: u64, now: Instant) {
        if self.is_open(number) {
            self.owes_bye = Some((self.own, self.peer));
            self.end(End::Closed, now);
        }
    }

    /// The line is gone: nothing comes or goes any more.
    pub fn lose(&mut self, now: Instant) {
        self.end(End::Line, now);
        self.progress.is_lost = true;
    }

    /// Whether connection `number` is the present one.
    pub fn is_open(&self, number: u64) -> bool {
        self.connection.is_some() && self.progress.opened == number
    }

    /// Moves received bytes of connection `number` into `out`; how many, or `None` if it
    /// has ended.
    pub fn read(&mut self, number: u64, out: &mut [u8]) -> Option<usize> {
        if !self.is_open(number) {
            return None;
        }
        self.connection
            .as_mut()
            .map(|connection| connection.read(out))
    }

    /// Takes bytes to send over connection `number`; how many, or `None` if it has ended.
    pub fn write(&mut self, number: u64, bytes: &[u8], now: Instant) -> Option<usize> {
        if !self.is_open(number) {
            return None;
        }
        self.connection
            .as_mut()
            .map(|connection| connection.write(bytes, now))
    }

    /// Whether all that was written to connection `number` has been transmitted.
    pub fn is_drained(&self, number: u64) -> bool {
        !self.is_open(number) || self.connection.as_ref().is_none_or(Connection::is_drained)
    }

    /// Appends the next frame to send to `out`; whether there is one.
    pub fn transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        if self.progress.is_lost {
            return false;
        }
        if let Some((from, to)) = self.owes_bye.take() {
            let head = Head {
                kind: Kind::Bye,
                from,
                to,
                count: 0,
                limit: 0,
            };
            frame::encode(head, &[], out);
            return true;
        }
        let (kind, to) = if std::mem::take(&mut self.owes_ack) {
            (Kind::Ack, self.peer)
        } else if self.connection.is_none() && self.hello_at <= now {
            self.hello_at = now + self.hello_wait;
            self.hello_wait = (self.hello_wait * 2).min(self.timing.silence);
            (Kind::Hello, 0)
        } else {
            return self.transmit_connection(out, now);
        };
        let (count, limit) = match &mut self.connection {
            Some(connection) => connection.tell(now),
            None => (0, WINDOW),
        };
        let head = Head {
            kind,
            from: self.own,
            to,
            count,
            limit,
        };
        frame::encode(head, &[], out);
        true
    }

    fn transmit_connection(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        let Some(connection) = &mut self.connection else {
            return false;
        };
        let mut head = Head {
            kind: Kind::Data,
            from: self.own,
            to: self.peer,
            count: 0,
            limit: 0,
        };
        if let Some((count, limit)) = connection.next_data(now) {
            (head.count, head.limit) = (count, limit);
            frame::encode(head, connection.payload(), out);
            return true;
        }
        if connection.owes_beat(self.timing.beat, now) {
            head.kind = Kind::Beat;
            (head.count, head.limit) = connection.tell(now);
            frame::encode(head, &[], out);
            return true;
        }
        false
    }

    /// When [`Line::on_timeout`] is due and, unless the line `is_blocked` by an earlier
    /// frame, [`Line::transmit`].
    pub fn timeout(&self, is_blocked: bool) -> Option<Instant> {
        match &self.connection {
            Some(connection) if is_blocked => Some(connection.overdue_at(&self.timing)),
            Some(connection) => Some(connection.timeout(&self.timing)),
            None => (!is_blocked).then_some(self.hello_at),
        }
    }

    /// Looks at the clock.
    pub fn on_timeout(&mut self, now: Instant) {
        if let Some(end) = self
            .connection
            .as_ref()
            .and_then(|connection| connection.overdue(&self.timing, now))
        {
            self.end(end, now);
        }
    }
}

/// Takes up to `out.len()` bytes from the front of `queue`.
fn pop_into(queue: &mut VecDeque<u8>, out: &mut [u8]) -> usize {
    let (front, back) = queue.as_slices();
    let first = front.len().min(out.len());
    let second = back.len().min(out.len() - first);
    if let (Some(to), Some(from)) = (out.get_mut(..first), front.get(..first)) {
        to.copy_from_slice(from);
    }
    if let (Some(to), Some(from)) = (out.get_mut(first..first + second), back.get(..second)) {
        to.copy_from_slice(from);
    }
    queue.drain(..first + second);
    first + second
}

#[cfg(test)]
mod tests;
