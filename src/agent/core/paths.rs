//! The ways a connection may take through the guest: for each direction the interface it comes
//! in by and the one it leaves by.
//!
//! Conntrack does not say by which interface a connection's packets come in. A router that answers
//! symmetrically sends them back there, so the first question is where the answers go; then where
//! the original goes, coming in from there; then the answers once more, coming in from there; and,
//! if that differs (rules that look at the interface), the original again. So both directions are
//! asked as the kernel itself decides about a forwarded packet: after destination and before
//! source translation.
//!
//! *Promises*: candidates, the likeliest first, at most [`PATHS_MAX`]; at most
//! [`QUESTIONS_MAX`] questions. Every interface of a candidate is a vNIC of the element.
//! *Refuses*: with a reason, when no context (VRF, mark) has a candidate.
//! *Caller's duty*: a candidate is a guess; only the proof of forwarding shows that the guest does
//! so. A wrong way in is seen by packets that go on coming to the guest.
//! *Standard*: none; `ip-rule(8)`, Linux `Documentation/networking/vrf.rst`.

use std::net::IpAddr;

use super::ports::{Port, Ports};
use super::reason::Reason;
use crate::agent::connection::{Connection, Ports as Numbers};
use crate::agent::network::{IfIndex, Route, RouteQuery};

/// Most candidates of one connection.
pub const PATHS_MAX: usize = 9;
/// Most contexts that are asked in.
const CONTEXTS_MAX: usize = 8;
/// Most questions: four for each context.
pub const QUESTIONS_MAX: usize = 4 * CONTEXTS_MAX;

/// Where one direction leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Exit {
    /// The interface.
    pub by: IfIndex,
    /// The neighbour that the packets go to, where a route told it.
    pub next_hop: Option<IpAddr>,
    /// The route's own MTU, bytes, if it has one.
    pub mtu: Option<u32>,
}

/// The way of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leg {
    /// The interface it comes in by.
    pub ingress: IfIndex,
    /// Where it leaves.
    pub exit: Exit,
}

/// The ways of both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Path {
    /// Of the original direction.
    pub original: Leg,
    /// Of the answers.
    pub reply: Leg,
}

impl Path {
    /// Both, original first.
    pub const fn legs(&self) -> [&Leg; 2] {
        [&self.original, &self.reply]
    }

    /// Whether packets come in or leave by `interface`.
    pub fn uses(&self, interface: IfIndex) -> bool {
        let uses = |leg: &Leg| leg.ingress == interface || leg.exit.by == interface;
        self.legs().into_iter().any(uses)
    }

    /// The neighbours that packets go to.
    pub fn next_hops(&self) -> impl Iterator<Item = (IfIndex, IpAddr)> {
        let hop = |leg: &Leg| leg.exit.next_hop.map(|hop| (leg.exit.by, hop));
        [hop(&self.original), hop(&self.reply)]
            .into_iter()
            .flatten()
    }
}

/// Where to ask: a VRF and a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Context {
    vrf: Option<IfIndex>,
    mark: u32,
}

/// What is to be asked next in a context, and what is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Question {
    /// Where do answers go, wherever they come from?
    Back,
    /// Where does the original go, coming in by this interface?
    Forth { from: IfIndex },
    /// Where do answers go, coming in where the original leaves?
    BackAgain { from: IfIndex, out: Exit },
    /// The same as [`Question::Forth`], with the way of the answers known.
    ForthAgain { back: Exit },
}

/// A search for a connection's ways: questions out, answers in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Search {
    connection: Numbered,
    contexts: Vec<Context>,
    at: usize,
    question: Question,
    found: Vec<Path>,
    /// Why the first context that failed did so.
    failed: Option<Reason>,
}

/// What of a connection routes depend on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Numbered {
    /// Source of the original direction, and destination of the answers once restored.
    near: IpAddr,
    /// Destination of the original direction once translated, and source of the answers.
    far: IpAddr,
    protocol: u8,
    /// Ports of the two.
    ports: Option<(u16, u16)>,
}

impl Search {
    /// A search for the ways of `connection`.
    pub fn new(connection: &Connection, ports: &Ports) -> Self {
        let numbers = match (connection.original.ports, connection.reply.ports) {
            (Numbers::Ports(near, _), Numbers::Ports(far, _)) => Some((near, far)),
            _ => None,
        };
        Self {
            connection: Numbered {
                near: connection.original.source,
                far: connection.reply.source,
                protocol: connection.original.protocol,
                ports: numbers,
            },
            contexts: contexts(connection.mark, ports),
            at: 0,
            question: Question::Back,
            found: Vec::new(),
            failed: None,
        }
    }

    /// What is to be asked next; none: the search is over.
    pub fn question(&self) -> Option<RouteQuery> {
        let Context { vrf, mark } = *self.contexts.get(self.at)?;
        let Numbered {
            near,
            far,
            protocol,
            ports,
        } = self.connection;
        let ask = |is_back: bool, ingress: Option<IfIndex>| RouteQuery {
            source: if is_back { far } else { near },
            destination: if is_back { near } else { far },
            protocol,
            ports: ports.map(|(near, far)| if is_back { (far, near) } else { (near, far) }),
            ingress,
            // The interface says which VRF; the VRF is asked for only without one.
            vrf: vrf.filter(|_| ingress.is_none()),
            mark,
        };
        Some(match self.question {
            Question::Back => ask(true, None),
            Question::Forth { from } => ask(false, Some(from)),
            Question::BackAgain { out, .. } => ask(true, Some(out.by)),
            Question::ForthAgain { back } => ask(false, Some(back.by)),
        })
    }

