//! A router guest between a client's and a server's namespace, as users run one: taps as
//! uplinks, `shunt backend`, QEMU.

use std::time::Duration;

use serde_json::{Value, json};

use super::guest::{Guest, GuestBuilder};
use super::netns::Netns;
use super::shunt::{Control, Shunt};
use super::{Dir, eventually};

/// How long traffic may take to bring a session somewhere behind a slow guest.
pub const SOON: Duration = Duration::from_secs(30);

/// The client's address, and the guest's on the same link.
pub const CLIENT: &str = "10.71.0.2";
pub const LAN: &str = "10.71.0.1";
/// The server's address, and the guest's on the same link: what clients look like there.
pub const SERVER: &str = "10.72.0.2";
pub const WAN: &str = "10.72.0.1";
/// A second server's address, and the guest's on the same link.
pub const OTHER: &str = "10.73.0.2";
pub const DMZ: &str = "10.73.0.1";

const LINKS: [(&str, &str, &str); 3] = [
    ("lan", LAN, CLIENT),
    ("wan", WAN, SERVER),
    ("dmz", DMZ, OTHER),
];
const STATE: &str = "/restconf/data/shunt-offload:state/element=router";
const OPERATIONS: &str = "/restconf/operations/shunt-offload:";

/// The guest and what it stands between. Its vNICs `lan`, `wan`, `dmz` are eth0, eth1,
/// eth2 inside; the uplink of each is a tap of the vNIC's name in a namespace of its own.
#[derive(Debug)]
pub struct Router {
    pub guest: Guest,
    pub shunt: Shunt,
    pub control: Sessions,
    /// The namespaces behind the vNICs, in their order.
    pub lan: Netns,
    pub wan: Netns,
    pub dmz: Netns,
    pub dir: Dir,
}

impl Router {
    /// Boots a router that masquerades what leaves by `wan`, and waits until it forwards.
    pub fn start(describe: impl FnOnce(GuestBuilder) -> GuestBuilder) -> Self {
        let dir = Dir::new();
        let spaces = ["lan", "wan", "dmz"].map(Netns::new);
        let mut config =
            "[backend]\ncontrol = \"{dir}/control.sock\"\n[[element]]\nname = \"router\"\n"
                .to_owned();
        let mut guest = Guest::build().masquerade("eth1");
        for (index, (name, inside, _)) in LINKS.iter().enumerate() {
            config.push_str(&format!(
                "[[element.vnic]]\nname = \"{name}\"\nsocket = \"{{dir}}/{name}.sock\"\n\
                 mac = \"52:54:00:5a:00:0{}\"\n\
                 uplink = {{ type = \"tap\", name = \"{name}\", netns = \"{}\" }}\n",
                index + 1,
                spaces[index].name(),
            ));
            let socket = dir.file(&format!("{name}.sock"));
            guest = guest
                // Room for the windows of several bulk transfers: the slow path drops none.
                .vnic_with(&format!("socket={},rx_queue_size=1024", socket.display()))
                .address(&format!("eth{index}"), &format!("{inside}/24"));
        }
        let shunt = Shunt::start(&dir, &config);
        for ((name, inside, outside), netns) in LINKS.iter().zip(&spaces) {
            netns.address(name, &format!("{outside}/24"));
            netns.gateway(inside);
        }
        let mut guest = describe(guest).start(&dir.file("guest"));
        guest.wait_ready();
        let control = Sessions::new(shunt.control());
        let [lan, wan, dmz] = spaces;
        let router = Self {
            guest,
            shunt,
            control,
            lan,
            wan,
            dmz,
            dir,
        };
        eventually(SOON, "the guest forwards", || {
            router.lan.pings(SERVER) && router.lan.pings(OTHER)
        });
        router
    }
}

/// What a flow's `state` may be, and that it is in no table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    Absent,
    Pending,
    Draining,
    Active,
    Closing,
}

/// The element's sessions, over the control socket.
#[derive(Debug)]
pub struct Sessions(Control);

impl Sessions {
    /// Those of the element `router`, over its backend's control API.
    pub fn new(control: Control) -> Self {
        Self(control)
    }

    /// Offers sessions that must all be taken.
    pub fn offload(&self, sessions: &[Value]) {
        let input = json!({"shunt-offload:input": {"session": sessions}});
        let output = self.0.post(&format!("{OPERATIONS}offload"), &input);
        let results = output["shunt-offload:output"]["result"].as_array().unwrap();
        assert_eq!(results.len(), sessions.len());
        for result in results {
            assert_eq!(result["result"], "offloaded", "{result}");
        }
    }

    /// Withdraws a session that must be there.
    pub fn withdraw(&self, key: &str) {
        let input = json!({"shunt-offload:input": {"key": [key]}});
        let output = self.0.post(&format!("{OPERATIONS}withdraw"), &input);
        let result = &output["shunt-offload:output"]["result"][0]["result"];
        assert_eq!(result, "withdrawn", "{key}: {output}");
    }

    /// Sends a session that must be there back to be proved again. How many had not waited.
    pub fn reprove(&self, key: &str) -> u64 {
        let input = json!({"shunt-offload:input": {"key": [key]}});
        let output = self.0.post(&format!("{OPERATIONS}reprove"), &input);
        let output = &output["shunt-offload:output"];
        assert_eq!(output["result"][0]["result"], "pending", "{key}: {output}");
        output["reproved"].as_str().unwrap().parse().unwrap()
    }

    /// Sends all sessions back. How many had not waited.
    pub fn reprove_all(&self) -> u64 {
        let input = json!({"shunt-offload:input": {"all": true}});
        let output = self.0.post(&format!("{OPERATIONS}reprove"), &input);
        let reproved = output["shunt-offload:output"]["reproved"].as_str();
        reproved.unwrap().parse().unwrap()
    }

    /// The `status` of a session, `Null` without it.
    pub fn status(&self, key: &str) -> Value {
        let path = format!("{STATE}/sessions/session={key}");
        let answer = self.0.request("GET", &path, None);
        match answer.status {
            404 => Value::Null,
            200 => answer.json()["shunt-offload:session"][0]["status"].take(),
            _ => panic!("GET {path}: {answer:?}"),
        }
    }

    /// The states of both directions.
    pub fn flows(&self, key: &str) -> [Flow; 2] {
        let status = self.status(key);
        ["original", "reply"].map(|direction| match &status[direction]["state"] {
            Value::Null => Flow::Absent,
            state => match state.as_str().unwrap() {
                "pending" => Flow::Pending,
                "draining" => Flow::Draining,
                "active" => Flow::Active,
                "closing" => Flow::Closing,
                other => panic!("{key} is in state {other}"),
            },
        })
    }

    /// The element's statistics.
    pub fn statistics(&self) -> Value {
        self.0.get(&format!("{STATE}/statistics"))["shunt-offload:statistics"].take()
    }
}
