//! The ends that the agent talks to, played by the world: the guest's kernel, the host, and their
//! news.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::super::super::{ConntrackNews, FromHost, Host, HostNews, Kernel, NetworkNews, Parts};
use super::{LEASE, Shared, World};
use crate::agent::connection::{Connection, ConntrackEvent, Counters};
use crate::agent::core::testing::{LAN, WAN};
use crate::agent::core::{CallError, Element, Offered, Reprove};
use crate::agent::network::{Bridged, Hazard, IfIndex, Links, NetworkChange, Route, RouteQuery};
use crate::api::{Session, SessionKey};

pub struct FakeKernel(pub Shared);
pub struct FakeHost(pub Shared);
pub struct News<T>(UnboundedReceiver<T>, Shared);

/// What an agent works with, with news of the network of that kind.
pub type FakeParts<N> = Parts<FakeKernel, FakeHost, News<ConntrackEvent>, N, News<FromHost>>;

/// What an agent of this world works with. An earlier agent hears no more.
pub fn parts(world: &Shared) -> FakeParts<News<NetworkChange>> {
    let (conntrack, conntrack_news) = unbounded_channel();
    let (network, network_news) = unbounded_channel();
    let (to_agent, from_host) = unbounded_channel();
    let mut inner = world.borrow_mut();
    inner.conntrack = Some(conntrack);
    inner.network = Some(network);
    inner.to_agent = Some(to_agent);
    inner.follows = true;
    inner.agent_epoch = None;
    let is_up = inner.is_up;
    inner.tell_agent(FromHost::Line(is_up));
    Parts {
        kernel: Rc::new(FakeKernel(Rc::clone(world))),
        host: Rc::new(FakeHost(Rc::clone(world))),
        conntrack: News(conntrack_news, Rc::clone(world)),
        network: News(network_news, Rc::clone(world)),
        from_host: News(from_host, Rc::clone(world)),
    }
}

impl ConntrackNews for News<ConntrackEvent> {
    async fn next(&mut self) -> io::Result<ConntrackEvent> {
        self.0
            .recv()
            .await
            .ok_or_else(|| io::Error::other("closed"))
    }

    fn follow(&mut self, follow: bool) -> io::Result<()> {
        self.1.borrow_mut().follows = follow;
        Ok(())
    }
}

impl NetworkNews for News<NetworkChange> {
    async fn next(&mut self) -> io::Result<NetworkChange> {
        self.0
            .recv()
            .await
            .ok_or_else(|| io::Error::other("closed"))
    }
}

impl HostNews for News<FromHost> {
    async fn next(&mut self) -> Option<FromHost> {
        self.0.recv().await
    }
}

impl FakeKernel {
    /// The connection that is meant, if it is still that one.
    fn find(&self, of: &Connection) -> Option<u32> {
        let world = self.0.borrow();
        let conn = world.conns.get(&of.id)?;
        (conn.connection.original == of.original).then_some(of.id)
    }
}

