//! What the command line has for hosts, as it is parsed and explained.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments are help texts here, and brackets mean what they mean there"
)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use super::shield::ShieldCommand;
use crate::api::session::{Directions, Dscp, HandOver, Mtu, Protocol, Seconds, SessionKey, Vlan};
use crate::packet::MacAddr;

#[derive(Subcommand)]
pub(in crate::cli) enum HostCommand {
    /// Run the backend: serve vhost-user devices and the control socket
    #[command(after_long_help = "Example:\n  shunt backend --config /etc/shunt/backend.toml")]
    Backend(BackendArgs),
    /// Run the relay: carry guests' requests from their serial ports to the controller
    #[command(after_long_help = "Example:\n  shunt relay --config /etc/shunt/relay.toml")]
    Relay(RelayArgs),
    /// Run the controller: judge what elements ask for, and serve operators
    #[command(after_long_help = "Example:\n  shunt controller --config /etc/shunt/controller.toml")]
    Controller(ControllerArgs),
    /// Run backend, relay and controller of this host in one process
    #[command(after_long_help = "Example:\n  shunt up --config /etc/shunt/shunt.toml")]
    Up(UpArgs),
    /// Add, withdraw or show sessions
    Session {
        /// What to do with sessions
        #[command(subcommand)]
        command: Box<SessionCommand>,
    },
    /// Set, end or list shields: rules that drop, police or punt before sessions do
    Shield {
        /// What to do with shields
        #[command(subcommand)]
        command: Box<ShieldCommand>,
    },
    /// Have the backend read its configuration file again: what changed in it comes or goes,
    /// everything else goes on
    #[command(after_long_help = "Example:\n  shunt reload")]
    Reload(Connect),
    /// Show sessions, ports or statistics
    Show {
        /// What to show
        #[command(subcommand)]
        command: ShowCommand,
    },
}

#[derive(Args)]
pub(in crate::cli) struct BackendArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only check the configuration, then exit
    #[arg(long)]
    pub check: bool,
}

#[derive(Args)]
pub(in crate::cli) struct RelayArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only check the configuration and the certificates it names, then exit
    #[arg(long)]
    pub check: bool,
}

#[derive(Args)]
pub(in crate::cli) struct ControllerArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only check the configuration and its certificates, then exit
    #[arg(long)]
    pub check: bool,
    /// Write all of the store to FILE, then exit; the controller must not run
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    pub backup: Option<PathBuf>,
    /// Fill a new store from FILE, then exit; the controller must not run
    #[arg(long, value_name = "FILE", conflicts_with_all = ["check", "backup"])]
    pub restore: Option<PathBuf>,
}

#[derive(Args)]
pub(in crate::cli) struct UpArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only check the configuration, then exit
    #[arg(long)]
    pub check: bool,
}

/// Which backend and element, and how to print.
#[derive(Args, Clone)]
pub(in crate::cli) struct Connect {
    /// The backend's control socket
    #[arg(
        long,
        value_name = "PATH",
        env = "SHUNT_SOCKET",
        default_value = "/run/shunt/backend.sock"
    )]
    pub socket: PathBuf,
    /// The element; may be left out where the backend serves exactly one
    #[arg(long, value_name = "NAME")]
    pub element: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub(in crate::cli) enum SessionCommand {
    /// Ask for a session, or the sessions of a file, to be offloaded
    #[command(after_long_help = ADD_EXAMPLES, override_usage = ADD_USAGE)]
    Add(Box<AddArgs>),
    /// Withdraw sessions: their packets go to the guest again
    #[command(
        after_long_help = "Examples:\n  shunt session del dns-1 dns-2\n  shunt session del --all"
    )]
    Del(WhichArgs),
    /// Send sessions back to the guest until it is seen forwarding them again
    #[command(
        after_long_help = "Examples:\n  shunt session reprove dns-1\n  shunt session reprove --all"
    )]
    Reprove(WhichArgs),
    /// Show all sessions, or one in detail
    #[command(after_long_help = "Example:\n  shunt session show dns-1")]
    Show(ShowSessionArgs),
}

