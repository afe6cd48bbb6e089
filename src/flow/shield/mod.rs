//! Shields: masked rules of an element that drop, police or punt what its uplinks bring, before
//! the flow table.
//!
//! *Promises*: of all shields that match a frame the first rules, and no other: the one of the
//! highest priority; of equal priority operators' before those that were asked for, then by name.
//! What is decided is the same whether it comes from a search or from a flow's memory of one.
//! *Refuses*: ports without a protocol that has them, TCP flags without TCP, prefixes of two
//! families ([`Shield::check`]).
//! *Caller's duty*: one [`ShieldBook`] an element, and each [`ShieldSet`] it makes to all lanes.
//! *Standard*: none; RFC 8519 has the words for ports.
//!
//! A frame without a key (a fragment, IPv4 options, an IPv6 extension header…) is matched by its
//! network layer, and so by shields only that name neither ports nor TCP flags.

use std::net::IpAddr;

use super::request::RequestError;
use crate::packet::VnicId;
use crate::packet::key::protocol;

mod answers;
mod book;
#[cfg(test)]
mod memory_tests;
mod set;
#[cfg(test)]
mod set_tests;
mod tally;

pub use book::{Asked, Hits, Installed, MASKS_MAX, Origin, ShieldBook, ShieldView};
pub use set::{Rank, Ruling, ShieldSet};
pub use tally::{Count, Tally};

/// A shield.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shield {
    /// Its name, unique among those of its origin.
    pub name: String,
    /// Higher ones rule before lower ones.
    pub priority: u16,
    /// The vNIC whose uplink brings the frames; any of the element's if absent.
    pub vnic: Option<String>,
    /// Which frames.
    pub matches: Matches,
    /// What becomes of them.
    pub action: Action,
}

/// Which frames a shield matches: those that meet all of what is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Matches {
    /// Source prefix: an address and how many of its bits count.
    pub source: Option<(IpAddr, u8)>,
    /// Destination prefix; same family.
    pub destination: Option<(IpAddr, u8)>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Source ports.
    pub source_ports: Ports,
    /// Destination ports.
    pub destination_ports: Ports,
    /// TCP flags.
    pub flags: Option<Flags>,
}

/// A range of ports, or all others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// The first.
    pub low: u16,
    /// The last; not before the first.
    pub high: u16,
    /// All but these.
    pub others: bool,
}

impl Default for Ports {
    fn default() -> Self {
        Self::ANY
    }
}

impl Ports {
    /// Any port, and none.
    pub const ANY: Self = Self {
        low: 0,
        high: u16::MAX,
        others: false,
    };

    /// One port.
    pub const fn of(port: u16) -> Self {
        Self {
            low: port,
            high: port,
            others: false,
        }
    }

    /// Whether a port is among them.
    #[inline]
    pub const fn has(self, port: u16) -> bool {
        (self.low <= port && port <= self.high) != self.others
    }

    /// The same as a mask, where one says it all.
    const fn mask(self) -> Option<u16> {
        let differing = self.low ^ self.high;
        // All bits below the highest that differs must be free: 0 in the first, 1 in the last.
        let is_whole = differing & differing.wrapping_add(1) == 0 && self.low & differing == 0;
        if is_whole && !self.others {
            Some(!differing)
        } else {
            None
        }
    }
}

/// Which TCP flags must be set and which not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flags {
    /// What those looked at must be.
    pub value: u8,
    /// Those looked at.
    pub mask: u8,
}

impl Flags {
    /// Those that must be set, and those looked at: the same, if these are not given.
    pub fn of(value: Option<u8>, mask: Option<u8>) -> Self {
        let value = value.unwrap_or(0);
        let mask = mask.unwrap_or(value);
        Self { value, mask }
    }

    /// Whether a segment with this octet of flags has them.
    #[inline]
    const fn are_of(self, octet: u8) -> bool {
        octet & self.mask == self.value
    }
}

/// What becomes of the frames that a shield matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// They are gone.
    Drop,
    /// They go to the guest, past the flow table.
    Punt,
    /// As many as the rate allows go on as if there were no shields; the rest is gone.
    Police(Rate),
}

