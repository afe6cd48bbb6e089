//! `[[element.shield]]`: an operator's shield, as it is written.
//!
//! *Promises*: a [`ShieldConfig`] holds together by itself.
//! *Refuses*: keys that contradict each other, with the key in the text.
//! *Caller's duty*: whether its vNIC is there, and its name its own, is for `check.rs`.
//! *Standard*: none.

use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::values;
use crate::api::config::Prefix;
use crate::api::session::Protocol;
use crate::api::shield::{Action, BitRate, Burst, PacketRate, Police, PortMatch, TcpFlags};
use crate::flow::shield::{self, Flags, Matches, Shield};

/// A shield of an operator.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "RawShield")]
pub struct ShieldConfig(pub Shield);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawShield {
    #[serde(deserialize_with = "values::name")]
    name: String,
    #[serde(default)]
    priority: u16,
    #[serde(default)]
    ingress_vnic: Option<String>,
    #[serde(default)]
    source_prefix: Option<Prefix>,
    #[serde(default)]
    destination_prefix: Option<Prefix>,
    #[serde(default)]
    protocol: Option<Protocol>,
    #[serde(default, deserialize_with = "ports")]
    source_port: PortMatch,
    #[serde(default, deserialize_with = "ports")]
    destination_port: PortMatch,
    #[serde(default)]
    tcp_flags: Option<TcpFlags>,
    #[serde(default)]
    tcp_flags_mask: Option<TcpFlags>,
    action: Action,
    #[serde(default)]
    packet_rate: Option<PacketRate>,
    #[serde(default, deserialize_with = "bit_rate")]
    bit_rate: Option<BitRate>,
    #[serde(default)]
    burst: Option<Burst>,
}

impl TryFrom<RawShield> for ShieldConfig {
    type Error = String;

    /// What contradicts itself is told with the shield's name: its line is that of the first.
    fn try_from(raw: RawShield) -> Result<Self, String> {
        let name = raw.name.clone();
        Self::of(raw).map_err(|text| format!("shield `{name}`: {text}"))
    }
}

impl ShieldConfig {
    fn of(raw: RawShield) -> Result<Self, String> {
        let has_rate = raw.packet_rate.is_some() || raw.bit_rate.is_some() || raw.burst.is_some();
        let action = match raw.action {
            Action::Police => {
                let police = Police::new(raw.packet_rate, raw.bit_rate, raw.burst);
                let Police(rate) = police.map_err(|error| error.to_string())?;
                shield::Action::Police(rate)
            }
            _ if has_rate => {
                return Err(
                    "`packet-rate`, `bit-rate` and `burst` are for the action \"police\": leave \
                     them out, or police"
                        .to_owned(),
                );
            }
            Action::Drop => shield::Action::Drop,
            Action::Punt => shield::Action::Punt,
        };
        let flags = match (raw.tcp_flags, raw.tcp_flags_mask) {
            (None, None) => None,
            (value, mask) => Some(Flags::of(value.map(|set| set.0), mask.map(|mask| mask.0))),
        };
        let shield = Shield {
            name: raw.name,
            priority: raw.priority,
            vnic: raw.ingress_vnic,
            matches: Matches {
                source: raw.source_prefix.map(Prefix::parts),
                destination: raw.destination_prefix.map(Prefix::parts),
                protocol: raw.protocol.map(|protocol| protocol.0),
                source_ports: raw.source_port.0,
                destination_ports: raw.destination_port.0,
                flags,
            },
            action,
        };
        match shield.check() {
            Ok(()) => Ok(Self(shield)),
            Err(error) => Err(format!("`{}`: {}", error.leaf, error.text)),
        }
    }
}

/// A port, or a range in a string.
fn ports<'de, D: Deserializer<'de>>(from: D) -> Result<PortMatch, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "a port such as 53, or a range such as \"1024-2047\""
    )]
    enum Written {
        Port(u16),
        Range(String),
    }
    match Written::deserialize(from)? {
        Written::Port(port) => Ok(PortMatch(shield::Ports::of(port))),
        Written::Range(text) => text.parse().map_err(de::Error::custom),
    }
}

fn bit_rate<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BitRate>, D::Error> {
    let rate = u64::deserialize(from)?;
    BitRate::try_from(rate).map(Some).map_err(de::Error::custom)
}
