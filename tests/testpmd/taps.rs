//! Elements whose uplinks are taps in a namespace of their own.

use crate::rig::quiet;
use crate::support::Dir;
use crate::support::netns::Netns;
use crate::support::shunt::Shunt;
use crate::traffic::Wire;

/// A vNIC: its name and MAC address.
pub type Vnic = (&'static str, &'static str);

/// A backend and the hosts of its elements.
pub struct Taps {
    pub shunt: Shunt,
    pub dir: Dir,
    hosts: Vec<Netns>,
}

impl Taps {
    /// Elements `e0`, `e1`…: their vNICs have sockets `e0-NAME`… and taps `tap-NAME`.
    pub fn start(elements: &[&[Vnic]]) -> Self {
        Self::with_workers(1, elements)
    }

    /// The same served by `workers` workers, each vNIC with as many queue pairs.
    pub fn with_workers(workers: usize, elements: &[&[Vnic]]) -> Self {
        let hosts: Vec<Netns> = elements.iter().map(|_| quiet("host")).collect();
        let mut config =
            format!("[backend]\ncontrol = \"{{dir}}/control.sock\"\nworkers = {workers}\n");
        for (number, (vnics, host)) in elements.iter().zip(&hosts).enumerate() {
            config += &format!("[[element]]\nname = \"e{number}\"\n");
            for (name, mac) in *vnics {
                config += &format!(
                    "[[element.vnic]]\nname = \"{name}\"\nmac = \"{mac}\"\n\
                     queue-pairs = {workers}\n\
                     socket = \"{{dir}}/e{number}-{name}\"\n\
                     uplink = {{ type = \"tap\", name = \"tap-{name}\", netns = \"{}\" }}\n",
                    host.name()
                );
            }
        }
        let dir = Dir::new();
        let shunt = Shunt::start(&dir, &config);
        Self { shunt, dir, hosts }
    }

    /// The host side of a vNIC's uplink.
    pub fn wire(&self, element: usize, vnic: &str) -> Wire {
        Wire::open(&self.hosts[element], &format!("tap-{vnic}"))
    }

    /// A vNIC's socket.
    pub fn socket(&self, element: usize, vnic: &str) -> std::path::PathBuf {
        self.dir.file(&format!("e{element}-{vnic}"))
    }

    /// `shunt ARGUMENTS --element … --json`: exit code and what it printed.
    pub fn cli(&self, element: usize, arguments: &[&str]) -> (i32, serde_json::Value) {
        let (socket, element) = (self.dir.file("control.sock"), format!("e{element}"));
        let mut argv = arguments.to_vec();
        argv.extend(["--json", "--element", &element]);
        argv.extend(["--socket", socket.to_str().unwrap()]);
        let output = self.shunt.cli(&argv);
        let printed = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code().unwrap(), printed)
    }
}
