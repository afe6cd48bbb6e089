//! Creating or attaching a tap.
//!
//! *Promises*: an existing device is looked at before it is touched; a failure closes
//! what was opened, and a device created on the way ends with it.
//! *Refuses*: what [`TapError`] lists.
//! *Caller's duty*: to keep device and ports together for as long as the tap is used.
//! *Standard*: the kernel's Documentation/networking/tuntap.rst.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use libc::c_int;

use super::super::netns;
use super::link::{self, Link};
use super::port::TapPort;
use super::steering;
use super::sys;
use super::{
    MTU_MAX, Opened, Port, QUEUES_MAX, Queue, Shared, State, Tap, TapConfig, TapError, VNET_HEADER,
};
use crate::packet::PeerOffloads;
use crate::port::ifname::IfName;

/// Opens the tap, creating it if there is none of that name: a device for its control
/// and a port for each queue, in order.
///
/// A device that is created here is set up, has the MTU of `config`, and ends with its
/// ports. An existing one keeps its state and MTU. With several queues the kernel keeps each
/// flow in one; if it refuses to, there is one port only, and a warning. All that this kernel can
/// leave undone in frames it is asked to. The calling thread stays in its network namespace.
///
/// # Errors
/// See [`TapError`]; each says what to do.
pub fn open(config: &TapConfig) -> Result<Opened, TapError> {
    let plan = Plan::new(config)?;
    let (shared, queues) = match &config.netns {
        None => plan.open(),
        Some(name) => netns::run(name, || plan.open()).map_err(|source| TapError::Netns {
            name: config.name.clone(),
            source,
        })?,
    }?;
    let shared = Arc::new(shared);
    let queues: Vec<_> = queues.into_iter().map(Arc::new).collect();
    let ports = queues
        .iter()
        .map(|queue| -> Box<dyn Port> {
            Box::new(TapPort::new(Arc::clone(&shared), Arc::clone(queue)))
        })
        .collect();
    let device = Tap { shared, queues };
    Ok((Arc::new(device), ports))
}

/// A checked configuration, to be carried out inside the namespace.
struct Plan<'a> {
    config: &'a TapConfig,
    if_name: IfName,
}

impl<'a> Plan<'a> {
    fn new(config: &'a TapConfig) -> Result<Self, TapError> {
        let name = || config.name.clone();
        let if_name = sys::tap_name(&config.name).ok_or_else(|| TapError::InvalidName(name()))?;
        let queues = config.queues;
        if !(1..=QUEUES_MAX).contains(&queues) {
            return Err(TapError::InvalidQueues {
                name: name(),
                queues,
            });
        }
        if let Some(mtu) = config.mtu.filter(|mtu| !(68..=MTU_MAX).contains(mtu)) {
            return Err(TapError::InvalidMtu { name: name(), mtu });
        }
        Ok(Self { config, if_name })
    }

    fn open(&self) -> Result<(Shared, Vec<Queue>), TapError> {
        let existing = self.lookup()?;
        if let Some(link) = &existing {
            self.check_usable(link)?;
        }
        let files = self.attach(existing.as_ref())?;
        let offloads = files
            .first()
            .map(|tun| self.set_mode(tun))
            .transpose()?
            .unwrap_or_default();
        let control =
            UnixDatagram::unbound().map_err(|source| self.failed("make a socket", source))?;
        let state = match &existing {
            None => {
                self.bring_up(&control)?;
                State::Running
            }
            Some(link) => self.note_existing(link),
        };
        let shared = Shared {
            name: self.config.name.clone(),
            if_name: self.if_name,
            control,
            offloads,
            fills_up: self.config.send_buffer.is_some(),
            closed: AtomicBool::new(false),
        };
        let queues = files.into_iter().map(|file| Queue::new(file, state));
        Ok((shared, queues.collect()))
    }

    fn lookup(&self) -> Result<Option<Link>, TapError> {
        link::lookup(&self.config.name)
            .map_err(|source| self.failed("look up the interface (netlink)", source))
    }