#[derive(Subcommand)]
pub(in crate::cli) enum ShowCommand {
    /// Elements, vNICs and how full their tables are
    #[command(after_long_help = "Example:\n  shunt show summary")]
    Summary(Connect),
    /// All sessions with their counters
    #[command(after_long_help = "Example:\n  shunt show sessions --json")]
    Sessions(Connect),
    /// vNICs, their devices and queues
    #[command(after_long_help = "Example:\n  shunt show ports")]
    Ports(Connect),
    /// Verdicts, reasons, close codes, hand-over
    #[command(after_long_help = "Example:\n  shunt show stats --element router1")]
    Stats(Connect),
}

const ADD_USAGE: &str = "\
shunt session add --key KEY --protocol PROTOCOL --from ENDPOINT --to ENDPOINT \
--ingress VNIC --egress VNIC [OPTIONS]
       shunt session add --file FILE [OPTIONS]";

const ADD_EXAMPLES: &str = "\
Examples:
  A client behind source NAT; MACs are learned from the frame that proves forwarding:
    shunt session add --key dns-1 --protocol udp --ingress lan --egress wan \\
      --from 10.0.0.2:40000 --to 192.0.2.9:53 --snat 198.51.100.1:40000

  A static path through VLANs, vouched for by the operator, in one direction:
    shunt session add --key s1 --protocol tcp --ingress lan --egress wan \\
      --ingress-vlan 5 --egress-vlan 7 --from 10.0.0.2:40000 --to 192.0.2.9:443 \\
      --directions original --vouched \\
      --destination-mac 52:54:00:00:00:01 --source-mac 52:54:00:00:00:02

  A ping, and many sessions at once:
    shunt session add --key p1 --protocol icmp --identifier 77 --ingress lan --egress wan \\
      --from 10.0.0.2 --to 192.0.2.9
    shunt session add --file sessions.json

The file holds an input of the rpc `offload`:
    {\"shunt-offload:input\": {\"session\": [{\"key\": \"dns-1\", \"protocol\": \"udp\",
      \"original\": {\"ingress-vnic\": \"lan\", \"egress-vnic\": \"wan\",
        \"source-address\": \"10.0.0.2\", \"source-port\": 40000,
        \"destination-address\": \"192.0.2.9\", \"destination-port\": 53}}]}}";

#[derive(Args)]
pub(in crate::cli) struct AddArgs {
    /// Which backend.
    #[command(flatten)]
    pub connect: Connect,
    /// Offer the sessions of this file (`-`: stdin)
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "flags",
        required_unless_present = "flags"
    )]
    pub file: Option<PathBuf>,
    /// The session, by flags.
    #[command(flatten)]
    pub flags: Option<SessionFlags>,
}

