//! Opening an uplink: checks first, then the program, then a socket for each queue.
//!
//! *Promises*: what would be refused is refused before the interface is touched, as far as
//! it can be known; a failure undoes what was done. The calling thread stays in its
//! network namespace.
//! *Refuses*: what [`XdpError`] lists.
//! *Caller's duty*: to keep device and ports together for as long as the uplink is used.
//! *Standard*: the kernel's Documentation/networking/af_xdp.rst.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::super::{bpf, netns};
use super::port::XdpPort;
use super::rings::{Chunk, Rings};
use super::sys::{self, IfName, Place};
use super::{
    CopyMode, ETHERNET, MTU_MAX, Opened, Port, QUEUES_MAX, Queue, Shared, State, TAG, Xdp,
    XdpConfig, XdpError, program,
};
use crate::packet::MacAddr;

/// A closed socket, or the program of a process that was killed, is undone a moment later:
/// until then its place is taken.
const BUSY_DEADLINE: Duration = Duration::from_secs(2);
const TRY_EVERY: Duration = Duration::from_millis(10);

/// What ends with the uplink, in this order.
pub(super) struct Attachment {
    _link: OwnedFd,
    _membership: OwnedFd,
    _map: OwnedFd,
}

/// Opens an interface as an uplink: a device for its control and a port for each queue.
///
/// # Errors
/// See [`XdpError`]; each says what to do.
pub fn open(config: &XdpConfig) -> Result<Opened, XdpError> {
    let plan = Plan::new(config)?;
    let (attachment, shared, rings, features) = match &config.netns {
        None => plan.open(),
        Some(name) => netns::run(name, || plan.open()).map_err(|source| XdpError::Netns {
            name: config.interface.clone(),
            source,
        })?,
    }?;
    let state = match shared.link() {
        super::Link::Up => State::Running,
        _ => State::Down,
    };
    let shared = Arc::new(shared);
    let mut queues = Vec::new();
    let mut ports: Vec<Box<dyn Port>> = Vec::new();
    for rings in rings {
        let queue = Arc::new(Queue::new(rings.socket().clone(), state));
        ports.push(Box::new(XdpPort::new(shared.clone(), queue.clone(), rings)));
        queues.push(queue);
    }
    let device = Xdp {
        shared,
        queues,
        features,
        _attachment: attachment,
    };
    Ok((Arc::new(device), ports))
}

/// A checked configuration, to be carried out inside the namespace.
struct Plan<'a> {
    config: &'a XdpConfig,
    if_name: IfName,
}

/// What the interface is, as far as it matters here.
struct Interface {
    control: UnixDatagram,
    index: u32,
    mac: MacAddr,
    mtu: usize,
    is_veth: bool,
}

type Parts = (Attachment, Shared, Vec<Rings>, Vec<String>);

impl<'a> Plan<'a> {
    fn new(config: &'a XdpConfig) -> Result<Self, XdpError> {
        let name = || config.interface.clone();
        let if_name =
            IfName::new(&config.interface).ok_or_else(|| XdpError::InvalidName(name()))?;
        if !(1..=QUEUES_MAX).contains(&config.queues) {
            return Err(XdpError::InvalidQueues {
                name: name(),
                queues: config.queues,
            });
        }
        Ok(Self { config, if_name })
    }

    fn open(&self) -> Result<Parts, XdpError> {
        let interface = self.look_at()?;
        let chunk = self.chunk(&interface)?;
        let (attachment, place) = self.attach(&interface)?;
        let rings = (0..self.config.queues)
            .map(|queue| self.bind(&interface, queue, chunk, &attachment))
            .collect::<Result<Vec<_>, _>>()?;
        let features = features(place, &rings);
        let shared = Shared {
            name: self.config.interface.clone(),
            if_name: self.if_name,
            index: interface.index,
            control: interface.control,
            frame_max: chunk.frame_max().min(interface.mtu + ETHERNET + TAG),
            unmarked_partials: interface.is_veth,
            closed: AtomicBool::new(false),
        };
        Ok((attachment, shared, rings, features))
    }

