//! `shunt agent`: the agent itself, and what asks it.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments are help texts here, and brackets mean what they mean there"
)]

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, StatusCode};
use clap::{Args, Subcommand};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::error::CliError;
use super::print::{print, print_json};
use super::shield_flags::{ShieldFlags, action, matches};
use super::table::Table;
use super::{Ending, start_log, talk};
use crate::agent::AgentError;
use crate::agent::config::{Config, Mode, ProxyConfig};
use crate::agent::local::Group;
use crate::agent::shields::Kept;
use crate::agent::status::{ModeOrder, UnshieldOrder};
use crate::api::SessionKey;
use crate::api::session::Seconds;

mod status;

/// Longest wait for the agent: longer than it waits for the host.
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) const EXAMPLES: &str = "\
Examples:
  shunt agent run --config /etc/shunt/agent.toml
  shunt agent status
  shunt agent pause
  shunt agent shield add --name bad-net --source 198.51.100.0/24 --action drop
  shunt agent proxy --socket /run/shunt/api.sock";

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct AgentArgs {
    /// What to do; to run it if nothing is said
    #[command(subcommand)]
    command: Option<AgentCommand>,
    /// How to run it.
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum AgentCommand {
    /// Run the agent
    Run(RunArgs),
    /// Show how it is
    Status(ShowArgs),
    /// Ask for nothing new; what is offloaded stays
    Pause(AskArgs),
    /// Offload
    Resume(AskArgs),
    /// Ask for nothing, and take back what is offloaded
    Off(AskArgs),
    /// Only tell what would be offloaded
    Observe(AskArgs),
    /// Keep shields, end or list them
    Shield {
        /// What to do with shields
        #[command(subcommand)]
        command: Box<ShieldCommand>,
    },
    /// Offer the serial port as a local HTTP socket, without offloading
    Proxy(ProxyArgs),
}

#[derive(Args)]
struct RunArgs {
    /// The configuration file [default: /etc/shunt/agent.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only check the configuration, then exit
    #[arg(long)]
    check: bool,
}

#[derive(Args)]
struct AskArgs {
    /// The agent's socket
    #[arg(
        long,
        value_name = "PATH",
        env = "SHUNT_AGENT_SOCKET",
        default_value = "/run/shunt/agent.sock"
    )]
    socket: PathBuf,
}

#[derive(Args)]
struct ShowArgs {
    /// Whom to ask.
    #[command(flatten)]
    ask: AskArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum ShieldCommand {
    /// Keep a shield, until it is deleted or its time is over
    #[command(after_long_help = SHIELD_EXAMPLES)]
    Add(AddArgs),
    /// End shields that were added so
    #[command(
        after_long_help = "Examples:\n  shunt agent shield del bad-net\n  shunt agent shield del --all"
    )]
    Del(DelArgs),
    /// List all shields of the element
    List(ShowArgs),
}

const SHIELD_EXAMPLES: &str = "\
Examples:
  What comes from one network, until it is deleted:
    shunt agent shield add --name bad-net --source 198.51.100.0/24 --action drop

  SYNs to a web server, a thousand a second, for an hour:
    shunt agent shield add --name syn-flood --ttl 3600 --protocol tcp \\
      --destination 203.0.113.7/32 --destination-port 443 --tcp-flags syn \\
      --tcp-flags-mask 'syn ack' --action police --packet-rate 1000";

#[derive(Args)]
struct AddArgs {
    /// Whom to ask, and how to print.
    #[command(flatten)]
    show: ShowArgs,
    /// End after so many seconds [default: when it is deleted]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<Seconds>,
    /// The shield.
    #[command(flatten)]
    flags: ShieldFlags,
}

