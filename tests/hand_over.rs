//! Sessions move between slow and fast path under traffic, through a real router.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may be as blunt as tests"
)]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use support::frames::{Capture, Frame};
use support::netns::Netns;
use support::router::{CLIENT, Flow, Router, SERVER, SOON, WAN};
use support::tcp::{Direction, TcpPlan, TcpTransfer};
use support::udp::{Reply, Tally, UdpReceiver, UdpSender};
use support::{at, eventually, now, pause};

/// The longest delay before a session is installed.
const DELAY_MAX: Duration = Duration::from_secs(2);

#[test]
fn a_hundred_hand_overs_under_traffic_break_nothing_and_ordered_ones_reorder_nothing() {
    let router = Router::start(|guest| guest);
    // The guest's rings hold all windows together, so that the slow path loses nothing by
    // itself, however long the guest stands still.
    for netns in [&router.lan, &router.wan] {
        for name in ["tcp_rmem", "tcp_wmem"] {
            netns.succeed(&[
                "sysctl",
                "-qw",
                &format!("net.ipv4.{name}=4096 131072 262144"),
            ]);
        }
    }
    let dice = Dice::from_environment();
    hand_over_ordered(&router, &dice, 12);
    hand_over_prompt(&router, &dice, 7);
}

/// Three paced flows and three bulk transfers, `rounds` times each.
fn hand_over_ordered(router: &Router, dice: &Dice, rounds: u32) {
    let before = [&router.lan, &router.wan].map(TcpCounters::of);
    let order = Order::watch(router);
    let flows = [
        Traffic::paced(router),
        Traffic::paced(router),
        Traffic::paced(router),
        Traffic::bulk(router, Direction::Upload),
        Traffic::bulk(router, Direction::Upload),
        Traffic::bulk(router, Direction::Download),
    ];
    install_all(router, &flows, "ordered", dice, rounds);
    for tally in flows.into_iter().flat_map(Traffic::end) {
        assert_eq!(tally.reordered, 0);
    }
    order.assert_kept();
    assert_eq!([&router.lan, &router.wan].map(TcpCounters::of), before);
}

/// Two of each; nothing is said about their order.
fn hand_over_prompt(router: &Router, dice: &Dice, rounds: u32) {
    let flows = [
        Traffic::paced(router),
        Traffic::paced(router),
        Traffic::bulk(router, Direction::Upload),
        Traffic::bulk(router, Direction::Download),
    ];
    install_all(router, &flows, "prompt", dice, rounds);
    flows.into_iter().for_each(|flow| drop(flow.end()));
}

/// Installs a session for each flow, has it proved again and takes it back, `rounds` times, each
/// time after a delay of its own.
fn install_all(router: &Router, flows: &[Traffic], mode: &str, dice: &Dice, rounds: u32) {
    let started = now();
    std::thread::scope(|scope| {
        for (number, flow) in flows.iter().enumerate() {
            let key = format!("{mode}{number}");
            let sessions = &router.control;
            scope.spawn(move || {
                for _ in 0..rounds {
                    pause(dice.below(DELAY_MAX));
                    sessions.offload(&[flow.session(&key, mode)]);
                    eventually(SOON, &format!("{key} is handed over"), || {
                        sessions.flows(&key) == [Flow::Active; 2]
                    });
                    flow.wait_moves_on();
                    assert_eq!(sessions.reprove(&key), 1);
                    flow.wait_moves_on();
                    eventually(SOON, &format!("{key} is handed over again"), || {
                        sessions.flows(&key) == [Flow::Active; 2]
                    });
                    flow.wait_moves_on();
                    sessions.withdraw(&key);
                    eventually(SOON, &format!("{key} is handed back"), || {
                        sessions.status(&key).is_null()
                    });
                }
            });
        }
    });
    let stats = &router.control.statistics()["hand-over"];
    let count = flows.len() as u32 * rounds;
    println!(
        "{count} {mode} hand-overs in {:?}: {stats}",
        started.elapsed()
    );
}

/// How the guest makes of a flow something else than its session asks for, and back.
struct Otherwise {
    what: &'static str,
    make: &'static str,
    undo: &'static str,
    /// The flow's destination port, by which the guest knows it.
    port: u16,
}

