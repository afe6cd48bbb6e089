//! Which calls are in time.
//!
//! *Promises*: of two calls that came by different connections of an element, the older one's
//! is refused once the newer one's was seen; a call of an epoch that is not the present one is
//! refused. An epoch's number is higher than those before, and not lower than the clock.
//! *Refuses*: see [`Late`].
//! *Caller's duty*: judges where it acts, so that nothing comes between.
//! *Standard*: DESIGN section 6 (epochs, fences).

/// What a call says of its own age.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Claim {
    /// The epoch that it belongs to; the present one if absent.
    pub epoch: Option<u64>,
    /// The number of the connection that it came by.
    pub fence: Option<u64>,
}

/// Why a call comes too late.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Late {
    /// Its epoch is not the present one.
    #[error("its epoch has ended")]
    Epoch,
    /// A newer connection was seen.
    #[error("a newer connection was seen")]
    Fence,
}

/// What an element's calls are measured by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// 0: none that a call can name.
    epoch: u64,
    /// The highest seen.
    fence: u64,
}

impl Standing {
    /// Whether a call is in time. Its fence counts as seen even if its epoch has ended.
    ///
    /// # Errors
    /// It is not.
    pub fn judge(&mut self, claim: Claim) -> Result<(), Late> {
        if claim.fence.is_some_and(|fence| fence < self.fence) {
            return Err(Late::Fence);
        }
        self.see(claim.fence.unwrap_or(0));
        match claim.epoch {
            Some(epoch) if epoch != self.epoch || epoch == 0 => Err(Late::Epoch),
            _ => Ok(()),
        }
    }

    /// A connection of that number was seen.
    pub fn see(&mut self, fence: u64) {
        self.fence = self.fence.max(fence);
    }

    /// The epoch that begins now; `clock` is what numbers start from, milliseconds since 1970.
    pub fn begin(&mut self, clock: u64) -> u64 {
        self.epoch = clock.max(self.epoch.saturating_add(1));
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(epoch: Option<u64>, fence: Option<u64>) -> Claim {
        Claim { epoch, fence }
    }

    #[test]
    fn before_an_epoch_was_opened_no_number_is_the_present_one() {
        let mut standing = Standing::default();
        assert_eq!(standing.judge(of(Some(0), None)), Err(Late::Epoch));
        assert_eq!(standing.judge(of(None, None)), Ok(()));
        let epoch = standing.begin(77);
        assert_eq!(epoch, 77);
        assert_eq!(standing.judge(of(Some(77), None)), Ok(()));
    }

    #[test]
    fn epochs_rise_also_while_the_clock_stands() {
        let mut standing = Standing::default();
        let epochs = [500, 500, 3, 900].map(|clock| standing.begin(clock));
        assert_eq!(epochs, [500, 501, 502, 900]);
        assert_eq!(standing.judge(of(Some(502), None)), Err(Late::Epoch));
    }

    proptest! {
        /// The oracle: the list of what was seen.
        #[test]
        fn a_call_passes_exactly_if_none_newer_was_seen(
            calls in proptest::collection::vec(
                (proptest::option::of(0u64..4), proptest::option::of(0u64..6), any::<bool>()),
                1..40,
            ),
        ) {
            let mut standing = Standing::default();
            let (mut seen, mut present) = (vec![0], None);
            for (epoch, fence, opens) in calls {
                if opens {
                    present = Some(standing.begin(0));
                }
                let fenced = fence.is_some_and(|fence| seen.iter().any(|seen| *seen > fence));
                let stale = epoch.is_some_and(|epoch| Some(epoch) != present);
                let expected = match (fenced, stale) {
                    (true, _) => Err(Late::Fence),
                    (false, true) => Err(Late::Epoch),
                    (false, false) => Ok(()),
                };
                prop_assert_eq!(standing.judge(of(epoch, fence)), expected);
                seen.extend(fence.filter(|_| !fenced));
            }
        }
    }
}
