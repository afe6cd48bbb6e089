//! A driver that can write anything: the other side of the rings, for tests.
//!
//! *Promises*: well-formed verbs ([`Driver::send`], [`Driver::offer`]) next to raw pokes
//! at every word of a ring; all of the memory can be compared with a former state.
//! *Refuses*: nothing.
//! *Caller's duty*: no more descriptors in flight than the ring has.
//! *Standard*: virtio 1.2 section 2.7, the driver's requirements.

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use super::raw::hook;
use super::{GuestMap, RingConfig};

/// Where the rings lie.
pub const RINGS: u64 = 0x1_0000;
const RINGS_LEN: usize = 0x2_0000;
/// Where buffers and indirect tables lie: two adjacent regions.
pub const DATA: u64 = RINGS + RINGS_LEN as u64;
const DATA_LEN: usize = 0x4_0000;
/// The border of the two.
pub const BORDER: u64 = DATA + DATA_LEN as u64;
/// The first address behind them: nothing is mapped there.
pub const GAP: u64 = BORDER + DATA_LEN as u64;
/// A region behind the gap, with the neighbour's ring and buffers.
pub const FAR: u64 = GAP + 0x1_0000;
const FAR_LEN: usize = 0x4_0000;

/// A guest's memory.
#[derive(Clone)]
pub struct Guest {
    pub memory: Arc<GuestMemoryMmap>,
    pub map: Arc<GuestMap>,
}

impl Guest {
    pub fn new() -> Self {
        Self::with_log(None)
    }

    pub fn with_log(dirty: Option<Arc<dyn super::DirtyLog>>) -> Self {
        let ranges = [
            (GuestAddress(RINGS), RINGS_LEN),
            (GuestAddress(DATA), DATA_LEN),
            (GuestAddress(BORDER), DATA_LEN),
            (GuestAddress(FAR), FAR_LEN),
        ];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let map = Arc::new(GuestMap::from_memory(memory.clone(), dirty).unwrap());
        Self { memory, map }
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }

    pub fn word(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr, 2).try_into().unwrap())
    }

    pub fn set_word(&self, addr: u64, value: u16) {
        self.write(addr, &value.to_le_bytes());
    }

    /// All bytes, with the address of each region.
    pub fn snapshot(&self) -> Vec<(u64, Vec<u8>)> {
        vec![
            (RINGS, self.read(RINGS, (GAP - RINGS) as usize)),
            (FAR, self.read(FAR, FAR_LEN)),
        ]
    }

    /// Panics if a byte outside `allowed` differs from `before`.
    pub fn assert_unchanged(&self, before: &[(u64, Vec<u8>)], allowed: &[Range<u64>]) {
        for ((base, old), (_, new)) in before.iter().zip(self.snapshot()) {
            for (addr, (old, new)) in (*base..).zip(old.iter().zip(&new)) {
                if old != new && !allowed.iter().any(|range| range.contains(&addr)) {
                    panic!("byte at {addr:#x} changed from {old:#x} to {new:#x}");
                }
            }
        }
    }
}

/// What was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    pub event_idx: bool,
    pub indirect: bool,
    pub in_order: bool,
    pub mrg_rxbuf: bool,
    pub header_len: u8,
}

impl Features {
    /// Every set that can be negotiated.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..32u8).filter_map(|bits| {
            let features = Self {
                event_idx: bits & 1 != 0,
                indirect: bits & 2 != 0,
                in_order: bits & 4 != 0,
                mrg_rxbuf: bits & 8 != 0,
                header_len: if bits & 16 != 0 { 10 } else { 12 },
            };
            (!features.mrg_rxbuf || features.header_len == 12).then_some(features)
        })
    }
}

/// The driver of one ring.
pub struct Driver {
    pub guest: Guest,
    pub config: RingConfig,
    /// Where this driver publishes next.
    pub avail_idx: u16,
    used_seen: u16,
    next_desc: u16,
    buffers: Range<u64>,
    next_buffer: u64,
}

