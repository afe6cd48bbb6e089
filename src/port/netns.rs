//! Work inside a named network namespace.
//!
//! *Promises*: the calling thread never leaves its own namespace; the work runs on a
//! helper thread that ends with it. Descriptors made there stay in that namespace.
//! *Refuses*: names that are not one plain file name under [`NETNS_DIR`].
//! *Caller's duty*: the work is short and waits for nothing; the caller waits for it.
//! *Standard*: namespaces(7), setns(2), ip-netns(8).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Where `ip netns add` keeps the namespaces' names.
pub const NETNS_DIR: &str = "/run/netns";

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The name could lead out of [`NETNS_DIR`].
    #[error("`{0}` is no network namespace name: give the name as `ip netns list` shows it")]
    InvalidName(String),
    /// There is no such namespace.
    #[error("network namespace `{0}` does not exist: create it with `ip netns add {0}`")]
    Missing(String),
    /// The process may not open or enter it.
    #[error(
        "no permission to enter network namespace `{0}`: run shunt as root or with \
         CAP_SYS_ADMIN, or start it inside with `ip netns exec {0} shunt ...` and leave netns out"
    )]
    Permission(String),
    /// The file of that name is there but is no network namespace.
    #[error(
        "{NETNS_DIR}/{0} is no network namespace (left over from a crash or a reboot?): \
         remove it with `ip netns del {0}`, then `ip netns add {0}`"
    )]
    NotANamespace(String),
    /// Anything else the system said.
    #[error("cannot enter network namespace `{name}`")]
    System {
        /// The namespace.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether `name` is one plain file name, so that it names a namespace and nothing else.
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.bytes().any(|byte| byte == b'/' || byte == 0)
}

/// Runs `work` inside the network namespace `name` and returns what it returned.
/// A panic in it goes on in the caller.
pub fn run<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    if !is_valid_name(name) {
        return Err(NetnsError::InvalidName(name.to_owned()));
    }
    let namespace =
        File::open(Path::new(NETNS_DIR).join(name)).map_err(|error| explain(name, error))?;
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || enter(&namespace).map(|()| work()))
            .map_err(|source| NetnsError::System {
                name: name.to_owned(),
                source,
            })?;
        match helper.join() {
            Ok(result) => result.map_err(|error| explain(name, error)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Moves the calling thread, for good, into `namespace`.
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes two integers; the borrow keeps the descriptor open for the call.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn explain(name: &str, error: io::Error) -> NetnsError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::ENOENT) => NetnsError::Missing(name),
        Some(libc::EPERM | libc::EACCES) => NetnsError::Permission(name),
        Some(libc::EINVAL) => NetnsError::NotANamespace(name),
        _ => NetnsError::System {
            name,
            source: error,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "a/b", "/proc/1/ns/net", "a\0b"] {
            assert!(matches!(
                run(name, || ()),
                Err(NetnsError::InvalidName(refused)) if refused == name
            ));
        }
    }

    #[test]
    fn a_missing_namespace_is_named_with_the_command_that_makes_it() {
        let error = run("shunt-no-such-netns", || ()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("ip netns add shunt-no-such-netns")
        );
    }
}
