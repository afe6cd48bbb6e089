//! Shields: the rpcs `shield` and `unshield`, and the container `shields` of an element's state.
//!
//! *Promises*: as many results as entries, in their order; an entry is judged alone; asking again
//! for the same succeeds and prolongs it.
//! *Refuses*: the whole message, with nothing done, when it does not follow the model
//! ([`ShieldInput::check`], [`UnshieldInput::check`]).
//! *Caller's duty*: both checks, which need more than one leaf. *Standard*: RFC 8040, RFC 7951,
//! RFC 8519 for ports.

use std::collections::HashSet;
use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::convert::VnicNames;
use super::error::{ApiError, ErrorEntry, ErrorTag, ErrorType};
use super::offload::Fault;
use super::prefix::Prefix;
use super::session::{Protocol, Seconds, SessionKey};
use super::wire::{u64_text, u64_text_option};
use crate::flow::shield::{self, Flags, Installed, Matches, Origin, ShieldView};

mod leaves;
#[cfg(test)]
mod tests;

pub use leaves::{BitRate, Burst, PacketRate, Police, PortMatch, TcpFlags};

/// What becomes of a shield's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// They are gone.
    Drop,
    /// What is more than a rate is gone.
    Police,
    /// They go to the guest.
    Punt,
}

impl Action {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Police => "police",
            Self::Punt => "punt",
        }
    }
}

/// A shield; grouping `shield` of `shunt-offload`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Shield {
    /// The client's own name for it.
    pub name: SessionKey,
    /// Higher ones rule before lower ones; 0 if left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: u16,
    /// How long it lives, seconds; absent only where an operator has configured it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Seconds>,
    /// The vNIC whose uplink brings the frames; any if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_vnic: Option<String>,
    /// Source addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_prefix: Option<Prefix>,
    /// Destination addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_prefix: Option<Prefix>,
    /// IP protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Source ports.
    #[serde(default, skip_serializing_if = "PortMatch::is_any")]
    pub source_port: PortMatch,
    /// Destination ports.
    #[serde(default, skip_serializing_if = "PortMatch::is_any")]
    pub destination_port: PortMatch,
    /// TCP flags that must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<TcpFlags>,
    /// TCP flags that are looked at; those of `tcp_flags` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_flags_mask: Option<TcpFlags>,
    /// What becomes of the frames.
    pub action: Action,
    /// How much passes, if it polices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub police: Option<Police>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Shield {
    /// The shield of the flow floor, of an element whose vNICs are `vnics`.
    ///
    /// # Errors
    /// The leaf at fault.
    pub fn to_shield(&self, vnics: &dyn VnicNames) -> Result<shield::Shield, Fault> {
        if let Some(name) = &self.ingress_vnic
            && vnics.id(name).is_none()
        {
            return Err(Fault {
                leaf: "ingress-vnic".to_owned(),
                tag: ErrorTag::InvalidValue,
                app_tag: "unknown-vnic",
                message: format!(
                    "the element has no vNIC `{name}`; `shunt show ports` lists those it has"
                ),
            });
        }
        let flags = match (self.tcp_flags, self.tcp_flags_mask) {
            (None, None) => None,
            (value, mask) => Some(Flags::of(value.map(|set| set.0), mask.map(|mask| mask.0))),
        };
        let action = match (self.action, self.police) {
            (Action::Drop, _) => shield::Action::Drop,
            (Action::Punt, _) => shield::Action::Punt,
            (Action::Police, Some(Police(rate))) => shield::Action::Police(rate),
            (Action::Police, None) => {
                return Err(Fault {
                    leaf: "police".to_owned(),
                    tag: ErrorTag::MissingElement,
                    app_tag: "invalid-shield",
                    message: "a shield that polices needs a rate: give police".to_owned(),
                });
            }
        };
        Ok(shield::Shield {
            name: self.name.to_string(),
            priority: self.priority,
            vnic: self.ingress_vnic.clone(),
            matches: Matches {
                source: self.source_prefix.map(Prefix::parts),
                destination: self.destination_prefix.map(Prefix::parts),
                protocol: self.protocol.map(|protocol| protocol.0),
                source_ports: self.source_port.0,
                destination_ports: self.destination_port.0,
                flags,
            },
            action,
        })
    }

    /// The inverse of [`Shield::to_shield`]; defaults are filled in. `None` if the name is none
    /// of this model.
    fn of(shield: &shield::Shield, ttl: Option<Duration>) -> Option<Self> {
        let matches = &shield.matches;
        let prefix = |(address, length)| Prefix::new(address, length);
        let (action, police) = match shield.action {
            shield::Action::Drop => (Action::Drop, None),
            shield::Action::Punt => (Action::Punt, None),
            shield::Action::Police(rate) => (Action::Police, Some(Police(rate))),
        };
        Some(Self {
            name: shield.name.clone().try_into().ok()?,
            priority: shield.priority,
            ttl: ttl.and_then(|ttl| Seconds::try_from(ttl.as_secs()).ok()),
            ingress_vnic: shield.vnic.clone(),
            source_prefix: matches.source.and_then(prefix),
            destination_prefix: matches.destination.and_then(prefix),
            protocol: matches.protocol.map(Protocol),
            source_port: PortMatch(matches.source_ports),
            destination_port: PortMatch(matches.destination_ports),
            tcp_flags: matches.flags.map(|flags| TcpFlags(flags.value)),
            tcp_flags_mask: matches.flags.map(|flags| TcpFlags(flags.mask)),
            action,
            police,
        })
    }
}

