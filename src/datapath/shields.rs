//! An element's shields, held against what its uplinks bring (DESIGN section 4 step 4).
//!
//! *Promises*: each frame once, on the lane that received it, before anything comes of its flow;
//! without shields nothing is done. The flow table has been looked at by then only to find what a
//! search for the same flow has found before.
//! *Refuses*: ARP, all else that is not IP, and neighbour discovery are never held against them.
//! *Caller's duty*: [`Pipe::shield`] before the first frame of the burst is judged.
//! *Standard*: none.

use super::from_uplink::Sorted;
use super::lane::{Ingoing, Pipe};
use super::mates::Mates;
use crate::flow::shield::{Rank, Ruling};
use crate::flow::{FlowRef, ShieldSet};
use crate::packet::{Burst, DropReason, PuntReason, VnicId, network_key};

/// Which frames of a burst shields have taken, by bit.
#[derive(Clone, Copy, Default)]
pub(super) struct Shielded {
    lost: u64,
    punted: u64,
}

impl Shielded {
    /// Whether the frame is gone, and counted.
    pub(super) fn is_lost(self, index: usize) -> bool {
        self.lost >> index & 1 != 0
    }

    /// Whether the frame goes to the guest.
    pub(super) fn is_punted(self, index: usize) -> bool {
        self.punted >> index & 1 != 0
    }
}

impl Pipe {
    /// Has shields decide about the frames of a burst, and takes those from their flows that they
    /// do not let pass.
    #[inline]
    pub(super) fn shield(
        &self,
        flows: &mut [Option<FlowRef<'_>>; Burst::FRAMES_MAX],
        sorted: &Sorted,
        ingoing: Ingoing,
        burst: &Burst,
    ) -> Shielded {
        match &self.shields {
            Some(shields) => self.hold_against(shields, flows, sorted, ingoing, burst),
            None => Shielded::default(),
        }
    }

    fn hold_against(
        &self,
        shields: &ShieldSet,
        flows: &mut [Option<FlowRef<'_>>; Burst::FRAMES_MAX],
        sorted: &Sorted,
        ingoing: Ingoing,
        burst: &Burst,
    ) -> Shielded {
        let lane = self.mates.as_ref().map_or(0, Mates::number);
        let mut shielded = Shielded::default();
        for (index, flow) in flows[..sorted.parsed.len()].iter_mut().enumerate() {
            let Some(rank) = matching(shields, *flow, sorted, index, (ingoing, burst)) else {
                continue;
            };
            let wire = sorted.wire[index];
            let size = (wire.packets.into(), wire.bytes.into());
            let lost = match shields.rule(rank, lane, size, ingoing.now) {
                Ruling::Pass => continue,
                Ruling::Punt => None,
                Ruling::Drop => Some(DropReason::ShieldDrop),
                Ruling::Exceeds => Some(DropReason::ShieldPolice),
            };
            *flow = None;
            match lost {
                Some(reason) => {
                    self.counters.lose(reason, wire);
                    shielded.lost |= 1 << index;
                }
                None => shielded.punted |= 1 << index,
            }
        }
        shielded
    }
}

/// The shield that matches a frame.
#[inline(always)]
fn matching(
    shields: &ShieldSet,
    flow: Option<FlowRef<'_>>,
    sorted: &Sorted,
    index: usize,
    (ingoing, burst): (Ingoing, &Burst),
) -> Option<Rank> {
    match (&sorted.parsed[index], flow) {
        (Ok(parsed), Some(flow)) => shields.of_flow(flow, &parsed.key, parsed.tcp_flags),
        (Ok(parsed), None) => shields.of_key(&parsed.key, parsed.tcp_flags),
        (Err(PuntReason::NonIp), _) => None,
        (Err(_), _) => {
            let vnic = VnicId(ingoing.vnic as u16);
            shields.of_network(&network_key(burst.frame(index).data, vnic)?)
        }
    }
}
