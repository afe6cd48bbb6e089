//! What keeps the guest's view of a connection true while it sees none of its packets.

use std::net::SocketAddr;
use std::time::Duration;

use crate::rig::{CLIENT, Rig, SERVER, SOON, endpoint};
use crate::support::tcp::{Direction, TcpPlan, TcpTransfer};
use crate::support::udp::{Reply, UdpReceiver, UdpSender};
use crate::support::{always, at, eventually, now};

/// The guest's timeouts: more than twice the lease.
const TIMEOUT: Duration = Duration::from_secs(12);
const RATE: u64 = 3_000_000;
const GAP: Duration = Duration::from_millis(20);
const TRANSFER: Duration = Duration::from_secs(90);

/// A transfer between client and server, long enough for whatever a test does meanwhile.
pub fn transfer(rig: &Rig, direction: Direction) -> (SocketAddr, TcpTransfer) {
    let to = rig.free(&rig.server, SERVER);
    let plan = TcpPlan {
        listen: to,
        connect: to,
        direction,
        bytes: 1 << 34,
        rate: Some(RATE),
    };
    (to, TcpTransfer::start(&rig.client, &rig.server, plan))
}

/// A stream of datagrams and their echoes between client and server.
pub fn stream(rig: &Rig, from: u16, to: u16) -> (SocketAddr, UdpReceiver, UdpSender) {
    let to = at(&endpoint(SERVER, to));
    let receiver = UdpReceiver::start(&rig.server, to, Reply::Echo);
    let from = at(&endpoint(CLIENT, from));
    let sender = UdpSender::start(&rig.client, from, to, 200, GAP);
    (to, receiver, sender)
}

/// Connections that move outlive the guest's timeouts by far; one that stands still ends when
/// the guest would have ended it.
pub fn only_what_stands_still_expires(rig: &mut Rig) {
    let seconds = TIMEOUT.as_secs();
    rig.guest.succeed(&format!(
        "sysctl -q -w net.netfilter.nf_conntrack_tcp_timeout_established={seconds} \
         net.netfilter.nf_conntrack_udp_timeout={seconds} \
         net.netfilter.nf_conntrack_udp_timeout_stream={seconds}"
    ));
    let (to, running) = transfer(rig, Direction::Download);
    let (streams_to, _echo, mut moving) = stream(rig, 41_200, 5_500);
    let (idles_at, _echo_idle, mut idle) = stream(rig, 41_201, 5_501);
    let id = |rig: &mut Rig, to| rig.wait_offloaded(to)["status"]["id"].clone();
    let ids = [to, streams_to].map(|to| id(rig, to));
    rig.wait_offloaded(idles_at);

    let (begun, stopped) = (now(), idle.stop());
    eventually(SOON, "every datagram is echoed", || {
        idle.replies().lost(stopped) == 0
    });
    always(
        TIMEOUT - Duration::from_secs(1),
        "the guest remembers",
        || rig.tracked("udp", idles_at).is_some(),
    );
    eventually(SOON, "the guest forgets what stands still", || {
        rig.tracked("udp", idles_at).is_none() && rig.sessions_to(idles_at).is_empty()
    });
    let took = begun.elapsed();
    assert!(took < TIMEOUT + Duration::from_secs(4), "{took:?}");

    always(
        TIMEOUT * 5 / 2 - took,
        "the guest remembers what moves",
        || rig.tracked("tcp", to).is_some() && rig.tracked("udp", streams_to).is_some(),
    );
    assert_eq!(
        [to, streams_to].map(|to| id(rig, to)),
        ids,
        "never taken back"
    );
    running.finish(TRANSFER);
    let sent = moving.stop();
    eventually(SOON, "every datagram is echoed", || {
        moving.replies().lost(sent) == 0
    });
    rig.guest.succeed(
        "sysctl -q -w net.netfilter.nf_conntrack_tcp_timeout_established=432000 \
         net.netfilter.nf_conntrack_udp_timeout=30 net.netfilter.nf_conntrack_udp_timeout_stream=120",
    );
}

/// After a withdraw in mid-transfer the guest carries the connection on; it calls none of its
/// segments INVALID, which its ruleset would drop.
pub fn what_is_withdrawn_goes_on_through_the_guest(rig: &mut Rig) {
    let invalid = rig.invalid();
    for direction in [Direction::Upload, Direction::Download] {
        let (to, mut running) = transfer(rig, direction);
        let session = rig.wait_offloaded(to);
        // Far beyond the windows that the guest last saw.
        running.unpace();
        let moved = running.moved();
        running.wait_moved(moved + 200_000_000, TRANSFER);
        rig.guest.succeed("shunt agent pause");
        rig.withdraw(&session);
        let seen = rig.seen_by_guest("tcp", to);
        let moved = running.moved();
        running.wait_moved(moved + 20_000_000, TRANSFER);
        let later = rig.seen_by_guest("tcp", to);
        assert!(later > seen + 10_000_000, "{seen} {later}");
        running.finish(TRANSFER);
        rig.guest.succeed("shunt agent resume");
    }
    assert_eq!(rig.invalid(), invalid, "segments were INVALID");
}
