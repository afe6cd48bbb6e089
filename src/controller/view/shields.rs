//! An element's shields.
//!
//! *Promises*: results come in the order of entries.
//! *Refuses*: shields of vNICs that are not the element's, entry by entry.
//! *Caller's duty*: the backend bounds their number and life. *Standard*: rpcs `shield` and
//! `unshield`.

use super::super::audit::Record;
use super::super::batch::filled;
use super::{View, of_backend};
use crate::api::error::ApiError;
use crate::api::shield::{
    ShieldInput, ShieldOutput, ShieldResult, ShieldStatus, UnshieldInput, UnshieldOutput,
};

impl View {
    /// Shields are asked for over the element's own vNICs only. Switches let them pass: they
    /// only spare the element packets, and are no offload.
    pub(super) async fn do_shield(&self, input: ShieldInput) -> Result<ShieldOutput, ApiError> {
        let element = self.meant(input.element.as_deref())?;
        let bounds = self.placed.element.bounds();
        let (mut allowed, mut results) = (Vec::new(), Vec::new());
        for shield in input.shield {
            let vnic = shield.ingress_vnic.as_deref();
            match vnic.map(|name| bounds.own(name, "ingress-vnic")) {
                Some(Err(fault)) => {
                    let denied = ShieldStatus::AccessDenied;
                    results.push(Some(ShieldResult::fault(shield.name, denied, fault)));
                }
                _ => {
                    results.push(None);
                    allowed.push(shield);
                }
            }
        }
        let mut output = ShieldOutput::default();
        if !allowed.is_empty() {
            let input = ShieldInput {
                element,
                epoch: input.epoch,
                fence: self.told_fence().await?,
                shield: allowed,
            };
            output = self.backend().shield(input).await.map_err(of_backend)?;
        }
        output.result = filled(results, output.result)?;
        let entries = output.result.iter();
        let entries = entries.map(|one| (&one.name, one.result.name(), one.error.as_ref()));
        self.shared.audit.log(self.record("shield", entries)).await;
        Ok(output)
    }

    pub(super) async fn do_unshield(
        &self,
        input: UnshieldInput,
    ) -> Result<UnshieldOutput, ApiError> {
        let input = UnshieldInput {
            element: self.meant(input.element.as_deref())?,
            fence: self.told_fence().await?,
            ..input
        };
        let output = self.backend().unshield(input).await.map_err(of_backend)?;
        let record = Record {
            results: [("removed", output.removed)].into(),
            ..self.line("unshield")
        };
        self.shared.audit.log(record).await;
        Ok(output)
    }
}
