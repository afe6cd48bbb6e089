//! A shield by flags, and in words: of `shunt shield` and of `shunt agent shield` alike.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments are help texts here, and brackets mean what they mean there"
)]

use clap::{Args, ValueEnum};

use crate::api::Prefix;
use crate::api::session::{Protocol, Seconds, SessionKey};
use crate::api::shield::{Action, BitRate, Burst, PacketRate, Police, PortMatch, Shield, TcpFlags};

/// Why flags make no shield.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlagsError {
    /// A shield that polices, without a rate.
    #[error("a shield that polices needs --packet-rate or --bit-rate")]
    WhichRate,
    /// A rate for a shield that does not police.
    #[error("--packet-rate, --bit-rate and --burst are for --action police")]
    NoRate,
}

#[derive(Clone, Copy, ValueEnum)]
enum ActionFlag {
    /// They are gone
    Drop,
    /// What is more than --packet-rate or --bit-rate is gone
    Police,
    /// They go to the guest, past its sessions
    Punt,
}

impl From<ActionFlag> for Action {
    fn from(flag: ActionFlag) -> Self {
        match flag {
            ActionFlag::Drop => Self::Drop,
            ActionFlag::Police => Self::Police,
            ActionFlag::Punt => Self::Punt,
        }
    }
}

#[derive(Args)]
pub(super) struct ShieldFlags {
    /// Your name for the shield
    #[arg(long)]
    name: SessionKey,
    /// What becomes of the packets
    #[arg(long, value_enum)]
    action: ActionFlag,
    /// Higher ones rule before lower ones
    #[arg(long, value_name = "NUMBER", default_value = "0")]
    priority: u16,
    /// The vNIC whose uplink the packets come in by [default: any]
    #[arg(long, value_name = "VNIC")]
    ingress: Option<String>,
    /// Source addresses [default: any]
    #[arg(long, value_name = "PREFIX")]
    source: Option<Prefix>,
    /// Destination addresses [default: any]
    #[arg(long, value_name = "PREFIX")]
    destination: Option<Prefix>,
    /// tcp, udp, sctp, icmp, icmpv6, gre or a number [default: any]
    #[arg(long)]
    protocol: Option<Protocol>,
    /// Source port, or a range such as 1024-2047 [default: any]
    #[arg(long, value_name = "PORTS")]
    source_port: Option<PortMatch>,
    /// Destination port, or a range [default: any]
    #[arg(long, value_name = "PORTS")]
    destination_port: Option<PortMatch>,
    /// TCP flags that are set, such as 'syn'
    #[arg(long, value_name = "FLAGS")]
    tcp_flags: Option<TcpFlags>,
    /// TCP flags that are looked at [default: those of --tcp-flags]
    #[arg(long, value_name = "FLAGS")]
    tcp_flags_mask: Option<TcpFlags>,
    /// So many packets a second pass
    #[arg(long, value_name = "NUMBER", conflicts_with = "bit_rate")]
    packet_rate: Option<PacketRate>,
    /// So many bits a second pass
    #[arg(long, value_name = "NUMBER")]
    bit_rate: Option<BitRate>,
    /// So many packets, or octets, pass at once after a pause [default: those of 50 ms]
    #[arg(long, value_name = "NUMBER")]
    burst: Option<Burst>,
}

impl ShieldFlags {
    /// The shield that they describe.
    pub(super) fn shield(self, ttl: Option<Seconds>) -> Result<Shield, FlagsError> {
        let has_rate =
            self.packet_rate.is_some() || self.bit_rate.is_some() || self.burst.is_some();
        let police = match self.action {
            ActionFlag::Police => {
                let police = Police::new(self.packet_rate, self.bit_rate, self.burst);
                Some(police.map_err(|_| FlagsError::WhichRate)?)
            }
            ActionFlag::Drop | ActionFlag::Punt if has_rate => return Err(FlagsError::NoRate),
            ActionFlag::Drop | ActionFlag::Punt => None,
        };
        Ok(Shield {
            name: self.name,
            priority: self.priority,
            ttl,
            ingress_vnic: self.ingress,
            source_prefix: self.source,
            destination_prefix: self.destination,
            protocol: self.protocol,
            source_port: self.source_port.unwrap_or_default(),
            destination_port: self.destination_port.unwrap_or_default(),
            tcp_flags: self.tcp_flags,
            tcp_flags_mask: self.tcp_flags_mask,
            action: self.action.into(),
            police,
        })
    }
}

/// What becomes of the packets, in words.
pub(super) fn action(shield: &Shield) -> String {
    match shield.police {
        Some(police) => format!("police {police}"),
        None => shield.action.name().to_owned(),
    }
}

/// What a shield matches, in words.
pub(super) fn matches(shield: &Shield) -> String {
    let ports = |ports: &PortMatch| (!ports.is_any()).then(|| ports.to_string());
    let flags = shield.tcp_flags.unwrap_or_default();
    let flags = shield
        .tcp_flags_mask
        .map(|mask| format!("flags [{flags}] of [{mask}]"));
    let parts = [
        shield
            .ingress_vnic
            .as_ref()
            .map(|vnic| format!("in {vnic}")),
        shield.protocol.map(|protocol| protocol.to_string()),
        shield.source_prefix.map(|prefix| format!("from {prefix}")),
        ports(&shield.source_port).map(|ports| format!("from port {ports}")),
        shield
            .destination_prefix
            .map(|prefix| format!("to {prefix}")),
        ports(&shield.destination_port).map(|ports| format!("to port {ports}")),
        flags,
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match parts.is_empty() {
        true => "any IP".to_owned(),
        false => parts.join(" "),
    }
}