    /// Asks the kernel about the interface; refuses one that would lose frames or tags.
    fn look_at(&self) -> Result<Interface, XdpError> {
        let control =
            UnixDatagram::unbound().map_err(|source| self.failed("make a socket", source))?;
        let index = sys::index(&control, &self.if_name).map_err(|source| self.missing(source))?;
        let mac = sys::mac(&control, &self.if_name)
            .map_err(|source| self.failed("read its address", source))?
            .ok_or_else(|| XdpError::NotEthernet { name: self.name() })?;
        let mtu = sys::mtu(&control, &self.if_name)
            .map_err(|source| self.failed("read its MTU", source))?;
        // A driver that does not say is none of those that need care.
        let driver = sys::driver(&control, &self.if_name).unwrap_or_default();
        if driver == "tun" {
            return Err(XdpError::Tap { name: self.name() });
        }
        let is_veth = driver == "veth";
        self.check_queues(&control, is_veth)?;
        // A veth says so too, but does it for nobody.
        if !is_veth && sys::strips_vlan_tags(&control, &self.if_name).unwrap_or(false) {
            return Err(XdpError::VlanStripping {
                name: self.name(),
                command: self.command(&format!("ethtool -K {} rxvlan off", self.name())),
            });
        }
        if !sys::is_up(&control, &self.if_name).unwrap_or(true) {
            let name = self.name();
            log::warn!("xdp {name}: it is set down; `ip link set {name} up` lets frames through");
        }
        Ok(Interface {
            control,
            index,
            mac,
            mtu: mtu as usize,
            is_veth,
        })
    }

    fn check_queues(&self, control: &UnixDatagram, is_veth: bool) -> Result<(), XdpError> {
        // A driver without this request has one queue.
        let has = sys::receive_queues(control, &self.if_name).unwrap_or(1);
        let asked = self.config.queues;
        if has == u32::from(asked) {
            return Ok(());
        }
        let name = self.name();
        let command = if is_veth {
            format!("ethtool -L {name} rx {asked} tx {asked}")
        } else {
            format!("ethtool -L {name} combined {asked}")
        };
        Err(XdpError::Queues {
            name,
            has,
            asked,
            command: self.command(&command),
        })
    }

    fn chunk(&self, interface: &Interface) -> Result<Chunk, XdpError> {
        let mtu = interface.mtu;
        let name = self.name();
        if usize::from(self.config.mtu) != mtu {
            log::warn!(
                "xdp {name}: it has an MTU of {mtu}, the vNIC has {}: `ip link set {name} mtu {}` \
                 makes them equal",
                self.config.mtu,
                self.config.mtu
            );
        }
        let frame = mtu + ETHERNET + 2 * TAG;
        [Chunk::TwoKib, Chunk::FourKib]
            .into_iter()
            .find(|chunk| frame <= chunk.frame_max())
            .ok_or_else(|| XdpError::Mtu {
                mtu: mtu as u32,
                command: self.command(&format!("ip link set {name} mtu {MTU_MAX}")),
                name,
            })
    }

