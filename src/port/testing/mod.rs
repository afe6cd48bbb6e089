//! A port without a device: frames come from and go to queues in memory.
//!
//! *Promises*: behaves as [`super::Port`] asks, and its far end can make it full, absent or
//! choosy at any time. Tests and benches run workers on it.
//! *Refuses*: nothing. *Caller's duty*: not on a machine's real packet path: it allocates
//! for each frame. *Standard*: none.

#![expect(
    clippy::disallowed_types,
    reason = "both ends are test code; no packet path of a device"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a poisoned lock means that the test has failed already"
)]

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Armed, Device, DeviceStatus, Poller, Port, TxReport};
use crate::packet::{Burst, Offload, PeerOffloads, TxFrame};

/// A frame outside of any burst.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loose {
    /// Bytes.
    pub data: Vec<u8>,
    /// What its sender left undone.
    pub offload: Offload,
}

impl Loose {
    fn new(frame: &TxFrame<'_>) -> Self {
        Self {
            data: frame.data.to_vec(),
            offload: frame.offload,
        }
    }
}

#[derive(Debug)]
struct Line {
    toward_port: VecDeque<Loose>,
    from_port: Vec<Loose>,
    running: bool,
    peer: PeerOffloads,
    room: usize,
    /// Whether frames that find no room are kept, and which are.
    keeps: bool,
    kept: VecDeque<Loose>,
    frame_max: usize,
    armed: bool,
    transmits: usize,
}

impl Line {
    /// What was kept goes first.
    fn catch_up(&mut self) {
        let fitting = self.room.min(self.kept.len());
        self.room -= fitting;
        self.from_port.extend(self.kept.drain(..fitting));
    }
}

/// The far end of a [`TestPort`].
#[derive(Clone, Debug)]
pub struct FarEnd {
    line: Arc<Mutex<Line>>,
    kick: Arc<EventFd>,
}

/// The port.
#[derive(Debug)]
pub struct TestPort {
    line: Arc<Mutex<Line>>,
    kick: Arc<EventFd>,
}

/// A running port whose peer takes `peer`, and its far end.
pub fn port(peer: PeerOffloads) -> (TestPort, FarEnd) {
    let line = Arc::new(Mutex::new(Line {
        toward_port: VecDeque::new(),
        from_port: Vec::new(),
        running: true,
        peer,
        room: usize::MAX,
        keeps: false,
        kept: VecDeque::new(),
        frame_max: usize::MAX,
        armed: false,
        transmits: 0,
    }));
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    (
        TestPort {
            line: line.clone(),
            kick: kick.clone(),
        },
        FarEnd { line, kick },
    )
}

impl FarEnd {
    /// Sends a frame to the port; kicks if the port is armed.
    pub fn send(&self, data: &[u8], offload: Offload) {
        let mut line = self.line.lock().unwrap();
        line.toward_port.push_back(Loose {
            data: data.to_vec(),
            offload,
        });
        if line.armed {
            self.kick.write(1).unwrap();
        }
    }

    /// Everything transmitted since the last call.
    pub fn take(&self) -> Vec<Loose> {
        std::mem::take(&mut self.line.lock().unwrap().from_port)
    }

    /// The oldest `count` frames transmitted and not yet taken.
    pub fn take_some(&self, count: usize) -> Vec<Loose> {
        let mut line = self.line.lock().unwrap();
        let count = count.min(line.from_port.len());
        line.from_port.drain(..count).collect()
    }

    /// How often the port was asked to transmit.
    pub fn transmits(&self) -> usize {
        self.line.lock().unwrap().transmits
    }

    /// Starts or stops the port.
    pub fn set_running(&self, running: bool) {
        self.line.lock().unwrap().running = running;
    }

    /// How many frames the port still takes before it is full.
    pub fn set_room(&self, frames: usize) {
        self.line.lock().unwrap().room = frames;
    }

    /// Has the port keep frames of a sender that waits while it is full.
    pub fn set_keeps(&self) {
        self.line.lock().unwrap().keeps = true;
    }

    /// How many frames the port has yet to receive.
    pub fn unreceived(&self) -> usize {
        self.line.lock().unwrap().toward_port.len()
    }

    /// The longest frame the peer's buffers hold.
    pub fn set_frame_max(&self, bytes: usize) {
        self.line.lock().unwrap().frame_max = bytes;
    }
}

impl Port for TestPort {
    fn attach(&mut self, poller: Poller) -> std::io::Result<()> {
        poller.add(self.kick.as_raw_fd())
    }

    fn is_running(&self) -> bool {
        self.line.lock().unwrap().running
    }

    fn peer(&self) -> PeerOffloads {
        self.line.lock().unwrap().peer
    }

    fn receive(&mut self, burst: &mut Burst) -> usize {
        let mut line = self.line.lock().unwrap();
        let mut count = 0;
        while let Some(frame) = line.toward_port.front() {
            if !burst.push(&frame.data, frame.offload) {
                break;
            }
            line.toward_port.pop_front();
            count += 1;
        }
        count
    }

    fn transmit_or_keep(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        let mut report = self.transmit(frames);
        let mut line = self.line.lock().unwrap();
        if line.running && line.keeps {
            let rest = &frames[report.consumed..];
            line.kept.extend(rest.iter().map(Loose::new));
            report.consumed = frames.len();
        }
        report
    }

    fn is_held_up(&mut self) -> bool {
        let mut line = self.line.lock().unwrap();
        line.catch_up();
        !line.kept.is_empty()
    }

    fn transmit(&mut self, frames: &[TxFrame<'_>]) -> TxReport {
        let mut line = self.line.lock().unwrap();
        line.transmits += 1;
        let mut report = TxReport::default();
        line.catch_up();
        if !line.running || !line.kept.is_empty() {
            return report;
        }
        for (place, frame) in frames.iter().enumerate() {
            if frame.data.len() > line.frame_max {
                report.too_large |= 1 << place;
            } else if line.room == 0 {
                break;
            } else {
                line.room -= 1;
                line.from_port.push(Loose::new(frame));
            }
            report.consumed += 1;
        }
        report
    }

    fn arm(&mut self) -> Armed {
        let mut line = self.line.lock().unwrap();
        line.armed = true;
        if line.toward_port.is_empty() {
            Armed::Asleep
        } else {
            Armed::Ready
        }
    }

    fn disarm(&mut self) {
        self.line.lock().unwrap().armed = false;
    }
}

/// A device that is always connected.
#[derive(Debug, Default)]
pub struct TestDevice;

impl Device for TestDevice {
    fn status(&self) -> DeviceStatus {
        DeviceStatus {
            kind: "test".to_owned(),
            connected: true,
            ..DeviceStatus::default()
        }
    }
}
