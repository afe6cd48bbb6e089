//! Connections: what the table says, and what is changed in it.

use std::fmt::Write as _;
use std::time::Duration;

use etherparse::PacketBuilder;
use shunt::agent::connection::{Connection, Ports, Status, Tuple};
use shunt::agent::kernel::{EventMode, Kernel, KernelError};

use crate::rig::{CLIENT, CLIENT_6, Rig, SERVER, SERVER_6, SOON, Tcp, WAN, destination_port, udp};
use crate::support::frames::RawSocket;
use crate::support::netns::Netns;
use crate::support::{eventually, eventually_some};

/// As `conntrack -L -o extended,id` writes it, without its timeout and use count.
fn as_conntrack_writes(connection: &Connection) -> String {
    let is_v4 = connection.original.source.is_ipv4();
    let mut line = String::from(if is_v4 { "ipv4 2 " } else { "ipv6 10 " });
    line += match connection.original.protocol {
        1 => "icmp 1",
        6 => "tcp 6",
        17 => "udp 17",
        58 => "icmpv6 58",
        other => panic!("protocol {other}"),
    };
    if let Some(state) = connection.tcp {
        line += [
            " NONE",
            " SYN_SENT",
            " SYN_RECV",
            " ESTABLISHED",
            " FIN_WAIT",
            " CLOSE_WAIT",
            " LAST_ACK",
            " TIME_WAIT",
            " CLOSE",
            " SYN_SENT2",
        ][usize::from(state.0)];
    }
    let counters = connection.counters.unwrap();
    for (direction, tuple) in [connection.original, connection.reply].iter().enumerate() {
        write_tuple(&mut line, tuple);
        let counters = counters[direction];
        write!(
            line,
            " packets={} bytes={}",
            counters.packets, counters.octets
        )
        .unwrap();
        if direction == 0 && !connection.status.has(Status::SEEN_REPLY) {
            line += " [UNREPLIED]";
        }
    }
    if connection.status.has(Status::ASSURED) {
        line += " [ASSURED]";
    }
    write!(line, " mark={}", connection.mark).unwrap();
    if connection.zone != 0 {
        write!(line, " zone={}", connection.zone).unwrap();
    }
    if let Some(helper) = &connection.helper {
        write!(line, " helper={helper}").unwrap();
    }
    write!(line, " id={}", connection.id).unwrap();
    line
}

fn write_tuple(line: &mut String, tuple: &Tuple) {
    write!(line, " src={} dst={}", tuple.source, tuple.destination).unwrap();
    match tuple.ports {
        Ports::Ports(source, destination) => {
            write!(line, " sport={source} dport={destination}").unwrap();
        }
        Ports::Icmp { kind, code, id } => {
            write!(line, " type={kind} code={code} id={id}").unwrap();
        }
        Ports::None => {}
    }
}

/// The same from the tool's lines: without timeout (the fifth word) and use count. A zone of one
/// direction only stands there with its tuple.
fn without_what_moves(lines: &str) -> Vec<String> {
    let mut lines: Vec<String> = lines.lines().map(steady).collect();
    lines.sort();
    lines
}

fn steady(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let zone = words
        .iter()
        .find_map(|word| word.strip_prefix("zone-orig="));
    let mut steady = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if at == 4 || word.starts_with("use=") || word.starts_with("zone-orig=") {
            continue;
        }
        if let Some(zone) = zone.filter(|_| at + 1 == words.len()) {
            steady.push(format!("zone={zone}"));
        }
        steady.push((*word).to_owned());
    }
    steady.join(" ")
}

async fn dump(kernel: &Kernel) -> Vec<Connection> {
    let mut all = Vec::new();
    kernel
        .connections(|connection| all.push(connection))
        .await
        .unwrap();
    all
}

