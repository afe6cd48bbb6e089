//! `shunt session add`, `shunt session del` and `shunt session reprove`.

use super::args::{AddArgs, WhichArgs};
use super::error::HostError;
use super::{element, input, print_as};
use crate::api::{
    Client, ENTRIES_MAX, OffloadInput, OffloadOutput, ReproveInput, ReproveOutput, SessionKey,
    WithdrawInput, WithdrawOutput,
};
use crate::cli::Ending;
use crate::cli::table::Table;

/// Offers sessions, in as many calls as their number needs.
pub(super) async fn add(args: AddArgs) -> Result<Ending, HostError> {
    let connect = args.connect;
    let mut whole = match (args.file, args.flags) {
        (Some(file), _) => input::from_file(&file)?,
        (None, flags) => OffloadInput {
            session: flags.into_iter().map(input::from_flags).collect(),
            ..OffloadInput::default()
        },
    };
    if connect.element.is_some() {
        whole.element.clone_from(&connect.element);
    }
    let client = Client::new(&connect.socket);
    let mut output = OffloadOutput::default();
    for sessions in whole.session.chunks(ENTRIES_MAX) {
        let input = OffloadInput {
            element: whole.element.clone(),
            epoch: whole.epoch,
            fence: whole.fence,
            session: sessions.to_vec(),
        };
        let part = client.offload(input).await;
        match part {
            Ok(part) => output.result.extend(part.result),
            Err(error) => {
                // What was answered before is not lost with what was not.
                if !output.result.is_empty() {
                    print_as(&connect, &output, offload_table)?;
                }
                return Err(error.into());
            }
        }
    }
    print_as(&connect, &output, offload_table)?;
    if output.result.iter().any(|entry| entry.result.is_refused()) {
        Ok(Ending::Refused)
    } else {
        Ok(Ending::Done)
    }
}

fn offload_table(output: &OffloadOutput) -> String {
    let mut table = Table::new(&["KEY", "RESULT", "WHY"]);
    for entry in &output.result {
        let why = match &entry.error {
            Some(error) => match leaf(error.error_path.as_deref()) {
                Some(leaf) => format!("{leaf}: {}", error.error_message),
                None => error.error_message.clone(),
            },
            None => String::new(),
        };
        table.row([entry.key.to_string(), entry.result.name().to_owned(), why]);
    }
    table.text()
}

/// The part of an entry's path below the entry, whose key the row shows.
fn leaf(path: Option<&str>) -> Option<&str> {
    path?.rsplit_once("']/").map(|(_, leaf)| leaf)
}

/// Withdraws sessions, in as many calls as their number needs.
pub(super) async fn del(args: WhichArgs) -> Result<Ending, HostError> {
    let connect = args.connect;
    let client = Client::new(&connect.socket);
    let name = element(&client, &connect).await?;
    let mut output = WithdrawOutput::default();
    if args.all {
        output = client.withdraw(WithdrawInput::all_of(&name)).await?;
    } else {
        for keys in args.keys.chunks(ENTRIES_MAX) {
            let part = client
                .withdraw(WithdrawInput {
                    element: Some(name.clone()),
                    key: keys.to_vec(),
                    ..WithdrawInput::default()
                })
                .await?;
            output.withdrawn += part.withdrawn;
            output.result.extend(part.result);
        }
    }
    print_as(&connect, &output, withdraw_table)?;
    Ok(Ending::Done)
}

fn withdraw_table(output: &WithdrawOutput) -> String {
    let results = output.result.iter();
    let rows = results.map(|entry| (&entry.key, entry.result.name()));
    which_table(&format!("{} withdrawn", output.withdrawn), rows)
}

/// Sends sessions back to be proved again, in as many calls as their number needs.
pub(super) async fn reprove(args: WhichArgs) -> Result<Ending, HostError> {
    let connect = args.connect;
    let client = Client::new(&connect.socket);
    let name = element(&client, &connect).await?;
    let mut output = ReproveOutput::default();
    if args.all {
        output = client.reprove(ReproveInput::all_of(&name)).await?;
    } else {
        for keys in args.keys.chunks(ENTRIES_MAX) {
            let part = client
                .reprove(ReproveInput {
                    element: Some(name.clone()),
                    key: keys.to_vec(),
                    ..ReproveInput::default()
                })
                .await?;
            output.reproved += part.reproved;
            output.result.extend(part.result);
        }
    }
    print_as(&connect, &output, reprove_table)?;
    Ok(Ending::Done)
}

fn reprove_table(output: &ReproveOutput) -> String {
    let results = output.result.iter();
    let rows = results.map(|entry| (&entry.key, entry.result.name()));
    which_table(&format!("{} to be proved again", output.reproved), rows)
}

/// What became of each key; of all, a sentence.
fn which_table<'a>(
    all: &str,
    rows: impl ExactSizeIterator<Item = (&'a SessionKey, &'static str)>,
) -> String {
    if rows.len() == 0 {
        return format!("{all}\n");
    }
    let mut table = Table::new(&["KEY", "RESULT"]);
    for (key, result) in rows {
        table.row([key.to_string(), result.to_owned()]);
    }
    table.text()
}