#[derive(Args)]
#[group(id = "flags")]
pub(in crate::cli) struct SessionFlags {
    /// Your name for the session; offering it again is harmless
    #[arg(long, required = false, required_unless_present = "file")]
    pub key: SessionKey,
    /// tcp, udp, sctp, icmp, icmpv6, gre or a number
    #[arg(long, required = false, required_unless_present = "file")]
    pub protocol: Protocol,
    /// Source of the original direction: ADDRESS[:PORT], [IPV6]:PORT
    #[arg(long, value_name = "ENDPOINT", value_parser = Endpoint::with_address, required = false, required_unless_present = "file")]
    pub from: Endpoint,
    /// Destination of the original direction
    #[arg(long, value_name = "ENDPOINT", value_parser = Endpoint::with_address, required = false, required_unless_present = "file")]
    pub to: Endpoint,
    /// The vNIC whose uplink the original direction comes in by
    #[arg(
        long,
        value_name = "VNIC",
        required = false,
        required_unless_present = "file"
    )]
    pub ingress: String,
    /// The vNIC whose uplink it leaves by (may be the same)
    #[arg(
        long,
        value_name = "VNIC",
        required = false,
        required_unless_present = "file"
    )]
    pub egress: String,
    /// New source: ADDRESS[:PORT], or :PORT
    #[arg(long, value_name = "ENDPOINT")]
    pub snat: Option<Endpoint>,
    /// New destination
    #[arg(long, value_name = "ENDPOINT")]
    pub dnat: Option<Endpoint>,
    /// ICMP echo identifier
    #[arg(long, value_name = "NUMBER")]
    pub identifier: Option<u16>,
    /// New ICMP echo identifier
    #[arg(long, value_name = "NUMBER")]
    pub new_identifier: Option<u16>,
    /// VLAN on ingress [default: untagged]
    #[arg(long, value_name = "ID")]
    pub ingress_vlan: Option<Vlan>,
    /// VLAN on egress [default: untagged]
    #[arg(long, value_name = "ID")]
    pub egress_vlan: Option<Vlan>,
    /// Destination MAC on ingress, if not the vNIC's (VRRP)
    #[arg(long, value_name = "MAC")]
    pub ingress_mac: Option<MacAddr>,
    /// Next hop's MAC [default: learned]
    #[arg(long, value_name = "MAC")]
    pub destination_mac: Option<MacAddr>,
    /// Source MAC on egress [default: learned]
    #[arg(long, value_name = "MAC")]
    pub source_mac: Option<MacAddr>,
    /// Largest L3 packet on egress, bytes [default: the vNIC's MTU]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<Mtu>,
    /// DSCP to set [default: kept]
    #[arg(long, value_name = "0-63")]
    pub dscp: Option<Dscp>,
    /// Leave TTL and hop limit alone, in both directions
    #[arg(long)]
    pub no_ttl: bool,
    /// vNIC the answers come in by [default: --egress]
    #[arg(long, value_name = "VNIC", help_heading = REPLY)]
    pub reply_ingress: Option<String>,
    /// vNIC the answers leave by [default: --ingress]
    #[arg(long, value_name = "VNIC", help_heading = REPLY)]
    pub reply_egress: Option<String>,
    /// VLAN the answers come with, 0: untagged [default: --egress-vlan]
    #[arg(long, value_name = "ID", help_heading = REPLY)]
    pub reply_ingress_vlan: Option<Vlan>,
    /// VLAN the answers leave with, 0: untagged [default: --ingress-vlan]
    #[arg(long, value_name = "ID", help_heading = REPLY)]
    pub reply_egress_vlan: Option<Vlan>,
    /// Destination MAC the answers come with, if not the vNIC's (VRRP)
    #[arg(long, value_name = "MAC", help_heading = REPLY)]
    pub reply_ingress_mac: Option<MacAddr>,
    /// Next hop's MAC [default: learned]
    #[arg(long, value_name = "MAC", help_heading = REPLY)]
    pub reply_destination_mac: Option<MacAddr>,
    /// Source MAC [default: learned]
    #[arg(long, value_name = "MAC", help_heading = REPLY)]
    pub reply_source_mac: Option<MacAddr>,
    /// Largest L3 packet, bytes [default: the vNIC's MTU]
    #[arg(long, value_name = "BYTES", help_heading = REPLY)]
    pub reply_mtu: Option<Mtu>,
    /// DSCP to set [default: kept]
    #[arg(long, value_name = "0-63", help_heading = REPLY)]
    pub reply_dscp: Option<Dscp>,
    /// Which directions are offloaded
    #[arg(long, value_enum, default_value = "both", help_heading = LIFE)]
    pub directions: DirectionsFlag,
    /// How the session moves to the fast path
    #[arg(long, value_enum, default_value = "ordered", help_heading = LIFE)]
    pub hand_over: HandOverFlag,
    /// End after so many seconds without a packet
    #[arg(long, value_name = "SECONDS", default_value = "60", help_heading = LIFE)]
    pub idle: Seconds,
    /// End after so many seconds in any case [default: never]
    #[arg(long, value_name = "SECONDS", help_heading = LIFE)]
    pub hard: Option<Seconds>,
    /// Ask for no proof that the guest forwards; needs the MACs
    #[arg(long, help_heading = LIFE)]
    pub vouched: bool,
}