#[test]
fn a_dump_is_what_conntrack_lists_of_all_protocols_zones_marks_and_helpers() {
    let rig = Rig::new();
    rig.nft(
        "add chain inet filter early { type filter hook prerouting priority raw; }\n\
         add rule inet filter early iifname lan udp dport 5003 ct zone set 7\n\
         add rule inet filter early iifname lan udp dport 5004 ct original zone set 8\n\
         add ct helper inet filter ftp { type \"ftp\" protocol tcp; }\n\
         insert rule inet filter pass udp dport 5001 ct mark set 0x17\n\
         insert rule inet filter pass tcp dport 2121 ct helper set \"ftp\"",
    );
    let _open = [
        Tcp::open(&rig, SERVER, 5000),
        Tcp::open(&rig, SERVER_6, 5000),
        Tcp::open(&rig, SERVER, 2121),
    ];
    let _flows = [
        udp(&rig, SERVER, 5001, true),
        udp(&rig, SERVER_6, 5002, false),
        udp(&rig, SERVER, 5003, false),
        udp(&rig, SERVER, 5004, false),
    ];
    drop(Tcp::open(&rig, SERVER, 5005));
    assert!(rig.client.pings(SERVER));
    assert!(rig.client.pings(SERVER_6));

    // What only passes by (neighbour discovery is not tracked) may come between the two.
    rig.ask(async |kernel| {
        let mut differ = (Vec::new(), Vec::new());
        for _ in 0..10 {
            let ours = dump(&kernel).await;
            let theirs = rig.conntrack("-L -o extended,id");
            let mut lines: Vec<_> = ours.iter().map(as_conntrack_writes).collect();
            lines.sort();
            differ = (lines, without_what_moves(&theirs));
            if differ.0 == differ.1 {
                break;
            }
        }
        for (ours, theirs) in differ.0.iter().zip(&differ.1) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(differ.0.len(), differ.1.len());
        assert!(differ.0.len() >= 9, "{:#?}", differ.0);

        let all = dump(&kernel).await;
        let to = |port| {
            all.iter()
                .find(|c| destination_port(c) == Some(port))
                .unwrap()
        };
        assert_eq!(to(5001).mark, 0x17);
        assert_eq!(to(5003).zone, 7);
        assert_eq!(to(5004).zone, 8);
        assert_eq!(to(2121).helper.as_deref(), Some("ftp"));
        assert!(to(5000).status.has(Status::SRC_NAT) || to(5000).original.source.is_ipv6());
        for connection in &all {
            let again = kernel.connection(connection).await.unwrap();
            assert_eq!(again.unwrap().id, connection.id, "{connection:?}");
        }
    });
}

/// Seconds that `conntrack -L` gives the connection to that port.
fn timeout(rig: &Rig, port: u16) -> u64 {
    let line = rig.conntrack(&format!("-L -p tcp --orig-port-dst {port} -o extended"));
    line.split_whitespace().nth(4).unwrap().parse().unwrap()
}

#[test]
fn a_refresh_sets_the_timeout_of_that_connection_and_of_no_other() {
    let rig = Rig::new();
    let _tcp = Tcp::open(&rig, SERVER, 5010);
    rig.ask(async |kernel| {
        let connection = rig.find(&kernel, 5010).await;
        let hour = Duration::from_secs(3600);
        assert!(kernel.refresh(&connection, hour).await.unwrap());
        let seconds = timeout(&rig, 5010);
        assert!((3590..=3600).contains(&seconds), "{seconds}");

        let another = Connection {
            id: connection.id ^ 1,
            ..connection.clone()
        };
        assert!(
            !kernel
                .refresh(&another, Duration::from_secs(9))
                .await
                .unwrap()
        );
        assert_eq!(kernel.connection(&another).await.unwrap(), None);
        assert!(timeout(&rig, 5010) > 3000);

        rig.conntrack("-D -p tcp --orig-port-dst 5010");
        assert!(!kernel.refresh(&connection, hour).await.unwrap());
        assert!(!kernel.be_liberal(&connection).await.unwrap());
        assert_eq!(kernel.connection(&connection).await.unwrap(), None);
    });
}

