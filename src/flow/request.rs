//! What a client asks for: a session, both its directions, and how it is to move.
//!
//! *Promises*: a [`SessionRequest`] is plain data, compared field by field; what
//! [`SessionRequest::check`] accepts can be put into the table.
//! *Refuses*: what contradicts itself, names vNICs the element has not, or could
//! never match; [`RequestError`] names the leaf at fault and the mend.
//! *Caller's duty*: policy (whose addresses these are) is checked above.
//! *Standard*: RFC 8512's words for translations; RFC 792 and RFC 4443 for echo.

mod check;

use std::time::Duration;

use super::{Direction, FlowSpec, HandOverMode, SessionId};
use crate::packet::rewrite::Rewrite;
use crate::packet::{FlowKey, MacAddr, Tuple, VlanId, VnicId};

/// The longest client key, bytes.
pub const KEY_MAX: usize = 64;
/// The shortest idle or hard timeout.
pub const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// The longest idle or hard timeout: a week.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A session as its client wants it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionRequest {
    /// The client's own name for it, 1 to 64 printable ASCII bytes. Offering a key again
    /// is how a client repeats or changes a request.
    pub key: String,
    /// IP protocol number of both directions.
    pub protocol: u8,
    /// The session ends when neither direction moved for this long; 1 s to 7 days.
    pub idle_timeout: Duration,
    /// The session ends at this age, whatever moves; 1 s to 7 days.
    pub hard_timeout: Option<Duration>,
    /// How it moves to the fast path.
    pub mode: HandOverMode,
    /// An operator vouches for it: no proof of forwarding is asked.
    pub vouched: bool,
    /// As the first packet went.
    pub original: Option<DirectionRequest>,
    /// The answers.
    pub reply: Option<DirectionRequest>,
}

/// One direction of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirectionRequest {
    /// The vNIC whose uplink its packets come in by.
    pub ingress: VnicId,
    /// Their VLAN there; untagged when absent.
    pub ingress_vlan: Option<VlanId>,
    /// Their destination MAC there, if not the vNIC's own (VRRP).
    pub ingress_mac: Option<MacAddr>,
    /// What matches: the tuple before translation.
    pub tuple: Tuple,
    /// The whole tuple after translation; equal to `tuple` if nothing is translated.
    pub translation: Tuple,
    /// The vNIC whose uplink its packets leave by; may be `ingress` (hairpin).
    pub egress: VnicId,
    /// Their VLAN there; untagged when absent.
    pub egress_vlan: Option<VlanId>,
    /// Their destination MAC there; learned from the proving frame when absent.
    pub dst_mac: Option<MacAddr>,
    /// Their source MAC there; learned from the proving frame when absent.
    pub src_mac: Option<MacAddr>,
    /// Largest L3 packet towards the next hop, bytes; the egress vNIC's MTU when absent.
    pub l3_mtu: Option<u16>,
    /// Whether TTL or hop limit goes down by one.
    pub decrement_ttl: bool,
    /// DSCP to set, 0 to 63; kept when absent.
    pub dscp: Option<u8>,
}

/// Which leaf of a request is at fault, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{leaf}: {text}")]
pub struct RequestError {
    /// The leaf, by its path within the request.
    pub leaf: &'static str,
    /// What is wrong with it, and the mend.
    pub text: String,
}

/// A vNIC as a request may refer to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VnicShape {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its MTU: the largest L3 packet its uplink takes, bytes.
    pub mtu: u16,
}

/// An element as a request may refer to it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ElementShape {
    /// By number; some may be absent.
    vnics: Vec<Option<VnicShape>>,
}

impl ElementShape {
    /// An element whose `n`th vNIC has the number `n`.
    pub fn new(vnics: impl IntoIterator<Item = VnicShape>) -> Self {
        Self {
            vnics: vnics.into_iter().map(Some).collect(),
        }
    }

    /// The vNIC of that number.
    pub fn vnic(&self, id: VnicId) -> Option<&VnicShape> {
        self.vnics.get(usize::from(id.0))?.as_ref()
    }

    /// How many vNICs there are.
    pub fn count(&self) -> usize {
        self.vnics.iter().flatten().count()
    }

