//! What changes under the connections, and what is proved again because of it.

use std::net::IpAddr;

use super::{After, Core, Hazard, Id, IfIndex, Links, Moment, Ports, Rules, Search, Stage};
use crate::agent::core::settings::Revocation;
use crate::agent::network::NetworkChange;

impl Core {
    /// Takes news of the network, or of the ruleset.
    pub fn network(&mut self, change: &NetworkChange, now: Moment) {
        match change {
            NetworkChange::Links { gone } => {
                self.links_read.is_due = true;
                if let Some(gone) = gone {
                    self.interface_gone(*gone, now);
                }
                self.revoke_all(now);
            }
            NetworkChange::Addresses(_) => {
                // An address of the element's own, or a connected route, may have come or gone.
                self.world_changed();
                self.revoke_all(now);
            }
            NetworkChange::Routes | NetworkChange::Xfrm => {
                self.world_changed();
                self.revoke_all(now);
            }
            NetworkChange::Neighbour { on, address } => self.neighbour_changed(*on, *address),
            NetworkChange::Ruleset => {
                self.hazards_read.is_due = true;
                self.revoke_all(now);
            }
            NetworkChange::Lost => {
                self.links_read.is_due = true;
                self.hazards_read.is_due = true;
                self.world_changed();
                self.revoke_all(now);
            }
        }
    }

    /// Takes the interfaces as they are.
    pub fn links(&mut self, links: Links, now: Moment) {
        self.links_read.end(true);
        self.links = links;
        self.map_ports(now);
    }

    /// Takes what of the ruleset must see every packet.
    pub fn hazards(&mut self, hazards: Vec<Hazard>, now: Moment) {
        self.hazards_read.end(true);
        self.hazards.clone_from(&hazards);
        let rules = Rules::new(hazards, &self.settings.switches);
        if rules != self.rules {
            self.rules = rules;
            self.judge_held(now);
            // What was left alone may be offloaded now.
            self.pace.hurry();
        }
    }

    /// Interfaces or ruleset could not be read: they are asked for again.
    pub const fn unread(&mut self, links: bool, hazards: bool) {
        if links {
            self.links_read.end(false);
        }
        if hazards {
            self.hazards_read.end(false);
        }
    }

    /// Whether enough is known to ask for anything.
    pub(super) fn is_informed(&self) -> bool {
        self.links_read.is_known && self.hazards_read.is_known && !self.element.vnics.is_empty()
    }

    /// Finds out anew which interface is which vNIC, and takes back what used one that is another
    /// now.
    pub(super) fn map_ports(&mut self, now: Moment) {
        let ports = Ports::new(&self.links, &self.element, &self.settings.switches);
        let changed: Vec<IfIndex> = self.ports.changed(&ports).collect();
        if ports == self.ports {
            return;
        }
        self.ports = ports;
        for index in changed {
            self.interface_gone(index, now);
        }
        self.world_changed();
    }

    fn interface_gone(&mut self, index: IfIndex, now: Moment) {
        let uses = |held: &super::Held| held.path.is_some_and(|path| path.uses(index));
        self.leave_all(uses, After::Watch, now);
    }

    /// Routes may be others: searches begin anew, and what had no way may have one.
    fn world_changed(&mut self) {
        self.world = self.world.wrapping_add(1);
        let ports = &self.ports;
        for held in self.held.values_mut() {
            if let Stage::Searching(search) = &mut held.stage {
                *search = Search::new(&held.connection, ports);
            }
        }
        self.pace.wake();
    }

    /// All sessions return to the guest until it is seen forwarding them as before.
    fn revoke_all(&mut self, now: Moment) {
        self.statistics.revocations += 1;
        match self.settings.revocation {
            Revocation::Strict => {
                // One that is under way may have been carried out before the change.
                self.line.reprove_all.get_or_insert(now);
            }
            Revocation::Staged => {
                for (id, held) in &mut self.held {
                    if held.is_offered && !held.is_reproving {
                        held.is_reproving = true;
                        self.staged.push_back(*id);
                    }
                }
            }
        }
        // What is about to be asked for was found in the world before.
        let is_next = |held: &super::Held| matches!(held.stage, Stage::Ready) && !held.is_offered;
        self.leave_all(is_next, After::Watch, now);
    }

    fn neighbour_changed(&mut self, on: IfIndex, address: IpAddr) {
        let Some(hop) = self.hops.get(&(on, address)) else {
            return;
        };
        let ids: Vec<Id> = hop.sessions.iter().copied().collect();
        for id in ids {
            self.reprove_one(id);
        }
    }

    /// One session returns to the guest until it is proved again.
    pub(super) fn reprove_one(&mut self, id: Id) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        if held.stage == Stage::Live && !held.is_reproving {
            held.is_reproving = true;
            self.reprove_keys.push(id);
        }
    }
}
