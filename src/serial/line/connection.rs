//! What an end knows of the present connection: bytes both ways, numbers, credit, times.
//!
//! *Promises*: at most [`WINDOW`] bytes are kept each way; what is read was written at the
//! other end in this order, nothing missing.
//! *Refuses*: frames out of order ([`End::Gap`]), bytes beyond the window
//! ([`End::Overrun`]).
//! *Caller's duty*: the frames given are of this connection. *Standard*: `docs/serial.md`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{End, Head, Kind, PAYLOAD_MAX, Timing, WINDOW, pop_into};

pub(super) struct Connection {
    inbox: VecDeque<u8>,
    outbox: VecDeque<u8>,
    /// Payload of the data frame being sent.
    payload: Vec<u8>,
    /// Data frames received and sent.
    frames_in: u32,
    frames_out: u32,
    /// Payload bytes that the reader has taken, and the limit that was last told.
    bytes_read: u32,
    limit_told: u32,
    /// Payload bytes sent, and the peer's limit.
    bytes_out: u32,
    peer_limit: u32,
    /// When a frame last came and went.
    heard: Instant,
    told: Instant,
    /// Since when bytes wait to be sent and none was.
    waiting: Option<Instant>,
    owes_beat: bool,
}

impl Connection {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            payload: Vec::new(),
            frames_in: 0,
            frames_out: 0,
            bytes_read: 0,
            limit_told: WINDOW,
            bytes_out: 0,
            peer_limit: WINDOW,
            heard: now,
            told: now,
            waiting: None,
            // The peer may be waiting for a frame that names its epoch.
            owes_beat: true,
        }
    }

    /// Takes a frame of this connection.
    pub(super) fn take(&mut self, head: Head, payload: &[u8], now: Instant) -> Result<(), End> {
        if head.count != self.frames_in {
            return Err(End::Gap);
        }
        self.heard = now;
        if is_beyond(head.limit, self.peer_limit) {
            self.peer_limit = head.limit;
        }
        if head.kind == Kind::Data {
            if self.inbox.len() + payload.len() > WINDOW as usize {
                return Err(End::Overrun);
            }
            self.frames_in = self.frames_in.wrapping_add(1);
            self.inbox.extend(payload);
        }
        Ok(())
    }

    pub(super) fn read(&mut self, out: &mut [u8]) -> usize {
        let taken = pop_into(&mut self.inbox, out);
        self.bytes_read = self.bytes_read.wrapping_add(as_u32(taken));
        // Told when it is worth a frame: half a window.
        if self.limit().wrapping_sub(self.limit_told) >= WINDOW / 2 {
            self.owes_beat = true;
        }
        taken
    }

    pub(super) fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        let room = (WINDOW as usize).saturating_sub(self.outbox.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.outbox.extend(taken);
        if !taken.is_empty() && self.waiting.is_none() {
            self.waiting = Some(now);
        }
        taken.len()
    }

    pub(super) fn is_drained(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Makes [`Connection::payload`] of what waits and may go: its number and the limit.
    pub(super) fn next_data(&mut self, now: Instant) -> Option<(u32, u32)> {
        let credit = self.peer_limit.wrapping_sub(self.bytes_out).min(WINDOW) as usize;
        let length = self.outbox.len().min(credit).min(PAYLOAD_MAX);
        if length == 0 {
            return None;
        }
        self.payload.resize(length, 0);
        pop_into(&mut self.outbox, &mut self.payload);
        self.bytes_out = self.bytes_out.wrapping_add(as_u32(length));
        self.waiting = (!self.outbox.is_empty()).then_some(now);
        let told = self.tell(now);
        self.frames_out = self.frames_out.wrapping_add(1);
        Some(told)
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What a frame sent now says: count and limit.
    pub(super) fn tell(&mut self, now: Instant) -> (u32, u32) {
        self.told = now;
        self.owes_beat = false;
        self.limit_told = self.limit();
        (self.frames_out, self.limit_told)
    }

    pub(super) fn owes_beat(&self, beat: Duration, now: Instant) -> bool {
        self.owes_beat || self.told + beat <= now
    }

    /// When [`Connection::overdue`] or a beat is due.
    pub(super) fn timeout(&self, timing: &Timing) -> Instant {
        self.overdue_at(timing).min(self.told + timing.beat)
    }

    /// When [`Connection::overdue`] is due.
    pub(super) fn overdue_at(&self, timing: &Timing) -> Instant {
        let silent = self.heard + timing.silence;
        self.waiting
            .map_or(silent, |since| silent.min(since + timing.stall))
    }

    /// Why the connection is over by the clock.
    pub(super) fn overdue(&self, timing: &Timing, now: Instant) -> Option<End> {
        if self.heard + timing.silence <= now {
            Some(End::Silence)
        } else if self
            .waiting
            .is_some_and(|since| since + timing.stall <= now)
        {
            Some(End::Stall)
        } else {
            None
        }
    }

    /// Payload bytes that may have been sent to this end.
    fn limit(&self) -> u32 {
        self.bytes_read.wrapping_add(WINDOW)
    }
}

/// Whether `a` is further than `b` on the circle of 32-bit numbers.
fn is_beyond(a: u32, b: u32) -> bool {
    (1..1 << 31).contains(&a.wrapping_sub(b))
}

/// A length of at most [`WINDOW`].
fn as_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
