//! Everything that the agent asks of, or tells, the Linux kernel.
//!
//! | module | what |
//! |---|---|
//! | `socket`, `wire`, `options` | netlink's sockets, messages and attributes; the options that no crate has |
//! | `conntrack`, `events`, `filter` | connections: dump, one, refresh; what happens to them |
//! | `links`, `marks`, `programs`, `ebtables` | interfaces, and what keeps the fast path away from them |
//! | `route`, `xfrm`, `neighbour` | routes, policies of IPsec, neighbours and bridge entries |
//! | `watch`, `ipset` | what changes under the connections |
//! | `rules` | what a ruleset needs to see |
//! | `settings` | sysctls |
//!
//! *Promises*: the kernel's answers as they are; nothing is cached but what is needed to tell a
//! change from a repetition. Nothing here changes what the guest decides: it writes timeouts
//! and TCP flags of connections, and marks neighbours and bridge entries as used.
//! *Refuses*: nothing; errors are the kernel's, and [`KernelError`] says what is missing.
//! *Caller's duty*: CAP_NET_ADMIN in the network namespace of the calling thread, which is the
//! one that is asked; a tokio runtime of that thread, with I/O and time.
//! *Standard*: netlink(7), rtnetlink(7); include/uapi/linux.
//!
//! Messages are read here, not by crates: `netlink-packet-netfilter` lacks half of conntrack's
//! attributes, `netlink-packet-route` refuses a whole message for one attribute that a newer
//! kernel has changed, and with `netlink-packet-core`'s attributes a dump of conntrack takes
//! twice the time. `netlink-sys` has the sockets.

mod conntrack;
mod ebtables;
mod events;
mod filter;
mod ipset;
mod links;
mod marks;
mod neighbour;
mod options;
mod programs;
mod route;
mod rules;
mod settings;
mod socket;
mod watch;
mod wire;
mod xfrm;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::Mutex;

pub use events::{ConntrackEvents, Groups};
pub use settings::{EventMode, Settings};
pub use watch::NetworkEvents;

use self::rules::{Ruleset, iptables, nft};
use self::socket::Socket;
use super::connection::{Connection, TcpState};
use super::network::{Bridged, Hazard, IfIndex, Links, Route, RouteQuery};

/// Why the kernel cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not.
    #[error(
        "no permission to ask the kernel about connections: run the agent as root, or with \
         CAP_NET_ADMIN in the network namespace of the router"
    )]
    Permission,
    /// Netfilter's netlink is missing.
    #[error(
        "the kernel has no netfilter netlink: load it with `modprobe nfnetlink`, or use a kernel \
         with CONFIG_NETFILTER_NETLINK"
    )]
    NoNetfilter,
    /// Conntrack's netlink is missing.
    #[error(
        "the kernel does not tell about connections: load the module with \
         `modprobe nf_conntrack_netlink` (OpenWrt: the package kmod-nf-conntrack-netlink), or \
         use a kernel with CONFIG_NF_CT_NETLINK"
    )]
    NoConntrack,
    /// Anything else the system said.
    #[error("cannot ask the kernel")]
    System(#[from] io::Error),
}

/// The kernel, for questions. Each kind has a socket; dumps have their own.
#[derive(Debug)]
pub struct Kernel {
    netfilter: Mutex<Socket>,
    route: Mutex<Socket>,
    /// Some kernels have no IPsec.
    xfrm: Option<Mutex<Socket>>,
}

