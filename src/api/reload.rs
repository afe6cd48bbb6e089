//! The rpc `reload`: has the backend read its configuration file again.
//!
//! *Promises*: a change for each element, vNIC and shared uplink that came or went, in the
//! order in which they were made; one that failed says why and takes no other with it.
//! *Refuses*: a file that is not sound, or that changes what only a restart can: nothing is
//! done then. *Caller's duty*: none.
//! *Standard*: RFC 8040 section 4.4.2 (operations), RFC 7951.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::ErrorEntry;

/// Output of `reload`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReloadOutput {
    /// What was changed; nothing if the file says what runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub change: Vec<Change>,
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// What kind of thing.
    pub kind: Kind,
    /// Its name; a vNIC's behind its element's and a slash.
    pub name: String,
    /// What was to become of it.
    pub action: Action,
    /// Why that failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorEntry>,
}

/// What can come and go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An element with its vNICs.
    Element,
    /// A vNIC with its uplink.
    Vnic,
    /// A device that vNICs share.
    SharedUplink,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is served from now on.
    Add,
    /// It is gone, and the sessions that used it with it.
    Remove,
    /// It goes on with other settings.
    Change,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Element => "element",
            Self::Vnic => "vNIC",
            Self::SharedUplink => "shared uplink",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Change => "change",
        })
    }
}
