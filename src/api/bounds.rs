//! Which sessions an element may ask for.
//!
//! *Promises*: a session that passes uses the element's own vNICs only, and no packet it
//! forwards leaves with a source that is not the element's to use. The controller judges so
//! by its inventory, and the backend again by its host's file.
//! *Refuses*: the rest, with the leaf at fault; what is not allowed is denied.
//! *Caller's duty*: that the session does not contradict itself is the backend's to judge.
//! *Standard*: none.

use std::net::IpAddr;

use super::config::Prefix;
use super::error::ErrorTag;
use super::offload::Fault;
use super::session::{Directions, Session};
use crate::packet::MacAddr;

/// What an element may use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bounds {
    /// Its vNICs.
    pub vnics: Vec<VnicBounds>,
    /// Sources of packets that leave untranslated, by vNICs that have none of their own.
    pub sources: Vec<Prefix>,
    /// Addresses that translations may use.
    pub translations: Vec<Prefix>,
    /// Whether a session may be vouched for: an operator may, an element may not.
    pub may_vouch: bool,
}

/// What a vNIC may be used for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VnicBounds {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub macs: Vec<MacAddr>,
    /// Sources of packets that leave by it untranslated; none: those of the element.
    pub sources: Vec<Prefix>,
}

impl Bounds {
    /// Judges `session`.
    ///
    /// # Errors
    /// Why it is denied.
    pub fn judge(&self, session: &Session) -> Result<(), Fault> {
        if session.vouched && !self.may_vouch {
            let message = "elements cannot vouch: leave it out".to_owned();
            return Err(denied("vouched", "vouched", message));
        }
        let (original, reply) = (&session.original, &session.reply);
        let (has_original, has_reply) = match session.directions {
            Directions::Both => (true, true),
            Directions::Original => (true, false),
            Directions::Reply => (false, true),
        };
        let ingress = self.own(&original.ingress_vnic, "original/ingress-vnic")?;
        let egress = self.own(&original.egress_vnic, "original/egress-vnic")?;
        if let Some(name) = &reply.ingress_vnic {
            self.own(name, "reply/ingress-vnic")?;
        }
        let reply_egress = match &reply.egress_vnic {
            Some(name) => self.own(name, "reply/egress-vnic")?,
            None => ingress,
        };
        self.own_mac(original.source_mac, "original/source-mac")?;
        self.own_mac(reply.source_mac, "reply/source-mac")?;

        let translation = &original.translation;
        if let Some(address) = translation.source_address {
            self.translated(address, "original/translation/source-address")?;
        } else if has_original {
            let leaf = "original/source-address";
            self.leaves_by(egress, original.source_address, leaf)?;
        }
        let destination = original.destination_address;
        match translation.destination_address {
            Some(address) => {
                if !within(&self.sources, address) {
                    self.translated(address, "original/translation/destination-address")?;
                }
                // The answers leave with the address that was translated.
                self.translated(destination, "original/destination-address")
            }
            None if has_reply => {
                self.leaves_by(reply_egress, destination, "original/destination-address")
            }
            None => Ok(()),
        }
    }

    /// The element's vNIC `name`.
    ///
    /// # Errors
    /// It is not the element's.
    pub fn own(&self, name: &str, leaf: &str) -> Result<&VnicBounds, Fault> {
        let found = self.vnics.iter().find(|vnic| vnic.name == name);
        found.ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            denied(
                leaf,
                "unknown-vnic",
                format!("the element has no vNIC `{shown}`"),
            )
        })
    }

    /// A source MAC is a vNIC's, or a virtual router's (RFC 9568 section 7.3).
    fn own_mac(&self, mac: Option<MacAddr>, leaf: &str) -> Result<(), Fault> {
        let Some(mac) = mac else { return Ok(()) };
        let is_virtual = matches!(mac.0, [0, 0, 0x5e, 0, 1 | 2, _]);
        if is_virtual || self.vnics.iter().any(|vnic| vnic.macs.contains(&mac)) {
            return Ok(());
        }
        let message = format!("{mac} is no address of the element's vNICs: leave it out");
        Err(denied(leaf, "address", message))
    }

    fn translated(&self, address: IpAddr, leaf: &str) -> Result<(), Fault> {
        if within(&self.translations, address) {
            return Ok(());
        }
        let message = format!(
            "the element may not translate with {address}: ask the operator for its \
             `translation-prefix`"
        );
        Err(denied(leaf, "address", message))
    }

    /// A packet with an untranslated source leaves by `vnic`.
    fn leaves_by(&self, vnic: &VnicBounds, source: IpAddr, leaf: &str) -> Result<(), Fault> {
        let prefixes = match vnic.sources.as_slice() {
            [] => &self.sources,
            own => own,
        };
        if within(prefixes, source) {
            return Ok(());
        }
        let message = format!(
            "packets from {source} may not leave by vNIC `{}`: ask the operator for its \
             `source-prefix`",
            vnic.name
        );
        Err(denied(leaf, "address", message))
    }
}