const OTHERWISE: [Otherwise; 5] = [
    Otherwise {
        what: "dropped",
        make: "nft insert rule inet filter forward udp dport 7001 drop",
        undo: "nft flush chain inet filter forward",
        port: 7001,
    },
    Otherwise {
        what: "routed to another interface",
        make: "nft add table ip mangle && \
               nft add chain ip mangle early '{ type filter hook prerouting priority -150; }' && \
               nft add rule ip mangle early udp dport 7002 meta mark set 7 && \
               ip rule add fwmark 7 lookup 70 && ip route add default via 10.73.0.2 table 70",
        undo: "ip rule del lookup 70",
        port: 7002,
    },
    Otherwise {
        what: "translated to another source address",
        make: "ip address add 10.72.0.9/24 dev eth1 && \
               nft insert rule ip nat postrouting udp dport 7003 snat to 10.72.0.9",
        undo: "nft flush chain ip nat postrouting && \
               nft add rule ip nat postrouting oifname eth1 masquerade",
        port: 7003,
    },
    Otherwise {
        what: "translated to another source port",
        make: "nft insert rule ip nat postrouting udp dport 7004 masquerade to :5000-5999",
        undo: "nft flush chain ip nat postrouting && \
               nft add rule ip nat postrouting oifname eth1 masquerade",
        port: 7004,
    },
    Otherwise {
        what: "given another DSCP",
        make: "nft add chain ip mangle late '{ type filter hook forward priority -150; }' && \
               nft add rule ip mangle late udp dport 7005 ip dscp set 46",
        undo: "nft flush chain ip mangle late",
        port: 7005,
    },
];

#[test]
fn a_session_that_the_guest_does_not_carry_out_never_becomes_active_in_either_mode() {
    let mut router = Router::start(|guest| guest);
    for otherwise in &OTHERWISE {
        router.guest.succeed(otherwise.make);
    }
    // Two flows of each kind, and their sessions, ordered and prompt.
    let gap = Duration::from_millis(5);
    let mut flows = Vec::new();
    for Otherwise { port, what, .. } in &OTHERWISE {
        let to = at(&format!("{SERVER}:{port}"));
        for mode in ["ordered", "prompt"] {
            let sender = UdpSender::start(&router.lan, any(CLIENT), to, 100, gap);
            let key = format!("{mode}{port}");
            let nat = json!({"source-address": WAN});
            let from = sender.address();
            let mut offer = session(&key, mode, "udp", from, to, nat);
            offer["original"]["dscp"] = json!(0);
            router.control.offload(&[offer]);
            flows.push((format!("{what}, {mode}"), key, sender));
        }
    }
    let before: Vec<u64> = flows.iter().map(|flow| flow.2.sent()).collect();
    let passed = || {
        flows
            .iter()
            .zip(&before)
            .all(|(flow, before)| flow.2.sent() > before + 400)
    };
    eventually(SOON, "400 more of each are sent", || {
        for (what, key, _) in &flows {
            assert_ne!(router.control.flows(key)[0], Flow::Active, "{what}");
        }
        passed()
    });
    let stats = router.control.statistics();
    assert_eq!(stats["hand-over"]["activated"], "0", "{stats}");
    assert_eq!(stats["forwarded"]["packets"], "0", "{stats}");
    let elsewhere = router.guest.counters("eth2").tx_packets;
    assert!(
        elsewhere > 800,
        "only {elsewhere} went to the other interface"
    );

    // The same sessions are handed over once the guest does what they ask for.
    for otherwise in &OTHERWISE {
        router.guest.succeed(otherwise.undo);
    }
    // Translations are decided once for a connection.
    router.guest.succeed("conntrack -F");
    for (what, key, _) in &flows {
        eventually(SOON, &format!("what was {what} becomes active"), || {
            router.control.flows(key)[0] == Flow::Active
        });
    }
}

