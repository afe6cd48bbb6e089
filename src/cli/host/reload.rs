//! `shunt reload`.

use super::args::Connect;
use super::error::HostError;
use super::print_as;
use crate::api::Client;
use crate::api::reload::ReloadOutput;
use crate::cli::Ending;
use crate::cli::table::Table;

/// Has the configuration read again and tells what that changed.
pub(super) async fn reload(connect: &Connect) -> Result<Ending, HostError> {
    let output = Client::new(&connect.socket).reload().await?;
    print_as(connect, &output, changes)?;
    let failed = output.change.iter().any(|change| change.error.is_some());
    Ok(if failed {
        Ending::Refused
    } else {
        Ending::Done
    })
}

fn changes(output: &ReloadOutput) -> String {
    if output.change.is_empty() {
        return "nothing has changed\n".to_owned();
    }
    let mut table = Table::new(&["ACTION", "KIND", "NAME", "RESULT"]);
    for change in &output.change {
        let result = match &change.error {
            None => "done".to_owned(),
            Some(error) => error.error_message.clone(),
        };
        let (action, kind) = (change.action.to_string(), change.kind.to_string());
        table.row([action, kind, change.name.clone(), result]);
    }
    table.text()
}
