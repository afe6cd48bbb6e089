//! From the configuration to elements that run.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::sync::Mutex;

use super::BackendError;
use super::config::{
    Config, ElementConfig, HandOverConfig, SharedUplinkConfig, SocketMode, UplinkConfig, VnicConfig,
};
use super::shields;
use crate::api::bounds::Bounds;
use crate::api::convert::{VnicNames, to_request};
use crate::api::offload::{OffloadResult, OffloadStatus};
use crate::api::session::Session;
use crate::datapath::ElementId;
use crate::datapath::clock::Clock;
use crate::datapath::counters::CrewCounters;
use crate::datapath::crew::{Crew, lanes_of};
use crate::datapath::keeper::{Books, Keeper, Preparation};
use crate::datapath::lane::{Lane, Vnic};
use crate::datapath::worker::Worker;
use crate::flow::{
    ElementShape, HandOverLimits, HashSeed, SessionRequest, Sessions, SessionsLimits, ShieldBook,
    VnicShape, flow_table, slots_of,
};
use crate::packet::{MacAddr, VnicId};
use crate::port::shared::{self, Selector, SharedDevice};
use crate::port::{Device, Port, tap, vhost_user, xdp};

/// A vNIC as control tells of it.
#[derive(Clone)]
pub(super) struct VnicInfo {
    pub(super) name: String,
    pub(super) mac: MacAddr,
    pub(super) bus_path: Option<String>,
    pub(super) mtu: u16,
    pub(super) guest: Arc<dyn Device>,
    pub(super) uplink: Arc<dyn Device>,
}

/// An element as control tells of it.
#[derive(Clone)]
pub(super) struct ElementInfo {
    pub(super) id: ElementId,
    pub(super) name: String,
    pub(super) sessions_max: u32,
    /// By number; a place may be empty.
    pub(super) vnics: Vec<Option<Arc<VnicInfo>>>,
    /// Names of those, apart from their devices, which nobody is to keep open.
    pub(super) names: Arc<Names>,
    pub(super) counters: CrewCounters,
    /// What its sessions may use, as the host's file says; `None`: it does not.
    pub(super) bounds: Option<Arc<Bounds>>,
    /// How many workers serve it.
    pub(super) lanes: usize,
    pub(super) shields: Arc<Mutex<ShieldBook>>,
}

/// The names of an element's vNICs, by number.
pub(super) struct Names(Vec<Option<String>>);

impl ElementInfo {
    /// The element with a vNIC more, or without one.
    pub(super) fn with(&self, at: VnicId, vnic: Option<Arc<VnicInfo>>) -> Self {
        let mut vnics = self.vnics.clone();
        let place = usize::from(at.0);
        if vnics.len() <= place {
            vnics.resize(place + 1, None);
        }
        vnics[place] = vnic;
        let names = Arc::new(Names::of(&vnics));
        Self {
            vnics,
            names,
            ..self.clone()
        }
    }

    /// The flow table's request for `session`.
    ///
    /// # Errors
    /// The result that it has instead: it is not allowed, or contradicts itself.
    pub(super) fn request_of(&self, session: &Session) -> Result<SessionRequest, OffloadResult> {
        let key = || session.key.clone();
        if let Some(bounds) = &self.bounds {
            let denied = OffloadStatus::AccessDenied;
            bounds
                .judge(session)
                .map_err(|fault| OffloadResult::fault(key(), denied, fault))?;
        }
        to_request(session, &*self.names).map_err(|fault| OffloadResult::invalid(key(), fault))
    }

    /// Its vNICs.
    pub(super) fn vnics(&self) -> impl Iterator<Item = &VnicInfo> {
        self.vnics.iter().flatten().map(|vnic| &**vnic)
    }

    /// The lowest number that no vNIC has.
    pub(super) fn free_place(&self) -> VnicId {
        let free = self.vnics.iter().position(Option::is_none);
        VnicId(free.unwrap_or(self.vnics.len()) as u16)
    }
}

impl Names {
    fn of(vnics: &[Option<Arc<VnicInfo>>]) -> Self {
        let name = |vnic: &Option<Arc<VnicInfo>>| vnic.as_ref().map(|vnic| vnic.name.clone());
        Self(vnics.iter().map(name).collect())
    }
}

impl VnicNames for Names {
    fn id(&self, name: &str) -> Option<VnicId> {
        let place = self.0.iter().position(|own| own.as_deref() == Some(name))?;
        Some(VnicId(place as u16))
    }

    fn name(&self, id: VnicId) -> Option<&str> {
        self.0.get(usize::from(id.0))?.as_deref()
    }
}

/// Everything that runs. Workers end first, so that devices are dropped while nobody uses
/// their ports.
pub(super) struct Running {
    pub(super) workers: Vec<Worker>,
    pub(super) keeper: Keeper,
    pub(super) elements: Vec<Arc<ElementInfo>>,
    pub(super) clock: Clock,
}

