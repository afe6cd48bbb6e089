//! Two routers with one address, and an agent in each.

use std::time::Duration;

use crate::rig::{SOON, agent_script, endpoint, is_active, number, sessions};
use crate::support::guest::Guest;
use crate::support::netns::Netns;
use crate::support::process::needs;
use crate::support::shunt::{Shunt, agent_binary};
use crate::support::tcp::{Direction, TcpPlan, TcpTransfer};
use crate::support::{Dir, at, eventually, now, pause};

const CLIENT: &str = "10.82.1.100";
const SERVER: &str = "10.82.2.100";
/// The routers' common addresses.
const LAN: &str = "10.82.1.1";
const WAN: &str = "10.82.2.1";
const RATE: u64 = 3_000_000;
/// From one look to the next: some packets go by meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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

/// The one that has the addresses while it lives, and the other.
const FIRST: usize = 0;
const SECOND: usize = 1;
const NAMES: [&str; 2] = ["first", "second"];

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
        for (index, name) in NAMES.iter().enumerate() {
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
        let mut guests = [FIRST, SECOND].map(|index| boot(&dir, index));
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

    /// Waits until a router's session carries the transfer, and the other's does not.
    fn goes_around(&mut self, router: usize, running: &TcpTransfer) {
        let started = now();
        let look = |pair: &Self| (running.moved(), [FIRST, SECOND].map(|of| pair.carried(of)));
        let other = 1 - router;
        let mut before = look(self);
        loop {
            pause(LOOK_EVERY);
            let later = look(self);
            let goes = |of: usize| before.1[of].is_some() && later.1[of] > before.1[of];
            if later.0 > before.0 && goes(router) && !goes(other) {
                let name = NAMES[router];
                eprintln!(
                    "  around {name} after {:.1} s",
                    started.elapsed().as_secs_f32()
                );
                return;
            }
            if started.elapsed() > SOON {
                panic!(
                    "not around {}: {before:?}, {later:?}\n{}",
                    NAMES[router],
                    self.say()
                );
            }
            before = later;
        }
    }

    /// Packets that went around a router while it was the way.
    fn carried(&self, router: usize) -> Option<u64> {
        let sessions = sessions(&self.shunt.control(), NAMES[router]);
        let session = sessions.iter().find(|session| is_active(session))?;
        Some(number(&session["status"]["original"]["packets"]))
    }

    /// What agents, conntrack, keepalived, the backend and the ends say.
    fn say(&mut self) -> String {
        let ask = "shunt agent status; conntrack -L -p tcp -o extended,id 2>&1; conntrack -S; \
                   ip neigh; cat /proc/net/dev /run/agent.log /run/keepalived.log";
        let said = |guest: &mut Guest| guest.run(ask).0;
        let guests = self.guests.each_mut().map(said).join("\n\n");
        let control = self.shunt.control();
        let counted = NAMES.map(|name| {
            let path = format!("/restconf/data/shunt-offload:state/element={name}/statistics");
            control.get(&path).to_string()
        });
        let ends = [&self.client, &self.server];
        let ends = ends.map(|end| {
            end.ip("neigh") + &end.succeed(&["bridge", "fdb"]) + &end.succeed(&["ss", "-tin"])
        });
        format!("{guests}\n{}\n{}", counted.join("\n"), ends.join("\n"))
    }
}

fn mac(index: usize, side: &str) -> String {
    let side = if side == "lan" { 1 } else { 2 };
    format!("52:54:00:5a:0{index}:0{side}")
}

fn boot(dir: &Dir, index: usize) -> Guest {
    let name = NAMES[index];
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
/// whoever has the addresses.
pub fn a_transfer_survives_fail_over_and_back() {
    let mut pair = Pair::start();
    // Whoever boots first has the addresses for a moment. A connection that began there would be
    // known to the second with windows that are out of date when it comes back.
    eventually(SOON, "the first is the master", || {
        let is_first = |netns: &Netns, address: &str, side: &str| {
            let mac = mac(FIRST, side);
            netns
                .ip(&format!("neighbour show {address}"))
                .contains(&mac)
        };
        pair.client.pings(SERVER)
            && is_first(&pair.client, LAN, "lan")
            && is_first(&pair.server, WAN, "wan")
    });
    let to = at(&endpoint(SERVER, 8_200));
    let plan = TcpPlan {
        listen: to,
        connect: to,
        direction: Direction::Upload,
        bytes: 1 << 34,
        rate: Some(RATE),
    };
    let running = TcpTransfer::start(&pair.client, &pair.server, plan);
    pair.goes_around(FIRST, &running);
    pair.guests[FIRST].succeed("kill $(cat /run/keepalived.pid)");
    pair.goes_around(SECOND, &running);
    pair.guests[FIRST].succeed(KEEPALIVED);
    pair.goes_around(FIRST, &running);
    running.finish(SOON);
}
