//! Which serial port leads to the host.
//!
//! *Promises*: the port that was configured; otherwise the one of the name [`NAME`], by udev's
//! link or, where no udev runs, by what sysfs says.
//! *Refuses*: nothing. *Caller's duty*: opens it. *Standard*: Linux
//! `Documentation/ABI/testing/sysfs-class-virtio-ports` (`name`); `docs/serial.md`.

use std::path::{Path, PathBuf};

/// The port's name, as it is given to QEMU.
pub const NAME: &str = "org.shunt.offload.0";

/// Where udev links ports by their names.
const LINKS: &str = "/dev/virtio-ports";
/// Where the kernel tells ports and their names.
const CLASS: &str = "/sys/class/virtio-ports";
/// Where their devices are.
const DEVICES: &str = "/dev";

/// Which port.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum PortChoice {
    /// The one of the name [`NAME`].
    #[default]
    Named,
    /// This device, or unix socket.
    At(PathBuf),
}

/// There is no port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "this machine has no serial port {NAME}: give it one (docs/relay.md, QEMU), or name \
     another with `port` in [serial]"
)]
pub struct NoPort;

impl PortChoice {
    /// Where it is now.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn find(&self) -> Result<PathBuf, NoPort> {
        match self {
            Self::At(path) => Ok(path.clone()),
            Self::Named => named(Path::new(LINKS), Path::new(CLASS), Path::new(DEVICES)),
        }
    }
}

fn named(links: &Path, class: &Path, devices: &Path) -> Result<PathBuf, NoPort> {
    let link = links.join(NAME);
    if link.exists() {
        return Ok(link);
    }
    let ports = std::fs::read_dir(class).map_err(|_none| NoPort)?;
    ports
        .flatten()
        .find(|port| {
            std::fs::read_to_string(port.path().join("name"))
                .is_ok_and(|name| name.trim_end() == NAME)
        })
        .map(|port| devices.join(port.file_name()))
        .ok_or(NoPort)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_udev_s_link_or_by_its_name_in_sysfs() {
        let dir = tempfile::tempdir().unwrap();
        let (links, class) = (dir.path().join("links"), dir.path().join("class"));
        let find = || named(&links, &class, Path::new("/dev"));
        assert_eq!(find(), Err(NoPort));
        for (port, name) in [
            ("vport0p1", "org.qemu.guest_agent.0"),
            ("vport1p2", NAME),
            ("vport1p3", "org.shunt.offload.01"),
        ] {
            std::fs::create_dir_all(class.join(port)).unwrap();
            std::fs::write(class.join(port).join("name"), format!("{name}\n")).unwrap();
        }
        // One that has no name, as hvc0's.
        std::fs::create_dir(class.join("vport0p0")).unwrap();
        assert_eq!(find(), Ok("/dev/vport1p2".into()));
        std::fs::create_dir(&links).unwrap();
        std::fs::write(links.join(NAME), "").unwrap();
        assert_eq!(find(), Ok(links.join(NAME)));
        let given = PortChoice::At("/tmp/x".into());
        assert_eq!(given.find(), Ok("/tmp/x".into()));
    }
}