    /// Takes the answer to [`Search::question`].
    pub fn answer(&mut self, route: Route, ports: &Ports) {
        let exit = match exit(route, self.towards(), ports) {
            Ok(exit) => exit,
            Err(reason) => return self.fail(reason),
        };
        self.question = match self.question {
            Question::Back => Question::Forth { from: exit.by },
            Question::Forth { from } => Question::BackAgain { from, out: exit },
            Question::BackAgain { from, out } if exit.by == from => {
                return self.find(out, exit);
            }
            Question::BackAgain { .. } => Question::ForthAgain { back: exit },
            Question::ForthAgain { back } => return self.find(exit, back),
        };
    }

    /// The candidates, the likeliest first.
    ///
    /// # Errors
    /// Why there is none.
    pub fn finish(mut self, ports: &Ports) -> Result<Vec<Path>, Reason> {
        let Some(first) = self.found.first().copied() else {
            return Err(self.failed.unwrap_or(Reason::Unrouted));
        };
        for path in others(first, ports) {
            if self.found.len() >= PATHS_MAX {
                break;
            }
            if !self.found.contains(&path) {
                self.found.push(path);
            }
        }
        self.found.truncate(PATHS_MAX);
        Ok(self.found)
    }

    /// Where packets of the direction that is asked about go.
    fn towards(&self) -> IpAddr {
        match self.question {
            Question::Back | Question::BackAgain { .. } => self.connection.near,
            Question::Forth { .. } | Question::ForthAgain { .. } => self.connection.far,
        }
    }

    fn find(&mut self, forth: Exit, back: Exit) {
        let path = Path {
            original: Leg {
                ingress: back.by,
                exit: forth,
            },
            reply: Leg {
                ingress: forth.by,
                exit: back,
            },
        };
        if !self.found.contains(&path) {
            self.found.push(path);
        }
        self.next_context();
    }

    fn fail(&mut self, reason: Reason) {
        self.failed.get_or_insert(reason);
        self.next_context();
    }

    fn next_context(&mut self) {
        self.at += 1;
        self.question = Question::Back;
    }
}

/// Rulesets commonly copy a connection's mark to its packets, and as commonly use it for
/// something else: both are asked, the mark first.
fn contexts(mark: u32, ports: &Ports) -> Vec<Context> {
    let vrfs = std::iter::once(None).chain(ports.vrfs().iter().copied().map(Some));
    let mut contexts: Vec<Context> = vrfs
        .flat_map(|vrf| [mark, 0].map(|mark| Context { vrf, mark }))
        .collect();
    contexts.dedup();
    contexts.truncate(CONTEXTS_MAX);
    contexts
}

/// Where a route leads, if that is a vNIC.
fn exit(route: Route, towards: IpAddr, ports: &Ports) -> Result<Exit, Reason> {
    match route {
        Route::Local => Err(Reason::Local),
        Route::None => Err(Reason::Unrouted),
        Route::Unicast {
            is_encapsulated: true,
            ..
        } => Err(Reason::Tunnel),
        Route::Unicast {
            by, gateway, mtu, ..
        } => ports.get(by).map(|_| Exit {
            by,
            next_hop: Some(gateway.unwrap_or(towards)),
            mtu,
        }),
    }
}

/// Ways that the routing tables do not tell of: packets that come in elsewhere than answers go,
/// and another of several equal routes. Not the way back where it came from.
fn others(first: Path, ports: &Ports) -> impl Iterator<Item = Path> {
    let vrf = ports
        .get(first.original.ingress)
        .ok()
        .and_then(|port| port.vrf);
    let elsewhere: Vec<IfIndex> = ports
        .usable()
        .filter(|(index, port)| !first.uses(*index) && port.vrf == vrf)
        .map(|(index, _)| index)
        .collect();
    let leaves = |by| Exit {
        by,
        next_hop: None,
        mtu: None,
    };
    // By what is likely first, then by interface.
    let changes: [fn(&mut Path, Exit); 4] = [
        |path, exit| path.reply.ingress = exit.by,
        |path, exit| path.original.ingress = exit.by,
        |path, exit| {
            path.original.exit = exit;
            path.reply.ingress = exit.by;
        },
        |path, exit| {
            path.reply.exit = exit;
            path.original.ingress = exit.by;
        },
    ];
    changes.into_iter().flat_map(move |change| {
        let others = elsewhere.clone().into_iter();
        others.map(move |index| {
            let mut path = first;
            change(&mut path, leaves(index));
            path
        })
    })
}

impl Exit {
    /// The largest L3 packet to be asked for: none if the vNIC's own is the smallest.
    ///
    /// # Errors
    /// It is smaller than the IP version allows.
    pub fn l3_mtu(&self, port: &Port, is_v4: bool) -> Result<Option<u16>, Reason> {
        let least = port.mtu.min(self.mtu.unwrap_or(u32::MAX));
        let lower_bound = if is_v4 { 68 } else { 1280 };
        match u16::try_from(least) {
            Ok(mtu) if u32::from(mtu) < lower_bound => Err(Reason::Mtu),
            Ok(mtu) if mtu < port.vnic_mtu => Ok(Some(mtu)),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
