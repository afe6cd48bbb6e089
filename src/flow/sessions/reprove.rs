//! Sending sessions back to be proved again: their guest may have changed its mind.
//!
//! *Promises*: from the return on no worker begins a burst in which it forwards a packet of the
//! session, until the guest has sent one that it got since, exactly as requested; then the flow
//! moves by its mode, as at first. Frames parked for it go to the guest before later ones. The
//! session stays what it is: number, key, counters, age and timers go on. MACs that the request
//! left open are learned anew.
//! *Refuses*: vouched sessions: nobody asked for their proof.
//! *Caller's duty*: none beside [`Sessions`]'.
//! *Standard*: DESIGN section 4 (proof of forwarding).
//!
//! Where nothing is parked this costs two cache lines a session: no place in the table changes.

use std::sync::atomic::Ordering;

use super::{SessionPhase, Sessions};
use crate::flow::{FlowState, Moment};

/// What became of a session that was to be proved again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reproof {
    /// A direction was around the guest, or on the way there: it waits for proof again.
    Sent,
    /// It was waiting for proof already; what the guest has got before proves it no more.
    Waits,
    /// It is vouched, and goes on as it was.
    Vouched,
}

impl Sessions {
    /// The session of that client key is to be proved again. `None` if there is none.
    pub fn reprove(&mut self, key: &str, now: Moment) -> Option<Reproof> {
        self.clock(now);
        let (reproof, drains) = self.reprove_at(self.book.by_key(key)?)?;
        if drains {
            self.look_again();
        }
        Some(reproof)
    }

    /// All sessions are; how many of them were not waiting for proof.
    pub fn reprove_all(&mut self, now: Moment) -> u64 {
        self.clock(now);
        let mut sent = 0;
        for slot in 0..self.book.end() {
            let (reproof, _) = self.reprove_at(slot).unzip();
            sent += u64::from(reproof == Some(Reproof::Sent));
        }
        self.look_again();
        sent
    }

    /// Also says whether workers may have parked frames of it.
    fn reprove_at(&mut self, slot: u32) -> Option<(Reproof, bool)> {
        let (is_vouched, mut waiting) = self.book.proof(slot)?;
        if is_vouched {
            return Some((Reproof::Vouched, false));
        }
        if let Some(entry) = self.book.opened_mut(slot)
            && entry.phase != SessionPhase::Live
        {
            // Its flows are not in the table yet, or will be put there anew.
            entry.again = true;
            return Some((Reproof::Waits, false));
        }
        let flows = self.flows(slot)?;
        // Before a flow can be seen to wait: a worker that looks too early looks in vain.
        let most = flows.len() as u32;
        self.signals.waiting.fetch_add(most, Ordering::Relaxed);
        let (mut sent, mut drains, mut more) = (false, false, 0);
        for (place, flow) in flows.into_iter().enumerate() {
            if !flow.is_present() {
                continue;
            }
            let was = flow.reprove();
            sent |= matches!(was, FlowState::Active | FlowState::Draining);
            drains |= was == FlowState::Draining;
            if was != FlowState::Closing && !waiting[place] {
                waiting[place] = true;
                more += 1;
            }
        }
        let too_many = most - more;
        self.signals.waiting.fetch_sub(too_many, Ordering::Relaxed);
        if more > 0 {
            self.book.set_waiting(slot, waiting);
        }
        let reproof = if sent { Reproof::Sent } else { Reproof::Waits };
        Some((reproof, drains))
    }
}

#[cfg(test)]
mod tests;
