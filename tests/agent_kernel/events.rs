//! Conntrack's events.

use shunt::agent::connection::{ConntrackEvent, TcpState};
use shunt::agent::kernel::{ConntrackEvents, Groups};

use crate::rig::{Rig, SERVER, Tcp, destination_port, soon, udp};

const DESTROY: Groups = Groups {
    new: false,
    update: false,
    destroy: true,
};

/// The next event of a connection to one of `ports`: its port, and whether it is gone.
async fn next(events: &mut ConntrackEvents, ports: &[u16]) -> (u16, bool) {
    loop {
        let (connection, is_gone) = match soon("an event", events.next()).await.unwrap() {
            ConntrackEvent::Changed(connection) => (connection, false),
            ConntrackEvent::Gone(connection) => (connection, true),
            ConntrackEvent::Lost => panic!("lost events"),
        };
        if let Some(port) = destination_port(&connection).filter(|port| ports.contains(port)) {
            return (port, is_gone);
        }
    }
}

#[test]
fn beginning_change_and_end_are_told_and_groups_can_be_left_and_joined() {
    let rig = Rig::new();
    rig.run(async || {
        // Also of connections that begin while no group is heard.
        let always = "net.netfilter.nf_conntrack_events=1";
        rig.router.succeed(&["sysctl", "-qw", always]);
        let mut events = ConntrackEvents::open(Groups::ALL).unwrap();
        let _tcp = Tcp::open(&rig, SERVER, 5100);
        let mut states = Vec::new();
        while states.last() != Some(&TcpState::ESTABLISHED) {
            match soon("an event", events.next()).await.unwrap() {
                ConntrackEvent::Changed(connection) => states.extend(connection.tcp),
                other => panic!("{other:?}"),
            }
        }
        // SYN_SENT, SYN_RECV, ESTABLISHED.
        assert_eq!(
            states.iter().map(|state| state.0).collect::<Vec<_>>(),
            [1, 2, 3]
        );

        events.set_groups(DESTROY).unwrap();
        let _unheard = Tcp::open(&rig, SERVER, 5101);
        rig.conntrack("-D -p tcp --orig-port-dst 5100");
        assert_eq!(next(&mut events, &[5100, 5101]).await, (5100, true));

        events
            .set_groups(Groups {
                new: true,
                ..DESTROY
            })
            .unwrap();
        let _heard = udp(&rig, SERVER, 5102, false);
        assert_eq!(next(&mut events, &[5101, 5102]).await, (5102, false));

        events.set_groups(Groups::default()).unwrap();
        let _unheard = udp(&rig, SERVER, 5103, false);
        events.set_groups(DESTROY).unwrap();
        rig.conntrack("-D -p udp --orig-port-dst 5103");
        assert_eq!(next(&mut events, &[5102, 5103]).await, (5103, true));
    });
}

#[test]
fn the_end_of_an_established_connection_is_told_and_of_a_closing_one_not() {
    let rig = Rig::new();
    rig.run(async || {
        let mut events = ConntrackEvents::open(DESTROY).unwrap();
        let _open = Tcp::open(&rig, SERVER, 5110);
        drop(Tcp::open(&rig, SERVER, 5111));
        let _flow = udp(&rig, SERVER, 5112, true);
        let is_closing = || {
            rig.conntrack("-L -p tcp --orig-port-dst 5111")
                .contains("_WAIT")
        };
        crate::support::eventually(crate::rig::SOON, "the connection closes", is_closing);
        rig.conntrack("-D -p tcp --orig-port-dst 5111");
        rig.conntrack("-D -p tcp --orig-port-dst 5110");
        rig.conntrack("-D -p udp --orig-port-dst 5112");
        let ports = [5110, 5111, 5112];
        assert_eq!(next(&mut events, &ports).await, (5110, true));
        assert_eq!(next(&mut events, &ports).await, (5112, true));
    });
}

#[test]
fn connections_that_began_unheard_tell_their_end_if_events_are_always_made() {
    let rig = Rig::new();
    let setting = "net.netfilter.nf_conntrack_events=1";
    rig.router.succeed(&["sysctl", "-qw", setting]);
    rig.run(async || {
        let _unheard = udp(&rig, SERVER, 5120, false);
        let mut events = ConntrackEvents::open(DESTROY).unwrap();
        rig.conntrack("-D -p udp --orig-port-dst 5120");
        assert_eq!(next(&mut events, &[5120]).await, (5120, true));
    });
}

#[test]
fn events_that_come_faster_than_they_are_read_are_told_as_lost_and_later_ones_follow() {
    let rig = Rig::new();
    rig.run(async || {
        let mut events = ConntrackEvents::open(Groups::ALL).unwrap();
        let socket = rig
            .client
            .run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        for port in 1000..61_000_u16 {
            socket.send_to(b"x", (SERVER, port)).unwrap();
        }
        let first = soon("a loss", events.next()).await.unwrap();
        assert_eq!(first, ConntrackEvent::Lost);
        let _flow = udp(&rig, SERVER, 5130, true);
        rig.conntrack("-D -p udp --orig-port-dst 5130 --orig-src 10.91.0.2");
        // What is told now is later than the loss.
        loop {
            match soon("an event", events.next()).await.unwrap() {
                ConntrackEvent::Gone(gone) if destination_port(&gone) == Some(5130) => break,
                ConntrackEvent::Lost => panic!("lost again"),
                _ => {}
            }
        }
    });
}
