//! A session as clients write it: grouping `session` of `shunt-offload`.
//!
//! *Promises*: what it serialises it reads back equal; defaults are those of the model.
//! *Refuses*: leaves the model does not have and values outside their type, by
//! failing to deserialise with a text that names the value and what is allowed.
//! *Caller's duty*: what depends on more than one leaf, or on the vNICs there are, is
//! checked by [`to_request`](crate::api::convert::to_request), not here.
//! *Standard*: RFC 7951 (JSON), RFC 7950, IEEE 802.1Q, RFC 2474 (DSCP).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::flow::HandOverMode;
use crate::packet::MacAddr;
use crate::packet::key::protocol;

/// A value outside its type.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct OutOfRange(pub(super) String);

macro_rules! ranged {
    ($(#[$meta:meta])* $name:ident($inner:ty), $range:expr, $what:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name($inner);

        impl $name {
            /// The number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl TryFrom<u64> for $name {
            type Error = OutOfRange;

            fn try_from(value: u64) -> Result<Self, OutOfRange> {
                <$inner>::try_from(value)
                    .ok()
                    .filter(|number| $range.contains(number))
                    .map(Self)
                    .ok_or_else(|| OutOfRange(format!(concat!("{} is not ", $what), value)))
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> Self {
                u64::from(value.0)
            }
        }

        impl FromStr for $name {
            type Err = OutOfRange;

            fn from_str(text: &str) -> Result<Self, OutOfRange> {
                let value: u64 = text
                    .parse()
                    .map_err(|_| OutOfRange(format!(concat!("`{}` is not ", $what), text)))?;
                Self::try_from(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

pub(super) use ranged;

ranged! {
    /// A VLAN id, 1 to 4094, or 0 for untagged.
    Vlan(u16), (0..=4094), "a VLAN id: give 1 to 4094, or 0 for untagged"
}
ranged! {
    /// A differentiated services code point, 0 to 63.
    Dscp(u8), (0..=63), "a DSCP: give 0 to 63"
}
ranged! {
    /// A largest L3 packet in bytes, 68 (RFC 791) to 65535.
    Mtu(u16), (68..=65535), "an L3 MTU: give 68 to 65535 bytes"
}
ranged! {
    /// A timeout in seconds, from 1 to a week.
    Seconds(u32), (1..=604_800), "a timeout: give 1 to 604800 seconds"
}

impl Vlan {
    /// No tag.
    pub const UNTAGGED: Self = Self(0);

    /// Whether this means "no tag".
    pub fn is_untagged(&self) -> bool {
        self.0 == 0
    }
}

impl Seconds {
    /// The idle timeout of a session that names none: 60 s. Ageing out is harmless: the
    /// guest takes the next packet.
    pub const DEFAULT_IDLE: Self = Self(60);

    fn default_idle() -> Self {
        Self::DEFAULT_IDLE
    }

    fn is_default_idle(&self) -> bool {
        *self == Self::DEFAULT_IDLE
    }
}

/// The client's own name for a session, unique within its element: 1 to 64 visible
/// ASCII characters without quotes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionKey(String);

impl SessionKey {
    /// The longest key, in characters.
    pub const LENGTH_MAX: usize = crate::flow::request::KEY_MAX;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SessionKey {
    type Error = OutOfRange;

    fn try_from(text: String) -> Result<Self, OutOfRange> {
        let sound = (1..=Self::LENGTH_MAX).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'\'' && b != b'"');
        if sound {
            Ok(Self(text))
        } else {
            let start: String = text.chars().take(40).collect();
            Err(OutOfRange(format!(
                "{start:?} is not a session key: give 1 to {} visible ASCII characters \
                 without quotes or spaces",
                Self::LENGTH_MAX
            )))
        }
    }
}

impl FromStr for SessionKey {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        Self::try_from(text.to_owned())
    }
}

impl From<SessionKey> for String {
    fn from(key: SessionKey) -> Self {
        key.0
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An IP protocol: a name where the model has one, otherwise its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(try_from = "ProtocolText", into = "ProtocolText")]
pub struct Protocol(pub u8);

const PROTOCOL_NAMES: &[(&str, u8)] = &[
    ("icmp", protocol::ICMP),
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("gre", protocol::GRE),
    ("icmpv6", protocol::ICMPV6),
    ("sctp", protocol::SCTP),
];

/// A protocol on the wire: a union of an enumeration and a number.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a protocol name, or a number from 0 to 255")]
enum ProtocolText {
    // Names first: they are the rule, and what is tried in vain costs an error.
    Name(String),
    Number(u8),
}

impl Protocol {
    /// The name, if the model has one.
    pub fn name(self) -> Option<&'static str> {
        PROTOCOL_NAMES
            .iter()
            .find(|(_, number)| *number == self.0)
            .map(|(name, _)| *name)
    }

    fn named(text: &str) -> Result<Self, OutOfRange> {
        PROTOCOL_NAMES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| {
                OutOfRange(format!(
                    "`{text}` is not a protocol: give tcp, udp, sctp, icmp, icmpv6, gre or a \
                     number from 0 to 255"
                ))
            })
    }
}

impl TryFrom<ProtocolText> for Protocol {
    type Error = OutOfRange;

    fn try_from(text: ProtocolText) -> Result<Self, OutOfRange> {
        match text {
            ProtocolText::Number(number) => Ok(Self(number)),
            ProtocolText::Name(name) => Self::named(&name),
        }
    }
}

impl From<Protocol> for ProtocolText {
    fn from(value: Protocol) -> Self {
        match value.name() {
            Some(name) => Self::Name(name.to_owned()),
            None => Self::Number(value.0),
        }
    }
}

impl FromStr for Protocol {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        match text.parse() {
            Ok(number) => Ok(Self(number)),
            Err(_) => Self::named(text),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// How a session moves to the fast path (DESIGN, hand-over).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandOver {
    /// Drain the guest first, so that nothing overtakes.
    #[default]
    Ordered,
    /// At the proof of forwarding; packets inside the guest may be overtaken.
    Prompt,
}

impl From<HandOver> for HandOverMode {
    fn from(mode: HandOver) -> Self {
        match mode {
            HandOver::Ordered => Self::Ordered,
            HandOver::Prompt => Self::Prompt,
        }
    }
}

impl From<HandOverMode> for HandOver {
    fn from(mode: HandOverMode) -> Self {
        match mode {
            HandOverMode::Ordered => Self::Ordered,
            HandOverMode::Prompt => Self::Prompt,
        }
    }
}

/// Which directions of a session are offloaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// Both.
    #[default]
    Both,
    /// Only as the first packet goes.
    Original,
    /// Only the answers.
    Reply,
}

/// What the element changes in the original direction; a leaf left out is kept. The
/// reply direction undoes it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Translation {
    /// New source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<IpAddr>,
    /// New destination address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_address: Option<IpAddr>,
    /// New source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// New destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// New echo identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<u16>,
}

impl Translation {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The original direction: what it matches, what is changed, where it goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Original {
    /// The vNIC whose uplink the packets come from.
    pub ingress_vnic: String,
    /// Their VLAN; untagged if left out.
    #[serde(default = "untagged", skip_serializing_if = "Vlan::is_untagged")]
    pub ingress_vlan: Vlan,
    /// Their destination MAC if it is not the vNIC's own (VRRP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_mac: Option<MacAddr>,
    /// Source address.
    pub source_address: IpAddr,
    /// Destination address, same family.
    pub destination_address: IpAddr,
    /// Source port (TCP, UDP, SCTP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination port (TCP, UDP, SCTP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Echo identifier (ICMP, ICMPv6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<u16>,
    /// What the element changes.
    #[serde(default, skip_serializing_if = "Translation::is_empty")]
    pub translation: Translation,
    /// The vNIC whose uplink the packets leave by; may be the ingress vNIC.
    pub egress_vnic: String,
    /// The VLAN they leave with; untagged if left out.
    #[serde(default = "untagged", skip_serializing_if = "Vlan::is_untagged")]
    pub egress_vlan: Vlan,
    /// Next hop's MAC; learned from the proving frame if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_mac: Option<MacAddr>,
    /// MAC they leave with; learned from the proving frame if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_mac: Option<MacAddr>,
    /// Largest L3 packet, bytes; larger ones go to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l3_mtu: Option<Mtu>,
    /// Whether TTL or hop limit is decremented; true if left out.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub decrement_ttl: bool,
    /// DSCP they leave with; kept if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Dscp>,
}

/// The L2 side of the reply direction. Its match and translation follow from the
/// original direction; vNICs and VLANs left out are the original's, exchanged.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Reply {
    /// The vNIC whose uplink the answers come from; the original's egress if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_vnic: Option<String>,
    /// Their VLAN; the original's egress VLAN if left out, 0 for untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_vlan: Option<Vlan>,
    /// Their destination MAC if it is not the vNIC's own (VRRP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_mac: Option<MacAddr>,
    /// The vNIC whose uplink they leave by; the original's ingress if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_vnic: Option<String>,
    /// The VLAN they leave with; the original's ingress VLAN if left out, 0 for untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_vlan: Option<Vlan>,
    /// Next hop's MAC; learned from the proving frame if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_mac: Option<MacAddr>,
    /// MAC they leave with; learned from the proving frame if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_mac: Option<MacAddr>,
    /// Largest L3 packet, bytes; larger ones go to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l3_mtu: Option<Mtu>,
    /// Whether TTL or hop limit is decremented; true if left out.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub decrement_ttl: bool,
    /// DSCP they leave with; kept if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Dscp>,
}

impl Default for Reply {
    fn default() -> Self {
        Self {
            ingress_vnic: None,
            ingress_vlan: None,
            ingress_mac: None,
            egress_vnic: None,
            egress_vlan: None,
            destination_mac: None,
            source_mac: None,
            l3_mtu: None,
            decrement_ttl: true,
            dscp: None,
        }
    }
}

impl Reply {
    /// Whether everything is left out.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A connection to be offloaded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Session {
    /// The client's own name for it.
    pub key: SessionKey,
    /// IP protocol.
    pub protocol: Protocol,
    /// Ends when neither direction moved for so long, seconds; 60 if left out.
    #[serde(
        default = "Seconds::default_idle",
        skip_serializing_if = "Seconds::is_default_idle"
    )]
    pub idle_timeout: Seconds,
    /// Ends so long after it was offloaded, seconds; never if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_timeout: Option<Seconds>,
    /// How it moves to the fast path.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hand_over: HandOver,
    /// No proof of forwarding is asked; for operators only.
    #[serde(default, skip_serializing_if = "is_no")]
    pub vouched: bool,
    /// Which directions are offloaded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub directions: Directions,
    /// The original direction; its match also says what the reply direction is.
    pub original: Original,
    /// The reply direction, where it is not the mirror of the original.
    #[serde(default, skip_serializing_if = "Reply::is_default")]
    pub reply: Reply,
}

fn untagged() -> Vlan {
    Vlan::UNTAGGED
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn is_no(value: &bool) -> bool {
    !*value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
