//! Single values: each is checked where it is read, so that the error has its line.
//!
//! *Promises*: what is returned keeps the limits of `docs/config.md`.
//! *Refuses*: the rest, with the limits in the text.
//! *Caller's duty*: none.
//! *Standard*: unix(7) for the length of socket paths.

use std::fmt::Display;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::{CopyMode, SocketMode, UplinkConfig};
use crate::api::config::schema::{BUS_PATH, is_bus_path};
use crate::packet::{MacAddr, VlanId};
use crate::port::{netns, tap, xdp};

/// The longest path of a Unix socket: `sun_path` has 108 bytes with the final NUL.
const SOCKET_PATH_MAX: usize = 107;

/// A number of `MIN` to `MAX`.
pub(super) fn within<'de, D, T, const MIN: u64, const MAX: u64>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let value = i64::deserialize(from)?;
    u64::try_from(value)
        .ok()
        .filter(|value| (MIN..=MAX).contains(value))
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| D::Error::custom(format!("{value} is out of range: give {MIN} to {MAX}")))
}

/// A rate in packets a second, where one is given.
pub(super) fn punt_rate<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within::<_, u32, 1, 100_000_000>(from).map(Some)
}

/// Sessions asked for in a second, where they are limited.
pub(super) fn request_rate<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within::<_, u32, 1, 10_000_000>(from).map(Some)
}

/// A name of an element, a vNIC, and the like.
pub(super) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if (1..=32).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(name)
    } else {
        Err(D::Error::custom(format!(
            "`{name}` is no name: give 1 to 32 of the characters a-z, A-Z, 0-9, `_`, `.` and `-`"
        )))
    }
}

/// The address of one vNIC.
pub(super) fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<MacAddr, D::Error> {
    unicast(MacAddr::deserialize(from)?).map_err(D::Error::custom)
}

/// Where a guest sees a vNIC, where that is given.
pub(super) fn bus_path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    if is_bus_path(&text) {
        Ok(Some(text))
    } else {
        Err(D::Error::custom(format!(
            "`{text}` is no bus path: give {BUS_PATH}"
        )))
    }
}

/// Further addresses of a vNIC.
fn macs<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<MacAddr>>, D::Error> {
    let macs = Vec::<MacAddr>::deserialize(from)?;
    let checked: Result<Vec<_>, _> = macs.into_iter().map(unicast).collect();
    checked.map(Some).map_err(D::Error::custom)
}

fn unicast(mac: MacAddr) -> Result<MacAddr, String> {
    if mac == MacAddr::default() {
        return Err(format!(
            "{mac} is the zero address: give the one the VMM gives the vNIC"
        ));
    }
    if mac.is_group() {
        return Err(format!(
            "{mac} is a group address (its first octet is odd): give the one the VMM gives the \
             vNIC, such as 52:54:00:12:34:56"
        ));
    }
    Ok(mac)
}

fn device_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    name(from).map(Some)
}

/// The path of a socket, normalised.
pub(super) fn socket<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(from)?;
    socket_path(&text).map_err(D::Error::custom)
}

fn socket_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!(
            "`{text}` is a relative path: write it from `/`, such as /run/shunt/NAME.sock"
        ));
    }
    // Without symbolic links in the way this is what makes equal paths look equal.
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                return Err(format!("`{text}` has a `..`: write the path without it"));
            }
            Component::CurDir | Component::Prefix(_) => {}
            Component::RootDir | Component::Normal(_) => normal.push(component),
        }
    }
    let len = normal.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return Err(format!(
            "a socket path of {len} bytes: the system takes {SOCKET_PATH_MAX}; choose a shorter one"
        ));
    }
    if text.ends_with('/') || text.chars().any(char::is_control) {
        return Err(format!(
            "{text:?} names no socket: end with a file name, without control characters"
        ));
    }
    Ok(normal)
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum UplinkType {
    Tap,
    VhostUser,
    Xdp,
    Shared,
}

impl Display for UplinkType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tap => "tap",
            Self::VhostUser => "vhost-user",
            Self::Xdp => "xdp",
            Self::Shared => "shared",
        })
    }
}

/// An uplink as it is written: the keys of all types, so that each has its line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawUplink {
    #[serde(rename = "type")]
    kind: UplinkType,
    #[serde(default, deserialize_with = "tap_name")]
    name: Option<String>,
    #[serde(default, deserialize_with = "netns_name")]
    netns: Option<String>,
    #[serde(default, deserialize_with = "queues")]
    queues: Option<u16>,
    #[serde(default, deserialize_with = "send_buffer")]
    send_buffer: Option<u32>,
    #[serde(default, deserialize_with = "some_socket")]
    socket: Option<PathBuf>,
    mode: Option<RawMode>,
    #[serde(default, deserialize_with = "interface_name")]
    interface: Option<String>,
    #[serde(default, deserialize_with = "device_name")]
    device: Option<String>,
    vlan: Option<VlanId>,
    #[serde(default, deserialize_with = "macs")]
    extra_macs: Option<Vec<MacAddr>>,
}