impl Kernel {
    /// Opens the sockets in the thread's network namespace, and tries whether conntrack
    /// answers.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub async fn open() -> Result<Self, KernelError> {
        let mut netfilter =
            Socket::open(libc::NETLINK_NETFILTER).map_err(|error| match error.raw_os_error() {
                Some(libc::EPROTONOSUPPORT) => KernelError::NoNetfilter,
                _ => explained(error),
            })?;
        let statistics = conntrack::get_statistics();
        netfilter.ask(statistics, |_| {}).await.map_err(explained)?;
        let route = Socket::open(libc::NETLINK_ROUTE)?;
        let xfrm = match Socket::open(libc::NETLINK_XFRM) {
            Ok(xfrm) => Some(Mutex::new(xfrm)),
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            netfilter: Mutex::new(netfilter),
            route: Mutex::new(route),
            xfrm,
        })
    }

    /// Gives every connection, of both families, to `f`. Those that come and go meanwhile may
    /// be missing; one may be given twice.
    ///
    /// # Errors
    ///
    /// The kernel's; some connections may have been given by then.
    pub async fn connections(&self, mut f: impl FnMut(Connection)) -> io::Result<()> {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
        let dump = socket.dump(conntrack::get_all(), |message| {
            if let Some(connection) = conntrack::read(message.payload) {
                f(connection);
            }
        });
        // It is no moment's picture anyway: an interrupted one is as good.
        dump.await.map(drop)
    }

    /// The connection as it is now. `None`: it is gone, or another one has its tuple.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn connection(&self, of: &Connection) -> io::Result<Option<Connection>> {
        let mut found = None;
        let mut socket = self.netfilter.lock().await;
        let asked = socket.ask(conntrack::get(of), |message| {
            found = conntrack::read(message.payload);
        });
        is_there(asked.await)?;
        Ok(found.filter(|found| found.id == of.id))
    }

    /// Has it live for `timeout` from now on (whole seconds, at least one). `false`: it is
    /// gone. One of TCP that is not open any more is left alone: its end has times of its own.
    ///
    /// # Errors
    ///
    /// The kernel's: EPERM also for a connection whose timeout is fixed.
    pub async fn refresh(&self, of: &Connection, timeout: Duration) -> io::Result<bool> {
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1);
        match self.connection(of).await? {
            Some(now) if now.tcp.is_some_and(|state| state != TcpState::ESTABLISHED) => Ok(true),
            Some(_) => self.change(conntrack::set_timeout(of, seconds)).await,
            None => Ok(false),
        }
    }

    /// Lets conntrack's window checks pass everything of this TCP connection, and forget the
    /// highest acknowledgement, in both directions. `false`: it is gone.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn be_liberal(&self, of: &Connection) -> io::Result<bool> {
        match self.connection(of).await? {
            Some(_) => self.change(conntrack::set_liberal(of)).await,
            None => Ok(false),
        }
    }

    /// A change names a connection by its tuple only: so it is first seen that it is this one.
    async fn change(&self, wish: wire::Request) -> io::Result<bool> {
        let mut socket = self.netfilter.lock().await;
        is_there(socket.ask(wish, |_| {}).await)
    }

    /// All interfaces.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn links(&self) -> io::Result<Links> {
        links::read_all().await
    }

    /// Where such a packet would go.
    ///
    /// # Errors
    ///
    /// The kernel's; that there is no route is an answer.
    pub async fn route(&self, query: &RouteQuery) -> io::Result<Route> {
        let mut answer = route::ask(&mut *self.route.lock().await, query).await?;
        if let Route::Unicast {
            is_encapsulated: is_encapsulated @ false,
            ..
        } = &mut answer
            && let Some(xfrm) = &self.xfrm
        {
            *is_encapsulated = xfrm::takes(&mut *xfrm.lock().await, query).await?;
        }
        Ok(answer)
    }

    /// Tells the kernel that a neighbour is used, so that it stays known: one that is stale, or
    /// unknown, is asked for.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn use_neighbour(&self, on: IfIndex, address: IpAddr) -> io::Result<()> {
        neighbour::use_neighbour(&mut *self.route.lock().await, on, address).await
    }

    /// Tells a bridge that the neighbour `address` of its interface `on` is still where `bridged`
    /// says, so that the entry does not age. Entries that are elsewhere, or gone, stay so.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn use_bridged(
        &self,
        on: IfIndex,
        address: IpAddr,
        bridged: Bridged,
    ) -> io::Result<()> {
        let mut socket = self.route.lock().await;
        match neighbour::mac_of(&mut socket, on, address).await? {
            Some(mac) => neighbour::use_fdb(&mut socket, bridged, mac).await,
            None => Ok(()),
        }
    }

    /// What the ruleset has that must see every packet of a connection, once each.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub async fn hazards(&self) -> io::Result<Vec<Hazard>> {
        let mut ruleset = Ruleset::default();
        nft::add_all(&mut ruleset).await?;
        for family in iptables::Family::ALL {
            for name in iptables::names(family) {
                iptables::read(family, &name)?.add_to(&mut ruleset);
            }
        }
        Ok(ruleset.hazards().into_iter().collect())
    }

    /// Sysctls that matter.
    pub fn settings(&self) -> Settings {
        settings::read()
    }

    /// Has connections that begin from now on counted (`nf_conntrack_acct`).
    ///
    /// # Errors
    ///
    /// The kernel's: sysctls may be read-only in a container.
    pub fn enable_accounting(&self) -> io::Result<()> {
        settings::enable_accounting()
    }
}

fn explained(error: io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => KernelError::Permission,
        // The subsystem is unknown.
        Some(libc::EINVAL | libc::EOPNOTSUPP) => KernelError::NoConntrack,
        _ => KernelError::System(error),
    }
}

/// `false` if what was asked for is gone, or just going.
fn is_there(asked: io::Result<()>) -> io::Result<bool> {
    match asked {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ETIME) => Ok(false),
            _ => Err(error),
        },
    }
}
