//! The lanes of one element on several workers, and what they leave for each other.
//!
//! Each lane has the element's queue pairs of its worker and its own reader, hand-over machine,
//! parked frames and counters. A flow is at home on one lane ([`crate::flow::route`]); everything
//! about it is decided there. What crosses from lane to lane goes into the other's mailbox, in
//! parcels of at most a burst:
//!
//! - frames to be sent by a queue pair of the other lane: to an uplink or to the guest;
//! - frames of a flow at home there, which came in by a queue pair here;
//! - *sightings*: what the guest sent here of a flow that waits there.
//!
//! *Promises*: no frame of a flow overtakes another that was received before it, for flows in
//! the table also if the other came by another queue pair. Nobody waits, nothing is allocated.
//! A sleeping lane is woken once for all that comes until it looks.
//! *Refuses*: frames when all of a lane's [`PARCELS`] are on their way: they are lost, and counted
//! as when the queue they were for is full. A sighting then is lost too, and the hand-over waits
//! for the next one.
//! *Caller's duty*: after a burst was received and before anything is decided about it, the lane
//! deals with its mailbox ([`Lane::collect`](super::lane::Lane)); when it is through with the burst
//! it calls [`Mates::flush`]. *Standard*: none.
//!
//! # Why nothing overtakes
//!
//! Write *a → b* for "a happened before b". A frame is *committed* when it was handed to its queue
//! pair, or posted to the lane that has it. A lane commits in the order of its decisions. A mailbox
//! keeps the order of completed posts, and a lane takes all of it after each receive; so if
//! commit(x) → receive(y), then x leaves before y, whichever lanes they came by.
//!
//! Let x and y be frames of one flow, receive(x) → receive(y).
//!
//! - *Both reach the flow's home as frames.* One that came by another lane was posted to the home,
//!   and is decided on before what the home receives later. The home decides on x, then on y.
//!   Decisions about a flow depend on its state, its record and its parked frames, and only the
//!   home changes these (anybody may close it, and the keeper send it back to be proved again,
//!   which only makes frames go to the guest). So all that one lane promises by itself holds:
//!   punted and parked frames are released before y is decided on. Both leave by the same queue
//!   pair: the route is kept while the flow moves.
//! - *x went through the guest* and y goes around it, or follows it out of the lot. x left the guest
//!   by some lane: commit(x) → post(sighting of x), because a lane posts its sightings after all
//!   frames of the burst they were in; → the home takes it and activates the flow → commit(y). If y
//!   is for a queue pair of a third lane, so was x, and post(x) → post(y) to the same mailbox. A
//!   sighting that is late is, for the machine, a guest that takes longer.
//! - *x goes to the guest, and so does y.* Both by the home's queue pair, also if one of them came
//!   by another: the guest would be free to take them in any order otherwise. Where x was parked
//!   and goes back, at the bound, by a disproof or because its session closes, it does so before
//!   the home decides on y.
//! - *x went around the guest* and y, after its session has ended, goes through it: y comes to the
//!   lane that x was posted to, if the guest uses the egress queue pair that the flow had, and x is
//!   taken from the mailbox before. A guest that has gone over to another queue pair meanwhile
//!   gives up their order, as any sender does between two queue pairs. The same where the session
//!   was sent back to be proved again.
//! - *The session has ended*, and y finds no flow: it is punted by the lane it came to. This is
//!   the home, unless the device has moved the flow to another queue pair since x came; then
//!   nothing is promised, as for all frames that no session concerns.
//!
//! A route changes only while a flow is active and has not moved for 100 ms: by then no frame of it
//! is on its way. (A worker that is set aside for that long with a frame in its hands is the
//! exception.)

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::counters::Wire;
use super::mailbox::{Mailbox, Node, Posts};
use crate::flow::FlowId;
use crate::packet::{Burst, FRAME_MAX, Frame, MacAddr, Marker, Offload, PuntReason};
use crate::port::Poller;

/// Parcels of a lane that may be on their way at a time.
const PARCELS: usize = 32;
/// Bytes in a parcel: a full burst of 1500, or one of the largest frames.
const BYTES: usize = 96 << 10;
const _: () = assert!(BYTES >= FRAME_MAX);

