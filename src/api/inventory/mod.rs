//! The model `shunt-inventory`: as tables for RESTCONF, and as types for the controller.
//!
//! *Promises*: what the tables take, the types read; defaults are the model's.
//! *Refuses*: nothing by itself.
//! *Caller's duty*: content went through [`config`](super::config) before.
//! *Standard*: `docs/yang/shunt-inventory.yang`, RFC 7951.

use serde::Deserialize;

mod schema;

pub use schema::MODULE;

use super::bounds::{Bounds, VnicBounds};
use super::config::Prefix;
use super::link::Address;
use crate::packet::MacAddr;

/// What an operator may turn off in a hurry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Switches {
    /// Every session is handed back, new ones are refused.
    pub kill: bool,
    /// Requests are judged and logged, nothing is offloaded.
    pub observe_only: bool,
}

/// Who elements belong to.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Its switches.
    #[serde(flatten)]
    pub switches: Switches,
}

/// A machine that runs a backend.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Where its backend is.
    pub backend: Address,
    /// Names of the certificates that its relay may use.
    #[serde(default)]
    pub relay: Vec<String>,
    /// New sessions are refused.
    #[serde(default)]
    pub drain: bool,
    /// Its switches.
    #[serde(flatten)]
    pub switches: Switches,
}

/// A router, firewall or NAT.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Element {
    /// Its name, here and at the backend.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// Where it runs.
    pub host: String,
    /// Its serial port at the relay.
    pub port: Option<String>,
    /// Its switches.
    #[serde(flatten)]
    pub switches: Switches,
    /// Its network devices.
    #[serde(default)]
    pub vnic: Vec<Vnic>,
    /// What it may ask for.
    #[serde(default)]
    pub policy: Policy,
}

impl Element {
    /// What it may use.
    pub fn bounds(&self) -> Bounds {
        let vnics = self.vnic.iter().map(|vnic| VnicBounds {
            name: vnic.name.clone(),
            macs: vec![vnic.mac],
            sources: vnic.source_prefix.clone(),
        });
        Bounds {
            vnics: vnics.collect(),
            sources: self.policy.source_prefix.clone(),
            translations: self.policy.translation_prefix.clone(),
            may_vouch: false,
        }
    }
}

/// A network device of an element.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vnic {
    /// Its name, here and at the backend.
    pub name: String,
    /// Its address.
    pub mac: MacAddr,
    /// Its VLAN on a shared uplink.
    pub vlan: Option<u16>,
    /// Source addresses that leave by it untranslated; none: those of the policy.
    #[serde(default)]
    pub source_prefix: Vec<Prefix>,
}

/// What an element may ask for.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Policy {
    /// Source addresses that leave untranslated.
    pub source_prefix: Vec<Prefix>,
    /// Addresses that translations may use.
    pub translation_prefix: Vec<Prefix>,
    /// Sessions at once.
    pub sessions: u32,
    /// Sessions asked for in a second.
    pub requests_per_second: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            source_prefix: Vec::new(),
            translation_prefix: Vec::new(),
            sessions: schema::SESSIONS,
            requests_per_second: schema::REQUESTS_PER_SECOND,
        }
    }
}