/// `mode` as it is written: of a socket, or of AF_XDP.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawMode {
    Server,
    Client,
    Auto,
    Copy,
    ZeroCopy,
}

impl RawMode {
    fn of_socket(self) -> Result<SocketMode, String> {
        match self {
            Self::Server => Ok(SocketMode::Server),
            Self::Client => Ok(SocketMode::Client),
            Self::Auto | Self::Copy | Self::ZeroCopy => {
                Err("the mode of a vhost-user uplink is \"server\" or \"client\"".to_owned())
            }
        }
    }

    fn of_xdp(self) -> Result<CopyMode, String> {
        match self {
            Self::Auto => Ok(CopyMode::Auto),
            Self::Copy => Ok(CopyMode::Copy),
            Self::ZeroCopy => Ok(CopyMode::ZeroCopy),
            Self::Server | Self::Client => {
                Err("the mode of an xdp uplink is \"auto\", \"copy\" or \"zero-copy\"".to_owned())
            }
        }
    }
}

impl TryFrom<RawUplink> for UplinkConfig {
    type Error = String;

    fn try_from(raw: RawUplink) -> Result<Self, String> {
        let kind = raw.kind;
        let missing = |key: &str| format!("an uplink of type {kind} needs the key `{key}`");
        let own: &[&str] = match kind {
            UplinkType::Tap => &["name", "netns", "queues", "send-buffer"],
            UplinkType::VhostUser => &["socket", "mode"],
            UplinkType::Xdp => &["interface", "netns", "queues", "mode"],
            UplinkType::Shared => &["device", "vlan", "extra-macs"],
        };
        let given = [
            ("socket", raw.socket.is_some()),
            ("mode", raw.mode.is_some()),
            ("name", raw.name.is_some()),
            ("interface", raw.interface.is_some()),
            ("netns", raw.netns.is_some()),
            ("queues", raw.queues.is_some()),
            ("send-buffer", raw.send_buffer.is_some()),
            ("device", raw.device.is_some()),
            ("vlan", raw.vlan.is_some()),
            ("extra-macs", raw.extra_macs.is_some()),
        ];
        let foreign = |(key, given): &(&str, bool)| *given && !own.contains(key);
        if let Some((key, _)) = given.iter().find(|entry| foreign(entry)) {
            return Err(format!(
                "an uplink of type {kind} has no key `{key}`: remove it or change the type"
            ));
        }
        match kind {
            UplinkType::Tap => Ok(Self::Tap {
                name: raw.name.ok_or_else(|| missing("name"))?,
                netns: raw.netns,
                queues: raw.queues,
                send_buffer: raw.send_buffer,
            }),
            UplinkType::VhostUser => Ok(Self::VhostUser {
                socket: raw.socket.ok_or_else(|| missing("socket"))?,
                mode: raw
                    .mode
                    .map_or(Ok(SocketMode::default()), RawMode::of_socket)?,
            }),
            UplinkType::Xdp => Ok(Self::Xdp {
                interface: raw.interface.ok_or_else(|| missing("interface"))?,
                netns: raw.netns,
                queues: raw.queues,
                mode: raw.mode.map_or(Ok(CopyMode::default()), RawMode::of_xdp)?,
            }),
            UplinkType::Shared => Ok(Self::Shared {
                device: raw.device.ok_or_else(|| missing("device"))?,
                vlan: raw.vlan,
                extra_macs: raw.extra_macs.unwrap_or_default(),
            }),
        }
    }
}

fn tap_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(from)?;
    if tap::is_valid_name(&name) {
        return Ok(Some(name));
    }
    Err(D::Error::custom(tap::TapError::InvalidName(name)))
}

fn interface_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(from)?;
    if xdp::is_valid_name(&name) {
        return Ok(Some(name));
    }
    Err(D::Error::custom(xdp::XdpError::InvalidName(name)))
}

fn netns_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(from)?;
    if netns::is_valid_name(&name) {
        return Ok(Some(name));
    }
    Err(D::Error::custom(netns::NetnsError::InvalidName(name)))
}

fn send_buffer<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    within::<_, u32, 4096, 2_147_483_647>(from).map(Some)
}

fn queues<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    within::<_, u16, 1, 8>(from).map(Some)
}

fn some_socket<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    socket(from).map(Some)
}
