//! What the namespace's sysctls say.
//!
//! *Promises*: a file that is not there, or not understood, is `false`.
//! *Refuses*: nothing.
//! *Caller's duty*: none.
//! *Standard*: Documentation/networking/nf_conntrack-sysctl.rst, ip-sysctl.rst.

use std::fs;
use std::io;
use std::path::Path;

const ROOT: &str = "/proc/sys/net";
const ACCOUNTING: &str = "netfilter/nf_conntrack_acct";
const EVENTS: &str = "netfilter/nf_conntrack_events";
const LIBERAL: &str = "netfilter/nf_conntrack_tcp_be_liberal";

/// Which connections tell events (`nf_conntrack_events`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventMode {
    /// None.
    Never,
    /// All.
    Always,
    /// Those that began while somebody listened: of the others not even the end is told.
    WhileHeard,
}

/// Settings that the agent depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// New connections have counters (`nf_conntrack_acct`).
    pub accounting: bool,
    /// Which connections tell events.
    pub events: EventMode,
    /// TCP's window checks let everything pass (`nf_conntrack_tcp_be_liberal`).
    pub liberal: bool,
    /// IPv4 is forwarded.
    pub forwarding4: bool,
    /// IPv6 is forwarded.
    pub forwarding6: bool,
}

/// Reads them, of the thread's network namespace.
pub(super) fn read() -> Settings {
    read_from(Path::new(ROOT))
}

fn read_from(root: &Path) -> Settings {
    let number = |path: &str| {
        fs::read_to_string(root.join(path))
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
    };
    let is_set = |path| number(path).unwrap_or_default() != 0;
    Settings {
        accounting: is_set(ACCOUNTING),
        events: match number(EVENTS) {
            Some(0) => EventMode::Never,
            Some(2) => EventMode::WhileHeard,
            // Before it could be chosen all told events.
            _ => EventMode::Always,
        },
        liberal: is_set(LIBERAL),
        forwarding4: is_set("ipv4/ip_forward"),
        forwarding6: is_set("ipv6/conf/all/forwarding"),
    }
}

/// Has connections that begin from now on counted.
pub(super) fn enable_accounting() -> io::Result<()> {
    fs::write(Path::new(ROOT).join(ACCOUNTING), "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_off_and_events_are_as_they_were_before_the_choice() {
        let root = tempfile::tempdir().unwrap();
        let nothing = Settings {
            accounting: false,
            events: EventMode::Always,
            liberal: false,
            forwarding4: false,
            forwarding6: false,
        };
        assert_eq!(read_from(root.path()), nothing);

        fs::create_dir(root.path().join("netfilter")).unwrap();
        fs::write(root.path().join(ACCOUNTING), "1\n").unwrap();
        fs::write(root.path().join(EVENTS), "2\n").unwrap();
        fs::write(root.path().join(LIBERAL), "what\n").unwrap();
        let some = Settings {
            accounting: true,
            events: EventMode::WhileHeard,
            ..nothing
        };
        assert_eq!(read_from(root.path()), some);
    }
}