    /// Makes the map, sets the interface to hear everything, and attaches the program.
    fn attach(&self, interface: &Interface) -> Result<(Attachment, Place), XdpError> {
        let map = sys::socket_map(self.config.queues.into())
            .map_err(|source| self.failed("make the map of sockets", source))?;
        // Frames to an address that the element has too are the element's.
        let own = Some(interface.mac).filter(|mac| *mac != self.config.mac);
        let code = program::assemble(std::os::fd::AsRawFd::as_raw_fd(&map), own);
        let program = bpf::load(bpf::Kind::Xdp, &code)
            .map_err(|source| self.failed("load the XDP program", source))?;
        let membership = sys::listen_to_all(interface.index)
            .map_err(|source| self.failed("make it promiscuous", source))?;
        let attach = |place| patiently(|| sys::attach(&program, interface.index, place));
        let (link, place) = match attach(Place::Native) {
            Ok(link) => (link, Place::Native),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                log::warn!(
                    "xdp {}: its driver runs no XDP programs; the kernel's own, slower way \
                     (generic XDP) is taken",
                    self.name()
                );
                let link = attach(Place::Generic).map_err(|error| self.explain_attach(error))?;
                (link, Place::Generic)
            }
            Err(error) => return Err(self.explain_attach(error)),
        };
        let attachment = Attachment {
            _link: link,
            _membership: membership,
            _map: map,
        };
        Ok((attachment, place))
    }

    /// Binds a socket to a queue and lets the program find it.
    fn bind(
        &self,
        interface: &Interface,
        queue: u16,
        chunk: Chunk,
        attachment: &Attachment,
    ) -> Result<Rings, XdpError> {
        let (index, mode) = (interface.index, self.config.mode);
        let rings = patiently(|| Rings::bind(index, queue.into(), mode, chunk))
            .map_err(|error| self.explain_bind(error, queue))?;
        let socket = rings.socket().raw_fd();
        sys::set_socket(&attachment._map, queue.into(), socket)
            .map_err(|source| self.failed("put the socket into the map", source))?;
        Ok(rings)
    }

    fn explain_attach(&self, error: io::Error) -> XdpError {
        let name = self.name();
        match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => XdpError::ProgramBusy {
                command: self.command(&format!("ip link set {name} xdp off")),
                name,
            },
            Some(libc::EPERM | libc::EACCES) => XdpError::Permission { name },
            Some(libc::ERANGE | libc::ENOSPC | libc::EINVAL | libc::EOPNOTSUPP) => {
                XdpError::Refused {
                    name,
                    source: error,
                }
            }
            _ => self.failed("attach the XDP program", error),
        }
    }

    fn explain_bind(&self, error: io::Error, queue: u16) -> XdpError {
        let name = self.name();
        match error.raw_os_error() {
            Some(libc::EBUSY) => XdpError::QueueBusy { name, queue },
            Some(libc::EPERM | libc::EACCES) => XdpError::Permission { name },
            Some(libc::ENOBUFS) => XdpError::Memory { name },
            Some(libc::EOPNOTSUPP | libc::EINVAL) if self.config.mode == CopyMode::ZeroCopy => {
                XdpError::NoZeroCopy { name }
            }
            _ => self.failed("bind an AF_XDP socket", error),
        }
    }

    fn missing(&self, error: io::Error) -> XdpError {
        match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => XdpError::Missing {
                name: self.name(),
                place: match &self.config.netns {
                    Some(netns) => format!(" in netns `{netns}`"),
                    None => String::new(),
                },
                command: self.command("ip link show"),
            },
            _ => self.failed("look up the interface", error),
        }
    }

    fn failed(&self, step: &'static str, source: io::Error) -> XdpError {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => XdpError::Permission { name: self.name() },
            _ => XdpError::Step {
                name: self.name(),
                step,
                source,
            },
        }
    }

    fn name(&self) -> String {
        self.config.interface.clone()
    }

    /// A command, for the interface's namespace.
    fn command(&self, command: &str) -> String {
        match &self.config.netns {
            Some(netns) => format!("ip netns exec {netns} {command}"),
            None => command.to_owned(),
        }
    }
}

/// What `show ports` says of the way frames take.
fn features(place: Place, rings: &[Rings]) -> Vec<String> {
    let zero_copy = rings
        .iter()
        .all(|rings| sys::is_zero_copy(rings.socket().raw_fd()).unwrap_or(false));
    let place = match place {
        Place::Native => "native",
        Place::Generic => "generic",
    };
    let copy = if zero_copy { "zero-copy" } else { "copy" };
    vec![place.to_owned(), copy.to_owned()]
}

/// Tries again while something is busy, until the deadline.
#[expect(
    clippy::disallowed_methods,
    reason = "opening may wait; the kernel tells nobody when a queue or an interface becomes free"
)]
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY)
                    && started.elapsed() < BUSY_DEADLINE =>
            {
                std::thread::sleep(TRY_EVERY);
            }
            result => return result,
        }
    }
}
