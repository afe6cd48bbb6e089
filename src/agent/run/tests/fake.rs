//! A guest, its host and the line between them, on a clock that stands still while nothing waits.
//!
//! The guest forwards its connections at their rates, the host takes over what it was asked for
//! once it was seen forwarded as asked, and both keep books of their own. What an agent must never
//! do is checked where it would do it.

mod ends;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep};

use super::super::FromHost;
use crate::agent::connection::{Connection, ConntrackEvent, Ports, Tuple};
use crate::agent::core::identity::Id;
use crate::agent::core::testing::{LAN, WAN, element, links};
use crate::agent::core::{Element, Outcome};
use crate::agent::network::{Hazard, IfIndex, Links, NetworkChange};
use crate::api::events::{
    Active, Closed, Direction, Event, Final, HandedOver, Level, Sessions, TablePressure,
};
use crate::api::state::Traffic;
use crate::api::{Session, SessionKey};
use crate::packet::key::protocol;

pub use ends::{FakeParts, packets, parts};

pub const TICK: Duration = Duration::from_millis(100);
pub const LEASE: Duration = Duration::from_secs(10);
const ACTIVITY_EVERY: Duration = Duration::from_secs(10);
/// How late an agent may learn of a change by a look at the table alone: looks are up to 8 s
/// apart where nothing moves.
const LATE: Duration = Duration::from_secs(9);

/// A connection of the guest.
pub struct Conn {
    pub connection: Connection,
    /// How long it lives without packets.
    pub full: Duration,
    pub expires: Instant,
    /// Packets a tick, each way.
    pub rate: [u64; 2],
    /// By which interface each direction's packets come in and leave.
    pub way: [(IfIndex, IfIndex); 2],
    /// The guest drops it.
    pub is_blocked: bool,
    /// Since when it may not be offloaded.
    pub forbidden: Option<Instant>,
    /// It moved around the guest since its timeout was refreshed last.
    pub has_moved: bool,
    pub liberal: u32,
    pub moved: Instant,
}

/// A session of the host.
pub struct Live {
    pub session: Session,
    pub is_over: [bool; 2],
    pub fast: [u64; 2],
    told: [u64; 2],
    pub moved: Instant,
    id: u64,
}

/// What goes wrong.
#[derive(Default)]
pub struct Faults {
    /// How long calls take.
    pub delay: Duration,
    /// Calls of these kinds are never answered.
    pub mute: BTreeSet<&'static str>,
    /// The host has no such calls.
    pub missing: BTreeSet<&'static str>,
    /// They are carried out, and the answer is lost.
    pub lost: BTreeSet<&'static str>,
    /// What becomes of sessions that are asked for.
    pub refuse: Option<Outcome>,
    /// News of ended connections do not come.
    pub deaf: bool,
    /// Host and guest have had no faults since.
    pub until: Option<Instant>,
}

/// What was asked for, when: `offload 3`.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub at: Duration,
    pub kind: &'static str,
    pub keys: Vec<String>,
}

pub struct World {
    pub start: Instant,
    pub conns: BTreeMap<u32, Conn>,
    pub links: Links,
    pub hazards: Vec<Hazard>,
    pub element: Element,
    pub live: BTreeMap<SessionKey, Live>,
    pub faults: Faults,
    pub calls: Vec<Call>,
    pub epoch: Option<u64>,
    agent_epoch: Option<u64>,
    pub is_up: bool,
    pub silent_until: Option<Instant>,
    pub follows: bool,
    pub refreshes: Vec<(u32, Duration)>,
    pub neighbours: Vec<IpAddr>,
    pub scans: u32,
    gone: BTreeMap<Tuple, Instant>,
    ids: u64,
    next_activity: Instant,
    conntrack: Option<UnboundedSender<ConntrackEvent>>,
    network: Option<UnboundedSender<NetworkChange>>,
    to_agent: Option<UnboundedSender<FromHost>>,
}

pub type Shared = Rc<RefCell<World>>;

/// The original tuple that a session is about, in the guest's words.
fn tuple_of(session: &Session) -> Tuple {
    let of = &session.original;
    let ports = match (of.source_port, of.destination_port, of.identifier) {
        (Some(from), Some(to), _) => Ports::Ports(from, to),
        (_, _, Some(id)) => Ports::Icmp {
            kind: 8,
            code: 0,
            id,
        },
        _ => Ports::None,
    };
    Tuple {
        source: of.source_address,
        destination: of.destination_address,
        protocol: session.protocol.0,
        ports,
    }
}

