//! A device that several vNICs share, also of different tenants.
//!
//! *Promises*: members are told apart by VLAN and destination MAC; group frames go to every
//! member of their VLAN. A member's frames leave with its own VLAN and one of its own
//! addresses, or not at all; members of one VLAN reach each other here, since the network
//! outside would not send their frames back. Members come and go while others run.
//! *Refuses*: two members with one address in one VLAN; frames from a member that pretend
//! to another's VLAN or address ([`TxReport::refused`](super::TxReport::refused)).
//! *Caller's duty*: as for every port.
//! *Standard*: IEEE 802.1Q.
//!
//! A frame waits in its member's own inbox when another member's turn took it from the
//! device; an inbox that is full loses its member's frames and nobody else's. Frames with
//! a stacked tag (802.1ad), or for nobody here, are dropped and counted.

use std::sync::Arc;

use super::{Device, Port};

mod hub;
mod inbox;
mod member;
mod selector;
#[cfg(test)]
mod tests;
mod wiring;

pub use member::JoinError;
pub use selector::{Selector, Taken};

/// A device as its opener gives it, and as a member gets its part: control, and a port for
/// each queue, in order.
pub type Opened = (Arc<dyn Device>, Vec<Box<dyn Port>>);

/// A device that takes members.
pub struct SharedDevice {
    device: Arc<dyn Device>,
    queues: Vec<Arc<member::SharedQueue>>,
}

impl SharedDevice {
    /// A device without members yet. It is asked to leave nothing undone, since its frames
    /// may be any member's.
    pub fn new((device, ports): Opened) -> Self {
        let queues = ports.into_iter().map(member::SharedQueue::new);
        Self {
            device,
            queues: queues.map(Arc::new).collect(),
        }
    }

    /// Takes a member in; dropping its ports takes it out.
    ///
    /// # Errors
    /// Another member has one of its addresses in the same VLAN, or descriptors ran out.
    pub fn join(&self, selector: &Selector) -> Result<Opened, JoinError> {
        let mut ports: Vec<Box<dyn Port>> = Vec::new();
        let mut queues = Vec::new();
        for queue in &self.queues {
            let counters = Arc::default();
            ports.push(Box::new(
                queue.join(selector.clone(), Arc::clone(&counters))?,
            ));
            queues.push((queue.clone(), counters));
        }
        let device = member::MemberDevice {
            device: self.device.clone(),
            queues,
        };
        Ok((Arc::new(device), ports))
    }
}