impl Kernel for FakeKernel {
    async fn connections(&self, mut each: impl FnMut(Connection)) -> io::Result<()> {
        self.0.borrow_mut().scans += 1;
        let numbers: Vec<u32> = self.0.borrow().conns.keys().copied().collect();
        for chunk in numbers.chunks(50) {
            for number in chunk {
                let found = self
                    .0
                    .borrow()
                    .conns
                    .get(number)
                    .map(|of| of.connection.clone());
                found.into_iter().for_each(&mut each);
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn connection(&self, of: &Connection) -> io::Result<Option<Connection>> {
        let world = self.0.borrow();
        let number = self.find(of);
        Ok(number.map(|number| world.conns[&number].connection.clone()))
    }

    async fn refresh(&self, of: &Connection, timeout: Duration) -> io::Result<bool> {
        let Some(number) = self.find(of) else {
            return Ok(false);
        };
        let mut world = self.0.borrow_mut();
        let is_live = world.key_of(number).is_some();
        let faulty = world.has_faults(Instant::now());
        let Some(conn) = world.conns.get_mut(&number) else {
            return Ok(false);
        };
        let full = conn.full;
        if is_live && !faulty {
            assert!(
                conn.has_moved,
                "{number} was refreshed without having moved"
            );
            assert!(timeout >= LEASE * 2, "{timeout:?} is below two leases");
        }
        assert!(
            timeout <= full.max(LEASE * 2),
            "{timeout:?} is above {full:?}"
        );
        conn.has_moved = false;
        conn.expires = Instant::now() + timeout;
        conn.connection.timeout = Some(timeout);
        world.refreshes.push((number, timeout));
        Ok(true)
    }

    async fn be_liberal(&self, of: &Connection) -> io::Result<bool> {
        let number = self.find(of);
        if let Some(number) = number
            && let Some(conn) = self.0.borrow_mut().conns.get_mut(&number)
        {
            conn.liberal += 1;
        }
        Ok(number.is_some())
    }

    async fn links(&self) -> io::Result<Links> {
        Ok(self.0.borrow().links.clone())
    }

    async fn route(&self, query: &RouteQuery) -> io::Result<Route> {
        let is_near = matches!(query.destination, IpAddr::V4(v4) if v4.octets()[0] == 10);
        Ok(Route::Unicast {
            by: if is_near { LAN } else { WAN },
            gateway: None,
            mtu: None,
            is_encapsulated: false,
        })
    }

    async fn use_neighbour(
        &self,
        _on: IfIndex,
        address: IpAddr,
        _bridged: Option<Bridged>,
    ) -> io::Result<()> {
        self.0.borrow_mut().neighbours.push(address);
        Ok(())
    }

    async fn hazards(&self) -> io::Result<Vec<Hazard>> {
        Ok(self.0.borrow().hazards.clone())
    }
}

impl FakeHost {
    /// A call goes there, and its answer comes back; or not.
    async fn call<T>(
        &self,
        kind: &'static str,
        keys: Vec<String>,
        carry_out: impl FnOnce(&mut World) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        self.0.borrow_mut().note(kind, keys);
        let delay = self.0.borrow().faults.delay;
        sleep(delay / 2).await;
        let is_mute = self.0.borrow().faults.mute.contains(kind);
        if is_mute {
            sleep(Duration::from_secs(5)).await;
            return Err(CallError::Lost);
        }
        if !self.0.borrow().is_up {
            return Err(CallError::Refused);
        }
        if self.0.borrow().faults.missing.contains(kind) {
            return Err(CallError::NotOffered);
        }
        let answer = {
            let mut world = self.0.borrow_mut();
            let needs_epoch = !matches!(kind, "epoch" | "element");
            let is_stale = world.epoch.is_none() || world.epoch != world.agent_epoch;
            if needs_epoch && is_stale {
                Err(CallError::StaleEpoch)
            } else {
                carry_out(&mut world)
            }
        };
        sleep(delay / 2).await;
        let world = self.0.borrow();
        if world.faults.lost.contains(kind) || !world.is_up {
            return Err(CallError::Lost);
        }
        answer
    }

    fn offered(world: &mut World, sessions: &[Session]) -> Vec<Offered> {
        let offered = |session: &Session| Offered {
            key: session.key.clone(),
            outcome: world.take(session),
        };
        sessions.iter().map(offered).collect()
    }
}

fn names<'a>(keys: impl IntoIterator<Item = &'a SessionKey>) -> Vec<String> {
    keys.into_iter().map(ToString::to_string).collect()
}

impl Host for FakeHost {
    async fn open_epoch(&self) -> Result<Option<Duration>, CallError> {
        self.call("epoch", Vec::new(), |world| {
            world.live.clear();
            world.ids += 1;
            world.epoch = Some(world.ids);
            world.agent_epoch = world.epoch;
            Ok(Some(LEASE))
        })
        .await
    }

    async fn element(&self) -> Result<Element, CallError> {
        self.call("element", Vec::new(), |world| Ok(world.element.clone()))
            .await
    }

    async fn offload(&self, sessions: Vec<Session>) -> Result<Vec<Offered>, CallError> {
        let keys = names(sessions.iter().map(|session| &session.key));
        self.call("offload", keys, |world| Ok(Self::offered(world, &sessions)))
            .await
    }

    async fn withdraw(&self, keys: Vec<SessionKey>) -> Result<(), CallError> {
        self.call("withdraw", names(&keys), |world| {
            keys.iter().for_each(|key| world.close(key, "withdrawn"));
            Ok(())
        })
        .await
    }

    async fn reprove(&self, which: Reprove) -> Result<Vec<SessionKey>, CallError> {
        let (kind, keys) = match which {
            Reprove::All => ("reprove-all", Vec::new()),
            Reprove::Keys(keys) => ("reprove", keys),
        };
        self.call(kind, names(&keys), |world| {
            let mut absent = Vec::new();
            if kind == "reprove-all" {
                world
                    .live
                    .values_mut()
                    .for_each(|live| live.is_over = [false; 2]);
            }
            for key in &keys {
                match world.live.get_mut(key) {
                    Some(live) => live.is_over = [false; 2],
                    None => absent.push(key.clone()),
                }
            }
            Ok(absent)
        })
        .await
    }

    async fn sync(&self, wanted: Vec<Session>) -> Result<Vec<Offered>, CallError> {
        let keys = names(wanted.iter().map(|session| &session.key));
        self.call("sync", keys, |world| {
            let named: BTreeSet<&SessionKey> = wanted.iter().map(|of| &of.key).collect();
            let swept: Vec<SessionKey> = (world.live.keys())
                .filter(|key| !named.contains(key))
                .cloned()
                .collect();
            swept.iter().for_each(|key| world.close(key, "withdrawn"));
            Ok(Self::offered(world, &wanted))
        })
        .await
    }

    fn fall_silent(&self) {
        let mut world = self.0.borrow_mut();
        world.note("silent", Vec::new());
        world.silent_until = Some(Instant::now() + LEASE + Duration::from_secs(2));
        world.set_line(false);
    }
}

/// A connection's packets so far: through the guest, and around it.
pub fn packets(world: &Shared, number: u32) -> (u64, u64) {
    let world = world.borrow();
    let guest = (world.conns.get(&number))
        .and_then(|conn| conn.connection.counters)
        .map_or(0, |[there, back]: [Counters; 2]| {
            there.packets + back.packets
        });
    let fast = (world.key_of(number))
        .and_then(|key| world.live.get(&key))
        .map_or(0, |live| live.fast.iter().sum());
    (guest, fast)
}
