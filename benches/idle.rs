//! What does an idle backend cost?
//!
//! *Held constant*: two elements with two vNICs each, all of them connected (vhost-user), no
//! traffic. *Peers*: none. *Expected before measuring*: nothing at all, since every thread waits.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench may be blunt"
)]

mod report;
#[path = "../tests/support/mod.rs"]
mod support;

use std::fmt::Write;
use std::time::Duration;

use report::{Report, cpu_seconds};
use support::shunt::Shunt;
use support::testpmd::Testpmd;
use support::{Dir, now, pause};

fn main() {
    let dir = Dir::new();
    let mut config = String::from("[backend]\ncontrol = \"{dir}/control.sock\"\n");
    let mut testpmd = Testpmd::build("io");
    for element in ["a", "b"] {
        writeln!(config, "[[element]]\nname = \"{element}\"").unwrap();
        for (number, vnic) in ["lan", "wan"].into_iter().enumerate() {
            writeln!(
                config,
                "[[element.vnic]]\nname = \"{vnic}\"\nsocket = \"{{dir}}/{element}-{vnic}.sock\"\n\
                 mac = \"52:54:00:00:00:0{number}\"\nuplink = {{ type = \"vhost-user\", \
                 socket = \"{{dir}}/{element}-{vnic}-uplink.sock\" }}"
            )
            .unwrap();
            let socket = dir.file(&format!("{element}-{vnic}.sock"));
            testpmd = testpmd.virtio_user(&socket, "queues=1");
        }
    }
    let mut shunt = Shunt::start(&dir, &config);
    let _peer = testpmd.start(&dir);
    pause(Duration::from_secs(1));
    let pid = shunt.process().id();
    let (began, cpu) = (now(), cpu_seconds(pid));
    pause(Duration::from_secs(10));
    let share = (cpu_seconds(pid) - cpu) / began.elapsed().as_secs_f64();
    Report::new("idle").line("elements=2", share, "cores", None);
}