    /// Whether an existing link is a tap that nobody holds and that takes the queues.
    fn check_usable(&self, link: &Link) -> Result<(), TapError> {
        if link.kind != "tun" || link.tun.is_some_and(|tun| !tun.tap) {
            return Err(self.not_a_tap(&link.kind));
        }
        let Some(tun) = link.tun else {
            return Ok(());
        };
        if self.config.queues > 1 && !tun.multi_queue {
            return Err(TapError::SingleQueue {
                name: self.config.name.clone(),
                queues: self.config.queues,
                command: self.create_anew(),
            });
        }
        if tun.queues_held > 0 {
            return Err(self.busy());
        }
        Ok(())
    }

    /// Opens and attaches each queue, creating the device with the first if need be.
    fn attach(&self, existing: Option<&Link>) -> Result<Vec<File>, TapError> {
        let queues = self.config.queues;
        let multi_queue = queues > 1
            || existing
                .and_then(|link| link.tun)
                .is_some_and(|tun| tun.multi_queue);
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut files = Vec::with_capacity(usize::from(queues));
        for number in 0..queues {
            // Somebody else may create the name since it was looked up: not to be joined.
            let first_of_new = number == 0 && existing.is_none();
            let exclusive = if first_of_new { libc::IFF_TUN_EXCL } else { 0 };
            let tun = open_driver()?;
            sys::attach_queue(&tun, &self.if_name, flags | exclusive)
                .map_err(|error| self.explain_attach(error, existing, number))?;
            let got = sys::queue_flags(&tun)
                .map_err(|source| self.failed("read the device's mode", source))?;
            if got & libc::IFF_VNET_HDR == 0 {
                return Err(TapError::NoHeader {
                    name: self.config.name.clone(),
                    command: self.create_anew(),
                });
            }
            let steered = queues == 1 || number > 0 || self.steer(&tun);
            files.push(tun);
            if !steered {
                break;
            }
        }
        self.check_sole_holder(multi_queue)?;
        Ok(files)
    }

    /// Pins flows to queues before there is a second one. Without that a flow's frames may
    /// overtake each other, so there is none then.
    fn steer(&self, tun: &File) -> bool {
        let Err(error) = steering::pin(tun) else {
            return true;
        };
        log::warn!(
            "tap {}: one queue instead of {}, since the kernel refuses the program that keeps \
             a flow in its queue ({error}): run shunt as root or with CAP_BPF, or ask for one",
            self.config.name,
            self.config.queues,
        );
        false
    }

    /// With several queues the kernel lets any number of processes share a device, and
    /// each would get a part of the frames.
    fn check_sole_holder(&self, multi_queue: bool) -> Result<(), TapError> {
        let held = self
            .lookup()?
            .and_then(|link| link.tun)
            .map_or(0, |tun| tun.queues_held);
        if multi_queue && held > u32::from(self.config.queues) {
            return Err(self.busy());
        }
        Ok(())
    }

    /// Sets header, send buffer and offloads; answers which of them this kernel knows.
    fn set_mode(&self, tun: &File) -> Result<PeerOffloads, TapError> {
        sys::set_header_len(tun, VNET_HEADER as c_int)
            .map_err(|source| self.failed("set the virtio-net header's length", source))?;
        sys::set_little_endian(tun)
            .map_err(|source| self.failed("make the virtio-net header little-endian", source))?;
        // The kernel's integer is signed; 2 GiB are as good as no bound.
        let room = self.config.send_buffer.unwrap_or(u32::MAX);
        sys::set_send_buffer(tun, c_int::try_from(room).unwrap_or(c_int::MAX))
            .map_err(|source| self.failed("set the send buffer", source))?;
        let ask = |offloads| sys::set_offload(tun, super::offload_bits(offloads));
        if ask(PeerOffloads::ALL).is_ok() {
            return Ok(PeerOffloads::ALL);
        }
        let without_uso = PeerOffloads {
            uso: false,
            ..PeerOffloads::ALL
        };
        ask(without_uso).map_err(|source| self.failed("set the offloads", source))?;
        Ok(without_uso)
    }

