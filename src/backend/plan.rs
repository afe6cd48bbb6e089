//! What leads from a configuration that runs to another one.
//!
//! *Promises*: [`Plan::between`] gives steps that, applied to the old configuration, make the
//! new one; what is the same in both is in no step. What goes, goes first, so that sockets,
//! interfaces and addresses are free for what comes.
//! *Refuses*: changes of what a running process is built on ([`NeedsRestart`]).
//! *Caller's duty*: both configurations have been checked. *Standard*: none.

use crate::api::reload::{Action, Kind};

use super::config::{
    Config, ElementConfig, SharedUplinkConfig, ShieldConfig, UplinkConfig, VnicConfig,
};

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Unplug {
        element: String,
        vnic: String,
    },
    RemoveElement(String),
    RemoveShared(String),
    AddShared(SharedUplinkConfig),
    AddElement(ElementConfig),
    Plug {
        element: String,
        vnic: VnicConfig,
    },
    PuntRate {
        element: String,
        rate: Option<u32>,
    },
    Shields(ShieldsOf),
    /// Other bounds of sessions: those of this element.
    Bounds(ElementConfig),
    /// vNICs are at other places in the guest: those of this element.
    BusPaths(ElementConfig),
}

/// An element's shields in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ShieldsOf {
    pub(super) element: String,
    pub(super) quota: u32,
    pub(super) shields: Vec<ShieldConfig>,
}

/// A setting that is read once, when the process starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "`{0}` has changed and is read only at the start: put it back, or restart the backend, \
     which ends all sessions"
)]
pub struct NeedsRestart(&'static str);

/// The steps, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
}

impl Plan {
    /// From what runs to what is wanted.
    pub(super) fn between(runs: &Config, wanted: &Config) -> Result<Self, NeedsRestart> {
        check_fixed(runs, wanted)?;
        let mut plan = Self::default();
        plan.leave(runs, wanted);
        plan.enter(runs, wanted);
        Ok(plan)
    }

    fn leave(&mut self, runs: &Config, wanted: &Config) {
        for old in &runs.elements {
            let Some(new) = stays(old, wanted) else {
                self.steps.push(Step::RemoveElement(old.name.clone()));
                continue;
            };
            let gone = old.vnics.iter().filter(|vnic| {
                !is_served(new, vnic) || !is_same_device(&vnic.uplink, runs, wanted)
            });
            self.steps.extend(gone.map(|vnic| Step::Unplug {
                element: old.name.clone(),
                vnic: vnic.name.clone(),
            }));
        }
        let gone = runs.shared_uplinks.iter();
        let gone = gone.filter(|shared| !wanted.shared_uplinks.contains(shared));
        self.steps
            .extend(gone.map(|shared| Step::RemoveShared(shared.name.clone())));
    }

    fn enter(&mut self, runs: &Config, wanted: &Config) {
        let come = wanted.shared_uplinks.iter();
        let come = come.filter(|shared| !runs.shared_uplinks.contains(shared));
        self.steps.extend(come.cloned().map(Step::AddShared));
        for new in &wanted.elements {
            let Some(old) = runs.elements.iter().find(|old| is_kept(old, new)) else {
                self.steps.push(Step::AddElement(new.clone()));
                continue;
            };
            let come = new.vnics.iter().filter(|vnic| {
                !is_served(old, vnic) || !is_same_device(&vnic.uplink, runs, wanted)
            });
            self.steps.extend(come.map(|vnic| Step::Plug {
                element: new.name.clone(),
                vnic: vnic.clone(),
            }));
            if old.punt_rate != new.punt_rate {
                self.steps.push(Step::PuntRate {
                    element: new.name.clone(),
                    rate: new.punt_rate,
                });
            }
            if (old.shield_quota, &old.shields) != (new.shield_quota, &new.shields) {
                self.steps.push(Step::Shields(ShieldsOf {
                    element: new.name.clone(),
                    quota: new.shield_quota,
                    shields: new.shields.clone(),
                }));
            }
            if have_moved(&old.vnics, &new.vnics) {
                self.steps.push(Step::BusPaths(new.clone()));
            }
            // Last: they name vNICs that come before.
            if old.bounds() != new.bounds() {
                self.steps.push(Step::Bounds(new.clone()));
            }
        }
    }

    /// Sessions of the tables to be made.
    pub(super) fn new_sessions(&self) -> u64 {
        let quota = |step: &Step| match step {
            Step::AddElement(element) => u64::from(element.sessions),
            _ => 0,
        };
        self.steps.iter().map(quota).sum()
    }
}

