//! The command `shunt`.
//!
//! *Promises*: exit code 0 when all was done, 1 when something failed or an entry was
//! refused, 2 when the command line is wrong; one chain of errors on stderr, the first
//! line saying what to do; `--json` prints the structs the tables are made of.
//! *Refuses*: nothing beyond what the parser refuses.
//! *Caller's duty*: scripts read the JSON; tables may change.
//! *Standard*: none.

mod args;
mod call;
mod error;
mod input;
mod reload;
mod session;
mod shield;
mod show;
mod table;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, Connect, ControllerArgs, SessionCommand, ShowCommand};
use error::CliError;

use crate::api::Client;

/// How a command ended that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// All was done.
    Done,
    /// The backend refused an entry; it was said.
    Refused,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    // Prints help, or what is wrong with the command line, and exits (0 or 2).
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Refused) => ExitCode::FAILURE,
        Err(error) => {
            error::print_chain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<Ending, CliError> {
    match command {
        Command::Backend(backend) => {
            if backend.check {
                crate::backend::check(&backend.config)?;
                print(&format!("{}: sound\n", backend.config.display()))?;
            } else {
                start_log();
                crate::backend::run(&backend.config)?;
            }
            Ok(Ending::Done)
        }
        Command::Relay(relay) => {
            if relay.check {
                crate::relay::check(&relay.config)?;
                print(&format!("{}: sound\n", relay.config.display()))?;
            } else {
                start_log();
                crate::relay::run(&relay.config)?;
            }
            Ok(Ending::Done)
        }
        Command::Controller(controller) => run_controller(&controller),
        Command::Up(up) => {
            if up.check {
                crate::up::check(&up.config)?;
                print(&format!("{}: sound\n", up.config.display()))?;
            } else {
                start_log();
                crate::up::run(&up.config)?;
            }
            Ok(Ending::Done)
        }
        Command::Call(call) => talk(call::call(call)),
        Command::Session { command } => talk(async {
            match *command {
                SessionCommand::Add(add) => session::add(*add).await,
                SessionCommand::Del(del) => session::del(del).await,
                SessionCommand::Reprove(which) => session::reprove(which).await,
                SessionCommand::Show(show) => show::sessions(&show.connect, show.key).await,
            }
        }),
        Command::Shield { command } => talk(shield::run(*command)),
        Command::Reload(connect) => talk(reload::reload(&connect)),
        Command::Show { command } => talk(async {
            match command {
                ShowCommand::Summary(connect) => show::summary(&connect).await,
                ShowCommand::Sessions(connect) => show::sessions(&connect, None).await,
                ShowCommand::Ports(connect) => show::ports(&connect).await,
                ShowCommand::Stats(connect) => show::statistics(&connect).await,
            }
        }),
    }
}

fn run_controller(given: &ControllerArgs) -> Result<Ending, CliError> {
    let config = &given.config;
    if given.check {
        crate::controller::check(config)?;
        print(&format!("{}: sound\n", config.display()))?;
    } else if let Some(file) = &given.backup {
        let documents = crate::controller::backup(config, file)?;
        print(&format!("{}: {documents} documents\n", file.display()))?;
    } else if let Some(file) = &given.restore {
        let documents = crate::controller::restore(config, file)?;
        print(&format!("{documents} documents restored\n"))?;
    } else {
        start_log();
        crate::controller::run(config)?;
    }
    Ok(Ending::Done)
}

/// Daemons log to stderr, `info` and above unless RUST_LOG says otherwise.
fn start_log() {
    let choice = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(choice)
        .format_timestamp_millis()
        .init();
}

fn talk(conversation: impl Future<Output = Result<Ending, CliError>>) -> Result<Ending, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?
        .block_on(conversation)
}

/// The element a command is about: the one named, or the only one there is.
async fn element(client: &Client, connect: &Connect) -> Result<String, CliError> {
    if let Some(name) = &connect.element {
        return Ok(name.clone());
    }
    let mut names: Vec<String> = client
        .summary()
        .await?
        .element
        .into_iter()
        .map(|element| element.name)
        .collect();
    match names.len() {
        1 => Ok(names.remove(0)),
        0 => Err(CliError::NoElement),
        _ => Err(CliError::WhichElement(names.join(", "))),
    }
}

/// Prints to stdout. A reader that went away (`| head`) is no failure.
fn print(text: &str) -> Result<(), CliError> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::Output(error))
        }
        _ => Ok(()),
    }
}

/// Prints JSON for machines or a table for people.
fn print_as<T: serde::Serialize>(
    connect: &Connect,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), CliError> {
    if connect.json {
        let mut text = serde_json::to_string_pretty(value).map_err(CliError::Json)?;
        text.push('\n');
        print(&text)
    } else {
        print(&table(value))
    }
}
