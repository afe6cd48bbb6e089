//! What the pipeline decides for a packet, and every reason it can have.
//!
//! A reason is added here and nowhere else: the enum, its count, its stable name
//! (JSON, metrics, docs), its share of the punt meter and the sentence for people
//! follow from one list.

/// Which share of the way to the guest a punted packet uses (DESIGN section 4 step 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShareClass {
    /// ARP/ND, group traffic, routing protocols, ICMP errors: a reserved share.
    Control,
    /// Packets of sessions the table knows.
    Session,
    /// Everything else.
    Miss,
}

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($variant:ident, $text:literal, $($class:ident,)? $why:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum $name { $(#[doc = $why] $variant,)* }

        impl $name {
            /// Every reason, in the order of its counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name used in JSON, metrics and docs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $why,)* }
            }

            /// The index of its counter.
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        reasons!(@class $name $($variant $($class)?,)*);
    };
    (@class $name:ident $($variant:ident $class:ident,)+) => {
        impl $name {
            /// The share of the punt meter it draws from.
            pub const fn share(self) -> ShareClass {
                match self { $(Self::$variant => ShareClass::$class,)* }
            }
        }
    };
    (@class $name:ident $($variant:ident,)*) => {};
}

reasons! {
    /// Why a packet goes to the guest.
    PuntReason {
        Miss, "miss", Miss, "no session has this key";
        GroupMac, "group-mac", Control, "the destination MAC is a group address";
        OtherMac, "other-mac", Miss, "the destination MAC is neither the vNIC's nor one the session declared";
        NonIp, "non-ip", Control, "not IPv4 or IPv6: ARP, LLDP, LACP, STP, 802.3 and the like";
        DoubleTagged, "double-tagged", Control, "two VLAN tags, or an 802.1ad tag";
        Fragment, "fragment", Miss, "an IP fragment";
        Icmp, "icmp", Control, "ICMP or ICMPv6 other than echo: errors and neighbour discovery";
        LinkLocal, "link-local", Control, "a link-local address";
        GroupAddress, "group-address", Control, "an IP group, broadcast, unspecified or loopback address";
        Ipv4Options, "ipv4-options", Miss, "the IPv4 header has options";
        Ipv6Extension, "ipv6-extension", Miss, "the IPv6 header is followed by an extension header";
        GreKey, "gre-key", Miss, "GRE with a key, or of an unknown version";
        Malformed, "malformed", Miss, "a length or a version in a header contradicts the frame";
        TcpSyn, "tcp-syn", Session, "a TCP SYN without ACK on a session's key";
        TcpFin, "tcp-fin", Session, "a TCP FIN: the guest must see the end";
        TcpRst, "tcp-rst", Session, "a TCP RST: the guest must see the end";
        SctpControl, "sctp-control", Session, "an SCTP INIT, ABORT or SHUTDOWN chunk";
        TtlExpiring, "ttl-expiring", Session, "TTL or hop limit would reach 0: the guest answers with ICMP";
        TooBig, "too-big", Session, "larger than the egress L3 MTU: the guest answers with ICMP or fragments";
        Ufo, "ufo", Session, "UDP fragmentation offload is left to the guest";
        NotActive, "not-active", Session, "the flow waits for proof of forwarding, or drains";
        Closing, "closing", Session, "the session is closing";
        EgressGone, "egress-gone", Session, "the egress uplink cannot take packets now";
        DrainBound, "drain-bound", Session, "parked too long or too much: handed to the guest in order";
        Shield, "shield", Miss, "a shield hands it to the guest";
    }
}

reasons! {
    /// Why a packet goes nowhere.
    DropReason {
        GuestRingFull, "guest-ring-full", "the guest offers no receive buffers";
        GuestAbsent, "guest-absent", "the guest's device is not running";
        GuestBufferTooSmall, "guest-buffer-too-small", "the frame does not fit the guest's receive buffer";
        PuntMeter, "punt-meter", "more for the guest than its element's punt rate, or than its share while others need the worker";
        EgressFull, "egress-full", "the egress uplink takes no more now";
        UplinkAbsent, "uplink-absent", "the paired uplink is not running";
        EgressBufferTooSmall, "egress-buffer-too-small", "the frame does not fit what the egress uplink can take";
        NotOwn, "not-own", "on a shared uplink: a source MAC that is not the vNIC's, or a VLAN tag of the guest's making";
        Unsegmentable, "unsegmentable", "the frame must be segmented for its receiver but its headers do not allow it";
        ParkedLost, "parked-lost", "a parked frame that cannot be rewritten any more";
        ShieldDrop, "shield-drop", "a shield drops it";
        ShieldPolice, "shield-police", "more than a shield's rate";
    }
}

/// What the pipeline decided for a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Rewritten and sent to the flow's egress uplink.
    Forward,
    /// Handed to the guest.
    Punt(PuntReason),
    /// Gone, and counted.
    Drop(DropReason),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_a_name_of_its_own_and_its_index_is_its_place() {
        let mut names = HashSet::new();
        for (place, reason) in PuntReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
        }
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
        }
    }
}
