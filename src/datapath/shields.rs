//! An element's shields, held against what its uplinks bring (DESIGN section 4 step 4).
//!
//! *Promises*: each frame once, on the lane that received it, before anything comes of its flow;
//! without shields nothing is done. The flow table has been looked at by then only to find what a
//! search for the same flow has found before.
//! *Refuses*: ARP, all else that is not IP, and neighbour discovery are never held against them.
//! *Caller's duty*: [`Pipe::shield`] before the first frame of the burst is judged.
//! *Standard*: none.

use super::from_uplink::{Fate, Sorted};
use super::lane::{Ingoing, Pipe};
use super::mates::Mates;
use crate::flow::ShieldSet;
use crate::flow::shield::{Rank, Ruling};
use crate::packet::{Burst, DropReason, PuntReason, VnicId, network_key};

impl Pipe {
    /// Has shields decide about the frames of a burst.
    #[inline]
    pub(super) fn shield(
        &self,
        fates: &mut [Fate<'_>],
        sorted: &Sorted,
        ingoing: Ingoing,
        burst: &Burst,
    ) {
        if let Some(shields) = &self.shields {
            self.hold_against(shields, fates, sorted, ingoing, burst);
        }
    }

    fn hold_against(
        &self,
        shields: &ShieldSet,
        fates: &mut [Fate<'_>],
        sorted: &Sorted,
        ingoing: Ingoing,
        burst: &Burst,
    ) {
        let lane = self.mates.as_ref().map_or(0, Mates::number);
        for (index, fate) in fates.iter_mut().enumerate() {
            let Some(rank) = matching(shields, fate, sorted, index, (ingoing, burst)) else {
                continue;
            };
            let wire = sorted.wire[index];
            let size = (wire.packets.into(), wire.bytes.into());
            let lost = match shields.rule(rank, lane, size, ingoing.now) {
                Ruling::Pass => continue,
                Ruling::Punt => {
                    *fate = Fate::Punt(PuntReason::Shield);
                    continue;
                }
                Ruling::Drop => DropReason::ShieldDrop,
                Ruling::Exceeds => DropReason::ShieldPolice,
            };
            self.counters.lose(lost, wire);
            *fate = Fate::Settled;
        }
    }
}

/// The shield that matches a frame.
#[inline(always)]
fn matching(
    shields: &ShieldSet,
    fate: &Fate<'_>,
    sorted: &Sorted,
    index: usize,
    (ingoing, burst): (Ingoing, &Burst),
) -> Option<Rank> {
    match (&sorted.parsed[index], fate) {
        (Ok(parsed), Fate::Forward(flow)) => shields.of_flow(*flow, &parsed.key, parsed.tcp_flags),
        (Ok(parsed), _) => shields.of_key(&parsed.key, parsed.tcp_flags),
        (Err(PuntReason::NonIp), _) => None,
        (Err(_), _) => {
            let vnic = VnicId(ingoing.vnic as u16);
            shields.of_network(&network_key(burst.frame(index).data, vnic)?)
        }
    }
}
