//! The rpc `reprove`: sessions wait again for the guest's own forwarding.
//!
//! *Promises*: calls within the model's limits. *Refuses*: nothing.
//! *Caller's duty*: none. *Standard*: `shunt-offload`, `docs/control.md`.

use serde::{Deserialize, Serialize};

use crate::api::SessionKey;
use crate::api::offload::ENTRIES_MAX;
use crate::api::wire::{u64_text, u64_text_option};

/// Which sessions are to be proved again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reprove {
    /// Every one that was not vouched for.
    All,
    /// Those of these keys.
    Keys(Vec<SessionKey>),
}

/// Input of `reprove`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ReproveInput {
    #[serde(with = "u64_text_option", skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key: Vec<SessionKey>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    all: bool,
}

/// Output of `reprove`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReproveOutput {
    /// How many sessions wait for proof now.
    #[serde(with = "u64_text")]
    pub reproved: u64,
    /// One per key, in order; empty for all.
    #[serde(default)]
    pub result: Vec<ReproveResult>,
}

/// What became of one key.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ReproveResult {
    /// The key.
    pub key: SessionKey,
    /// What became of it.
    pub result: ReproveStatus,
}

/// What became of a session that is to be proved again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReproveStatus {
    /// It waits for proof.
    Pending,
    /// An operator has vouched for it: it goes on as it was.
    Vouched,
    /// It is not there.
    Absent,
}

/// The calls that `which` takes.
pub(super) fn inputs(which: Reprove, epoch: u64) -> Vec<ReproveInput> {
    let input = |key, all| ReproveInput {
        epoch: Some(epoch),
        key,
        all,
    };
    match which {
        Reprove::All => vec![input(Vec::new(), true)],
        Reprove::Keys(keys) => keys
            .chunks(ENTRIES_MAX)
            .map(|keys| input(keys.to_vec(), false))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_split_into_calls_and_all_is_one() {
        let text = |input: &ReproveInput| serde_json::to_string(input).unwrap();
        let all = inputs(Reprove::All, 7);
        assert_eq!(
            all.iter().map(text).collect::<Vec<_>>(),
            [r#"{"epoch":"7","all":true}"#]
        );
        let keys = (0..ENTRIES_MAX + 1).map(|number| format!("k{number}").parse().unwrap());
        let calls = inputs(Reprove::Keys(keys.collect()), 7);
        assert_eq!(calls.len(), 2);
        assert_eq!(text(&calls[1]), r#"{"epoch":"7","key":["k1024"]}"#);
        assert_eq!(inputs(Reprove::Keys(Vec::new()), 7), []);
    }
}
