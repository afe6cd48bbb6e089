//! What is known of links, addresses and neighbours.
//!
//! *Promises*: a message that only repeats what is known changes nothing; a neighbour's failure
//! and a MAC's change are told once.
//! *Refuses*: entries of bridges that appear or age: only those that move are changes, told as
//! changes of the neighbours with that MAC.
//! *Caller's duty*: every message, in order; [`Known::renew`] before changes are told.
//! *Standard*: rtnetlink(7).

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;

use crate::agent::kernel::links::{self, RTM_DELLINK, RTM_NEWLINK};
use crate::agent::kernel::marks::{Marks, RTM_DELQDISC, RTM_NEWQDISC};
use crate::agent::kernel::neighbour::{self, Neighbour, RTM_DELNEIGH, RTM_NEWNEIGH};
use crate::agent::kernel::socket::table;
use crate::agent::kernel::wire::{Message, Request, address, attribute, native32, split};
use crate::agent::network::{IfIndex, Links, NetworkChange};
use crate::packet::MacAddr;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_NEWNEXTHOPBUCKET: u16 = 116;
const RTM_DELNEXTHOPBUCKET: u16 = 117;

/// `RTM_F_CLONED`: a route's copy for one destination.
const CLONED: u32 = 0x200;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// An address with the length of its prefix, on an interface.
type Address = (IfIndex, IpAddr, u8);

/// A MAC behind a bridge: bridge, MAC, VLAN.
type Entry = (Option<IfIndex>, MacAddr, Option<u16>);

/// What is known.
#[derive(Default, Debug)]
pub(super) struct Known {
    /// As their own messages tell of them.
    links: Links,
    marks: Marks,
    addresses: HashSet<Address>,
    neighbours: HashMap<(IfIndex, IpAddr), MacAddr>,
    ports: HashMap<Entry, IfIndex>,
    /// What does not stand in interfaces' own messages must be asked.
    are_marks_stale: bool,
    /// Messages were lost: all must be asked.
    is_stale: bool,
}

impl Known {
    /// Asks for all.
    pub(super) async fn read() -> io::Result<Self> {
        let links = links::read_plain().await?;
        let mut known = Self {
            marks: Marks::read(&links).await?,
            links,
            ..Self::default()
        };
        let addresses = Request::new(RTM_GETADDR, &[0; 8]);
        let addresses = table(libc::NETLINK_ROUTE, &addresses, |message| {
            read_address(message.payload)
        });
        known.addresses.extend(addresses.await?);
        for neighbour in neighbour::read_all().await? {
            known.learn(neighbour);
        }
        Ok(known)
    }

    /// All is to be asked anew.
    pub(super) fn forget(&mut self) {
        self.is_stale = true;
    }

    /// Asks for what is known no longer. Has it changed?
    pub(super) async fn renew(&mut self) -> io::Result<Option<NetworkChange>> {
        if self.is_stale {
            *self = Self::read().await?;
        }
        if self.are_marks_stale {
            let marks = Marks::read(&self.links).await?;
            self.are_marks_stale = false;
            if marks != self.marks {
                self.marks = marks;
                return Ok(Some(NetworkChange::Links { gone: None }));
            }
        }
        Ok(None)
    }

    /// Looks at what of interfaces tells no event.
    pub(super) fn look(&mut self) {
        self.are_marks_stale |= self.marks.are_stale(&self.links);
    }

    /// Takes in a message. What has changed?
    pub(super) fn take(&mut self, message: Message<'_>) -> Vec<NetworkChange> {
        let payload = message.payload;
        let change = match message.kind {
            RTM_NEWLINK => self.new_link(payload),
            RTM_DELLINK => self.lost_link(payload),
            RTM_NEWQDISC | RTM_DELQDISC => {
                self.are_marks_stale = true;
                None
            }
            RTM_NEWADDR => read_address(payload)
                .filter(|address| self.addresses.insert(*address))
                .map(|(on, ..)| NetworkChange::Addresses(on)),
            RTM_DELADDR => read_address(payload)
                .filter(|address| self.addresses.remove(address))
                .map(|(on, ..)| NetworkChange::Addresses(on)),
            RTM_NEWNEIGH | RTM_DELNEIGH => {
                let is_there = message.kind == RTM_NEWNEIGH;
                return neighbour::read(payload)
                    .map(|neighbour| self.neighbour(neighbour, is_there))
                    .unwrap_or_default();
            }
            RTM_NEWROUTE | RTM_DELROUTE => (!is_cloned(payload)).then_some(NetworkChange::Routes),
            RTM_NEWRULE | RTM_DELRULE | RTM_NEWNETCONF | RTM_DELNETCONF | RTM_NEWNEXTHOP
            | RTM_DELNEXTHOP | RTM_NEWNEXTHOPBUCKET | RTM_DELNEXTHOPBUCKET => {
                Some(NetworkChange::Routes)
            }
            _ => None,
        };
        change.into_iter().collect()
    }

