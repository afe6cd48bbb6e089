//! What both directions share: taking chains, completing them, stopping.
//!
//! *Promises*: the available index is read (acquire) and the used index written
//! (release) once per burst; buffers are completed in the order they were made
//! available; what was completed before a fault is published. Nothing is
//! allocated after the start.
//! *Refuses*: an available index more than the ring's size ahead; any work after
//! the first fault, until the ring is started anew.
//! *Caller's duty*: [`Core::publish`] at the end of every burst.
//! *Standard*: virtio 1.2 sections 2.7.6, 2.7.8 and 2.7.13.

use std::sync::Arc;

use super::chain::{Ahead, Direction, Entry, Segments, Walk};
use super::fault::RingFault;
use super::layout::{RingConfig, used_entry};
use super::memory::{Cursor, Header, Reach, Segment};
use super::notify::{Notify, Shared};
use super::raw::{Areas, GuestMap};

/// The engine of one ring.
#[derive(Debug)]
pub(super) struct Core {
    areas: Areas,
    config: RingConfig,
    direction: Direction,
    reach: Reach,
    ahead: Ahead,
    segments: Segments,
    /// Used entries of this burst; at most the ring's size, its capacity.
    done: Vec<u64>,
    /// The next entry to be taken.
    next_avail: u16,
    /// The driver's index as read last; at most the ring's size ahead.
    avail_idx: u16,
    used_idx: u16,
    notify: Notify,
    fault: Option<RingFault>,
    reported: bool,
}

impl Core {
    /// Finds the ring and asks its driver for no kicks yet.
    pub(super) fn start(
        map: Arc<GuestMap>,
        config: RingConfig,
        direction: Direction,
    ) -> Result<Self, RingFault> {
        let areas = Areas::new(map, &config)?;
        let mut notify = Notify::new(config.event_idx);
        notify.disarm(&areas, config.next_avail);
        Ok(Self {
            areas,
            direction,
            reach: Reach::default(),
            ahead: Ahead::new(),
            segments: Segments::new(),
            done: Vec::with_capacity(usize::from(config.size)),
            next_avail: config.next_avail,
            avail_idx: config.next_avail,
            used_idx: config.used_idx,
            notify,
            fault: None,
            reported: false,
            config,
        })
    }

    #[inline]
    pub(super) fn config(&self) -> &RingConfig {
        &self.config
    }

    /// The next entry to be taken.
    #[inline]
    pub(super) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// How many entries wait: at least `want` if there are so many. Reads the driver's
    /// index unless enough are known. 0 once stopped.
    #[inline]
    pub(super) fn available(&mut self, want: u16) -> u16 {
        if self.fault.is_some() {
            return 0;
        }
        let known = self.avail_idx.wrapping_sub(self.next_avail);
        if known >= want {
            return known;
        }
        let to = self.areas.avail_idx();
        let waiting = to.wrapping_sub(self.next_avail);
        if waiting > self.config.size {
            self.latch(RingFault::AvailJump {
                from: self.next_avail,
                to,
                size: self.config.size,
            });
            return 0;
        }
        self.avail_idx = to;
        waiting
    }

    /// The entry `ahead` places behind the next one; `None` if the driver has published
    /// no such entry.
    #[inline]
    pub(super) fn entry(&mut self, ahead: u16) -> Result<Option<Entry>, RingFault> {
        if ahead >= self.avail_idx.wrapping_sub(self.next_avail) {
            return Ok(None);
        }
        let index = self.next_avail.wrapping_add(ahead);
        self.ahead
            .get(
                &self.areas,
                &mut self.reach,
                &self.config,
                self.direction,
                index,
                self.avail_idx,
            )
            .map(Some)
    }

    /// Reads the next entries, if some are known to wait, so that their buffers are on their
    /// way when the next burst begins.
    #[inline]
    pub(super) fn look_ahead(&mut self) {
        if self.fault.is_none()
            && let Err(fault) = self.entry(0)
        {
            self.latch(fault);
        }
    }

    /// The only buffer of `entry`, if it is a chain of one as this ring's direction asks for.
    #[inline]
    pub(super) fn alone(&self, entry: &Entry) -> Option<Segment> {
        entry.alone(self.direction)
    }

    /// Fills `into` from one buffer; false if it does not lie in one region.
    #[inline]
    pub(super) fn read_whole(&mut self, from: Segment, into: &mut [u8]) -> bool {
        self.reach.read_whole(self.areas.map(), from.addr, into)
    }

