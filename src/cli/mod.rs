//! The command `shunt`.
//!
//! *Promises*: exit code 0 when all was done, 1 when something failed or an entry was
//! refused, 2 when the command line is wrong; one chain of errors on stderr, the first
//! line saying what to do; `--json` prints the structs the tables are made of.
//! *Refuses*: nothing beyond what the parser refuses.
//! *Caller's duty*: scripts read the JSON; tables may change.
//! *Standard*: none.

#[cfg(feature = "agent")]
mod agent;
mod args;
mod call;
mod error;
#[cfg(feature = "host")]
mod host;
mod print;
mod shield_flags;
mod table;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use error::CliError;

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
        #[cfg(feature = "host")]
        Command::Host(command) => host::run(command),
        Command::Call(call) => talk(call::call(call)),
        #[cfg(feature = "agent")]
        Command::Agent(agent) => agent::run(*agent),
    }
}

/// Daemons log to stderr, `info` and above unless RUST_LOG says otherwise.
fn start_log() {
    let choice = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(choice)
        .format_timestamp_millis()
        .init();
}

fn talk<E>(conversation: impl Future<Output = Result<Ending, E>>) -> Result<Ending, CliError>
where
    CliError: From<E>,
{
    let ending = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?
        .block_on(conversation)?;
    Ok(ending)
}
