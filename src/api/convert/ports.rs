//! What ports say of themselves, in the model's words.
//!
//! *Promises*: every counter a port has.
//! *Refuses*: nothing. *Caller's duty*: none. *Standard*: none.

use crate::api::state::{DeviceReport, Queue};
use crate::port::{DeviceStatus, QueueStatus};

impl From<&QueueStatus> for Queue {
    fn from(status: &QueueStatus) -> Self {
        Self {
            queue: status.queue,
            running: status.running,
            fault: status.fault.clone(),
            rx_frames: status.rx_frames,
            rx_octets: status.rx_bytes,
            tx_frames: status.tx_frames,
            tx_octets: status.tx_bytes,
            rx_discarded: status.rx_discarded,
            tx_discarded: status.tx_discarded,
        }
    }
}

impl From<&DeviceStatus> for DeviceReport {
    fn from(status: &DeviceStatus) -> Self {
        Self {
            kind: status.kind.clone(),
            name: status.name.clone(),
            connected: status.connected,
            feature: status.features.clone(),
            connections: status.connections,
            faults: status.faults,
            unclaimed: status.unclaimed,
            queue: status.queues.iter().map(Queue::from).collect(),
        }
    }
}
