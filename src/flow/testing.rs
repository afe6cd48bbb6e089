//! Flows for tests.

use super::spec::{Direction, FlowSpec, HandOverMode, SessionId};
use crate::packet::rewrite::Rewrite;
use crate::packet::{FlowKey, MacAddr, Tuple, VnicId};

/// A plain rewrite: nothing but MACs change.
fn test_rewrite(key: &FlowKey) -> Rewrite {
    Rewrite::new(key, key, false, None).unwrap()
}

/// The UDP key number `number` on vNIC 0.
pub(crate) fn test_key(number: u32) -> FlowKey {
    let [a, b, c, d] = number.to_be_bytes();
    let tuple = Tuple {
        src: [10, a, b, c].into(),
        dst: [192, 0, 2, 1].into(),
        protocol: 17,
        src_port: 1024 + u16::from(d),
        dst_port: 53,
    };
    FlowKey::new(VnicId(0), 0, &tuple)
}

/// A flow from the key's vNIC to the next higher one, its tuple unchanged, MACs given.
pub(crate) fn test_spec(key: FlowKey) -> FlowSpec {
    let egress = VnicId(key.vnic().0 + 1);
    FlowSpec {
        key,
        egress_key: FlowKey::new(egress, key.vlan(), &key.tuple()),
        ingress_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        egress,
        rewrite: test_rewrite(&key),
        dst_mac: Some(MacAddr([2, 0, 0, 0, 0, 2])),
        src_mac: Some(MacAddr([2, 0, 0, 0, 0, 3])),
        l3_mtu: 1500,
        mode: HandOverMode::Prompt,
        session: SessionId(0),
        direction: Direction::Original,
    }
}
