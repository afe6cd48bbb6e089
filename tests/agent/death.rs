//! Agents and guests that are killed.

use std::net::SocketAddr;
use std::time::Duration;

use crate::life::{stream, transfer};
use crate::rig::{LEASE, Rig, SOON};
use crate::support::tcp::Direction;
use crate::support::udp::UdpSender;
use crate::support::{eventually, now};

/// A busy machine is late.
const LATE: Duration = Duration::from_secs(2);
/// After which the host no longer believes that a silent agent is there.
const SILENCE: Duration = Duration::from_secs(5);
const STREAMS: u16 = 8;

/// SIGKILL to the agent, which is started again at once or later: traffic goes on all the
/// while, sessions are handed back, and rebuilt without duplicates.
pub fn an_agent_may_be_killed(rig: &mut Rig) {
    let (to, running) = transfer(rig, Direction::Upload);
    let mut streams: Vec<_> = (0..STREAMS)
        .map(|number| stream(rig, 41_400 + number, 5_700 + number))
        .collect();
    let mut all: Vec<SocketAddr> = streams.iter().map(|(to, _, _)| *to).collect();
    all.push(to);
    rebuilt(rig, &all);

    // The service manager starts it again.
    let epoch = |rig: &mut Rig| rig.agent_status()["channel"]["epoch"].as_u64();
    let first = epoch(rig);
    rig.guest.succeed("kill -9 $(pidof shunt)");
    eventually(SOON, "it was started again", || {
        epoch(rig).is_some_and(|epoch| Some(epoch) != first)
    });
    rebuilt(rig, &all);

    // It stays dead.
    let second = epoch(rig);
    rig.stop_agent();
    let killed = now();
    eventually(
        SILENCE + LEASE + LATE,
        "all sessions are handed back",
        || rig.sessions().is_empty(),
    );
    eprintln!("  handed back after {:?}", killed.elapsed());
    let moved = running.moved();
    eventually(SOON, "the transfer goes on", || {
        running.moved() > moved + 1_000_000
    });
    rig.start_agent();
    assert_ne!(epoch(rig), second);
    rebuilt(rig, &all);

    running.finish(2 * SOON);
    for (_, _, sender) in &mut streams {
        whole(sender);
    }
}

/// SIGKILL to QEMU: the sessions of a guest that is gone end.
pub fn a_guest_may_be_killed(rig: &mut Rig) {
    let (to, _echo, _sender) = stream(rig, 41_500, 5_800);
    rig.wait_offloaded(to);
    rig.guest.kill9();
    let killed = now();
    eventually(LEASE + LATE, "all sessions ended", || {
        rig.sessions().is_empty()
    });
    eprintln!("  ended after {:?}", killed.elapsed());
}

/// Waits until each of `all` has its one session, and there is none besides.
fn rebuilt(rig: &mut Rig, all: &[SocketAddr]) {
    for to in all {
        rig.wait_offloaded(*to);
    }
    eventually(SOON, "there is no session besides", || {
        rig.sessions().len() == all.len()
    });
}

/// Ends a stream; nothing of it was lost, doubled or overtaken.
fn whole(sender: &mut UdpSender) {
    let sent = sender.stop();
    eventually(SOON, "every datagram is echoed", || {
        sender.replies().lost(sent) == 0
    });
    let replies = sender.replies();
    let wrong = (replies.duplicated, replies.reordered, replies.corrupted);
    assert_eq!(wrong, (0, 0, 0), "duplicated, reordered, corrupted");
}