/// Input of `shield`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ShieldInput {
    /// Whose shields; may be left out where the backend serves exactly one element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<String>,
    /// The epoch that the call belongs to; the present one if left out.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub epoch: Option<u64>,
    /// The number of the element's connection that it came by.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub fence: Option<u64>,
    /// The shields.
    pub shield: Vec<Shield>,
}

impl ShieldInput {
    /// Whether it is of the model, as far as that needs more than one leaf.
    ///
    /// # Errors
    /// 400, and where: no time to live, a name twice, a rate without `police` or the other way.
    pub fn check(&self) -> Result<(), ApiError> {
        let mut names = HashSet::new();
        for (place, shield) in self.shield.iter().enumerate() {
            let (tag, leaf, text) = if !names.insert(&shield.name) {
                let text = "there is another shield of this name in the call: give each its own";
                (ErrorTag::InvalidValue, "name", text)
            } else if shield.ttl.is_none() {
                let text = "missing leaf `ttl`: say for how many seconds the shield is wanted";
                (ErrorTag::MissingElement, "ttl", text)
            } else if shield.action == Action::Police && shield.police.is_none() {
                let text = "missing leaf `police`: say how much is to pass";
                (ErrorTag::MissingElement, "police", text)
            } else if shield.action != Action::Police && shield.police.is_some() {
                let text = "`police` is for shields whose action it is: leave it out";
                (ErrorTag::InvalidValue, "police", text)
            } else {
                continue;
            };
            let path = format!("/shunt-offload:input/shield[{}]/{leaf}", place + 1);
            return Err(ApiError::application(StatusCode::BAD_REQUEST, tag, text).at(path));
        }
        Ok(())
    }
}

/// Output of `shield`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ShieldOutput {
    /// One per shield of the input, in order.
    #[serde(default)]
    pub result: Vec<ShieldResult>,
}

/// What became of one shield.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShieldResult {
    /// Its name.
    pub name: SessionKey,
    /// What became of it.
    pub result: ShieldStatus,
    /// Why it was refused; present exactly then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorEntry>,
}

/// What became of a shield that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShieldStatus {
    /// It is new.
    Installed,
    /// It took the place of another of its name.
    Replaced,
    /// The same was there already; it lives on for the time it was asked for.
    Unchanged,
    /// Refused: the element has as many as it may.
    TableFull,
    /// Refused: it contradicts itself or the element's vNICs.
    Invalid,
    /// Refused by a controller: the element may not ask for it.
    AccessDenied,
}

impl ShieldStatus {
    /// Whether the shield was refused.
    pub const fn is_refused(self) -> bool {
        matches!(self, Self::TableFull | Self::Invalid | Self::AccessDenied)
    }

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::TableFull => "table-full",
            Self::Invalid => "invalid",
            Self::AccessDenied => "access-denied",
        }
    }
}

impl ShieldResult {
    /// The result of a shield that is refused with `result` for a leaf; an empty one means the
    /// shield itself.
    pub fn fault(name: SessionKey, result: ShieldStatus, fault: Fault) -> Self {
        let mut path = format!("/shunt-offload:input/shield[name='{name}']");
        if !fault.leaf.is_empty() {
            path.push('/');
            path.push_str(&fault.leaf);
        }
        let error = ErrorEntry {
            error_type: ErrorType::Application,
            error_tag: fault.tag,
            error_app_tag: Some(fault.app_tag.to_owned()),
            error_path: Some(path),
            error_message: fault.message,
        };
        Self {
            name,
            result,
            error: Some(error),
        }
    }

