//! Why an AF_XDP uplink cannot be opened, and what to do about it.
//!
//! *Promises*: each text names the interface and the command or key that helps.
//! *Refuses*: nothing. *Caller's duty*: to show the chain of sources.
//! *Standard*: none.

use std::io;

use super::super::netns::NetnsError;
use super::{MTU_MAX, QUEUES_MAX};

/// Why an uplink could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// No interface can have the name.
    #[error(
        "`{0}` is no interface name: give 1 to 15 printable ASCII characters other than `/` and `:`"
    )]
    InvalidName(String),
    /// A number of queues out of range.
    #[error("interface `{name}`: {queues} queues; give 1 to {QUEUES_MAX}")]
    InvalidQueues {
        /// The interface.
        name: String,
        /// What was asked for.
        queues: u16,
    },
    /// The namespace could not be entered.
    #[error("interface `{name}`: its network namespace cannot be used")]
    Netns {
        /// The interface.
        name: String,
        /// Why not.
        source: NetnsError,
    },
    /// There is no such interface.
    #[error(
        "interface `{name}` does not exist{place}: an uplink of type xdp takes one that is \
         there (`{command}` shows them)"
    )]
    Missing {
        /// The interface.
        name: String,
        /// Where it was looked for.
        place: String,
        /// The command that lists interfaces.
        command: String,
    },
    /// An interface without Ethernet frames.
    #[error(
        "interface `{name}` is no Ethernet: an uplink of type xdp takes network cards and veths"
    )]
    NotEthernet {
        /// The interface.
        name: String,
    },
    /// A tap, for which there is a better way.
    #[error("interface `{name}` is a tap: give it as `type = \"tap\"`, `name = \"{name}\"`")]
    Tap {
        /// The interface.
        name: String,
    },
    /// Some receive queues would be left out, or there are fewer.
    #[error(
        "interface `{name}` has {has} receive queue(s) and {asked} are asked for; all must be \
         taken, or frames of the others would be lost: set `queues = {has}`, or \
         `{command}`"
    )]
    Queues {
        /// The interface.
        name: String,
        /// How many it has.
        has: u32,
        /// How many were asked for.
        asked: u16,
        /// The command that changes them.
        command: String,
    },
    /// Tags would be taken out of frames and lost.
    #[error(
        "interface `{name}` takes VLAN tags out of frames, and AF_XDP would not see them: \
         turn that off with `{command}`"
    )]
    VlanStripping {
        /// The interface.
        name: String,
        /// The command.
        command: String,
    },
    /// Frames that fit no chunk of memory.
    #[error(
        "interface `{name}` has an MTU of {mtu} bytes: AF_XDP takes at most {MTU_MAX}; \
         lower it with `{command}`"
    )]
    Mtu {
        /// The interface.
        name: String,
        /// Its MTU.
        mtu: u32,
        /// The command.
        command: String,
    },
    /// No right to do it.
    #[error(
        "no permission to use AF_XDP on interface `{name}`: run shunt as root, or with \
         CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"
    )]
    Permission {
        /// The interface.
        name: String,
    },
    /// Another program is attached.
    #[error(
        "interface `{name}` has an XDP program already: stop who holds it (another shunt? \
         `ip link show {name}`, `bpftool net` tell), or remove one that was left behind with \
         `{command}`"
    )]
    ProgramBusy {
        /// The interface.
        name: String,
        /// The command.
        command: String,
    },
    /// Another AF_XDP socket has the queue.
    #[error(
        "receive queue {queue} of interface `{name}` is in use by another AF_XDP socket: stop \
         that process, or choose another interface"
    )]
    QueueBusy {
        /// The interface.
        name: String,
        /// The queue.
        queue: u16,
    },
    /// Zero-copy was demanded and cannot be had.
    #[error(
        "the driver of interface `{name}` has no zero-copy AF_XDP: set `mode = \"auto\"` or \
         `mode = \"copy\"`"
    )]
    NoZeroCopy {
        /// The interface.
        name: String,
    },
    /// The memory may not be locked.
    #[error(
        "interface `{name}`: the frames' memory may not be locked: run shunt with CAP_IPC_LOCK \
         or raise its limit (`ulimit -l`, systemd: `LimitMEMLOCK=infinity`)"
    )]
    Memory {
        /// The interface.
        name: String,
    },
    /// The driver refuses the program.
    #[error(
        "the driver of interface `{name}` refuses an XDP program; for a veth, its peer must \
         have an MTU of at most {MTU_MAX} and no more transmit queues than this end has \
         receive queues (`ethtool -L`); `dmesg` may tell more"
    )]
    Refused {
        /// The interface.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A step failed for a reason of its own.
    #[error("interface `{name}`: cannot {step}")]
    Step {
        /// The interface.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
