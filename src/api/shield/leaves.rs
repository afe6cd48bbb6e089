//! What shields have that sessions have not: port ranges, TCP flags, rates.
//!
//! *Promises*: what is serialised is read back equal.
//! *Refuses*: values outside their type, and leaves that exclude each other.
//! *Caller's duty*: none.
//! *Standard*: RFC 8519 (`port-range-or-operator`), RFC 9293 (TCP flags), RFC 7950 section 9.7
//! (bits).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::api::session::{OutOfRange, ranged};
use crate::flow::shield::{Ports, Rate, Unit};

/// Ports of one side, as RFC 8519 says them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "PortsText", into = "PortsText")]
pub struct PortMatch(pub Ports);

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct PortsText {
    #[serde(skip_serializing_if = "Option::is_none")]
    lower_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upper_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<Operator>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Operator {
    Lte,
    Gte,
    Eq,
    Neq,
}

impl PortMatch {
    /// Whether every port is among them.
    pub fn is_any(&self) -> bool {
        self.0 == Ports::ANY
    }

    fn range(low: u16, high: u16) -> Result<Self, OutOfRange> {
        if low > high {
            return Err(OutOfRange(format!(
                "{low} to {high} is no range of ports: give the lower one first"
            )));
        }
        let others = false;
        Ok(Self(Ports { low, high, others }))
    }
}

impl TryFrom<PortsText> for PortMatch {
    type Error = OutOfRange;

    fn try_from(text: PortsText) -> Result<Self, OutOfRange> {
        let PortsText {
            lower_port,
            upper_port,
            operator,
            port,
        } = text;
        match (lower_port, upper_port, operator, port) {
            (Some(low), Some(high), None, None) => Self::range(low, high),
            (None, None, operator, Some(port)) => Ok(Self(match operator {
                None | Some(Operator::Eq) => Ports::of(port),
                Some(Operator::Neq) => Ports {
                    others: true,
                    ..Ports::of(port)
                },
                Some(Operator::Lte) => Ports {
                    high: port,
                    ..Ports::ANY
                },
                Some(Operator::Gte) => Ports {
                    low: port,
                    ..Ports::ANY
                },
            })),
            (None, None, None, None) => Ok(Self(Ports::ANY)),
            _ => Err(OutOfRange(
                "give either lower-port and upper-port, or port and its operator".to_owned(),
            )),
        }
    }
}

impl From<PortMatch> for PortsText {
    fn from(PortMatch(ports): PortMatch) -> Self {
        let Ports { low, high, others } = ports;
        if ports == Ports::ANY {
            return Self::default();
        }
        if low == high {
            return Self {
                operator: others.then_some(Operator::Neq),
                port: Some(low),
                ..Self::default()
            };
        }
        Self {
            lower_port: Some(low),
            upper_port: Some(high),
            ..Self::default()
        }
    }
}

/// `53`, or `1024-2047`.
impl FromStr for PortMatch {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        let number = |part: &str| {
            let wrong =
                |_| OutOfRange(format!("`{text}` is neither a port nor a range, 1024-2047"));
            part.parse().map_err(wrong)
        };
        match text.split_once('-') {
            None => Ok(Self(Ports::of(number(text)?))),
            Some((low, high)) => Self::range(number(low)?, number(high)?),
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ports { low, high, others } = self.0;
        let not = if others { "not " } else { "" };
        match low == high {
            true => write!(f, "{not}{low}"),
            false => write!(f, "{not}{low}-{high}"),
        }
    }
}

/// TCP flags, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TcpFlags(pub u8);

/// The names, from the octet's highest bit.
const FLAGS: [&str; 8] = ["cwr", "ece", "urg", "ack", "psh", "rst", "syn", "fin"];

impl FromStr for TcpFlags {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        let mut flags = 0;
        for name in text.split_ascii_whitespace() {
            let place = FLAGS.iter().position(|known| *known == name);
            let bit = place.map_or(0, |place| 0x80 >> place);
            if bit == 0 || flags & bit != 0 {
                return Err(OutOfRange(format!(
                    "`{text}` are no TCP flags: give each once of {}",
                    FLAGS.join(" ")
                )));
            }
            flags |= bit;
        }
        Ok(Self(flags))
    }
}

impl TryFrom<String> for TcpFlags {
    type Error = OutOfRange;

    fn try_from(text: String) -> Result<Self, OutOfRange> {
        text.parse()
    }
}

