//! `shunt shield add`, `shunt shield del` and `shunt shield list`.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments are help texts here, and brackets mean what they mean there"
)]

use clap::{Args, Subcommand};

use super::args::Connect;
use super::error::HostError;
use super::{element, print_as};
use crate::api::Client;
use crate::api::session::{Seconds, SessionKey};
use crate::api::shield::{
    ShieldInput, ShieldOutput, ShieldReport, Shields, UnshieldInput, UnshieldOutput,
};
use crate::cli::Ending;
use crate::cli::shield_flags::{ShieldFlags, action, matches};
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

#[derive(Args)]
pub(in crate::cli) struct AddArgs {
    /// Which backend.
    #[command(flatten)]
    connect: Connect,
    /// End after so many seconds, unless asked for again
    #[arg(long, value_name = "SECONDS")]
    ttl: Seconds,
    /// The shield.
    #[command(flatten)]
    flags: ShieldFlags,
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
        shield: vec![args.flags.shield(Some(args.ttl))?],
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
        table.row([
            shield.name.to_string(),
            origin.name().to_owned(),
            shield.priority.to_string(),
            matches(shield),
            action(shield),
            left,
            status.packets.to_string(),
            status.octets.to_string(),
            status.dropped.to_string(),
        ]);
    }
    table.text()
}
