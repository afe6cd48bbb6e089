//! What an element is told of itself: its name, its vNICs, what is worth an offload.
//!
//! *Promises*: what the controller says, as it says it; leaves that it does not know are absent.
//! *Refuses*: answers of another shape.
//! *Caller's duty*: reads again when the policy may have changed. Names need no encoding in paths:
//! the model allows letters, digits, `_`, `.` and `-`.
//! *Standard*: `docs/controller.md`, "Elements"; `shunt-inventory`.

use serde::{Deserialize, Serialize};

use super::Shared;
use super::call::ChannelError;
use crate::api::shield::Shields;
use crate::api::state::{ElementSummary, Summary};
use crate::packet::MacAddr;

/// An element, as it may know itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ElementView {
    /// Its name.
    pub name: String,
    /// Its network devices.
    pub vnics: Vec<VnicView>,
    /// What is worth an offload, as its operator sees it.
    pub policy: PolicyView,
}

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VnicView {
    /// Its name.
    pub name: String,
    /// Its address.
    pub mac: MacAddr,
    /// Its place in the guest, `0000:00:04.0`, where the operator has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus_path: Option<String>,
    /// The largest L3 packet, bytes, where the operator has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// What is worth an offload.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PolicyView {
    /// Slower connections are not, packets a second.
    pub minimum_rate: u32,
    /// Younger ones are not, seconds.
    pub minimum_age: u32,
    /// How many sessions it may have at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    /// How many sessions it may ask for in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
}

/// Reads all of it.
pub(super) async fn read(shared: &Shared) -> Result<ElementView, ChannelError> {
    let own = own(shared).await?;
    let inventory = format!(
        "/restconf/data/shunt-inventory:inventory/element={}",
        own.name
    );
    let policy = format!("{inventory}/policy");
    let policy = shared.read(&policy, "shunt-inventory:policy").await?;
    let mut vnics = Vec::with_capacity(own.vnic.len());
    for name in &own.vnic {
        let path = format!("{inventory}/vnic={}", name);
        let found: Option<Vec<VnicView>> = shared.read(&path, "shunt-inventory:vnic").await?;
        // One that the backend has and the inventory has not, is not the element's to use.
        vnics.extend(found.into_iter().flatten());
    }
    Ok(ElementView {
        name: own.name,
        vnics,
        policy: policy.unwrap_or_default(),
    })
}

/// The element's name.
pub(super) async fn name(shared: &Shared) -> Result<String, ChannelError> {
    Ok(own(shared).await?.name)
}

/// The shields of the element.
pub(super) async fn shields(shared: &Shared) -> Result<Shields, ChannelError> {
    let name = own(shared).await?.name;
    let path = format!(
        "/restconf/data/shunt-offload:state/element={}/shields",
        name
    );
    let found = shared.read(&path, "shunt-offload:shields").await?;
    Ok(found.unwrap_or_default())
}

/// The element in short: who asks is told of itself only.
async fn own(shared: &Shared) -> Result<ElementSummary, ChannelError> {
    let path = "/restconf/data/shunt-offload:state/summary";
    let summary: Option<Summary> = shared.read(path, "shunt-offload:summary").await?;
    let elements = summary.map(|summary| summary.element).unwrap_or_default();
    elements.into_iter().next().ok_or_else(|| {
        let text = "the host's backend does not serve this element: ask the operator";
        ChannelError::NotNow(text.to_owned())
    })
}