#[test]
fn a_refresh_leaves_a_connection_alone_that_is_not_open_any_more() {
    let rig = Rig::new();
    let tcp = Tcp::open(&rig, SERVER, 5011);
    rig.ask(async |kernel| {
        let connection = rig.find(&kernel, 5011).await;
        drop(tcp);
        eventually(SOON, "it has ended", || {
            let line = rig.conntrack("-L -p tcp --orig-port-dst 5011");
            !line.contains("ESTABLISHED")
        });
        // What was told before it ended comes late.
        let hour = Duration::from_secs(3600);
        assert!(kernel.refresh(&connection, hour).await.unwrap());
        assert!(timeout(&rig, 5011) < 1000);
    });
}

/// Numbers half of the space apart: from wherever a connection is, one is far ahead of its
/// window and one far behind.
const FAR: [u32; 2] = [0x7000_0000, 0xf000_0000];

/// What chain `seen` counted: all forged segments, those of the client and those of the server
/// that were invalid.
fn counted(rig: &Rig) -> [u64; 3] {
    let list = "nft --json list chain inet filter seen";
    let list = rig.router.succeed(&list.split(' ').collect::<Vec<_>>());
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let counts: Vec<u64> = list["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item["rule"]["expr"].as_array())
        .flatten()
        .filter_map(|expression| expression["counter"]["packets"].as_u64())
        .collect();
    counts.try_into().unwrap()
}

fn mac(text: &str) -> [u8; 6] {
    text.parse::<shunt::packet::MacAddr>().unwrap().0
}

/// Segments far from the window, with acknowledgements as far, as frames to the router.
fn forged(netns: &Netns, router: &str, ends: [&str; 2], ports: (u16, u16)) -> Vec<Vec<u8>> {
    let [from, to] = ends.map(|end| end.parse::<std::net::Ipv4Addr>().unwrap().octets());
    let far = FAR.into_iter().flat_map(|seq| FAR.map(|ack| (seq, ack)));
    far.map(|(seq, ack)| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac(&netns.mac("eth0")), mac(router))
            .ipv4(from, to, 64)
            .tcp(ports.0, ports.1, seq, 1000)
            .ack(ack)
            .write(&mut frame, b"late")
            .unwrap();
        frame
    })
    .collect()
}

#[test]
fn after_be_liberal_segments_far_outside_the_window_are_valid_both_ways() {
    let rig = Rig::new();
    // Before translation back, which an invalid packet does not get.
    rig.nft(
        "add chain inet filter seen { type filter hook prerouting priority mangle; }\n\
         add rule inet filter seen tcp sequence { 0x70000000, 0xf0000000 } counter\n\
         add rule inet filter seen iifname lan ct state invalid counter drop\n\
         add rule inet filter seen iifname wan ct state invalid counter drop",
    );
    let mut tcp = Tcp::open(&rig, SERVER, 5020);
    let connection = rig.ask(async |kernel| rig.find(&kernel, 5020).await);
    let (Ports::Ports(client_port, _), Ports::Ports(_, wan_port)) =
        (connection.original.ports, connection.reply.ports)
    else {
        panic!("{connection:?}");
    };
    let (lan, wan) = (rig.router.mac("lan"), rig.router.mac("wan"));
    let there = forged(&rig.client, &lan, [CLIENT, SERVER], (client_port, 5020));
    let back = forged(&rig.server, &wan, [SERVER, WAN], (5020, wan_port));
    let invalid = || {
        let before = counted(&rig);
        for (netns, frames) in [(&rig.client, &there), (&rig.server, &back)] {
            let socket = RawSocket::open(netns, "eth0");
            frames.iter().for_each(|frame| socket.send(frame));
        }
        eventually_some(SOON, "the segments come to the router", || {
            let now = counted(&rig);
            let all = (there.len() + back.len()) as u64;
            (now[0] - before[0] == all).then_some([now[1] - before[1], now[2] - before[2]])
        })
    };
    let strict = invalid();
    assert!(strict[0] > 0 && strict[1] > 0, "{strict:?}");
    rig.ask(async |kernel| assert!(kernel.be_liberal(&connection).await.unwrap()));
    assert_eq!(invalid(), [0, 0]);
    tcp.talk();
}

