//! What happens to connections, as it happens.
//!
//! *Promises*: each event once, in the kernel's order; messages that were lost are told as
//! [`ConntrackEvent::Lost`], after which only what happens later is told.
//! *Refuses*: the ends of TCP connections that had been closing before (they are many, and
//! nothing that is offloaded is among them).
//! *Caller's duty*: after `Lost`, a dump.
//! *Standard*: `docs/agent.md`; include/uapi/linux/netfilter/nfnetlink_compat.h (groups).
//!
//! A kernel with `nf_conntrack_events=2` (the default since 5.19) tells nothing, not even the
//! end, of connections that began while nobody listened: see [`super::Settings::events`].

use std::collections::VecDeque;
use std::io;

use super::conntrack::{DELETE, NEW, read};
use super::filter;
use super::socket::{Socket, is_overrun};
use super::wire::messages;
use crate::agent::connection::ConntrackEvent;

/// Room for bursts: of the order of 10,000 events.
const BUFFER: u32 = 16 << 20;

/// Which events are told. Each costs the kernel, and us, some microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Groups {
    /// New connections.
    pub new: bool,
    /// Connections that changed: state, status, mark, helper.
    pub update: bool,
    /// Connections that ended.
    pub destroy: bool,
}

impl Groups {
    /// All of them.
    pub const ALL: Self = Self {
        new: true,
        update: true,
        destroy: true,
    };

    /// With their numbers (`NFNLGRP_CONNTRACK_…`).
    const fn numbered(self) -> [(u32, bool); 3] {
        [(1, self.new), (2, self.update), (3, self.destroy)]
    }
}

/// A socket that hears conntrack's events.
#[derive(Debug)]
pub struct ConntrackEvents {
    socket: Socket,
    groups: Groups,
    heard: VecDeque<ConntrackEvent>,
}

impl ConntrackEvents {
    /// Opens it in the thread's network namespace.
    ///
    /// # Errors
    ///
    /// The kernel's: without CAP_NET_ADMIN, or without netfilter's netlink.
    pub fn open(groups: Groups) -> io::Result<Self> {
        let socket = Socket::open(libc::NETLINK_NETFILTER)?;
        socket.set_receive_buffer(BUFFER)?;
        socket.attach_filter(&filter::ends_of_open_connections())?;
        let mut events = Self {
            socket,
            groups: Groups::default(),
            heard: VecDeque::new(),
        };
        events.set_groups(groups)?;
        Ok(events)
    }

    /// Hears these groups from now on. Events that are on the way still come.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn set_groups(&mut self, groups: Groups) -> io::Result<()> {
        let before = self.groups.numbered();
        for ((group, is_wanted), (_, was_wanted)) in groups.numbered().into_iter().zip(before) {
            match (was_wanted, is_wanted) {
                (false, true) => self.socket.join(group)?,
                (true, false) => self.socket.leave(group)?,
                _ => {}
            }
        }
        self.groups = groups;
        Ok(())
    }

    /// The next event. Nothing is lost if the caller stops waiting.
    ///
    /// # Errors
    ///
    /// The socket's, but for the loss of messages, which is an event.
    pub async fn next(&mut self) -> io::Result<ConntrackEvent> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Ok(event);
            }
            match self.socket.receive().await {
                Ok(datagram) => self.heard.extend(events(datagram)),
                Err(error) if is_overrun(&error) => {
                    // What waits is older than the dump that the caller takes now.
                    self.socket.drain()?;
                    return Ok(ConntrackEvent::Lost);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The events of a datagram.
fn events(datagram: &[u8]) -> impl Iterator<Item = ConntrackEvent> {
    messages(datagram).filter_map(|message| {
        let connection = read(message.payload);
        match message.kind {
            NEW => connection.map(ConntrackEvent::Changed),
            DELETE => connection.map(ConntrackEvent::Gone),
            _ => None,
        }
    })
}
