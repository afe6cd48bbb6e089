//! From the configuration to elements that run.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::BackendError;
use super::config::{
    Config, ElementConfig, HandOverConfig, SharedUplinkConfig, SocketMode, UplinkConfig, VnicConfig,
};
use crate::datapath::ElementId;
use crate::datapath::clock::Clock;
use crate::datapath::counters::ElementCounters;
use crate::datapath::keeper::{Keeper, Preparation};
use crate::datapath::lane::{Lane, Vnic};
use crate::datapath::worker::Worker;
use crate::flow::{
    ElementShape, HandOver, HandOverLimits, HashSeed, Sessions, SessionsLimits, VnicShape,
    flow_table,
};
use crate::packet::MacAddr;
use crate::port::shared::{self, Selector, SharedDevice};
use crate::port::{Device, Port, tap, vhost_user, xdp};

/// A vNIC as control tells of it.
pub(super) struct VnicInfo {
    pub(super) name: String,
    pub(super) mac: MacAddr,
    pub(super) guest: Arc<dyn Device>,
    pub(super) uplink: Arc<dyn Device>,
}

/// An element as control tells of it.
pub(super) struct ElementInfo {
    pub(super) name: String,
    pub(super) sessions_max: u32,
    pub(super) vnics: Vec<VnicInfo>,
    pub(super) counters: Arc<ElementCounters>,
}

/// Everything that runs. Workers end first, so that devices are dropped while nobody uses
/// their ports.
pub(super) struct Running {
    pub(super) workers: Vec<Worker>,
    pub(super) keeper: Keeper,
    pub(super) elements: Vec<Arc<ElementInfo>>,
    pub(super) clock: Clock,
}

/// Opens all devices and starts all threads.
pub(super) fn open(config: &Config) -> Result<Running, BackendError> {
    let clock = Clock::start();
    let workers = usize::from(config.backend.workers);
    let mut lanes: Vec<Vec<Lane>> = (0..workers).map(|_| Vec::new()).collect();
    let mut books = Vec::new();
    let mut elements = Vec::new();
    let limits = limits_of(&config.hand_over);
    let shared = open_shared(config)?;
    for (number, element) in config.elements.iter().enumerate() {
        let (lane, book, info) = open_element(number as u32, element, &shared, limits)?;
        lanes[number % workers].push(lane);
        books.push(book);
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
    Ok(Running {
        workers,
        keeper,
        elements,
        clock,
    })
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

fn open_element(
    number: u32,
    config: &ElementConfig,
    shared: &SharedDevices,
    limits: HandOverLimits,
) -> Result<(Lane, Sessions, ElementInfo), BackendError> {
    let mut vnics = Vec::new();
    let mut infos = Vec::new();
    for vnic in &config.vnics {
        let (vnic, info) = open_vnic(vnic, shared).map_err(|source| BackendError::Device {
            element: config.name.clone(),
            vnic: vnic.name.clone(),
            source: Box::new(source),
        })?;
        vnics.push(vnic);
        infos.push(info);
    }
    let flows = config.sessions * FLOWS_A_SESSION;
    let (writer, mut readers) = flow_table(flows, 1, HashSeed::random());
    let reader = readers.pop().ok_or(BackendError::Reader)?;
    let shape = config.vnics.iter().map(|vnic| VnicShape {
        mac: vnic.mac,
        mtu: vnic.mtu,
    });
    let shape = ElementShape {
        vnics: shape.collect(),
    };
    let book = Sessions::new(shape, writer, SessionsLimits::default());
    let counters = Arc::new(ElementCounters::default());
    let id = ElementId(number);
    let lane = Lane::new(
        id,
        reader,
        HandOver::new(limits),
        vnics,
        counters.clone(),
        book.signals(),
        config.punt_rate,
    );
    let info = ElementInfo {
        name: config.name.clone(),
        sessions_max: config.sessions,
        vnics: infos,
        counters,
    };
    Ok((lane, book, info))
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
type SharedDevices = HashMap<String, SharedDevice>;

fn open_shared(config: &Config) -> Result<SharedDevices, BackendError> {
    let open = |shared: &SharedUplinkConfig| {
        let of_none = MacAddr::default();
        let queues = shared.device.queue_pairs(shared.queue_pairs);
        let opened = open_device(&shared.device, queues, shared.mtu, of_none);
        let opened = opened.map_err(|source| BackendError::SharedUplink {
            name: shared.name.clone(),
            source: Box::new(source),
        })?;
        Ok((shared.name.clone(), SharedDevice::new(opened)))
    };
    config.shared_uplinks.iter().map(open).collect()
}

fn open_vnic(config: &VnicConfig, shared: &SharedDevices) -> Result<(Vnic, VnicInfo), DeviceError> {
    let (guest, guest_ports) = open_guest(config)?;
    let (uplink, uplink_ports) = open_uplink(config, shared)?;
    let vnic = Vnic::new(config.mac, guest_ports, (uplink.clone(), uplink_ports));
    let info = VnicInfo {
        name: config.name.clone(),
        mac: config.mac,
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
        UplinkConfig::Tap { name, netns, .. } => tap::open(&tap::TapConfig {
            name: name.clone(),
            netns: netns.clone(),
            queues,
            mtu: Some(mtu),
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