impl World {
    pub fn new() -> Shared {
        let now = Instant::now();
        Rc::new(RefCell::new(Self {
            start: now,
            conns: BTreeMap::new(),
            links: links(),
            hazards: Vec::new(),
            element: element(),
            live: BTreeMap::new(),
            faults: Faults::default(),
            calls: Vec::new(),
            epoch: None,
            agent_epoch: None,
            is_up: true,
            silent_until: None,
            follows: true,
            refreshes: Vec::new(),
            neighbours: Vec::new(),
            scans: 0,
            gone: BTreeMap::new(),
            ids: 0,
            next_activity: now + ACTIVITY_EVERY,
            conntrack: None,
            network: None,
            to_agent: None,
        }))
    }

    /// A connection of the guest, at so many packets a tick each way.
    pub fn add(&mut self, connection: Connection, rate: [u64; 2]) {
        let number = connection.id;
        let full = connection.timeout.unwrap_or_default();
        let now = Instant::now();
        self.gone.remove(&connection.original);
        let conn = Conn {
            expires: now + full,
            full,
            rate,
            way: [(LAN, WAN), (WAN, LAN)],
            is_blocked: false,
            forbidden: None,
            has_moved: false,
            liberal: 0,
            moved: now,
            connection: connection.clone(),
        };
        let before = self.conns.insert(number, conn);
        assert!(before.is_none(), "the kernel's numbers differ");
        self.change(connection);
    }

    /// News of it.
    pub fn change(&mut self, connection: Connection) {
        if self.follows
            && let Some(conntrack) = &self.conntrack
        {
            // The agent may have ended.
            let _gone = conntrack.send(ConntrackEvent::Changed(connection));
        }
    }

    /// It may not be offloaded from now on.
    pub fn spoil(&mut self, number: u32, change: impl FnOnce(&mut Connection)) {
        let Some(conn) = self.conns.get_mut(&number) else {
            return;
        };
        change(&mut conn.connection);
        conn.forbidden = Some(Instant::now());
        let connection = conn.connection.clone();
        self.change(connection);
    }

    /// The guest's conntrack destroys it.
    pub fn destroy(&mut self, number: u32) {
        let Some(conn) = self.conns.remove(&number) else {
            return;
        };
        self.gone.insert(conn.connection.original, Instant::now());
        if !self.faults.deaf
            && let Some(conntrack) = &self.conntrack
        {
            let _gone = conntrack.send(ConntrackEvent::Gone(conn.connection));
        }
    }

    pub fn tell_conntrack(&self, event: ConntrackEvent) {
        if let Some(to) = &self.conntrack {
            let _gone = to.send(event).is_err();
        }
    }

    pub fn tell_network(&self, change: NetworkChange) {
        let _gone = self.network.as_ref().map(|to| to.send(change));
    }

    pub fn tell_agent(&self, told: FromHost) {
        let _gone = self.to_agent.as_ref().map(|to| to.send(told));
    }

    pub fn set_line(&mut self, is_up: bool) {
        self.is_up = is_up;
        self.tell_agent(FromHost::Line(is_up));
    }

    pub fn press(&self, level: Level) {
        self.tell_event(Event::TablePressure(TablePressure {
            element: "r1".to_owned(),
            level,
            sessions: 9,
            sessions_max: 10,
        }));
    }

    fn tell_event(&self, event: Event) {
        if self.is_up {
            self.tell_agent(FromHost::Event(Box::new(event)));
        }
    }

    /// The backend restarts: its sessions and epoch are gone.
    pub fn restart_backend(&mut self) {
        self.live.clear();
        self.epoch = None;
    }

    pub fn called(&self, kind: &str) -> Vec<&Call> {
        self.calls.iter().filter(|call| call.kind == kind).collect()
    }

    /// Connections that go around the guest both ways.
    pub fn active(&self) -> usize {
        self.live
            .values()
            .filter(|live| live.is_over == [true; 2])
            .count()
    }

    fn conn_of(&self, session: &Session) -> Option<u32> {
        let tuple = tuple_of(session);
        self.conns
            .iter()
            .find(|(_, conn)| conn.connection.original == tuple)
            .map(|(number, _)| *number)
    }

