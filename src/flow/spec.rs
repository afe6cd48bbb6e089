//! What a flow is told to do, and the words for its life.

use crate::packet::rewrite::Rewrite;
use crate::packet::{FlowKey, MacAddr, VnicId};

/// A flow's place in its element's table. The generation tells a flow from a later
/// one in the same place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowId {
    /// Slot.
    pub index: u32,
    /// Which use of the slot.
    pub generation: u32,
}

/// A session's number, unique while the backend runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Which direction of its session a flow is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// As the first packet went.
    Original,
    /// The answers.
    Reply,
}

/// How a session moves to the fast path (DESIGN section 4, hand-over).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum HandOverMode {
    /// Drain the guest first, so that nothing overtakes.
    #[default]
    Ordered,
    /// At the proof of forwarding.
    Prompt,
}

/// Where a flow stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// Waits for proof of forwarding; packets punt.
    Pending = 0,
    /// Proved; packets park until the guest's last one is out.
    Draining = 1,
    /// Packets are forwarded here.
    Active = 2,
    /// Its session ends; packets punt.
    Closing = 3,
}

/// Everything about a flow that does not change while it is in the table. A change of
/// the request puts a new flow in its place.
#[derive(Clone, Debug)]
pub struct FlowSpec {
    /// What it matches.
    pub key: FlowKey,
    /// The key its packets have when the guest sends them rewritten: egress vNIC and
    /// VLAN, translated tuple. Proof, drain and `reopened` look flows up by it.
    pub egress_key: FlowKey,
    /// The destination MAC a frame must have to match: the ingress vNIC's, or one
    /// the session declared (VRRP).
    pub ingress_mac: MacAddr,
    /// The vNIC whose uplink its packets leave by.
    pub egress: VnicId,
    /// What becomes of its packets. Its MACs are in the flow, since they may be learned.
    pub rewrite: Rewrite,
    /// Destination MAC on egress; learned from the proving frame when `None`.
    pub dst_mac: Option<MacAddr>,
    /// Source MAC on egress; learned from the proving frame when `None`.
    pub src_mac: Option<MacAddr>,
    /// Largest L3 packet the egress takes, bytes.
    pub l3_mtu: u16,
    /// How it moves to the fast path.
    pub mode: HandOverMode,
    /// Whose it is.
    pub session: SessionId,
    /// Which half.
    pub direction: Direction,
}

macro_rules! close_codes {
    ($($variant:ident, $text:literal, $why:literal;)*) => {
        /// Why a session ended.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum CloseCode { $(#[doc = $why] $variant,)* }

        impl CloseCode {
            /// Every code, in the order of its counters.
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
    };
}

close_codes! {
    Fin, "fin", "a TCP FIN or an SCTP SHUTDOWN passed";
    Rst, "rst", "a TCP RST or an SCTP ABORT passed";
    IdleTimeout, "idle-timeout", "neither direction moved for the idle timeout";
    HardTimeout, "hard-timeout", "the session reached its hard timeout";
    Withdrawn, "withdrawn", "whoever asked for it took it back";
    LeaseExpired, "lease-expired", "the agent's presence was not seen for the lease time";
    EgressLost, "egress-lost", "the egress uplink went away";
    Reopened, "reopened", "a new SYN or INIT on the session's tuple";
    Superseded, "superseded", "a newer request for the same key";
}
