//! The well-behaved part of a frontend of the test's own.

use crate::SOON;
use crate::rig::{missed, missed_back};
use crate::support::frontend::{Guest, Vmm};
use crate::support::{eventually, eventually_some};
use crate::traffic::{Datagram, Mac, Wire};

pub const RX: usize = 0;
pub const TX: usize = 1;

/// A guest with one queue pair, connected.
pub struct Driver {
    pub guest: Guest,
    /// Its connection; it ends with the driver.
    _vmm: Vmm,
    mac: Mac,
}

impl Driver {
    pub fn connect(socket: &std::path::Path, mac: Mac) -> Self {
        let guest = Guest::new(1);
        let vmm = Vmm::bring_up(socket, &guest);
        Self {
            guest,
            _vmm: vmm,
            mac,
        }
    }

    pub fn kick(&self, ring: usize) {
        self.guest.rings[ring].kick.write(1).unwrap();
    }

    /// A frame from `wire` into the guest and one out of it.
    pub fn exchange(&mut self, wire: &Wire, next: &mut u64, what: &str) {
        *next += 2;
        self.receive(wire, *next, what);
        let answer = missed_back(*next + 1, 100);
        self.guest.send(TX, &answer.bytes());
        self.kick(TX);
        wire.expect(&[answer], &format!("{what}: the guest's frame"));
    }

    /// Frame `number` from `wire` into the guest.
    pub fn receive(&mut self, wire: &Wire, number: u64, what: &str) {
        self.guest.post(RX);
        self.kick(RX);
        let sent = self.incoming(number);
        wire.send(&sent);
        let taken = eventually_some(SOON, &format!("{what}: the guest receives"), || {
            self.guest.take(RX)
        });
        assert_eq!(taken, sent.bytes(), "{what}");
    }

    /// A frame to this guest.
    pub fn incoming(&self, number: u64) -> Datagram {
        Datagram {
            destination: self.mac,
            ..missed(number, 100)
        }
    }

    /// Waits until vring `ring`'s error descriptor says that it stopped.
    pub fn expect_error(&self, ring: usize, what: &str) {
        let error = &self.guest.rings[ring].error;
        eventually(SOON, &format!("{what}: the error descriptor"), || {
            error.read().is_ok()
        });
    }
}