#[test]
fn after_a_reprove_only_what_the_guest_still_carries_out_is_offloaded_again_in_either_mode() {
    let mut router = Router::start(|guest| guest);
    let gap = Duration::from_millis(5);
    let offer = |port: u16, mode: &str| {
        let to = at(&format!("{SERVER}:{port}"));
        let sender = UdpSender::start(&router.lan, any(CLIENT), to, 100, gap);
        let key = format!("{mode}{port}");
        let nat = json!({"source-address": WAN});
        let mut offer = session(&key, mode, "udp", sender.address(), to, nat);
        offer["original"]["dscp"] = json!(0);
        router.control.offload(&[offer]);
        (key, sender)
    };
    // Two flows of each kind of change to come, and two that nothing happens to.
    let ports = OTHERWISE.iter().map(|otherwise| otherwise.port);
    let changed: Vec<_> = ports
        .flat_map(|port| ["ordered", "prompt"].map(|mode| offer(port, mode)))
        .collect();
    let kept = ["ordered", "prompt"].map(|mode| offer(7000, mode));
    let all_active = |flows: &[(String, UdpSender)]| {
        let mut keys = flows.iter().map(|(key, _)| key);
        keys.all(|key| router.control.flows(key)[0] == Flow::Active)
    };
    eventually(SOON, "all are handed over", || {
        all_active(&changed) && all_active(&kept)
    });

    for otherwise in &OTHERWISE {
        router.guest.succeed(otherwise.make);
    }
    // Translations are decided once for a connection.
    router.guest.succeed("conntrack -F");
    assert!(all_active(&changed), "nobody has told the backend");
    let asked = now();
    assert_eq!(router.control.reprove_all(), 12);
    println!("12 sessions sent back in {:?}", asked.elapsed());
    let forwarded = |key: &str| {
        let status = router.control.status(key);
        assert_ne!(status["original"]["state"], "active", "{key}");
        let packets = status["original"]["packets"].as_str();
        packets.unwrap().parse::<u64>().unwrap()
    };
    // The burst that a worker was at is through.
    let before: Vec<_> = changed
        .iter()
        .map(|(key, sender)| (forwarded(key), sender.sent()))
        .collect();
    eventually(SOON, "400 more of each are sent", || {
        let mut pairs = changed.iter().zip(&before);
        pairs.all(|((key, sender), (packets, sent))| {
            let more = forwarded(key) - packets;
            assert_eq!(more, 0, "packets of {key} that went around the guest");
            sender.sent() > sent + 400
        })
    });
    eventually(SOON, "the others are handed over again", || {
        all_active(&kept)
    });

    for otherwise in &OTHERWISE {
        router.guest.succeed(otherwise.undo);
    }
    router.guest.succeed("conntrack -F");
    eventually(SOON, "all are handed over again", || all_active(&changed));
}

/// A connection under way.
enum Traffic {
    Paced(UdpReceiver, UdpSender),
    Bulk(TcpTransfer),
}

impl Traffic {
    /// A datagram each millisecond, and its echo. A guest that stands still holds so many
    /// that its rings never overflow.
    fn paced(router: &Router) -> Self {
        let receiver = UdpReceiver::start(&router.wan, any(SERVER), Reply::Echo);
        let gap = Duration::from_millis(1);
        let to = receiver.address();
        let sender = UdpSender::start_bounded(&router.lan, any(CLIENT), to, 200, gap, 64);
        Self::Paced(receiver, sender)
    }

    /// A transfer as fast as it goes, within its window.
    fn bulk(router: &Router, direction: Direction) -> Self {
        let plan = TcpPlan {
            listen: any(SERVER),
            connect: any(SERVER),
            direction,
            bytes: u64::MAX,
            rate: None,
        };
        Self::Bulk(TcpTransfer::start(&router.lan, &router.wan, plan))
    }

    /// The session of this connection behind the guest's masquerading.
    fn session(&self, key: &str, mode: &str) -> Value {
        let (protocol, client, server) = match self {
            Self::Paced(receiver, sender) => ("udp", sender.address(), receiver.address()),
            Self::Bulk(transfer) => ("tcp", transfer.client(), transfer.server()),
        };
        session(
            key,
            mode,
            protocol,
            client,
            server,
            json!({"source-address": WAN}),
        )
    }

    /// Waits until something more has gone through.
    fn wait_moves_on(&self) {
        let moved = || match self {
            Self::Paced(_, sender) => sender.replies().received(),
            Self::Bulk(transfer) => transfer.moved(),
        };
        let before = moved();
        eventually(SOON, "traffic goes on", || moved() > before);
    }

    /// Ends it; all of it must have come.
    fn end(self) -> Vec<Tally> {
        match self {
            Self::Paced(receiver, mut sender) => {
                let sent = sender.stop();
                eventually(SOON, "every datagram and every echo comes", || {
                    receiver.tally().lost(sent) + sender.replies().lost(sent) == 0
                });
                let tallies = vec![receiver.tally(), sender.replies()];
                for tally in &tallies {
                    assert_eq!((tally.duplicated, tally.corrupted), (0, 0));
                    println!("{sent} datagrams, {} reordered", tally.reordered);
                }
                tallies
            }
            Self::Bulk(transfer) => {
                let report = transfer.finish(SOON);
                assert_eq!(report.client.port(), report.seen_by_server.port());
                Vec::new()
            }
        }
    }
}

