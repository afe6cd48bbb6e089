//! `shunt shield add`, `shunt shield del` and `shunt shield list`.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments are help texts here, and brackets mean what they mean there"
)]

use clap::{Args, Subcommand, ValueEnum};

use super::args::Connect;
use super::error::HostError;
use super::{element, print_as};
use crate::api::Client;
use crate::api::config::Prefix;
use crate::api::session::{Protocol, Seconds, SessionKey};
use crate::api::shield::{
    Action, BitRate, Burst, PacketRate, Police, PortMatch, Shield, ShieldInput, ShieldOutput,
    ShieldReport, Shields, TcpFlags, UnshieldInput, UnshieldOutput,
};
use crate::cli::Ending;
use crate::cli::table::Table;

#[derive(Subcommand)]
pub(in crate::cli) enum ShieldCommand {
    /// Ask for a shield, or for more time for it
    #[command(after_long_help = ADD_EXAMPLES)]
    Add(AddArgs),
    /// End shields that were asked for
    #[command(
        after_long_help = "Examples:\n  shunt shield del syn-flood\n  shunt shield del --all"
    )]
    Del(DelArgs),
    /// List all shields and what they have matched
    #[command(after_long_help = "Example:\n  shunt shield list")]
    List(Connect),
}

const ADD_EXAMPLES: &str = "\
Examples:
  What comes from one network, for ten minutes:
    shunt shield add --name bad-net --ttl 600 --source 198.51.100.0/24 --action drop

  SYNs to a web server, a thousand a second:
    shunt shield add --name syn-flood --ttl 300 --protocol tcp --destination 203.0.113.7/32 \\
      --destination-port 443 --tcp-flags syn --tcp-flags-mask 'syn ack' \\
      --action police --packet-rate 1000

  Answers of resolvers that nobody asked, at most 10 Mbit/s:
    shunt shield add --name dns --ttl 300 --ingress wan --protocol udp --source-port 53 \\
      --action police --bit-rate 10000000

A shield that is asked for again under its name lives on for the new time.";

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
pub(in crate::cli) struct AddArgs {
    /// Which backend.
    #[command(flatten)]
    connect: Connect,
    /// Your name for the shield
    #[arg(long)]
    name: SessionKey,
    /// End after so many seconds, unless asked for again
    #[arg(long, value_name = "SECONDS")]
    ttl: Seconds,
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

#[derive(Args)]
pub(in crate::cli) struct DelArgs {
    /// Which backend.
    #[command(flatten)]
    connect: Connect,
    /// Names of the shields
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<SessionKey>,
    /// Every shield that was asked for
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

pub(super) async fn run(command: ShieldCommand) -> Result<Ending, HostError> {
    match command {
        ShieldCommand::Add(add) => self::add(add).await,
        ShieldCommand::Del(del) => self::del(del).await,
        ShieldCommand::List(connect) => list(&connect).await,
    }
}

async fn add(args: AddArgs) -> Result<Ending, HostError> {
    let connect = args.connect.clone();
    let input = ShieldInput {
        element: connect.element.clone(),
        shield: vec![shield(args)?],
        ..ShieldInput::default()
    };
    let output = Client::new(&connect.socket).shield(input).await?;
    print_as(&connect, &output, results)?;
    let is_refused = output.result.iter().any(|entry| entry.result.is_refused());
    Ok(match is_refused {
        true => Ending::Refused,
        false => Ending::Done,
    })
}

fn shield(args: AddArgs) -> Result<Shield, HostError> {
    let has_rate = args.packet_rate.is_some() || args.bit_rate.is_some() || args.burst.is_some();
    let police = match args.action {
        ActionFlag::Police => {
            let police = Police::new(args.packet_rate, args.bit_rate, args.burst);
            Some(police.map_err(|_| HostError::WhichRate)?)
        }
        ActionFlag::Drop | ActionFlag::Punt if has_rate => return Err(HostError::NoRate),
        ActionFlag::Drop | ActionFlag::Punt => None,
    };
    Ok(Shield {
        name: args.name,
        priority: args.priority,
        ttl: Some(args.ttl),
        ingress_vnic: args.ingress,
        source_prefix: args.source,
        destination_prefix: args.destination,
        protocol: args.protocol,
        source_port: args.source_port.unwrap_or_default(),
        destination_port: args.destination_port.unwrap_or_default(),
        tcp_flags: args.tcp_flags,
        tcp_flags_mask: args.tcp_flags_mask,
        action: args.action.into(),
        police,
    })
}

fn results(output: &ShieldOutput) -> String {
    let mut table = Table::new(&["NAME", "RESULT", "WHY"]);
    for entry in &output.result {
        let error = entry.error.as_ref();
        let why = error.map(|error| error.error_message.clone());
        table.row([
            entry.name.to_string(),
            entry.result.name().to_owned(),
            why.unwrap_or_default(),
        ]);
    }
    table.text()
}

async fn del(args: DelArgs) -> Result<Ending, HostError> {
    let connect = args.connect;
    let input = UnshieldInput {
        element: connect.element.clone(),
        name: args.names,
        all: args.all,
        ..UnshieldInput::default()
    };
    let output = Client::new(&connect.socket).unshield(input).await?;
    print_as(&connect, &output, endings)?;
    Ok(Ending::Done)
}

fn endings(output: &UnshieldOutput) -> String {
    if output.result.is_empty() {
        return format!("{} removed\n", output.removed);
    }
    let mut table = Table::new(&["NAME", "RESULT"]);
    for entry in &output.result {
        table.row([entry.name.to_string(), entry.result.name().to_owned()]);
    }
    table.text()
}

async fn list(connect: &Connect) -> Result<Ending, HostError> {
    let client = Client::new(&connect.socket);
    let name = element(&client, connect).await?;
    let shields = client.shields(&name).await?;
    print_as(connect, &shields, table_of)?;
    Ok(Ending::Done)
}

fn table_of(shields: &Shields) -> String {
    let mut table = Table::new(&[
        "NAME", "BY", "PRIORITY", "MATCH", "ACTION", "LEFT", "PACKETS", "OCTETS", "DROPPED",
    ]);
    let mut all: Vec<_> = shields.shield.iter().collect();
    // As they rule; what is equal stays in the order it came in.
    all.sort_by_key(|report| std::cmp::Reverse(report.shield.priority));
    for ShieldReport {
        origin,
        shield,
        status,
    } in all
    {
        let left = match (status.remaining, status.active) {
            (_, false) => "no vNIC".to_owned(),
            (Some(left), true) => format!("{left}s"),
            (None, true) => "-".to_owned(),
        };
        let action = match shield.police {
            Some(police) => format!("police {police}"),
            None => shield.action.name().to_owned(),
        };
        table.row([
            shield.name.to_string(),
            origin.name().to_owned(),
            shield.priority.to_string(),
            matches(shield),
            action,
            left,
            status.packets.to_string(),
            status.octets.to_string(),
            status.dropped.to_string(),
        ]);
    }
    table.text()
}

/// What a shield matches, in words.
fn matches(shield: &Shield) -> String {
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