/// What a step says of itself: the kind of thing, its name, and what becomes of it.
impl Step {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Unplug { .. } | Self::Plug { .. } => Kind::Vnic,
            Self::RemoveElement(_)
            | Self::AddElement(_)
            | Self::PuntRate { .. }
            | Self::Shields(_)
            | Self::Bounds(_)
            | Self::BusPaths(_) => Kind::Element,
            Self::RemoveShared(_) | Self::AddShared(_) => Kind::SharedUplink,
        }
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Unplug { element, vnic } => format!("{element}/{vnic}"),
            Self::Plug { element, vnic } => format!("{element}/{}", vnic.name),
            Self::RemoveElement(name) | Self::RemoveShared(name) => name.clone(),
            Self::AddShared(shared) => shared.name.clone(),
            Self::AddElement(element) | Self::Bounds(element) | Self::BusPaths(element) => {
                element.name.clone()
            }
            Self::PuntRate { element, .. } => element.clone(),
            Self::Shields(of) => of.element.clone(),
        }
    }

    pub(super) fn action(&self) -> Action {
        match self {
            Self::Unplug { .. } | Self::RemoveElement(_) | Self::RemoveShared(_) => Action::Remove,
            Self::Plug { .. } | Self::AddElement(_) | Self::AddShared(_) => Action::Add,
            Self::PuntRate { .. } | Self::Shields(_) | Self::Bounds(_) | Self::BusPaths(_) => {
                Action::Change
            }
        }
    }

    /// Notes in `config`, of what runs, that the step was taken.
    pub(super) fn note(self, config: &mut Config) {
        match self {
            Self::Unplug { element, vnic } => {
                if let Some(element) = element_of(config, &element) {
                    element.vnics.retain(|old| old.name != vnic);
                }
            }
            Self::RemoveElement(name) => config.elements.retain(|old| old.name != name),
            Self::RemoveShared(name) => config.shared_uplinks.retain(|old| old.name != name),
            Self::AddShared(shared) => config.shared_uplinks.push(shared),
            Self::AddElement(element) => config.elements.push(element),
            Self::Plug { element, vnic } => {
                if let Some(element) = element_of(config, &element) {
                    element.vnics.push(vnic);
                }
            }
            Self::PuntRate { element, rate } => {
                if let Some(element) = element_of(config, &element) {
                    element.punt_rate = rate;
                }
            }
            Self::Shields(of) => {
                if let Some(element) = element_of(config, &of.element) {
                    element.shield_quota = of.quota;
                    element.shields = of.shields;
                }
            }
            Self::BusPaths(wanted) => {
                if let Some(element) = element_of(config, &wanted.name) {
                    for vnic in &mut element.vnics {
                        if let Some(same) = same_name(vnic, &wanted.vnics) {
                            vnic.bus_path.clone_from(&same.bus_path);
                        }
                    }
                }
            }
            Self::Bounds(wanted) => {
                if let Some(element) = element_of(config, &wanted.name) {
                    for vnic in &mut element.vnics {
                        let same = same_name(vnic, &wanted.vnics);
                        vnic.source_prefixes = same.and_then(|same| same.source_prefixes.clone());
                    }
                    element.source_prefixes = wanted.source_prefixes;
                    element.translation_prefixes = wanted.translation_prefixes;
                }
            }
        }
    }
}

/// The vNIC of that name.
fn same_name<'a>(vnic: &VnicConfig, among: &'a [VnicConfig]) -> Option<&'a VnicConfig> {
    among.iter().find(|other| other.name == vnic.name)
}

/// Whether a guest sees a vNIC that stays at another place.
fn have_moved(old: &[VnicConfig], new: &[VnicConfig]) -> bool {
    let mut stay = old
        .iter()
        .filter_map(|vnic| Some((vnic, same_name(vnic, new)?)));
    stay.any(|(old, new)| old.bus_path != new.bus_path)
}

fn element_of<'a>(config: &'a mut Config, name: &str) -> Option<&'a mut ElementConfig> {
    let mut elements = config.elements.iter_mut();
    elements.find(|element| element.name == name)
}

fn check_fixed(runs: &Config, wanted: &Config) -> Result<(), NeedsRestart> {
    let (old, new) = (&runs.backend, &wanted.backend);
    let changed = [
        ("backend.control", old.control != new.control),
        ("backend.workers", old.workers != new.workers),
        ("backend.polling", old.polling != new.polling),
        ("control-tls", runs.control_tls != wanted.control_tls),
        ("hand-over", runs.hand_over != wanted.hand_over),
        ("lease", runs.lease != wanted.lease),
        ("up", runs.up != wanted.up),
        ("element.serial", !have_same_ports(runs, wanted)),
    ];
    match changed.into_iter().find(|(_, changed)| *changed) {
        Some((key, _)) => Err(NeedsRestart(key)),
        None => Ok(()),
    }
}

/// Whether the relay and the controller of `shunt up` would know of nothing new.
fn have_same_ports(runs: &Config, wanted: &Config) -> bool {
    let of = |config: &Config| -> Vec<_> {
        let mut ports: Vec<_> = config
            .with_ports()
            .map(|(element, serial)| {
                let (name, tenant) = (element.name.clone(), element.tenant.clone());
                (name, tenant, serial.clone())
            })
            .collect();
        ports.sort_by(|one, other| one.0.cmp(&other.0));
        ports
    };
    of(runs) == of(wanted)
}

/// An element's table has the size it was made with.
fn is_kept(old: &ElementConfig, new: &ElementConfig) -> bool {
    old.name == new.name && old.sessions == new.sessions
}

fn stays<'a>(old: &ElementConfig, wanted: &'a Config) -> Option<&'a ElementConfig> {
    wanted.elements.iter().find(|new| is_kept(old, new))
}

/// Whether the element has this vNIC, whatever its sessions may use.
fn is_served(element: &ElementConfig, vnic: &VnicConfig) -> bool {
    element.vnics.iter().any(|other| other.is_served_as(vnic))
}

/// Whether an uplink that reads the same is also on the same device.
fn is_same_device(uplink: &UplinkConfig, runs: &Config, wanted: &Config) -> bool {
    let UplinkConfig::Shared { device, .. } = uplink else {
        return true;
    };
    let of = |config: &Config| {
        let mut shared = config.shared_uplinks.iter();
        shared.find(|shared| shared.name == *device).cloned()
    };
    of(runs) == of(wanted)
}

#[cfg(test)]
mod tests;