    fn key_of(&self, number: u32) -> Option<SessionKey> {
        let tuple = self.conns.get(&number)?.connection.original;
        self.live
            .iter()
            .find(|(_, live)| tuple_of(&live.session) == tuple)
            .map(|(key, _)| key.clone())
    }

    /// Time goes on by a tick.
    fn tick(&mut self) {
        let now = Instant::now();
        let numbers: Vec<u32> = self.conns.keys().copied().collect();
        for number in numbers {
            let key = self.key_of(number);
            for way in 0..2 {
                self.forward(number, key.as_ref(), way, now);
            }
            self.age(number, key.as_ref(), now);
        }
        self.expire_sessions(now);
        if now >= self.next_activity {
            self.next_activity = now + ACTIVITY_EVERY;
            self.tell_activity(now);
        }
        self.check(now);
        if self.silent_until.is_some_and(|until| until <= now) {
            // The lease has run out.
            self.silent_until = None;
            self.live.clear();
            self.epoch = None;
            self.set_line(true);
        }
    }

    /// A tick's packets of one direction: around the guest, or through it.
    fn forward(&mut self, number: u32, key: Option<&SessionKey>, way: usize, now: Instant) {
        let Some(conn) = self.conns.get_mut(&number) else {
            return;
        };
        let packets = conn.rate[way];
        if packets == 0 {
            return;
        }
        conn.moved = now;
        let live = key.and_then(|key| self.live.get_mut(key));
        let mut told = None;
        if let Some(live) = live {
            let asked = asked_way(&live.session, way);
            let comes = asked.0 == vnic(conn.way[way].0);
            let leaves = asked.1 == vnic(conn.way[way].1);
            if live.is_over[way] && comes {
                live.fast[way] += packets;
                live.moved = now;
                conn.has_moved = true;
                return;
            }
            if !live.is_over[way] && leaves && !conn.is_blocked {
                live.is_over[way] = true;
                conn.has_moved = true;
                told = Some((live.session.key.clone(), live.id));
            }
        }
        if let Some([original, reply]) = &mut conn.connection.counters {
            let counters = if way == 0 { original } else { reply };
            counters.packets += packets;
            counters.octets += packets * 1000;
        }
        conn.expires = now + conn.full;
        if let Some((key, id)) = told {
            self.tell_event(Event::SessionHandedOver(Sessions {
                element: "r1".to_owned(),
                session: vec![HandedOver {
                    key,
                    id,
                    direction: if way == 0 {
                        Direction::Original
                    } else {
                        Direction::Reply
                    },
                    transit: Some(300),
                    forced: false,
                    overtaken: 0,
                    lost: 0,
                }],
            }));
        }
    }

    /// Conntrack lets go of what it saw no packets of.
    fn age(&mut self, number: u32, key: Option<&SessionKey>, now: Instant) {
        let Some(conn) = self.conns.get_mut(&number) else {
            return;
        };
        conn.connection.timeout = Some(conn.expires.saturating_duration_since(now));
        if conn.expires > now {
            return;
        }
        let is_around = key
            .and_then(|key| self.live.get(key))
            .is_some_and(|live| live.fast != [0; 2] && now - live.moved < conn.full.min(LEASE));
        assert!(
            !is_around || self.has_faults(now),
            "{number} expired while it moved"
        );
        self.destroy(number);
    }