    fn bring_up(&self, control: &UnixDatagram) -> Result<(), TapError> {
        if let Some(mtu) = self.config.mtu {
            sys::set_mtu(control, &self.if_name, mtu)
                .map_err(|source| self.failed("set the MTU", source))?;
        }
        sys::set_up(control, &self.if_name)
            .map_err(|source| self.failed("set the interface up", source))
    }

    /// Says once what of an existing device may surprise; its state is its maker's.
    fn note_existing(&self, link: &Link) -> State {
        let name = &self.config.name;
        if let Some(mtu) = self.config.mtu.filter(|mtu| u32::from(*mtu) != link.mtu) {
            log::warn!(
                "tap {name}: it existed with an MTU of {}, configured are {mtu}: \
                 `ip link set {name} mtu {mtu}` makes them equal",
                link.mtu
            );
        }
        if link.up {
            return State::Running;
        }
        log::warn!("tap {name}: it is set down; `ip link set {name} up` lets frames through");
        State::Down
    }

    fn explain_attach(&self, error: io::Error, existing: Option<&Link>, number: u16) -> TapError {
        match (error.raw_os_error(), existing) {
            (Some(libc::EPERM | libc::EACCES), None) => TapError::MayNotCreate {
                name: self.config.name.clone(),
                command: self.create_command(),
            },
            (Some(libc::EPERM | libc::EACCES), Some(_)) => TapError::MayNotAttach {
                name: self.config.name.clone(),
            },
            (Some(libc::EBUSY), _) => self.busy(),
            (Some(libc::E2BIG), _) => self.busy(),
            // Without what netlink tells, an old kernel's EINVAL is all there is.
            (Some(libc::EINVAL), Some(link)) if link.tun.is_none() && number == 0 => {
                TapError::SingleQueue {
                    name: self.config.name.clone(),
                    queues: self.config.queues,
                    command: self.create_anew(),
                }
            }
            _ => self.failed("attach a queue (TUNSETIFF)", error),
        }
    }

    fn not_a_tap(&self, kind: &str) -> TapError {
        let name = &self.config.name;
        let (what, command) = match kind {
            "tun" => (
                "a tun device (IP packets)".to_owned(),
                format!("{} tuntap del dev {name} mode tun", self.ip()),
            ),
            "" => (
                "a network card or other fixed device".to_owned(),
                format!("{} link set {name} name OTHER", self.ip()),
            ),
            kind => (
                format!("a {kind} device"),
                format!("{} link del {name}", self.ip()),
            ),
        };
        TapError::NotATap {
            name: name.clone(),
            what,
            command,
        }
    }

    fn busy(&self) -> TapError {
        TapError::Busy {
            name: self.config.name.clone(),
        }
    }

    fn failed(&self, step: &'static str, source: io::Error) -> TapError {
        TapError::Step {
            name: self.config.name.clone(),
            step,
            source,
        }
    }

    /// `ip`, for the device's namespace.
    fn ip(&self) -> String {
        match &self.config.netns {
            Some(netns) => format!("ip -n {netns}"),
            None => "ip".to_owned(),
        }
    }

    fn create_command(&self) -> String {
        let multi_queue = if self.config.queues > 1 {
            " multi_queue"
        } else {
            ""
        };
        format!(
            "{} tuntap add dev {} mode tap user $(id -un){multi_queue} vnet_hdr",
            self.ip(),
            self.config.name
        )
    }

    fn create_anew(&self) -> String {
        let ip = self.ip();
        let name = &self.config.name;
        format!("{ip} link del {name} && {}", self.create_command())
    }
}

fn open_driver() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|source| TapError::NoDriver { source })
}