#[derive(Args)]
struct DelArgs {
    /// Whom to ask, and how to print.
    #[command(flatten)]
    show: ShowArgs,
    /// Names of the shields
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<SessionKey>,
    /// Every shield that was added so
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

#[derive(Args)]
struct ProxyArgs {
    /// The configuration file [default: /etc/shunt/agent.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The serial port, or a socket that leads to one [default: the configuration's, or found]
    #[arg(long, value_name = "PATH", env = "SHUNT_PORT")]
    port: Option<PathBuf>,
    /// The HTTP socket [default: the configuration's, or /run/shunt/api.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The socket's group: who may use it beside root
    #[arg(long)]
    group: Option<Group>,
}

/// Why asking the agent failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody answers.
    #[error("nobody answers at {}: is `shunt agent` running?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The exchange broke.
    #[error("the exchange with the agent broke")]
    Broken(#[from] hyper::Error),
    /// The request cannot be written.
    #[error("the request cannot be written")]
    Unwritable(#[from] axum::http::Error),
    /// No answer came.
    #[error("the agent does not answer")]
    Timeout,
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// Its answer is another version's.
    #[error("the agent's answer is not understood: are both of the same version?")]
    Unreadable(#[from] serde_json::Error),
}

/// Runs the command.
pub(super) fn run(args: AgentArgs) -> Result<Ending, CliError> {
    match args.command.unwrap_or(AgentCommand::Run(args.run)) {
        AgentCommand::Run(args) => run_agent(&args),
        AgentCommand::Proxy(args) => proxy(args),
        AgentCommand::Status(args) => talk(show_status(args)),
        AgentCommand::Pause(args) => talk(set(args, Mode::Pause)),
        AgentCommand::Resume(args) => talk(set(args, Mode::On)),
        AgentCommand::Off(args) => talk(set(args, Mode::Off)),
        AgentCommand::Observe(args) => talk(set(args, Mode::Observe)),
        AgentCommand::Shield { command } => talk(async {
            match *command {
                ShieldCommand::Add(args) => add(args).await,
                ShieldCommand::Del(args) => del(args).await,
                ShieldCommand::List(args) => list(args).await,
            }
        }),
    }
}

fn load(config: Option<&Path>) -> Result<Config, CliError> {
    Ok(Config::load(config).map_err(AgentError::from)?)
}

fn run_agent(args: &RunArgs) -> Result<Ending, CliError> {
    let config = load(args.config.as_deref())?;
    if args.check {
        print("the configuration is sound\n")?;
    } else {
        start_log();
        crate::agent::run(config)?;
    }
    Ok(Ending::Done)
}

fn proxy(args: ProxyArgs) -> Result<Ending, CliError> {
    let mut config = load(args.config.as_deref())?;
    let own = config.proxy.get_or_insert_with(ProxyConfig::default);
    if let Some(socket) = args.socket {
        own.socket = socket;
    }
    own.group = args.group.or(own.group.take());
    config.serial.port = args.port.or(config.serial.port);
    start_log();
    crate::agent::proxy(config)?;
    Ok(Ending::Done)
}

async fn show_status(args: ShowArgs) -> Result<Ending, CliError> {
    let status: Value = ask(&args.ask, Method::GET, "/status", Body::empty()).await?;
    print_as(&args, &status, status::text)?;
    Ok(Ending::Done)
}

async fn set(args: AskArgs, mode: Mode) -> Result<Ending, CliError> {
    let body = json(&ModeOrder { mode })?;
    let _same: ModeOrder = ask(&args, Method::POST, "/mode", body).await?;
    Ok(Ending::Done)
}

/// What is listed.
#[derive(Serialize, Deserialize)]
struct List {
    shield: Vec<Kept>,
}

/// What was ended.
#[derive(Serialize, Deserialize)]
struct Removed {
    removed: Vec<SessionKey>,
}

async fn add(args: AddArgs) -> Result<Ending, CliError> {
    let body = json(&args.flags.shield(args.ttl)?)?;
    let kept: Kept = ask(&args.show.ask, Method::POST, "/shield", body).await?;
    let list = List { shield: vec![kept] };
    print_as(&args.show, &list, table_of)?;
    let is_refused = |kept: &Kept| kept.standing == "refused" || kept.standing == "left-out";
    Ok(match list.shield.iter().any(is_refused) {
        true => Ending::Refused,
        false => Ending::Done,
    })
}

async fn del(args: DelArgs) -> Result<Ending, CliError> {
    let order = UnshieldOrder {
        name: args.names,
        all: args.all,
    };
    let answer: Removed = ask(&args.show.ask, Method::POST, "/unshield", json(&order)?).await?;
    print_as(&args.show, &answer, |answer| {
        let names = answer.removed.iter().map(ToString::to_string);
        format!("removed: {}\n", names.collect::<Vec<_>>().join(" "))
    })?;
    Ok(Ending::Done)
}

async fn list(args: ShowArgs) -> Result<Ending, CliError> {
    let list: List = ask(&args.ask, Method::GET, "/shields", Body::empty()).await?;
    print_as(&args, &list, table_of)?;
    Ok(Ending::Done)
}

fn table_of(list: &List) -> String {
    let mut table = Table::new(&[
        "NAME", "BY", "STANDING", "MATCH", "ACTION", "LEFT", "PACKETS", "DROPPED", "WHY",
    ]);
    let count = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
    for kept in &list.shield {
        let left = kept.shield.ttl.map(|left| format!("{left}s"));
        table.row([
            kept.shield.name.to_string(),
            kept.by.clone(),
            kept.standing.clone(),
            matches(&kept.shield),
            action(&kept.shield),
            left.unwrap_or("-".to_owned()),
            count(kept.packets),
            count(kept.dropped),
            kept.why.clone().unwrap_or_default(),
        ]);
    }
    table.text()
}

fn json<T: Serialize>(value: &T) -> Result<Body, AskError> {
    Ok(Body::from(serde_json::to_vec(value)?))
}

/// Asks the agent.
async fn ask<T: serde::de::DeserializeOwned>(
    whom: &AskArgs,
    method: Method,
    path: &str,
    body: Body,
) -> Result<T, AskError> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("host", "localhost").body(body)?;
    let exchange = exchange(&whom.socket, request);
    let (status, answer) = timeout(WAIT_MAX, exchange)
        .await
        .map_err(|_| AskError::Timeout)??;
    if status.is_success() {
        return Ok(serde_json::from_slice(&answer)?);
    }
    let problem: Option<Value> = serde_json::from_slice(&answer).ok();
    let detail = problem
        .as_ref()
        .and_then(|problem| problem["detail"].as_str());
    Err(AskError::Refused(
        detail.map_or_else(|| status.to_string(), str::to_owned),
    ))
}

async fn exchange(socket: &Path, request: Request<Body>) -> Result<(StatusCode, Bytes), AskError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| AskError::Connect {
            path: socket.to_owned(),
            source,
        })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let carried = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    carried.abort();
    Ok((head.status, body))
}

/// Prints JSON for machines or a table for people.
fn print_as<T: Serialize>(
    args: &ShowArgs,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    let printed = match args.json {
        true => print_json(value),
        false => print(&table(value)),
    };
    Ok(printed?)
}
