//! What the agent's driver needs of the kernel and of the host.
//!
//! *Promises*: words only. The real ones are those of the kernel's and the channel's modules; tests
//! have others, so that a whole agent runs on a clock of its own.
//! *Refuses*: nothing.
//! *Caller's duty*: `next` loses nothing when its caller stops waiting, but may have to begin a
//! long work anew: [`NetworkNews::next`] is waited for until it comes.
//! *Standard*: none.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::agent::connection::{Connection, ConntrackEvent};
use crate::agent::core::{CallError, Element, Offered, Reprove};
use crate::agent::network::{Bridged, Hazard, IfIndex, Links, NetworkChange, Route, RouteQuery};
use crate::api::events::Event;
use crate::api::{Session, SessionKey};

/// The guest's kernel, for questions and orders.
pub(crate) trait Kernel {
    /// Gives every connection to `each`.
    async fn connections(&self, each: impl FnMut(Connection)) -> io::Result<()>;
    /// A connection as it is now; none if it is gone.
    async fn connection(&self, of: &Connection) -> io::Result<Option<Connection>>;
    /// Sets its timeout; `false` if it is gone.
    async fn refresh(&self, of: &Connection, timeout: Duration) -> io::Result<bool>;
    /// Checks its TCP windows no more; `false` if it is gone.
    async fn be_liberal(&self, of: &Connection) -> io::Result<bool>;
    /// The interfaces.
    async fn links(&self) -> io::Result<Links>;
    /// Where a packet would go.
    async fn route(&self, query: &RouteQuery) -> io::Result<Route>;
    /// A neighbour is in use, and so is its entry of a bridge, there.
    async fn use_neighbour(
        &self,
        on: IfIndex,
        address: IpAddr,
        bridged: Option<Bridged>,
    ) -> io::Result<()>;
    /// What of the ruleset must see every packet.
    async fn hazards(&self) -> io::Result<Vec<Hazard>>;
}

/// News of connections.
pub(crate) trait ConntrackNews {
    /// The next.
    async fn next(&mut self) -> io::Result<ConntrackEvent>;
    /// Follows news of new and changed connections, or leaves them.
    fn follow(&mut self, follow: bool) -> io::Result<()>;
}

/// News of the network and the ruleset.
pub(crate) trait NetworkNews {
    /// The next.
    async fn next(&mut self) -> io::Result<NetworkChange>;
}

/// The host, for calls.
pub(crate) trait Host {
    /// Begins an epoch; the lease, if the host says one.
    async fn open_epoch(&self) -> Result<Option<Duration>, CallError>;
    /// Who the element is.
    async fn element(&self) -> Result<Element, CallError>;
    /// Offers sessions.
    async fn offload(&self, sessions: Vec<Session>) -> Result<Vec<Offered>, CallError>;
    /// Takes sessions back.
    async fn withdraw(&self, keys: Vec<SessionKey>) -> Result<(), CallError>;
    /// Has sessions proved again; the keys that are not there.
    async fn reprove(&self, which: Reprove) -> Result<Vec<SessionKey>, CallError>;
    /// Makes the host's sessions these.
    async fn sync(&self, wanted: Vec<Session>) -> Result<Vec<Offered>, CallError>;
    /// Is unseen until the lease has run out.
    fn fall_silent(&self);
}

/// What comes from the host without having been asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum FromHost {
    /// It can be reached, or not any more.
    Line(bool),
    /// A notification.
    Event(Box<Event>),
    /// Notifications are missing here.
    EventsLost,
}

/// News of the host.
pub(crate) trait HostNews {
    /// The next; none: there will be no more.
    async fn next(&mut self) -> Option<FromHost>;
}