    fn new_link(&mut self, payload: &[u8]) -> Option<NetworkChange> {
        let Some((index, link)) = links::read(payload) else {
            // A bridge's word of its VLANs, or of its port's.
            self.are_marks_stale = true;
            return None;
        };
        let is_up = link.is_up;
        let before = self.links.0.get(&index);
        if before == Some(&link) {
            return None;
        }
        let was_up = before.is_some_and(|link| link.is_up);
        self.links.0.insert(index, link);
        Some(NetworkChange::Links {
            gone: (was_up && !is_up).then_some(index),
        })
    }

    fn lost_link(&mut self, payload: &[u8]) -> Option<NetworkChange> {
        let index = links::read_index(payload)?;
        self.links.0.remove(&index)?;
        Some(NetworkChange::Links { gone: Some(index) })
    }

    fn neighbour(&mut self, neighbour: Neighbour, is_there: bool) -> Vec<NetworkChange> {
        let Neighbour { on, address, .. } = neighbour;
        let Some(address) = address else {
            return self.entry(neighbour, is_there);
        };
        let key = (on, address);
        let change = NetworkChange::Neighbour { on, address };
        let before = match neighbour.mac.filter(|_| is_there) {
            Some(mac) => self
                .neighbours
                .insert(key, mac)
                .filter(|before| *before != mac),
            None if !is_there || neighbour.has_failed => self.neighbours.remove(&key),
            // It is being asked for.
            None => None,
        };
        before.map(|_| change).into_iter().collect()
    }

    /// An entry of a bridge: those that appear or age are no change, as the bridge floods.
    fn entry(&mut self, neighbour: Neighbour, is_there: bool) -> Vec<NetworkChange> {
        let Some(entry) = self.key(neighbour) else {
            return Vec::new();
        };
        let moved = match is_there {
            true => self.ports.insert(entry, neighbour.on),
            false => {
                self.ports.remove(&entry);
                None
            }
        };
        if moved.is_none_or(|from| from == neighbour.on) {
            return Vec::new();
        }
        let (_, mac, _) = entry;
        let behind = self.neighbours.iter().filter(|(_, of)| **of == mac);
        behind
            .map(|(&(on, address), _)| NetworkChange::Neighbour { on, address })
            .collect()
    }

    fn learn(&mut self, neighbour: Neighbour) {
        match (neighbour.address, neighbour.mac) {
            (Some(address), Some(mac)) => {
                self.neighbours.insert((neighbour.on, address), mac);
            }
            (None, Some(_)) => {
                if let Some(entry) = self.key(neighbour) {
                    self.ports.insert(entry, neighbour.on);
                }
            }
            _ => {}
        }
    }

    fn key(&self, neighbour: Neighbour) -> Option<Entry> {
        let bridge = self.links.0.get(&neighbour.on).and_then(|port| port.master);
        Some((bridge, neighbour.mac?, neighbour.vlan))
    }
}

/// Reads a message of an address.
fn read_address(payload: &[u8]) -> Option<Address> {
    // `struct ifaddrmsg`
    let (header, bytes) = split::<8>(payload)?;
    let on = IfIndex(native32(&header[4..])?);
    // Of a link between two, the local end.
    let value = attribute(bytes, IFA_LOCAL).or_else(|| attribute(bytes, IFA_ADDRESS))?;
    Some((on, address(value)?, header[1]))
}

fn is_cloned(payload: &[u8]) -> bool {
    // `struct rtmsg`
    let flags = payload.get(8..12).and_then(native32);
    flags.unwrap_or_default() & CLONED != 0
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
