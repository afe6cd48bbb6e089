//! Errors of the configuration, with the line they are about.
//!
//! *Promises*: the text says where, what, and what to do; a system's word is the source.
//! *Refuses*: nothing.
//! *Caller's duty*: to show the chain of sources.
//! *Standard*: none.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::packet::MacAddr;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: name an existing file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where.
        place: Place,
        /// What, and what to do.
        problem: Problem,
    },
    /// The host cannot tell how much memory it has.
    #[error("cannot read MemAvailable from /proc/meminfo: is /proc mounted?")]
    MemoryUnknown {
        /// What the system said.
        source: io::Error,
    },
    /// The tables would not fit.
    #[error(
        "the tables of {sessions} sessions need {} MiB, and {} MiB of memory are available: \
         lower `sessions` of some element, or give the host more memory",
        needed.div_ceil(MIB), available / MIB
    )]
    Memory {
        /// Sum of all quotas.
        sessions: u64,
        /// Bytes the tables need.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
}

const MIB: u64 = 1_024 * 1_024;

/// A line of the configuration; shown as `FILE:LINE`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file, if it was one.
    pub file: Option<PathBuf>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}:{}", file.display(), self.line),
            None => write!(f, "line {}", self.line),
        }
    }
}

/// What is wrong at a [`Place`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// A line that is no TOML, an unknown or missing key, or a value out of its limits.
    #[error("`{text}`: {message}")]
    Line {
        /// The line.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// Nothing to serve.
    #[error("no elements: add an [[element]] with its vNICs (see docs/config.md)")]
    NoElements,
    /// An element without any way in.
    #[error("element `{0}` has no vNICs: add an [[element.vnic]] below it")]
    NoVnics(String),
    /// More vNICs than an element may have.
    #[error("element `{element}` has {count} vNICs: {max} are the most", max = super::VNICS_MAX)]
    TooManyVnics {
        /// The element.
        element: String,
        /// How many it has.
        count: usize,
    },
    /// Two elements of one name.
    #[error("there is another element `{0}`: give each a name of its own")]
    DuplicateElement(String),
    /// Two vNICs of one name.
    #[error("element `{element}` has another vNIC `{vnic}`: give each a name of its own")]
    DuplicateVnic {
        /// The element.
        element: String,
        /// The name used twice.
        vnic: String,
    },
    /// Two vNICs of an element with one address.
    #[error(
        "{mac} is the address of vNIC `{other}` of the same element too: give each its own, here \
         and in the VMM"
    )]
    DuplicateMac {
        /// The address.
        mac: MacAddr,
        /// The vNIC that has it too.
        other: String,
    },
    /// Two vNICs of an element at one place.
    #[error(
        "`{path}` is where the guest sees vNIC `{other}` too: `lspci` there, or \
         /sys/class/net/NAME/device, tells which is which"
    )]
    DuplicateBusPath {
        /// The place.
        path: String,
        /// The vNIC that has it too.
        other: String,
    },
    /// Two uses of one socket path.
    #[error("{} is the socket of {other} already: choose another path", path.display())]
    DuplicateSocket {
        /// The path, normalised.
        path: PathBuf,
        /// Who uses it.
        other: String,
    },
    /// Two vNICs with one tap or other interface.
    #[error("{what} `{name}` is the uplink of {other} already: choose another")]
    DuplicateInterface {
        /// `tap` or `interface`.
        what: &'static str,
        /// The interface, with its namespace.
        name: String,
        /// Who uses it.
        other: String,
    },
    /// Two shields of one name.
    #[error("element `{element}` has another shield `{shield}`: give each a name of its own")]
    DuplicateShield {
        /// The element.
        element: String,
        /// The name used twice.
        shield: String,
    },
    /// A shield for a vNIC that is not in the file.
    #[error("element `{element}` has no vNIC `{vnic}`: add it, or name one that there is")]
    ShieldVnic {
        /// The element.
        element: String,
        /// The vNIC named.
        vnic: String,
    },
    /// More shields than an element may have.
    #[error("element `{element}` has {count} shields: {max} are the most", max = super::SHIELDS_MAX)]
    TooManyShields {
        /// The element.
        element: String,
        /// How many it has.
        count: usize,
    },
    /// Two shared uplinks of one name.
    #[error("there is another shared uplink `{0}`: give each a name of its own")]
    DuplicateShared(String),
    /// A shared uplink on a shared uplink.
    #[error("a shared uplink needs a device of its own: give it a type of tap, xdp or vhost-user")]
    SharedOnShared,
    /// A vNIC on a shared uplink that is not in the file.
    #[error("there is no [[shared-uplink]] named `{0}`: add it, or name one that there is")]
    UnknownShared(String),
    /// Two vNICs with one address in one VLAN of a shared uplink.
    #[error(
        "{mac} is {other}'s address in the same VLAN of shared uplink `{device}`: give each vNIC \
         its own address or VLAN"
    )]
    SharedAddress {
        /// The shared uplink.
        device: String,
        /// The address.
        mac: MacAddr,
        /// Who has it.
        other: String,
    },
    /// An MTU larger than that of the shared uplink.
    #[error(
        "an MTU of {mtu} on shared uplink `{device}`, which has {max}: lower it, or raise that one's"
    )]
    SharedMtu {
        /// What was asked for.
        mtu: u16,
        /// The shared uplink.
        device: String,
        /// Its MTU.
        max: u16,
    },
    /// An MTU that the vNIC could have, but not its tap.
    #[error("an MTU of {mtu} with a tap as uplink: a tap takes at most {max}", max = crate::port::tap::MTU_MAX)]
    TapMtu {
        /// What was asked for.
        mtu: u16,
    },
    /// An MTU that the vNIC could have, but not AF_XDP.
    #[error("an MTU of {mtu} with AF_XDP as uplink: it takes at most {max}", max = crate::port::xdp::MTU_MAX)]
    XdpMtu {
        /// What was asked for.
        mtu: u16,
    },
}

/// A step on the way to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Key(&'static str),
    Index(usize),
}

impl ConfigError {
    /// An error of the TOML reader, at its line.
    pub(super) fn from_toml(text: &str, file: Option<&Path>, error: &toml::de::Error) -> Self {
        let line = line_at(text, error.span().map_or(0, |span| span.start));
        Self::Invalid {
            place: place(file, line),
            problem: Problem::Line {
                text: text.lines().nth(line - 1).unwrap_or("").trim().to_owned(),
                message: error.message().replace('\n', " "),
            },
        }
    }

    /// `problem` with the value at `key`, or the nearest thing around it that is there.
    pub(super) fn at_key(text: &str, file: Option<&Path>, key: &[Step], problem: Problem) -> Self {
        Self::Invalid {
            place: place(file, line_at(text, offset_of(text, key))),
            problem,
        }
    }
}

fn place(file: Option<&Path>, line: usize) -> Place {
    Place {
        file: file.map(Path::to_owned),
        line,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// Where the value at `key` starts; read anew, because this is for errors only.
fn offset_of(text: &str, key: &[Step]) -> usize {
    let Ok(table) = DeTable::parse(text) else {
        return 0;
    };
    let root = Spanned::new(0..0, DeValue::Table(table.into_inner()));
    let mut at = &root;
    let mut offset = 0;
    for step in key {
        let next = match step {
            Step::Key(name) => at.get_ref().get(*name),
            Step::Index(number) => at.get_ref().get(*number),
        };
        let Some(next) = next else { break };
        at = next;
        offset = at.span().start;
    }
    offset
}