    fn expire_sessions(&mut self, now: Instant) {
        let idle = |live: &Live| {
            now - live.moved >= Duration::from_secs(live.session.idle_timeout.get().into())
        };
        let keys: Vec<SessionKey> = (self.live.iter())
            .filter(|(_, live)| idle(live))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.close(&key, "idle-timeout");
        }
    }

    /// The host ends a session.
    pub fn close(&mut self, key: &SessionKey, code: &str) {
        let Some(live) = self.live.remove(key) else {
            return;
        };
        let total = |way: usize| {
            let traffic = Traffic {
                packets: live.fast[way],
                octets: live.fast[way] * 1000,
            };
            Some(Final { traffic, tcp: None })
        };
        self.tell_event(Event::SessionClosed(Sessions {
            element: "r1".to_owned(),
            session: vec![Closed {
                key: key.clone(),
                id: live.id,
                close_code: code.to_owned(),
                age: 1,
                original: total(0),
                reply: total(1),
            }],
        }));
    }

    fn tell_activity(&mut self, now: Instant) {
        let mut session = Vec::new();
        for (key, live) in &mut self.live {
            if live.fast == live.told {
                continue;
            }
            live.told = live.fast;
            let total = |packets| {
                let octets = packets * 1000;
                Some(Traffic { packets, octets })
            };
            session.push(Active {
                key: key.clone(),
                id: live.id,
                idle: (now - live.moved).as_secs() as u32,
                original: total(live.fast[0]),
                reply: total(live.fast[1]),
            });
        }
        if !session.is_empty() {
            self.tell_event(Event::SessionActivity(Sessions {
                element: "r1".to_owned(),
                session,
            }));
        }
    }

    pub fn has_faults(&self, now: Instant) -> bool {
        let has_some = !self.faults.mute.is_empty() || !self.faults.lost.is_empty();
        let is_cut = !self.is_up || self.silent_until.is_some() || self.faults.deaf;
        has_some || is_cut || self.faults.until.is_some_and(|until| now < until)
    }

    /// What must hold at any time, but for faults.
    fn check(&mut self, now: Instant) {
        if self.has_faults(now) {
            return;
        }
        for live in self.live.values() {
            let tuple = tuple_of(&live.session);
            if let Some(at) = self.gone.get(&tuple) {
                assert!(
                    now - *at < Duration::from_secs(2),
                    "{tuple:?} is gone, and offloaded"
                );
            }
            let forbidden = self
                .conn_of(&live.session)
                .and_then(|number| self.conns[&number].forbidden);
            if let Some(at) = forbidden {
                assert!(now - at < LATE, "{tuple:?} may not be offloaded, and is");
            }
        }
    }

    /// Takes one session.
    fn take(&mut self, session: &Session) -> Outcome {
        if let Some(outcome) = self.faults.refuse {
            return outcome;
        }
        let now = Instant::now();
        let tuple = tuple_of(session);
        match self.conn_of(session) {
            Some(number) => {
                let forbidden = self.conns[&number].forbidden;
                let is_known = forbidden.is_none_or(|at| now - at < LATE);
                assert!(is_known, "asked for what may not be offloaded: {tuple:?}");
                let conn = &self.conns[&number];
                let is_meant = Id::of(&conn.connection).key().as_ref() == Some(&session.key);
                let is_checked = tuple.protocol == protocol::TCP && conn.liberal == 0;
                assert!(
                    !(is_meant && is_checked),
                    "asked for while windows are checked: {tuple:?}"
                );
            }
            None => {
                let at = self.gone.get(&tuple);
                let is_late = at.is_none_or(|at| now - *at >= Duration::from_secs(1));
                assert!(
                    !is_late || self.has_faults(now),
                    "asked for nothing: {tuple:?}"
                );
            }
        }
        let same = |live: &Live| tuple_of(&live.session) == tuple;
        let other = self.live.iter().find(|(_, live)| same(live));
        match other {
            Some((key, live)) if *key == session.key && live.session == *session => {
                return Outcome::Unchanged;
            }
            Some((key, _)) => assert_eq!(*key, session.key, "two live sessions of one tuple"),
            None => {}
        }
        self.ids += 1;
        let live = Live {
            session: session.clone(),
            is_over: [false; 2],
            fast: [0; 2],
            told: [0; 2],
            moved: now,
            id: self.ids,
        };
        self.live.insert(session.key.clone(), live);
        Outcome::Taken
    }

    fn note(&mut self, kind: &'static str, keys: Vec<String>) {
        let at = self.start.elapsed();
        self.calls.push(Call { at, kind, keys });
    }
}

/// The vNICs that a session says a direction comes in and leaves by.
fn asked_way(session: &Session, way: usize) -> (String, String) {
    let (original, reply) = (&session.original, &session.reply);
    let (ingress, egress) = (&original.ingress_vnic, &original.egress_vnic);
    if way == 0 {
        return (ingress.clone(), egress.clone());
    }
    let ingress_of_reply = reply.ingress_vnic.as_ref().unwrap_or(egress);
    let egress_of_reply = reply.egress_vnic.as_ref().unwrap_or(ingress);
    (ingress_of_reply.clone(), egress_of_reply.clone())
}

fn vnic(index: IfIndex) -> String {
    match index {
        LAN => "v-lan".to_owned(),
        WAN => "v-wan".to_owned(),
        other => format!("v-{}", other.0),
    }
}

/// Time goes on, for ever.
pub async fn run(world: Shared) {
    loop {
        sleep(TICK).await;
        world.borrow_mut().tick();
    }
}
