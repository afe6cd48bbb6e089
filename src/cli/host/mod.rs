//! What runs on hosts, and what is asked of it there.

mod args;
mod error;
mod input;
mod reload;
mod session;
mod shield;
mod show;

pub(super) use args::HostCommand;
pub(super) use error::HostError;

use args::{BackendArgs, Connect, ControllerArgs, RelayArgs, SessionCommand, ShowCommand, UpArgs};

use super::error::CliError;
use super::print::{print, print_json};
use super::{Ending, start_log, talk};
use crate::api::Client;

/// Runs one.
pub(super) fn run(command: HostCommand) -> Result<Ending, CliError> {
    match command {
        HostCommand::Backend(backend) => Ok(run_backend(&backend)?),
        HostCommand::Relay(relay) => Ok(run_relay(&relay)?),
        HostCommand::Controller(controller) => Ok(run_controller(&controller)?),
        HostCommand::Up(up) => Ok(run_up(&up)?),
        HostCommand::Session { command } => talk(async {
            match *command {
                SessionCommand::Add(add) => session::add(*add).await,
                SessionCommand::Del(del) => session::del(del).await,
                SessionCommand::Reprove(which) => session::reprove(which).await,
                SessionCommand::Show(show) => show::sessions(&show.connect, show.key).await,
            }
        }),
        HostCommand::Shield { command } => talk(shield::run(*command)),
        HostCommand::Reload(connect) => talk(reload::reload(&connect)),
        HostCommand::Show { command } => talk(async {
            match command {
                ShowCommand::Summary(connect) => show::summary(&connect).await,
                ShowCommand::Sessions(connect) => show::sessions(&connect, None).await,
                ShowCommand::Ports(connect) => show::ports(&connect).await,
                ShowCommand::Stats(connect) => show::statistics(&connect).await,
            }
        }),
    }
}

/// `shunt backend`.
fn run_backend(given: &BackendArgs) -> Result<Ending, HostError> {
    let config = &given.config;
    if given.check {
        crate::backend::check(config)?;
        print(&format!("{}: sound\n", config.display()))?;
    } else {
        start_log();
        crate::backend::run(config)?;
    }
    Ok(Ending::Done)
}

/// `shunt relay`.
fn run_relay(given: &RelayArgs) -> Result<Ending, HostError> {
    let config = &given.config;
    if given.check {
        crate::relay::check(config)?;
        print(&format!("{}: sound\n", config.display()))?;
    } else {
        start_log();
        crate::relay::run(config)?;
    }
    Ok(Ending::Done)
}

/// `shunt up`.
fn run_up(given: &UpArgs) -> Result<Ending, HostError> {
    let config = &given.config;
    if given.check {
        crate::up::check(config)?;
        print(&format!("{}: sound\n", config.display()))?;
    } else {
        start_log();
        crate::up::run(config)?;
    }
    Ok(Ending::Done)
}

/// `shunt controller`.
fn run_controller(given: &ControllerArgs) -> Result<Ending, HostError> {
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

/// The element a command is about: the one named, or the only one there is.
async fn element(client: &Client, connect: &Connect) -> Result<String, HostError> {
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
        0 => Err(HostError::NoElement),
        _ => Err(HostError::WhichElement(names.join(", "))),
    }
}

/// Prints JSON for machines or a table for people.
fn print_as<T: serde::Serialize>(
    connect: &Connect,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), HostError> {
    let printed = if connect.json {
        print_json(value)
    } else {
        print(&table(value))
    };
    Ok(printed?)
}