/// How a chain is built.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Lengths of the buffers but the last, which takes the rest.
    pub cuts: Vec<usize>,
    /// How many buffers stand before the indirect table; `None` for no table.
    pub table_after: Option<usize>,
}

impl Driver {
    /// A ring of `size` at `base`, buffers behind `buffers.start`, both indexes at `start`.
    pub fn new(
        guest: &Guest,
        base: u64,
        buffers: Range<u64>,
        size: u16,
        start: u16,
        f: Features,
    ) -> Self {
        let desc = base;
        let avail = desc + u64::from(size) * 16;
        let used = (avail + 6 + u64::from(size) * 2).next_multiple_of(4);
        let config = RingConfig {
            size,
            desc,
            avail,
            used,
            event_idx: f.event_idx,
            indirect: f.indirect,
            in_order: f.in_order,
            mrg_rxbuf: f.mrg_rxbuf,
            header_len: f.header_len,
            next_avail: start,
            used_idx: start,
        };
        guest.set_word(avail + 2, start);
        guest.set_word(used + 2, start);
        Self {
            guest: guest.clone(),
            config,
            avail_idx: start,
            used_seen: start,
            next_desc: start % size,
            next_buffer: buffers.start,
            buffers,
        }
    }

    pub fn mask(&self) -> u16 {
        self.config.size - 1
    }

    /// Bytes of the used ring, which the device may write.
    pub fn used_range(&self) -> Range<u64> {
        self.config.used..self.config.used + self.config.used_bytes() as u64
    }

    /// A fresh buffer.
    pub fn alloc(&mut self, len: usize) -> u64 {
        if self.next_buffer + len as u64 > self.buffers.end {
            self.next_buffer = self.buffers.start;
        }
        let addr = self.next_buffer;
        self.next_buffer += len as u64;
        assert!(
            self.next_buffer <= self.buffers.end,
            "buffer of {len} bytes"
        );
        addr
    }

    /// A fresh descriptor's index.
    pub fn alloc_desc(&mut self) -> u16 {
        let index = self.next_desc;
        self.next_desc = (index + 1) & self.mask();
        index
    }

    /// Writes 16 bytes of descriptor anywhere.
    pub fn poke_desc_at(&self, place: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.guest.write(place, &bytes);
    }

