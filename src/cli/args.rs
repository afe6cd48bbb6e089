//! The command line, as it is parsed and explained.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments are help texts here, and brackets mean what they mean there"
)]

use std::path::PathBuf;

use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, Method};
use clap::{Args, Parser, Subcommand};

#[cfg(feature = "agent")]
use super::agent::AgentArgs;
#[cfg(feature = "host")]
use super::host::HostCommand;

/// Lets the offloaded connections of a router VM go around its guest
#[derive(Parser)]
#[command(name = "shunt", version, after_long_help = EXIT_CODES)]
pub(super) struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 all was done, 1 something failed or an entry was refused, \
                          2 the command line is wrong.";

#[derive(Subcommand)]
pub(super) enum Command {
    /// What runs on hosts, and what is asked of it there.
    #[cfg(feature = "host")]
    #[command(flatten)]
    Host(HostCommand),
    /// Send one request over a serial port, from inside a guest
    #[command(after_long_help = CALL_EXAMPLES)]
    Call(CallArgs),
    /// Run the agent inside a guest, or ask it: offloads what the guest forwards
    #[cfg(feature = "agent")]
    #[command(after_long_help = super::agent::EXAMPLES)]
    Agent(Box<AgentArgs>),
}

const CALL_EXAMPLES: &str = "\
Examples:
  shunt call GET /restconf/data/shunt-offload:state
  shunt call POST /restconf/operations/shunt-offload:withdraw \\
    '{\"shunt-offload:input\": {\"all\": true}}'
  shunt call POST /restconf/operations/shunt-offload:offload - < sessions.json";

#[derive(Args)]
pub(super) struct CallArgs {
    /// The serial port, or a socket that leads to one
    #[arg(
        long,
        value_name = "PATH",
        env = "SHUNT_PORT",
        default_value = "/dev/virtio-ports/org.shunt.offload.0"
    )]
    pub port: PathBuf,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub timeout: u32,
    /// A header besides `accept` and `content-type`, as NAME:VALUE; repeat for more
    #[arg(long = "header", value_name = "HEADER", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// GET, POST and so on
    pub method: Method,
    /// Path and query, as /restconf/data
    pub path: PathAndQuery,
    /// The body, JSON (`-`: stdin)
    pub body: Option<String>,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let hint = || format!("`{text}` is no header: write NAME:VALUE");
    let (name, value) = text.split_once(':').ok_or_else(hint)?;
    let name = name.trim().parse().map_err(|_| hint())?;
    let value = value.trim().parse().map_err(|_| hint())?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_with_itself() {
        Cli::command().debug_assert();
    }
}