const REPLY: &str = "Reply direction";
const LIFE: &str = "Life";

#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum DirectionsFlag {
    Both,
    /// As the first packet goes
    Original,
    /// The answers
    Reply,
}

impl From<DirectionsFlag> for Directions {
    fn from(flag: DirectionsFlag) -> Self {
        match flag {
            DirectionsFlag::Both => Self::Both,
            DirectionsFlag::Original => Self::Original,
            DirectionsFlag::Reply => Self::Reply,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(in crate::cli) enum HandOverFlag {
    /// Drain the guest first, so that nothing overtakes
    Ordered,
    /// At the proof of forwarding; packets inside the guest may be overtaken
    Prompt,
}

impl From<HandOverFlag> for HandOver {
    fn from(flag: HandOverFlag) -> Self {
        match flag {
            HandOverFlag::Ordered => Self::Ordered,
            HandOverFlag::Prompt => Self::Prompt,
        }
    }
}

#[derive(Args)]
pub(in crate::cli) struct WhichArgs {
    /// Which backend.
    #[command(flatten)]
    pub connect: Connect,
    /// Keys of the sessions
    #[arg(value_name = "KEY", required_unless_present = "all")]
    pub keys: Vec<SessionKey>,
    /// Every session of the element
    #[arg(long, conflicts_with = "keys")]
    pub all: bool,
}

#[derive(Args)]
pub(in crate::cli) struct ShowSessionArgs {
    /// Which backend.
    #[command(flatten)]
    pub connect: Connect,
    /// Key of one session, shown in detail
    #[arg(value_name = "KEY")]
    pub key: Option<SessionKey>,
}

/// An address, a port, or both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Endpoint {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

impl Endpoint {
    fn with_address(text: &str) -> Result<Self, String> {
        let endpoint: Self = text.parse()?;
        match endpoint.address {
            Some(_) => Ok(endpoint),
            None => Err("the address is missing: write ADDRESS or ADDRESS:PORT".to_owned()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || format!("`{text}` is neither ADDRESS, ADDRESS:PORT, [IPV6]:PORT nor :PORT");
        if let Ok(address) = text.parse() {
            return Ok(Self {
                address: Some(address),
                port: None,
            });
        }
        let (address, port) = text.rsplit_once(':').ok_or_else(hint)?;
        let port = port.parse().map_err(|_| hint())?;
        let address = match address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            Some(v6) => Some(IpAddr::V6(v6.parse().map_err(|_| hint())?)),
            None if address.is_empty() => None,
            None => Some(IpAddr::V4(address.parse().map_err(|_| hint())?)),
        };
        Ok(Self {
            address,
            port: Some(port),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_a_port_or_both() {
        for (text, address, port) in [
            ("10.0.0.2", Some("10.0.0.2"), None),
            ("10.0.0.2:53", Some("10.0.0.2"), Some(53)),
            ("2001:db8::1", Some("2001:db8::1"), None),
            ("[2001:db8::1]:53", Some("2001:db8::1"), Some(53)),
            (":53", None, Some(53)),
        ] {
            let address = address.map(|text| text.parse().unwrap());
            assert_eq!(text.parse(), Ok(Endpoint { address, port }));
        }
        for text in [
            "",
            ":",
            "10.0.0.2:",
            "10.0.0.2:65536",
            "[10.0.0.2]:5",
            "x:5",
            "10.0.0.300",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        assert!(Endpoint::with_address(":53").is_err());
    }
}