    /// Writes descriptor `index`.
    pub fn poke_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let place = self.config.desc + u64::from(index) * 16;
        self.poke_desc_at(place, addr, len, flags, next);
    }

    /// Makes `head` available.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx & self.mask());
        self.guest.set_word(self.config.avail + 4 + slot * 2, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.poke_avail_idx(self.avail_idx);
    }

    /// Writes the available index only.
    pub fn poke_avail_idx(&self, index: u16) {
        self.guest.set_word(self.config.avail + 2, index);
    }

    /// One buffer, one descriptor, whatever its fields are; made available.
    pub fn publish_raw(&mut self, addr: u64, len: u32, flags: u16, next: u16) -> u16 {
        let head = self.alloc_desc();
        self.poke_desc(head, addr, len, flags, next);
        self.publish(head);
        head
    }

    /// Builds a chain of the given buffers; answers its head, not yet available.
    pub fn build(&mut self, buffers: &[(u64, u32)], table_after: Option<usize>, write: u16) -> u16 {
        let direct = table_after.unwrap_or(buffers.len()).min(buffers.len());
        let (outside, inside) = buffers.split_at(direct);
        let table = table_after.filter(|_| !inside.is_empty());
        let slots = outside.len() + usize::from(table.is_some());
        let indexes: Vec<u16> = (0..slots).map(|_| self.alloc_desc()).collect();
        for (place, &(addr, len)) in outside.iter().enumerate() {
            let next = indexes.get(place + 1).copied();
            let flags = write | if next.is_some() { DESC_NEXT } else { 0 };
            self.poke_desc(indexes[place], addr, len, flags, next.unwrap_or(0xbad));
        }
        if table.is_some() {
            // One byte off alignment: tables have none.
            let place = self.alloc(inside.len() * 16 + 1) + 1;
            for (index, &(addr, len)) in inside.iter().enumerate() {
                let last = index + 1 == inside.len();
                let flags = write | if last { 0 } else { DESC_NEXT };
                self.poke_desc_at(
                    place + index as u64 * 16,
                    addr,
                    len,
                    flags,
                    index as u16 + 1,
                );
            }
            let len = (inside.len() * 16) as u32;
            self.poke_desc(indexes[slots - 1], place, len, DESC_INDIRECT, 0xbad);
        }
        indexes[0]
    }

    /// A frame behind a header, cut as `layout` says, made available. Answers its head.
    pub fn send_with(&mut self, header: &[u8], frame: &[u8], layout: &Layout) -> u16 {
        let bytes = [header, frame].concat();
        let mut rest = &bytes[..];
        let mut buffers = Vec::new();
        let last = usize::MAX;
        for &cut in layout.cuts.iter().chain([&last]) {
            let (part, after) = rest.split_at(cut.min(rest.len()));
            if !part.is_empty() {
                let addr = self.alloc(part.len());
                self.guest.write(addr, part);
                buffers.push((addr, part.len() as u32));
            }
            rest = after;
        }
        let table_after = layout.table_after.filter(|_| self.config.indirect);
        let head = self.build(&buffers, table_after, 0);
        self.publish(head);
        head
    }

    /// A plain frame behind an empty header.
    pub fn send(&mut self, frame: &[u8]) -> u16 {
        let header = [0; 12];
        let len = usize::from(self.config.header_len);
        self.send_with(&header[..len], frame, &Layout::default())
    }

    /// Writable buffers of the given lengths as one chain, made available. Answers its
    /// head and where the buffers are.
    pub fn offer(&mut self, lens: &[usize], table_after: Option<usize>) -> (u16, Vec<(u64, u32)>) {
        let buffers: Vec<(u64, u32)> = lens
            .iter()
            .map(|&len| (self.alloc(len), len as u32))
            .collect();
        let table_after = table_after.filter(|_| self.config.indirect);
        let head = self.build(&buffers, table_after, DESC_WRITE);
        self.publish(head);
        (head, buffers)
    }

    /// The used entries since the last call: (id, length).
    pub fn used(&mut self) -> Vec<(u32, u32)> {
        let until = self.guest.word(self.config.used + 2);
        let mut entries = Vec::new();
        while self.used_seen != until {
            let slot = u64::from(self.used_seen & self.mask());
            let bytes = self.guest.read(self.config.used + 4 + slot * 8, 8);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            entries.push((word(0), word(4)));
            self.used_seen = self.used_seen.wrapping_add(1);
            assert!(entries.len() <= usize::from(self.config.size));
        }
        entries
    }

    /// Asks for a call at used index `index`.
    pub fn set_used_event(&self, index: u16) {
        let place = self.config.avail + 4 + u64::from(self.config.size) * 2;
        self.guest.set_word(place, index);
    }

    /// Sets the flags of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.guest.set_word(self.config.avail, flags);
    }

    /// The flags of the used ring.
    pub fn used_flags(&self) -> u16 {
        self.guest.word(self.config.used)
    }

    /// The index at which the device wants a kick.
    pub fn avail_event(&self) -> u16 {
        let place = self.config.used + 4 + u64::from(self.config.size) * 8;
        self.guest.word(place)
    }

    /// Whether a driver that has just published from `old` on would kick.
    pub fn would_kick(&self, old: u16) -> bool {
        if self.config.event_idx {
            super::notify::passed(self.avail_event(), self.avail_idx, old)
        } else {
            self.used_flags() & 1 == 0
        }
    }
}

/// Runs `act` while `change` is called before each of our reads of guest memory, with
/// the number of the read. Answers how many there were.
pub fn with_changes<R>(
    mut change: impl FnMut(usize) + 'static,
    act: impl FnOnce() -> R,
) -> (R, usize) {
    let count = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = count.clone();
    hook::set(Some(Box::new(move || {
        change(counter.get());
        counter.set(counter.get() + 1);
    })));
    let result = act();
    hook::set(None);
    (result, count.get())
}