    /// Writes `header` and `data` to one buffer; false if it does not lie in one region.
    #[inline]
    pub(super) fn write_whole(&mut self, to: Segment, header: Header<'_>, data: &[u8]) -> bool {
        self.reach
            .write_whole(self.areas.map(), to.addr, header, data)
    }

    /// Forgets the buffers gathered.
    #[inline]
    pub(super) fn clear_buffers(&mut self) {
        self.segments.clear();
    }

    /// Adds a chain's buffers, until there are `enough` bytes in all.
    #[inline]
    pub(super) fn gather(&mut self, entry: &Entry, enough: u64) -> Result<(), RingFault> {
        Walk {
            areas: &self.areas,
            reach: &mut self.reach,
            config: &self.config,
            direction: self.direction,
            segments: &mut self.segments,
        }
        .gather(entry, enough)
    }

    /// The buffers gathered.
    #[inline]
    pub(super) fn buffers(&self) -> &Segments {
        &self.segments
    }

    /// Copies the gathered buffers' first bytes out: first `header`, then `data`.
    #[inline]
    pub(super) fn read(&mut self, header: &mut [u8], data: &mut [u8]) -> Result<(), RingFault> {
        let (reach, map) = (&mut self.reach, self.areas.map());
        let mut cursor = Cursor::new(self.segments.list());
        cursor.read(reach, map, header)?;
        cursor.read(reach, map, data)
    }

    /// Fills the gathered buffers: first `header`, then `data`.
    #[inline]
    pub(super) fn write(&mut self, header: &[u8], data: &[u8]) -> Result<(), RingFault> {
        let (reach, map) = (&mut self.reach, self.areas.map());
        let mut cursor = Cursor::new(self.segments.list());
        cursor.write(reach, map, header)?;
        cursor.write(reach, map, data)
    }

    /// Takes the next entry for good: its chain goes back with `written` bytes.
    #[inline]
    pub(super) fn complete(&mut self, head: u16, written: u32) {
        debug_assert_ne!(self.next_avail, self.avail_idx);
        self.done.push(used_entry(head, written));
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Gives all completed chains back to the driver.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.done.is_empty() {
            return;
        }
        self.areas.write_used(self.used_idx, &self.done);
        self.used_idx = self.used_idx.wrapping_add(self.done.len() as u16);
        self.areas.publish_used(self.used_idx);
        self.done.clear();
    }

    /// Whether the driver must be called for what was published since the last answer.
    #[inline]
    pub(super) fn needs_call(&mut self) -> bool {
        self.notify.needs_call(&self.areas, self.used_idx)
    }

    /// Asks for a kick; true if something waits already. False once stopped, so that
    /// nobody spins.
    pub(super) fn arm(&mut self) -> bool {
        self.fault.is_none() && self.notify.arm(&self.areas, self.next_avail)
    }

    /// Asks for no kicks.
    #[inline]
    pub(super) fn disarm(&mut self) {
        if self.fault.is_none() {
            self.notify.disarm(&self.areas, self.next_avail);
        }
    }

    /// Stops the ring for good. The first fault stays.
    #[cold]
    pub(super) fn latch(&mut self, fault: RingFault) {
        self.fault.get_or_insert(fault);
    }

    pub(super) fn fault(&self) -> Option<&RingFault> {
        self.fault.as_ref()
    }

    pub(super) fn report_fault(&mut self) -> Option<&RingFault> {
        if std::mem::replace(&mut self.reported, self.fault.is_some()) {
            return None;
        }
        self.fault.as_ref()
    }

    /// Goes on in another map of the same guest. A ring that is not found there stops.
    pub(super) fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingFault> {
        match Areas::new(map, &self.config) {
            Ok(areas) => {
                self.areas = areas;
                self.reach = Reach::default();
                Ok(())
            }
            Err(fault) => {
                self.latch(fault.clone());
                Err(fault)
            }
        }
    }

    /// Ends the engine and answers the next entry to be taken. The driver is asked for
    /// kicks again, so that whoever serves the ring next hears of it.
    pub(super) fn stop(mut self) -> u16 {
        if self.fault.is_none() {
            self.notify.ask(&self.areas, self.next_avail);
        }
        self.next_avail
    }
}
