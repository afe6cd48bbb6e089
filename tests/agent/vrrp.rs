//! Two routers with one address, and an agent in each.

use std::time::Duration;

use crate::rig::{SOON, agent_script, endpoint, is_active, sessions};
use crate::support::guest::Guest;
use crate::support::netns::Netns;
use crate::support::process::needs;
use crate::support::shunt::{Shunt, agent_binary};
use crate::support::tcp::{Direction, TcpPlan, TcpTransfer};
use crate::support::{Dir, at, eventually};

const CLIENT: &str = "10.82.1.100";
const SERVER: &str = "10.82.2.100";
/// The routers' common addresses.
const LAN: &str = "10.82.1.1";
const WAN: &str = "10.82.2.1";
const RATE: u64 = 3_000_000;
const TRANSFER: Duration = Duration::from_secs(90);

const CONFIG: &str = r#"
[backend]
control = "{dir}/control.sock"
[up]
controller = "{dir}/controller.sock"
presence = "{dir}/presence.sock"
audit = "{dir}/audit.jsonl"
[lease]
socket = "{dir}/presence.sock"
timeout-ms = 5000
"#;

/// A connection that comes from elsewhere is taken up where it is.
const RULES: &str = r#"
sysctl -q -w net.netfilter.nf_conntrack_tcp_be_liberal=0
nft -f - <<'RULES'
flush ruleset
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname eth0 accept
        meta l4proto icmp accept
    }
}
RULES
cat >/run/keepalived.conf <<'CONFIG'
vrrp_sync_group both {
    group {
        lan
        wan
    }
}
vrrp_instance lan {
    state BACKUP
    interface eth0
    virtual_router_id 51
    priority {priority}
    advert_int 1
    virtual_ipaddress {
        10.82.1.1/24
    }
}
vrrp_instance wan {
    state BACKUP
    interface eth1
    virtual_router_id 52
    priority {priority}
    advert_int 1
    virtual_ipaddress {
        10.82.2.1/24
    }
}
CONFIG
"#;

const KEEPALIVED: &str = "keepalived --vrrp --use-file /run/keepalived.conf --log-console \
    --dont-fork --pid /run/keepalived.pid --vrrp_pid /run/vrrp.pid \
    >>/run/keepalived.log 2>&1 </dev/null &\n";

struct Pair {
    // Ends in this order.
    guests: [Guest; 2],
    shunt: Shunt,
    client: Netns,
    server: Netns,
    _dir: Dir,
}

impl Pair {
    fn start() -> Self {
        needs("keepalived", "keepalived");
        let (dir, client, server) = (Dir::new(), Netns::new("vcl"), Netns::new("vsv"));
        let mut config = CONFIG.to_owned();
        for (index, name) in ["first", "second"].iter().enumerate() {
            std::fs::create_dir(dir.file(name)).unwrap();
            config += &format!(
                "[[element]]\nname = '{name}'\nsessions = 1024\n\
                 source-prefixes = ['0.0.0.0/0']\n\
                 serial = {{ socket = '{{dir}}/{name}/offload.sock', uid = 0 }}\n"
            );
            for (side, netns) in [("lan", &client), ("wan", &server)] {
                let mac = mac(index, side);
                let netns = netns.name();
                config += &format!(
                    "[[element.vnic]]\nname = '{side}'\nsocket = '{{dir}}/{name}/{side}.sock'\n\
                     mac = '{mac}'\n\
                     uplink = {{ type = 'tap', name = '{side}{index}', netns = '{netns}' }}\n"
                );
            }
        }
        let shunt = Shunt::up(&dir, &config);
        for (side, netns, address, gateway) in
            [("lan", &client, CLIENT, LAN), ("wan", &server, SERVER, WAN)]
        {
            netns.ip("link add bridge type bridge");
            for index in 0..2 {
                netns.ip(&format!("link set {side}{index} master bridge"));
            }
            netns.ip("link set bridge up");
            netns.address("bridge", &format!("{address}/24"));
            netns.gateway(gateway);
        }
        let mut guests = [0, 1].map(|index| boot(&dir, index));
        for guest in &mut guests {
            guest.wait_ready();
        }
        Self {
            guests,
            shunt,
            client,
            server,
            _dir: dir,
        }
    }
}

fn mac(index: usize, side: &str) -> String {
    let side = if side == "lan" { 1 } else { 2 };
    format!("52:54:00:5a:0{index}:0{side}")
}

fn boot(dir: &Dir, index: usize) -> Guest {
    let name = ["first", "second"][index];
    let priority = [150, 100][index].to_string();
    let script = RULES.replace("{priority}", &priority) + &agent_script("") + KEEPALIVED;
    let script = dir.write(&format!("{name}.script"), &script);
    let mut builder = Guest::build()
        .program(&agent_binary())
        .program("/usr/sbin/keepalived".as_ref())
        .argument("--script", script.to_str().unwrap());
    for (interface, side, network) in [("eth0", "lan", 1), ("eth1", "wan", 2)] {
        let socket = dir.file(&format!("{name}/{side}.sock"));
        let (socket, mac) = (socket.display(), mac(index, side));
        builder = builder
            .vnic_with(&format!("socket={socket},mac={mac},rx_queue_size=1024"))
            .address(interface, &format!("10.82.{network}.1{index}/24"));
    }
    builder.start(&dir.file(name))
}

/// The master goes in mid-transfer, and comes back: the transfer goes on through and around
/// whoever has the address.
pub fn a_transfer_survives_fail_over_and_back() {
    let mut pair = Pair::start();
    eventually(SOON, "the master forwards", || pair.client.pings(SERVER));
    let to = at(&endpoint(SERVER, 8_200));
    let plan = TcpPlan {
        listen: to,
        connect: to,
        direction: Direction::Upload,
        bytes: 1 << 34,
        rate: Some(RATE),
    };
    let running = TcpTransfer::start(&pair.client, &pair.server, plan);
    goes_around("first", &pair, &running);

    pair.guests[0].succeed("kill $(cat /run/keepalived.pid)");
    goes_around("second", &pair, &running);

    pair.guests[0].succeed(KEEPALIVED);
    goes_around("first", &pair, &running);
    running.finish(TRANSFER);
}

/// Waits until a router's session carries the transfer.
fn goes_around(element: &str, pair: &Pair, running: &TcpTransfer) {
    let control = pair.shunt.control();
    let carried = || {
        let session = sessions(&control, element).into_iter().find(is_active)?;
        let status = &session["status"];
        let packets = crate::rig::number(&status["original"]["packets"]);
        Some((status["id"].clone(), packets))
    };
    eventually(SOON, &format!("it goes around {element}"), || {
        let (before, moved) = (carried(), running.moved());
        crate::support::pause(Duration::from_millis(300));
        match (before, carried()) {
            (Some((id, packets)), Some((same, later))) => {
                id == same && later > packets && running.moved() > moved
            }
            _ => false,
        }
    });
}