    /// The result of a shield that the element's book answered with `outcome`.
    pub fn new(name: SessionKey, outcome: Installed) -> Self {
        let full = |app_tag, message: &str| Fault {
            leaf: String::new(),
            tag: ErrorTag::ResourceDenied,
            app_tag,
            message: message.to_owned(),
        };
        let result = match outcome {
            Installed::Installed => ShieldStatus::Installed,
            Installed::Replaced => ShieldStatus::Replaced,
            Installed::Unchanged => ShieldStatus::Unchanged,
            Installed::Quota => {
                let text = "the element has as many shields as its quota: take some back, or raise \
                            `shield-quota`";
                return Self::fault(name, ShieldStatus::TableFull, full("table-full", text));
            }
            Installed::Masks => {
                let text = format!(
                    "the element's shields have {} different masks already: use the prefix \
                     lengths and kinds of match that others have",
                    shield::MASKS_MAX
                );
                let fault = full("too-many-masks", &text);
                return Self::fault(name, ShieldStatus::TableFull, fault);
            }
            Installed::Invalid(error) => {
                let fault = Fault {
                    leaf: error.leaf.to_owned(),
                    tag: ErrorTag::InvalidValue,
                    app_tag: "invalid-shield",
                    message: error.text,
                };
                return Self::fault(name, ShieldStatus::Invalid, fault);
            }
        };
        Self {
            name,
            result,
            error: None,
        }
    }
}

/// Input of `unshield`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UnshieldInput {
    /// Whose shields; may be left out where the backend serves exactly one element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<String>,
    /// The epoch that the call belongs to; the present one if left out.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub epoch: Option<u64>,
    /// The number of the element's connection that it came by.
    #[serde(
        default,
        with = "u64_text_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub fence: Option<u64>,
    /// Which shields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub name: Vec<SessionKey>,
    /// All that were asked for, instead of `name`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

impl UnshieldInput {
    /// Whether it says which shields are meant, in one way.
    ///
    /// # Errors
    /// 400.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.all == self.name.is_empty() {
            return Ok(());
        }
        let text = "give either names or `all`: true";
        let (status, tag) = (StatusCode::BAD_REQUEST, ErrorTag::MissingElement);
        Err(ApiError::application(status, tag, text).at("/shunt-offload:input/name"))
    }
}

/// Output of `unshield`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UnshieldOutput {
    /// How many shields were ended.
    #[serde(with = "u64_text")]
    pub removed: u64,
    /// One per name of the input, in order; empty for `all`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub result: Vec<UnshieldResult>,
}

/// What became of one name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnshieldResult {
    /// The name.
    pub name: SessionKey,
    /// What became of it.
    pub result: UnshieldStatus,
}

/// What became of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnshieldStatus {
    /// The shield was there.
    Removed,
    /// It was not.
    Absent,
}

impl UnshieldStatus {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Absent => "absent",
        }
    }
}

/// Who has set a shield.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetBy {
    /// The host's configuration.
    Operator,
    /// A request.
    Element,
}

impl From<Origin> for SetBy {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Operator => Self::Operator,
            Origin::Element => Self::Element,
        }
    }
}

impl SetBy {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Element => "element",
        }
    }
}

/// How a shield fares.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShieldState {
    /// Seconds until it ends, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u32>,
    /// Whether its vNIC is there; without it the shield matches nothing.
    pub active: bool,
    /// Packets matched.
    #[serde(with = "u64_text")]
    pub packets: u64,
    /// L3 bytes of those.
    #[serde(with = "u64_text")]
    pub octets: u64,
    /// Of the packets, those lost.
    #[serde(with = "u64_text")]
    pub dropped: u64,
}

/// A shield, and how it fares.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ShieldReport {
    /// Who has set it.
    pub origin: SetBy,
    /// As it was asked for, defaults filled in.
    #[serde(flatten)]
    pub shield: Shield,
    /// How it fares.
    pub status: ShieldState,
}

impl ShieldReport {
    /// The report of a shield of the element whose vNICs are `vnics`; `None` if it is none of
    /// this model.
    pub fn new(view: &ShieldView<'_>, vnics: &dyn VnicNames) -> Option<Self> {
        let vnic = view.shield.vnic.as_deref();
        // Rounded up: what still lives has not ended.
        let seconds = |left: Duration| u32::try_from(left.as_millis().div_ceil(1000));
        Some(Self {
            origin: view.origin.into(),
            shield: Shield::of(view.shield, view.life.map(|(ttl, _)| ttl))?,
            status: ShieldState {
                remaining: view.life.map(|(_, left)| seconds(left).unwrap_or(u32::MAX)),
                active: vnic.is_none_or(|name| vnics.id(name).is_some()),
                packets: view.count.packets,
                octets: view.count.octets,
                dropped: view.count.dropped,
            },
        })
    }
}

/// The shields of an element.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Shields {
    /// Operators', then those that were asked for, by name.
    #[serde(default)]
    pub shield: Vec<ShieldReport>,
}