    /// What the vNIC of that number is from now on; `None`: it is absent.
    pub fn set(&mut self, id: VnicId, vnic: Option<VnicShape>) {
        let place = usize::from(id.0);
        if self.vnics.len() <= place {
            self.vnics.resize(place + 1, None);
        }
        self.vnics[place] = vnic;
    }
}

/// A request that holds together, as the table takes it: per direction (original,
/// reply) the flow, if the direction was asked for.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Original and reply.
    pub flows: [Option<FlowSpec>; 2],
}

impl SessionRequest {
    /// Whether it comes in or leaves by a vNIC.
    pub fn uses(&self, vnic: VnicId) -> bool {
        let mut directions = self.directions().into_iter().flatten();
        directions.any(|direction| direction.egress == vnic || direction.ingress == vnic)
    }

    /// Both directions, original first.
    pub fn directions(&self) -> [Option<&DirectionRequest>; 2] {
        [self.original.as_ref(), self.reply.as_ref()]
    }

    /// Checks the request and prepares its flows for the table.
    ///
    /// # Errors
    /// The first leaf found at fault.
    pub fn check(&self, shape: &ElementShape, session: SessionId) -> Result<Checked, RequestError> {
        check::session(self)?;
        let mut flows = [None, None];
        for (place, direction) in [Direction::Original, Direction::Reply]
            .into_iter()
            .enumerate()
        {
            if let Some(asked) = self.directions()[place] {
                let leaves = check::Leaves::of(direction);
                check::direction(self, asked, shape, leaves)?;
                flows[place] = Some(self.flow(asked, direction, shape, session)?);
            }
        }
        check::pair(self, &flows)?;
        Ok(Checked { flows })
    }

    fn flow(
        &self,
        asked: &DirectionRequest,
        direction: Direction,
        shape: &ElementShape,
        session: SessionId,
    ) -> Result<FlowSpec, RequestError> {
        let leaves = check::Leaves::of(direction);
        let key = asked.key();
        let egress_key = asked.egress_key();
        let rewrite = Rewrite::new(&key, &egress_key, asked.decrement_ttl, asked.dscp)
            .map_err(|error| fault(leaves.translation, error.to_string()))?;
        let (Some(ingress), Some(egress)) = (shape.vnic(asked.ingress), shape.vnic(asked.egress))
        else {
            return Err(fault(
                leaves.ingress,
                "name vNICs of the element".to_owned(),
            ));
        };
        Ok(FlowSpec {
            key,
            egress_key,
            ingress_mac: asked.ingress_mac.unwrap_or(ingress.mac),
            egress: asked.egress,
            rewrite,
            dst_mac: asked.dst_mac,
            src_mac: asked.src_mac,
            l3_mtu: asked.l3_mtu.unwrap_or(egress.mtu),
            mode: self.mode,
            session,
            direction,
        })
    }

    /// Whether `newer` asks for the same traffic: it differs from this one at most in what
    /// becomes of the packets, in timeouts and in mode.
    pub fn matches_same(&self, newer: &Self) -> bool {
        let same = |old: Option<&DirectionRequest>, new: Option<&DirectionRequest>| match (old, new)
        {
            (Some(old), Some(new)) => old.key() == new.key(),
            (None, None) => true,
            _ => false,
        };
        self.key == newer.key
            && self.protocol == newer.protocol
            && same(self.original.as_ref(), newer.original.as_ref())
            && same(self.reply.as_ref(), newer.reply.as_ref())
    }

    /// Whether the flows of `newer` would be those of this request.
    pub fn flows_same(&self, newer: &Self) -> bool {
        self.original == newer.original
            && self.reply == newer.reply
            && self.mode == newer.mode
            && self.vouched == newer.vouched
    }
}

impl DirectionRequest {
    /// What its packets match.
    pub fn key(&self) -> FlowKey {
        FlowKey::new(self.ingress, vlan(self.ingress_vlan), &self.tuple)
    }

    /// The key its packets have when the guest sends them rewritten.
    pub fn egress_key(&self) -> FlowKey {
        FlowKey::new(self.egress, vlan(self.egress_vlan), &self.translation)
    }
}

fn vlan(id: Option<VlanId>) -> u16 {
    id.map_or(0, VlanId::get)
}

fn fault(leaf: &'static str, text: String) -> RequestError {
    RequestError { leaf, text }
}

#[cfg(test)]
mod tests;
