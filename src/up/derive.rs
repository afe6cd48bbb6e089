//! What the file says of each part.
//!
//! *Promises*: relay, controller and inventory that fit together: the host, each element
//! with its vNICs, and the port by which it asks.
//! *Refuses*: a file without serial ports. *Caller's duty*: a checked configuration.
//! *Standard*: `docs/yang/shunt-inventory.yang`.

use serde_json::{Value, json};

use super::UpError;
use crate::api::config::Prefix;
use crate::backend::config::{Config, ElementConfig, SerialConfig, SerialMode, UplinkConfig};
use crate::relay::config::{PortConfig, PortMode};
use crate::{controller, relay};

/// The relay's configuration.
pub fn relay(config: &Config) -> Result<relay::config::Config, UpError> {
    let ports: Vec<PortConfig> = config
        .with_ports()
        .map(|(element, serial)| PortConfig {
            name: element.name.clone(),
            socket: serial.socket.clone(),
            mode: match serial.mode {
                SerialMode::Listen => PortMode::Listen,
                SerialMode::Connect => PortMode::Connect,
            },
            uid: serial.uid,
        })
        .collect();
    if ports.is_empty() {
        return Err(UpError::NoPorts);
    }
    let up = &config.up;
    relay::config::Config::inside(&up.host, up.presence.clone(), ports).map_err(UpError::Ports)
}

/// The controller's configuration. Its only relay is this process's.
pub fn controller(config: &Config) -> controller::config::Config {
    use controller::config;
    config::Config {
        controller: config::Process {
            socket: config.up.controller.clone(),
        },
        store: config::StoreConfig::default(),
        backends: None,
        audit: config::AuditConfig {
            file: config.up.audit.clone(),
        },
        operators: None,
        relays: None,
    }
}

/// The content of `shunt-inventory:inventory`.
pub fn inventory(config: &Config) -> Value {
    let host = &config.up.host;
    let mut tenants: Vec<&str> = config
        .with_ports()
        .map(|(element, _)| element.tenant.as_str())
        .collect();
    tenants.sort_unstable();
    tenants.dedup();
    let tenants = tenants.iter().map(|name| json!({ "name": name }));
    let elements = config.with_ports();
    let elements = elements.map(|(element, serial)| inventory_element(host, element, serial));
    json!({
        "tenant": tenants.collect::<Vec<_>>(),
        "host": [{ "name": host, "backend": config.backend.control, "relay": [host] }],
        "element": elements.collect::<Vec<_>>(),
    })
}

fn inventory_element(host: &str, element: &ElementConfig, serial: &SerialConfig) -> Value {
    let vnics = element.vnics.iter().map(|vnic| {
        let mut entry = json!({
            "name": vnic.name, "mac": vnic.mac, "source-prefix": all(&vnic.source_prefixes),
        });
        if let UplinkConfig::Shared {
            vlan: Some(vlan), ..
        } = vnic.uplink
        {
            entry["vlan"] = vlan.get().into();
        }
        if let Some(path) = &vnic.bus_path {
            entry["bus-path"] = path.as_str().into();
        }
        entry
    });
    let mut policy = json!({
        "sessions": element.sessions,
        "source-prefix": all(&element.source_prefixes),
        "translation-prefix": all(&element.translation_prefixes),
    });
    if let Some(rate) = serial.requests_per_second {
        policy["requests-per-second"] = rate.into();
    }
    json!({
        "name": element.name, "tenant": element.tenant, "host": host, "port": element.name,
        "vnic": vnics.collect::<Vec<_>>(), "policy": policy,
    })
}

/// The prefixes given, if any are.
fn all(given: &Option<Vec<Prefix>>) -> &[Prefix] {
    given.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[up]
host = "h1.example.net"
[[element]]
name = "r1"
tenant = "acme"
sessions = 100
translation-prefixes = ["198.51.100.1/32"]
serial = { socket = "/run/r1.serial", uid = 7, mode = "connect", requests-per-second = 5 }
[[element.vnic]]
name = "lan"
socket = "/run/lan"
mac = "52:54:00:00:00:01"
bus-path = "0000:00:04.0"
source-prefixes = ["0.0.0.0/0"]
uplink = { type = "tap", name = "lan" }
[[element]]
name = "silent"
[[element.vnic]]
name = "lan"
socket = "/run/silent"
mac = "52:54:00:00:00:01"
uplink = { type = "tap", name = "silent" }
"#;

    #[test]
    fn the_inventory_is_what_the_file_says_of_elements_that_can_ask() {
        let config = Config::parse(FILE).unwrap();
        let expected = json!({
            "tenant": [{ "name": "acme" }],
            "host": [{
                "name": "h1.example.net", "backend": "/run/shunt/backend.sock",
                "relay": ["h1.example.net"],
            }],
            "element": [{
                "name": "r1", "tenant": "acme", "host": "h1.example.net", "port": "r1",
                "vnic": [{
                    "name": "lan", "mac": "52:54:00:00:00:01", "source-prefix": ["0.0.0.0/0"],
                    "bus-path": "0000:00:04.0",
                }],
                "policy": {
                    "sessions": 100,
                    "source-prefix": [],
                    "translation-prefix": ["198.51.100.1/32"],
                    "requests-per-second": 5,
                },
            }],
        });
        assert_eq!(inventory(&config), expected);
        let relay = relay(&config).unwrap();
        let [port] = &relay.ports[..] else {
            panic!("{relay:?}");
        };
        assert_eq!((&*port.name, port.uid), ("r1", 7));
        assert_eq!(port.mode, PortMode::Connect);
    }

    #[test]
    fn a_file_without_ports_is_for_the_backend_alone() {
        let text: String = FILE
            .lines()
            .filter(|line| !line.starts_with("serial"))
            .fold(String::new(), |text, line| {
                text + line
                    + "
"
            });
        let config = Config::parse(&text).unwrap();
        assert!(matches!(relay(&config), Err(UpError::NoPorts)));
    }

    #[test]
    fn sockets_are_used_once_also_beyond_the_backend() {
        for (socket, line) in [("/run/shunt/controller.sock", 9), ("/run/lan", 12)] {
            let text = FILE.replace("/run/r1.serial", socket);
            let error = Config::parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line}: ")), "{error}");
        }
    }
}
