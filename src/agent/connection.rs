//! A connection as the guest's conntrack tells it.
//!
//! *Promises*: plain values; nothing here asks the kernel.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: Linux `nf_conntrack_common.h`, `nfnetlink_conntrack.h`.

use std::net::IpAddr;
use std::time::Duration;

/// What distinguishes connections of one protocol between the same addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Ports {
    /// TCP, UDP, SCTP, DCCP, UDP-Lite: source and destination port.
    Ports(u16, u16),
    /// ICMP and ICMPv6: type, code, identifier.
    Icmp {
        /// Type of the message.
        kind: u8,
        /// Code of the message.
        code: u8,
        /// Identifier.
        id: u16,
    },
    /// Other protocols.
    None,
}

/// One direction's addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Ports or identifier.
    pub ports: Ports,
}

/// `enum ip_conntrack_status`, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Status(pub u32);

impl Status {
    /// Expected by another connection (`IPS_EXPECTED`): it has a master.
    pub const EXPECTED: Self = Self(1 << 0);
    /// Packets went both ways (`IPS_SEEN_REPLY`).
    pub const SEEN_REPLY: Self = Self(1 << 1);
    /// Never evicted early (`IPS_ASSURED`).
    pub const ASSURED: Self = Self(1 << 2);
    /// In the table (`IPS_CONFIRMED`).
    pub const CONFIRMED: Self = Self(1 << 3);
    /// Source is translated (`IPS_SRC_NAT`).
    pub const SRC_NAT: Self = Self(1 << 4);
    /// Destination is translated (`IPS_DST_NAT`).
    pub const DST_NAT: Self = Self(1 << 5);
    /// TCP sequence numbers are changed (`IPS_SEQ_ADJUST`).
    pub const SEQ_ADJUST: Self = Self(1 << 6);
    /// Being removed (`IPS_DYING`).
    pub const DYING: Self = Self(1 << 9);
    /// Its timeout stands still (`IPS_FIXED_TIMEOUT`).
    pub const FIXED_TIMEOUT: Self = Self(1 << 10);
    /// A template (`IPS_TEMPLATE`).
    pub const TEMPLATE: Self = Self(1 << 11);
    /// Lost a race for its tuple (`IPS_NAT_CLASH`).
    pub const NAT_CLASH: Self = Self(1 << 12);
    /// Has a helper (`IPS_HELPER`).
    pub const HELPER: Self = Self(1 << 13);
    /// In the kernel's own flow table (`IPS_OFFLOAD`).
    pub const OFFLOAD: Self = Self(1 << 14);
    /// In a device's flow table (`IPS_HW_OFFLOAD`).
    pub const HW_OFFLOAD: Self = Self(1 << 15);

    /// Whether one of `bits` is set.
    pub const fn has(self, bits: Self) -> bool {
        self.0 & bits.0 != 0
    }
}

/// Packets and bytes of one direction (`nf_conntrack_acct`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the network layer on.
    pub octets: u64,
}

/// State of a TCP connection, `enum tcp_conntrack`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TcpState(pub u8);

impl TcpState {
    /// `TCP_CONNTRACK_ESTABLISHED`: the only state that is worth an offload.
    pub const ESTABLISHED: Self = Self(3);
}

/// An entry of conntrack's table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// The kernel's number for it (CTA_ID): differs between connections of the same tuple.
    pub id: u32,
    /// As the first packet came.
    pub original: Tuple,
    /// As answers come.
    pub reply: Tuple,
    /// Conntrack zone (0: the default one), if it is the same in both directions.
    pub zone: u16,
    /// Status bits.
    pub status: Status,
    /// Connmark.
    pub mark: u32,
    /// How long it lives without packets. `None` in messages that do not say so.
    pub timeout: Option<Duration>,
    /// State, of TCP, in messages that say so.
    pub tcp: Option<TcpState>,
    /// Both directions' counters, original first, where the kernel accounts.
    pub counters: Option<[Counters; 2]>,
    /// Name of its helper.
    pub helper: Option<String>,
    /// It is another one's child (CTA_TUPLE_MASTER).
    pub has_master: bool,
    /// Its TCP sequence numbers are changed (CTA_SEQ_ADJ_*, CTA_SYNPROXY).
    pub shifts_sequence: bool,
}

/// What happened to a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConntrackEvent {
    /// It is new, or changed.
    Changed(Connection),
    /// It is gone.
    Gone(Connection),
    /// Events were lost (ENOBUFS): only a dump tells what there is.
    Lost,
}