fn within(prefixes: &[Prefix], address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(address))
}

fn denied(leaf: &str, app_tag: &'static str, message: String) -> Fault {
    Fault {
        leaf: leaf.to_owned(),
        tag: ErrorTag::AccessDenied,
        app_tag,
        message,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::inventory::Element;

    /// A NAT router: clients behind `lan`, one public address at `wan`, a server inside.
    fn element() -> Element {
        serde_json::from_value(json!({
            "name": "nat", "tenant": "t", "host": "h",
            "vnic": [
                { "name": "lan", "mac": "52:54:00:00:00:01", "source-prefix": ["0.0.0.0/0"] },
                { "name": "wan", "mac": "52:54:00:00:00:02" }
            ],
            "policy": {
                "source-prefix": ["203.0.113.0/28"], "translation-prefix": ["198.51.100.1/32", "10.0.0.80/32"]
            }
        }))
        .unwrap()
    }

    fn session() -> Value {
        json!({
            "key": "s", "protocol": "tcp",
            "original": {
                "ingress-vnic": "lan", "egress-vnic": "wan",
                "source-address": "10.0.0.2", "source-port": 4000,
                "destination-address": "192.0.2.9", "destination-port": 443,
                "translation": { "source-address": "198.51.100.1" }
            }
        })
    }

    fn outcome(session: Value) -> Result<(), String> {
        let session: Session = serde_json::from_value(session).unwrap();
        element().bounds().judge(&session).map_err(|fault| {
            assert_eq!(fault.tag, ErrorTag::AccessDenied);
            fault.leaf
        })
    }

    fn changed(pointer: &str, value: Value) -> Value {
        let mut session = session();
        let (parent, leaf) = pointer.rsplit_once('/').unwrap();
        if parent == "/reply" {
            session["reply"] = json!({});
        }
        let parent = session
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap();
        match value {
            Value::Null => parent.remove(leaf),
            value => parent.insert(leaf.to_owned(), value),
        };
        session
    }

    #[test]
    fn what_a_nat_router_does_is_allowed() {
        assert_eq!(outcome(session()), Ok(()));
        let routed = json!({
            "key": "r", "protocol": "tcp",
            "original": {
                "ingress-vnic": "lan", "egress-vnic": "wan",
                "source-address": "203.0.113.5", "source-port": 1,
                "destination-address": "192.0.2.9", "destination-port": 2
            }
        });
        assert_eq!(outcome(routed), Ok(()));
        let inbound = json!({
            "key": "d", "protocol": "tcp",
            "original": {
                "ingress-vnic": "wan", "egress-vnic": "lan",
                "source-address": "192.0.2.200", "source-port": 1,
                "destination-address": "198.51.100.1", "destination-port": 80,
                "translation": { "destination-address": "10.0.0.80" }
            }
        });
        assert_eq!(outcome(inbound), Ok(()));
        let vrrp = changed("/original/source-mac", json!("00:00:5e:00:01:07"));
        assert_eq!(outcome(vrrp), Ok(()));
    }

    #[test]
    fn what_belongs_to_others_is_denied_at_its_leaf() {
        for (pointer, value, leaf) in [
            ("/vouched", json!(true), "vouched"),
            (
                "/original/ingress-vnic",
                json!("b-lan"),
                "original/ingress-vnic",
            ),
            (
                "/original/egress-vnic",
                json!("b-wan"),
                "original/egress-vnic",
            ),
            ("/reply/ingress-vnic", json!("b"), "reply/ingress-vnic"),
            ("/reply/egress-vnic", json!("b"), "reply/egress-vnic"),
            (
                "/original/source-mac",
                json!("52:54:00:00:00:09"),
                "original/source-mac",
            ),
            (
                "/reply/source-mac",
                json!("52:54:00:00:00:09"),
                "reply/source-mac",
            ),
            (
                "/original/translation/source-address",
                json!("198.51.100.2"),
                "original/translation/source-address",
            ),
            // Untranslated, a client's address must not show outside.
            (
                "/original/translation/source-address",
                Value::Null,
                "original/source-address",
            ),
            (
                "/original/translation/destination-address",
                json!("198.51.100.2"),
                "original/translation/destination-address",
            ),
            // Answers would leave with a source that is not the element's.
            (
                "/original/translation/destination-address",
                json!("10.0.0.80"),
                "original/destination-address",
            ),
            // The answers leave by `wan` with the server's address.
            (
                "/reply/egress-vnic",
                json!("wan"),
                "original/destination-address",
            ),
        ] {
            let outcome = outcome(changed(pointer, value.clone()));
            assert_eq!(outcome, Err(leaf.to_owned()), "{pointer} = {value}");
        }
    }

    #[test]
    fn without_prefixes_nothing_is_allowed() {
        let mut element = element();
        element.policy = Default::default();
        element.vnic[0].source_prefix.clear();
        let session: Session = serde_json::from_value(session()).unwrap();
        assert!(element.bounds().judge(&session).is_err());
    }
}