/// A session from `lan` to `wan`.
fn session(
    key: &str,
    mode: &str,
    protocol: &str,
    from: SocketAddr,
    to: SocketAddr,
    translation: Value,
) -> Value {
    json!({
        "key": key, "protocol": protocol, "hand-over": mode,
        "original": {
            "ingress-vnic": "lan", "egress-vnic": "wan",
            "source-address": from.ip(), "source-port": from.port(),
            "destination-address": to.ip(), "destination-port": to.port(),
            "translation": translation,
        },
    })
}

/// Any free port of an address.
fn any(address: &str) -> SocketAddr {
    at(&format!("{address}:0"))
}

/// What the kernel of a namespace says about the order of segments.
#[derive(PartialEq, Eq, Debug)]
struct TcpCounters(BTreeMap<&'static str, u64>);

impl TcpCounters {
    /// Segments that came before their turn, and what senders took for reordering. A
    /// segment that was lost would count here too: none may be.
    const NAMES: [&str; 4] = [
        "TCPOFOQueue",
        "TCPSACKReorder",
        "TCPRenoReorder",
        "TCPTSReorder",
    ];

    fn of(netns: &Netns) -> Self {
        // Not /proc/net, which is that of the process's first thread.
        let text = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let [names, values] = [(); 2].map(|()| lines.next().unwrap().split_whitespace());
        let all: HashMap<&str, &str> = names.zip(values).collect();
        Self(
            Self::NAMES
                .map(|name| (name, all[name].parse().unwrap()))
                .into(),
        )
    }
}

/// The order of TCP segments as they leave the router, either way.
struct Order([Capture; 2]);

impl Order {
    /// Ethernet, IPv4 and TCP headers with all options.
    const HEADERS: usize = 14 + 60 + 60;

    fn watch(router: &Router) -> Self {
        Self([
            Capture::start_short(&router.lan, "lan", Self::HEADERS),
            Capture::start_short(&router.wan, "wan", Self::HEADERS),
        ])
    }

    /// No data came for the first time after later data of its connection. A segment that
    /// is sent again (a guest that stands still for long lets senders think so) comes
    /// after it has come before, and is no reordering.
    fn assert_kept(&self) {
        for capture in &self.0 {
            assert_eq!(capture.missed(), 0, "the capture has holes");
            let (mut ends, mut segments, mut repeated) = (HashMap::new(), 0_u64, 0_u64);
            for segment in capture.frames().iter().filter_map(Segment::arriving) {
                let end = ends.entry(segment.connection).or_insert(segment.start);
                let ahead = segment.start.wrapping_sub(*end) as i32;
                assert!(ahead <= 0, "{segment:?} came {ahead} bytes before its turn");
                let length = segment.end.wrapping_sub(*end) as i32;
                segments += 1;
                if length > 0 {
                    *end = segment.end;
                } else {
                    repeated += 1;
                }
            }
            println!("{segments} segments in order, {repeated} of them sent again");
            assert!(segments > 0, "no TCP was seen");
        }
    }
}

/// A TCP segment with data.
#[derive(Debug)]
struct Segment {
    /// Addresses and ports.
    connection: [u8; 12],
    start: u32,
    end: u32,
}

impl Segment {
    fn arriving(frame: &Frame) -> Option<Self> {
        let packet = frame.bytes.get(14..)?;
        if frame.outgoing || frame.bytes[12..14] != [8, 0] || packet[9] != 6 {
            return None;
        }
        let header = usize::from(packet[0] & 15) * 4;
        let tcp = &packet[header..];
        let total = u16::from_be_bytes([packet[2], packet[3]]);
        let length = u32::from(total) - header as u32 - u32::from(tcp[12] >> 4) * 4;
        let mut connection = [0; 12];
        connection[..8].copy_from_slice(&packet[12..20]);
        connection[8..].copy_from_slice(&tcp[..4]);
        let start = u32::from_be_bytes(*tcp[4..].first_chunk().unwrap());
        (length > 0).then(|| Self {
            connection,
            start,
            end: start.wrapping_add(length),
        })
    }
}

/// Random numbers that a failed run's seed brings back (splitmix64).
struct Dice(AtomicU64);

impl Dice {
    fn from_environment() -> Self {
        let seed = std::env::var("SHUNT_TEST_SEED").map_or_else(
            |_| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
            |text| text.parse().unwrap(),
        );
        println!("SHUNT_TEST_SEED={seed}");
        Self(AtomicU64::new(seed))
    }

    fn below(&self, limit: Duration) -> Duration {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut word = self.0.fetch_add(STEP, Ordering::Relaxed);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        limit.mul_f64((word >> 11) as f64 / (1_u64 << 53) as f64)
    }
}
