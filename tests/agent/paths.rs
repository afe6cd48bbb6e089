//! Connections on every kind of path, that nobody asks for but the agent.

use std::net::SocketAddr;
use std::time::Duration;

use crate::rig::{
    CLIENT, CLIENT_6, FORWARDED, Rig, SERVER, SERVER_6, SOON, TAGGED, WAN, endpoint, number,
};
use crate::support::netns::Netns;
use crate::support::tcp::{Direction, TcpPlan, TcpTransfer};
use crate::support::udp::{Reply, UdpReceiver, UdpSender};
use crate::support::{at, eventually};

/// Fast enough to be worth an offload, slow enough that little passes until then.
const SLOW: u64 = 2_000_000;
const SLOW_GAP: Duration = Duration::from_millis(20);
/// How much each transfer moves at least.
const BYTES: u64 = 800_000_000;
const DATAGRAMS: u64 = 30_000;
const SIZE: usize = 600;
/// Datagrams without an echo at a time: no socket's queue is overrun.
const OUTSTANDING: u64 = 64;
const TRANSFER: Duration = Duration::from_secs(90);
/// What the guest may see of a transfer.
const SHARE_MAX: f64 = 0.01;

/// A kind of path.
struct Way<'r> {
    name: &'static str,
    from: &'r Netns,
    source: &'static str,
    to: &'r Netns,
    /// Where the server listens, and where the client connects to.
    listens: (&'static str, u16),
    connects: (&'static str, u16),
    /// The client as the server sees it.
    appears: &'static str,
    direction: Direction,
}

/// `port` is the servers'; that of the forwarded one is the guest's choice.
fn ways(rig: &Rig, port: u16) -> [Way<'_>; 4] {
    let masquerade = Way {
        name: "masquerade",
        from: &rig.client,
        source: CLIENT,
        to: &rig.server,
        listens: (SERVER, port),
        connects: (SERVER, port),
        appears: WAN,
        direction: Direction::Upload,
    };
    [
        Way {
            name: "VLAN subinterface",
            from: &rig.tagged,
            source: TAGGED,
            listens: (SERVER, port + 1),
            connects: (SERVER, port + 1),
            direction: Direction::Download,
            ..masquerade
        },
        Way {
            name: "port forward",
            from: &rig.server,
            source: SERVER,
            to: &rig.client,
            listens: (CLIENT, FORWARDED),
            connects: (WAN, FORWARDED),
            appears: SERVER,
            direction: Direction::Download,
        },
        Way {
            name: "IPv6 without NAT",
            source: CLIENT_6,
            listens: (SERVER_6, port),
            connects: (SERVER_6, port),
            appears: CLIENT_6,
            ..masquerade
        },
        masquerade,
    ]
}

impl Way<'_> {
    fn connects(&self) -> SocketAddr {
        at(&endpoint(self.connects.0, self.connects.1))
    }

    fn listens(&self) -> SocketAddr {
        at(&endpoint(self.listens.0, self.listens.1))
    }
}

/// TCP on all paths at once: each is offloaded, arrives intact, and the guest sees under 1 %.
pub fn tcp_is_offloaded_on_every_path(rig: &mut Rig) {
    let before = rig.packets();
    let transfers = ways(rig, 8100).map(|way| {
        let plan = TcpPlan {
            listen: way.listens(),
            connect: way.connects(),
            direction: way.direction,
            // Until it is ended below, one after another.
            bytes: u64::MAX,
            rate: Some(SLOW),
        };
        let (name, to, appears) = (way.name, way.connects(), way.appears);
        (
            name,
            to,
            appears,
            TcpTransfer::start(way.from, way.to, plan),
        )
    });
    for (_, to, _, transfer) in &transfers {
        rig.wait_offloaded(*to);
        transfer.unpace();
    }
    for (name, to, appears, mut transfer) in transfers {
        transfer.wait_moved(BYTES, TRANSFER);
        let seen = rig.seen_by_guest("tcp", to);
        let share = seen as f64 / transfer.moved() as f64;
        assert!(
            seen > 0 && share < SHARE_MAX,
            "{name}: the guest saw {share}"
        );
        // Segments that were taken away unacknowledged leave conntrack at 300 s.
        let line = rig.tracked("tcp", to).unwrap_or_default();
        let timeout = line.split_whitespace().nth(2);
        let timeout = timeout.and_then(|seconds| seconds.parse::<u32>().ok());
        assert!(
            timeout.is_some_and(|seconds| seconds > 300),
            "{name}: {line}"
        );
        let report = transfer.finish(TRANSFER);
        assert_eq!(report.seen_by_server.ip().to_string(), appears, "{name}");
        // The end is the guest's: so it forgets the connection.
        rig.wait_handed_back(to, SOON);
        rig.wait_forgotten("tcp", to);
    }
    let share = rig.packets().through_guest_since(before);
    assert!(share < SHARE_MAX, "{share} went through the guest");
}

/// The same with UDP: nothing is lost, doubled or overtaken.
pub fn udp_is_offloaded_on_every_path(rig: &mut Rig) {
    let before = rig.packets();
    let start = |way: &Way<'_>, gap, outstanding| {
        let receiver = UdpReceiver::start(way.to, way.listens(), Reply::Echo);
        let from = at(&endpoint(way.source, 41_000));
        let sender =
            UdpSender::start_bounded(way.from, from, way.connects(), SIZE, gap, outstanding);
        (receiver, sender)
    };
    let slow = ways(rig, 5300).map(|way| start(&way, SLOW_GAP, u64::MAX));
    let targets = ways(rig, 5300).map(|way| way.connects());
    for to in targets {
        rig.wait_offloaded(to);
    }
    for (receiver, mut sender) in slow {
        settled(&receiver, &mut sender);
    }
    let fast = ways(rig, 5300).map(|way| start(&way, Duration::from_micros(20), OUTSTANDING));
    for (way, (receiver, mut sender)) in ways(rig, 5300).iter().zip(fast) {
        eventually(TRANSFER, "the datagrams are sent", || {
            sender.sent() >= DATAGRAMS
        });
        settled(&receiver, &mut sender);
        let sources = receiver.tally().sources;
        let appears: Vec<String> = sources.iter().map(|one| one.ip().to_string()).collect();
        assert_eq!(appears, [way.appears], "{}", way.name);
    }
    let share = rig.packets().through_guest_since(before);
    assert!(share < SHARE_MAX, "{share} went through the guest");
    let forwarded = targets.map(|to| {
        let session = rig.wait_offloaded(to);
        number(&session["status"]["original"]["packets"])
    });
    assert!(
        forwarded.iter().all(|count| *count >= DATAGRAMS),
        "{forwarded:?}"
    );
}

/// Ends a stream all of whose datagrams must come, once and in order.
fn settled(receiver: &UdpReceiver, sender: &mut UdpSender) {
    let sent = sender.stop();
    eventually(SOON, "every datagram is echoed", || {
        sender.replies().lost(sent) == 0
    });
    for tally in [receiver.tally(), sender.replies()] {
        let wrong = (tally.duplicated, tally.reordered, tally.corrupted);
        assert_eq!(wrong, (0, 0, 0), "duplicated, reordered, corrupted");
    }
}