impl From<TcpFlags> for String {
    fn from(flags: TcpFlags) -> Self {
        flags.to_string()
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = (0..8).filter(|place| self.0 & 0x80 >> place != 0);
        let names: Vec<_> = set.map(|place: usize| FLAGS[place]).collect();
        f.write_str(&names.join(" "))
    }
}

ranged! {
    /// Packets a second.
    PacketRate(u32), (1..=100_000_000), "a packet rate: give 1 to 100000000 packets a second"
}
ranged! {
    /// A bucket's depth.
    Burst(u32), (1..=u32::MAX), "a burst: give 1 or more packets, or octets"
}

/// Bits a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BitRate(u64);

impl TryFrom<u64> for BitRate {
    type Error = OutOfRange;

    fn try_from(rate: u64) -> Result<Self, OutOfRange> {
        if (1..=1_000_000_000_000).contains(&rate) {
            Ok(Self(rate))
        } else {
            Err(OutOfRange(format!(
                "{rate} is not a bit rate: give 1 to 1000000000000 bits a second"
            )))
        }
    }
}

impl FromStr for BitRate {
    type Err = OutOfRange;

    fn from_str(text: &str) -> Result<Self, OutOfRange> {
        let wrong = |_| OutOfRange(format!("`{text}` is not a 64-bit number in a string"));
        Self::try_from(text.parse::<u64>().map_err(wrong)?)
    }
}

impl TryFrom<String> for BitRate {
    type Error = OutOfRange;

    fn try_from(text: String) -> Result<Self, OutOfRange> {
        text.parse()
    }
}

impl From<BitRate> for String {
    fn from(rate: BitRate) -> Self {
        rate.0.to_string()
    }
}

/// How much a policing shield lets through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "PoliceText", into = "PoliceText")]
pub struct Police(pub Rate);

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct PoliceText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packet_rate: Option<PacketRate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bit_rate: Option<BitRate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    burst: Option<Burst>,
}

/// A burst that is not given is what comes in this part of a second, but no less than these.
const BURSTS_A_SECOND: u64 = 20;
const BURST_PACKETS_MIN: u64 = 32;
const BURST_OCTETS_MIN: u64 = 64 << 10;

impl Police {
    /// A rate in either unit, and a burst in packets or octets.
    ///
    /// # Errors
    /// Both rates, or none.
    pub fn new(
        packet_rate: Option<PacketRate>,
        bit_rate: Option<BitRate>,
        burst: Option<Burst>,
    ) -> Result<Self, OutOfRange> {
        let burst = burst.map(|burst| u64::from(burst.get()));
        match (packet_rate, bit_rate) {
            (Some(rate), None) => {
                let rate = u64::from(rate.get());
                Ok(Self(Rate {
                    unit: Unit::Packets,
                    rate,
                    burst: burst.unwrap_or((rate / BURSTS_A_SECOND).max(BURST_PACKETS_MIN)),
                }))
            }
            (None, Some(BitRate(rate))) => {
                let octets = (rate / 8 / BURSTS_A_SECOND).max(BURST_OCTETS_MIN);
                // A burst is told in 32 bits.
                let octets = octets.min(u32::MAX.into());
                Ok(Self(Rate {
                    unit: Unit::Bits,
                    rate,
                    burst: burst.unwrap_or(octets) * 8,
                }))
            }
            _ => Err(OutOfRange("give either packet-rate or bit-rate".to_owned())),
        }
    }
}

impl TryFrom<PoliceText> for Police {
    type Error = OutOfRange;

    fn try_from(text: PoliceText) -> Result<Self, OutOfRange> {
        Self::new(text.packet_rate, text.bit_rate, text.burst)
    }
}

impl From<Police> for PoliceText {
    fn from(Police(rate): Police) -> Self {
        let burst = match rate.unit {
            Unit::Packets => rate.burst,
            Unit::Bits => rate.burst / 8,
        };
        let is_packets = rate.unit == Unit::Packets;
        Self {
            packet_rate: PacketRate::try_from(rate.rate).ok().filter(|_| is_packets),
            bit_rate: (!is_packets).then_some(BitRate(rate.rate)),
            burst: Burst::try_from(burst).ok(),
        }
    }
}

impl fmt::Display for Police {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.unit {
            Unit::Packets => write!(f, "{} packets/s", self.0.rate),
            Unit::Bits => write!(f, "{} bit/s", self.0.rate),
        }
    }
}
