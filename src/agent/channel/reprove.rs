//! Which sessions the rpc `reprove` is about.
//!
//! *Promises*: calls within the model's limits. *Refuses*: nothing.
//! *Caller's duty*: none. *Standard*: `shunt-offload`, `docs/control.md`.

use crate::api::offload::ENTRIES_MAX;
use crate::api::reprove::ReproveInput;
use crate::api::session::SessionKey;

/// Which sessions are to be proved again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reprove {
    /// Every one that was not vouched for.
    All,
    /// Those of these keys.
    Keys(Vec<SessionKey>),
}

/// The calls that `which` takes.
pub(super) fn inputs(which: Reprove, epoch: u64) -> Vec<ReproveInput> {
    let input = |key, all| ReproveInput {
        epoch: Some(epoch),
        key,
        all,
        ..ReproveInput::default()
    };
    match which {
        Reprove::All => vec![input(Vec::new(), true)],
        Reprove::Keys(keys) => keys
            .chunks(ENTRIES_MAX)
            .map(|keys| input(keys.to_vec(), false))
            .collect(),
    }
}