/// How much a policing shield lets through, all lanes together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// What is counted.
    pub unit: Unit,
    /// So many a second.
    pub rate: u64,
    /// So many at once, after a pause.
    pub burst: u64,
}

/// What a rate counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Packets on the wire.
    Packets,
    /// Bits of their network layer.
    Bits,
}

/// A match over the words of a key: which bits, and what they must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pattern {
    mask: [u64; 6],
    value: [u64; 6],
}

impl Shield {
    /// Whether it holds together.
    ///
    /// # Errors
    /// The first leaf found at fault.
    pub fn check(&self) -> Result<(), RequestError> {
        self.matches.check()
    }

    /// Its mask, the same for the same kind of match: what a search takes grows with the number
    /// of different ones.
    fn mask(&self) -> [u64; 6] {
        self.matches
            .pattern(self.vnic.is_some().then_some(VnicId(0)))
            .mask
    }
}

impl Matches {
    fn check(&self) -> Result<(), RequestError> {
        let fault = |leaf, text: &str| {
            Err(RequestError {
                leaf,
                text: text.to_owned(),
            })
        };
        if let (Some((source, _)), Some((destination, _))) = (self.source, self.destination)
            && source.is_ipv4() != destination.is_ipv4()
        {
            return fault(
                "destination-prefix",
                "source and destination are of different families: give two of one, or one only",
            );
        }
        let has_ports = matches!(
            self.protocol,
            Some(protocol::TCP | protocol::UDP | protocol::SCTP)
        );
        for (leaf, ports) in [
            ("source-port", self.source_ports),
            ("destination-port", self.destination_ports),
        ] {
            if ports != Ports::ANY && !has_ports {
                let text = "only TCP, UDP and SCTP have ports: give protocol tcp, udp or sctp too";
                return fault(leaf, text);
            }
        }
        let Some(Flags { value, mask }) = self.flags else {
            return Ok(());
        };
        if self.protocol != Some(protocol::TCP) {
            return fault("tcp-flags", "only TCP has them: give protocol tcp too");
        }
        if value & !mask != 0 {
            let text = "a flag that is to be set must be looked at: add it to tcp-flags-mask";
            return fault("tcp-flags", text);
        }
        Ok(())
    }

    /// What can be said of it in bits.
    fn pattern(&self, vnic: Option<VnicId>) -> Pattern {
        let mut pattern = Pattern {
            mask: [0; 6],
            value: [0; 6],
        };
        let mut put = |word: usize, shift: u32, mask: u64, value: u64| {
            pattern.mask[word] |= mask << shift;
            pattern.value[word] |= (value & mask) << shift;
        };
        if let Some(VnicId(vnic)) = vnic {
            put(0, 48, u16::MAX.into(), vnic.into());
        }
        if let Some(protocol) = self.protocol {
            put(0, 8, u8::MAX.into(), protocol.into());
        }
        for (word, prefix) in [(1, self.source), (3, self.destination)] {
            match prefix {
                None => {}
                Some((IpAddr::V4(address), length)) => {
                    let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32)));
                    put(word, 32, mask.unwrap_or(0).into(), address.to_bits().into());
                    put(0, 0, u8::MAX.into(), 4);
                }
                Some((IpAddr::V6(address), length)) => {
                    let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128)));
                    let (mask, bits) = (mask.unwrap_or(0), address.to_bits());
                    put(word, 0, (mask >> 64) as u64, (bits >> 64) as u64);
                    put(word + 1, 0, mask as u64, bits as u64);
                    put(0, 0, u8::MAX.into(), 6);
                }
            }
        }
        for (shift, ports) in [(16, self.source_ports), (0, self.destination_ports)] {
            put(5, shift, ports.mask().unwrap_or(0).into(), ports.low.into());
        }
        pattern
    }

    /// Whether a frame's network layer is not enough to tell.
    fn needs_transport(&self) -> bool {
        self.source_ports != Ports::ANY
            || self.destination_ports != Ports::ANY
            || self.flags.is_some()
    }
}
