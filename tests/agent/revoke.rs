//! What the guest decides anew holds for what is offloaded, within a second.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::life::{stream, transfer};
use crate::rig::{CLIENT, CLIENT_6, Rig, SERVER, SERVER_6, SOON, endpoint};
use crate::support::tcp::Direction;
use crate::support::udp::{Reply, UdpReceiver, UdpSender};
use crate::support::{at, eventually, pause};

/// Within which offloaded traffic must follow the guest.
const BAR: Duration = Duration::from_secs(1);
/// How many sessions there are besides, as many as the bar is promised for.
const CROWD: usize = 1_000;
const CROWD_PORT: u16 = 5_900;
const CROWD_EVERY: Duration = Duration::from_millis(400);

/// A thousand connections that say something now and then.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _echo: UdpReceiver,
}

impl Crowd {
    /// Starts them, and waits until they are offloaded.
    pub fn start(rig: &mut Rig) -> Self {
        let to = at(&endpoint(SERVER, CROWD_PORT));
        let echo = UdpReceiver::start(&rig.server, to, Reply::Echo);
        let sockets = rig.client.run(|| {
            let open = |_| {
                let socket = UdpSocket::bind(at(&endpoint(CLIENT, 0))).unwrap();
                socket.connect(to).unwrap();
                socket
            };
            (0..CROWD).map(open).collect::<Vec<_>>()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                // What differs from packet to packet can be told apart behind the guest.
                let mut round = [0; 64];
                while !stop.load(Ordering::Acquire) {
                    round[0] = u8::wrapping_add(round[0], 1);
                    for socket in &sockets {
                        // What the network refuses is said again with the next round. A
                        // guest under emulation takes some thousand packets a second.
                        let _ = socket.send(&round);
                        pause(CROWD_EVERY / u32::try_from(CROWD).unwrap());
                    }
                }
            }
        });
        let crowd = Self {
            stop,
            thread: Some(thread),
            _echo: echo,
        };
        eventually(2 * SOON, "a thousand sessions are active", || {
            let sessions = rig.sessions_to(to);
            sessions
                .iter()
                .filter(|one| crate::rig::is_active(one))
                .count()
                >= CROWD * 99 / 100
        });
        crowd
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

/// Says that `count` stands still from a second after `script` was run in the guest.
fn stops(rig: &mut Rig, script: &str, mut count: impl FnMut() -> u64) {
    let before = count();
    eventually(SOON, "traffic flows", || count() > before);
    rig.guest.succeed(script);
    pause(BAR);
    let then = count();
    pause(BAR);
    assert_eq!(count(), then, "went on a second after: {script}");
}

/// A rule that blocks an offloaded connection stops it, though a thousand others are there.
pub fn a_blocking_rule_blocks(rig: &mut Rig) {
    let crowd = Crowd::start(rig);
    let (to, running) = transfer(rig, Direction::Upload);
    rig.wait_offloaded(to);
    let rule = format!(
        "nft insert rule inet filter forward tcp dport {} drop",
        to.port()
    );
    stops(rig, &rule, || running.moved());
    drop(crowd);
    // The guest lets it pass again, and it goes on where it was.
    rig.guest.succeed("nft -f /run/rules");
    let moved = running.moved();
    eventually(SOON, "the transfer goes on", || running.moved() > moved);
    rig.wait_offloaded(to);
    running.finish(2 * SOON);
}

/// The same by iptables, whose rules change without an event.
pub fn a_rule_of_iptables_blocks(rig: &mut Rig) {
    rig.guest
        .succeed("iptables -A FORWARD -m conntrack --ctstate ESTABLISHED");
    let (to, _echo, mut sender) = stream(rig, 41_300, 5_600);
    rig.wait_offloaded(to);
    let rule = "iptables -I FORWARD -p udp --dport 5600 -j DROP";
    stops(rig, rule, || sender.replies().received());
    sender.stop();
    rig.guest.succeed("iptables -F FORWARD");
}

/// Flushed from conntrack, what is offloaded is judged as new.
pub fn a_flush_of_conntrack_is_a_new_decision(rig: &mut Rig) {
    let (to, _echo, mut sender) = stream(rig, 41_301, 5_601);
    rig.wait_offloaded(to);
    rig.guest
        .succeed("nft insert rule inet filter forward ct state new udp dport 5601 drop");
    // Established, it passes still.
    rig.wait_offloaded(to);
    let sent = sender.sent();
    eventually(SOON, "the stream goes on", || {
        sender.replies().received() > sent
    });
    stops(rig, "conntrack -F 2>/dev/null", || {
        sender.replies().received()
    });
    sender.stop();
    rig.guest.succeed("nft -f /run/rules");
}

/// Another route leads offloaded packets another way.
pub fn another_route_leads_another_way(rig: &mut Rig) {
    let to: SocketAddr = at(&endpoint(SERVER_6, 5_602));
    let _echo = UdpReceiver::start(&rig.server, to, Reply::Echo);
    let from = at(&endpoint(CLIENT_6, 41_302));
    let gap = Duration::from_millis(10);
    let mut sender = UdpSender::start(&rig.client, from, to, 200, gap);
    let session = rig.wait_offloaded(to);
    assert_eq!(session["original"]["egress-vnic"], "wan");
    rig.guest
        .succeed("/usr/sbin/ip -6 route replace fd81:9::/64 via fd81:3::2");
    pause(BAR);
    let arrived = |rig: &Rig| ["wan", "alt"].map(|link| rig.server.counter(link, "rx", "packets"));
    let [wan, alt] = arrived(rig);
    pause(BAR);
    let [wan, alt] = [arrived(rig)[0] - wan, arrived(rig)[1] - alt];
    assert!(
        wan < 10 && alt > 50,
        "{wan} by the old route, {alt} by the new one"
    );
    let session = rig.wait_offloaded(to);
    assert_eq!(session["original"]["egress-vnic"], "alt", "{session}");
    sender.stop();
    rig.guest
        .succeed("/usr/sbin/ip -6 route replace fd81:9::/64 via fd81:2::2");
}

/// A next hop that cannot be found any more gets nothing.
pub fn a_lost_neighbour_gets_nothing(rig: &mut Rig) {
    let (to, echo, mut sender) = stream(rig, 41_303, 5_603);
    rig.wait_offloaded(to);
    // It no longer answers ARP, nor anything else, but hears all.
    rig.server.ip("link set wan arp off");
    stops(rig, "/usr/sbin/ip neigh del 10.81.2.2 dev eth1", || {
        echo.tally().received()
    });
    rig.server.ip("link set wan arp on");
    let before = sender.replies().received();
    eventually(SOON, "the stream goes on", || {
        sender.replies().received() > before
    });
    rig.wait_offloaded(to);
    sender.stop();
}

/// By an interface that is down nothing leaves.
pub fn by_an_interface_that_is_down_nothing_leaves(rig: &mut Rig) {
    let (to, _echo, mut sender) = stream(rig, 41_304, 5_604);
    rig.wait_offloaded(to);
    stops(rig, "/usr/sbin/ip link set eth1 down", || {
        sender.replies().received()
    });
    rig.guest.succeed(
        "/usr/sbin/ip link set eth1 up; /usr/sbin/ip address replace fd81:2::1/64 dev eth1; \
         /usr/sbin/ip -6 route replace fd81:9::/64 via fd81:2::2",
    );
    let before = sender.replies().received();
    eventually(SOON, "the stream goes on", || {
        sender.replies().received() > before
    });
    rig.wait_offloaded(to);
    sender.stop();
}