#[test]
fn a_dump_of_many_connections_streams_and_leaves_turns_to_others() {
    const MANY: u16 = 40_000;
    let rig = Rig::new();
    // None ends while the table fills, however slowly.
    let lasting = "net.netfilter.nf_conntrack_udp_timeout=600";
    rig.router.succeed(&["sysctl", "-qw", lasting]);
    let socket = rig
        .client
        .run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    let mut sent = 0_usize;
    let seen = eventually_some(Duration::from_secs(60), "the table fills", || {
        for port in 1000..1000 + MANY {
            // A full queue is no matter: what is missing comes next time.
            sent += usize::from(socket.send_to(b"x", (SERVER, port)).is_ok());
        }
        let count = rig
            .router
            .succeed(&["sysctl", "-n", "net.netfilter.nf_conntrack_count"]);
        let count: usize = count.trim().parse().unwrap();
        (count >= usize::from(MANY)).then_some(count)
    });
    assert!(sent >= seen);
    rig.ask(async |kernel| {
        let turns = std::rc::Rc::new(std::cell::Cell::new(0));
        let counter = turns.clone();
        let other = async move {
            loop {
                counter.set(counter.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        let mut ports = std::collections::HashSet::new();
        let dump = kernel.connections(|connection| {
            ports.extend(destination_port(&connection));
        });
        tokio::select! {
            biased;
            result = dump => result.unwrap(),
            () = other => {}
        }
        assert!((1000..1000 + MANY).all(|port| ports.contains(&port)));
        assert!(turns.get() > 100, "{} turns", turns.get());
    });
}

#[test]
fn settings_are_the_sysctls_and_accounting_can_be_enabled() {
    let rig = Rig::new();
    let set = |setting: &str| rig.router.succeed(&["sysctl", "-qw", setting]);
    set("net.netfilter.nf_conntrack_acct=0");
    set("net.netfilter.nf_conntrack_tcp_be_liberal=1");
    set("net.ipv6.conf.all.forwarding=0");
    set("net.netfilter.nf_conntrack_events=2");
    rig.ask(async |kernel| {
        let before = kernel.settings();
        assert!(!before.accounting && before.liberal);
        assert!(before.forwarding4 && !before.forwarding6);
        assert_eq!(before.events, EventMode::WhileHeard);
        kernel.enable_accounting().unwrap();
        set("net.netfilter.nf_conntrack_events=1");
        assert!(kernel.settings().accounting);
        assert_eq!(kernel.settings().events, EventMode::Always);
        let _tcp = Tcp::open(&rig, SERVER, 5030);
        assert!(rig.find(&kernel, 5030).await.counters.is_some());
    });
}

#[test]
fn without_the_capability_the_error_says_what_is_needed() {
    let rig = Rig::new();
    let error = rig.run(async || {
        // SAFETY: the system call takes three integers and, unlike the library's function,
        // changes this thread only, which ends with the test.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
        Kernel::open().await.unwrap_err()
    });
    assert!(matches!(error, KernelError::Permission), "{error:?}");
    assert!(error.to_string().contains("CAP_NET_ADMIN"));
}

#[test]
fn ipv6_connections_have_no_translation_and_their_own_addresses() {
    let rig = Rig::new();
    let _tcp = Tcp::open(&rig, SERVER_6, 5040);
    rig.ask(async |kernel| {
        let found = rig.find(&kernel, 5040).await;
        assert_eq!(found.original.source.to_string(), CLIENT_6);
        assert_eq!(found.reply.destination.to_string(), CLIENT_6);
        assert!(!found.status.has(Status::SRC_NAT));
    });
}