/// What another lane is to do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Errand {
    /// Send it by an uplink: it goes around the guest.
    Forward,
    /// Send it by an uplink: the guest has.
    Pass,
    /// Hand it to the guest.
    Punt(PuntReason),
    /// Decide: it came in, and its flow is at home there.
    Decide,
}

/// A frame's errand, the queue pair it is for (or came by), and what it counts as.
#[derive(Clone, Copy, Debug)]
pub(super) struct Label {
    pub(super) errand: Errand,
    pub(super) vnic: usize,
    pub(super) queue: usize,
    pub(super) wire: Wire,
}

impl Label {
    /// Whether two frames are dealt with in one go.
    pub(super) fn goes_with(&self, other: &Self) -> bool {
        let side = |errand| match errand {
            Errand::Forward | Errand::Pass => 0,
            Errand::Punt(_) => 1,
            Errand::Decide => 2,
        };
        (self.vnic, self.queue) == (other.vnic, other.queue)
            && side(self.errand) == side(other.errand)
    }
}

/// A frame that the guest sent, of a flow that waits for proof or drains.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    pub(super) flow: FlowId,
    pub(super) marker: Marker,
    pub(super) dst_mac: MacAddr,
    pub(super) src_mac: MacAddr,
    /// Whether it is, but for the MACs, the requested rewrite.
    pub(super) exact: bool,
    /// The egress queue pair it left by.
    pub(super) queue: usize,
}

/// What one lane sends another in one go: frames, then sightings.
#[derive(Debug)]
pub(super) struct Parcel {
    origin: usize,
    bytes: Vec<u8>,
    frames: Vec<(usize, Offload, Label)>,
    sightings: Vec<Sighting>,
}

impl Parcel {
    fn new(origin: usize) -> Self {
        Self {
            origin,
            bytes: Vec::with_capacity(BYTES),
            frames: Vec::with_capacity(Burst::FRAMES_MAX),
            sightings: Vec::with_capacity(Burst::FRAMES_MAX),
        }
    }

    fn has_room(&self, len: usize) -> bool {
        self.frames.len() < Burst::FRAMES_MAX && self.bytes.len() + len <= BYTES
    }

    fn push(&mut self, frame: &Frame<'_>, label: Label) {
        self.bytes.extend_from_slice(frame.data);
        self.frames.push((self.bytes.len(), frame.offload, label));
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
        self.sightings.clear();
    }

    /// How many frames.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn label(&self, place: usize) -> &Label {
        &self.frames[place].2
    }

    pub(super) fn frame(&self, place: usize) -> Frame<'_> {
        let start = place.checked_sub(1).map_or(0, |last| self.frames[last].0);
        let (end, offload, _) = self.frames[place];
        let data = &self.bytes[start..end];
        Frame { data, offload }
    }

    pub(super) fn sightings(&self) -> &[Sighting] {
        &self.sightings
    }
}

/// What a lane shares with the others.
#[derive(Debug)]
struct Office {
    mail: Mailbox<Parcel>,
    /// Its own parcels, empty again.
    returned: Mailbox<Parcel>,
    bell: EventFd,
}

/// A lane's way to the other lanes of its element.
#[derive(Debug)]
pub(super) struct Mates {
    number: usize,
    offices: Arc<[Office]>,
    #[expect(clippy::vec_box, reason = "a node is posted as the box it is in")]
    spare: Vec<Box<Node<Parcel>>>,
    /// What is being packed, by lane.
    open: Vec<Option<Box<Node<Parcel>>>>,
    is_open: bool,
    sightings: Vec<(usize, Sighting)>,
    poller: Option<Poller>,
}

impl Mates {
    /// For each of `lanes` lanes its way to the others; the only place that allocates.
    pub(super) fn all(lanes: usize) -> io::Result<Vec<Self>> {
        let office = |_| {
            Ok(Office {
                mail: Mailbox::new(),
                returned: Mailbox::new(),
                bell: EventFd::new(EFD_NONBLOCK)?,
            })
        };
        let offices: Arc<[Office]> = (0..lanes).map(office).collect::<io::Result<_>>()?;
        let mates = (0..lanes).map(|number| Self {
            number,
            offices: offices.clone(),
            spare: (0..PARCELS)
                .map(|_| Node::new(Parcel::new(number)))
                .collect(),
            open: (0..lanes).map(|_| None).collect(),
            is_open: false,
            sightings: Vec::with_capacity(Burst::FRAMES_MAX),
            poller: None,
        });
        Ok(mates.collect())
    }

