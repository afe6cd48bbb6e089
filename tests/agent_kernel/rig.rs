//! A client, a router with masquerade, and a server.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use shunt::agent::connection::Connection;
use shunt::agent::kernel::Kernel;
use shunt::agent::network::IfIndex;

use crate::support::netns::Netns;
use crate::support::process::needs;

pub const SOON: Duration = Duration::from_secs(20);
pub const CLIENT: &str = "10.91.0.2";
pub const CLIENT_6: &str = "fd91::2";
pub const SERVER: &str = "10.92.0.2";
pub const SERVER_6: &str = "fd92::2";
pub const WAN: &str = "10.92.0.1";

/// The namespaces. The router's interfaces are `lan` and `wan`.
pub struct Rig {
    pub client: Netns,
    pub router: Netns,
    pub server: Netns,
}

impl Rig {
    /// With connection tracking, counters, and masquerade of IPv4 at `wan`.
    pub fn new() -> Self {
        needs("nft", "nftables");
        needs("conntrack", "conntrack");
        let rig = Self {
            client: Netns::new("kc"),
            router: Netns::new("kr"),
            server: Netns::new("ks"),
        };
        let Self {
            client,
            router,
            server,
        } = &rig;
        router.veth("lan", client, "eth0");
        router.veth("wan", server, "eth0");
        for (netns, interface, addresses) in [
            (client, "eth0", ["10.91.0.2/24", "fd91::2/64"]),
            (router, "lan", ["10.91.0.1/24", "fd91::1/64"]),
            (router, "wan", ["10.92.0.1/24", "fd92::1/64"]),
            (server, "eth0", ["10.92.0.2/24", "fd92::2/64"]),
        ] {
            for address in addresses {
                netns.address(interface, address);
            }
        }
        for (netns, gateways) in [
            (client, ["10.91.0.1", "fd91::1"]),
            (server, ["10.92.0.1", "fd92::1"]),
        ] {
            for gateway in gateways {
                netns.gateway(gateway);
            }
        }
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.netfilter.nf_conntrack_acct=1",
        ] {
            router.succeed(&["sysctl", "-qw", setting]);
        }
        rig.nft(
            "table ip nat { chain out { type nat hook postrouting priority srcnat; \
             oifname wan masquerade; } }\n\
             table inet filter { chain pass { type filter hook forward priority filter; \
             ct state invalid counter drop; counter accept; } }",
        );
        rig
    }

    /// Loads rules into the router, a command a line.
    pub fn nft(&self, rules: &str) {
        for line in rules.lines() {
            // On one line a brace that closes needs its separator.
            let line = line.replace("} }", "}; }").replace("} }", "}; }");
            self.router.succeed(&["nft", &line]);
        }
    }

    /// What conntrack's own tool prints.
    pub fn conntrack(&self, arguments: &str) -> String {
        let mut argv = vec!["conntrack"];
        argv.extend(arguments.split_whitespace());
        let output = self.router.exec(&argv);
        String::from_utf8(output.stdout).unwrap()
    }

    /// The index of an interface of the router.
    pub fn index(&self, interface: &str) -> IfIndex {
        index(&self.router, interface)
    }

    /// Runs `work` in the router, with the kernel open.
    pub fn ask<T: Send>(&self, work: impl AsyncFnOnce(Kernel) -> T + Send) -> T {
        self.run(async || work(Kernel::open().await.unwrap()).await)
    }

    /// Runs `work` in the router, on a runtime of its own thread.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.router.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(work())
        })
    }

    /// The connection whose original destination has that port.
    pub async fn find(&self, kernel: &Kernel, port: u16) -> Connection {
        let mut found = None;
        kernel
            .connections(|connection| {
                if destination_port(&connection) == Some(port) {
                    found = Some(connection);
                }
            })
            .await
            .unwrap();
        found.unwrap_or_else(|| panic!("no connection to port {port}"))
    }
}

/// The port that a connection goes to.
pub fn destination_port(connection: &Connection) -> Option<u16> {
    match connection.original.ports {
        shunt::agent::connection::Ports::Ports(_, port) => Some(port),
        _ => None,
    }
}

/// The index of an interface.
pub fn index(netns: &Netns, interface: &str) -> IfIndex {
    let links = netns.ip(&format!("-json link show dev {interface}"));
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    IfIndex(links[0]["ifindex"].as_u64().unwrap().try_into().unwrap())
}

/// Waits for `future`, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

/// A TCP connection, open at both ends, over which bytes went both ways.
pub struct Tcp {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Tcp {
    /// From the client to the server's `address`.
    pub fn open(rig: &Rig, address: &str, port: u16) -> Self {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let listener = rig.server.run(|| TcpListener::bind(address).unwrap());
        let client = rig.client.run(|| TcpStream::connect(address).unwrap());
        let (server, _) = listener.accept().unwrap();
        let mut tcp = Self { client, server };
        tcp.talk();
        tcp
    }

    /// A word each way.
    pub fn talk(&mut self) {
        let mut word = [0; 4];
        self.client.write_all(b"ping").unwrap();
        self.server.read_exact(&mut word).unwrap();
        self.server.write_all(b"pong").unwrap();
        self.client.read_exact(&mut word).unwrap();
    }
}

/// A UDP flow from the client to the server, with or without an answer.
pub fn udp(rig: &Rig, address: &str, port: u16, is_answered: bool) -> UdpSocket {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let server = rig.server.run(|| UdpSocket::bind(address).unwrap());
    let client = rig.client.run(|| UdpSocket::bind(any).unwrap());
    client.send_to(b"ping", address).unwrap();
    let mut word = [0; 4];
    let (_, from) = server.recv_from(&mut word).unwrap();
    if is_answered {
        server.send_to(b"pong", from).unwrap();
        client.recv_from(&mut word).unwrap();
    }
    client
}