/// An element that is open and not served yet.
pub(super) struct OpenElement {
    #[expect(clippy::vec_box, reason = "each moves to a worker as it is")]
    pub(super) lanes: Vec<Box<Lane>>,
    pub(super) book: Sessions,
    pub(super) info: ElementInfo,
}

/// The number of the worker that has a lane of an element.
pub(super) fn worker_of(ElementId(id): ElementId, lane: usize, workers: usize) -> usize {
    (id as usize + lane) % workers.max(1)
}

/// Opens all devices and starts all threads.
pub(super) fn open(config: &Config) -> Result<(Running, SharedDevices), BackendError> {
    let clock = Clock::start();
    let workers = usize::from(config.backend.workers);
    let mut lanes: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    let mut books = Books::new();
    let mut elements = Vec::new();
    let mut shared = SharedDevices::new();
    for device in &config.shared_uplinks {
        shared.insert(device.name.clone(), open_shared(device)?);
    }
    for (number, element) in config.elements.iter().enumerate() {
        let id = ElementId(number as u32);
        let opened = open_element(id, element, &shared, &config.hand_over, workers)?;
        let OpenElement {
            lanes: own,
            book,
            info,
        } = opened;
        for (number, lane) in own.into_iter().enumerate() {
            lanes[worker_of(id, number, workers)].push(lane);
        }
        books.insert(id, book);
        elements.push(Arc::new(info));
    }
    let threads = |source| BackendError::Threads { source };
    let mut preparation = Preparation::new().map_err(threads)?;
    let workers = lanes
        .into_iter()
        .enumerate()
        .map(|(number, lanes)| {
            let reporter = preparation.reporter();
            let name = format!("worker-{number}");
            Worker::start(&name, clock, config.backend.polling, lanes, reporter)
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(threads)?;
    let keeper = preparation.start(clock, books).map_err(threads)?;
    let running = Running {
        workers,
        keeper,
        elements,
        clock,
    };
    Ok((running, shared))
}

fn limits_of(config: &HandOverConfig) -> HandOverLimits {
    HandOverLimits {
        frames: config.park_frames,
        bytes: config.park_bytes as usize,
        time: std::time::Duration::from_millis(config.park_time_ms.into()),
        forced: config.forced,
        ..HandOverLimits::default()
    }
}

/// Opens an element's devices and makes its table.
pub(super) fn open_element(
    id: ElementId,
    config: &ElementConfig,
    shared: &SharedDevices,
    hand_over: &HandOverConfig,
    workers: usize,
) -> Result<OpenElement, BackendError> {
    let mut vnics = Vec::new();
    let mut infos = Vec::new();
    for vnic in &config.vnics {
        let (vnic, info) = open_vnic(&config.name, vnic, shared)?;
        vnics.push(vnic);
        infos.push(Some(Arc::new(info)));
    }
    let flows = config.sessions * FLOWS_A_SESSION;
    let (writer, readers) = flow_table(flows, lanes_of(&vnics, workers), HashSeed::random());
    let shape = ElementShape::new(config.vnics.iter().map(shape_of));
    let book = Sessions::new(shape, writer, SessionsLimits::default());
    let crew = Crew {
        id,
        vnics,
        signals: book.signals(),
        limits: limits_of(hand_over),
        punt_rate: config.punt_rate,
    };
    let threads = |source| BackendError::Threads { source };
    let (mut lanes, counters) = crew.lanes(readers).map_err(threads)?;
    let names = Arc::new(Names::of(&infos));
    let slots = slots_of(flows) as usize;
    let shields = shields::open(config, slots, &mut lanes, &names);
    let info = ElementInfo {
        id,
        name: config.name.clone(),
        sessions_max: config.sessions,
        names,
        vnics: infos,
        counters,
        bounds: config.bounds().map(Arc::new),
        lanes: lanes.len(),
        shields: Arc::new(Mutex::new(shields)),
    };
    Ok(OpenElement { lanes, book, info })
}

/// What requests may know of a vNIC.
pub(super) fn shape_of(vnic: &VnicConfig) -> VnicShape {
    VnicShape {
        mac: vnic.mac,
        mtu: vnic.mtu,
    }
}

/// A session has two flows, also when one direction is absent.
pub(super) const FLOWS_A_SESSION: u32 = 2;

/// A device that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The vNIC's own socket or a vhost-user uplink.
    #[error(transparent)]
    VhostUser(#[from] vhost_user::OpenError),
    /// A tap uplink.
    #[error(transparent)]
    Tap(#[from] tap::TapError),
    /// An AF_XDP uplink.
    #[error(transparent)]
    Xdp(#[from] xdp::XdpError),
    /// A part of a shared uplink.
    #[error(transparent)]
    Join(#[from] shared::JoinError),
    /// A shared uplink that is not there.
    #[error("there is no [[shared-uplink]] named `{0}`: add it, or name one that there is")]
    UnknownShared(String),
}

type Opened = (Arc<dyn Device>, Vec<Box<dyn Port>>);

/// The shared uplinks, by name.
pub(super) type SharedDevices = HashMap<String, SharedDevice>;

/// Opens the device of a shared uplink.
pub(super) fn open_shared(config: &SharedUplinkConfig) -> Result<SharedDevice, BackendError> {
    let of_none = MacAddr::default();
    let queues = config.device.queue_pairs(config.queue_pairs);
    match open_device(&config.device, queues, config.mtu, of_none) {
        Ok(opened) => Ok(SharedDevice::new(opened)),
        Err(source) => Err(BackendError::SharedUplink {
            name: config.name.clone(),
            source: Box::new(source),
        }),
    }
}

/// Opens both devices of an element's vNIC.
pub(super) fn open_vnic(
    element: &str,
    config: &VnicConfig,
    shared: &SharedDevices,
) -> Result<(Vnic, VnicInfo), BackendError> {
    open_sides(config, shared).map_err(|source| BackendError::Device {
        element: element.to_owned(),
        vnic: config.name.clone(),
        source: Box::new(source),
    })
}

fn open_sides(
    config: &VnicConfig,
    shared: &SharedDevices,
) -> Result<(Vnic, VnicInfo), DeviceError> {
    let (guest, guest_ports) = open_guest(config)?;
    let (uplink, uplink_ports) = open_uplink(config, shared)?;
    let vnic = Vnic::new(config.mac, guest_ports, uplink_ports);
    let info = VnicInfo {
        name: config.name.clone(),
        mac: config.mac,
        bus_path: config.bus_path.clone(),
        mtu: config.mtu,
        guest,
        uplink,
    };
    Ok((vnic, info))
}

fn open_guest(config: &VnicConfig) -> Result<Opened, DeviceError> {
    let (device, ports) = vhost_user::open(vhost_user::DeviceConfig {
        socket: config.socket.clone(),
        mode: socket_mode(config.mode),
        queue_pairs: config.queue_pairs,
        mac: Some(config.mac),
        mtu: config.mtu,
        side: vhost_user::Side::Vnic,
        permissions: None,
    })?;
    Ok((device, ports))
}

fn socket_mode(mode: SocketMode) -> vhost_user::SocketMode {
    match mode {
        SocketMode::Server => vhost_user::SocketMode::Server,
        SocketMode::Client => vhost_user::SocketMode::Client,
    }
}

fn open_uplink(config: &VnicConfig, shared: &SharedDevices) -> Result<Opened, DeviceError> {
    let UplinkConfig::Shared {
        device,
        vlan,
        extra_macs,
    } = &config.uplink
    else {
        let queues = config.uplink_queue_pairs();
        return open_device(&config.uplink, queues, config.mtu, config.mac);
    };
    let of_device = shared.get(device);
    let of_device = of_device.ok_or_else(|| DeviceError::UnknownShared(device.clone()))?;
    let mut macs = vec![config.mac];
    macs.extend(extra_macs);
    Ok(of_device.join(&Selector { vlan: *vlan, macs })?)
}

/// Opens the device of an uplink; frames to `mac` are the guest's.
fn open_device(
    uplink: &UplinkConfig,
    queues: u16,
    mtu: u16,
    mac: MacAddr,
) -> Result<Opened, DeviceError> {
    let (device, ports): Opened = match uplink {
        UplinkConfig::VhostUser { socket, mode } => {
            let (device, ports) = vhost_user::open(vhost_user::DeviceConfig {
                socket: socket.clone(),
                mode: socket_mode(*mode),
                queue_pairs: queues,
                mac: None,
                mtu,
                side: vhost_user::Side::Uplink,
                permissions: None,
            })?;
            (device, ports)
        }
        UplinkConfig::Tap {
            name,
            netns,
            send_buffer,
            ..
        } => tap::open(&tap::TapConfig {
            name: name.clone(),
            netns: netns.clone(),
            queues,
            mtu: Some(mtu),
            send_buffer: *send_buffer,
        })?,
        UplinkConfig::Xdp {
            interface,
            netns,
            mode,
            ..
        } => xdp::open(&xdp::XdpConfig {
            interface: interface.clone(),
            netns: netns.clone(),
            queues,
            mode: *mode,
            mac,
            mtu,
        })?,
        UplinkConfig::Shared { device, .. } => {
            return Err(DeviceError::UnknownShared(device.clone()));
        }
    };
    Ok((device, ports))
}
