//! Peers that crash while traffic runs: it resumes.

use std::time::Duration;

use crate::SOON;
use crate::rig::{Listener, Rig, hit, hit_back, missed, missed_back};
use crate::support::eventually;
use crate::support::testpmd::Testpmd;
use crate::traffic::{Datagram, Stream};

const PROPERTIES: &str = "mrg_rxbuf=1,in_order=0";
const GAP: Duration = Duration::from_millis(2);

/// One stream each by miss and by hit, in both directions.
struct Streams {
    miss: [(Stream, Datagram); 2],
    hit: [(Stream, Datagram); 2],
}

impl Streams {
    fn start(rig: &Rig) -> Self {
        let stream = |interface: &str, (sent, received): (Datagram, Datagram)| {
            (Stream::start(&rig.far, interface, sent, GAP), received)
        };
        let same = |datagram: Datagram| (datagram.clone(), datagram);
        Self {
            miss: [
                stream("net-a", same(missed(0, 200))),
                stream("net-b", same(missed_back(0, 200))),
            ],
            hit: [
                stream("net-a", hit(1, 0, 200)),
                stream("net-b", hit_back(1, 0, 200)),
            ],
        }
    }

    /// What is sent from now on arrives through the guest.
    fn misses_arrive(&self, rig: &Rig, when: &str) {
        arrive(&self.miss, rig, &format!("misses arrive {when}"));
    }

    /// What is sent from now on arrives around the guest.
    fn hits_arrive(&self, rig: &Rig, when: &str) {
        arrive(&self.hit, rig, &format!("hits arrive {when}"));
    }
}

fn arrive(streams: &[(Stream, Datagram); 2], rig: &Rig, what: &str) {
    for ((stream, received), wire) in streams.iter().zip([&rig.b, &rig.a]) {
        wire.expect_after(received, stream.sent(), what);
    }
}

fn connected(rig: &Rig, side: &str) -> bool {
    let ports = rig.ports();
    ["a", "b"]
        .iter()
        .all(|vnic| crate::rig::device(&ports, vnic, side)["connected"] == true)
}

fn disconnected(rig: &Rig, side: &str) -> bool {
    let ports = rig.ports();
    ["a", "b"]
        .iter()
        .all(|vnic| crate::rig::device(&ports, vnic, side)["connected"] == false)
}

#[test]
fn traffic_resumes_after_testpmd_was_killed_and_started_again() {
    let rig = Rig::start(Listener::Shunt);
    rig.offload();
    let mut guest = rig.forward(rig.guest(1, PROPERTIES));
    let mut uplinks = rig.forward(rig.uplinks(1, PROPERTIES));
    rig.wait_running(1);
    let streams = Streams::start(&rig);
    streams.misses_arrive(&rig, "at first");
    streams.hits_arrive(&rig, "at first");

    guest.kill9();
    eventually(SOON, "the guest is seen to be gone", || {
        disconnected(&rig, "guest")
    });
    streams.hits_arrive(&rig, "without a guest");
    let _guest = rig.forward(rig.guest(1, PROPERTIES));
    streams.misses_arrive(&rig, "after the guest was killed");
    streams.hits_arrive(&rig, "after the guest was killed");

    uplinks.kill9();
    eventually(SOON, "the uplinks are seen to be gone", || {
        disconnected(&rig, "uplink")
    });
    let _uplinks = rig.forward(rig.uplinks(1, PROPERTIES));
    streams.misses_arrive(&rig, "after the uplinks were killed");
    streams.hits_arrive(&rig, "after the uplinks were killed");
}

/// virtio-user looks after a lost backend when it is asked for its link.
fn look_at_links(testpmd: &mut Testpmd) {
    testpmd.command("show port summary all");
}

#[test]
fn traffic_resumes_after_shunt_was_killed_and_started_again() {
    let mut rig = Rig::start(Listener::Testpmd);
    let mut guest = rig.forward(rig.guest(1, PROPERTIES));
    let mut uplinks = rig.forward(rig.uplinks(1, PROPERTIES));
    rig.wait_running(1);
    rig.offload();
    let streams = Streams::start(&rig);
    streams.misses_arrive(&rig, "at first");
    streams.hits_arrive(&rig, "at first");

    rig.shunt.restart();
    eventually(SOON, "all testpmds are connected again", || {
        look_at_links(&mut guest);
        look_at_links(&mut uplinks);
        connected(&rig, "guest") && connected(&rig, "uplink")
    });
    streams.misses_arrive(&rig, "after shunt was killed");
    // Sessions are soft state: whoever asked for them asks again.
    rig.offload();
    streams.hits_arrive(&rig, "after shunt was killed");
}
