//! Why a connection is left to the guest.
//!
//! *Promises*: one list: variant, stable word, sentence. Counters follow from it.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: `docs/agent.md` has the same words.

macro_rules! reasons {
    ($($variant:ident, $word:literal, $why:literal;)*) => {
        /// Why a connection is left to the guest.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum Reason { $(#[doc = $why] $variant,)* }

        impl Reason {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable word used in JSON and docs.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// One sentence for people.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $why,)* }
            }
        }
    };
}

reasons! {
    // What conntrack says of it.
    Unassured, "not-assured", "TCP that has not sent data both ways yet";
    Unconfirmed, "not-confirmed", "its first packet is not through the guest yet";
    TcpState, "tcp-state", "TCP that is opening or closing";
    Helper, "helper", "a conntrack helper reads its packets";
    Master, "expected", "a conntrack helper expected it";
    Sequence, "sequence", "its TCP sequence numbers are changed on the way";
    NatClash, "nat-clash", "it lost a race for its tuple";
    KernelOffload, "kernel-offload", "the guest's own flow table has it";
    Dying, "dying", "it is being removed";
    Template, "template", "it is a template";
    FixedTimeout, "fixed-timeout", "its timeout cannot be refreshed";
    Families, "nat64", "its two sides are of different IP versions";
    Group, "group-address", "one of its addresses is a multicast or broadcast address";
    LinkLocal, "link-local", "one of its addresses is link-local, loopback or unspecified";
    Icmp, "icmp", "ICMP other than echo";
    Protocol, "protocol", "the fast path does not take this protocol";
    // What the owner says.
    OptedOut, "opted-out", "its mark opts out";
    NotOptedIn, "not-opted-in", "only connections that a mark opts in are offloaded";
    Prefix, "prefix", "its addresses are switched off";
    Port, "port", "its port is switched off";
    Interface, "interface", "one of its interfaces is switched off";
    Ruleset, "ruleset", "the ruleset has to see every packet";
    // What the way says.
    Local, "local", "it begins or ends in the element itself";
    Unrouted, "no-route", "the guest has no route for it";
    ForeignInterface, "no-vnic", "one of its interfaces is none of the element's vNICs";
    Tunnel, "tunnel", "it goes through a tunnel, PPP, IPsec or another encapsulation";
    Bridge, "bridge", "a bridge with several ports, or with other VLANs than its port, decides where it goes";
    ServiceTag, "service-tag", "it has a tag of 802.1ad, or two tags";
    Shaped, "shaped", "one of its interfaces shapes, polices or filters";
    Obstacle, "obstacle", "something on one of its interfaces must see every packet";
    Down, "down", "one of its interfaces is down";
    Mtu, "mtu", "its way has an MTU that the fast path does not take";
    // What was tried.
    Unproved, "unproved", "the guest did not forward it as was asked, by none of the ways tried";
    Stays, "stays-with-guest", "its packets went on coming to the guest, by all of the ways tried";
    Refused, "refused", "the host refused it";
    Ended, "ended-by-host", "the host or an operator ended it";
}

/// How many connections have which reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reasons([u64; Reason::ALL.len()]);

impl Default for Reasons {
    fn default() -> Self {
        Self([0; Reason::ALL.len()])
    }
}

impl Reasons {
    /// Counts one.
    pub fn add(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// Those that are not zero, by word.
    pub fn by_word(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let words = Reason::ALL.iter().map(|reason| reason.word());
        words.zip(self.0).filter(|(_, count)| *count > 0)
    }

    /// How many have that reason.
    pub fn count(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_a_word_of_its_own_and_is_counted_by_it() {
        let mut counts = Reasons::default();
        for reason in Reason::ALL {
            counts.add(*reason);
            assert_eq!(counts.count(*reason), 1);
        }
        let words: HashSet<_> = counts.by_word().collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
