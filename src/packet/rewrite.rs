//! skeleton: helper packet
use super::parse::Parsed;
use super::{FlowKey, FrameMut, MacAddr, VlanId};

/// What becomes of a flow's packets, prepared once: target addresses and ports, VLAN, TTL, DSCP, and the
/// checksum differences that follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite {}

/// Why a rewrite cannot be prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidRewrite {}

impl Rewrite {
    /// Prepares the rewrite of packets with key `from` into packets with the key `to` (its vNIC is ignored; its VLAN is the
    /// egress VLAN).
    pub fn new(
        _from: &FlowKey,
        _to: &FlowKey,
        _decrement_ttl: bool,
        _dscp: Option<u8>,
    ) -> Result<Self, InvalidRewrite> {
        unimplemented!()
    }

    /// Whether TTL or hop limit is decremented.
    pub fn decrements_ttl(&self) -> bool {
        unimplemented!()
    }

    /// Rewrites a frame in place. `parsed` must be of this frame and its key the `from` of [`Rewrite::new`].
    pub fn apply(
        &self,
        _frame: &mut FrameMut<'_>,
        _parsed: &Parsed,
        _dst_mac: MacAddr,
        _src_mac: MacAddr,
    ) {
        unimplemented!()
    }

    /// The egress VLAN.
    pub fn vlan(&self) -> Option<VlanId> {
        unimplemented!()
    }
}