    /// This lane's number in the element.
    #[inline]
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Has the bell watched by this lane's worker.
    pub(super) fn attach(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(self.offices[self.number].bell.as_raw_fd())?;
        self.poller = Some(poller);
        Ok(())
    }

    /// Packs a copy of a frame for `lane`; false if there is no parcel left.
    pub(super) fn send(&mut self, lane: usize, frame: &Frame<'_>, label: Label) -> bool {
        if frame.data.len() > BYTES {
            return false;
        }
        let is_full = |parcel: &Node<Parcel>| !parcel.item.has_room(frame.data.len());
        if self.open[lane].as_deref().is_some_and(is_full) {
            self.post(lane);
        }
        match self.parcel_for(lane) {
            Some(parcel) => {
                parcel.push(frame, label);
                true
            }
            None => false,
        }
    }

    /// Keeps a sighting for `lane` until the burst is through.
    pub(super) fn sight(&mut self, lane: usize, sighting: Sighting) {
        if self.sightings.len() < self.sightings.capacity() {
            self.sightings.push((lane, sighting));
        }
    }

    /// Posts everything that was packed; frames before sightings.
    #[inline]
    pub(super) fn flush(&mut self) {
        if self.is_open {
            self.post_all();
        }
        if !self.sightings.is_empty() {
            self.flush_sightings();
        }
    }

    #[cold]
    fn flush_sightings(&mut self) {
        let mut sightings = std::mem::take(&mut self.sightings);
        for (lane, sighting) in sightings.drain(..) {
            if let Some(parcel) = self.parcel_for(lane) {
                parcel.sightings.push(sighting);
            }
        }
        self.sightings = sightings;
        self.post_all();
    }

    fn post_all(&mut self) {
        for lane in 0..self.open.len() {
            self.post(lane);
        }
        self.is_open = false;
    }

    fn post(&mut self, lane: usize) {
        if let Some(parcel) = self.open[lane].take()
            && self.offices[lane].mail.post(parcel)
        {
            self.ring(lane);
        }
    }

    fn ring(&self, lane: usize) {
        // A count that is full is already ringing, so a failure says nothing new.
        let _already_ringing = self.offices[lane].bell.write(1);
    }

    /// Has `lane` look at its queue pairs if it sleeps: one of them may run by now.
    pub(super) fn nudge(&self, lane: usize) {
        if self.offices[lane].mail.rouse() {
            self.ring(lane);
        }
    }

    fn parcel_for(&mut self, lane: usize) -> Option<&mut Parcel> {
        if self.open[lane].is_none() {
            if self.spare.is_empty() {
                let returned = self.offices[self.number].returned.take();
                self.spare.extend(returned);
            }
            self.open[lane] = Some(self.spare.pop()?);
            self.is_open = true;
        }
        self.open[lane].as_mut().map(|node| &mut node.item)
    }

    /// Whether nobody left anything.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.offices[self.number].mail.is_empty()
    }

    /// What others left, oldest first; each to be given back.
    pub(super) fn take(&self) -> Posts<Parcel> {
        self.offices[self.number].mail.take()
    }

    /// A parcel is done with.
    pub(super) fn give_back(&self, mut node: Box<Node<Parcel>>) {
        node.item.clear();
        // Nobody sleeps over empty parcels.
        let _awake = self.offices[node.item.origin].returned.post(node);
    }

    /// Asks for the bell; false if something is there.
    pub(super) fn arm(&self) -> bool {
        self.offices[self.number].mail.sleep()
    }

    /// Takes [`Mates::arm`] back.
    pub(super) fn disarm(&self) {
        self.offices[self.number].mail.wake();
    }
}

impl Drop for Mates {
    fn drop(&mut self) {
        if let Some(poller) = &self.poller {
            // The worker may be ending too, its epoll set with it.
            let _gone = poller.remove(self.offices[self.number].bell.as_raw_fd());
        }
    }
}
